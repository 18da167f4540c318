//! What the process has one of: the tree, the engine, the fence, and their beginning.
//!
//! The beginning is the first slow path of the first thread. It happens inside an allocation,
//! so it allocates nothing and takes no lock of std.

use core::ffi::c_void;

use memcg_accounting::sync::{AtomicBool, AtomicU32, Ordering};
use memcg_accounting::{Barrier, Bell, Root, SYSTEM, Tree};
use memcg_shrink::Engine;
use once_cell::race::OnceBool;

use crate::fork::{self, AtFork, Place};
use crate::{central, drain, hand, host, jemalloc, record, vector};

/// The tree of groups.
pub(crate) static TREE: Tree = Tree::new();
/// The engine that charges and reclaims.
pub(crate) static ENGINE: Engine = Engine::new(&TREE);
/// The heavy side of every gate.
pub(crate) static BARRIER: Barrier = Barrier::new();

/// Whether anything is tagged and charged at all: not in a build with `--cfg memcg_unaccounted`, which is
/// there to measure what accounting costs. Nothing else asks for that flag.
pub(crate) const ACCOUNTED: bool = !cfg!(memcg_unaccounted);

/// Whether any object may have a tag: from the first group on, or always with an accounted
/// root. Never taken back.
static TRACKING: AtomicBool = AtomicBool::new(false);

/// Whether tags must be looked at.
///
/// Relaxed is enough: an object with a tag reaches another thread by some synchronisation, and
/// the tag's group was made, and this flag set, before that.
#[inline(always)]
pub(crate) fn is_tracking() -> bool {
    ACCOUNTED && TRACKING.load(Ordering::Relaxed)
}

/// From now on tags are looked at.
pub(crate) fn start_tracking() {
    static EVERYWHERE: AtomicBool = AtomicBool::new(false);
    // Acquire pairs with the Release below: no group is made before every record tracks.
    if !EVERYWHERE.load(Ordering::Acquire) {
        TRACKING.store(true, Ordering::Relaxed);
        record::start_tracking();
        EVERYWHERE.store(true, Ordering::Release);
    }
}

/// What the tree notices is the worker's to deliver.
static BELL: Bell = Bell { ring: || ENGINE.ring() };

static TREE_AT_FORK: AtFork = AtFork {
    place: Place::Tree,
    prepare: || TREE.lock_all(),
    // SAFETY: `prepare` locked all.
    release: |_| unsafe { TREE.unlock_all() },
    in_child: || (),
};

static ENGINE_AT_FORK: AtFork = AtFork {
    place: Place::Engine,
    prepare: || ENGINE.lock_all(),
    // SAFETY: `prepare` locked all.
    release: |_| unsafe { ENGINE.unlock_all() },
    in_child: || ENGINE.after_fork_child(),
};

static BEGUN: OnceBool = OnceBool::new();
static EXIT_KEY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Begins, once. `false`: the system has no memory for the root; the next call tries again.
pub(crate) fn begin(root: Root) -> bool {
    if !TREE.make(root, &SYSTEM) {
        return false;
    }
    // `race`: two threads may both run this; each step is right twice, the second key is given
    // back, and the handlers of `fork` are registered.
    BEGUN.get_or_init(|| {
        if root == Root::Accounted {
            start_tracking();
        }
        BARRIER.register();
        make_keys();
        ENGINE.set_host(&host::HOST);
        TREE.set_bell(&BELL);
        for part in [&drain::AT_FORK, &hand::AT_FORK, &TREE_AT_FORK, &ENGINE_AT_FORK] {
            fork::join(part);
        }
        fork::join(&central::AT_FORK);
        fork::join(&vector::AT_FORK);
        // jemalloc registered its handlers when it booted: ours run first before a fork, and
        // last after it.
        fork::register();
        true
    })
}

/// Whether something was allocated.
pub(crate) fn has_begun() -> bool {
    BEGUN.get() == Some(true)
}

/// The last key of which a thread's value needs no memory: glibc has the first 32 in the thread's descriptor.
const LAST_KEY: libc::pthread_key_t = 31;

/// Makes the key whose destructor takes a thread's caches back, and has jemalloc make its own, as the last two of
/// those that glibc keeps in a thread's descriptor.
///
/// In each round destructors run in the order of their keys. So both run after the program's own, as long as
/// that has less than 31: also in the last round, whose destructors may be the first of their thread to allocate.
fn make_keys() {
    if EXIT_KEY.load(Ordering::Acquire) != u32::MAX {
        return;
    }
    // What comes before: free for the program afterwards.
    let mut before = [None; LAST_KEY as usize - 1];
    for place in &mut before {
        *place = make_key(None);
        if place.is_none_or(|key| key + 2 >= LAST_KEY) {
            break;
        }
    }
    if let Some(key) = make_key(Some(record::on_thread_exit)) {
        let made = EXIT_KEY.compare_exchange(u32::MAX, key, Ordering::AcqRel, Ordering::Acquire);
        if made.is_err() {
            delete_key(key);
        }
    }
    jemalloc::boot();
    before.into_iter().flatten().for_each(delete_key);
}

/// As the program, or the library with this in it, is loaded: before jemalloc makes its key on its own account.
extern "C" fn at_load() {
    make_keys();
}

// std has its own of this kind with 99, and jemalloc one without a number, which comes after all that have one.
// SAFETY: the section holds functions of this signature; this one allocates nothing but jemalloc's own beginning.
#[used]
#[unsafe(link_section = ".init_array.00098")]
static AT_LOAD: extern "C" fn() = at_load;

fn make_key(destructor: Option<unsafe extern "C" fn(*mut c_void)>) -> Option<libc::pthread_key_t> {
    let mut key = 0;
    // SAFETY: `key` is a valid place; the destructor is a function of this program, or none.
    (unsafe { libc::pthread_key_create(&raw mut key, destructor) } == 0).then_some(key)
}

fn delete_key(key: libc::pthread_key_t) {
    // SAFETY: only keys that were made here, and that no thread has used, come here.
    unsafe { libc::pthread_key_delete(key) };
}

/// Arms the exit hook for the calling thread. `false`: it can't be, so the thread must not
/// cache anything.
pub(crate) fn arm_exit_hook(value: *const c_void) -> bool {
    let key = EXIT_KEY.load(Ordering::Acquire);
    // SAFETY: the key was made by `make_exit_key`, or is none and the call answers an error.
    key != u32::MAX && unsafe { libc::pthread_setspecific(key, value) } == 0
}
