//! How long threads wait for memory: the stalls of each group and of all above it.
//!
//! A thread stalls from when its charge meets a limit until the charge is decided, and while it
//! is throttled. For a group, with everything below it:
//!
//! ```text
//!   some   at least one thread is stalled
//!   full   and every thread that is inside a scope of the subtree is
//! ```
//!
//! Who is inside a scope is not counted as scopes change, for that would cost every scope: it is
//! looked at when a stall begins, and every 10 ms while one waits for the worker. What a look
//! finds holds until the next one, or until a stall ends while others last: its thread is busy
//! from then on. A thread that sleeps inside a scope counts as busy, for nobody tells; one that
//! is at the root is in no scope.
//!
//! A group costs nothing of this before its first stall.
//!
//! # Invariants
//!
//! - `stalled` of a record counts the stalls of its subtree that have begun and not ended.
//! - A record is freed when its group is gone and `stalled` is 0: `is_gone` is set while the
//!   group is dying, and none is made from then on. Until then its parent's record
//!   is there: the parent outlives the group, and counts its stalls.
//! - States change under the lock `changing`; each record's own is only ever free then, and makes
//!   the access one that the compiler checks.
//!
//! Source: `psi_memstall_enter` and `psi_group_change` in `kernel/sched/psi.c`.

use memcg_accounting::table::{NONE, Record, Table};
use memcg_accounting::{GroupRef, Tag, now_us};

use crate::Engine;
use crate::average::{Meter, Stalled};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};

/// What a group's threads lost by waiting for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// Some thread waited.
    pub some: Stalled,
    /// All threads inside did.
    pub full: Stalled,
}

/// The stalls of one group and everything below it.
#[derive(Debug)]
pub(crate) struct Stalls {
    group: AtomicU64,
    parent: AtomicU32,
    state: Lock<State>,
    next_free: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// When the record was made: periods begin there.
    born_us: u64,
    /// How far time is counted, from then on.
    at_us: u64,
    stalled: u32,
    is_full: bool,
    is_gone: bool,
    some: Meter,
    full: Meter,
}

impl State {
    const fn new(now_us: u64) -> Self {
        Self {
            born_us: now_us,
            at_us: 0,
            stalled: 0,
            is_full: false,
            is_gone: false,
            some: Meter::new(),
            full: Meter::new(),
        }
    }

    fn advance(&mut self, now_us: u64) {
        // Two threads may read the clock in one order and come here in the other.
        let to = now_us.saturating_sub(self.born_us).max(self.at_us);
        self.some.run(self.at_us, to, self.stalled != 0);
        self.full.run(self.at_us, to, self.is_full);
        self.at_us = to;
    }
}

impl Record for Stalls {
    fn new() -> Self {
        Self {
            group: AtomicU64::new(0),
            parent: AtomicU32::new(NONE),
            state: Lock::new(State::new(0)),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        lock(&self.state).stalled == 0
    }
}

impl Stalls {
    fn group(&self) -> GroupRef {
        GroupRef::from_bits(self.group.load(Ordering::Relaxed))
    }

