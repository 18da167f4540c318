//! What a group knows of the groups below it: only one that has had a child has such a record, so that a tenant
//! among a million takes no room for it.
//!
//! # Invariants
//!
//! - A group has one from before its first child is there until it is gone itself.
//! - The link and `nr_children` change under the topology lock, `nr_descendants` as one step each, claims and inherited contexts under the stripe lock of
//!   the tree. Events are counted by several trees at once where the group is the untracked root.

use crate::event::EventCounters;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::{NONE, Record};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Below {
    /// Events of the groups below, which are among those of the subtree.
    pub(crate) events: EventCounters,
    /// What the children claim of this group's `min` and `low`: see `protection.rs`.
    pub(crate) children_min: AtomicU64,
    pub(crate) children_low: AtomicU64,
    pub(crate) first_child: AtomicU32,
    pub(crate) nr_children: AtomicU32,
    pub(crate) nr_descendants: AtomicU32,
    /// Contexts of gone groups that the group has inherited.
    pub(crate) inherited_contexts: AtomicU32,
    /// Which record of the table this is.
    index: AtomicU32,
    next_free: AtomicU32,
}

impl Record for Below {
    fn new() -> Self {
        Self {
            events: EventCounters::new(),
            children_min: AtomicU64::new(0),
            children_low: AtomicU64::new(0),
            first_child: AtomicU32::new(NONE),
            nr_children: AtomicU32::new(0),
            nr_descendants: AtomicU32::new(0),
            inherited_contexts: AtomicU32::new(0),
            index: AtomicU32::new(NONE),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        let [first, number] =
            [&self.first_child, &self.nr_children].map(|word| word.load(Ordering::Relaxed));
        first == NONE && number == 0
    }
}

// Relaxed throughout, as in `Group`: the locks order these words.
impl Below {
    /// Makes the record `index`, just taken, what a group without children knows.
    pub(crate) fn begin(&self, index: u32) {
        self.events.reset();
        for sum in [&self.children_min, &self.children_low] {
            sum.store(0, Ordering::Relaxed);
        }
        self.first_child.store(NONE, Ordering::Relaxed);
        for number in [&self.nr_children, &self.nr_descendants, &self.inherited_contexts] {
            number.store(0, Ordering::Relaxed);
        }
        self.index.store(index, Ordering::Relaxed);
    }

    /// One group more is to be below, if there are less than `max`. Release, as in `leave`: whoever checks
    /// the number sees the walk that it belongs to (`walks.rs`).
    pub(crate) fn join(&self, max: u32) -> bool {
        let nr = &self.nr_descendants;
        nr.fetch_update(Ordering::Release, Ordering::Relaxed, |nr| (nr < max).then_some(nr + 1))
            .is_ok()
    }

    /// One group less is below.
    pub(crate) fn leave(&self) {
        self.nr_descendants.fetch_sub(1, Ordering::Release);
    }

    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }
}
