//! What the process has one of, and every part of the allocator may use: the tree, the engine, the fence. How they
//! [begin](crate::start) is not known here.

use core::ffi::c_void;

use memcg_accounting::sync::{AtomicBool, AtomicU32, Ordering};
use memcg_accounting::{Barrier, Tree};
use memcg_shrink::Engine;
use once_cell::race::OnceBool;

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

/// From now on tags are looked at: for [`start_tracking`](crate::record::start_tracking), which tells every thread.
pub(crate) fn set_tracking() {
    TRACKING.store(true, Ordering::Relaxed);
}

/// Whether the process has [begun](crate::start). Never taken back.
pub(crate) static BEGUN: OnceBool = OnceBool::new();

/// Whether something was allocated.
pub(crate) fn has_begun() -> bool {
    BEGUN.get() == Some(true)
}

/// The pthread key whose destructor takes a thread's caches back, or none.
pub(crate) static EXIT_KEY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Arms the exit hook for the calling thread. `false`: it can't be, so the thread must not
/// cache anything.
pub(crate) fn arm_exit_hook(value: *const c_void) -> bool {
    let key = EXIT_KEY.load(Ordering::Acquire);
    // SAFETY: the key was made by `make_exit_key`, or is none and the call answers an error.
    key != u32::MAX && unsafe { libc::pthread_setspecific(key, value) } == 0
}
