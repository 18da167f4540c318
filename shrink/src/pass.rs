//! Passes over a subtree: each asks every marked shrinker of every group for its share.
//!
//! Between the walk and a group's shrinkers stands protection (`visit`): what `min` and `low` keep
//! of the group makes the share that is asked of it smaller, in proportion, and a group that is
//! kept whole is not asked.
//!
//! # Invariants
//!
//! - A visited group's record is [held](memcg_accounting::Tree::hold) for the length of the visit: what a
//!   call has a reference to stays that group, and the group may go all the same. No lock is held while a
//!   shrinker runs.
//! - A group under its effective `min` is not asked; one under its `low` in a run that breaks it
//!   only, which counts the event `low` there. A scan ends where protection begins, to a batch.
//! - What a shrinker says is believed only where it makes less work: progress is what was
//!   uncharged for the request.
//!
//! Source: `shrink_node_memcgs` in `mm/vmscan.c`, `shrink_slab_memcg` in `mm/shrinker.c`.

use memcg_accounting::{EventKind, GroupRef, Protection, Request, now_ms};

use crate::Engine;
use crate::groups::GroupRecord;
use crate::host::Report;
use crate::marks::{Bit, Bits, Marks, WORDS};
use crate::patience::Patience;
use crate::raw::{Cause, Control, Place, RawCount, RawScan, RawShrinker};
use crate::reclaimer::{Answer, Reclaimer};
use crate::registry::ShrinkerId;
use crate::scan::{GENTLE_PRIORITY, Plan, Share, skip_to};
use crate::sharers::{of_kind, ranks_up_to};
use crate::slot::{Begun, Slot};
use crate::sync::{AtomicU32, Ordering, futex_wait, yield_now};
use crate::walks::{Purpose, Seen, Walker};

/// Rounds that get nothing back, after which reclaim gives up: `MAX_RECLAIM_RETRIES`.
pub(crate) const FRUITLESS_ROUNDS: u32 = 16;
/// Fruitless rounds that only yield in between; later ones sleep, each a little longer up to
/// [`LONGEST_PAUSE_MS`]: together about as long as an allocation waits without a byte, for the
/// holder of a lock may have lost its CPU.
const YIELDS: u32 = 4;
const LONGEST_PAUSE_MS: u32 = 5;
#[expect(clippy::cast_possible_truncation, reason = "it is 256")]
const BITS: u32 = 64 * WORDS as u32;
/// Of a group with more shrinkers a pass asks so many, and each for more.
const SOME: u32 = 64;
/// A turn of the worker ends after this long if others wait.
const TURN_MS: u32 = 8;

/// Lets whoever holds a lock that a shrinker wants go on.
pub(crate) fn pause(round: u32) {
    if round <= YIELDS {
        yield_now();
    } else {
        futex_wait(&AtomicU32::new(0), 0, Some((round - YIELDS).min(LONGEST_PAUSE_MS)));
    }
}

/// What passes are made for, and what came of them.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    me: &'a Reclaimer,
    target: GroupRef,
    cause: Cause,
    request: &'a Request,
    /// It is enough when the request has had so much freed.
    goal: u64,
    /// It is enough, too, when the target's usage has come down to this: another worker may be at
    /// the same.
    pub(crate) floor: u64,
    /// Only shrinkers that run here are asked; `None`: all.
    pub(crate) place: Option<Place>,
    /// Whoever asked for it; the run ends when it leaves.
    pub(crate) ticket: Option<&'a Reclaimer>,
    /// Groups under their `low` are asked too.
    pub(crate) breaks_low: bool,
    /// It ends when others have waited for a turn's length.
    pub(crate) is_turn: bool,
    /// Gentle passes leave the last quarter of each cache alone: where a drain may give instead,
    /// or where nobody is in need.
    pub(crate) spares: bool,
    /// What came of it.
    pub(crate) answer: Answer,
    /// The priority that it came to, if it ended for others.
    pub(crate) yielded_at: Option<u32>,
    began: u32,
    /// What this pass has seen.
    seen: Seen,
}

/// A group that is visited.
#[derive(Clone, Copy, Debug)]
struct Visit {
    group: GroupRef,
    priority: u32,
    protection: Protection,
    /// The priority that shares are of: a lower one, where only some shrinkers are asked.
    share_at: u32,
    /// How many shrinkers are asked yet.
    left: u32,
    /// Where the next visit begins among those that share a bit.
    rank_turn: Option<u32>,
}

