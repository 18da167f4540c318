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

/// Sleeps while `word` is `seen`, about `timeout_ms` at most, until [`wake_on`] names the same bit. It may return for no
/// reason, so the caller looks again.
pub(crate) fn sleep_on(word: &AtomicU32, seen: u32, bit: u32, timeout_ms: i64) {
    #[cfg(loom)]
    let _ = (word, seen, bit, timeout_ms);
    #[cfg(not(loom))]
    {
        let mut until = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `until` is a valid place for the answer; the call keeps nothing.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut until) };
        let nanoseconds = until.tv_nsec + timeout_ms * 1_000_000;
        until.tv_sec += nanoseconds / 1_000_000_000;
        until.tv_nsec = nanoseconds % 1_000_000_000;
        let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
        let (until, none) = (&raw const until, core::ptr::null::<u32>());
        // SAFETY: the word is a live, aligned u32; the time is valid for reading; the second word is not used.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, seen, until, none, bit) };
    }
}

/// Wakes all who [sleep on](sleep_on) this bit of `word`.
pub(crate) fn wake_on(word: &AtomicU32, bit: u32) {
    #[cfg(loom)]
    let _ = (word, bit);
    #[cfg(not(loom))]
    {
        let operation = libc::FUTEX_WAKE_BITSET | libc::FUTEX_PRIVATE_FLAG;
        let none = core::ptr::null::<u32>();
        // SAFETY: a wake takes the word's address as a name and touches nothing.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX, none, none, bit)
        };
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
