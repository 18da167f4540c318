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
//!   was opened by [`Tree::open_reclaim`] has no payer, needs nothing
//!   and only counts.

use crate::Tree;
use crate::context::{Context, Payer, Tag};
use crate::counter::{Charged, OverLimit, Want};
use crate::group::{Group, GroupRef};
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
        self.freed.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned()
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

impl Tree {
    /// Opens `request`: from now on what is freed for it becomes its credit. `false`: the
    /// payer is gone, so there is nothing to wait for.
    pub fn open_request(
        &self,
        request: &Request,
        payer: Payer,
        target: GroupRef,
        need: u64,
    ) -> bool {
        let Some((_guard, context)) = self.lock_payer(payer) else { return false };
        context.add_pin();
        request.begin(payer.tag, context.stripe(), target, need);
        true
    }

    /// Opens `request` for reclaim that no charge waits for: it counts what is freed in the
    /// subtree of `target`, and takes no credit.
    pub fn open_reclaim(&self, request: &Request, target: GroupRef) {
        let stripe = self.group(target).map_or(u32::MAX, Group::stripe);
        request.begin(Tag::NOBODY, stripe, target, 0);
    }

    /// Has `request`, which is open, ask another subtree from now on.
    pub fn aim_request(&self, request: &Request, target: GroupRef) {
        if let Some((_guard, _)) = self.lock_tag(request.tag()) {
            request.set_target(target);
        }
    }

    /// Charges what the credit of `request`, which is open, leaves uncovered, up to `over` bytes
    /// over the limits, and closes it: need and credit are one charge then, which is the caller's.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] as from [`charge`](Tree::charge). The request stays open, with its credit.
    pub fn settle_request(
        &self,
        request: &Request,
        ahead: u64,
        over: u64,
    ) -> Result<Charged, OverLimit> {
        let (tag, need) = (request.tag(), request.need());
        let nobody = Charged { tag: Tag::NOBODY, bytes: need, ..Charged::default() };
        let Some((_guard, context)) = self.lock_tag(tag) else { return Ok(nobody) };
        let credit = request.credit();
        let Some(slot) = self.resolve(context) else {
            self.uncharge_locked(tag, context, request.end());
            self.unpin_locked(tag);
            return Ok(nobody);
        };
        let charged = if credit < need {
            let rest = Want { need: need - credit, ahead, over };
            self.charge_locked(tag, context, slot, rest)
                .map_err(|over| OverLimit { requested: need, ..over })?
        } else {
            self.add_locked(tag, context, slot, 0)
        };
        request.end();
        // The bytes keep the record from here on.
        self.unpin_locked(tag);
        Ok(Charged { bytes: charged.bytes + credit, ..charged })
    }

    /// Takes the credit of an open request away, if its payer is in the subtree of `top`: so
    /// that a charge which must be decided now is decided by what lives. The request goes on.
    pub fn surrender_credit(&self, request: &Request, top: GroupRef) {
        let tag = request.tag();
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        let credit = request.credit();
        if !request.is_open() || request.tag() != tag || credit == 0 || context.is_idle() {
            return;
        }
        if self.resolve(context).is_some_and(|slot| self.is_below(slot, top)) {
            request.set_credit(0);
            self.uncharge_locked(tag, context, credit);
        }
    }

    /// Closes `request` and gives its credit back, in one step: credit that no open request has
    /// could not be [surrendered](Tree::surrender_credit) to anybody. Answers what it was.
    pub fn close_request(&self, request: &Request) -> u64 {
        if !request.is_open() {
            return 0;
        }
        let tag = request.tag();
        let Some((_guard, context)) = self.lock_tag(tag) else { return request.end() };
        let credit = request.end();
        self.uncharge_locked(tag, context, credit);
        self.unpin_locked(tag);
        credit
    }

    /// [`uncharge`](Tree::uncharge) on behalf of `request`: in the same step, what fits of the
    /// bytes is charged to the request's payer as its credit.
    pub fn uncharge_for(&self, tag: Tag, bytes: u64, request: &Request) {
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        let stripe = context.stripe();
        let slot = self.uncharge_locked(tag, context, bytes);
        for (_, group) in slot.into_iter().flat_map(|slot| self.chain(slot)) {
            group.add_reclaimed(bytes);
        }
        if !request.is_open() {
            return;
        }
        // A request that is opened or closed meanwhile has another stripe: this one is locked.
        let same_tree = request.stripe() == stripe;
        let target = request.target();
        if (same_tree || target.is_root()) && slot.is_some_and(|slot| self.is_below(slot, target)) {
            request.add_freed(bytes);
        }
        if same_tree {
            self.credit_locked(request, stripe, bytes);
        }
    }

    /// A charge of `bytes` through `tag` was made by the very reclaim that frees for `request`:
    /// it takes that much away from what was freed, so that a shrinker that allocates and frees
    /// gets nowhere.
    pub fn charged_for(&self, tag: Tag, bytes: u64, request: &Request) {
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        let Some(slot) = self.resolve(context).filter(|_| request.is_open()) else { return };
        for (_, group) in self.chain(slot) {
            group.add_reclaimed(bytes.wrapping_neg());
        }
        if self.is_below(slot, request.target()) {
            request.freed.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn credit_locked(&self, request: &Request, stripe: u32, bytes: u64) {
        let tag = request.tag();
        // A request without a payer closes without this lock, and may be another's by now, whose record
        // nobody uses any more. One of this stripe comes into use under the lock alone.
        let of_stripe = |c: &&Context| c.stripe() == stripe && !c.is_idle();
        let Some(context) = self.context(tag).filter(of_stripe) else { return };
        let Some(slot) = self.resolve(context) else { return };
        let headroom = self.chain(slot).map(|(_, group)| group.counter.headroom()).min();
        let wanted = bytes.min(request.need() - request.credit());
        let part = wanted.min(headroom.unwrap_or(0));
        if part != 0 && self.charge_locked(tag, context, slot, Want::exactly(part)).is_ok() {
            request.add_credit(part);
        }
    }
}
