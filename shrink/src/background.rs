//! What nobody waits for: groups over their `high`, and allocations that could not wait.
//!
//! # Invariants
//!
//! - A group is in the queue once: exactly while its record says `queued`.
//! - The links and `group` of a queued record are guarded by the queue's lock.

use memcg_accounting::table::NONE;
use memcg_accounting::{EventKind, GroupRef, Limit, now_ms};

use crate::Engine;
use crate::charge::margin;
use crate::groups::{Background, Groups};
use crate::pass::{FRUITLESS_ROUNDS, Run, pause};
use crate::patience::{Deadline, Patience};
use crate::raw::Cause;
use crate::reclaimer::Reclaimer;
use crate::scan::{FIRST_PRIORITY, GENTLE_PRIORITY};
use crate::sync::{AtomicU32, Lock, Ordering, lock};

/// What came of a turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Bytes that came back.
    freed: u64,
    end: End,
}

/// Room that is to be made below a group's `max`; beside it, the group comes down to its `high`.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Whatever it takes.
    needed: u64,
    /// Of what caches can spare.
    spare: u64,
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Others waited.
    Short,
    /// Some shrinker could do nothing at that time.
    Busy,
    /// It was enough, there was no more, or no more came.
    Other,
}

/// Turns in a row that get nothing, because a shrinker is busy, before it is left to the next
/// kick. Each takes about as long as [`Deadline::BACKGROUND`] has it.
const BUSY_TURNS: u32 = 8;

/// First in, first out.
#[derive(Debug)]
pub(crate) struct Queue {
    ends: Lock<Ends>,
    len: AtomicU32,
}

#[derive(Debug)]
pub(crate) struct Ends {
    first: u32,
    last: u32,
}

