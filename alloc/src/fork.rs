//! `fork`: the child gets everything in order.
//!
//! Whatever has locks, or something under way on other threads, takes part: it makes an [`AtFork`] and
//! [joins](join) before its first use. Before a fork all are prepared in the order of [`Place`], which is the order
//! of their locks; afterwards all are released in the opposite one, and so those in the child hear of it. jemalloc's own
//! handler runs after ours before the fork, and before ours after it, for it was registered first.
//!
//! # Invariants
//!
//! - From `prepare` to the end of `release` nobody joins: what is released was prepared.

use core::ptr;

use memcg_accounting::sync::{AtomicBool, AtomicPtr, Lock, Ordering, lock};

/// When a part is prepared: the order of locks, the outermost first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Workers,
    Caches,
    Peaks,
    Refusals,
    Tasks,
    Watches,
    Wakers,
    Threads,
    Hands,
    Tree,
    Engine,
    Cooling,
    Spans,
    Vectors,
}

const PLACES: usize = Place::Vectors as usize + 1;

/// How something takes part in forks.
#[derive(Debug)]
pub(crate) struct AtFork {
    pub(crate) place: Place,
    /// Before the fork: takes locks, waits until nothing is under way.
    pub(crate) prepare: fn(),
    /// After the fork, told whether in the child. Contract: `prepare` ran on this thread, or on the one that it is
    /// the copy of.
    pub(crate) release: unsafe fn(in_child: bool),
    /// In the child, when everything is released.
    pub(crate) in_child: fn(),
}

/// Who takes part, by place.
static PARTS: [AtomicPtr<AtFork>; PLACES] = [const { AtomicPtr::new(ptr::null_mut()) }; PLACES];
/// Held by whoever joins, and by a fork from beginning to end.
static JOINING: Lock<()> = Lock::new(());

/// From now on `part` takes part in forks. A load if it does already; waits for the end of a fork that is under way,
/// so not under the lock of a part.
pub(crate) fn join(part: &'static AtFork) {
    let place = &PARTS[part.place as usize];
    // Acquire pairs with the Release below.
    if place.load(Ordering::Acquire).is_null() {
        let _joining = lock(&JOINING);
        place.store(ptr::from_ref(part).cast_mut(), Ordering::Release);
    }
}

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

/// Those who take part, the outermost first. `JOINING` is held.
fn parts() -> impl DoubleEndedIterator<Item = &'static AtFork> {
    // SAFETY: a place is null or leads to a static.
    PARTS.iter().filter_map(|place| unsafe { place.load(Ordering::Acquire).as_ref() })
}

extern "C" fn prepare() {
    core::mem::forget(lock(&JOINING));
    parts().for_each(|part| (part.prepare)());
}

fn release(in_child: bool) {
    for part in parts().rev() {
        // SAFETY: `prepare` ran, and nobody has joined since.
        unsafe { (part.release)(in_child) };
    }
    // SAFETY: `prepare` took the lock and forgot the guard.
    unsafe { JOINING.force_unlock() };
}

extern "C" fn parent() {
    release(false);
}

extern "C" fn child() {
    release(true);
    parts().rev().for_each(|part| (part.in_child)());
}
