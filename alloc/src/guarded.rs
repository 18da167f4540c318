//! Calling code of the program from a thread of ours: whatever it throws ends there.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Runs `call`; `None`: it panicked. What it left half done is not looked at again.
pub(crate) fn guarded<R>(call: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(call)).map_err(drop_payload).ok()
}

/// Drops what was thrown; that may throw as well, and what that throws is kept for good.
pub(crate) fn drop_payload(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}

/// Wakes all of `wakers`.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        guarded(|| waker.wake());
    }
}