impl Queue {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { ends: Lock::new(Ends { first: NONE, last: NONE }), len: AtomicU32::new(0) }
        }
    }

    /// Whether nothing waits. Relaxed: whoever adds wakes afterwards.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// Adds `group`; `false`: it is there already, and what is wanted was noted.
    fn push(&self, groups: &Groups, group: GroupRef, room: Room) -> bool {
        let mut ends = lock(&self.ends);
        let Some(record) = groups.find(group) else { return false };
        record.background.room.fetch_max(room.needed, Ordering::Relaxed);
        record.background.spare_room.fetch_max(room.spare, Ordering::Relaxed);
        if record.background.queued.swap(true, Ordering::Relaxed) {
            return false;
        }
        record.background.group.store(group.to_bits(), Ordering::Relaxed);
        record.background.next.store(NONE, Ordering::Relaxed);
        match groups.at(ends.last) {
            Some(last) => last.background.next.store(group.index(), Ordering::Relaxed),
            None => ends.first = group.index(),
        }
        ends.last = group.index();
        self.len.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The group that has waited longest, and what is wanted of it.
    fn pop(&self, groups: &Groups) -> Option<(GroupRef, Room)> {
        if self.is_empty() {
            return None;
        }
        let mut ends = lock(&self.ends);
        let Background { queued, room, spare_room, group, next, .. } =
            &groups.at(ends.first)?.background;
        ends.first = next.load(Ordering::Relaxed);
        if ends.first == NONE {
            ends.last = NONE;
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        let room = Room {
            needed: room.swap(0, Ordering::Relaxed),
            spare: spare_room.swap(0, Ordering::Relaxed),
        };
        let popped = (GroupRef::from_bits(group.load(Ordering::Relaxed)), room);
        queued.store(false, Ordering::Relaxed);
        Some(popped)
    }

    #[cfg(not(loom))]
    pub(crate) fn lock(&self) -> &Lock<Ends> {
        &self.ends
    }
}

impl Engine {
    /// Usage of `group` is over its `high`: starts background reclaim, unless it is under way or
    /// got nothing a moment ago. Counts an event if it does. A load and a look at the clock
    /// otherwise.
    pub fn kick_high(&self, group: GroupRef) {
        let Some(record) = self.groups.record(self.tree, group) else { return };
        // Relaxed: a kick that is missed is made by the next charge.
        if record.background.queued.load(Ordering::Relaxed) {
            return;
        }
        if !record.is_kick_too_soon(now_ms()) && self.enqueue(group, 0) {
            self.tree.count(group, EventKind::High);
        }
    }

    /// Usage of `group` came within the margin of its `max`: has the worker make room again, unless
    /// it is at it.
    pub(crate) fn keep_room(&self, group: GroupRef) {
        let Some(record) = self.groups.record(self.tree, group) else { return };
        // Relaxed: what is missed is told by the next charge.
        if record.background.queued.load(Ordering::Relaxed) {
            return;
        }
        if let Limit::Bytes(max) = self.tree.max(group) {
            self.enqueue_room(group, Room { needed: 0, spare: margin(max) });
        }
    }

    /// Has the worker make room for `bytes` below the `max` of `group`, or bring it down to its
    /// `high`, whichever is more; nobody waits. `false`: it was asked already.
    pub(crate) fn enqueue(&self, group: GroupRef, bytes: u64) -> bool {
        self.enqueue_room(group, Room { needed: bytes, spare: 0 })
    }

    fn enqueue_room(&self, group: GroupRef, room: Room) -> bool {
        if self.groups.record(self.tree, group).is_none() {
            return false;
        }
        let added = self.queue.push(&self.groups, group, room);
        if added {
            self.crew.wake();
        }
        added
    }

    /// Serves the group that has waited longest; `false`: none does. Runs shrinkers of every
    /// place, for nobody's allocation is under way here.
    pub(crate) fn serve_background(&self, me: &Reclaimer) -> bool {
        let Some((group, room)) = self.queue.pop(&self.groups) else { return false };
        // It may go meanwhile: then there is nothing to be got there.
        if self.tree.is_online(group) {
            self.serve_group(me, group, room);
        }
        true
    }

    fn serve_group(&self, me: &Reclaimer, group: GroupRef, wanted: Room) {
        let excess = |group| {
            let usage = self.tree.usage(group);
            match self.tree.high(group) {
                Limit::Bytes(high) => usage.saturating_sub(high),
                Limit::Max => 0,
            }
        };
        let missing = |room: u64| match self.tree.max(group) {
            Limit::Bytes(max) => self.tree.usage(group).saturating_add(room).saturating_sub(max),
            Limit::Max => room,
        };
        let needed = missing(wanted.needed).max(excess(group));
        let spare = missing(wanted.spare);
        if needed != 0 || spare != 0 {
            let spares = needed == 0;
            let goal = if spares { spare } else { needed };
            let turn = self.shrink_in_background(me, group, goal, spares);
            if turn.freed < goal && turn.end == End::Other {
                // There is too little for room ahead of need, until somebody waits again.
                self.tree.set_margin(group, 0);
            }
            let tries = match self.groups.find(group) {
                Some(record) => record.worked(now_ms(), turn.freed),
                None => 0,
            };
            let goes_on = match turn.end {
                End::Short => true,
                End::Busy => turn.freed != 0 || tries % BUSY_TURNS != 0,
                End::Other => turn.freed != 0,
            };
            // What was wanted of a group without a limit was bytes, which have come back in part.
            let limited = self.tree.max(group) != Limit::Max;
            let got = if limited { 0 } else { turn.freed };
            let left = Room { needed: wanted.needed.saturating_sub(got), ..wanted };
            // A gentle turn that got something is not repeated: it would leave less each time.
            let more = missing(left.needed).max(excess(group)) != 0
                || missing(left.spare) != 0 && (turn.freed == 0 || turn.end == End::Short);
            if goes_on && more && self.tree.is_online(group) {
                self.enqueue_room(group, left);
            }
        }
        // A charge names the lowest group that is over; the ones above are looked at here.
        if let Some(parent) = self.tree.online_parent(group)
            && excess(parent) != 0
        {
            self.kick_high(parent);
        }
    }

    /// One turn of reclaim that nobody waits for.
    fn shrink_in_background(
        &self,
        me: &Reclaimer,
        target: GroupRef,
        goal: u64,
        spares: bool,
    ) -> Turn {
        let floor = self.tree.usage(target).saturating_sub(goal);
        let drained = self.tidy(target);
        let Some(request) = self.caller().request.filter(|_| drained < goal) else {
            return Turn { freed: drained, end: End::Other };
        };
        self.tree.open_reclaim(request, target);
        let mut patience = Patience::new(Deadline::BACKGROUND, now_ms());
        let (mut fruitless, mut end) = (0, End::Other);
        while fruitless < FRUITLESS_ROUNDS && end != End::Short {
            let before = request.freed();
            let mut run = Run::new(me, target, Cause::Background, request, goal - drained);
            run.is_turn = true;
            run.spares = spares;
            run.floor = floor;
            let last = if spares { GENTLE_PRIORITY } else { 0 };
            self.host().begin_eager(Some(request));
            self.passes(&mut run, &mut patience, FIRST_PRIORITY, last);
            if run.answer.low && !spares && run.yielded_at.is_none() && request.freed() == before {
                run.breaks_low = true;
                self.passes(&mut run, &mut patience, FIRST_PRIORITY, 0);
                run.answer.low = false;
            }
            self.host().end_eager();
            let freed = request.freed();
            end = if run.answer.busy { End::Busy } else { End::Other };
            let is_done = freed >= goal - drained
                || self.tree.usage(target) <= floor
                || !run.answer.has_more();
            if is_done || spares || patience.is_over(now_ms(), freed) {
                if run.yielded_at.is_some() {
                    end = End::Short;
                }
                break;
            }
            fruitless = if freed > before { 0 } else { fruitless + 1 };
            if run.yielded_at.is_some() || self.reclaimers.has_posted() {
                end = End::Short;
            } else if fruitless != 0 && run.answer.busy {
                pause(fruitless);
            }
        }
        let freed = request.freed();
        self.tree.close_request(request);
        Turn { freed: drained + freed, end }
    }
}
