//! The cache without the allocator, as sanitizers can watch it: eviction is called by name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memcg_accounting::GroupRef;

use super::Cache;

const ROOT: GroupRef = GroupRef::ROOT;

/// Scaled down where an interpreter runs it.
const fn rounds(n: u64) -> u64 {
    if cfg!(miri) { n / 200 } else { n }
}

fn evict<K, V>(cache: &Cache<K, V>, nr: usize) -> usize
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache.shared.evict(ROOT, nr).removed
}

#[test]
fn the_hand_passes_what_was_hit_once_and_takes_the_rest_oldest_first() {
    let cache = Cache::<u32, u32>::new("sieve");
    for key in 0..8 {
        cache.insert(key, key).expect("there is no limit");
    }
    for key in [0, 2, 3] {
        assert_eq!(cache.get(&key), Some(key));
    }
    assert_eq!(evict(&cache, 2), 2);
    let left = |cache: &Cache<u32, u32>| {
        let mut keys = cache.scan(0).1;
        keys.sort_unstable();
        keys
    };
    assert_eq!(left(&cache), [0, 2, 3, 5, 6, 7], "1 and 4 were the oldest without a hit");
    assert_eq!(evict(&cache, 3), 3);
    assert_eq!(left(&cache), [0, 2, 3], "the hand went on from there");
    assert_eq!(evict(&cache, 1), 1);
    assert_eq!(left(&cache), [2, 3], "and around, where the hits were used up");
    assert_eq!(cache.stat().evictions, 6);
}

#[test]
fn where_everything_was_hit_something_goes() {
    let cache = Cache::<u32, u32>::new("hot");
    for key in 0..1_000 {
        cache.insert(key, key).expect("there is no limit");
        assert_eq!(cache.get(&key), Some(key));
    }
    assert_eq!(evict(&cache, 4), 4);
    assert_eq!(cache.len(), 996);
}

#[test]
fn tables_grow_in_steps_and_go_with_the_entries() {
    let cache = Cache::<u64, u64>::new("tables");
    let nr = rounds(40_000);
    for key in 0..nr {
        cache.insert(key, key).expect("there is no limit");
        if key.is_power_of_two() {
            cache.check();
        }
    }
    assert!((0..nr).all(|key| cache.get(&key) == Some(key)));
    for key in 0..nr {
        assert_eq!(cache.remove(&key), Some(key));
        if key % 1_111 == 0 {
            cache.check();
        }
    }
    cache.check();
    assert!(cache.is_empty());
    let buckets = |cache: &Cache<u64, u64>| {
        cache.shared.shards().iter().map(|shard| shard.read().table.nr_buckets()).sum::<usize>()
    };
    assert!(buckets(&cache) <= cache.shared.shards().len() * 64, "{}", buckets(&cache));
    cache.clear();
    assert_eq!(buckets(&cache), 0);
}

#[test]
fn threads_insert_read_remove_scan_and_evict() {
    static LIVE: AtomicU64 = AtomicU64::new(0);
    struct Value(u64, Vec<u64>);
    impl Value {
        fn new(key: u64) -> Value {
            LIVE.fetch_add(1, Ordering::Relaxed);
            Value(key, vec![key; 4])
        }
    }
    impl Clone for Value {
        fn clone(&self) -> Value {
            Value::new(self.0)
        }
    }
    impl Drop for Value {
        fn drop(&mut self) {
            assert!(self.1.iter().all(|word| *word == self.0));
            LIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let cache = Arc::new(Cache::<u64, Value>::new("threads"));
    let stop = AtomicBool::new(false);
    let keys = 512;
    std::thread::scope(|scope| {
        let (cache, stop) = (&*cache, &stop);
        let changers: Vec<_> = (0..3u64)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15 ^ thread;
                    for _ in 0..rounds(20_000) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let key = random % keys;
                        match random >> 60 {
                            0..6 => drop(cache.insert(key, Value::new(key))),
                            6..12 => assert!(cache.get(&key).is_none_or(|value| value.0 == key)),
                            12 | 13 => drop(cache.remove(&key)),
                            _ => drop(cache.update(&key, |old| old.or(Some(Value::new(key))))),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                evict(cache, 3);
                cache.check();
                let (mut seen, mut cursor) = (HashMap::new(), 0);
                loop {
                    let (next, keys) = cache.scan(cursor);
                    keys.into_iter().for_each(|key| *seen.entry(key).or_insert(0) += 1);
                    cursor = next;
                    if cursor == 0 {
                        break;
                    }
                }
                assert!(seen.into_iter().all(|(_, times)| times == 1));
            }
        });
        let failed = changers.into_iter().filter_map(|changer| changer.join().err()).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
    cache.check();
    assert_eq!(cache.len(), cache.shared.list.count(ROOT));
    drop(cache);
    assert_eq!(LIVE.load(Ordering::Relaxed), 0);
}
