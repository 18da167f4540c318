//! Threads that allocate, grow and free in any of their rounds of destructors of pthread keys, and leave nothing of
//! theirs behind: neither in jemalloc, whose list of threads the next ones go through, nor a record.

mod support;

use std::ffi::c_void;
use std::ptr;
use std::sync::OnceLock;
use std::thread;

use memcg::Group;
use support::{Raw, case, pass};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
static GROUP: OnceLock<Group> = OnceLock::new();

/// Has the calling thread's destructor work in round `rounds`; glibc has 4 of them.
fn arm(rounds: usize) {
    let key = *KEY.get().expect("the key was made");
    // SAFETY: the key exists; the value is a number and leads nowhere.
    assert_eq!(unsafe { libc::pthread_setspecific(key, ptr::without_provenance(rounds)) }, 0);
}

extern "C" fn at_exit(left: *mut c_void) {
    match left.addr() {
        1 => late_work(),
        left => arm(left - 1),
    }
}

/// All ways to jemalloc: a large object, in a group and in none, that grows and goes; a span.
fn late_work() {
    let group = GROUP.get().expect("set before the threads start");
    let grow = || {
        let mut value = vec![1_u8; 100_000];
        value.reserve_exact(300_000);
        assert!(value.iter().all(|&byte| byte == 1));
    };
    grow();
    group.run(grow);
    for size in [8, 1000, 65_536] {
        drop(Raw::in_group(group, size).expect("no limit"));
    }
    // More than jemalloc takes for a thread that does nothing but free.
    let freed: Vec<Raw> = (0..200).filter_map(|_| Raw::in_group(group, 70_000)).collect();
    assert_eq!(freed.len(), 200);
}

/// A thread that allocates nothing before its destructors.
extern "C" fn bare(rounds: *mut c_void) -> *mut c_void {
    arm(rounds.addr());
    ptr::null_mut()
}

fn run_bare(rounds: usize, stack: usize) {
    let mut attributes = std::mem::MaybeUninit::uninit();
    // SAFETY: it makes the attributes that it is given.
    assert_eq!(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) }, 0);
    // SAFETY: they were made above.
    assert_eq!(unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack) }, 0);
    let mut thread = 0;
    let rounds = ptr::without_provenance_mut(rounds);
    // SAFETY: the attributes were made above; the argument is a number.
    let made = unsafe { libc::pthread_create(&raw mut thread, attributes.as_ptr(), bare, rounds) };
    assert_eq!(made, 0);
    // SAFETY: the thread was created above and is joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, ptr::null_mut()) }, 0);
    // SAFETY: they were made above, and are not used any more.
    assert_eq!(unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) }, 0);
}

/// Threads of two sizes of stack, so that the memory of one that is gone is another's, or nobody's.
fn run(rounds: usize) {
    let mut key = 0;
    // SAFETY: `key` is a valid place, and the destructor is a function of this program.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(at_exit)) }, 0);
    KEY.set(key).expect("once");
    let group = GROUP.get_or_init(|| Group::root().create("late").expect("fresh"));
    let others = memcg::self_stat().threads;
    for turn in 0..60 {
        let stack = [256 << 10, 4 << 20][turn % 2];
        let spawn = |stack| thread::Builder::new().stack_size(stack);
        let known = spawn(stack).spawn(move || arm(rounds)).expect("a thread");
        run_bare(rounds, stack);
        known.join().expect("no panic");
        let large = || assert!(std::hint::black_box(vec![1_u8; 100_000]).len() > 1);
        spawn(64 << 20).spawn(large).expect("a thread").join().expect("no panic");
    }
    // The keeper and a worker may have begun meanwhile.
    assert!(memcg::self_stat().threads <= others + 2, "threads that ended left their records");
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

const TEST: &str = "a_thread_may_meet_the_allocator_in_any_round_of_its_destructors";

#[test]
fn a_thread_may_meet_the_allocator_in_any_round_of_its_destructors() {
    match case() {
        Some(rounds) => run(rounds.parse().expect("a number")),
        // In the fifth none is run any more.
        None => (1..=5).for_each(|rounds| pass(TEST, &rounds.to_string())),
    }
}

const MAIN: &str = "the_first_thread_may_end_before_the_others";

/// The end of the first thread, by `pthread_exit`, and of a detached one that ends the process.
#[test]
fn the_first_thread_may_end_before_the_others() {
    if case().is_none() {
        return pass(MAIN, "main");
    }
    let mut key = 0;
    // SAFETY: `key` is a valid place, and the destructor is a function of this program.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(at_exit)) }, 0);
    KEY.set(key).expect("once");
    GROUP.get_or_init(|| Group::root().create("late").expect("fresh"));
    // SAFETY: it takes nothing.
    let main = unsafe { libc::getpid() };
    let first = thread::spawn(move || {
        arm(4);
        // SAFETY: it takes nothing.
        (unsafe { libc::gettid() }) == main
    });
    assert!(!first.join().expect("no panic"), "tests run on threads of their own");
    drop(thread::spawn(|| {
        arm(4);
        late_work();
    }));
    late_work();
}
