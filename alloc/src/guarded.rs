//! Calling code of the program: what it throws on a thread of ours ends there, and what it throws
//! in one of several calls keeps none of the others from being made.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

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

/// What several calls threw: the first of it, which goes on when all were made.
///
/// std's collections go on dropping too when an element's drop unwinds, and abort at the second
/// that does; here that ends where it began.
#[derive(Default)]
pub(crate) struct Thrown(Option<Box<dyn Any + Send>>);

impl Thrown {
    /// Runs `call`; answers whether it ended without a panic.
    pub(crate) fn catch(&mut self, call: impl FnOnce()) -> bool {
        let Err(payload) = catch_unwind(AssertUnwindSafe(call)) else { return true };
        match &self.0 {
            None => self.0 = Some(payload),
            Some(_) => drop_payload(payload),
        }
        false
    }

    /// What was thrown ends here.
    pub(crate) fn end(self) {
        self.0.into_iter().for_each(drop_payload);
    }

    /// Throws what was thrown first. Where the thread unwinds already it ends here: a second panic
    /// on top of that one would end the process.
    pub(crate) fn go_on(self) {
        match self.0 {
            Some(payload) if std::thread::panicking() => drop_payload(payload),
            Some(payload) => resume_unwind(payload),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_goes_on_and_the_others_end() {
        let mut thrown = Thrown::default();
        assert!(thrown.catch(|| ()));
        for number in [1, 2] {
            assert!(!thrown.catch(|| resume_unwind(Box::new(number))));
        }
        let went_on = catch_unwind(AssertUnwindSafe(|| thrown.go_on()));
        assert_eq!(went_on.expect_err("it goes on").downcast_ref(), Some(&1));
        Thrown::default().go_on();
    }
}
