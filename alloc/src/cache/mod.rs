//! A concurrent map whose entries are charged to groups, and go when those need room.

mod entries;
mod evict;
mod fork;
mod node;
mod rw;
mod scan;
mod shard;
mod shared;
mod stat;
mod table;
#[cfg(test)]
mod tests;
mod turn;
mod update;

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memcg_shrink::{Place, ShrinkerId};

pub use stat::CacheStat;

use self::shared::Shared;
use crate::group::Group;
use crate::guarded::Thrown;
use crate::lru::group_list::GroupList;
use crate::plain_drop::PlainDrop;
use crate::process::ENGINE;
use crate::scope::unaccounted;

/// A concurrent map: an entry is charged to the group that inserts it, and evicted when that
/// group, or one above it, needs room.
///
/// Other groups' entries are not touched by it. Within a group those go first that were not
/// asked for ([SIEVE](https://cachemon.github.io/SIEVE-website/), which a scan does not fool).
/// When a group drops, its entries are its parent's.
///
/// | | evicted | keys and values |
/// |---|---|---|
/// | [`Cache::direct`] | inside the allocation that needs the room | [`PlainDrop`] |
/// | [`Cache::new`] | by the worker, while the allocation waits | any |
///
/// An entry is one allocation, charged with key and value in it. What key and value own is
/// charged to whoever allocated it, so the bytes of a `Vec` inserted by a group are the group's if
/// it filled them. The map's own tables are charged to nobody, and shrink with it.
///
/// All methods may be called from any thread. Lookups share a lock for a few instructions, and
/// changes have it alone; no code of `K` or `V` ([`Hash`], [`Eq`], [`Clone`], [`Drop`]) runs
/// under it, so that may use the cache, and may panic: nothing is left half done. What panics while
/// entries are evicted is caught.
///
/// It is `Send` and `Sync`, as keys and values are, and invariant in both.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::{Cache, Group};
///
/// let acme = Group::root().builder("acme-cache").max(1 << 20).build()?;
/// let cache = Cache::<u32, [u8; 1000]>::direct("sessions");
/// for key in 0..10_000 {
///     acme.run(|| cache.insert(key, [0; 1000])).expect("it makes room for itself");
/// }
/// assert!(acme.usage() <= 1 << 20);
/// assert_eq!(cache.len(), cache.len_in(&acme));
/// assert_eq!(cache.len() as u64 + cache.stat().evictions, 10_000);
/// # Ok::<(), memcg::Error>(())
/// ```
pub struct Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    shared: Arc<Shared<K, V>>,
    /// None: the system had no memory for the record, so nothing is evicted.
    shrinker: Option<ShrinkerId>,
}

impl<K, V> fmt::Debug for Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("len", &self.len()).field("stat", &self.stat()).finish()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache that the worker evicts from; `name` is for reports.
    ///
    /// An empty one takes a few hundred bytes, charged to nobody; tables come with entries. It
    /// starts the worker, if there is none.
    ///
    /// # Panics
    ///
    /// Panics where there are as many objects as [`set_max_objects`](crate::set_max_objects) and
    /// [`Group::set_max_objects`](crate::Group::set_max_objects) have it.
    /// Aborts, as `Box::new` does, where the system has no memory for it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        // SAFETY: it is not direct.
        unsafe { Self::at(name, Place::Worker) }
    }

    /// A cache that is evicted from inside the allocation that needs the room: no thread waits
    /// for another, and eviction takes well under a microsecond an entry.
    ///
    /// # Panics
    ///
    /// Panics where there are as many objects as [`set_max_objects`](crate::set_max_objects) and
    /// [`Group::set_max_objects`](crate::Group::set_max_objects) have it.
    /// Aborts, as `Box::new` does, where the system has no memory for it.
    #[must_use]
    pub fn direct(name: &str) -> Self
    where
        K: PlainDrop,
        V: PlainDrop,
    {
        // SAFETY: keys and values are `PlainDrop`.
        unsafe { Self::at(name, Place::Direct) }
    }

    /// # Safety
    ///
    /// - If `place` is direct, `K` and `V` are [`PlainDrop`].
    unsafe fn at(name: &str, place: Place) -> Self {
        let list = GroupList::new();
        unaccounted(|| {
            let shared = Arc::new(Shared::new(list));
            fork::join(&*shared);
            // SAFETY: by contract.
            let shrinker = unsafe { evict::register(&shared, name, place) };
            if let Some(shrinker) = shrinker {
                shared.list.set_shrinker(shrinker);
            }
            Self { shared, shrinker }
        })
    }

    /// Keeps the cache to `n` entries, for use outside groups: an insertion beyond that evicts.
    ///
    /// With several threads inserting there may be one more for each of them, for a moment.
    #[must_use]
    pub fn with_max_entries(self, n: usize) -> Self {
        // Relaxed: nothing else is told by it.
        self.shared.max_entries.store(n, Ordering::Relaxed);
        self
    }

    // ---- reading ------------------------------------------------------------------------

    /// A clone of the value of `key`.
    ///
    /// `O(1)`; takes a lock that lookups share, and clones after it. What the clone allocates is
    /// charged to the current group.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.shared.hash(key);
        let entry = self.shared.get(hash, |other| other.borrow() == key)?;
        Some(entry.value.clone())
    }

    /// The same without a trace: the entry does not count as used, nor the lookup as a hit or a
    /// miss. For who walks the cache on nobody's behalf.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// let cache = memcg::Cache::<u32, u32>::direct("peeked");
    /// cache.insert(1, 10)?;
    /// assert_eq!(cache.peek(&1), Some(10));
    /// assert_eq!(cache.stat().hits, 0);
    /// # Ok::<(), memcg::OverLimit>(())
    /// ```
    #[must_use]
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.shared.hash(key);
        let entry = self.shared.shard(hash)?.find(hash, |other| other.borrow() == key)?;
        Some(entry.value.clone())
    }

    /// Entries. May change right after. `O(1)`, without a lock.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether there are no entries. May change right after.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that are charged to exactly `group`, not to those below it. May change right
    /// after; an entry counts from a moment before it can be found. `O(1)`.
    #[must_use]
    pub fn len_in(&self, group: &Group) -> usize {
        self.shared.list.count(group.as_ref())
    }

    /// Counts since the cache was made: each exact, together not of one moment.
    #[must_use]
    pub fn stat(&self) -> CacheStat {
        stat::read(&self.shared)
    }

    // ---- clearing -----------------------------------------------------------------------

    /// Removes every entry that is there when it is called, and frees the tables. `O(entries)`.
    ///
    /// # Panics
    ///
    /// With the first of what drops of entries panic with, after all are dropped.
    pub fn clear(&self) {
        let mut thrown = Thrown::default();
        self.shared.clear(&mut thrown);
        thrown.go_on();
    }

    /// Removes every entry that is charged to exactly `group` when it is called.
    /// `O(entries of the group)`.
    ///
    /// # Panics
    ///
    /// As [`clear`](Cache::clear).
    pub fn clear_in(&self, group: &Group) {
        let mut thrown = Thrown::default();
        self.shared.clear_in(group.as_ref(), &mut thrown);
        thrown.go_on();
    }

    /// Tests the cache's invariants. `O(entries)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    #[doc(hidden)]
    pub fn check(&self) {
        self.shared.check();
    }
}

impl<K, V> Drop for Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for an eviction in flight, a second at most, and drops all entries: as
    /// [`clear`](Cache::clear) where drops panic.
    fn drop(&mut self) {
        if let Some(shrinker) = self.shrinker {
            ENGINE.unregister(shrinker);
        }
        self.clear();
    }
}
