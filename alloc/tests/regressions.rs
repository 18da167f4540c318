//! What once went wrong, each in the smallest form that shows it.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{Raw, Sets, Watchdog, alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[test]
fn what_grows_in_place_for_a_payer_that_went_to_nobody_is_charged_to_nobody() {
    let _alone = alone();
    let group = Group::root().create("goes").expect("fresh");
    let mut objects: Vec<Vec<u8>> =
        (0..10).map(|_| group.run(|| Vec::with_capacity(4 << 20))).collect();
    // Shrunk in place, so that there is room behind most of them.
    objects.iter_mut().for_each(|object| object.shrink_to(1 << 20));
    drop(group);
    let mut nr_in_place = 0;
    for object in &mut objects {
        let before = object.as_ptr();
        object.reserve_exact(2 << 20);
        if object.as_ptr() == before {
            nr_in_place += 1;
            assert_eq!(Group::of(before), None);
        }
    }
    assert!(nr_in_place > 0, "no object grew in place");
    drop(objects);
    memcg::drain();
    memcg::check();
}

/// Stays inside its first call until it may go on.
struct Stays {
    is_inside: AtomicBool,
    go_on: AtomicBool,
}

impl Shrinker for Stays {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Objects(1)
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        self.is_inside.store(true, Ordering::SeqCst);
        while !self.go_on.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Scan::Stop
    }
}

#[test]
fn a_thread_of_the_child_that_has_the_record_of_a_worker_caches() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a worker's record in the child");
    let group = Group::root().create("asks a worker").expect("fresh");
    let object = Raw::in_group(&group, 4096);
    let stays =
        Arc::new(Stays { is_inside: AtomicBool::new(false), go_on: AtomicBool::new(false) });
    let registration = ShrinkerBuilder::new("stays").register(stays.clone());
    thread::scope(|scope| {
        scope.spawn(|| group.reclaim(1 << 20));
        let _ends = Sets(&stays.go_on);
        while !stays.is_inside.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        fork_and(|| {
            let all = Barrier::new(8);
            thread::scope(|scope| {
                for i in 0..8 {
                    let all = &all;
                    scope.spawn(move || {
                        let own = Group::root().create(&format!("caches {i}")).expect("fresh");
                        all.wait();
                        let caches = (0..100).any(|_| {
                            drop(Raw::in_group(&own, 100));
                            own.usage() > 0
                        });
                        all.wait();
                        assert!(caches, "its frees are eager for ever");
                    });
                }
            });
        });
    });
    drop((registration, object));
}

#[test]
fn a_thread_whose_group_is_full_is_told_so_and_not_aborted() {
    let _alone = alone();
    let group = Group::root().builder("full").max(64 << 10).build().expect("fresh");
    let child = group.create("taken").expect("fresh");
    let mut held: Vec<Raw> = Vec::with_capacity(1 << 14);
    held.extend(std::iter::from_fn(|| Raw::in_group(&group, 8)));
    group.run(|| {
        assert!(group.reclaim(1).is_err_and(|error| error.is_again()));
        assert!(group.shrink_to(1).is_err_and(|error| error.is_busy()));
        assert!(group.create("taken").is_err_and(|error| error.is_exists()));
        assert!(group.create("a/b").is_err_and(|error| error.is_invalid()));
        assert!(Group::root().set_max(1).is_err_and(|error| error.is_unsupported()));
        drop(group.create("another").expect("a group is nobody's memory"));
        assert!(group.set_max(1).is_err_and(|error| error.is_busy()));
        let over = group.check().expect_err("it is over its limit");
        // Into what is there already.
        let mut text = [0_u8; 200];
        std::io::Write::write_fmt(&mut &mut text[..], format_args!("{over}")).expect("it fits");
        assert!(text.starts_with(b"usage of /full is over its max"));
    });
    drop((held, child));
    memcg::drain();
    assert_eq!(group.usage(), 0);
}
