//! The gate of a thread record: how its owner works without atomics while anybody may take what
//! the record holds.
//!
//! ```text
//!   owner                                   revoker (holds the record's lock)
//!   busy = 1                                revoke |= DRAIN
//!   compiler fence  ◄───── pairs with ────► membarrier
//!   revoke == 0 ?   no: busy = 0, slow      wait until busy == 0
//!   straight-line work                      work on the record
//!   busy = 0 (Release)  ── read by ──►      (Acquire)
//!   lock (Acquire)      ◄── read by ──      unlock (Release)
//!   revoke &= !DRAIN, if no cut is under way
//! ```
//!
//! Of the two stores before the fences, at least one is seen by the other side's load after
//! them: either the owner sees `revoke`, or the revoker sees `busy` and waits.
//!
//! # Invariants
//!
//! - What the record holds is touched only by its owner inside [`enter`](Gate::enter) …
//!   [`leave`](Gate::leave), or by the holder of the lock: the owner itself, on its slow path,
//!   or a revoker that has seen `busy == 0` after the heavy fence.
//! - `busy` covers straight-line code: no loop, lock, system call, user code, first touch.
//! - `DRAIN` is set and cleared by the holder of the lock, and stays set when a revoker is done: [`Cut`]; the other reasons by whoever their
//!   documentation says.

use crate::sync::{AtomicBool, AtomicU32, Ordering, compiler_fence, fence, lock_tried, yield_now};

/// Why an owner's fast path is closed: a set of bits, all of which cost it the same one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(u32);

impl Reason {
    /// The empty set: the gate is open.
    pub const NONE: Reason = Reason(0);
    /// Somebody takes what the record holds, or has, and the owner was not back since: it opens the gate
    /// [again](Gate::reopen). Set by the holder of the lock.
    pub const DRAIN: Reason = Reason(1);
    /// The owner reclaims: its frees are eager. Set by the owner.
    pub const RECLAIM: Reason = Reason(2);
    /// There is no record: first use, or a thread that has exited. Never cleared.
    pub const EMPTY: Reason = Reason(4);
    /// The owner gives the record up.
    pub const EXITING: Reason = Reason(8);
    /// The system has no `membarrier`: the owner takes [`Gate::enter_fenced`]. Never cleared.
    pub const FENCE: Reason = Reason(16);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Reason) -> Reason {
        Reason(self.0 | other.0)
    }

    /// Whether a bit of `other` is in this set.
    #[must_use]
    pub const fn has(self, other: Reason) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the set is exactly `other`.
    #[must_use]
    pub const fn is(self, other: Reason) -> bool {
        self.0 == other.0
    }
}

/// The `busy` and `revoke` words and the lock of a record.
#[derive(Debug)]
#[repr(C)]
pub struct Gate {
    busy: AtomicU32,
    revoke: AtomicU32,
    lock: AtomicU32,
    #[cfg(all(loom, test))]
    weakened: Option<Weakened>,
}

/// An ordering or step that a model leaves out, to show that it is needed.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The owner's fence between `busy` and `revoke`.
    OwnerFence,
    /// The Acquire of the owner's load of `revoke`.
    RevokeAcquire,
    /// The Release of the owner's `busy = 0`.
    LeaveRelease,
    /// The revoker's heavy fence.
    HeavyFence,
    /// The revoker's wait for `busy == 0`.
    Wait,
    /// The Acquire of the revoker's load of `busy`.
    BusyAcquire,
    /// The Release of the revoker's last store to `revoke`.
    RestoreRelease,
    /// The revoker's store to `revoke`.
    Revoke,
    /// The lock of the record.
    Lock,
    /// The Acquire of taking the lock and the Release of giving it back.
    LockOrder,
    /// The owner's fence between opening its gate and its look whether a cut is under way.
    ReopenFence,
    /// That look.
    ReopenLook,
    /// The fence of a cut that begins.
    BeginFence,
    /// The Release of its end.
    EndRelease,
    /// The Acquire with which an owner sees it.
    UnderWayAcquire,
}

/// The ordering at a site, or a relaxed one where a model weakens it.
macro_rules! at {
    ($gate:expr, $site:ident, $order:ident) => {{
        #[cfg(not(all(loom, test)))]
        {
            Ordering::$order
        }
        #[cfg(all(loom, test))]
        if $gate.is_weakened(Weakened::$site) { Ordering::Relaxed } else { Ordering::$order }
    }};
}

