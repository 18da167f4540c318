//! Work that scans owe: what a shrinker was to look at in a group, and did not get to.
//!
//! A scan that a shrinker stopped, or that ran out of time, leaves its rest here for the next
//! reclaimer of the group, so that a cache whose lock is often taken does not shrink less than
//! others. Almost always nothing is owed, so there is a record only where something is.
//!
//! # Invariants
//!
//! - A group's chain has at most one record for a slot of the registry, and none of 0 objects.
//! - The chains are guarded by one lock. Whoever takes what is owed takes all of it, so that two
//!   reclaimers do not both do it.
//!
//! Source: `nr_deferred`, `add_nr_deferred` and `reparent_shrinker_deferred` in `mm/shrinker.c`.

use memcg_accounting::Source;
use memcg_accounting::table::{NONE, Record, Table};

use crate::registry::ShrinkerId;
use crate::scan::MOST_OBJECTS;
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock};

/// What one shrinker owes in one group.
#[derive(Debug)]
pub(crate) struct Owed {
    shrinker: AtomicU64,
    objects: AtomicU64,
    next: AtomicU32,
    next_free: AtomicU32,
}

impl Record for Owed {
    fn new() -> Self {
        Self {
            shrinker: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            next: AtomicU32::new(NONE),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        self.objects.load(Ordering::Relaxed) == 0
    }
}

/// All that is owed. A group's chain begins in its record.
#[derive(Debug)]
pub(crate) struct Deferred {
    records: Table<Owed>,
    lock: Lock<()>,
}

// Relaxed throughout: the lock orders it; a look without it may miss what is just being left.
impl Deferred {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { records: Table::new(), lock: Lock::new(()) }
        }
    }

    /// Takes what `shrinker` owes in the group of `chain`. A load where nothing is owed.
    pub(crate) fn take(&self, chain: &AtomicU32, shrinker: ShrinkerId) -> u64 {
        if chain.load(Ordering::Relaxed) == NONE {
            return 0;
        }
        let _lock = lock(&self.lock);
        let Some((link, index, owed)) = self.find(chain, shrinker.slot) else { return 0 };
        link.store(owed.next.load(Ordering::Relaxed), Ordering::Relaxed);
        let is_its_own = owed.shrinker.load(Ordering::Relaxed) == shrinker.to_bits();
        let objects = owed.objects.swap(0, Ordering::Relaxed);
        self.records.put(index);
        if is_its_own { objects } else { 0 }
    }

    /// Notes that `shrinker` owes `objects` more in the group of `chain`. Without memory for a
    /// record they are forgotten.
    pub(crate) fn add(&self, source: &Source, chain: &AtomicU32, id: ShrinkerId, objects: u64) {
        if objects == 0 {
            return;
        }
        let _lock = lock(&self.lock);
        if let Some((_, _, owed)) = self.find(chain, id.slot) {
            let before = owed.shrinker.swap(id.to_bits(), Ordering::Relaxed);
            let left =
                if before == id.to_bits() { owed.objects.load(Ordering::Relaxed) } else { 0 };
            owed.objects.store(left.saturating_add(objects).min(MOST_OBJECTS), Ordering::Relaxed);
            return;
        }
        let Some(index) = self.records.take(source) else { return };
        let Some(owed) = self.records.get(index) else { return };
        owed.shrinker.store(id.to_bits(), Ordering::Relaxed);
        owed.objects.store(objects.min(MOST_OBJECTS), Ordering::Relaxed);
        owed.next.store(chain.load(Ordering::Relaxed), Ordering::Relaxed);
        chain.store(index, Ordering::Relaxed);
    }

    /// Moves all that is owed in a group that goes to its parent, or forgets it.
    pub(crate) fn move_up(&self, from: &AtomicU32, to: Option<&AtomicU32>) {
        if from.load(Ordering::Relaxed) == NONE {
            return;
        }
        let _lock = lock(&self.lock);
        let mut index = from.swap(NONE, Ordering::Relaxed);
        while let Some(owed) = self.records.get(index) {
            let next = owed.next.load(Ordering::Relaxed);
            let id = ShrinkerId::from_bits(owed.shrinker.load(Ordering::Relaxed));
            match to.map(|chain| (chain, self.find(chain, id.slot))) {
                Some((chain, None)) => {
                    owed.next.store(chain.load(Ordering::Relaxed), Ordering::Relaxed);
                    chain.store(index, Ordering::Relaxed);
                }
                Some((_, Some((_, _, above)))) => {
                    let same = above.shrinker.load(Ordering::Relaxed) == id.to_bits();
                    let more = if same { owed.objects.load(Ordering::Relaxed) } else { 0 };
                    let sum = above.objects.load(Ordering::Relaxed).saturating_add(more);
                    above.objects.store(sum.min(MOST_OBJECTS), Ordering::Relaxed);
                    self.forget(index, owed);
                }
                None => self.forget(index, owed),
            }
            index = next;
        }
    }

    /// Gives back a record that is in no chain any more.
    fn forget(&self, index: u32, owed: &Owed) {
        owed.objects.store(0, Ordering::Relaxed);
        self.records.put(index);
    }

    /// The record of a slot in a chain, and the link that leads to it.
    fn find<'a>(
        &'a self,
        chain: &'a AtomicU32,
        slot: u32,
    ) -> Option<(&'a AtomicU32, u32, &'a Owed)> {
        let mut link = chain;
        loop {
            let index = link.load(Ordering::Relaxed);
            let owed = self.records.get(index)?;
            if ShrinkerId::from_bits(owed.shrinker.load(Ordering::Relaxed)).slot == slot {
                return Some((link, index, owed));
            }
            link = &owed.next;
        }
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.records.mapped_bytes()
    }

    #[cfg(not(loom))]
    pub(crate) fn raw_lock(&self) -> &Lock<()> {
        &self.lock
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use memcg_accounting::SYSTEM;

    fn id(slot: u32, generation: u32) -> ShrinkerId {
        ShrinkerId { slot, generation }
    }

    #[test]
    fn what_is_owed_is_taken_once_and_only_by_who_owes_it() {
        let (deferred, chain) = (Deferred::new(), AtomicU32::new(NONE));
        assert_eq!(deferred.take(&chain, id(1, 0)), 0);
        deferred.add(&SYSTEM, &chain, id(1, 0), 5);
        deferred.add(&SYSTEM, &chain, id(2, 0), 7);
        deferred.add(&SYSTEM, &chain, id(1, 0), 10);
        assert_eq!(deferred.take(&chain, id(1, 0)), 15);
        assert_eq!(deferred.take(&chain, id(1, 0)), 0);
        assert_eq!(deferred.take(&chain, id(2, 1)), 0, "the slot is another's by now");
        assert_eq!(deferred.take(&chain, id(2, 0)), 0);
        assert_eq!(chain.load(Ordering::Relaxed), NONE);
        for generation in 0..3 {
            deferred.add(&SYSTEM, &chain, id(3, generation), 1);
        }
        assert_eq!(deferred.take(&chain, id(3, 2)), 1, "not what others owed in this slot");
        assert_eq!(deferred.records.len(), 2, "records are used again");
    }

    #[test]
    fn it_moves_to_the_parent() {
        let deferred = Deferred::new();
        let (child, parent) = (AtomicU32::new(NONE), AtomicU32::new(NONE));
        deferred.add(&SYSTEM, &child, id(1, 0), 5);
        deferred.add(&SYSTEM, &child, id(2, 0), 6);
        deferred.add(&SYSTEM, &parent, id(2, 0), 10);
        deferred.add(&SYSTEM, &parent, id(3, 0), 1);
        deferred.move_up(&child, Some(&parent));
        assert_eq!(child.load(Ordering::Relaxed), NONE);
        let owed = [1, 2, 3].map(|slot| deferred.take(&parent, id(slot, 0)));
        assert_eq!(owed, [5, 16, 1]);
        deferred.add(&SYSTEM, &child, id(1, 0), 5);
        deferred.move_up(&child, None);
        let mut free = 0;
        deferred.records.each_free(|_| free += 1);
        assert_eq!(free, deferred.records.len());
    }
}
