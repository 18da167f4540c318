//! What [`memcg_accounting::sync`] does not have: a cell that loom watches, and the futex.
//!
//! Beside accounting's, this is the only file that knows loom.

pub(crate) use memcg_accounting::sync::*;

/// A cell whose accesses a model checks.
#[derive(Debug)]
pub(crate) struct Cell<T>(imp::UnsafeCell<T>);

#[cfg(not(loom))]
mod imp {
    pub(super) use core::cell::UnsafeCell;
}
#[cfg(loom)]
mod imp {
    pub(super) use loom::cell::UnsafeCell;
}

impl<T> Cell<T> {
    memcg_accounting::const_new! {
        pub(crate) fn new(value: T) -> Self {
            Self(imp::UnsafeCell::new(value))
        }
    }

    /// Shows the content to `f`.
    pub(crate) fn read<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        #[cfg(not(loom))]
        let answer = f(self.0.get());
        #[cfg(loom)]
        let answer = self.0.with(f);
        answer
    }

    /// Lets `f` write the content.
    pub(crate) fn write<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        #[cfg(not(loom))]
        let answer = f(self.0.get());
        #[cfg(loom)]
        let answer = self.0.with_mut(f);
        answer
    }
}

/// Sleeps while `word` is `seen`, at most about `timeout_ms` (`None`: without an end). It may
/// return for no reason, so the caller looks again.
pub fn futex_wait(word: &AtomicU32, seen: u32, timeout_ms: Option<u32>) {
    #[cfg(loom)]
    {
        let _ = (word, seen, timeout_ms);
        yield_now();
    }
    #[cfg(not(loom))]
    {
        let timeout = timeout_ms.map(|ms| libc::timespec {
            tv_sec: libc::time_t::from(ms / 1000),
            tv_nsec: libc::c_long::from(ms % 1000) * 1_000_000,
        });
        let timeout = timeout.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is a live, aligned u32; the timeout is null or valid for reading.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, seen, timeout) };
    }
}

/// Wakes at most `n` threads that sleep on `word`.
pub fn futex_wake(word: &AtomicU32, n: i32) {
    #[cfg(loom)]
    let _ = (word, n);
    #[cfg(not(loom))]
    {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a wake takes the word's address as a name and touches nothing.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, n) };
    }
}

/// Who runs: a number that no other thread has while this one lives.
pub(crate) fn thread_id() -> usize {
    #[cfg(loom)]
    {
        1
    }
    #[cfg(not(loom))]
    {
        // SAFETY: `pthread_self` takes nothing and always succeeds.
        let id = unsafe { libc::pthread_self() };
        usize::try_from(id).unwrap_or(usize::MAX)
    }
}
