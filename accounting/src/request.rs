//! A charge that waits for reclaim: what is freed for it becomes its credit.
//!
//! Freed bytes that only lowered usage could be snatched by another thread before the request
//! that asked for them tries again. So whoever frees on behalf of a request moves the bytes to
//! it in the same critical section.
//!
//! # Invariants
//!
//! - While open, `credit <= need`, and `credit` bytes are charged through the payer's context.
//! - All words but `freed` and `scanned` change under the stripe lock of the payer's tree; `open` says whether
//!   the rest means anything, and a request closes before its words are used again. One that
//!   was opened by [`Tree::open_reclaim`](crate::Tree::open_reclaim) has no payer, needs nothing
//!   and only counts.

use crate::context::Tag;
use crate::group::GroupRef;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A request's record: part of a thread's record, used again for its next request.
#[derive(Debug)]
pub struct Request {
    open: AtomicU32,
    tag: AtomicU32,
    stripe: AtomicU32,
    target: AtomicU64,
    need: AtomicU64,
    credit: AtomicU64,
    freed: AtomicU64,
    scanned: AtomicU64,
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

impl Request {
    crate::const_new! {
        /// A request that is not open.
        pub fn new() -> Self {
            Self {
                open: AtomicU32::new(0),
                tag: AtomicU32::new(0),
                stripe: AtomicU32::new(0),
                target: AtomicU64::new(0),
                need: AtomicU64::new(0),
                credit: AtomicU64::new(0),
                freed: AtomicU64::new(0),
                scanned: AtomicU64::new(0),
            }
        }
    }

    /// Bytes of the target's subtree that were given back on behalf of this request. May lag.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }

    /// Objects that were looked at on behalf of this request, by whichever thread. May lag.
    pub fn scanned(&self) -> u64 {
        self.scanned.load(Ordering::Relaxed)
    }

    /// Counts objects that were looked at for the request.
    pub fn add_scanned(&self, objects: u64) {
        self.scanned.fetch_add(objects, Ordering::Relaxed);
    }

    /// Whether the credit covers the need. May lag.
    pub fn is_met(&self) -> bool {
        self.credit() >= self.need()
    }

    /// The group whose subtree is asked.
    pub fn target(&self) -> GroupRef {
        GroupRef::from_bits(self.target.load(Ordering::Relaxed))
    }

    pub(crate) fn begin(&self, tag: Tag, stripe: u32, target: GroupRef, need: u64) {
        debug_assert!(!self.is_open(), "one request at a time");
        self.tag.store(tag.to_bits(), Ordering::Relaxed);
        self.stripe.store(stripe, Ordering::Relaxed);
        self.target.store(target.to_bits(), Ordering::Relaxed);
        self.need.store(need, Ordering::Relaxed);
        self.credit.store(0, Ordering::Relaxed);
        self.freed.store(0, Ordering::Relaxed);
        self.scanned.store(0, Ordering::Relaxed);
        self.open.store(1, Ordering::Release);
    }

    /// Closes the request; answers its credit.
    pub(crate) fn end(&self) -> u64 {
        self.open.store(0, Ordering::Relaxed);
        self.credit.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) != 0
    }

    pub(crate) fn tag(&self) -> Tag {
        Tag::from_bits(self.tag.load(Ordering::Relaxed))
    }

    pub(crate) fn stripe(&self) -> u32 {
        self.stripe.load(Ordering::Relaxed)
    }

    pub(crate) fn need(&self) -> u64 {
        self.need.load(Ordering::Relaxed)
    }

    pub(crate) fn credit(&self) -> u64 {
        self.credit.load(Ordering::Relaxed)
    }

    pub(crate) fn add_credit(&self, bytes: u64) {
        self.credit.store(self.credit() + bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_credit(&self, bytes: u64) {
        self.credit.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_target(&self, target: GroupRef) {
        self.target.store(target.to_bits(), Ordering::Relaxed);
    }

    /// Counts bytes for the request. One step also without the lock: where the untracked root
    /// is the target, bytes come from several trees.
    pub(crate) fn add_freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }
}
