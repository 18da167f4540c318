//! A thread that reclaims for itself: its record, its open request, and its wait for the worker.

use memcg_accounting::{Charged, GroupRef, OverLimit, Payer, Request, now_ms};

use crate::Engine;
use crate::held::HELD_AFTER_MS;
use crate::pass::Run;
use crate::patience::Patience;
use crate::raw::{Cause, Place};
use crate::reclaimer::{Answer, Ask, Reclaimer};
use crate::scan::FIRST_PRIORITY;
use crate::stall::Stall;
use crate::sync::{Ordering, futex_wait, thread_id};

/// A waiter looks at least this often whether bytes arrived, so that a deadline is renewed from
/// about when they did.
const LOOK_MS: u32 = 10;

/// What is known of an answer that was not waited for.
const UNKNOWN: Answer = Answer { candidates: true, busy: true, low: false, unsure: false };

/// What one phase of a round asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    /// Whose subtree.
    pub(crate) target: GroupRef,
    /// Bytes that the request will have had freed when it is enough.
    pub(crate) goal: u64,
    /// Why, for shrinkers that run on this thread and on the worker.
    pub(crate) causes: (Cause, Cause),
    /// The priorities, from and to.
    pub(crate) priorities: (u32, u32),
    /// Groups under their `low` are asked too.
    pub(crate) breaks_low: bool,
    /// Shrinkers of the worker run here too: no allocation is under way, and there is no worker.
    pub(crate) all_here: bool,
}

/// A reclaiming thread, while it has a request open.
///
/// # Invariants
///
/// - While `is_open`, the request is open, and `record` tells others of it.
/// - `record` is the session's own.
#[derive(Debug)]
pub(crate) struct Session<'e> {
    engine: &'e Engine,
    record: Option<u32>,
    pub(crate) request: &'static Request,
    is_open: bool,
    /// Waits for the worker that ended at the deadline.
    pub(crate) gave_up: u32,
    /// Whether the worker was asked.
    pub(crate) asked_worker: bool,
    /// Told of long waits.
    pub(crate) stall: Option<&'e Stall<'e>>,
}

impl<'e> Session<'e> {
    /// Opens `request` for a charge of `need` bytes to `payer`. `None`: the payer is gone, or
    /// there is no memory for a record.
    pub(crate) fn for_charge(
        engine: &'e Engine,
        request: &'static Request,
        payer: Payer,
        target: GroupRef,
        need: u64,
    ) -> Option<Self> {
        let session = Self::new(engine, request)?;
        session.opened(engine.tree.open_request(request, payer, target, need))
    }

    /// Opens `request` to count what comes back from the subtree of `target`.
    pub(crate) fn for_reclaim(
        engine: &'e Engine,
        request: &'static Request,
        target: GroupRef,
    ) -> Option<Self> {
        let session = Self::new(engine, request)?;
        engine.tree.open_reclaim(request, target);
        session.opened(true)
    }

    fn new(engine: &'e Engine, request: &'static Request) -> Option<Self> {
        let (index, _) = engine.reclaimers.take(engine.tree.source(), thread_id(), false)?;
        Some(Self {
            engine,
            record: Some(index),
            request,
            is_open: false,
            gave_up: 0,
            asked_worker: false,
            stall: None,
        })
    }

    fn opened(mut self, is_open: bool) -> Option<Self> {
        self.is_open = is_open;
        self.announce();
        is_open.then_some(self)
    }

