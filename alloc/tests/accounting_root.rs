//! `Memcg::accounting_root`: what is in no group is charged to the root, which takes limits.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use memcg::{Group, Limit, OnLimit};
use support::{Random, Raw, is_case, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::accounting_root();

/// Runs each test in a process of its own: all of them look at the root, which is everybody's.
fn alone_in_a_process(name: &str, test: impl FnOnce()) {
    if is_case(name) {
        until_others_sleep();
        test();
        at_rest();
    } else {
        support::pass(name, name);
    }
}

/// Waits until the harness waits for the test: before that it allocates, and ends the process where the root is full.
fn until_others_sleep() {
    // SAFETY: it only answers.
    let own = unsafe { libc::gettid() }.to_string();
    let others_sleep = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
        let others = tasks.flatten().filter(|task| task.file_name().to_string_lossy() != own);
        others.into_iter().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('S') || rest.is_empty())
        })
    };
    let start = std::time::Instant::now();
    while !others_sleep() {
        assert!(start.elapsed() < support::PATIENCE, "another thread is at work");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What the harness and the keeper allocate meanwhile is the root's, too.
const NOISE: u64 = 16 << 10;

/// Checks every invariant at a moment at which no other thread is at work.
fn at_rest() {
    let mut turns = 0;
    while let Err(panic) = std::panic::catch_unwind(memcg::check) {
        turns += 1;
        if turns == 20 {
            std::panic::resume_unwind(panic);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_is_in_no_group_is_the_roots() {
    alone_in_a_process("what_is_in_no_group_is_the_roots", || {
        let root = Group::root();
        assert!(memcg::is_installed());
        assert_eq!(Group::lookup("/"), Some(root.clone()));
        let before = root.stat();
        let small = Raw::new(1000).expect("no limit");
        let large = Raw::new(1 << 20).expect("no limit");
        assert_eq!(Group::of(small.as_ptr()), Some(root.clone()));
        assert_eq!(Group::of(large.as_ptr()), Some(root.clone()));
        let after = root.stat();
        assert!((after.slab - before.slab).abs_diff(1024) < NOISE);
        assert_eq!(after.large - before.large, 1 << 20);
        assert_eq!(after.usage, after.slab + after.large);
        drop((small, large));
        assert!(root.stat().usage.abs_diff(before.usage) < NOISE, "as before");
        assert!(root.peak() >= before.usage + (1 << 20));

        let free = memcg::unaccounted(|| {
            assert_eq!(Group::current(), root);
            (Raw::new(1000).expect("no limit"), Raw::new(1 << 20).expect("no limit"))
        });
        assert_eq!(Group::of(free.0.as_ptr()), None);
        assert_eq!(Group::of(free.1.as_ptr()), None);
        assert!(root.stat().usage.abs_diff(before.usage) < NOISE, "nobody's");
        let again = memcg::unaccounted(|| root.run(|| Raw::new(1000))).expect("no limit");
        assert_eq!(Group::of(again.as_ptr()), Some(root), "entered inside, it is charged again");
    });
}

#[test]
fn groups_are_charged_to_the_root_as_well_and_leave_it_what_they_had() {
    alone_in_a_process("groups_are_charged_to_the_root_as_well_and_leave_it_what_they_had", || {
        let root = Group::root();
        let group = root.builder("tenant").max(4 << 20).build().expect("fresh");
        let child = group.create("child").expect("fresh");
        let before = root.stat().usage;
        let objects: Vec<Raw> = memcg::unaccounted(|| {
            (0..100).filter_map(|i| Raw::in_group(&child, 1 + 500 * i)).collect()
        });
        assert_eq!(objects.len(), 100);
        let charged = group.stat().usage;
        assert!(charged > 0);
        assert!((root.stat().usage - before).abs_diff(charged) < NOISE);
        drop((group, child));
        assert_eq!(Group::lookup("/tenant"), None);
        assert_eq!(Group::of(objects[7].as_ptr()), Some(root.clone()));
        assert_eq!(Group::of(objects[99].as_ptr()), Some(root.clone()));
        let left = root.stat().usage - before;
        assert!(left.abs_diff(charged) < NOISE, "a group that went left it to the root");
        assert!(root.stat().nr_contexts >= 1);
        // Freed elsewhere.
        memcg::unaccounted(|| thread::spawn(move || drop(objects)).join().expect("no panic"));
        let after = root.stat();
        assert!(after.usage < before + NOISE, "{after:?}, {before} before");
        assert_eq!(after.nr_contexts, 0);
    });
}

#[test]
fn the_root_has_limits_for_the_whole_process() {
    alone_in_a_process("the_root_has_limits_for_the_whole_process", || {
        let root = Group::root();
        let group = root.create("inside").expect("fresh");
        memcg::drain();
        let max = root.usage() + (2 << 20);
        root.set_max(max).expect("above usage");
        assert_eq!(root.max(), Limit::from(max));
        let mut random = Random::new(1);
        let mut held = memcg::unaccounted(|| Vec::with_capacity(100_000));
        let mut refused = 0;
        while refused < 100 {
            let size = 1 + random.below(5000);
            let object =
                if random.below(2) == 0 { Raw::new(size) } else { Raw::in_group(&group, size) };
            assert!(root.usage() <= max);
            match object {
                Some(object) => held.push(object),
                None => refused += 1,
            }
        }
        assert!(root.usage() > max - 8192, "full to the brim");
        assert!(root.events().oom >= 100);
        assert_eq!(root.events().forced, 0);
        assert_eq!(root.events_local().oom, root.events().oom, "it is the root that refused");
        let mut value = Vec::<u8>::new();
        assert!(value.try_reserve_exact(1 << 20).is_err());
        assert!(Raw::in_group(&group, 10 << 10).is_none());
        // Nobody's memory is under no limit.
        assert!(memcg::unaccounted(|| Raw::new(8 << 20)).is_some());
        memcg::unaccounted(|| drop(held));
        assert!(value.try_reserve_exact(1 << 20).is_ok(), "a free makes room at once");
        drop(value);
        root.set_max(Limit::Max).expect("no limit");

        // Overcommitted, counted, and back.
        memcg::drain();
        root.set_on_limit(OnLimit::Overcommit);
        root.set_max(root.usage() + 4096).expect("above usage");
        let over = Raw::new(1 << 20).expect("let through");
        assert!(root.check().is_err());
        assert!(memcg::fallible(|| Raw::new(1 << 20)).is_none());
        assert!(root.events().forced >= 1);
        drop(over);
        root.set_max(Limit::Max).expect("no limit");
        assert!(root.check().is_ok());
        root.set_on_limit(OnLimit::Fail);
    });
}

#[test]
fn a_root_limit_below_usage_is_busy_and_stands() {
    alone_in_a_process("a_root_limit_below_usage_is_busy_and_stands", || {
        let root = Group::root();
        let _pinned = Raw::new(4 << 20).expect("no limit");
        memcg::unaccounted(|| {
            let error = root.set_max(1 << 20).expect_err("in use");
            assert!(error.is_busy(), "{error}");
            assert!(error.usage() > 4 << 20);
            assert_eq!(root.max(), Limit::from(1 << 20));
        });
        assert!(Raw::new(100_000).is_none());
        root.set_max(Limit::Max).expect("no limit");
        assert!(Raw::new(100_000).is_some());
    });
}

const ABORT: &str = "an_infallible_allocation_over_the_root_limit_aborts_with_the_message";

#[test]
fn an_infallible_allocation_over_the_root_limit_aborts_with_the_message() {
    if is_case(ABORT) {
        let root = Group::root();
        memcg::drain();
        root.set_max(root.usage() + (1 << 20)).expect("above usage");
        let mut small = Vec::<Box<[u8; 100]>>::new();
        loop {
            small.push(Box::new([1; 100]));
        }
    }
    for backtrace in ["0", "1", "full"] {
        let ended = run(rerun(ABORT, ABORT).env("RUST_BACKTRACE", backtrace));
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:#?}");
        // A backtrace finds no memory either, but the message is out before it.
        let line = ended.stderr.lines().next().unwrap_or_default();
        let is_message =
            line.starts_with("memory allocation of ") && line.ends_with(" bytes failed");
        assert!(is_message, "{ended:#?}");
    }
}