/// Whether a step is taken: always, but where a model leaves it out.
macro_rules! step {
    ($gate:expr, $site:ident) => {{
        #[cfg(not(all(loom, test)))]
        {
            true
        }
        #[cfg(all(loom, test))]
        {
            !$gate.is_weakened(Weakened::$site)
        }
    }};
}

pub(crate) use step;

/// Whether a cut is under way. Meanwhile no gate that is closed for [`Reason::DRAIN`] opens.
///
/// A cut stops the records whose gates are open, and leaves them closed. Of one that is closed still at
/// the next cut, the owner has touched nothing since: the cut passes it by, if it knows that it wants
/// nothing of what is there. The owner opens it again, on its slow path:
///
/// ```text
///   owner (holds the lock)                  cut (one at a time)
///   revoke &= !DRAIN                        under way
///   fence (SeqCst)  ◄───── pairs with ────► fence (SeqCst)
///   under way ?  yes: revoke |= DRAIN       revoke & DRAIN ?  no: lock it, stop it
/// ```
///
/// Of the two stores before the fences, at least one is seen by the other side's load after them.
#[derive(Debug)]
pub struct Cut {
    under_way: AtomicBool,
    #[cfg(all(loom, test))]
    pub(crate) weakened: Option<Weakened>,
}

impl Default for Cut {
    fn default() -> Self {
        Self::new()
    }
}

