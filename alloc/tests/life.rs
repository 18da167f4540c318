//! More of a process's life: chains that go at once, groups that evicted values held, threads that sleep in signal handlers,
//! forks from within shrinkers.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cache, Count, Group, Limit, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{PATIENCE, Raw, Sets, Watchdog, alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Making a group costs its depth, so a chain costs the square: less where the compiler has not optimised.
/// `MEMCG_CHAIN` says otherwise.
fn depth() -> usize {
    let usual = if cfg!(debug_assertions) { 5_000 } else { 100_000 };
    std::env::var("MEMCG_CHAIN").map_or(usual, |depth| depth.parse().expect("a number"))
}

#[test]
fn a_long_chain_of_groups_goes_at_once() {
    let _alone = alone();
    // 100,000 groups take a minute of computing.
    let _watchdog = Watchdog::patient("a chain", 10 * PATIENCE);
    let top = Group::root().builder("chain").max_depth(Limit::Max).build().expect("fresh");
    let depth = depth();
    // On a small stack: nothing may recurse.
    let last = {
        let mut last = top.create("0").expect("fresh");
        for _ in 1..depth {
            // Each is kept by its child alone.
            last = last.create("0").expect("fresh");
        }
        last
    };
    let object = Raw::in_group(&last, 100).expect("no limit");
    assert_eq!(top.stat().nr_descendants, depth as u64);
    let end = move || drop(last);
    thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(end)
        .expect("a thread")
        .join()
        .expect("no panic");
    let stat = top.stat();
    assert_eq!((stat.nr_descendants, stat.usage), (0, 112), "{stat:?}");
    // Whoever asks goes the way from context to context, and shortens it.
    assert_eq!(Group::of(object.as_ptr()), Some(top.clone()));
    drop(object);
    let stat = top.stat();
    assert_eq!((stat.nr_contexts, stat.usage), (0, 0), "{stat:?}");
    memcg::check();
}

#[test]
fn a_group_that_an_evicted_value_held_goes_with_it() {
    let _alone = alone();
    let _watchdog = Watchdog::new("groups in values");
    let top = Group::root().builder("holder").max(256 << 10).build().expect("fresh");
    top.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    let others = Group::root().create("held").expect("fresh");
    let cache = Cache::<u32, Arc<(Group, [u8; 2000])>>::new("groups");
    for key in 0..1000_u32 {
        let group = others.create(&key.to_string()).expect("fresh");
        top.run(|| {
            let value = Arc::new((group, [0; 2000]));
            cache.insert(key, value).expect("the cache gives");
        });
    }
    let evicted = cache.stat().evictions;
    assert!(evicted > 500, "{evicted}");
    // Ends that had to wait come at the next safe point.
    let start = Instant::now();
    while others.stat().nr_descendants != cache.len() as u64 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", others.stat());
        thread::sleep(Duration::from_millis(1));
        drop(top.enter());
    }
    drop(cache);
    memcg::drain();
    assert_eq!((top.usage(), others.stat().nr_descendants), (0, 0));
    memcg::check();
}