/// What a shrinker said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Empty,
    Something,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        me: &'a Reclaimer,
        target: GroupRef,
        cause: Cause,
        request: &'a Request,
        goal: u64,
    ) -> Self {
        Self {
            me,
            target,
            cause,
            request,
            goal,
            floor: 0,
            place: None,
            ticket: None,
            breaks_low: false,
            is_turn: false,
            spares: cause != Cause::Background,
            answer: Answer::default(),
            yielded_at: None,
            began: now_ms(),
            seen: Seen::default(),
        }
    }

    pub(crate) fn is_enough(&self) -> bool {
        self.request.freed() >= self.goal
    }

    /// How many objects are likely enough, by what the request got of those looked at. Live data
    /// that is evicted beyond the goal is lost for nothing.
    fn likely_enough(&self) -> u64 {
        self.likely_for(self.goal.saturating_sub(self.request.freed()))
    }

    /// How many objects likely have `bytes`.
    fn likely_for(&self, bytes: u64) -> u64 {
        let freed = self.request.freed();
        if freed == 0 {
            return u64::MAX;
        }
        bytes.saturating_mul(self.request.scanned()).div_ceil(freed).max(1)
    }
}

/// A call that has begun; it ends when this is dropped.
struct Call<'a> {
    engine: &'a Engine,
    me: &'a Reclaimer,
    index: u32,
    raw: RawShrinker,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.me.leave();
        self.engine.end_call(self.index);
    }
}

impl Engine {
    /// Passes from priority `first` down to `last`, until it is enough, nobody is marked, or the
    /// time is over. The caller is [eager](crate::Host::begin_eager) for the run's request.
    pub(crate) fn passes(&self, run: &mut Run<'_>, patience: &mut Patience, first: u32, last: u32) {
        let mut priority = first;
        loop {
            run.seen = Seen::default();
            self.pass(run, patience, priority);
            let seen = run.seen;
            // A pass that is sure makes sure of those before it.
            run.answer = Answer { unsure: false, ..run.answer }.or(seen.answer);
            if self.is_over(run, patience, priority) || !seen.asked || priority <= last {
                return;
            }
            priority =
                if seen.scanned { priority - 1 } else { skip_to(priority, seen.most).max(last) };
        }
    }

    /// Whether the run ends now, for whatever reason.
    fn is_over(&self, run: &mut Run<'_>, patience: &mut Patience, priority: u32) -> bool {
        if run.is_enough() || run.yielded_at.is_some() {
            return true;
        }
        if run.floor != 0 && self.tree.usage(run.target) <= run.floor {
            return true;
        }
        if run.ticket.is_some_and(Reclaimer::is_abandoned) {
            return true;
        }
        let now = now_ms();
        if run.is_turn && now.wrapping_sub(run.began) >= TURN_MS && self.reclaimers.has_posted() {
            run.yielded_at = Some(priority);
            return true;
        }
        patience.is_over(now, run.request.freed())
    }

    fn pass(&self, run: &mut Run<'_>, patience: &mut Patience, priority: u32) {
        let purpose =
            Purpose { target: run.target, place: run.place, priority, breaks_low: run.breaks_low };
        let joined = if self.groups.is_unrecorded() {
            None
        } else {
            self.marked.join(&self.groups, self.tree, purpose)
        };
        let is_first = joined.as_ref().is_none_or(|walker| walker.is_first);
        // What this walk came by before is what others saw, maybe before this one began to look.
        run.seen.asked = !is_first;
        run.seen.answer.unsure = !is_first;
        if !run.target.is_root() || !is_first || !self.ask_unaware(run, patience, priority) {
            match &joined {
                Some(walker) => self.walk(run, patience, priority, walker),
                None => self.walk_all(run, patience, priority),
            }
        }
        if let Some(walker) = joined {
            self.marked.leave(&self.groups, self.tree, &walker, run.seen);
        }
    }

    /// Asks those who are asked only when the root reclaims; answers whether the run is over.
    fn ask_unaware(&self, run: &mut Run<'_>, patience: &mut Patience, priority: u32) -> bool {
        for (index, slot) in self.registry.unaware() {
            if run.place.is_none_or(|place| place == slot.place()) {
                let protection = Protection::default();
                let group = GroupRef::ROOT;
                let visit = Visit {
                    group,
                    priority,
                    protection,
                    share_at: priority,
                    left: u32::MAX,
                    rank_turn: None,
                };
                self.shrink(run, patience, (index, slot), visit);
            }
            if self.is_over(run, patience, priority) {
                return true;
            }
        }
        false
    }