    fn parent(&self) -> u32 {
        self.parent.load(Ordering::Relaxed)
    }
}

/// The records of all groups that had a stall.
#[derive(Debug)]
pub(crate) struct StallTable {
    records: Table<Stalls>,
    changing: Lock<()>,
    /// Somebody watches pressure, so a stall is told.
    nr_watches: AtomicU32,
    /// There was a stall since the last look at this.
    is_news: AtomicBool,
}

impl StallTable {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                records: Table::new(),
                changing: Lock::new(()),
                nr_watches: AtomicU32::new(0),
                is_news: AtomicBool::new(false),
            }
        }
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.records.mapped_bytes()
    }

    #[cfg(not(loom))]
    pub(crate) fn changing(&self) -> &Lock<()> {
        &self.changing
    }

    /// Record `index` and those of the groups above.
    fn chain(&self, index: u32) -> impl Iterator<Item = (u32, &Stalls)> {
        let at = |index| self.records.get(index).map(|record| (index, record));
        core::iter::successors(at(index), move |(_, record)| at(record.parent()))
    }

    /// Changes each state from `index` up, whose time is counted up to now first. `change` is
    /// told whether the record is below `cutoff`. `false`: the first is not `expected`'s any more.
    fn change(
        &self,
        index: u32,
        cutoff: u32,
        expected: Option<GroupRef>,
        change: impl Fn(&mut State, bool),
    ) -> bool {
        let _changing = lock(&self.changing);
        if let Some(group) = expected {
            let first = self.records.get(index);
            if !first.is_some_and(|r| r.group() == group && !lock(&r.state).is_gone) {
                return false;
            }
        }
        let now = now_us();
        let mut is_below = true;
        let mut next = index;
        while let Some(record) = self.records.get(next) {
            is_below &= next != cutoff;
            let mut state = lock(&record.state);
            state.advance(now);
            change(&mut state, is_below);
            let parent = record.parent();
            let is_over = state.is_gone && state.stalled == 0;
            drop(state);
            if is_over {
                self.records.put(next);
            }
            next = parent;
        }
        true
    }
}

/// A thread that waits for memory, until this is dropped.
#[derive(Debug)]
#[must_use = "the stall ends when it is dropped"]
pub struct Stall<'e> {
    engine: &'e Engine,
    index: u32,
    began_us: u64,
}

impl Stall<'_> {
    /// Microseconds since it began.
    #[must_use]
    pub fn length_us(&self) -> u64 {
        now_us().saturating_sub(self.began_us)
    }

    /// Looks who is busy, so that a long wait tells `full` from `some`.
    pub(crate) fn look(&self) {
        let stalls = &self.engine.stalls;
        let cutoff = self.engine.lowest_busy(self.index);
        stalls.change(self.index, cutoff, None, |state, is_below| {
            state.is_full = is_below && state.stalled != 0;
        });
        self.engine.tell_stall();
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.engine.host().set_stalled(false);
        self.engine.stalls.change(self.index, NONE, None, |state, _| {
            state.stalled = state.stalled.saturating_sub(1);
            // This thread is busy from here on, in all of them.
            state.is_full = false;
        });
        self.engine.tell_stall();
    }
}

