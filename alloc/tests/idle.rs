//! What idle threads cache is given back with time, whoever had their records before, and in the child of
//! a fork.

mod support;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

static GROUP: OnceLock<Group> = OnceLock::new();
/// Usage as the idle thread left it, with what it caches.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Long enough for any machine.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not yet");
        thread::sleep(Duration::from_millis(10));
    }
}

fn group() -> &'static Group {
    GROUP.get().expect("made first")
}

extern "C" fn short(_: *mut c_void) -> *mut c_void {
    drop(group().run(|| vec![0_u8; 100]));
    std::ptr::null_mut()
}

extern "C" fn idle(_: *mut c_void) -> *mut c_void {
    drop(group().run(|| vec![0_u8; 100]));
    LEFT.store(group().usage(), Ordering::SeqCst);
    loop {
        thread::sleep(Duration::from_secs(1000));
    }
}

/// A thread of C's: nobody allocates for it.
fn start(run: extern "C" fn(*mut c_void) -> *mut c_void) -> libc::pthread_t {
    let (mut thread, nothing) = (0, std::ptr::null_mut());
    // SAFETY: the place is valid, and `run` wants no argument.
    let started = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), run, nothing) };
    assert_eq!(started, 0, "pthread_create");
    thread
}

#[test]
fn garbage_of_a_thread_goes_with_time_whoever_had_its_record_before() {
    let _alone = alone();
    assert!(GROUP.set(Group::root().create("idle").expect("fresh")).is_ok());
    let before = start(short);
    // SAFETY: the thread is ours, and joined once.
    assert_eq!(unsafe { libc::pthread_join(before, std::ptr::null_mut()) }, 0);
    // Ticks end: nobody passes a slow path.
    thread::sleep(Duration::from_secs(4));
    start(idle);
    wait_for("the thread has been there", || LEFT.load(Ordering::SeqCst) != 0);
    wait_for("an idle thread keeps nothing for long", || group().usage() == 0);
}

struct Nothing;

impl Shrinker for Nothing {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Empty
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        Scan::Freed(0)
    }
}

#[test]
fn garbage_of_a_child_goes_with_time() {
    let _alone = alone();
    let group = Group::root().create("forked").expect("fresh");
    drop(group.run(|| vec![0_u8; 100]));
    fork_and(|| {
        // A worker, and so a keeper.
        let _registration = ShrinkerBuilder::new("nothing").register(Arc::new(Nothing));
        drop(group.run(|| vec![0_u8; 100]));
        wait_for("the child keeps nothing for long", || group.usage() == 0);
    });
}
