//! Pressure: who waited, for how long, and what does not count.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{PATIENCE, Raw, Sets, Watchdog, fork_and, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MAX: u64 = 1 << 20;

/// It has something in the groups named `waits`, and takes long to give nothing.
struct Slow;

impl Shrinker for Slow {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if ctl.group().name() == "waits" { Count::Objects(1000) } else { Count::Empty }
    }
    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        thread::sleep(Duration::from_millis(30));
        Scan::Stop
    }
}

/// A group in which a refused allocation waits for some tens of milliseconds.
fn waiting_group(parent: &str) -> (Group, Group) {
    let top = Group::root().create(parent).expect("fresh");
    let group = top.builder("waits").max(MAX).build().expect("fresh");
    group.set_deadline(Duration::from_millis(60), Duration::from_millis(60));
    (top, group)
}

/// One refusal, of an object that is no larger than the limit; answers how long it took, in
/// microseconds.
fn refuse(group: &Group) -> u64 {
    let pinned = Raw::in_group(group, 600_000).expect("fits");
    let start = Instant::now();
    assert!(Raw::in_group(group, 600_000).is_none());
    let took = start.elapsed();
    drop(pinned);
    u64::try_from(took.as_micros()).expect("short")
}

#[test]
fn time_that_a_refusal_took_is_counted_in_the_group_and_above() {
    let _running = running();
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let (top, group) = waiting_group("counted");
    assert_eq!(group.pressure(), memcg::Pressure::default(), "nothing before the first stall");
    let mut took = 0;
    for turn in 1..=5 {
        took += refuse(&group);
        let some = group.pressure().some.total;
        assert!(some <= took, "turn {turn}: {some} of {took} µs");
        assert!(some >= 10_000 * turn, "turn {turn}: {some} µs, though each waits for a scan");
    }
    let (own, above) = (group.pressure(), top.pressure());
    assert_eq!(own.some.total, above.some.total, "a child's stall counts above");
    assert!(own.full.total <= own.some.total);
    assert!(own.full.total > own.some.total / 2, "nobody else is inside: {own:?}");
    let sibling = top.create("sibling").expect("fresh");
    assert_eq!(sibling.pressure().some.total, 0);
    // Averages move every two seconds.
    let start = Instant::now();
    while group.pressure().some.avg10 == 0.0 {
        assert!(start.elapsed() < PATIENCE, "{:?}", group.pressure());
        thread::sleep(Duration::from_millis(50));
    }
    let some = group.pressure().some;
    assert!(some.avg10 > some.avg60 && some.avg60 > some.avg300 && some.avg300 > 0.0, "{some:?}");
    assert!(some.avg10 < 100.0);
    drop(group);
    assert!(top.pressure().some.total >= above.some.total, "it does not go with the child");
}

#[test]
fn full_is_time_in_which_all_inside_wait() {
    let _running = running();
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let (top, group) = waiting_group("full");
    let end = AtomicBool::new(false);
    let is_in = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let sibling = top.create("busy").expect("fresh");
            let _entered = sibling.enter();
            is_in.store(true, Ordering::Release);
            while !end.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
        });
        let _end = Sets(&end);
        while !is_in.load(Ordering::Acquire) {
            thread::yield_now();
        }
        for _ in 0..3 {
            refuse(&group);
        }
        let (own, above) = (group.pressure(), top.pressure());
        assert!(own.some.total > 0 && own.full.total > own.some.total / 2, "{own:?}");
        assert_eq!(above.some.total, own.some.total);
        assert_eq!(above.full.total, 0, "the sibling's thread is inside the parent, and busy");
    });
    refuse(&group);
    assert!(top.pressure().full.total > 0, "it has left");
}

#[test]
fn what_is_asked_for_by_name_is_no_pressure() {
    let _running = running();
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let (_top, group) = waiting_group("by-name");
    let pinned = Raw::in_group(&group, 600_000).expect("fits");
    assert!(group.reclaim(100_000).is_err());
    assert!(group.shrink_to(1000).is_err());
    assert!(group.set_max(1000).is_err());
    assert!(group.reclaim_async(100_000).wait(PATIENCE).expect("it ends").is_err());
    assert_eq!(group.pressure(), memcg::Pressure::default());
    assert_eq!((group.events().max, group.events().high, group.events().oom), (0, 0, 0));
    drop(pinned);
}

#[test]
fn threads_that_wait_together_count_once() {
    let _running = running();
    let _watchdog = Watchdog::new("waits together");
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let (top, group) = waiting_group("together");
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    drop(Raw::in_group(&group, 2 << 20));
                    drop(Raw::in_group(&group, 900_000).inspect(|_| {
                        drop(Raw::in_group(&group, 900_000));
                    }));
                }
            });
        }
    });
    let elapsed = u64::try_from(start.elapsed().as_micros()).expect("short");
    let (own, above) = (group.pressure(), top.pressure());
    assert!(own.some.total > 0 && own.some.total <= elapsed, "{own:?} in {elapsed} µs");
    assert_eq!(own.some.total, above.some.total);
    let before = group.pressure().some.total;
    thread::sleep(Duration::from_millis(20));
    assert_eq!(group.pressure().some.total, before, "all stalls have ended");
}

#[test]
fn the_child_of_a_fork_is_not_stalled_by_threads_that_it_does_not_have() {
    let _running = running();
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let (_top, group) = waiting_group("forked");
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Acquire) {
                refuse(&group);
            }
        });
        let _end = Sets(&end);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(15));
            fork_and(|| {
                let before = group.pressure();
                thread::sleep(Duration::from_millis(5));
                assert_eq!(group.pressure().some.total, before.some.total);
            });
        }
    });
}
