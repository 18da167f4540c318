//! Threads come and go, at any moment, with anything cached; the process ends under their feet.

mod support;

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{Random, Raw, Watchdog, alone, is_case, rerun, run, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn group(name: &str) -> Group {
    Group::root().create(name).expect("a fresh name")
}

/// Allocates and frees all sizes in `group`, and leaves magazines and stock full.
fn fill_caches(group: &Group) {
    let mut random = Random::new(7);
    let objects: Vec<Option<Raw>> =
        (0..500).map(|_| Raw::in_group(group, 1 + random.below(80_000))).collect();
    drop(objects);
}

#[test]
fn a_thread_that_ends_gives_back_what_it_cached() {
    let _running = running();
    let groups: Vec<Group> = (0..10).map(|i| group(&format!("ended {i}"))).collect();
    thread::scope(|scope| {
        scope.spawn(|| groups.iter().for_each(fill_caches)).join().expect("no panic");
    });
    // The scope's end does not wait for the destructors of thread-locals; an idle drain may also
    // have come by. Nothing is drained here.
    let start = Instant::now();
    while groups.iter().any(|group| group.usage() != 0) && start.elapsed() < Duration::from_secs(60)
    {
        thread::sleep(Duration::from_millis(1));
    }
    for group in &groups {
        assert_eq!(group.usage(), 0, "{group:?}");
    }
}

#[test]
fn joined_threads_have_given_everything_back_without_a_drain() {
    let _running = running();
    let group = Group::root().builder("joined").max(1 << 20).build().expect("fresh");
    for _ in 0..50 {
        let inner = group.clone();
        thread::spawn(move || fill_caches(&inner)).join().expect("no panic");
        assert_eq!(group.usage(), 0, "the thread has ended, its destructors too");
    }
}

// ---- destructors of a thread's own ---------------------------------------------------------------

/// Allocates and frees in a group when its thread ends.
struct Late {
    group: Group,
    kept: Vec<Raw>,
}

/// What late destructors allocated, to be freed elsewhere.
static SURVIVORS: Mutex<Vec<Raw>> = Mutex::new(Vec::new());

fn survivors<R>(f: impl FnOnce(&mut Vec<Raw>) -> R) -> R {
    memcg::unaccounted(|| f(&mut SURVIVORS.lock().unwrap_or_else(PoisonError::into_inner)))
}

impl Drop for Late {
    fn drop(&mut self) {
        self.kept.clear();
        fill_caches(&self.group);
        let object = Raw::in_group(&self.group, 1000).expect("no limit");
        assert_eq!(Group::of(object.as_ptr()), Some(self.group.clone()));
        survivors(|survivors| survivors.push(object));
    }
}

thread_local! {
    static FIRST: RefCell<Option<Late>> = const { RefCell::new(None) };
    static SECOND: RefCell<Option<Late>> = const { RefCell::new(None) };
}

#[test]
fn destructors_of_thread_locals_allocate_and_free() {
    let _running = running();
    let group = group("thread-locals");
    survivors(Vec::clear);
    for _ in 0..20 {
        let group = group.clone();
        let thread = thread::spawn(move || {
            // The first is registered before anything was allocated by this closure.
            let late = |group: &Group| {
                let kept = (0..10).filter_map(|_| Raw::in_group(group, 5000)).collect();
                Late { group: group.clone(), kept }
            };
            FIRST.set(Some(late(&group)));
            SECOND.set(Some(late(&group)));
        });
        thread.join().expect("no panic");
    }
    assert_eq!(group.stat().usage, 40 * 1024, "what the destructors left lives");
    survivors(Vec::clear);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

/// A key of `pthread`, made by the test: its destructor runs before the allocator's own in the first round, and
/// after it in the others.
static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
static KEY_GROUP: OnceLock<Group> = OnceLock::new();
static KEY_CALLS: AtomicU32 = AtomicU32::new(0);
static KEY_FAILED: AtomicBool = AtomicBool::new(false);

/// Rounds in which the destructor sets its key again: `PTHREAD_DESTRUCTOR_ITERATIONS` are 4.
const ROUNDS: usize = 3;

extern "C" fn at_thread_exit(value: *mut c_void) {
    let done = std::panic::catch_unwind(|| {
        KEY_CALLS.fetch_add(1, Ordering::Relaxed);
        let group = KEY_GROUP.get().expect("set before the threads start");
        fill_caches(group);
        let object = Raw::in_group(group, 64).expect("no limit");
        assert_eq!(Group::of(object.as_ptr()), Some(group.clone()));
        // The thread's scope was leaked, and still says who pays.
        let value = Box::new([0_u8; 100]);
        assert_eq!(Group::of(&raw const *value), Some(group.clone()));
        survivors(|survivors| survivors.push(object));
    });
    if done.is_err() {
        KEY_FAILED.store(true, Ordering::Relaxed);
    }
    if value.addr() < ROUNDS {
        set_key(value.addr() + 1);
    }
}

fn set_key(round: usize) {
    let key = *KEY.get().expect("the key was made");
    // SAFETY: the key exists; the value is a number and leads nowhere.
    let answer = unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(round)) };
    assert_eq!(answer, 0);
}

