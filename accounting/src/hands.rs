//! Bytes in hand: charged, and not yet an object's; or an object's no longer, and still charged.
//!
//! A fork in between would give the child a charge whose thread it does not have. So whoever has
//! bytes in hand outside a record's lock says so, and a fork waits until nobody has:
//!
//! ```text
//!   owner                              fork (drain mutex held, all records stopped)
//!   count + 1                          FORKING = true
//!   FORKING ?  yes: count - 1, wait    wait until all counts are 0
//!   charge … tag; untag … uncharge     lock tree and central lists, fork
//!   count - 1  (Release) ── read by ─► (Acquire)
//! ```
//!
//! # Invariants
//!
//! - With bytes in hand a thread waits for short locks alone that a fork takes later (the tree's,
//!   the engine's, the central lists', jemalloc's): never for a record, a drain or a shrinker.

use crate::gate::step;
use crate::sync::{AtomicBool, AtomicU32, Ordering, yield_now};

/// Counts that threads share, each on its own pair of cache lines.
const SHARDS: usize = if cfg!(loom) { 2 } else { 16 };

#[repr(align(128))]
#[derive(Debug)]
struct Shard(AtomicU32);

/// Who has bytes in hand, and whether a fork waits for them.
#[derive(Debug)]
pub struct Hands {
    shards: [Shard; SHARDS],
    forking: AtomicBool,
    #[cfg(all(loom, test))]
    pub(crate) weakened: Option<Weakened>,
}

/// An ordering or step that a model leaves out, to show that it is needed.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The order of the owner's count before its look whether somebody forks.
    OwnerOrder,
    /// The owner's look whether somebody forks.
    Look,
    /// The wait of the fork.
    Wait,
    /// The Release with which the owner's count goes down.
    PutDownRelease,
}

#[cfg(all(loom, test))]
impl Hands {
    fn is_weakened(&self, site: Weakened) -> bool {
        self.weakened == Some(site)
    }
}

impl Default for Hands {
    fn default() -> Self {
        Self::new()
    }
}

/// A model takes accesses that are `SeqCst` for weaker ones: there the fence stands that they are.
#[inline(always)]
fn seq_cst_in_a_model() {
    #[cfg(loom)]
    crate::sync::fence(Ordering::SeqCst);
}

impl Hands {
    crate::const_new! {
        /// Nobody has anything in hand.
        pub fn new() -> Self {
            #[cfg(not(loom))]
            let shards = [const { Shard(AtomicU32::new(0)) }; SHARDS];
            #[cfg(loom)]
            let shards = core::array::from_fn(|_| Shard(AtomicU32::new(0)));
            Self {
                shards,
                forking: AtomicBool::new(false),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    fn count(&self, of: usize) -> &AtomicU32 {
        &self.shards[of % SHARDS].0
    }

    /// From now on the thread `of`, any number that stays the same, may have bytes in hand. Waits
    /// while another forks.
    #[inline]
    pub fn take(&self, of: usize) {
        while !self.try_take(of) {
            // Relaxed: the look in there decides.
            while self.forking.load(Ordering::Relaxed) {
                yield_now();
            }
        }
    }

    /// The same without the wait: `false`, and nothing is in hand, while another forks.
    #[inline]
    pub(crate) fn try_take(&self, of: usize) -> bool {
        // SeqCst, as the two of `wait_for_none`: of this count and `forking`, one side sees the
        // other's.
        self.count(of).fetch_add(1, Ordering::SeqCst);
        if step!(self, OwnerOrder) {
            seq_cst_in_a_model();
        }
        if !self.forking.load(Ordering::SeqCst) || !step!(self, Look) {
            return true;
        }
        self.count(of).fetch_sub(1, Ordering::Release);
        false
    }

    /// Ends what [`take`](Hands::take) began.
    #[inline]
    pub fn put_down(&self, of: usize) {
        let order = if step!(self, PutDownRelease) { Ordering::Release } else { Ordering::Relaxed };
        // Release pairs with the load of `wait_for_none`.
        self.count(of).fetch_sub(1, order);
    }

    /// Lets nobody take anything in hand until [`resume`](Hands::resume), and waits until nobody
    /// has, at most about `timeout_ms`: a thread that the system does not run for that long loses
    /// what it has.
    pub fn wait_for_none(&self, timeout_ms: u32) {
        self.forking.store(true, Ordering::SeqCst);
        seq_cst_in_a_model();
        let is_none = || self.shards.iter().all(|shard| shard.0.load(Ordering::SeqCst) == 0);
        let start = crate::clock::now_ms();
        let is_over = || !cfg!(loom) && crate::clock::now_ms().wrapping_sub(start) >= timeout_ms;
        while step!(self, Wait) && !is_none() && !is_over() {
            yield_now();
        }
    }

    /// After the fork.
    pub fn resume(&self) {
        self.forking.store(false, Ordering::Release);
    }

    /// In the child, whose one thread has nothing in hand.
    pub fn forget_others(&self) {
        for shard in &self.shards {
            shard.0.store(0, Ordering::Relaxed);
        }
    }
}