    fn me(&self) -> Option<&'e Reclaimer> {
        self.record.and_then(|index| self.engine.reclaimers.get(index))
    }

    fn announce(&self) {
        if let Some(me) = self.me() {
            me.set_open(self.is_open.then_some(self.request));
        }
    }

    /// Charges what the credit leaves uncovered, up to `over` bytes over the limits, and with that
    /// closes the request.
    pub(crate) fn settle(&mut self, ahead: u64, over: u64) -> Result<Charged, OverLimit> {
        let charged = self.engine.tree.settle_request(self.request, ahead, over)?;
        self.is_open = false;
        self.announce();
        Ok(charged)
    }

    // ---- a phase of a round -------------------------------------------------------------

    /// Asks the shrinkers of this thread, then those of the worker, until it is enough.
    pub(crate) fn ask(&mut self, phase: &Phase, patience: &mut Patience) -> Answer {
        let here = if phase.all_here { None } else { Some(Place::Direct) };
        let mut answer = self.ask_here(phase, here, patience);
        let is_done = |session: &Self, patience: &mut Patience| {
            let freed = session.request.freed();
            freed >= phase.goal || patience.is_over(now_ms(), freed)
        };
        if phase.all_here || is_done(self, patience) {
            return answer;
        }
        if self.engine.has_marked(phase.target, Place::Worker) {
            answer = answer.or(self.ask_worker(phase, patience));
        }
        answer
    }

    /// The last resort: after all else gave nothing, asks groups under their `low` too, if some
    /// were left alone. Answers for the whole phase.
    pub(crate) fn ask_low(
        &mut self,
        phase: &Phase,
        answer: Answer,
        patience: &mut Patience,
    ) -> Answer {
        if !answer.low {
            return answer;
        }
        let phase = Phase { breaks_low: true, priorities: (FIRST_PRIORITY, 0), ..*phase };
        let last = self.ask(&phase, patience);
        Answer { low: false, ..answer }.or(last)
    }

    fn ask_here(&self, phase: &Phase, place: Option<Place>, patience: &mut Patience) -> Answer {
        let has_some = match place {
            Some(place) => self.engine.has_marked(phase.target, place),
            None => true,
        };
        let Some(me) = self.me().filter(|_| has_some) else { return Answer::default() };
        self.engine.host().begin_eager(Some(self.request));
        let mut run = Run::new(me, phase.target, phase.causes.0, self.request, phase.goal);
        run.place = place;
        run.breaks_low = phase.breaks_low;
        self.engine.passes(&mut run, patience, phase.priorities.0, phase.priorities.1);
        self.engine.host().end_eager();
        run.answer
    }

    /// Has the worker ask its shrinkers, and waits for it.
    fn ask_worker(&mut self, phase: &Phase, patience: &mut Patience) -> Answer {
        let engine = self.engine;
        let Some(me) = self.me() else { return Answer::default() };
        if !engine.crew.is_there() {
            let missing = phase.goal.saturating_sub(self.request.freed());
            engine.enqueue(phase.target, missing);
            return Answer::default();
        }
        self.asked_worker = true;
        let (priority, last) = phase.priorities;
        let Phase { target, goal, breaks_low, causes: (_, cause), .. } = *phase;
        let ask = Ask { target, cause, goal, priority, last, breaks_low };
        self.post(me, ask);
        let mut me = me;
        loop {
            let seen = me.state.load(Ordering::Acquire);
            if let Some(answer) = me.collect() {
                return answer;
            }
            if me.server().is_none() {
                // The others are at what does not end, and another worker is on its way.
                patience.renew(now_ms());
            } else if self.is_held(me, patience) && self.leave_to_worker(me) {
                // Another worker passes over what holds this one, which was too slow.
                self.gave_up += 1;
                let Some(other) = self.me() else { return UNKNOWN };
                me = other;
                self.post(me, ask);
                continue;
            }
            let left = patience.left(now_ms(), self.request.freed());
            if left != 0 {
                futex_wait(&me.state, seen, Some(left.min(LOOK_MS)));
                if let Some(stall) = self.stall {
                    stall.look();
                }
                continue;
            }
            if me.withdraw() {
                engine.reclaimers.unposted();
            } else if !self.leave_to_worker(me) {
                // Answered, or put back, just now.
                continue;
            }
            engine.counters.gave_up.fetch_add(1, Ordering::Relaxed);
            self.gave_up += 1;
            // A shrinker that does not return is named, and its worker replaced.
            engine.crew.wake_keeper();
            return UNKNOWN;
        }
    }

    fn post(&self, me: &Reclaimer, ask: Ask) {
        self.engine.reclaimers.posting();
        me.post(self.request, ask);
        self.engine.crew.wake();
    }

    /// Whether the worker that took what was asked is inside a call that is not worth more of the time.
    fn is_held(&self, me: &Reclaimer, patience: &Patience) -> bool {
        let worker = me.server().and_then(|index| self.engine.reclaimers.get(index));
        let call = worker.and_then(|worker| worker.call(now_ms()));
        call.is_some_and(|(_, age)| age >= HELD_AFTER_MS && !patience.is_worth(age))
    }

    /// Leaves the record to the worker, and goes on with another; `false`: the worker is done.
    fn leave_to_worker(&mut self, me: &Reclaimer) -> bool {
        let reclaimers = &self.engine.reclaimers;
        // The other one tells of the request before this one may cease to: credit that nobody
        // tells of could not be surrendered.
        let taken = reclaimers.take(self.engine.tree.source(), thread_id(), false);
        let other = taken.map(|(index, other)| {
            other.set_open(self.is_open.then_some(self.request));
            index
        });
        if me.abandon() {
            self.record = other;
            return true;
        }
        other.into_iter().for_each(|index| reclaimers.put(index));
        false
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.engine.tree.close_request(self.request);
        }
        if let Some(index) = self.record {
            self.engine.reclaimers.put(index);
        }
    }
}

impl Engine {
    /// Whether a shrinker that runs at `place` is marked somewhere in the subtree of `target`.
    fn has_marked(&self, target: GroupRef, place: Place) -> bool {
        if target.is_root() && self.registry.unaware().any(|(_, slot)| slot.place() == place) {
            return true;
        }
        let bits = self.registry.at(Some(place));
        self.groups.has_marked(&self.marked, target, bits)
    }
}
