//! What idle threads cache is given back with time, whoever had their records before, and in the child of
//! a fork; and so are the pages that it was in.

mod support;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

static GROUP: OnceLock<Group> = OnceLock::new();
/// Usage as the idle thread left it, with what it caches.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Waits until it is so, long enough for any machine; answers whether it is.
fn comes(is_so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    assert!(comes(is_so), "{what}: not yet");
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

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with("Rss:")).expect("the kernel names it");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// Allocates and frees so many objects of small classes, which makes their magazines as large as that takes.
fn churn(objects: usize) {
    fn of<const N: usize>(objects: usize) {
        for _ in 0..4 {
            drop((0..objects).map(|_| Box::new([0_u8; N])).collect::<Vec<_>>());
        }
    }
    of::<8>(objects);
    of::<16>(objects);
    of::<24>(objects);
    of::<32>(objects);
}

#[test]
fn pages_of_magazines_go_back_when_threads_are_idle_or_gone() {
    const THREADS: usize = 64;
    /// What their stacks and records take, and less than the pages of magazines beside it.
    const FEW_KIB: u64 = 9_000;
    let _alone = alone();
    // Ticks are for groups: somebody must look at tags.
    let _group = Group::root().create("pages").expect("fresh");
    let turn = Barrier::new(THREADS + 1);
    let mut before = 0;
    for stays in [true, false] {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    // As much of the stack as there will be.
                    churn(10);
                    turn.wait();
                    turn.wait();
                    churn(10_000);
                    turn.wait();
                    turn.wait();
                });
            }
            turn.wait();
            before = resident_kib();
            turn.wait();
            turn.wait();
            println!("{before} KiB before, {} after", resident_kib());
            let comes = !stays || comes(|| resident_kib() < before + FEW_KIB);
            turn.wait();
            assert!(comes, "idle threads have no pages: not yet");
        });
    }
    wait_for("threads that ended have no pages", || resident_kib() < before + FEW_KIB);
}