    /// Visits the groups that this walker draws.
    fn walk(&self, run: &mut Run<'_>, patience: &mut Patience, priority: u32, walker: &Walker) {
        let bits = (self.registry.at(run.place), self.registry.in_use());
        while let Some(group) =
            self.marked.draw(&self.groups, self.tree, walker, bits, &mut run.seen)
        {
            if !self.tree.hold(group) {
                // It is going: what it has is its parent's before long, and found there.
                run.seen.answer.busy = true;
                continue;
            }
            self.visit_held(run, patience, group, priority);
            if self.is_over(run, patience, priority) {
                return;
            }
        }
    }

    /// Visits every group, where there is no record of what is marked.
    fn walk_all(&self, run: &mut Run<'_>, patience: &mut Patience, priority: u32) {
        for slot in 0..self.tree.nr_slots() {
            let Some(group) = self.tree.online_in(slot) else { continue };
            if !self.tree.is_in_subtree(run.target, group) {
                continue;
            }
            if !self.tree.hold(group) {
                run.seen.answer.busy = true;
                continue;
            }
            self.visit_held(run, patience, group, priority);
            if self.is_over(run, patience, priority) {
                return;
            }
        }
    }

    /// A visit of a group that is held, and the end of the hold.
    fn visit_held(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        group: GroupRef,
        priority: u32,
    ) {
        run.me.set_visited(group);
        self.visit_counted(run, patience, group, priority);
        run.me.set_visited(GroupRef::ROOT);
        if !self.tree.exists(group) {
            self.hand_up(group);
        }
        self.tree.let_go(group);
    }

    fn visit_counted(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        group: GroupRef,
        priority: u32,
    ) {
        let before = run.request.freed();
        self.visit(run, patience, group, priority);
        if let Some(record) = self.groups.find(group) {
            record.count_reclaimed(run.request.freed().saturating_sub(before));
        }
    }

    /// Asks the marked shrinkers of one group.
    fn visit(&self, run: &mut Run<'_>, patience: &mut Patience, group: GroupRef, priority: u32) {
        let protection = self.tree.protection(run.target, group);
        if protection.is_below_min() {
            return;
        }
        if protection.is_below_low() && !run.breaks_low {
            run.seen.answer.low = true;
            return;
        }
        run.seen.answer.low |= !run.breaks_low && protection.low > protection.min;
        let mut visit = Visit {
            group,
            priority,
            protection,
            share_at: priority,
            left: u32::MAX,
            rank_turn: None,
        };
        let marked = self.groups.marks(group, self.registry.at(run.place));
        let record = self.groups.find(group);
        self.ask_some_for_more(run, &mut visit, record, marked);
        let turn = record.map_or(0, |record| record.turn.load(Ordering::Relaxed));
        for bit in marked.iter_from(Bit(turn)) {
            let mut empty = true;
            if let Some(first) = self.registry.first_with(bit) {
                empty = self.ask(run, patience, first, &mut visit);
            }
            let mut is_over = visit.left == 0 || self.is_over(run, patience, priority);
            if self.registry.highest_rank() != 0 {
                if is_over {
                    visit.rank_turn = Some(0);
                } else {
                    let all_empty = self.ask_sharers(run, patience, bit, &mut visit);
                    is_over = visit.rank_turn.is_some();
                    empty &= all_empty;
                }
            }
            if is_over {
                if let Some(record) = record {
                    // The next visit begins behind this one: with many that share the bit, at them again.
                    let next = bit.0 + u32::from(visit.rank_turn.is_none());
                    record.turn.store(next % BITS, Ordering::Relaxed);
                    record.rank_turn.store(visit.rank_turn.unwrap_or(0), Ordering::Relaxed);
                }
                return;
            }
            if empty {
                self.unmark(run, group, bit);
            }
        }
    }

    /// Where a group has many shrinkers, a pass asks some of them, as much more of each as there are more: the next pass goes
    /// on behind them. The last one asks all.
    fn ask_some_for_more(
        &self,
        run: &mut Run<'_>,
        visit: &mut Visit,
        record: Option<&GroupRecord>,
        marked: Bits,
    ) {
        let mut nr = marked.len();
        let highest = self.registry.highest_rank();
        if let Some(record) = record
            && highest != 0
        {
            let ranks = ranks_up_to(highest);
            let leaf = |bit| self.groups.leaf(record, bit).map(|leaf| leaf.marks.read(ranks));
            let sharing =
                |bit: Bit| of_kind(leaf(bit).unwrap_or_else(|| Marks::fresh(ranks)), bit).len();
            nr += marked.iter().map(sharing).sum::<u32>();
        }
        if nr > SOME && visit.priority != 0 {
            let times = (nr / SOME).ilog2();
            visit.left = SOME;
            visit.share_at = visit.priority.saturating_sub(times);
            // Others may have what these have not: no priority is passed over, nor is this the last.
            run.seen.scanned = true;
            run.seen.asked = true;
            run.seen.answer.unsure = true;
        }
    }

