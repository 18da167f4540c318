//! What the layer above has the worker do: deliver what was rung for, and reclaim that a program
//! asked for without waiting.
//!
//! # Invariants
//!
//! - `has_news` is set after what is to be delivered was put where `deliver` finds it, and cleared
//!   before `deliver` looks.
//! - An errand's turn ends at [`SLICE`] bytes, or as soon as others wait: no errand keeps the
//!   worker from a waiter, from background work or from another errand for longer than that and
//!   one call of a shrinker.
//!
//! Source: `user_proactive_reclaim` in `mm/vmscan.c`, which reclaims in batches too.

use memcg_accounting::{GroupRef, now_ms};

use crate::Engine;
use crate::pass::Run;
use crate::patience::{Deadline, Patience};
use crate::raw::Cause;
use crate::reclaimer::Reclaimer;
use crate::scan::{FIRST_PRIORITY, GENTLE_PRIORITY};
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// The most that one turn gets back.
const SLICE: u64 = 4 << 20;
/// Turns in a row that get nothing, because a shrinker is busy, after which it is given up.
const BUSY_TURNS: u32 = 16;
/// What a worker's record says while it runs the program's code that is no shrinker: a slot that
/// no shrinker has.
pub(crate) const NO_SHRINKER: u32 = u32::MAX - 1;

/// Reclaim that goes on turn by turn.
#[derive(Debug)]
pub struct Errand {
    group: GroupRef,
    wanted: u64,
    got: u64,
    end: Option<ErrandEnd>,
    /// Where the next turn's passes begin, if the last one ended for others.
    priority: u32,
    stage: Stage,
    /// What had come back when the stages began.
    began_with: u64,
    nr_busy: u32,
}

/// What an errand asks for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All but the last quarter of each cache.
    Gentle,
    Deep,
    /// Groups under their `low` too.
    Low,
}

impl Stage {
    /// The priorities of its passes, from and to.
    const fn priorities(self) -> (u32, u32) {
        match self {
            Stage::Gentle => (FIRST_PRIORITY, GENTLE_PRIORITY),
            Stage::Deep => (GENTLE_PRIORITY - 1, 0),
            Stage::Low => (FIRST_PRIORITY, 0),
        }
    }
}

/// Why an errand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrandEnd {
    /// It got what was wanted.
    Met,
    /// There was no more.
    Short,
    /// Its group is offline.
    Gone,
}

impl Errand {
    /// Wants `bytes` of the subtree of `group`. Keeps nothing: a group that goes ends it.
    #[must_use]
    pub const fn new(group: GroupRef, bytes: u64) -> Self {
        Self {
            group,
            wanted: bytes,
            got: 0,
            end: if bytes == 0 { Some(ErrandEnd::Met) } else { None },
            priority: FIRST_PRIORITY,
            stage: Stage::Gentle,
            began_with: 0,
            nr_busy: 0,
        }
    }

    /// Bytes that came back so far.
    #[must_use]
    pub const fn got(&self) -> u64 {
        self.got
    }

    /// Whether it has ended, and why.
    #[must_use]
    pub const fn end(&self) -> Option<ErrandEnd> {
        self.end
    }

    fn left(&self) -> u64 {
        self.wanted.saturating_sub(self.got)
    }
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Errands {
    has_news: AtomicBool,
    /// News was looked at, and the program's code that it calls for has yet to run.
    has_code: AtomicBool,
    nr_tasks: AtomicU32,
}

impl Errands {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                has_news: AtomicBool::new(false),
                has_code: AtomicBool::new(false),
                nr_tasks: AtomicU32::new(0),
            }
        }
    }

    /// Relaxed: whoever adds wakes afterwards.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn has_tasks(&self) -> bool {
        self.nr_tasks.load(Ordering::Relaxed) != 0
    }
}

impl Engine {
    /// There is something to [deliver](crate::Host::deliver), put in its place before this. May be
    /// called anywhere, with any lock held: it sets a flag and wakes a thread.
    pub fn ring(&self) {
        // Release pairs with the AcqRel in `deliver`.
        self.errands.has_news.store(true, Ordering::Release);
        self.crew.wake();
    }

    /// There is one more task for [`serve_task`](crate::Host::serve_task), put in its place before
    /// this.
    pub fn add_task(&self) {
        self.errands.nr_tasks.fetch_add(1, Ordering::Relaxed);
        self.crew.wake();
    }

    /// A task is over.
    pub fn end_task(&self) {
        self.errands.nr_tasks.fetch_sub(1, Ordering::Relaxed);
    }

