//! A short lock for readers and writers.
//!
//! Sections under it are a few dozen instructions without user code, so nobody sleeps: who
//! waits pauses, then yields. A writer that waits goes before new readers; as no section takes
//! the lock again, that can't deadlock.

use std::cell::UnsafeCell;
use std::fmt;
use std::hint;
use std::ops::{Deref, DerefMut};

use memcg_accounting::sync::{AtomicU32, Ordering};

/// A writer is in.
const WRITER: u32 = 1 << 31;
/// A writer waits.
const WAITING: u32 = 1 << 30;
/// Pauses before each yield.
const PAUSES: u32 = 64;

/// A value with the lock.
///
/// # Invariants
///
/// - `state` is `WRITER`, or the number of readers, and `WAITING` or not.
/// - While `WRITER` is set one guard, a writer's, refers to the value; else only readers' do.
pub(super) struct RwLock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out references to the value to many threads, or one to one.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}
// SAFETY: it owns the value.
unsafe impl<T: Send> Send for RwLock<T> {}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Waits a little: the `turn`th time.
fn relax(turn: u32) {
    if turn % PAUSES == PAUSES - 1 {
        std::thread::yield_now();
    } else {
        hint::spin_loop();
    }
}

impl<T> RwLock<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Enters as one of many.
    pub(super) fn read(&self) -> ReadGuard<'_, T> {
        let mut turn = 0;
        loop {
            let state = self.state.load(Ordering::Relaxed);
            // Acquire pairs with the Release of a writer's `drop`.
            if state & (WRITER | WAITING) == 0
                && self
                    .state
                    .compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return ReadGuard { lock: self };
            }
            relax(turn);
            turn = turn.wrapping_add(1);
        }
    }

    /// Enters alone.
    pub(super) fn write(&self) -> WriteGuard<'_, T> {
        let mut turn = 0;
        loop {
            if let Some(guard) = self.try_write() {
                return guard;
            }
            self.state.fetch_or(WAITING, Ordering::Relaxed);
            relax(turn);
            turn = turn.wrapping_add(1);
        }
    }

    /// Enters alone if nobody is in. Wait-free.
    pub(super) fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        // A writer that still waits sets `WAITING` again. Acquire pairs with the Release of the
        // guards' drops.
        let state = self.state.load(Ordering::Relaxed);
        let free = state & !WAITING == 0;
        let entered = free
            && self
                .state
                .compare_exchange(state, WRITER, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        // Made only if it is one: its drop lets others in.
        entered.then(|| WriteGuard { lock: self })
    }

    /// Ends a writer's turn, and forgets who waits: those who are there ask again.
    ///
    /// # Safety
    ///
    /// A writer is in, whose guard was forgotten.
    pub(super) unsafe fn force_unlock(&self) {
        // Release pairs with the Acquire of whoever enters next.
        self.state.store(0, Ordering::Release);
    }

    pub(super) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A reader is in.
pub(super) struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while this guard is, there is no writer (type invariant).
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of the next writer.
        self.lock.state.fetch_sub(1, Ordering::Release);
    }
}

/// A writer is in.
pub(super) struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while this guard is, nobody else refers to the value (type invariant).
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // Keeps `WAITING`, if somebody set it meanwhile. Release pairs with the Acquire of
        // whoever enters next.
        self.lock.state.fetch_and(!WRITER, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_alone_and_readers_see_whole_values() {
        let lock = RwLock::new((0u64, 0u64));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let mut value = lock.write();
                        value.0 += 1;
                        value.1 += 1;
                    }
                });
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let value = lock.read();
                        assert_eq!(value.0, value.1);
                    }
                });
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        // A failed try leaves the lock as it is.
                        if let Some(value) = lock.try_write() {
                            assert_eq!(value.0, value.1);
                        }
                    }
                });
            }
        });
        assert_eq!(*lock.write(), (40_000, 40_000));
        let reader = lock.read();
        assert!(lock.try_write().is_none());
        drop(reader);
        assert!(lock.try_write().is_some());
    }
}
