//! Walks over marked groups that several reclaimers share.
//!
//! Reclaimers that press on one subtree equally hard draw from one cursor, so that they split the
//! subtree and do not each repeat it. A walk begins where the last one below the same target
//! ended, and ends when it has come around:
//!
//! ```text
//!   target ─ a ─ b ─ c ─ d ─ e        resume: d
//!                        │
//!                        └ start: d, e, (around) target, a, b, c
//! ```
//!
//! # Invariants
//!
//! - A walk is used while it has walkers; the last to leave notes where it came to.
//! - `cursor` and `start` are slots of the target or of groups linked below it, or `NONE`: the
//!   end, after which the walk goes around. The walk is over when it has gone around and is at
//!   `start` again.
//! - Every group that is linked below the target all the while is drawn once.
//! - All of it is guarded by the lock of the marked groups.
//! - Who joined a walk, or leaves one that others are still on, is unsure of what it has not seen
//!   itself, and ends with a walk of its own: what was in a cache when it began is found.
//!
//! Source: `mem_cgroup_iter` and `struct mem_cgroup_reclaim_iter` in `mm/memcontrol.c`. There a
//! walk that was cut short begins at the group after it too; one cursor serves all priorities.

use memcg_accounting::table::{NONE, Record};
use memcg_accounting::{GroupRef, Tree};

use crate::groups::Groups;
use crate::marked::{Locked, Marked, step};
use crate::marks::Bits;
use crate::raw::Place;
use crate::reclaimer::Answer;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a walk is for: those who want the same share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purpose {
    pub(crate) target: GroupRef,
    pub(crate) place: Option<Place>,
    pub(crate) priority: u32,
    /// Groups under their `low` are asked too.
    pub(crate) breaks_low: bool,
}

impl Purpose {
    fn key(self) -> u32 {
        let place = match self.place {
            None => 0,
            Some(Place::Direct) => 1,
            Some(Place::Worker) => 2,
        };
        self.priority << 3 | place << 1 | u32::from(self.breaks_low)
    }

    /// The last pass looks at everything itself: nothing is overlooked because others are slow.
    const fn is_shared(self) -> bool {
        self.priority != 0
    }
}

/// What walkers have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Some shrinker had objects.
    pub(crate) asked: bool,
    /// Some were looked at.
    pub(crate) scanned: bool,
    /// The most that a shrinker had in one group.
    pub(crate) most: u64,
    pub(crate) answer: Answer,
}

impl Seen {
    fn or(self, other: Seen) -> Seen {
        Seen {
            asked: self.asked || other.asked,
            scanned: self.scanned || other.scanned,
            most: self.most.max(other.most),
            answer: self.answer.or(other.answer),
        }
    }
}

/// A walk's record.
#[derive(Debug)]
pub(crate) struct Walk {
    target: AtomicU64,
    key: AtomicU32,
    nr_walkers: AtomicU32,
    cursor: AtomicU32,
    start: AtomicU32,
    is_around: AtomicBool,
    is_over: AtomicBool,
    asked: AtomicBool,
    scanned: AtomicBool,
    most: AtomicU64,
    answer: AtomicU32,
    next_free: AtomicU32,
}

impl Record for Walk {
    fn new() -> Self {
        Self {
            target: AtomicU64::new(0),
            key: AtomicU32::new(0),
            nr_walkers: AtomicU32::new(0),
            cursor: AtomicU32::new(NONE),
            start: AtomicU32::new(NONE),
            is_around: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            scanned: AtomicBool::new(false),
            most: AtomicU64::new(0),
            answer: AtomicU32::new(0),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        !self.is_used()
    }
}

// Relaxed throughout: everything here is under the lock.
impl Walk {
    pub(crate) fn target(&self) -> GroupRef {
        GroupRef::from_bits(self.target.load(Ordering::Relaxed))
    }

    pub(crate) fn is_used(&self) -> bool {
        self.nr_walkers.load(Ordering::Relaxed) != 0
    }

    /// The group in `slot` goes: who is at it goes on.
    pub(crate) fn move_from(&self, slot: u32, next: impl Fn() -> u32) {
        for word in [&self.cursor, &self.start] {
            if word.load(Ordering::Relaxed) == slot {
                word.store(next(), Ordering::Relaxed);
            }
        }
    }