    /// In the child of a fork: there are no tasks.
    pub fn forget_tasks(&self) {
        self.errands.nr_tasks.store(0, Ordering::Relaxed);
    }

    /// Whether there is something that a worker may deliver.
    #[inline]
    pub(crate) fn has_deliverable(&self) -> bool {
        self.errands.has_news()
            || (self.errands.has_code.load(Ordering::Relaxed) && self.may_run_errands())
    }

    /// Has the host look at news, whatever others are at, and then deliver what of it runs the program's code. A
    /// delivery that does not end is a call that does not: another worker takes this one's place, while
    /// [few](crate::held) are so.
    pub(crate) fn deliver(&self, me: &Reclaimer) {
        // Relaxed: a ring wakes a worker afterwards.
        let Errands { has_news, has_code, .. } = &self.errands;
        // AcqRel: what was put in place before the ring is seen, and what is rung for after this
        // is looked at again.
        if has_news.load(Ordering::Relaxed) && has_news.swap(false, Ordering::AcqRel) {
            me.enter(NO_SHRINKER);
            self.host().look_at_news();
            me.leave();
            // Release pairs with the AcqRel below.
            has_code.store(true, Ordering::Release);
        }
        if has_code.load(Ordering::Relaxed)
            && self.may_run_errands()
            && has_code.swap(false, Ordering::AcqRel)
        {
            me.enter(NO_SHRINKER);
            self.host().deliver();
            me.leave();
        }
    }

    /// One turn of one task; `false`: there is none.
    pub(crate) fn serve_task(&self, me: &Reclaimer) -> bool {
        self.errands.nr_tasks.load(Ordering::Relaxed) != 0
            && self.host().serve_task(&mut |errand| self.run_errand(me, errand))
    }

    fn run_errand(&self, me: &Reclaimer, errand: &mut Errand) {
        if errand.end.is_some() {
            return;
        }
        if !self.tree.is_online(errand.group) {
            errand.end = Some(ErrandEnd::Gone);
            return;
        }
        self.reclaim_slice(me, errand);
    }

    /// Garbage first, then gentle passes, garbage again, and then whatever there is: as
    /// [`reclaim`](Engine::reclaim), a slice at a time.
    fn reclaim_slice(&self, me: &Reclaimer, errand: &mut Errand) {
        let before = errand.got;
        let (first, last) = errand.stage.priorities();
        if errand.priority == first {
            errand.got += self.host().drain(errand.group);
        }
        let Some(request) = self.caller().request.filter(|_| errand.left() != 0) else {
            errand.end = Some(if errand.left() == 0 { ErrandEnd::Met } else { ErrandEnd::Short });
            return;
        };
        self.tree.open_reclaim(request, errand.group);
        self.host().begin_eager(Some(request));
        let mut patience = Patience::new(Deadline::BACKGROUND, now_ms());
        let goal = errand.left().min(SLICE);
        let mut run = Run::new(me, errand.group, Cause::Proactive, request, goal);
        run.is_turn = true;
        run.breaks_low = errand.stage == Stage::Low;
        self.passes(&mut run, &mut patience, errand.priority, last);
        self.host().end_eager();
        errand.got += request.freed();
        let is_met = run.is_enough();
        self.tree.close_request(request);
        self.after_slice(errand, before, is_met, &run);
    }

    fn after_slice(&self, errand: &mut Errand, before: u64, is_met: bool, run: &Run<'_>) {
        if errand.left() == 0 {
            errand.end = Some(ErrandEnd::Met);
            return;
        }
        if let Some(priority) = run.yielded_at {
            errand.priority = priority;
            return;
        }
        if errand.got > before {
            errand.nr_busy = 0;
        }
        let is_dry = errand.got == errand.began_with;
        let next = match errand.stage {
            _ if is_met => Stage::Gentle,
            Stage::Gentle if run.answer.has_more() => Stage::Deep,
            Stage::Deep if run.answer.low && is_dry => Stage::Low,
            _ => {
                if is_dry {
                    errand.nr_busy += 1;
                    if !run.answer.busy || errand.nr_busy >= BUSY_TURNS {
                        errand.end = Some(ErrandEnd::Short);
                        return;
                    }
                    crate::pass::pause(errand.nr_busy);
                }
                Stage::Gentle
            }
        };
        if next == Stage::Gentle {
            errand.began_with = errand.got;
        }
        (errand.stage, errand.priority) = (next, next.priorities().0);
    }
}
