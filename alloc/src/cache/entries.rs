//! Inserting and removing.

use std::borrow::Borrow;
use std::hash::Hash;

use super::Cache;
use super::node::NodeRef;
use crate::error::OverLimit;

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Inserts an entry, charged to the current group, and answers the value that `key` had.
    ///
    /// An entry of the key that another group inserted becomes the current group's. `O(1)`. It
    /// allocates under no lock, evicting where the group is at its limit, and never aborts.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] where the group, or one above it, has no room, whatever
    /// [`OnLimit`](crate::OnLimit) says. Nothing is stored then, what was there is still there,
    /// and `key` and `value` are dropped.
    ///
    /// # Panics
    ///
    /// Panics from within an [`update`](Cache::update) of the same key.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// let cache = memcg::Cache::<&str, u32>::new("words");
    /// assert_eq!(cache.insert("one", 1)?, None);
    /// assert_eq!(cache.insert("one", 11)?, Some(1));
    /// assert_eq!(cache.get("one"), Some(11));
    /// # Ok::<(), memcg::OverLimit>(())
    /// ```
    pub fn insert(&self, key: K, value: V) -> Result<Option<V>, OverLimit> {
        let hash = self.shared.hash(&key);
        let entry = NodeRef::try_new(hash, key, value)?;
        let replaced = self.shared.put(entry, None)?;
        Ok(replaced.map(NodeRef::into_value))
    }

    /// Removes the entry of `key`, and answers its value. `O(1)`.
    ///
    /// # Panics
    ///
    /// Panics from within an [`update`](Cache::update) of the same key.
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.shared.hash(key);
        let removed = self.shared.remove(hash, None, |other| other.borrow() == key)?;
        Some(removed.into_value())
    }
}
