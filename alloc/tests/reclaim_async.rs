//! Reclaim that goes on by itself: what comes of it, and whom it leaves alone.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cache, Cause, Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::future::block_on;
use support::{PATIENCE, Raw, alone, fork_and, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: u64 = 1 << 20;

/// A group with a cache of `mib` MiB in objects of about 4 KiB.
fn filled(name: &str, cache: &Cache<u64, Vec<u8>>, mib: u64) -> Group {
    let group = Group::root().create(name).expect("fresh");
    for key in 0..mib * 256 {
        group.run(|| cache.insert(key, vec![1; 4000])).expect("no limit");
    }
    assert!(group.usage() >= mib * 1_000_000);
    group
}

#[test]
fn it_gets_what_was_asked_for_and_says_how_much() {
    let _running = running();
    let cache = Cache::new("met");
    let group = filled("met", &cache, 24);
    let before = group.stat().usage;
    let task = group.reclaim_async(16 * MIB);
    let mut last = 0;
    while !task.is_done() {
        let now = task.progress();
        assert!(now >= last, "progress never runs backwards");
        last = now;
        thread::yield_now();
    }
    let got = task.wait(PATIENCE).expect("it is done").expect("there was enough");
    assert!(got >= 16 * MIB && task.progress() == got);
    assert!(group.stat().usage <= before - 16 * MIB);
    assert_eq!(block_on(task).expect("the same again"), got);
    assert!(!cache.is_empty(), "not everything went");
}

#[test]
fn what_is_not_there_is_not_got() {
    let _running = running();
    let cache = Cache::new("short");
    let group = filled("short", &cache, 2);
    let error = block_on(group.reclaim_async(64 * MIB)).expect_err("there is not so much");
    assert!(error.is_again() && error.reclaimed() >= 2_000_000, "{error:?}");
    assert_eq!((error.requested(), cache.len()), (64 * MIB, 0));
    assert!(error.to_string().contains("/short: "), "{error}");
    assert_eq!(block_on(group.reclaim_async(0)).expect("nothing is always there"), 0);
}

#[test]
fn a_detached_task_goes_on() {
    let _running = running();
    let cache = Cache::new("detached");
    let group = filled("detached", &cache, 8);
    drop(group.reclaim_async(64 * MIB));
    let start = Instant::now();
    while !cache.is_empty() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
}

/// It gives one object of 100 KiB at each scan, and takes its time.
struct Slow {
    objects: Mutex<Vec<Raw>>,
    group: &'static str,
    pause: Duration,
    causes: Mutex<Vec<Cause>>,
    scans: AtomicUsize,
}

impl Slow {
    fn new(group: &Group, name: &'static str, nr: usize) -> Arc<Self> {
        let objects = (0..nr).map(|_| Raw::in_group(group, 100_000).expect("fits")).collect();
        Arc::new(Self {
            objects: Mutex::new(objects),
            group: name,
            pause: Duration::from_millis(5),
            causes: Mutex::new(Vec::new()),
            scans: AtomicUsize::new(0),
        })
    }
}

impl Shrinker for Slow {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if ctl.group().name() != self.group {
            return Count::Empty;
        }
        Count::Objects(self.objects.lock().expect("sound").len())
    }
    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        thread::sleep(self.pause);
        ctl.set_nr_scanned(1);
        self.scans.fetch_add(1, Ordering::Relaxed);
        memcg::unaccounted(|| self.causes.lock().expect("sound").push(ctl.cause()));
        let object = self.objects.lock().expect("sound").pop();
        Scan::Freed(usize::from(object.is_some()))
    }
}

