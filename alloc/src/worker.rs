//! The threads of the process's own: a keeper, and the workers that it starts.
//!
//! ```text
//!   memcg-keeper    runs no user code: the tick, and the workers' replacement
//!   memcg-worker    runs shrinkers; there is one, and one more for each that is stuck
//! ```
//!
//! The keeper is started by the first of: a group's creation, a registration, whatever else
//! needs it; never inside an allocation. All of them sleep without waking up while there is
//! nothing to do. After a `fork` the child starts its own when it next needs them.

use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;
use core::ptr;

use memcg_accounting::sync::{AtomicU32, Ordering};

use crate::fork::{self, AtFork, Place};
use crate::process::ENGINE;
use crate::{drain, notice, refusal};

/// No keeper.
const NONE: u32 = 0;
/// A thread is starting it.
const STARTING: u32 = 1;
/// It runs, for as long as the process does.
const RUNNING: u32 = 2;

static KEEPER: AtomicU32 = AtomicU32::new(NONE);

/// Stack of the keeper, which calls nothing that is deep.
const KEEPER_STACK: usize = 256 << 10;
/// Stack of a worker: what std gives a thread.
const WORKER_STACK: usize = 2 << 20;

/// Sees to it that a keeper runs. `false`: not yet, or the system starts no thread; a later call
/// tries again. Outside allocations only. A load if it runs.
pub(crate) fn start() -> bool {
    // Relaxed: nothing is read on the strength of it.
    let found = KEEPER.load(Ordering::Relaxed);
    if found != NONE {
        return found == RUNNING;
    }
    if KEEPER.compare_exchange(NONE, STARTING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    // A child must know that it has not got these threads.
    fork::join(&AT_FORK);
    fork::register();
    let started = spawn(KEEPER_STACK, keep);
    KEEPER.store(if started { RUNNING } else { NONE }, Ordering::Relaxed);
    started
}

/// In the child the threads are not there any more.
static AT_FORK: AtFork = AtFork {
    place: Place::Workers,
    prepare: || (),
    release: |_| (),
    in_child: || KEEPER.store(NONE, Ordering::Relaxed),
};

extern "C" fn keep(_: *mut c_void) -> *mut c_void {
    name(c"memcg-keeper");
    ENGINE.keep(&mut || drain::tick() | notice::tick() | refusal::tick(), &mut || {
        spawn(WORKER_STACK, work)
    })
}

extern "C" fn work(_: *mut c_void) -> *mut c_void {
    name(c"memcg-worker");
    ENGINE.work();
    ptr::null_mut()
}

fn name(name: &CStr) {
    // SAFETY: it takes nothing.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: the thread exists, for it is this one, and the name ends with a NUL.
    unsafe { libc::pthread_setname_np(this, name.as_ptr()) };
}

/// Starts a detached thread that takes no signals, for those are the program's. Allocates nothing.
///
/// Not by way of std, whose threads take a lock of std's as they begin: in the child of a fork
/// that came while another one began, that lock is never given back.
fn spawn(stack: usize, run: extern "C" fn(*mut c_void) -> *mut c_void) -> bool {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: it makes the attributes that it is given.
    if unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } != 0 {
        return false;
    }
    let attributes = attributes.as_mut_ptr();
    // SAFETY: the attributes were made above. A size that the system does not take is no harm.
    unsafe { libc::pthread_attr_setstacksize(attributes, stack) };
    // SAFETY: as above.
    unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) };
    let before = block_signals();
    let mut thread = 0;
    // SAFETY: the attributes were made above, and `run` takes no argument.
    let answer = unsafe { libc::pthread_create(&raw mut thread, attributes, run, ptr::null_mut()) };
    if let Some(before) = before {
        set_signals(&before);
    }
    // SAFETY: the attributes were made above, and are not used any more.
    unsafe { libc::pthread_attr_destroy(attributes) };
    answer == 0
}

/// Blocks all signals for the calling thread, which a new thread inherits; answers what was.
fn block_signals() -> Option<libc::sigset_t> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` writes the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `all` was filled, and `before` is a place for the answer.
    let answer =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: on success the call wrote the old mask.
    (answer == 0).then(|| unsafe { before.assume_init() })
}

fn set_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask is valid for reading, and no old mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}
