//! The cache with hostile keys and values: code of theirs that panics, or uses the cache that it is called from.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use memcg::{Cache, Group};
use support::keys;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[test]
fn a_value_whose_drop_uses_the_same_cache_may() {
    #[derive(Clone)]
    struct Reentrant(Weak<Cache<u32, Reentrant>>, u32);
    impl Drop for Reentrant {
        fn drop(&mut self) {
            if let Some(cache) = self.0.upgrade() {
                assert!(cache.len() < 10_000);
                assert!(cache.get(&u32::MAX).is_none());
                // Not a chain of drops within drops.
                if self.1.is_multiple_of(2) {
                    cache.remove(&(self.1 + 1));
                }
            }
        }
    }
    let cache = Arc::new(Cache::<u32, Reentrant>::new("reentrant"));
    let weak = Arc::downgrade(&cache);
    let tenant = Group::root().builder("reentrant").max(64 << 10).build().expect("made");
    for key in 0..4_000 {
        let value = Reentrant(weak.clone(), key);
        let _ = tenant.run(|| cache.insert(key, value));
        if key % 3 == 0 {
            let value = Reentrant(weak.clone(), key);
            let _ = tenant.run(|| cache.insert(key, value));
        }
    }
    cache.clear_in(&tenant);
    cache.clear();
    assert_eq!(cache.len(), 0);
    cache.check();
}

/// Which of its traits panics.
#[derive(Clone, Copy, PartialEq)]
enum Fails {
    Hash,
    Eq,
    Clone,
    Drop,
}

thread_local! {
    static FAILS: std::cell::Cell<Option<Fails>> = const { std::cell::Cell::new(None) };
}

fn fail_if(fails: Fails) {
    if FAILS.get() == Some(fails) && !std::thread::panicking() {
        panic!("told to");
    }
}

#[derive(Debug)]
struct Hostile(u32);

impl std::hash::Hash for Hostile {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        fail_if(Fails::Hash);
        (self.0 % 16).hash(state);
    }
}

impl PartialEq for Hostile {
    fn eq(&self, other: &Self) -> bool {
        fail_if(Fails::Eq);
        self.0 == other.0
    }
}

impl Eq for Hostile {}

impl Clone for Hostile {
    fn clone(&self) -> Self {
        fail_if(Fails::Clone);
        Hostile(self.0)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        fail_if(Fails::Drop);
    }
}

#[test]
fn code_that_panics_leaves_nothing_half_done() {
    let cache = Cache::<Hostile, Hostile>::new("hostile");
    let fill = || {
        for key in 0..100 {
            cache.insert(Hostile(key), Hostile(key)).expect("no limit");
        }
    };
    for fails in [Fails::Hash, Fails::Eq, Fails::Clone, Fails::Drop] {
        fill();
        type Try<'a> = Box<dyn Fn() + 'a>;
        let tries: [Try<'_>; 8] = [
            Box::new(|| drop(cache.get(&Hostile(3)))),
            Box::new(|| drop(cache.insert(Hostile(3), Hostile(3)))),
            Box::new(|| drop(cache.insert(Hostile(1_000), Hostile(0)))),
            Box::new(|| drop(cache.remove(&Hostile(5)))),
            Box::new(|| drop(cache.update(&Hostile(7), |old| old))),
            Box::new(|| drop(cache.update(&Hostile(9), |_| None))),
            Box::new(|| drop(cache.scan(0))),
            Box::new(|| cache.clear()),
        ];
        for (number, attempt) in tries.iter().enumerate() {
            FAILS.set(Some(fails));
            let _ = catch_unwind(AssertUnwindSafe(attempt));
            FAILS.set(None);
            cache.check();
            let len = keys::scan_all(&cache).len();
            assert_eq!(len, cache.len(), "attempt {number}");
            assert_eq!(len, cache.len_in(&Group::root()), "attempt {number}");
        }
        cache.clear();
        assert_eq!((cache.len(), cache.len_in(&Group::root())), (0, 0));
    }
    fill();
    assert_eq!(cache.len(), 100);
}

#[test]
fn a_panic_in_a_drop_under_pressure_ends_there() {
    static ARMED: AtomicBool = AtomicBool::new(true);
    #[derive(Clone)]
    struct Bomb(#[expect(dead_code, reason = "it takes room")] [u8; 400]);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if ARMED.load(Ordering::Relaxed) && !std::thread::panicking() {
                panic!("told to");
            }
        }
    }
    std::panic::set_hook(Box::new(|_| {}));
    let tenant = Group::root().builder("bomb").max(64 << 10).build().expect("made");
    // Not about time: others that take the CPU must not refuse an insertion.
    tenant.set_deadline(Duration::from_secs(5), Duration::from_secs(10));
    let cache = Cache::<u32, Bomb>::new("bomb");
    let mut stored = 0;
    for key in 0..1_000 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            tenant.run(|| cache.insert(key, Bomb([0; 400])).is_ok())
        }));
        stored += usize::from(matches!(result, Ok(true)));
        assert!(tenant.usage() <= 64 << 10);
    }
    ARMED.store(false, Ordering::Relaxed);
    let _ = std::panic::take_hook();
    assert!(stored > 900, "{stored} of 1000 were stored");
    assert!(cache.stat().evictions > 500);
    cache.check();
    cache.clear();
    memcg::drain();
    assert_eq!(tenant.usage(), 0);
}