#[test]
fn ten_thousand_short_threads_leave_nothing_behind() {
    let _alone = alone();
    let _watchdog = Watchdog::new("short threads");
    let group = Group::root().builder("short").max(16 << 20).build().expect("fresh");
    for _ in 0..1250 {
        let threads: Vec<_> = (0..8)
            .map(|i| {
                let group = group.clone();
                thread::spawn(move || {
                    let _scope = group.enter();
                    drop(vec![1_u8; 300 * (i + 1)]);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
    assert_eq!(group.usage(), 0, "each gave back what it cached as it ended");
    memcg::check();
}

// ---- signal handlers ----------------------------------------------------------------------------------

static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Sleeps wherever the thread is, in the middle of an allocation perhaps: for longer than drains wait, but not for ever, for
/// it may hold a lock that all need. Allocates nothing.
extern "C" fn sleep_in_handler(_: libc::c_int) {
    ASLEEP.fetch_add(1, Ordering::SeqCst);
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    // SAFETY: `pause` is valid for reading; no remainder is asked for.
    unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
    ASLEEP.fetch_sub(1, Ordering::SeqCst);
}

#[test]
fn others_go_on_while_a_thread_sleeps_in_a_signal_handler() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a thread asleep in a signal handler");
    let group = Group::root().builder("asleep").max(1 << 20).build().expect("fresh");
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is an empty set of flags and signals.
    unsafe { (*action.as_mut_ptr()).sa_sigaction = sleep_in_handler as *const () as usize };
    // SAFETY: the action was made above; the handler calls what a handler may.
    let set = unsafe { libc::sigaction(libc::SIGUSR1, action.as_ptr(), std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        let (sender, receiver) = std::sync::mpsc::channel();
        let (group, stop) = (&group, &stop);
        scope.spawn(move || {
            // SAFETY: it takes nothing.
            sender.send(unsafe { libc::pthread_self() }).expect("it listens");
            while !stop.load(Ordering::Relaxed) {
                drop(Raw::in_group(group, 500));
                drop(Raw::in_group(group, 5000));
            }
        });
        let victim = receiver.recv().expect("it started");
        for turn in 0..10 {
            // SAFETY: the thread is there until the scope ends.
            assert_eq!(unsafe { libc::pthread_kill(victim, libc::SIGUSR1) }, 0);
            while ASLEEP.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            // Whatever it sleeps in: a drain comes back, and so does an allocation.
            if turn % 2 == 0 {
                memcg::drain();
            }
            let mut held = Vec::with_capacity(300);
            held.extend(std::iter::from_fn(|| Raw::in_group(group, 8000)).take(300));
            assert!(group.usage() <= 1 << 20);
            assert!(held.len() > 50, "{}", held.len());
            drop(held);
            while ASLEEP.load(Ordering::SeqCst) != 0 {
                thread::yield_now();
            }
        }
    });
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

// ---- a fork from within a shrinker --------------------------------------------------------------------

/// Forks on the worker, in the middle of its call.
struct Forks {
    objects: Mutex<Vec<Raw>>,
    forked: AtomicU32,
    group: Group,
}

impl Shrinker for Forks {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        self.objects.try_lock().map_or(Count::Unknown, |objects| Count::Objects(objects.len()))
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        if self.forked.fetch_add(1, Ordering::SeqCst) < 5 {
            fork_and(|| {
                memcg::check();
                // The thread that reclaims is this process's only one.
                drop(Raw::in_group(&self.group, 1000));
                let own = Group::root().create("of the child").expect("fresh");
                drop(Raw::in_group(&own, 1000));
                memcg::drain();
                assert_eq!(own.usage(), 0);
                memcg::check();
            });
        }
        let Ok(mut objects) = self.objects.try_lock() else { return Scan::Stop };
        let gone = objects.pop();
        drop(objects);
        Scan::Freed(usize::from(gone.is_some()))
    }
}

#[test]
fn a_shrinker_on_the_worker_may_fork() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a fork inside a shrinker");
    let group = Group::root().builder("forks").max(1 << 20).build().expect("fresh");
    group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    let objects = (0..100).filter_map(|_| Raw::in_group(&group, 4096)).collect();
    let (forked, objects) = (AtomicU32::new(0), Mutex::new(objects));
    let shrinker = Arc::new(Forks { objects, forked, group: group.clone() });
    let registration = ShrinkerBuilder::new("forks").register(shrinker.clone());
    // More than what the thread has charged ahead.
    assert!(group.reclaim(200_000).is_ok());
    assert!(shrinker.forked.load(Ordering::SeqCst) > 5);
    shrinker.objects.lock().expect("not poisoned").clear();
    drop(registration);
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

// ---- leaked scopes ------------------------------------------------------------------------------------

#[test]
fn leaked_scopes_charge_no_stranger_while_ids_are_reused() {
    let _alone = alone();
    let _watchdog = Watchdog::new("leaked scopes");
    let parent = Group::root().create("leaky").expect("fresh");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        let (parent, stop) = (&parent, &stop);
        let leakers: Vec<_> = (0..2)
            .map(|seed| {
                scope.spawn(move || {
                    let mut turn = 0;
                    while turn < 100 || !stop.load(Ordering::Relaxed) {
                        let group = memcg::unaccounted(|| {
                            parent.create(&format!("{seed} {turn}")).expect("fresh")
                        });
                        std::mem::forget(group.enter());
                        let before = Raw::new(300).expect("no limit");
                        assert_eq!(Group::of(before.as_ptr()), Some(group.clone()));
                        drop(group);
                        for size in [100, 300, 5000, 100_000] {
                            let after = Raw::new(size).expect("no limit");
                            assert_eq!(Group::of(after.as_ptr()), Some(parent.clone()));
                        }
                        turn += 1;
                    }
                })
            })
            .collect();
        // Few groups at once, so that each id is soon another group's.
        for turn in 0..50 {
            let name = |i| format!("stranger {turn} {i}");
            let strangers: Vec<Group> =
                (0..3).map(|i| Group::root().create(&name(i)).expect("fresh")).collect();
            thread::yield_now();
            memcg::drain();
            for stranger in &strangers {
                assert_eq!((stranger.usage(), stranger.peak()), (0, 0), "nobody entered it");
            }
        }
        stop.store(true, Ordering::Relaxed);
        leakers.into_iter().for_each(|leaker| leaker.join().expect("no panic"));
    });
    memcg::drain();
    let stat = parent.stat();
    assert_eq!((stat.usage, stat.nr_descendants, stat.nr_contexts), (0, 0, 0), "{stat:?}");
    memcg::check();
}