impl Engine {
    /// The calling thread waits for memory of `group`, until what this answers is dropped: its
    /// group and all above count it. `None`: the group is gone, or there is no memory to note it.
    ///
    /// Two short locks and a look at each thread's current tag; allocates nothing. Stalls do not
    /// nest.
    pub fn stall(&self, group: GroupRef) -> Option<Stall<'_>> {
        let index = self.stalls_of(group)?;
        self.host().set_stalled(true);
        let cutoff = self.lowest_busy(index);
        let began = self.stalls.change(index, cutoff, Some(group), |state, is_below| {
            state.stalled += 1;
            state.is_full = is_below;
        });
        if !began {
            self.host().set_stalled(false);
            return None;
        }
        self.tell_stall();
        Some(Stall { engine: self, index, began_us: now_us() })
    }

    /// Time that threads of `group` and below waited for memory, up to now.
    pub fn pressure(&self, group: GroupRef) -> Pressure {
        let Some(index) = self.find_stalls(group) else { return Pressure::default() };
        let _changing = lock(&self.stalls.changing);
        let Some(record) = self.stalls.records.get(index).filter(|r| r.group() == group) else {
            return Pressure::default();
        };
        let mut state = lock(&record.state);
        state.advance(now_us());
        Pressure { some: state.some.read(), full: state.full.read() }
    }

    /// One more, or one fewer, wants to hear of stalls, by way of ticks.
    pub fn watch_stalls(&self, on: bool) {
        if on {
            self.stalls.nr_watches.fetch_add(1, Ordering::Relaxed);
            self.stalls.is_news.store(true, Ordering::Relaxed);
            self.want_ticks();
        } else {
            self.stalls.nr_watches.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether there was a stall since the last call, and somebody wants to hear of it.
    pub fn take_stall_news(&self) -> bool {
        // Relaxed: a stall that is missed here is seen at the next tick.
        self.stalls.is_news.swap(false, Ordering::Relaxed)
            && self.stalls.nr_watches.load(Ordering::Relaxed) != 0
    }

    fn tell_stall(&self) {
        if self.stalls.nr_watches.load(Ordering::Relaxed) != 0 {
            self.stalls.is_news.store(true, Ordering::Relaxed);
            self.want_ticks();
        }
    }

    /// The record from `index` up whose group is the lowest to have a busy thread in a scope;
    /// [`NONE`]: there is no such thread.
    fn lowest_busy(&self, index: u32) -> u32 {
        let mut cutoff = NONE;
        let root = self.tree.payer(GroupRef::ROOT).tag;
        let mut last = Tag::NOBODY;
        self.host().each_busy(&mut |tag| {
            if tag.is_nobody() || tag == root || tag == last {
                return;
            }
            last = tag;
            for (level, record) in self.stalls.chain(index).take_while(|(at, _)| *at != cutoff) {
                if self.tree.contains(record.group(), tag) {
                    cutoff = level;
                    return;
                }
            }
        });
        cutoff
    }

    // ---- records ------------------------------------------------------------------------

    fn find_stalls(&self, group: GroupRef) -> Option<u32> {
        let index = self.groups.find(group)?.stalls();
        let record = self.stalls.records.get(index)?;
        (record.group() == group).then_some(index)
    }

    /// The record of `group`, made if need be, with those of all groups above it.
    fn stalls_of(&self, group: GroupRef) -> Option<u32> {
        loop {
            if let Some(index) = self.find_stalls(group) {
                return Some(index);
            }
            // The highest that has none: its parent's record is there, or it is the root.
            let mut lacking = group;
            let mut above = NONE;
            while let Some(parent) = self.tree.parent_ref(lacking) {
                if let Some(index) = self.find_stalls(parent) {
                    above = index;
                    break;
                }
                lacking = parent;
            }
            self.make_stalls(lacking, above)?;
        }
    }

    fn make_stalls(&self, group: GroupRef, parent: u32) -> Option<()> {
        let word = self.groups.record(self.tree, group)?;
        let _changing = lock(&self.stalls.changing);
        // Under the lock: a group that dies after this finds the record (`retire_stalls`).
        if !self.tree.is_online(group) {
            return None;
        }
        if self.find_stalls(group).is_some() {
            return Some(());
        }
        let index = self.stalls.records.take(self.tree.source())?;
        let record = self.stalls.records.get(index)?;
        record.group.store(group.to_bits(), Ordering::Relaxed);
        record.parent.store(parent, Ordering::Relaxed);
        *lock(&record.state) = State::new(now_us());
        word.set_stalls(index);
        Some(())
    }

    /// `group`, which is dying, ends: stalls that began in it go on counting for those above.
    pub(crate) fn retire_stalls(&self, group: GroupRef) {
        let Some(index) = self.find_stalls(group) else { return };
        let _changing = lock(&self.stalls.changing);
        if let Some(word) = self.groups.find(group) {
            word.set_stalls(NONE);
        }
        let Some(record) = self.stalls.records.get(index) else { return };
        let mut state = lock(&record.state);
        state.is_gone = true;
        let is_over = state.stalled == 0;
        drop(state);
        if is_over {
            self.stalls.records.put(index);
        }
    }

    /// In the child of a fork, whose one thread is not stalled.
    pub(crate) fn forget_stalls(&self) {
        let _changing = lock(&self.stalls.changing);
        let now = now_us();
        for index in 0..self.stalls.records.len() {
            let Some(record) = self.stalls.records.get(index) else { continue };
            let mut state = lock(&record.state);
            state.advance(now);
            let is_over = state.is_gone && state.stalled != 0;
            (state.stalled, state.is_full) = (0, false);
            drop(state);
            if is_over {
                self.stalls.records.put(index);
            }
        }
        self.stalls.nr_watches.store(0, Ordering::Relaxed);
        self.stalls.is_news.store(false, Ordering::Relaxed);
    }
}
