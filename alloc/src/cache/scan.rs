//! Going through all keys, a few at a time, while the cache changes.

use std::hash::Hash;

use super::Cache;
use super::shard::{Batch, Shard};
use super::shared::{Shared, own};
use super::table::Range;

/// Keys that a call answers, but for those of one hash, which come together.
const KEYS: usize = 64;
/// With so many keys a call ends.
const ENOUGH: usize = 10;
/// Steps of some hundred buckets after which a call ends, also without a key.
const STEPS: usize = 64;

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Some keys, and the cursor to go on with; begin with 0, and at 0 it is over.
    ///
    /// Every key that is in the cache from the first call to the last is seen, exactly once,
    /// also if the tables change their size meanwhile; one that comes or goes may be. A call
    /// takes a bounded time, and may answer no keys before the end.
    ///
    /// A cursor is a place in the order of hashes, and holds nothing: it may be kept, or left.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// let cache = memcg::Cache::<u32, ()>::new("numbers");
    /// for key in 0..1000 {
    ///     cache.insert(key, ())?;
    /// }
    /// let (mut seen, mut cursor) = (Vec::new(), 0);
    /// loop {
    ///     let (next, keys) = cache.scan(cursor);
    ///     seen.extend(keys);
    ///     cursor = next;
    ///     if cursor == 0 {
    ///         break;
    ///     }
    /// }
    /// seen.sort();
    /// assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    /// # Ok::<(), memcg::OverLimit>(())
    /// ```
    pub fn scan(&self, cursor: u64) -> (u64, Vec<K>)
    where
        K: Clone,
    {
        let shards = self.shared.shards();
        let mut batch: Batch<K, V> = Batch::new();
        if shards.is_empty() {
            return (0, Vec::new());
        }
        reserve(&mut batch, KEYS);
        let mut hash = cursor;
        for _ in 0..STEPS {
            let shard = &shards[Shared::<K, V>::index(shards.len(), hash)];
            let range = Shard::gather(&shard.read(), hash, &mut batch);
            let next = match range {
                Range::Next(Some(next)) => Some(next),
                Range::Next(None) => Shared::<K, V>::next_shard(shards.len(), hash),
                Range::Full(refused) => {
                    // What has one hash comes together, so that the cursor can be a hash.
                    let whole = batch.iter().take_while(|entry| entry.hash < refused.hash).count();
                    if whole == 0 {
                        let larger = batch.capacity() * 2;
                        batch.clear();
                        reserve(&mut batch, larger);
                        continue;
                    }
                    batch.truncate(whole);
                    hash = refused.hash;
                    break;
                }
            };
            let Some(next) = next else {
                hash = 0;
                break;
            };
            hash = next;
            if batch.len() >= ENOUGH {
                break;
            }
        }
        (hash, batch.iter().map(|entry| entry.key.clone()).collect())
    }
}

/// Room for `nr` entries, charged to nobody.
fn reserve<K, V>(batch: &mut Batch<K, V>, nr: usize) {
    own(|| batch.reserve_exact(nr));
}
