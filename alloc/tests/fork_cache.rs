//! `fork` beside caches and readers of peaks: what another thread was in the middle of is not under way in the child.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use memcg::{Cache, Group};
use support::{Bare, Sets, Watchdog, alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Whoever was inside a cache's shard at that moment does not exist in the child.
#[test]
fn a_cache_that_others_use_serves_the_child() {
    let _alone = alone();
    let _watchdog = Watchdog::new("forks beside a cache");
    let group = Group::root().builder("cache of a fork").max(1 << 20).build().expect("fresh");
    let cache = Cache::<u64, [u8; 100]>::direct("forked");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for thread in 0..3_u64 {
            let (cache, group, stop) = (&cache, &group, &stop);
            scope.spawn(move || {
                let mut key = thread << 32;
                while !stop.load(Ordering::Relaxed) {
                    key += 1;
                    let _ = group.run(|| cache.insert(key % 300, [1; 100]));
                    let _ = cache.get(&(key % 200));
                }
            });
        }
        for round in 0..60 {
            thread::sleep(Duration::from_millis(2));
            fork_and(|| {
                for key in 0..300 {
                    let _ = group.run(|| cache.insert(key, [2; 100]));
                    assert!(cache.get(&key).is_none_or(|value| value[0] <= 2), "{round}");
                }
                assert!(!cache.is_empty());
            });
        }
    });
}

/// An update under way belongs to a thread: one that the child does not have is over there.
#[test]
fn nobody_in_the_child_waits_for_an_update_of_the_parents() {
    let _alone = alone();
    let _watchdog = Watchdog::new("an update that is not there");
    let cache = Cache::<u32, u32>::new("updated");
    for key in 0..4 {
        cache.insert(key, 10).expect("no limit");
    }
    thread::scope(|scope| {
        let (inside, is_inside) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let cache = &cache;
        let others = scope.spawn(move || {
            cache.update(&1, |old| {
                inside.send(()).expect("it listens");
                may_go_on.recv().expect("it is told to");
                old.map(|value| value + 1)
            })
        });
        is_inside.recv().expect("it began");
        let own = cache.update(&2, |old| {
            fork_and(|| {
                assert_eq!(cache.insert(1, 20), Ok(Some(10)));
                assert_eq!(cache.update(&1, |old| old.map(|value| value + 5)), Ok(Some(25)));
                assert_eq!(cache.remove(&1), Some(25));
                // The thread that forked is still in its own.
                let nested = catch_unwind(AssertUnwindSafe(|| cache.insert(2, 0)));
                assert!(nested.is_err(), "a change from within an update of the same key");
                cache.check();
            });
            old.map(|value| value + 1)
        });
        assert_eq!(own, Ok(Some(11)));
        // In the parent it goes on.
        go_on.send(()).expect("it waits");
        assert_eq!(others.join().expect("no panic"), Ok(Some(11)));
    });
    cache.check();
}

/// Changes of one key that wait for each other.
fn contend(cache: &Cache<u32, u64>, is_over: impl Fn() -> bool) {
    while !is_over() {
        let update = |old: Option<u64>| {
            thread::yield_now();
            Some(old.unwrap_or(0) + 1)
        };
        cache.update(&1, update).expect("no limit");
    }
}

#[test]
fn threads_of_the_child_wait_for_each_others_updates() {
    let _alone = alone();
    let _watchdog = Watchdog::new("updates in a child");
    let cache = Cache::<u32, u64>::new("contended");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for _ in 0..3 {
            scope.spawn(|| contend(&cache, || stop.load(Ordering::Relaxed)));
        }
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(1));
            fork_and(|| {
                let before = cache.update(&1, |old| old).expect("no limit").unwrap_or(0);
                let until = || cache.get(&1).is_some_and(|value| value >= before + 100);
                let work = || contend(&cache, until);
                drop([(); 2].map(|()| Bare::new(&work)));
                assert!(until());
            });
        }
    });
}

#[test]
fn readers_of_peaks_serve_the_child() {
    let _alone = alone();
    let _watchdog = Watchdog::new("readers of peaks in a child");
    let group = Group::root().create("peaks of a fork").expect("fresh");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut reader = group.peak_reader();
                    for _ in 0..10 {
                        reader.reset();
                    }
                }
            });
        }
        for _ in 0..60 {
            thread::sleep(Duration::from_millis(1));
            fork_and(|| {
                let mut reader = group.peak_reader();
                reader.reset();
                drop(group.run(|| vec![1_u8; 100_000]));
                assert!(reader.get() >= 100_000);
            });
        }
    });
}
