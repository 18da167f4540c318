//! `fork`: the child has everything in order, whatever other threads were doing.

mod support;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::hoard::Hoard;
use support::{Bare, Random, Raw, Sets, Watchdog, alone, fork_and, thread_names};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Forks of the busy process; `MEMCG_FORKS` says otherwise.
fn nr_forks() -> usize {
    std::env::var("MEMCG_FORKS").map_or(60, |forks| forks.parse().expect("a number"))
}

/// The limit of each busy group.
const MAX: u64 = 1 << 20;

/// Threads that allocate and free hard, at the limits of their groups, until it is dropped.
struct Busy {
    groups: Vec<Group>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn new(name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let top = Group::root().builder(name).max(3 * MAX).build().expect("a fresh name");
        let groups: Vec<Group> = (0..4)
            .map(|i| top.builder(&i.to_string()).max(MAX).build().expect("a fresh name"))
            .collect();
        let threads = (0..4)
            .map(|seed| {
                let (groups, stop, top) = (groups.clone(), stop.clone(), top.clone());
                thread::spawn(move || {
                    let mut random = Random::new(seed);
                    let mut held = Vec::with_capacity(200);
                    while !stop.load(Ordering::Relaxed) {
                        let group = &groups[random.below(groups.len())];
                        let most = if random.below(20) == 0 { 80_000 } else { 2000 };
                        held.extend(Raw::in_group(group, 1 + random.below(most)));
                        if held.len() > 150 {
                            held.swap_remove(random.below(held.len()));
                        }
                        if random.below(500) == 0 {
                            let name = format!("short-lived {seed}");
                            let short = top.create(&name).expect("a fresh name");
                            held.extend(Raw::in_group(&short, 100));
                        }
                        if random.below(5000) == 0 {
                            // A thread that is just beginning, or ending.
                            drop(Bare::new(&|| drop(vec![0_u8; 100])));
                        }
                    }
                })
            })
            .collect();
        Self { groups, stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a busy thread panicked");
        }
    }
}

/// What a child does: everything.
fn live(groups: &[Group]) {
    memcg::check();
    let before: Vec<u64> = memcg::snapshot(groups).iter().map(|stat| stat.usage).collect();
    for (group, &before) in groups.iter().zip(&before) {
        assert!(before <= MAX);
        let objects: Vec<Raw> = (0..100).filter_map(|i| Raw::in_group(group, 10 * i + 1)).collect();
        let sum: u64 = objects.iter().map(|object| object.size() as u64).sum();
        assert!(group.stat().usage >= before + sum);
        drop(objects);
        assert_eq!(group.stat().usage, before, "nobody else is here");
        assert!(Raw::in_group(group, 2 << 20).is_none(), "the limit holds");
    }
    // New groups, at their limits, dropped with objects inside.
    let own = Group::root().builder("own").max(MAX / 4).build().expect("fresh");
    let child = own.create("child").expect("fresh");
    let object = Raw::in_group(&child, 100_000).expect("fits");
    drop(child);
    assert_eq!(Group::of(object.as_ptr()), Some(own.clone()));
    let mut filled = Vec::new();
    while let Some(object) = Raw::in_group(&own, 4096) {
        filled.push(object);
    }
    assert!(own.usage() <= MAX / 4 && own.usage() > MAX / 4 - 4096);
    drop((filled, object));
    // And threads of its own.
    let work = || {
        for _ in 0..200 {
            drop(Raw::in_group(&own, 3000));
        }
    };
    drop([Bare::new(&work), Bare::new(&work), Bare::new(&work)]);
    memcg::drain();
    assert_eq!(own.usage(), 0);
    drop(own);
    memcg::purge();
    memcg::check();
}

#[test]
fn the_child_of_a_busy_process_lives() {
    let _alone = alone();
    let _watchdog = Watchdog::new("forks of a busy process");
    let busy = Busy::new("busy");
    for turn in 0..nr_forks() {
        fork_and(|| live(&busy.groups));
        // The parent goes on.
        let object = Raw::in_group(&busy.groups[turn % 4], 100);
        drop(object);
        assert!(busy.groups.iter().all(|group| group.usage() <= MAX));
    }
    let groups = busy.groups.clone();
    drop(busy);
    memcg::drain();
    for group in &groups {
        assert_eq!(group.usage(), 0, "{group:?}");
    }
    memcg::check();
}

#[test]
fn children_of_children_live() {
    let _alone = alone();
    let _watchdog = Watchdog::new("forks of forks");
    let busy = Busy::new("nested");
    for _ in 0..5 {
        fork_and(|| {
            live(&busy.groups);
            fork_and(|| {
                live(&busy.groups);
                fork_and(|| live(&busy.groups));
            });
            live(&busy.groups);
        });
    }
}

#[test]
fn several_threads_fork_at_once_while_others_drain() {
    let _alone = alone();
    let _watchdog = Watchdog::new("forks at once");
    let busy = Busy::new("at once");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let drainers = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memcg::drain();
                let _ = busy.groups[0].stat();
                thread::yield_now();
            }
        });
        let forkers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..8).for_each(|_| fork_and(|| live(&busy.groups)))))
            .collect();
        let results: Vec<_> = forkers.into_iter().map(|forker| forker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        drainers.join().expect("no panic");
        for result in results {
            result.expect("each child lived");
        }
    });
}

