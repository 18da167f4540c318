//! Threads that use one cache at the same time, in a process of their own: at the end every
//! byte is accounted for.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use memcg::{Cache, Group};
use support::keys;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// A small generator, so that tests need no dependency and repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len() as u64);
        &all[usize::try_from(index).expect("it is an index")]
    }
}

/// A value that says which key it belongs to, and is counted.
#[derive(Clone)]
struct Owned {
    key: u64,
    room: Arc<[u64]>,
    _token: Token,
}

static LIVE_TOKENS: AtomicU64 = AtomicU64::new(0);

struct Token;

impl Token {
    fn new() -> Token {
        LIVE_TOKENS.fetch_add(1, Ordering::Relaxed);
        Token
    }
}

impl Clone for Token {
    fn clone(&self) -> Token {
        Token::new()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        LIVE_TOKENS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Owned {
    fn new(key: u64) -> Owned {
        Owned { key, room: vec![key; 16].into(), _token: Token::new() }
    }

    fn is_of(&self, key: u64) -> bool {
        self.key == key && self.room.iter().all(|word| *word == key)
    }
}

#[test]
fn threads_do_everything_at_once_and_each_value_is_dropped_once() {
    const KEYS: u64 = 4_000;
    let rounds: u64 = if cfg!(debug_assertions) { 40_000 } else { 200_000 };
    let top = Group::root().create("stress").expect("made");
    let groups: Vec<_> = (0..4)
        .map(|i| top.builder(&format!("g{i}")).max(200 << 10).build().expect("made"))
        .collect();
    let cache = Cache::<u64, Owned>::new("stress");
    let (start, stop) = (Barrier::new(7), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (cache, groups, start, stop) = (&cache, &groups, &start, &stop);
        let workers: Vec<_> = (0..4usize)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = Random(0x1234 + thread as u64);
                    start.wait();
                    for _ in 0..rounds {
                        let key = random.below(KEYS);
                        let group = random.one_of(groups);
                        match random.below(10) {
                            0..3 => {
                                // The value belongs to nobody, the entry to the group.
                                let value = Owned::new(key);
                                if let Ok(Some(old)) = group.run(|| cache.insert(key, value)) {
                                    assert!(old.is_of(key));
                                }
                            }
                            3..8 => {
                                if let Some(value) = cache.get(&key) {
                                    assert!(value.is_of(key));
                                }
                            }
                            8 => {
                                if let Some(value) = cache.remove(&key) {
                                    assert!(value.is_of(key));
                                }
                            }
                            _ => {
                                let _ = group.run(|| {
                                    cache.update(&key, |old| {
                                        assert!(old.is_none_or(|old| old.is_of(key)));
                                        Some(memcg::unaccounted(|| Owned::new(key)))
                                    })
                                });
                            }
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            start.wait();
            while !stop.load(Ordering::Relaxed) {
                for key in keys::scan_all(cache) {
                    assert!(key < KEYS);
                }
            }
        });
        scope.spawn(move || {
            start.wait();
            while !stop.load(Ordering::Relaxed) {
                for group in groups {
                    let _ = group.reclaim(4 << 10);
                    assert!(group.usage() <= 200 << 10);
                }
                cache.clear_in(&groups[0]);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        start.wait();
        let done = workers.into_iter().map(|worker| worker.join());
        let failed = done.filter(Result::is_err).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
    cache.check();
    let by_group: usize = groups.iter().map(|group| cache.len_in(group)).sum();
    assert_eq!(by_group + cache.len_in(&top) + cache.len_in(&Group::root()), cache.len());
    cache.clear();
    assert_eq!(cache.len(), 0);
    drop(cache);
    let deadline = Instant::now() + Duration::from_secs(5);
    while LIVE_TOKENS.load(Ordering::Relaxed) != 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(LIVE_TOKENS.load(Ordering::Relaxed), 0, "every value is dropped once");
    memcg::drain();
    assert_eq!(top.usage(), 0);
    memcg::check();
}