impl Cut {
    crate::const_new! {
        /// No cut is under way.
        pub fn new() -> Self {
            Self {
                under_way: AtomicBool::new(false),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    #[cfg(all(loom, test))]
    fn is_weakened(&self, site: Weakened) -> bool {
        self.weakened == Some(site)
    }

    /// A cut begins; the caller makes one at a time. Which gates are closed is looked at afterwards.
    pub fn begin(&self) {
        self.under_way.store(true, Ordering::Relaxed);
        if step!(self, BeginFence) {
            // Partner: the fence in `Gate::reopen`.
            fence(Ordering::SeqCst);
        }
    }

    /// It is over. Release pairs with the Acquire in `is_under_way`: whoever works on a record that the cut passed
    /// by comes after all that the cut did.
    pub fn end(&self) {
        self.under_way.store(false, at!(self, EndRelease, Release));
    }

    /// Whether one is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(at!(self, UnderWayAcquire, Acquire))
    }
}

impl Gate {
    crate::const_new! {
        /// A gate that is closed for `reason`.
        pub fn closed(reason: Reason) -> Self {
            Self {
                busy: AtomicU32::new(0),
                revoke: AtomicU32::new(reason.0),
                lock: AtomicU32::new(0),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn weakened(site: Option<Weakened>) -> Self {
        Self { weakened: site, ..Self::closed(Reason::NONE) }
    }

    #[cfg(all(loom, test))]
    fn is_weakened(&self, site: Weakened) -> bool {
        self.weakened == Some(site)
    }

    // ---- the owner ----------------------------------------------------------------------

    /// Begins straight-line work on the record. `false`: take the slow path.
    #[inline(always)]
    pub fn enter(&self) -> bool {
        self.busy.store(1, Ordering::Relaxed);
        if step!(self, OwnerFence) {
            // Partner: `Barrier::heavy` of the revoker. The compiler keeps the order of the two
            // accesses, the membarrier makes the CPU's hold.
            compiler_fence(Ordering::SeqCst);
        }
        // Acquire pairs with the Release in `restore`: the owner sees what the revoker left.
        if self.revoke.load(at!(self, RevokeAcquire, Acquire)) == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// The same where there is no `membarrier`: [`Reason::FENCE`] does not close the gate, and
    /// the fence is a full one.
    pub fn enter_fenced(&self) -> bool {
        self.busy.store(1, Ordering::Relaxed);
        if step!(self, OwnerFence) {
            // Partner: the full fence in `Barrier::heavy`.
            fence(Ordering::SeqCst);
        }
        // Acquire: as in `enter`.
        if self.revoke.load(at!(self, RevokeAcquire, Acquire)) & !Reason::FENCE.0 == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Ends straight-line work. Release pairs with the Acquire in `is_idle`:
    /// the revoker sees all of it.
    #[inline(always)]
    pub fn leave(&self) {
        self.busy.store(0, at!(self, LeaveRelease, Release));
    }

    /// Why the gate is closed. Relaxed: what is decided by it is decided again by `enter` or
    /// the lock.
    #[inline]
    pub fn reasons(&self) -> Reason {
        Reason(self.revoke.load(Ordering::Relaxed))
    }

    /// Adds a reason. Relaxed: see [`Reason`] for who may, and `enter` for the order.
    pub fn close(&self, reason: Reason) {
        self.revoke.fetch_or(reason.0, Ordering::Relaxed);
    }

    /// Takes a reason of the owner's own away.
    pub fn open(&self, reason: Reason) {
        self.revoke.fetch_and(!reason.0, Ordering::Release);
    }

    // ---- the lock -----------------------------------------------------------------------

    /// Takes the lock if it is free.
    #[inline]
    #[must_use]
    pub fn try_lock(&self) -> bool {
        if !step!(self, Lock) {
            return true;
        }
        let order = at!(self, LockOrder, Acquire);
        let taken = self.lock.compare_exchange(0, 1, order, Ordering::Relaxed).is_ok();
        lock_tried(taken);
        taken
    }

    /// Takes the lock, waiting at most about `timeout_ms` for it.
    #[must_use]
    pub fn lock_within(&self, timeout_ms: u32) -> bool {
        wait_until(timeout_ms, || self.try_lock())
    }

    /// Gives the lock back. The caller holds it.
    #[inline]
    pub fn unlock(&self) {
        self.lock.store(0, at!(self, LockOrder, Release));
    }

    // ---- the revoker, which holds the lock ----------------------------------------------

    /// Closes the gate. Then comes [`Barrier::heavy`](crate::Barrier::heavy), once for any
    /// number of gates, then [`wait_idle`](Gate::wait_idle) for each.
    pub fn revoke(&self) {
        if step!(self, Revoke) {
            self.close(Reason::DRAIN);
        }
    }

    /// Waits until the owner is out of its straight-line work, at most about `timeout_ms`:
    /// it may have been stopped there. `true`: the record is the caller's.
    #[must_use]
    pub fn wait_idle(&self, timeout_ms: u32) -> bool {
        !step!(self, Wait) || wait_until(timeout_ms, || self.is_idle())
    }

    /// Acquire pairs with the Release in `leave`.
    fn is_idle(&self) -> bool {
        self.busy.load(at!(self, BusyAcquire, Acquire)) == 0
    }

    /// Opens the gate again; the caller unlocks next. Release pairs with the Acquire in
    /// `enter`.
    pub fn restore(&self) {
        self.revoke.fetch_and(!Reason::DRAIN.0, at!(self, RestoreRelease, Release));
    }

    /// Opens, for the owner, which holds the lock, a gate that a revoker left closed. `false`: a
    /// [cut](Cut) is under way, and the owner must leave the record alone.
    #[must_use]
    pub fn reopen(&self, cut: &Cut) -> bool {
        if !self.reasons().has(Reason::DRAIN) {
            return true;
        }
        self.open(Reason::DRAIN);
        if step!(self, ReopenFence) {
            // Partner: the fence in `Cut::begin`.
            fence(Ordering::SeqCst);
        }
        if cut.is_under_way() && step!(self, ReopenLook) {
            self.close(Reason::DRAIN);
            return false;
        }
        true
    }

    /// The heavy fence of a model, which may leave it out.
    #[cfg(all(loom, test))]
    pub(crate) fn heavy_in_model(&self, barrier: &crate::Barrier) {
        if step!(self, HeavyFence) {
            assert!(barrier.heavy());
        }
    }
}

/// Turns that are spun through before sleeping.
const SPINS: u32 = 200;

/// Waits for `done`: a little spinning, then yields, then sleeps of 50 µs, then gives up.
fn wait_until(timeout_ms: u32, done: impl Fn() -> bool) -> bool {
    if cfg!(loom) {
        while !done() {
            yield_now();
        }
        return true;
    }
    for turn in 0..SPINS {
        if done() {
            return true;
        }
        if turn % 16 == 15 {
            yield_now();
        }
        core::hint::spin_loop();
    }
    let start = crate::clock::now_ms();
    loop {
        if done() {
            return true;
        }
        if crate::clock::now_ms().wrapping_sub(start) >= timeout_ms {
            return false;
        }
        let pause = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
        // SAFETY: `pause` is valid for reading; no remainder is asked for.
        unsafe { libc::nanosleep(&raw const pause, core::ptr::null_mut()) };
    }
}
