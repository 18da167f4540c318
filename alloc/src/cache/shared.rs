//! What a cache is: shards, the list of its entries, and the ways between them.
//!
//! ```text
//!              hash ─► shard ─► table ──┐
//!                                       ▼
//!                                     entry
//!                                       ▲
//!   group ─► part of the list, oldest … ┘
//! ```
//!
//! An entry is in its group's part of the list before it is in the table, and leaves the table
//! before it leaves the list. Who takes it out of the table takes it out of the list and drops
//! it: so each is dropped once. The list's part of an entry that is in no table is skipped by
//! whoever evicts.
//!
//! # Lock order
//!
//! 1. a shard
//! 2. (with a try-lock against the order: eviction holds the list's, and tries a shard)
//! 3. the list's part; tree and engine as they say
//!
//! A shard's lock is never held while the list's is waited for, and no user code, allocation,
//! or drop runs under either.

use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicU64, AtomicUsize, Ordering};

use super::fork::{self, Held, Member};
use super::node::NodeRef;
use super::shard::{Batch, Shard};
use super::table::{Buckets, Range};
use super::turn::{Conflict, Marker, Turn};
use crate::error::OverLimit;
use crate::guarded::Thrown;
use crate::lru::group_list::GroupList;
use crate::scope::{fallible, unaccounted};

/// Shards per CPU, and the bounds of their number.
const SHARDS_PER_CPU: usize = 4;
const MIN_SHARDS: usize = 8;
const MAX_SHARDS: usize = 64;
/// Entries that are cleared under one hold of a lock.
pub(super) const CLEAR_BATCH: usize = 32;

/// Allocates something of the cache's own: charged to nobody, and null where there is no memory.
pub(super) fn own<R>(f: impl FnOnce() -> R) -> R {
    unaccounted(|| fallible(f))
}

/// The CPUs of the machine: a power of two of shards for them.
fn shards_for_this_machine() -> usize {
    // SAFETY: `sysconf` reads a number.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    let cpus = usize::try_from(cpus).unwrap_or(1);
    (cpus * SHARDS_PER_CPU).next_power_of_two().clamp(MIN_SHARDS, MAX_SHARDS)
}

/// The insides of a [`Cache`](super::Cache), which its shrinker shares.
#[derive(Debug)]
pub(super) struct Shared<K, V> {
    /// Made at the first insertion: an empty cache is small.
    shards: OnceLock<Box<[Shard<K, V>]>>,
    pub(super) list: GroupList,
    hasher: RandomState,
    pub(super) turn: Turn,
    pub(super) max_entries: AtomicUsize,
    early_misses: AtomicU64,
    pub(super) member: Member,
    entries: PhantomData<NodeRef<K, V>>,
}

/// An entry that is in the list and not in the table: its insertion is under way. Dropping it
/// takes it out of the list.
pub(super) struct Pending<'a, K, V> {
    list: &'a GroupList,
    entry: ManuallyDrop<NodeRef<K, V>>,
}

impl<'a, K, V> Pending<'a, K, V> {
    /// Puts `entry` into the list; answers the group that it is charged to, too.
    fn new(list: &'a GroupList, entry: NodeRef<K, V>) -> (Self, GroupRef) {
        // SAFETY: the entry is counted, and is removed from the list before its count goes: by
        // `drop`, or by whoever takes it out of the table. Its memory is allocated.
        let added = unsafe { list.add(entry.links(), entry.address()) };
        debug_assert!(added.linked, "the entry is new");
        (Self { list, entry: ManuallyDrop::new(entry) }, added.group)
    }

    /// The entry goes to a table.
    fn commit(self) -> NodeRef<K, V> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, nor dropped.
        unsafe { ManuallyDrop::take(&mut this.entry) }
    }

    /// The entry was not taken.
    fn back(list: &'a GroupList, entry: NodeRef<K, V>) -> Self {
        Self { list, entry: ManuallyDrop::new(entry) }
    }
}

