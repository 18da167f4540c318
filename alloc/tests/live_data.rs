//! Live data stays while garbage of its group is cached: nothing is evicted that a drain could
//! have made room for.

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use memcg::{Cache, Group};
use support::{Random, Raw, Watchdog, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const THREADS: u64 = 64;
/// Less than what so many threads cache, of objects and unspent stock, beside what lives.
const MAX: u64 = 12 << 20;
const VALUE: usize = 1000;

/// 64 threads in a group that is 30 % live: they hold little at a time, and cache what they have
/// freed, so that the limit is met again and again. No key is lost.
fn keys_stay(make: fn(&str) -> Cache<u64, Box<[u8]>>, name: &str) {
    let _running = running();
    // Dropped before the look at everything.
    let cache = make(name);
    let _watchdog = Watchdog::new("64 threads and a cache");
    let group = Group::root().builder(name).max(MAX).build().expect("a fresh name");
    // Not about time: 64 threads share the machine's few CPUs.
    group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    let mut keys = 0;
    while group.usage() < MAX * 3 / 10 {
        let stored = group.run(|| cache.insert(keys, vec![1; VALUE].into_boxed_slice()));
        assert!(stored.is_ok_and(|before| before.is_none()));
        keys += 1;
    }
    let start = Barrier::new(usize::try_from(THREADS).expect("few"));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (group, start) = (&group, &start);
            scope.spawn(move || {
                let mut random = Random::new(thread + 1);
                start.wait();
                // Idle threads are drained, so that it takes more rounds on a slow machine.
                for round in 0..10_000 {
                    if round >= 50 && group.events().max >= 20 {
                        break;
                    }
                    // A batch of one size, as large as the magazines of a thread have room for.
                    let size = 16 << random.below(9);
                    let batch: Vec<Raw> = memcg::unaccounted(|| {
                        let objects = (64 << 10) / size;
                        let objects = (0..objects).map(|_| Raw::in_group(group, size));
                        objects.map(|object| object.expect("it fits beside what lives")).collect()
                    });
                    drop(batch);
                }
            });
        }
    });
    let events = group.events();
    assert!(events.max > 0, "the limit was never met");
    assert_eq!(events.oom, 0);
    let stat = cache.stat();
    assert_eq!(stat.evictions, 0, "of {keys}, while the limit was met {} times", events.max);
    assert!((0..keys).all(|key| cache.get(&key).is_some()));
}

#[test]
fn no_key_of_a_direct_cache_is_lost_while_64_threads_cache_garbage() {
    keys_stay(Cache::direct, "direct");
}

#[test]
fn no_key_of_a_workers_cache_is_lost_while_64_threads_cache_garbage() {
    keys_stay(Cache::new, "worker");
}
