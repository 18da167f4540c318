//! One registered shrinker, and the protocol of its calls against its end.
//!
//! ```text
//!   word:  LIVE | ORPHAN | number of calls in flight
//!
//!   caller                                 whoever ends the shrinker
//!   LIVE? calls + 1  (one step, Acquire)   clear LIVE
//!   use the functions and the data         wait until calls == 0 (Acquire)
//!   calls - 1  (Release)  ── read by ──►   drop the data
//! ```
//!
//! # Invariants
//!
//! - `raw` is written only while the word is 0 and the slot belongs to whoever registers; it is
//!   read only by a caller that is counted in the word, or by whoever ends the shrinker.
//! - A caller is counted only in a step that saw `LIVE`, or another caller. So once `LIVE` is clear and the count 0,
//!   nobody uses the data any more.
//! - The data is dropped once: by whoever cleared `LIVE` and saw the count at 0; or, if `ORPHAN`
//!   was set while there still were calls, on behalf of the last of them.

use memcg_accounting::table::{NONE, Record};

use crate::marks::Bit;
use crate::raw::{Place, RawShrinker};
use crate::sync::{AtomicBool, AtomicU32, Cell, Ordering, fence, futex_wait, futex_wake};

/// The shrinker may be called.
const LIVE: u32 = 1 << 31;
/// Whoever ended the shrinker is gone; the last call sees to the data.
const ORPHAN: u32 = 1 << 30;
const CALLS: u32 = ORPHAN - 1;

/// An ordering or step that a model leaves out, to show that it is needed.
#[cfg(loom)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The test of `LIVE` in the step that counts a caller.
    LiveTest,
    /// The Acquire of counting a caller.
    BeginAcquire,
    /// The Release of making a slot live.
    PublishRelease,
    /// The Release of a caller's end.
    EndRelease,
    /// The Acquire of whoever waits for the calls.
    WaitAcquire,
    /// The wait itself.
    Wait,
}

/// The ordering at a site, or a relaxed one where a model weakens it.
macro_rules! at {
    ($slot:expr, $site:ident, $order:ident) => {{
        #[cfg(not(loom))]
        {
            Ordering::$order
        }
        #[cfg(loom)]
        if $slot.is_weakened(Weakened::$site) { Ordering::Relaxed } else { Ordering::$order }
    }};
}

/// Whether a step is taken: always, but where a model leaves it out.
macro_rules! step {
    ($slot:expr, $site:ident) => {{
        #[cfg(not(loom))]
        {
            true
        }
        #[cfg(loom)]
        {
            !$slot.is_weakened(Weakened::$site)
        }
    }};
}

/// A shrinker's record.
#[derive(Debug)]
pub(crate) struct Slot {
    word: AtomicU32,
    generation: AtomicU32,
    bit: AtomicU32,
    /// Its number among those that have the bit.
    rank: AtomicU32,
    facts: AtomicU32,
    /// A scan of it has returned.
    has_scanned: AtomicBool,
    raw: Cell<Option<RawShrinker>>,
    next_free: AtomicU32,
    #[cfg(loom)]
    weakened: Option<Weakened>,
}

// SAFETY: `raw` is guarded by `word` (type invariants), and what it points to is for any thread
// by the contract of `Engine::register`. The rest is atomics.
unsafe impl Sync for Slot {}

// SAFETY: as for `Sync`: what `raw` points to is tied to no thread.
unsafe impl Send for Slot {}

impl Record for Slot {
    fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            bit: AtomicU32::new(NONE),
            rank: AtomicU32::new(0),
            facts: AtomicU32::new(0),
            has_scanned: AtomicBool::new(false),
            raw: Cell::new(None),
            next_free: AtomicU32::new(NONE),
            #[cfg(loom)]
            weakened: None,
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // Relaxed: the word is 0 only after the data was taken out, by whoever gives the slot back.
        self.word.load(Ordering::Relaxed) == 0
    }
}

const WORKER: u32 = 1;
const UNAWARE: u32 = 2;

/// Whether a call began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// The caller is counted, and ends the call.
    Yes,
    /// The shrinker is gone, or never to be called again.
    Gone,
    /// It runs on a worker, and one is in a call of it.
    Busy,
}

/// What became of the calls that whoever ends a shrinker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// All are over: the data is the waiter's.
    Over,
    /// The time was, and the last call sees to the data.
    Orphaned,
}

impl Slot {
    #[cfg(all(loom, test))]
    pub(crate) fn weakened(site: Option<Weakened>) -> Self {
        Self { weakened: site, ..Self::new() }
    }

    #[cfg(loom)]
    fn is_weakened(&self, site: Weakened) -> bool {
        self.weakened == Some(site)
    }

    // ---- whoever registers or ends ------------------------------------------------------

    /// Makes a free slot live. Called by whoever took the slot.
    pub(crate) fn publish(&self, raw: RawShrinker, bit: Option<Bit>, rank: u32) {
        self.rank.store(rank, Ordering::Relaxed);
        self.bit.store(bit.map_or(NONE, |bit| bit.0), Ordering::Relaxed);
        let worker = if raw.place == Place::Worker { WORKER } else { 0 };
        let unaware = if raw.group_aware { 0 } else { UNAWARE };
        self.facts.store(worker | unaware, Ordering::Relaxed);
        self.has_scanned.store(false, Ordering::Relaxed);
        // SAFETY: the word is 0 and the slot the caller's, so nobody reads `raw` (invariants).
        self.raw.write(|place| unsafe { *place = Some(raw) });
        // INVARIANT: `raw` is written before LIVE can be seen. Release pairs with the Acquire
        // in `begin`.
        self.word.store(LIVE, at!(self, PublishRelease, Release));
    }

