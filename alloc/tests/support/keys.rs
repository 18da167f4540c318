//! The keys of a cache.

use std::hash::Hash;

use memcg::Cache;

/// All keys by scanning.
pub(crate) fn scan_all<K, V>(cache: &Cache<K, V>) -> Vec<K>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let (mut seen, mut cursor) = (Vec::new(), 0);
    loop {
        let (next, keys) = cache.scan(cursor);
        seen.extend(keys);
        cursor = next;
        if cursor == 0 {
            return seen;
        }
    }
}
