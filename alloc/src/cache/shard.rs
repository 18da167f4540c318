//! A part of a cache: a table with its lock and its counters.

use memcg_accounting::sync::{AtomicU64, AtomicUsize, Ordering};

use super::node::NodeRef;
use super::rw::{ReadGuard, RwLock, WriteGuard};
use super::table::{Range, Table};
use super::turn::Markers;

/// Buckets that are looked through under one hold of the lock.
const RANGE_BUCKETS: usize = 256;

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State<K, V> {
    pub(super) table: Table<K, V>,
    pub(super) markers: Markers,
}

/// A shard, alone on its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard<K, V> {
    state: RwLock<State<K, V>>,
    /// The table's length, for readers without the lock.
    len: AtomicUsize,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) inserts: AtomicU64,
    pub(super) evictions: AtomicU64,
}

/// Entries that were gathered under the lock, to be looked at or dropped after it.
pub(super) type Batch<K, V> = Vec<NodeRef<K, V>>;

impl<K, V> Shard<K, V> {
    pub(super) fn new(shift: u32) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            state: RwLock::new(State { table: Table::new(shift), markers: Markers::new() }),
            len: AtomicUsize::new(0),
            hits: zero(),
            misses: zero(),
            inserts: zero(),
            evictions: zero(),
        }
    }

    pub(super) fn read(&self) -> ReadGuard<'_, State<K, V>> {
        self.state.read()
    }

    pub(super) fn write(&self) -> WriteGuard<'_, State<K, V>> {
        self.state.write()
    }

    pub(super) fn try_write(&self) -> Option<WriteGuard<'_, State<K, V>>> {
        self.state.try_write()
    }

    /// Lets everybody in again.
    ///
    /// # Safety
    ///
    /// The lock is held by a writer whose guard was forgotten.
    pub(super) unsafe fn force_unlock(&self) {
        // SAFETY: by contract.
        unsafe { self.state.force_unlock() };
    }

    /// Entries. May change right after. Relaxed: a number orders nothing.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Publishes the length. Called under the exclusive lock.
    pub(super) fn publish_len(&self, state: &State<K, V>) {
        self.len.store(state.table.len(), Ordering::Relaxed);
    }

    /// An entry with `hash` for which `is_wanted` says yes. That runs user code, so it runs
    /// under no lock: the candidate is counted, the lock let go, and the search goes on behind
    /// it.
    pub(super) fn find(
        &self,
        hash: u64,
        mut is_wanted: impl FnMut(&K) -> bool,
    ) -> Option<NodeRef<K, V>> {
        let mut after: Option<NodeRef<K, V>> = None;
        loop {
            let candidate = self.read().table.find(hash, after.as_deref())?;
            if is_wanted(&candidate.key) {
                return Some(candidate);
            }
            after = Some(candidate);
        }
    }

    /// Appends to `batch` counts of entries from `hash` on, in order, without allocating.
    pub(super) fn gather(
        state: &State<K, V>,
        mut hash: u64,
        batch: &mut Batch<K, V>,
    ) -> Range<K, V> {
        for _ in 0..RANGE_BUCKETS {
            let range = state.table.range(hash, |entry| {
                if batch.len() == batch.capacity() {
                    return Some(entry);
                }
                batch.push(entry);
                None
            });
            match range {
                Range::Next(Some(next)) => hash = next,
                last => return last,
            }
        }
        Range::Next(Some(hash))
    }

    /// Exclusive access without the lock.
    pub(super) fn get_mut(&mut self) -> &mut State<K, V> {
        self.state.get_mut()
    }
}
