//! One update of a key at a time: markers of the updates under way, and waiting for them.
//!
//! An update runs user code between its look and its change, so it holds no lock meanwhile. It
//! leaves a marker with its hash in the shard; whoever is about to change an entry of that hash
//! finds the marker, under the shard's lock, and waits. Reads and evictions pass.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use memcg_accounting::sync::{AtomicU64, Ordering};

/// An update under way. It lives on the stack of the thread that updates.
#[derive(Debug)]
pub(super) struct Marker {
    hash: u64,
    thread: ThreadId,
    /// Somebody waits for the end of the update. Under the shard's lock.
    awaited: Cell<bool>,
    next: Cell<*const Marker>,
}

impl Marker {
    pub(super) fn new(hash: u64) -> Self {
        let (awaited, next) = (Cell::new(false), Cell::new(ptr::null()));
        Self { hash, thread: thread::current().id(), awaited, next }
    }
}

/// The markers of a shard.
///
/// # Invariants
///
/// - What the chain leads to are valid markers, whose cells only whoever has `&mut Markers`, or
///   `&Markers` under the exclusive lock of the shard, looks at.
pub(super) struct Markers {
    first: *const Marker,
    marker: PhantomData<*const Marker>,
}

// SAFETY: the chain is used under the shard's lock, by one thread at a time, and a marker's
// contents are tied to no thread.
unsafe impl Send for Markers {}
// SAFETY: `&Markers` gives access to nothing: all methods take `&mut`.
unsafe impl Sync for Markers {}

impl fmt::Debug for Markers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Markers").field("any", &!self.first.is_null()).finish()
    }
}

/// What stands in the way of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Another thread updates an entry of this hash.
    Wait,
    /// This thread does: waiting would never end.
    Own,
}

impl Markers {
    pub(super) const fn new() -> Self {
        Self { first: ptr::null(), marker: PhantomData }
    }

    /// Looks for an update of `hash` other than `own`, and tells it that somebody waits.
    pub(super) fn conflict(&mut self, hash: u64, own: Option<&Marker>) -> Option<Conflict> {
        let mut at = self.first;
        while !at.is_null() {
            // SAFETY: markers of the chain are valid (type invariant).
            let marker = unsafe { &*at };
            if marker.hash == hash && !own.is_some_and(|own| ptr::eq(own, marker)) {
                if marker.thread == thread::current().id() {
                    return Some(Conflict::Own);
                }
                marker.awaited.set(true);
                return Some(Conflict::Wait);
            }
            at = marker.next.get();
        }
        None
    }

    /// Adds a marker.
    ///
    /// # Safety
    ///
    /// - The marker stays valid and where it is until it is removed.
    pub(super) unsafe fn add(&mut self, marker: &Marker) {
        marker.next.set(self.first);
        self.first = marker;
    }

    /// Removes a marker; answers whether somebody waits for it.
    pub(super) fn remove(&mut self, marker: &Marker) -> bool {
        if ptr::eq(self.first, marker) {
            self.first = marker.next.get();
            return marker.awaited.get();
        }
        let mut at = self.first;
        while !at.is_null() {
            // SAFETY: markers of the chain are valid (type invariant).
            let before = unsafe { &*at };
            if ptr::eq(before.next.get(), marker) {
                before.next.set(marker.next.get());
                break;
            }
            at = before.next.get();
        }
        marker.awaited.get()
    }
}

/// Where threads wait for an update to end.
#[derive(Debug)]
pub(super) struct Turn {
    ended: AtomicU64,
    sleeping: Mutex<()>,
    wake: Condvar,
}

impl Turn {
    pub(super) const fn new() -> Self {
        Self { ended: AtomicU64::new(0), sleeping: Mutex::new(()), wake: Condvar::new() }
    }

    /// What to wait from. Called under the lock of the shard, where the marker was seen.
    pub(super) fn now(&self) -> u64 {
        // Relaxed: the shard's lock orders it before the `end` of the update that was seen.
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until some update has ended since `now`.
    pub(super) fn wait(&self, now: u64) {
        let mut guard = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        while self.ended.load(Ordering::Relaxed) == now {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// An update that somebody waits for has ended. Called after its marker was removed, under
    /// no lock.
    pub(super) fn end(&self) {
        {
            let _guard = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
            // Relaxed: who waits looks under the mutex.
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_all();
    }
}
