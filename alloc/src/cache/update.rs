//! Changing an entry in one step, with user code in between.

use std::borrow::Borrow;
use std::hash::Hash;

use super::Cache;
use super::node::NodeRef;
use super::shard::Shard;
use super::shared::Shared;
use super::turn::Marker;
use crate::error::OverLimit;

/// An update under way: its marker is in the shard until this is dropped.
struct Update<'a, K, V> {
    shared: &'a Shared<K, V>,
    shard: &'a Shard<K, V>,
    marker: &'a Marker,
}

impl<'a, K, V> Update<'a, K, V> {
    /// Waits for other updates of the same hash, and begins this one.
    ///
    /// # Safety
    ///
    /// - The marker stays where it is until what this answers was dropped, which it is.
    unsafe fn begin(
        shared: &'a Shared<K, V>,
        shard: &'a Shard<K, V>,
        hash: u64,
        marker: &'a Marker,
    ) -> Self {
        loop {
            let mut state = shard.write();
            let Some(conflict) = state.markers.conflict(hash, None) else {
                // SAFETY: the marker stays until it is removed, which `drop` does, by contract.
                unsafe { state.markers.add(marker) };
                return Self { shared, shard, marker };
            };
            let now = shared.turn.now();
            drop(state);
            shared.wait(conflict, now);
        }
    }
}

impl<K, V> Drop for Update<'_, K, V> {
    fn drop(&mut self) {
        let is_awaited = self.shard.write().markers.remove(self.marker);
        if is_awaited {
            self.shared.turn.end();
        }
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Changes the entry of `key` in one step: `f` gets a clone of its value, if there is one,
    /// and answers what is stored; `None` removes it. Answers a clone of what is stored now.
    ///
    /// Other updates, insertions and removals of the key wait meanwhile; lookups, and changes of
    /// other keys, do not. `f` runs under no lock: it may take long, allocate, and use the cache,
    /// but for changing this key. (Two updates that change each other's key wait for ever, as
    /// with two locks.) An eviction may take the entry while `f` runs; what `f` answers
    /// is stored all the same.
    ///
    /// The new entry is charged to the current group. Its key is made by `to_owned`, which, unlike
    /// the entry itself, can abort at a limit where it allocates.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] where there is no room for the new entry: the old one stays.
    ///
    /// # Panics
    ///
    /// Panics from within an update of the same key. What `f` panics with goes to the caller,
    /// and nothing was changed.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// let cache = memcg::Cache::<String, u64>::new("counters");
    /// let increment = |old: Option<u64>| Some(old.unwrap_or(0) + 1);
    /// assert_eq!(cache.update("hits", increment)?, Some(1));
    /// assert_eq!(cache.update("hits", increment)?, Some(2));
    /// assert_eq!(cache.update("hits", |_| None)?, None);
    /// assert!(cache.is_empty());
    /// # Ok::<(), memcg::OverLimit>(())
    /// ```
    pub fn update<Q>(
        &self,
        key: &Q,
        f: impl FnOnce(Option<V>) -> Option<V>,
    ) -> Result<Option<V>, OverLimit>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.shared.hash(key);
        let is_wanted = |other: &K| other.borrow() == key;
        let shard = self.shared.shard_or_make(hash)?;
        let marker = Marker::new(hash);
        // SAFETY: the marker is declared before the update, so it goes after it; the update is not
        // leaked, for it stays in this function.
        let _update = unsafe { Update::begin(&self.shared, shard, hash, &marker) };
        let old = self.shared.get(hash, is_wanted).map(|entry| entry.value.clone());
        let Some(value) = f(old) else {
            drop(self.shared.remove(hash, Some(&marker), is_wanted));
            return Ok(None);
        };
        let stored = value.clone();
        let entry = NodeRef::try_new(hash, key.to_owned(), value)?;
        drop(self.shared.put(entry, Some(&marker))?);
        Ok(Some(stored))
    }
}