#[test]
fn a_child_starts_its_own_workers_when_it_needs_them() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a worker of a child");
    let group = Group::root().create("own worker").expect("fresh");
    fork_and(|| {
        assert!(
            thread_names().iter().all(|name| !name.starts_with("memcg")),
            "no thread is copied"
        );
        let second = group.create("second").expect("fresh");
        let start = Instant::now();
        while !thread_names().iter().any(|name| name == "memcg-keeper") {
            assert!(start.elapsed() < Duration::from_secs(60), "a group wants a keeper");
            thread::sleep(Duration::from_millis(1));
        }
        // It does what it is there for.
        drop(Raw::in_group(&second, 1000));
        while second.usage() != 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "garbage goes with time");
            thread::sleep(Duration::from_millis(5));
        }
    });
}

// ---- in the middle of a shrinker ---------------------------------------------------------------------

/// A shrinker that holds objects of one group and stays in its call until it is told to go on.
struct Held {
    objects: Hoard,
    inside: AtomicU32,
    go_on: AtomicBool,
}

impl Shrinker for Held {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        self.objects.count(ctl)
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        self.inside.fetch_add(1, Ordering::SeqCst);
        while !self.go_on.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        self.objects.scan(ctl)
    }
}

/// CPU time of the process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).expect("not negative"),
        u32::try_from(time.tv_nsec).expect("below 10^9"),
    )
}

#[test]
fn a_fork_in_the_middle_of_a_workers_call_leaves_the_child_working_shrinkers() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a fork inside a shrinker");
    let group = Group::root().builder("in a call").max(MAX).build().expect("fresh");
    let held = Arc::new(Held {
        objects: Hoard::new(Vec::new()),
        inside: AtomicU32::new(0),
        go_on: AtomicBool::new(false),
    });
    let registration = ShrinkerBuilder::new("held").register(held.clone());
    let fill = || {
        let mut objects = held.objects.lock();
        while let Some(object) = memcg::no_reclaim(|| Raw::in_group(&group, 4096)) {
            memcg::unaccounted(|| objects.push(object));
        }
    };
    fill();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Two allocations that wait for it, and one that asks for reclaim by name.
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        drop(Raw::in_group(&group, 60_000));
                    }
                })
            })
            .collect();
        let asker = scope.spawn(|| drop(group.reclaim(MAX)));
        let ends = (Sets(&held.go_on), Sets(&stop));
        while held.inside.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        for turn in 0..10 {
            thread::sleep(Duration::from_millis(turn));
            fork_and(|| {
                memcg::check();
                held.go_on.store(true, Ordering::SeqCst);
                // The worker of the parent is not here; the child's own asks the shrinker. A
                // loaded machine may take its time to run it.
                group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
                let second = group.create("second").expect("fresh");
                let object = Raw::in_group(&group, 60_000).expect("the child evicts by itself");
                assert_eq!(Group::of(object.as_ptr()), Some(group.clone()));
                drop((object, second));
                group.force_empty().expect("everything goes");
                assert_eq!(held.objects.lock().len(), 0);
                memcg::drain();
                assert_eq!(group.usage(), 0);
                // Ticks end after 1.5 s or so; whoever finds no work sleeps.
                let start = cpu_time();
                thread::sleep(Duration::from_millis(300));
                let spent = cpu_time() - start;
                assert!(
                    spent < Duration::from_millis(100),
                    "the child is busy for nothing: {spent:?}"
                );
                memcg::check();
            });
        }
        drop(ends);
        for waiter in waiters {
            waiter.join().expect("no panic");
        }
        asker.join().expect("no panic");
    });
    group.force_empty().expect("everything goes");
    drop(registration);
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

#[test]
fn an_unregistration_in_the_child_does_not_wait_for_a_call_that_is_not_there() {
    let _alone = alone();
    let _watchdog = Watchdog::new("an unregistration in a child");
    let group = Group::root().builder("in a call, too").max(MAX).build().expect("fresh");
    let held = Arc::new(Held {
        objects: Hoard::new(Raw::in_group(&group, 4096).into_iter().collect()),
        inside: AtomicU32::new(0),
        go_on: AtomicBool::new(false),
    });
    let mut registration = Some(ShrinkerBuilder::new("held").register(held.clone()));
    thread::scope(|scope| {
        let asker = scope.spawn(|| drop(group.reclaim(MAX)));
        while held.inside.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let _ends = Sets(&held.go_on);
        let (held, registration) = (&held, &mut registration);
        fork_and(move || {
            drop(registration.take());
            assert_eq!(Arc::strong_count(held), 1, "the call ended with its thread");
        });
        drop(asker);
    });
}

// ---- commands ------------------------------------------------------------------------------------------

#[test]
fn commands_are_spawned_with_a_pre_exec_that_allocates() {
    let _alone = alone();
    let _watchdog = Watchdog::new("commands");
    let busy = Busy::new("commands");
    for turn in 0..20 {
        let group = busy.groups[turn % 4].clone();
        let mut command = Command::new("true");
        // SAFETY: the closure only allocates and frees, which the allocator promises to allow.
        unsafe {
            command.pre_exec(move || {
                let text =
                    format!("{turn} and something that does not fit a small object: {group:?}");
                let object = memcg::unaccounted(|| Raw::new(100_000));
                let copy = text.repeat(100);
                if object.is_some() && copy.len() == 100 * text.len() {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::OutOfMemory.into())
                }
            });
        }
        assert!(command.status().expect("it ran").success());
        // The quick way, which does not fork.
        assert!(Command::new("true").status().expect("it ran").success());
    }
}