#[test]
fn cancelling_ends_it_with_what_it_got() {
    let _running = running();
    let group = Group::root().create("cancelled").expect("fresh");
    let slow = Slow::new(&group, "cancelled", 400);
    let _registration = ShrinkerBuilder::new("slow").register(slow.clone());
    let task = group.reclaim_async(1 << 40);
    let start = Instant::now();
    while slow.scans.load(Ordering::Relaxed) < 3 {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
    assert!(task.wait(Duration::from_millis(1)).is_none(), "400 objects take two seconds");
    task.cancel();
    let error = task.wait(PATIENCE).expect("it ends").expect_err("cancelled");
    assert!(error.is_cancelled() && error.reclaimed() >= 300_000, "{error:?}");
    assert!(slow.causes.lock().expect("sound").iter().all(|&cause| cause == Cause::Proactive));
    assert!(!slow.objects.lock().expect("sound").is_empty(), "some are left");
    task.cancel();
}

#[test]
fn it_ends_with_its_group() {
    let _running = running();
    let group = Group::root().create("gone").expect("fresh");
    let slow = Slow::new(&group, "gone", 400);
    let _registration = ShrinkerBuilder::new("slow").register(slow.clone());
    let task = group.reclaim_async(1 << 40);
    let start = Instant::now();
    while slow.scans.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
    drop(group);
    let error = block_on(task).expect_err("the group went");
    assert!(error.is_gone() && error.to_string().contains("/gone"), "{error:?}");
    assert!(Group::lookup("/gone").is_none(), "the task keeps no handle");
}

#[test]
fn allocations_that_wait_come_between_the_turns_of_a_task() {
    let _running = running();
    let group = Group::root().create("long").expect("fresh");
    let slow = Slow::new(&group, "long", 600);
    let _registration = ShrinkerBuilder::new("slow").register(slow.clone());
    let tenant = Group::root().builder("waits").max(MIB).build().expect("fresh");
    tenant.set_deadline(Duration::from_secs(20), Duration::from_secs(20));
    let cache = Cache::<u64, Vec<u8>>::new("waits");
    let task = group.reclaim_async(1 << 40);
    for key in 0..2000 {
        tenant.run(|| cache.insert(key, vec![0; 2000])).expect("the worker makes room in time");
        if task.is_done() {
            break;
        }
    }
    assert!(cache.stat().evictions > 0, "it was at its limit");
    // And so do other tasks.
    let other_cache = Cache::new("other");
    let other = filled("other", &other_cache, 4);
    let got = other.reclaim_async(MIB).wait(PATIENCE).expect("it ends");
    assert!(got.expect("there is enough") >= MIB);
    task.cancel();
    assert!(task.wait(PATIENCE).is_some());
}

#[test]
fn many_tasks_all_end() {
    let _running = running();
    let caches: Vec<_> = (0..20).map(|_| Cache::new("many")).collect();
    let fill = |(nr, cache)| filled(&format!("many-{nr}"), cache, 1);
    let groups: Vec<Group> = caches.iter().enumerate().map(fill).collect();
    let tasks: Vec<_> = groups
        .iter()
        .flat_map(|group| [group.reclaim_async(MIB / 4), group.reclaim_async(MIB / 4)])
        .collect();
    for task in tasks {
        assert!(block_on(task).expect("there is enough") >= MIB / 4);
    }
}

#[test]
fn the_child_of_a_fork_finds_its_tasks_cancelled_and_makes_its_own() {
    let _alone = alone();
    let group = Group::root().create("forked").expect("fresh");
    let slow = Slow::new(&group, "forked", 400);
    let registration = ShrinkerBuilder::new("slow").register(slow.clone());
    let task = group.reclaim_async(1 << 40);
    let start = Instant::now();
    while slow.scans.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < PATIENCE);
        thread::yield_now();
    }
    let others = Group::root().create("others").expect("fresh");
    let in_child = AtomicBool::new(false);
    fork_and(|| {
        in_child.store(true, Ordering::Relaxed);
        let error = task.wait(PATIENCE).expect("it is over here").expect_err("cancelled");
        assert!(error.is_cancelled(), "{error:?}");
        let cache = Cache::new("child");
        for key in 0..1000_u64 {
            others.run(|| cache.insert(key, vec![0_u8; 2000])).expect("no limit");
        }
        let own = others.reclaim_async(MIB).wait(PATIENCE).expect("it ends");
        assert!(own.expect("there is enough") >= MIB);
    });
    assert!(!task.is_done(), "the parent's goes on");
    task.cancel();
    assert!(task.wait(PATIENCE).is_some());
    drop(registration);
}