impl<K, V> Drop for Pending<'_, K, V> {
    fn drop(&mut self) {
        // SAFETY: the entry is counted.
        unsafe { self.list.remove(self.entry.links()) };
        // SAFETY: this is the drop, and the entry is not used again.
        unsafe { ManuallyDrop::drop(&mut self.entry) };
    }
}

impl<K, V> Shared<K, V> {
    /// Of `list`, which was made for whoever makes the cache.
    pub(super) fn new(list: GroupList) -> Self {
        Self {
            shards: OnceLock::new(),
            list,
            hasher: RandomState::new(),
            turn: Turn::new(),
            max_entries: AtomicUsize::new(usize::MAX),
            early_misses: AtomicU64::new(0),
            member: Member::new::<Self>(),
            entries: PhantomData,
        }
    }

    pub(super) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    // ---- shards -------------------------------------------------------------------------

    pub(super) fn shards(&self) -> &[Shard<K, V>] {
        self.shards.get().map_or(&[], |shards| shards)
    }

    fn shards_or_make(&self) -> Result<&[Shard<K, V>], OverLimit> {
        if let Some(shards) = self.shards.get() {
            return Ok(shards);
        }
        let nr = shards_for_this_machine();
        let shards = own(|| {
            let mut shards = Vec::new();
            shards.try_reserve_exact(nr).ok()?;
            shards.resize_with(nr, || Shard::new(nr.trailing_zeros()));
            Some(shards.into_boxed_slice())
        });
        let no_memory = || OverLimit::system((nr * size_of::<Shard<K, V>>()) as u64);
        let shards = shards.ok_or_else(no_memory)?;
        // Of two that make them one is kept.
        let unused = fork::kept_out(|| self.shards.set(shards));
        drop(unused);
        Ok(self.shards())
    }

    /// The shard's number of a hash: its top bits.
    pub(super) fn index(nr_shards: usize, hash: u64) -> usize {
        debug_assert!(nr_shards.is_power_of_two() && nr_shards > 1);
        usize::try_from(hash >> (64 - nr_shards.trailing_zeros())).unwrap_or(0)
    }

    /// Where the hashes of the shard after that of `hash` begin; `None`: it is the last.
    pub(super) fn next_shard(nr_shards: usize, hash: u64) -> Option<u64> {
        let next = Self::index(nr_shards, hash) + 1;
        (next < nr_shards).then(|| (next as u64) << (64 - nr_shards.trailing_zeros()))
    }

    pub(super) fn shard(&self, hash: u64) -> Option<&Shard<K, V>> {
        let shards = self.shards();
        if shards.is_empty() {
            return None;
        }
        shards.get(Self::index(shards.len(), hash))
    }

    pub(super) fn shard_or_make(&self, hash: u64) -> Result<&Shard<K, V>, OverLimit> {
        let shards = self.shards_or_make()?;
        Ok(&shards[Self::index(shards.len(), hash)])
    }

    pub(super) fn len(&self) -> usize {
        self.shards().iter().map(Shard::len).sum()
    }

    // ---- entries ------------------------------------------------------------------------