    fn begin(&self, purpose: Purpose, start: u32) {
        self.target.store(purpose.target.to_bits(), Ordering::Relaxed);
        self.key.store(purpose.key(), Ordering::Relaxed);
        self.nr_walkers.store(1, Ordering::Relaxed);
        self.cursor.store(start, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.is_around.store(false, Ordering::Relaxed);
        self.is_over.store(false, Ordering::Relaxed);
        self.note(Seen::default());
    }

    fn can_be_joined_for(&self, purpose: Purpose) -> bool {
        self.is_used()
            && !self.is_over.load(Ordering::Relaxed)
            && self.key.load(Ordering::Relaxed) == purpose.key()
            && self.target() == purpose.target
    }

    fn seen(&self) -> Seen {
        Seen {
            asked: self.asked.load(Ordering::Relaxed),
            scanned: self.scanned.load(Ordering::Relaxed),
            most: self.most.load(Ordering::Relaxed),
            answer: Answer::from_bits(self.answer.load(Ordering::Relaxed)),
        }
    }

    fn note(&self, seen: Seen) {
        self.asked.store(seen.asked, Ordering::Relaxed);
        self.scanned.store(seen.scanned, Ordering::Relaxed);
        self.most.store(seen.most, Ordering::Relaxed);
        self.answer.store(seen.answer.to_bits(), Ordering::Relaxed);
    }

    /// Takes the group at the cursor, whatever it has; `None`: the walk is over.
    fn step(&self, locked: &Locked<'_>) -> Option<u32> {
        let target = self.target();
        let mut at = self.cursor.load(Ordering::Relaxed);
        if at == NONE && !self.is_around.swap(true, Ordering::Relaxed) {
            at = target.index();
        } else if at == NONE {
            return None;
        }
        let is_around = self.is_around.load(Ordering::Relaxed);
        if is_around && at == self.start.load(Ordering::Relaxed) {
            self.cursor.store(at, Ordering::Relaxed);
            return None;
        }
        self.cursor.store(locked.after(target.index(), at), Ordering::Relaxed);
        Some(at)
    }
}

/// Somebody's part in a walk.
#[derive(Debug)]
pub(crate) struct Walker {
    index: u32,
    /// Nobody was on this walk before.
    pub(crate) is_first: bool,
}

impl Marked {
    /// Joins the walk for `purpose`, or begins one. `None`: no memory for its record.
    pub(crate) fn join(&self, groups: &Groups, tree: &Tree, purpose: Purpose) -> Option<Walker> {
        // The target's record keeps where its walks came to.
        groups.record(tree, purpose.target)?;
        let locked = Locked::new(self, groups);
        if purpose.is_shared() {
            for index in 0..self.walks.len() {
                if let Some(walk) = self.walks.get(index)
                    && walk.can_be_joined_for(purpose)
                {
                    walk.nr_walkers.fetch_add(1, Ordering::Relaxed);
                    return Some(Walker { index, is_first: false });
                }
            }
        }
        let resume = locked.resume(purpose.target)?.load(Ordering::Relaxed);
        let index = self.walks.take(tree.source())?;
        let start = if resume == NONE { purpose.target.index() } else { resume };
        self.walks.get(index)?.begin(purpose, start);
        Some(Walker { index, is_first: true })
    }

    /// The next group of the walk in which one of `bits` is marked; without a handle. `None`:
    /// the walk is over, and `seen` is what all its walkers saw.
    pub(crate) fn draw(
        &self,
        groups: &Groups,
        tree: &Tree,
        walker: &Walker,
        (bits, in_use): (Bits, Bits),
        seen: &mut Seen,
    ) -> Option<GroupRef> {
        let mut locked = Locked::new(self, groups);
        let walk = self.walks.get(walker.index)?;
        let target = walk.target();
        walk.note(walk.seen().or(*seen));
        // While the target is there, what is linked below its record is its own.
        while tree.exists(target)
            && let Some(slot) = walk.step(&locked)
        {
            locked.state.nr_looks += 1;
            let Some(group) = locked.group_at(target, slot) else { continue };
            if !groups.marks(group, bits).is_empty() {
                return Some(group);
            }
            if slot != target.index() {
                locked.prune(slot, in_use);
            }
        }
        walk.is_over.store(true, Ordering::Relaxed);
        *seen = walk.seen();
        if walk.nr_walkers.load(Ordering::Relaxed) > 1 && step!(self, Unsure) {
            // What the others are at is not known yet.
            seen.asked = true;
            seen.answer.unsure = true;
        }
        None
    }

    /// In the child of a fork, whose one thread is in no walk: ends them all.
    pub(crate) fn forget_walks(&self) {
        let _locked = self.lock();
        for index in 0..self.walks.len() {
            if let Some(walk) = self.walks.get(index).filter(|walk| walk.is_used()) {
                walk.nr_walkers.store(0, Ordering::Relaxed);
                self.walks.put(index);
            }
        }
    }

    /// Leaves a walk; the last one notes where the next begins.
    pub(crate) fn leave(&self, groups: &Groups, tree: &Tree, walker: &Walker, seen: Seen) {
        let locked = Locked::new(self, groups);
        let Some(walk) = self.walks.get(walker.index) else { return };
        walk.note(walk.seen().or(seen));
        if walk.nr_walkers.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        let target = walk.target();
        if tree.exists(target)
            && let Some(resume) = locked.resume(target)
        {
            resume.store(walk.cursor.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.walks.put(walker.index);
    }
}
