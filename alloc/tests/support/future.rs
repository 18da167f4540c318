//! Futures, without an executor.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use super::PATIENCE;

/// Unparks the thread that made it, and counts.
pub(crate) struct Unpark {
    thread: Thread,
    woken: AtomicU32,
}

impl Unpark {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { thread: thread::current(), woken: AtomicU32::new(0) })
    }

    /// How often it was woken.
    pub(crate) fn woken(&self) -> u32 {
        self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Runs a future to its end, which must come within [`PATIENCE`].
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Unpark::new());
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(start.elapsed() < PATIENCE, "never woken");
        thread::park_timeout(PATIENCE);
    }
}