    /// Asks one shrinker; answers whether it said `Empty`.
    fn ask(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        (index, slot): (u32, &Slot),
        visit: &mut Visit,
    ) -> bool {
        if run.place.is_some_and(|place| place != slot.place()) {
            return false;
        }
        visit.left = visit.left.saturating_sub(1);
        self.shrink(run, patience, (index, slot), *visit) == Said::Empty
    }

    /// Asks those that share `bit` and are marked; answers whether none of them is any more.
    fn ask_sharers(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        bit: Bit,
        visit: &mut Visit,
    ) -> bool {
        let Some(record) = self.groups.record(self.tree, visit.group) else { return false };
        let marked = self.sharers_of(record, bit);
        let turn = record.rank_turn.swap(0, Ordering::Relaxed);
        for mark in marked.iter_from(Bit(turn)) {
            let mut empty = true;
            for sharer in self.registry.sharing(bit, mark) {
                empty &= self.ask(run, patience, sharer, visit);
            }
            if visit.left == 0 || self.is_over(run, patience, visit.priority) {
                visit.rank_turn = Some((mark.0 + 1) % BITS);
                return false;
            }
            if empty {
                self.unmark_sharers(run, record, visit.group, (bit, mark));
            }
        }
        self.sharers_of(record, bit).is_empty()
    }

    /// Who is marked of those that share `bit`.
    fn sharers_of(&self, record: &GroupRecord, bit: Bit) -> Bits {
        let ranks = ranks_up_to(self.registry.highest_rank());
        let leaf = self.groups.leaf(record, bit);
        of_kind(leaf.map_or_else(|| Marks::fresh(ranks), |leaf| leaf.marks.read(ranks)), bit)
    }

    /// After all that `mark` stands for said `Empty`: unmarks them, and asks them again.
    fn unmark_sharers(
        &self,
        run: &mut Run<'_>,
        record: &GroupRecord,
        group: GroupRef,
        (bit, mark): (Bit, Bit),
    ) {
        let Some(leaf) = self.groups.make_leaf(self.tree, record, bit) else { return };
        let mut sharing = self.registry.sharing(bit, mark);
        let still_empty = || sharing.all(|sharer| self.is_empty(run, sharer, group));
        self.unmarkings.during(|| leaf.marks.settle(mark, still_empty));
    }

    /// Whether a shrinker that said `Empty` for `group` says so still.
    fn is_empty(&self, run: &mut Run<'_>, (index, slot): (u32, &Slot), group: GroupRef) -> bool {
        if run.place.is_some_and(|place| place != slot.place()) {
            return false;
        }
        match self.begin(run, index, slot) {
            Err(said) => said == Said::Empty,
            Ok(call) => matches!(
                self.count(run, &call, slot, group, 0),
                RawCount::Empty | RawCount::Panicked
            ),
        }
    }

    /// After all that have `bit` said `Empty` for `group`: unmarks it, and asks them again.
    fn unmark(&self, run: &mut Run<'_>, group: GroupRef, bit: Bit) {
        let Some(record) = self.groups.record(self.tree, group) else { return };
        let still_empty = || {
            self.registry.first_with(bit).is_none_or(|first| self.is_empty(run, first, group))
                && (self.registry.highest_rank() == 0 || self.sharers_of(record, bit).is_empty())
        };
        self.unmarkings.during(|| {
            let is_unmarked = record.marks.settle(bit, still_empty);
            if !is_unmarked {
                self.groups.linked(self.tree, &self.marked, group);
            }
            is_unmarked
        });
    }

