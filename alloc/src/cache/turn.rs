//! One update of a key at a time: markers of the updates under way, and waiting for them.
//!
//! An update runs user code between its look and its change, so it holds no lock meanwhile. It
//! leaves a marker with its hash in the shard; whoever is about to change an entry of that hash
//! finds the marker, under the shard's lock, and waits. Reads and evictions pass.
//!
//! The child of a fork has one thread: markers of others lead to stacks that it reuses, so they
//! are forgotten there. Waiting is a futex for the same reason: no thread is ever inside it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;

use memcg_accounting::sync::{AtomicU32, Ordering};
use memcg_shrink::{futex_wait, futex_wake};

/// An update under way. It lives on the stack of the thread that updates.
#[derive(Debug)]
pub(super) struct Marker {
    hash: u64,
    thread: libc::pthread_t,
    /// Somebody waits for the end of the update. Under the shard's lock.
    awaited: Cell<bool>,
    next: Cell<*const Marker>,
}

impl Marker {
    pub(super) fn new(hash: u64) -> Self {
        let (awaited, next) = (Cell::new(false), Cell::new(ptr::null()));
        Self { hash, thread: this_thread(), awaited, next }
    }
}

/// What no other thread is while this one lives; in the child of a fork, the thread that forked.
fn this_thread() -> libc::pthread_t {
    // SAFETY: it takes nothing and always succeeds.
    unsafe { libc::pthread_self() }
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
                if marker.thread == this_thread() {
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

    /// Removes every marker that is not the calling thread's: in the child of a fork.
    pub(super) fn forget_others(&mut self) {
        let mut at = std::mem::replace(&mut self.first, ptr::null());
        let mut last: Option<&Marker> = None;
        while !at.is_null() {
            // SAFETY: markers of the chain are valid (type invariant): the stacks that they are
            // on were copied, and no thread has begun since.
            let marker = unsafe { &*at };
            at = marker.next.replace(ptr::null());
            if marker.thread != this_thread() {
                continue;
            }
            match last.replace(marker) {
                Some(last) => last.next.set(marker),
                None => self.first = marker,
            }
        }
    }
}

/// Where threads wait for an update to end.
#[derive(Debug)]
pub(super) struct Turn {
    /// Counts, and wraps: who waits does not sleep through 2^32 ends.
    ended: AtomicU32,
}

impl Turn {
    pub(super) const fn new() -> Self {
        Self { ended: AtomicU32::new(0) }
    }

    /// What to wait from. Called under the lock of the shard, where the marker was seen.
    pub(super) fn now(&self) -> u32 {
        // Relaxed: the shard's lock orders it before the `end` of the update that was seen.
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until some update has ended since `now`.
    pub(super) fn wait(&self, now: u32) {
        // Relaxed, here and below: what the update did is seen under the shard's lock.
        while self.ended.load(Ordering::Relaxed) == now {
            futex_wait(&self.ended, now, None);
        }
    }

    /// An update that somebody waits for has ended. Called after its marker was removed, under
    /// no lock.
    pub(super) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        futex_wake(&self.ended, i32::MAX);
    }
}
