//! The beginning: the first slow path of the first thread.
//!
//! It happens inside an allocation, so it allocates nothing and takes no lock of std.

use core::ffi::c_void;

use memcg_accounting::sync::Ordering;
use memcg_accounting::{Bell, Root, SYSTEM};

use crate::fork::{self, AtFork, Place};
use crate::process::{BARRIER, BEGUN, ENGINE, EXIT_KEY, TREE};
use crate::{central, cooling, drain, hand, host, jemalloc, record, vector};

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

/// Begins, once. `false`: the system has no memory for the root; the next call tries again.
pub(crate) fn begin(root: Root) -> bool {
    if !TREE.make(root, &SYSTEM) {
        return false;
    }
    // `race`: two threads may both run this; each step is right twice, the second key is given
    // back, and the handlers of `fork` are registered.
    BEGUN.get_or_init(|| {
        if root == Root::Accounted {
            record::start_tracking();
        }
        BARRIER.register();
        make_keys();
        ENGINE.set_host(&host::HOST);
        TREE.set_bell(&BELL);
        for part in [&drain::AT_FORK, &hand::AT_FORK, &TREE_AT_FORK, &ENGINE_AT_FORK] {
            fork::join(part);
        }
        fork::join(&cooling::AT_FORK);
        fork::join(&central::AT_FORK);
        fork::join(&vector::AT_FORK);
        // jemalloc registered its handlers when it booted: ours run first before a fork, and
        // last after it.
        fork::register();
        true
    })
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
