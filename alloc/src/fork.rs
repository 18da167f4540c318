//! `fork`: the child gets everything in order.
//!
//! Before it, a full cut: all records are stopped, nobody has bytes [in hand](crate::hand), then
//! the locks of the tree and the central lists are taken. jemalloc's own handler runs after ours before the fork, and before ours
//! after it, for it was registered first. The child takes over the other threads' records.

use memcg_accounting::sync::{AtomicBool, Ordering, lock};

use crate::drain::{self, DRAIN};
use crate::process::{ENGINE, TREE};
use crate::{
    cache, central, hand, notice, peak, reclaim_task, record, refusal, vector, wakers, worker,
};

/// Registers the handlers, once: a second `prepare` would wait for the first one's locks. If the
/// system has no memory for them, a later call tries again: there is one before each group, and
/// before threads are started.
pub(crate) fn register() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    // Relaxed: it orders nothing, it only picks one of the threads that come together.
    if REGISTERED.load(Ordering::Relaxed) || REGISTERED.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the three are functions of this program.
    if unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } != 0 {
        REGISTERED.store(false, Ordering::Relaxed);
    }
}

extern "C" fn prepare() {
    // The program's side first: who holds these allocates.
    cache::lock_all();
    peak::lock_all();
    refusal::lock_all();
    reclaim_task::lock_all();
    notice::lock_all();
    wakers::lock_all();
    core::mem::forget(lock(&DRAIN));
    drain::stop_all();
    hand::wait_for_none();
    TREE.lock_all();
    ENGINE.lock_all();
    central::lock_all();
    vector::lock_all();
}

/// Gives the locks back, which `prepare` took on this thread or the one that it is a copy of.
fn unlock() {
    // SAFETY: `prepare` ran.
    unsafe { vector::unlock_all() };
    // SAFETY: as above.
    unsafe { central::unlock_all() };
    // SAFETY: as above.
    unsafe { ENGINE.unlock_all() };
    // SAFETY: as above.
    unsafe { TREE.unlock_all() };
}

fn resume() {
    hand::resume();
    drain::resume();
    // SAFETY: `prepare` took the mutex and forgot the guard.
    unsafe { DRAIN.force_unlock() };
    // SAFETY: as above.
    unsafe { wakers::unlock_all() };
    // SAFETY: as above.
    unsafe { notice::unlock_all() };
    // SAFETY: as above.
    unsafe { reclaim_task::unlock_all() };
    // SAFETY: as above.
    unsafe { refusal::unlock_all() };
    // SAFETY: as above.
    unsafe { peak::unlock_all() };
    // SAFETY: as above.
    unsafe { cache::unlock_all() };
}

extern "C" fn parent() {
    unlock();
    resume();
}

extern "C" fn child() {
    unlock();
    hand::forget_others();
    record::take_over();
    resume();
    cache::after_fork();
    worker::after_fork();
    notice::after_fork();
    wakers::after_fork();
    reclaim_task::after_fork();
    refusal::after_fork();
}