#[test]
fn destructors_of_pthread_keys_allocate_and_free_after_the_thread_gave_up_its_caches() {
    // Alone: survivors are one list.
    let _alone = alone();
    let group = group("keys");
    KEY_GROUP.set(group.clone()).expect("once");
    let mut key = 0;
    // SAFETY: `key` is a valid place, and the destructor is a function of this program.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(at_thread_exit)) }, 0);
    KEY.set(key).expect("once");
    survivors(Vec::clear);
    for _ in 0..20 {
        let inner = group.clone();
        let thread = thread::spawn(move || {
            set_key(1);
            fill_caches(&inner);
            std::mem::forget(inner.enter());
        });
        thread.join().expect("no panic");
    }
    assert!(!KEY_FAILED.load(Ordering::Relaxed), "an assertion in a destructor");
    assert_eq!(KEY_CALLS.load(Ordering::Relaxed), 20 * 3);
    assert_eq!(group.usage(), 60 * 64, "a thread without a record caches nothing");
    survivors(Vec::clear);
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

#[test]
fn a_group_whose_last_handle_goes_in_a_late_destructor_is_gone() {
    let _running = running();
    let parent = group("late parent");
    let child = parent.create("late child").expect("fresh");
    let thread = thread::spawn(move || {
        let kept = child.run(|| Raw::new(300).into_iter().collect());
        FIRST.set(Some(Late { group: child, kept }));
    });
    thread.join().expect("no panic");
    assert_eq!(Group::lookup("/late parent/late child"), None);
}

// ---- many threads -----------------------------------------------------------------------------------

#[test]
fn thousands_of_short_threads_reuse_their_records() {
    let _alone = alone();
    let _watchdog = Watchdog::new("short threads");
    let group = Group::root().builder("short").max(16 << 20).build().expect("fresh");
    let generation = |n: usize| {
        for _ in 0..n {
            let start = |_| {
                let group = group.clone();
                thread::spawn(move || {
                    let _scope = group.enter();
                    drop(vec![1_u8; 300]);
                    drop(vec![1_u8; 100_000]);
                })
            };
            let threads: Vec<_> = (0..4).map(start).collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
        }
    };
    generation(100);
    memcg::drain();
    let before = memcg::self_stat();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memcg::drain();
                thread::sleep(Duration::from_millis(1));
            }
        });
        generation(750);
        stop.store(true, Ordering::Relaxed);
    });
    memcg::drain();
    let after = memcg::self_stat();
    // At most four threads are there at once, and the drainer; before, fewer may have met. And jemalloc
    // may have come to another GiB, whose large objects have a leaf of the map.
    let (record, leaf) = (224 << 10, 2 << 20);
    assert!(after.metadata <= before.metadata + 8 * record + leaf, "{before:?} {after:?}");
    assert_eq!(group.usage(), 0);
    memcg::check();
}

#[test]
fn a_thread_that_only_frees_keeps_nothing_back() {
    let _running = running();
    let group = Group::root().builder("only frees").max(8 << 20).build().expect("fresh");
    let (sender, receiver) = mpsc::sync_channel::<Raw>(64);
    let freer = thread::spawn(move || {
        let mut nr = 0;
        while let Ok(object) = receiver.recv() {
            drop(object);
            nr += 1;
        }
        nr
    });
    let mut random = Random::new(3);
    for _ in 0..20_000 {
        let most = if random.below(50) == 0 { 100_000 } else { 2000 };
        let size = 1 + random.below(most);
        let object = Raw::in_group(&group, size).expect("what the other thread freed is found");
        sender.send(object).expect("it listens");
    }
    drop(sender);
    assert_eq!(freer.join().expect("no panic"), 20_000);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn an_idle_threads_garbage_goes_with_time() {
    let _running = running();
    let group = group("idle");
    fill_caches(&group);
    let (start, mut usage) = (Instant::now(), group.usage());
    // About 100 ms; nothing is drained by hand.
    while usage != 0 && start.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(20));
        usage = group.usage();
    }
    assert_eq!(usage, 0, "an idle thread keeps nothing for long");
}

// ---- the end of the process -------------------------------------------------------------------------

/// The status that the process of [`threads_may_run_while_the_process_ends`] ends with.
const ENDED: i32 = 23;

fn end_with_threads_running() -> ! {
    let group = Group::root().builder("detached").max(2 << 20).build().expect("fresh");
    for seed in 0..6 {
        let group = group.clone();
        thread::spawn(move || {
            let mut random = Random::new(seed);
            let mut held = Vec::new();
            loop {
                held.push(Raw::in_group(&group, 1 + random.below(100_000)));
                if held.len() > 20 {
                    held.swap_remove(random.below(held.len()));
                }
                if random.below(1000) == 0 {
                    thread::spawn(|| drop(vec![0_u8; 1000]));
                }
            }
        });
    }
    thread::spawn(|| {
        loop {
            memcg::drain();
        }
    });
    thread::sleep(Duration::from_millis(20));
    support::exit(ENDED)
}

#[test]
fn threads_may_run_while_the_process_ends() {
    if is_case("ends") {
        end_with_threads_running();
    }
    for _ in 0..10 {
        let ended = run(&mut rerun("threads_may_run_while_the_process_ends", "ends"));
        assert_eq!(ended.status.code(), Some(ENDED), "{ended:#?}");
    }
}
