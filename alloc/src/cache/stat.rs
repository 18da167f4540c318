//! What a cache counts.

use memcg_accounting::sync::{AtomicU64, Ordering};

use super::shard::Shard;
use super::shared::Shared;

/// Counts of a [`Cache`](super::Cache) since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStat {
    /// Lookups that found the key; an update is one, too.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Entries that were stored, overwrites too.
    pub inserts: u64,
    /// Entries that went under pressure: not those that were removed, cleared or overwritten.
    pub evictions: u64,
}

pub(super) fn read<K, V>(shared: &Shared<K, V>) -> CacheStat {
    let shards = shared.shards();
    let sum = |counter: fn(&Shard<K, V>) -> &AtomicU64| {
        shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum::<u64>()
    };
    CacheStat {
        hits: sum(|shard| &shard.hits),
        misses: sum(|shard| &shard.misses) + shared.early_misses(),
        inserts: sum(|shard| &shard.inserts),
        evictions: sum(|shard| &shard.evictions),
    }
}
