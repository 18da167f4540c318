//! The atomics and the short lock that the protocols are written in.
//!
//! This is the only file that knows loom: with `--cfg loom` the same names are loom's, so that
//! a model runs the code itself and not a copy of it. With `--cfg memcg_counting` they are
//! those of `counting.rs`.

#[cfg(not(loom))]
mod imp {
    #[cfg(not(memcg_counting))]
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
    pub use core::sync::atomic::{Ordering, compiler_fence, fence};

    #[cfg(memcg_counting)]
    pub use crate::counting::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Counts, counts,
    };

    /// How a thread waits for a [`Lock`](super::Lock): a few pauses, then it yields the CPU, so
    /// that a holder that was preempted can go on.
    #[derive(Debug)]
    pub struct Yield;

    /// Pauses before each yield: about the length of the longest critical section.
    const PAUSES: u32 = 64;

    impl spin::RelaxStrategy for Yield {
        fn relax() {
            for _ in 0..PAUSES {
                core::hint::spin_loop();
            }
            super::yield_now();
        }
    }

    /// A short lock: it neither allocates nor poisons, and waits by yielding.
    pub type Lock<T> = spin::mutex::SpinMutex<T, Yield>;
    /// What [`lock`] returns.
    pub type Guard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, Yield>;

    /// Takes `lock`, waiting for it.
    #[inline]
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        #[cfg(memcg_counting)]
        if let Some(guard) = try_lock(lock) {
            return guard;
        }
        let guard = lock.lock();
        #[cfg(memcg_counting)]
        crate::counting::short_lock_tried(true);
        guard
    }

    /// Takes `lock` if it is free.
    #[inline]
    pub fn try_lock<T>(lock: &Lock<T>) -> Option<Guard<'_, T>> {
        let guard = lock.try_lock();
        #[cfg(memcg_counting)]
        crate::counting::short_lock_tried(guard.is_some());
        guard
    }

    /// Notes that a lock made of these atomics was tried, in a build that counts.
    #[inline(always)]
    pub(crate) fn lock_tried(taken: bool) {
        #[cfg(memcg_counting)]
        crate::counting::lock_tried(taken);
        #[cfg(not(memcg_counting))]
        let _ = taken;
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };

    /// loom has no compiler fence: a model takes both sides of an asymmetric fence as full ones.
    pub fn compiler_fence(order: Ordering) {
        fence(order);
    }

    /// loom's mutex, without its poison.
    pub type Lock<T> = loom::sync::Mutex<T>;
    /// What [`lock`] returns.
    pub type Guard<'a, T> = loom::sync::MutexGuard<'a, T>;

    /// Takes `lock`, waiting for it.
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        lock.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes `lock` if it is free.
    pub fn try_lock<T>(lock: &Lock<T>) -> Option<Guard<'_, T>> {
        lock.try_lock().ok()
    }

    /// Models count nothing.
    pub(crate) fn lock_tried(_: bool) {}
}

pub use imp::*;

/// Lets another thread run.
pub fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    // SAFETY: `sched_yield` takes nothing and touches no memory of ours.
    unsafe {
        libc::sched_yield();
    }
}

/// Declares `const fn` outside loom, whose atomics have no `const` constructor.
#[macro_export]
macro_rules! const_new {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$meta])* $vis const fn $name($($arg: $ty),*) -> $ret $body
        #[cfg(loom)]
        $(#[$meta])* $vis fn $name($($arg: $ty),*) -> $ret $body
    };
}