    /// The entry of a key, counted as a hit or a miss.
    pub(super) fn get(
        &self,
        hash: u64,
        is_wanted: impl FnMut(&K) -> bool,
    ) -> Option<NodeRef<K, V>> {
        // Relaxed, here and below: counters order nothing.
        let Some(shard) = self.shard(hash) else {
            self.early_misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let found = shard.find(hash, is_wanted);
        match &found {
            Some(entry) => {
                entry.visit();
                shard.hits.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                shard.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
        found
    }

    pub(super) fn early_misses(&self) -> u64 {
        self.early_misses.load(Ordering::Relaxed)
    }

    /// Puts `entry` in, for what has its key now, which is the answer. `own` is the update that
    /// this is a part of.
    ///
    /// # Errors
    ///
    /// The system has no memory for a table; `entry` is dropped.
    pub(super) fn put(
        &self,
        entry: NodeRef<K, V>,
        own_marker: Option<&Marker>,
    ) -> Result<Option<NodeRef<K, V>>, OverLimit>
    where
        K: Eq,
    {
        let hash = entry.hash;
        let shard = self.shard_or_make(hash)?;
        let (mut pending, group) = Pending::new(&self.list, entry);
        // The last entry of this hash that was compared, and whether it has the key.
        let mut seen: Option<(NodeRef<K, V>, bool)> = None;
        let (replaced, garbage, wanted) = loop {
            let mut state = shard.write();
            if let Some(conflict) = state.markers.conflict(hash, own_marker) {
                let now = self.turn.now();
                drop(state);
                drop(seen.take());
                self.wait(conflict, now);
                continue;
            }
            if let Some((old, true)) = &seen {
                let new = pending.commit();
                new.visit();
                match state.table.replace(old, new) {
                    Ok(old) => break (Some(old), state.table.step(), None),
                    Err(new) => pending = Pending::back(&self.list, new),
                }
                // It went meanwhile: look again from the start.
                drop(state);
                seen = None;
                continue;
            }
            if let Some(candidate) = state.table.find(hash, seen.as_ref().map(|seen| &*seen.0)) {
                drop(state);
                let has_key = candidate.key == pending.entry.key;
                seen = Some((candidate, has_key));
                continue;
            }
            match state.table.insert(pending.commit()) {
                None => {
                    shard.publish_len(&state);
                    break (None, state.table.step(), state.table.wanted_bits());
                }
                Some(entry) => pending = Pending::back(&self.list, entry),
            }
            drop(state);
            self.make_first_buckets(shard)?;
        };
        // The lock is gone. First what was replaced leaves the list, for a drop may unwind.
        if let Some(old) = &replaced {
            self.leave_list(old);
        }
        drop(garbage);
        drop(seen);
        shard.inserts.fetch_add(1, Ordering::Relaxed);
        self.resize(shard, wanted);
        self.keep_to_max_entries(group);
        Ok(replaced)
    }

    /// Waits for an update of the same hash to end.
    pub(super) fn wait(&self, conflict: Conflict, now: u32) {
        assert!(
            conflict == Conflict::Wait,
            "an entry is changed from within an update of the same key"
        );
        self.turn.wait(now);
    }

    /// An entry that is in no table any more leaves the list.
    pub(super) fn leave_list(&self, entry: &NodeRef<K, V>) {
        // SAFETY: the entry is counted.
        let removed = unsafe { self.list.remove(entry.links()) };
        debug_assert!(removed, "who takes an entry out of the table takes it out of the list");
    }

    /// Takes the entry of a key out.
    pub(super) fn remove(
        &self,
        hash: u64,
        own_marker: Option<&Marker>,
        mut is_wanted: impl FnMut(&K) -> bool,
    ) -> Option<NodeRef<K, V>> {
        let shard = self.shard(hash)?;
        loop {
            // A miss, also one beside an update of the key: this comes before that.
            let found = shard.find(hash, &mut is_wanted)?;
            let mut state = shard.write();
            if let Some(conflict) = state.markers.conflict(hash, own_marker) {
                let now = self.turn.now();
                drop(state);
                drop(found);
                self.wait(conflict, now);
                continue;
            }
            let Some(removed) = state.table.remove(&found) else {
                // It went meanwhile, or another came for it: look again.
                drop(state);
                continue;
            };
            shard.publish_len(&state);
            let (garbage, wanted) = (state.table.step(), state.table.wanted_bits());
            drop(state);
            drop(garbage);
            self.leave_list(&removed);
            self.resize(shard, wanted);
            return Some(removed);
        }
    }

    // ---- size ---------------------------------------------------------------------------

    fn make_first_buckets(&self, shard: &Shard<K, V>) -> Result<(), OverLimit> {
        let bits = Buckets::<K, V>::FIRST_BITS;
        let Some(fresh) = own(|| Buckets::try_new(bits)) else {
            return Err(OverLimit::system((size_of::<usize>() << bits) as u64));
        };
        let mut state = shard.write();
        let unused = state.table.begin_move(fresh);
        drop(state);
        drop(unused);
        Ok(())
    }

    /// Begins to give the table another size. Without memory it stays as it is, and is slower.
    pub(super) fn resize(&self, shard: &Shard<K, V>, wanted: Option<u32>) {
        let Some(bits) = wanted else { return };
        let Some(fresh) = own(|| Buckets::try_new(bits)) else { return };
        let mut state = shard.write();
        // Somebody else may have been here first.
        let unused = if state.table.wanted_bits() == Some(bits) {
            state.table.begin_move(fresh)
        } else {
            Some(fresh)
        };
        drop(state);
        drop(unused);
    }

    // ---- clearing -----------------------------------------------------------------------

    /// Takes out every entry that was there at the beginning, and frees the tables; `thrown` has
    /// what the entries' drops throw.
    pub(super) fn clear(&self, thrown: &mut Thrown) {
        for shard in self.shards() {
            self.clear_shard(shard, thrown);
        }
    }

    fn clear_shard(&self, shard: &Shard<K, V>, thrown: &mut Thrown) {
        let Some(index) = self.shards().iter().position(|other| std::ptr::eq(other, shard)) else {
            return;
        };
        let nr_shards = self.shards().len();
        let mut hash = (index as u64) << (64 - nr_shards.trailing_zeros());
        let mut batch: Batch<K, V> = own(|| Vec::with_capacity(CLEAR_BATCH));
        let mut taken: Batch<K, V> = own(|| Vec::with_capacity(CLEAR_BATCH));
        loop {
            let mut state = shard.write();
            let range = Shard::gather(&state, hash, &mut batch);
            taken.extend(batch.iter().filter_map(|entry| state.table.remove(entry)));
            shard.publish_len(&state);
            let is_last = matches!(range, Range::Next(None));
            let buckets = if is_last { state.table.take_buckets() } else { None };
            let wanted = if is_last { state.table.wanted_bits() } else { None };
            drop(state);
            drop(buckets);
            self.resize(shard, wanted);
            // All leave the list before any is dropped.
            taken.iter().for_each(|entry| self.leave_list(entry));
            for entries in [&mut batch, &mut taken] {
                while !thrown.catch(|| while entries.pop().is_some() {}) {}
            }
            hash = match range {
                Range::Next(None) => return,
                Range::Next(Some(next)) => next,
                Range::Full(entry) => entry.hash,
            };
        }
    }

    /// Tests the invariants of the cache. `O(entries)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub(super) fn check(&self) {
        for shard in self.shards() {
            let state = shard.read();
            state.table.check();
            assert_eq!(state.table.len(), shard.len(), "the published length is the table's");
        }
    }
}

impl<K, V> Held for Shared<K, V> {
    fn hold(&self) {
        for shard in self.shards.get().into_iter().flatten() {
            std::mem::forget(shard.write());
        }
    }

    unsafe fn release(&self) {
        for shard in self.shards.get().into_iter().flatten() {
            // SAFETY: by contract the shard is locked and its guard was forgotten.
            unsafe { shard.force_unlock() };
        }
    }

    /// Updates of threads that the child does not have are over.
    fn after_fork(&self) {
        for shard in self.shards() {
            shard.write().markers.forget_others();
        }
    }

    fn member(&self) -> &Member {
        &self.member
    }
}

impl<K, V> Drop for Shared<K, V> {
    fn drop(&mut self) {
        fork::leave(self);
        // What is left when the cache was dropped in the middle of an eviction. Whoever has the last
        // count has nothing to do with what is thrown.
        let mut thrown = Thrown::default();
        self.clear(&mut thrown);
        thrown.end();
        if let Some(shards) = self.shards.get_mut() {
            for shard in shards {
                debug_assert_eq!(shard.get_mut().table.len(), 0, "everything was cleared");
            }
        }
    }
}
