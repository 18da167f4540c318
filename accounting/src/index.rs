//! Groups by parent and name: a hash table that grows by one bucket at a time.
//!
//! ```text
//!   buckets ─► 0 ─► group ─► group      the next to be split is `len` without its highest bit:
//!              1                        those of its groups whose hash has that bit move to
//!              2 ─► group               bucket `len`, which is made for them
//! ```
//!
//! A table that doubles as a whole would keep everybody from the topology for as long as it takes
//! to move a million groups. Here whoever makes a group moves those of one bucket. The hash is
//! [keyed](crate::hash), so that no bucket is longer than chance makes it.
//!
//! # Invariants
//!
//! - Everything here happens under the topology lock.
//! - A group that is in the index is in the bucket that `place` says, through `same_bucket`.
//!
//! Source: Litwin, "Linear hashing: a new tool for file and table addressing".

use crate::group::Group;
use crate::hash::Key;
use crate::source::Source;
use crate::sync::{AtomicU32, Ordering};
use crate::table::{NONE, Record, Table};
use crate::topology::bytes_of;

/// The first group of a bucket.
#[derive(Debug)]
struct Bucket(AtomicU32);

impl Record for Bucket {
    fn new() -> Self {
        Self(AtomicU32::new(NONE))
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.0
    }

    /// None is ever given back.
    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NONE
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct NameIndex {
    buckets: Table<Bucket>,
}

/// Which of `nr` buckets a hash falls into.
fn place(hash: u64, nr: u32) -> u32 {
    let [a, b, c, d, ..] = hash.to_le_bytes();
    let hash = u32::from_le_bytes([a, b, c, d]);
    let mask = nr.next_power_of_two() - 1;
    if hash & mask < nr { hash & mask } else { hash & (mask >> 1) }
}

fn hash_of(key: &Key, group: &Group) -> u64 {
    key.hash(group.parent(), bytes_of(group))
}

impl NameIndex {
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self { buckets: Table::new() }
        }
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.buckets.mapped_bytes()
    }

    fn bucket(&self, hash: u64) -> Option<&AtomicU32> {
        let nr = self.buckets.len();
        (nr != 0).then(|| self.buckets.get(place(hash, nr)))?.map(|bucket| &bucket.0)
    }

    /// The groups of the bucket of `hash`, with their slots.
    fn bucket_of<'a>(
        &'a self,
        groups: &'a Table<Group>,
        hash: u64,
    ) -> impl Iterator<Item = (u32, &'a Group)> {
        let at = |slot: u32| groups.get(slot).map(|group| (slot, group));
        let first = self.bucket(hash).map_or(NONE, |bucket| bucket.load(Ordering::Relaxed));
        core::iter::successors(at(first), move |(_, group)| {
            at(group.links.chain.load(Ordering::Relaxed))
        })
    }

    /// The child of `parent` with this name, whose hash is given.
    pub(crate) fn find(
        &self,
        groups: &Table<Group>,
        parent: u32,
        name: &[u8],
        hash: u64,
    ) -> Option<u32> {
        let mut all = self.bucket_of(groups, hash);
        all.find(|(_, group)| group.parent() == parent && bytes_of(group) == name)
            .map(|(slot, _)| slot)
    }

    pub(crate) fn add(&self, slot: u32, group: &Group, hash: u64) {
        if let Some(bucket) = self.bucket(hash) {
            group.links.chain.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
            bucket.store(slot, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove(&self, groups: &Table<Group>, key: &Key, slot: u32, group: &Group) {
        let Some(mut link) = self.bucket(hash_of(key, group)) else { return };
        loop {
            let at = link.load(Ordering::Relaxed);
            if at == slot {
                link.store(group.links.chain.load(Ordering::Relaxed), Ordering::Relaxed);
                return;
            }
            let Some(next) = groups.get(at) else { return };
            link = &next.links.chain;
        }
    }

    /// Makes room for one more group, beside `nr_groups`: by two buckets at most, so that what could
    /// not be made once is caught up with. Failing only costs time, but there must be a first one.
    pub(crate) fn grow(
        &self,
        groups: &Table<Group>,
        key: &Key,
        nr_groups: u32,
        source: &Source,
    ) -> bool {
        for _ in 0..2 {
            if nr_groups < self.buckets.len() {
                break;
            }
            let Some(new) = self.buckets.take(source) else { break };
            self.split(groups, key, new);
        }
        !self.buckets.is_empty()
    }

    /// Moves to the bucket `new`, just made, what belongs there.
    fn split(&self, groups: &Table<Group>, key: &Key, new: u32) {
        let (Some(highest), Some(target)) = (new.checked_ilog2(), self.buckets.get(new)) else {
            return;
        };
        let Some(old) = self.buckets.get(new & !(1 << highest)) else { return };
        let mut slot = old.0.swap(NONE, Ordering::Relaxed);
        while let Some(group) = groups.get(slot) {
            let next = group.links.chain.load(Ordering::Relaxed);
            let moves = place(hash_of(key, group), new + 1) == new;
            let bucket = if moves { &target.0 } else { &old.0 };
            group.links.chain.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
            bucket.store(slot, Ordering::Relaxed);
            slot = next;
        }
    }

    /// How many groups the fullest bucket has: as many as a look at it takes at most.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn longest(&self, groups: &Table<Group>) -> usize {
        let lengths = (0..u64::from(self.buckets.len())).map(|i| self.bucket_of(groups, i).count());
        lengths.max().unwrap_or(0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hash_stays_where_it_is_or_moves_to_the_new_bucket() {
        for hash in (0..1000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let mut at = place(hash, 1);
            for nr in 2..600 {
                let next = place(hash, nr);
                let split = (nr - 1) & !(1 << (nr - 1).ilog2());
                assert!(next == at || (at == split && next == nr - 1), "{hash} of {nr}");
                at = next;
            }
        }
    }
}