    /// Begins a call; what it comes to where none begins.
    fn begin<'c, 'a: 'c>(
        &'c self,
        run: &mut Run<'a>,
        index: u32,
        slot: &Slot,
    ) -> Result<Call<'c>, Said> {
        if !self.may_call(run.me, index, slot) {
            run.seen.answer.busy = true;
            return Err(Said::Something);
        }
        match slot.begin() {
            Begun::Gone => return Err(Said::Empty),
            Begun::Busy => {
                run.seen.answer.busy = true;
                return Err(Said::Something);
            }
            Begun::Yes => {}
        }
        run.me.enter(index);
        let Some(raw) = slot.raw() else {
            debug_assert!(false, "a slot that is called has a shrinker");
            run.me.leave();
            self.end_call(index);
            return Err(Said::Empty);
        };
        Ok(Call { engine: self, me: run.me, index, raw })
    }

    fn count(
        &self,
        run: &Run<'_>,
        call: &Call<'_>,
        slot: &Slot,
        group: GroupRef,
        priority: u32,
    ) -> RawCount {
        let control = Control { group, nr_to_scan: 0, nr_scanned: 0, priority, cause: run.cause };
        // SAFETY: the call has begun and not ended, so the shrinker's functions may be called
        // with its data, by the contract of `register`.
        let said = unsafe { (call.raw.count)(call.raw.data, &control) };
        if said == RawCount::Panicked {
            self.panicked(&call.raw, slot);
        }
        said
    }

    /// A shrinker that panicked is never called again.
    fn panicked(&self, raw: &RawShrinker, slot: &Slot) {
        slot.retire();
        self.counters.panicked.fetch_add(1, Ordering::Relaxed);
        self.report_later(Report::Panicked(raw.name));
    }

    /// Asks one shrinker for its share of one group's objects.
    fn shrink(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        (index, slot): (u32, &Slot),
        visit: Visit,
    ) -> Said {
        let call = match self.begin(run, index, slot) {
            Ok(call) => call,
            Err(said) => return said,
        };
        let objects = match self.count(run, &call, slot, visit.group, visit.priority) {
            RawCount::Empty | RawCount::Panicked => return Said::Empty,
            RawCount::Objects(0) => return Said::Something,
            RawCount::Unknown => {
                run.seen.answer.busy = true;
                return Said::Something;
            }
            RawCount::Objects(objects) => objects,
        };
        let id = ShrinkerId { slot: index, generation: slot.generation() };
        let owed = self.groups.find(visit.group).map(|record| &record.owed);
        let share = Share {
            freeable: visit.protection.share_of(objects as u64, run.breaks_low),
            seeks: call.raw.seeks,
            batch: call.raw.batch,
            owed: owed.map_or(0, |chain| self.deferred_work.take(chain, id)),
        };
        run.seen.asked = true;
        run.seen.answer.candidates = true;
        run.seen.most = run.seen.most.max(share.freeable);
        let gentle = visit.priority >= GENTLE_PRIORITY && run.spares;
        let plan = Plan::new(share, visit.share_at, gentle);
        let (scanned, is_cut) = self.scan(run, patience, (&call, slot), visit, plan);
        if let Some(record) = self.groups.find(visit.group) {
            record.count_scanned(scanned);
            let left = plan.owed_after(scanned, is_cut);
            self.deferred_work.add(self.tree.source(), &record.owed, id, left);
        }
        Said::Something
    }

    /// Has a shrinker look at what is planned; answers the objects, and whether some are owed.
    fn scan(
        &self,
        run: &mut Run<'_>,
        patience: &mut Patience,
        (call, slot): (&Call<'_>, &Slot),
        visit: Visit,
        plan: Plan,
    ) -> (u64, bool) {
        let Visit { group, priority, protection, .. } = visit;
        if plan.total != 0 && protection.is_below_low() {
            self.tree.count(group, EventKind::Low);
        }
        let kept = protection.kept(run.breaks_low);
        let mut left = plan.total;
        let mut scanned_here = 0;
        while left > 0 {
            let mut now = left.min(plan.batch).min(run.likely_enough());
            if run.floor != 0 {
                let above = self.tree.usage(run.target).saturating_sub(run.floor);
                now = now.min(run.likely_for(above));
            }
            if kept != 0 {
                let above = self.tree.usage(group).saturating_sub(kept);
                if above == 0 {
                    break;
                }
                now = now.min(run.likely_for(above));
            }
            let nr_to_scan = usize::try_from(now).unwrap_or(usize::MAX);
            let mut control =
                Control { group, nr_to_scan, nr_scanned: nr_to_scan, priority, cause: run.cause };
            // SAFETY: as in `count`.
            let said = unsafe { (call.raw.scan)(call.raw.data, &mut control) };
            run.seen.scanned = true;
            slot.note_scanned();
            match said {
                RawScan::Freed(_) => {}
                RawScan::Stop => {
                    run.seen.answer.busy = true;
                    return (scanned_here, true);
                }
                RawScan::Panicked => {
                    self.panicked(&call.raw, slot);
                    break;
                }
            }
            let scanned = control.nr_scanned as u64;
            scanned_here += scanned.min(left);
            run.request.add_scanned(scanned);
            left = left.saturating_sub(scanned);
            if scanned == 0 {
                break;
            }
            if self.is_over(run, patience, priority) {
                return (scanned_here, !run.is_enough());
            }
        }
        (scanned_here, false)
    }
}