    /// Lets no further call begin. Relaxed: the wait for the calls orders what follows.
    pub(crate) fn retire(&self) {
        self.word.fetch_and(!LIVE, Ordering::Relaxed);
    }

    /// Waits until no call is in flight but the `own` ones of this thread, at most about
    /// `timeout_ms`. Called once, after [`retire`](Slot::retire).
    pub(crate) fn wait(&self, own: u32, timeout_ms: Option<u32>) -> Waited {
        let start = memcg_accounting::now_ms();
        while step!(self, Wait) {
            // Acquire pairs with the Release in `end`: the calls are over for the data too.
            let word = self.word.load(at!(self, WaitAcquire, Acquire));
            if word & CALLS <= own {
                break;
            }
            let left = timeout_ms
                .map(|ms| ms.saturating_sub(memcg_accounting::now_ms().wrapping_sub(start)));
            if left == Some(0) {
                break;
            }
            futex_wait(&self.word, word, left);
        }
        if !step!(self, Wait) {
            return Waited::Over;
        }
        // One step decides who sees to the data. Acquire as above.
        let before = self.word.fetch_or(ORPHAN, at!(self, WaitAcquire, Acquire));
        if before & CALLS == 0 { Waited::Over } else { Waited::Orphaned }
    }

    /// Takes the shrinker out of a slot whose calls are over, for its end.
    pub(crate) fn take(&self) -> Option<RawShrinker> {
        // SAFETY: by the caller: LIVE is clear and the calls are over, so nobody else reads or
        // writes `raw` (invariants).
        let raw = self.raw.write(|place| unsafe { (*place).take() });
        self.word.store(0, Ordering::Relaxed);
        raw
    }

    // ---- callers ------------------------------------------------------------------------

    /// Begins a call. A shrinker of the worker is in one call at a time.
    pub(crate) fn begin(&self) -> Begun {
        // Relaxed: the step below decides.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & LIVE == 0 && step!(self, LiveTest) {
                return Begun::Gone;
            }
            if word & CALLS != 0 && self.place() == Place::Worker {
                return Begun::Busy;
            }
            // Acquire pairs with the Release in `publish`: the caller sees the functions.
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                at!(self, BeginAcquire, Acquire),
                Ordering::Relaxed,
            ) {
                Ok(_) => return Begun::Yes,
                Err(now) => word = now,
            }
        }
    }

    /// The shrinker, for a call that has begun and not ended, or one's own end of it.
    pub(crate) fn raw(&self) -> Option<RawShrinker> {
        // SAFETY: the caller is counted in the word, so `raw` is not written (invariants).
        self.raw.read(|place| unsafe { *place })
    }

    /// Ends a call. `true`: it was the last of an orphan, and the data is the caller's to see to.
    #[must_use]
    pub(crate) fn end(&self) -> bool {
        // Release pairs with the Acquire in `wait`: whoever drops the data does so after this
        // call's use of it.
        let before = self.word.fetch_sub(1, at!(self, EndRelease, Release));
        if before & LIVE != 0 {
            return false;
        }
        if before & ORPHAN == 0 {
            futex_wake(&self.word, i32::MAX);
            return false;
        }
        let last = before & CALLS == 1;
        if last {
            // Partner: the Releases of the calls that ended before.
            fence(Ordering::Acquire);
        }
        last
    }

    /// Counts a caller beside one that is in a call, to look at what it calls. `false`: nobody
    /// is in a call. It ends like a call.
    #[must_use]
    pub(crate) fn begin_beside(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & CALLS != 0 {
            // Acquire as in `begin`.
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    // ---- facts --------------------------------------------------------------------------

    /// Whether it may be called. Relaxed: `begin` decides.
    pub(crate) fn is_live(&self) -> bool {
        self.word.load(Ordering::Relaxed) & LIVE != 0
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether its generations are used up.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.generation() == u32::MAX
    }

    /// As if the slot had been used that often.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn wear(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Makes ids of this use of the slot stale.
    pub(crate) fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bit(&self) -> Option<Bit> {
        let bit = self.bit.load(Ordering::Relaxed);
        (bit != NONE).then_some(Bit(bit))
    }

    pub(crate) fn rank(&self) -> u32 {
        self.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn place(&self) -> Place {
        let worker = self.facts.load(Ordering::Relaxed) & WORKER != 0;
        if worker { Place::Worker } else { Place::Direct }
    }

    /// Whether a scan of it has returned. Relaxed: a hint of who may be trusted with a worker.
    pub(crate) fn has_scanned(&self) -> bool {
        self.has_scanned.load(Ordering::Relaxed)
    }

    pub(crate) fn note_scanned(&self) {
        if !self.has_scanned() {
            self.has_scanned.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is asked only when the root reclaims.
    pub(crate) fn is_unaware(&self) -> bool {
        self.facts.load(Ordering::Relaxed) & UNAWARE != 0
    }
}
