//! The threads that run shrinkers for others: how they are woken, counted and replaced.
//!
//! ```text
//!   keeper    runs no user code: ticks, and starts a worker when work waits and no worker is
//!             free, or all have been inside one call for too long
//!   worker    runs shrinkers; one that another has replaced ends when its call returns
//! ```
//!
//! # Invariants
//!
//! - `nr_workers` counts threads from before they are started until they leave; `nr_idle` those
//!   of them that look for work or sleep.
//! - Work is made visible before `signal` moves; a worker reads `signal` before it looks for
//!   work. So either it finds the work, or its sleep ends at once.

use crate::held::MOST_HELD;
use crate::sync::{AtomicBool, AtomicU32, Ordering, fence, futex_wait, futex_wake};

/// Workers there can be at once: each beyond the first stands for one that is [held](crate::MOST_HELD).
pub const MAX_WORKERS: u32 = MOST_HELD + 1;

/// The crew of one engine.
#[derive(Debug)]
pub(crate) struct Crew {
    signal: AtomicU32,
    nr_workers: AtomicU32,
    nr_idle: AtomicU32,
    keeper: AtomicU32,
    has_keeper: AtomicBool,
    wants_tick: AtomicBool,
}

impl Crew {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                signal: AtomicU32::new(0),
                nr_workers: AtomicU32::new(0),
                nr_idle: AtomicU32::new(0),
                keeper: AtomicU32::new(0),
                has_keeper: AtomicBool::new(false),
                wants_tick: AtomicBool::new(false),
            }
        }
    }

    // ---- whoever has work ---------------------------------------------------------------

    /// Whether anybody would do it. Relaxed: without a keeper, work waits for a safe point.
    #[inline]
    pub(crate) fn is_there(&self) -> bool {
        self.has_keeper.load(Ordering::Relaxed)
    }

    /// There is work, made visible before this.
    pub(crate) fn wake(&self) {
        self.signal.fetch_add(1, Ordering::Release);
        // Partner: the fence in `rest`. Either the worker's sleep sees the new signal, or this
        // sees the worker idle and wakes it.
        fence(Ordering::SeqCst);
        if self.nr_idle.load(Ordering::Relaxed) != 0 {
            futex_wake(&self.signal, 1);
        } else {
            self.wake_keeper();
        }
    }

    pub(crate) fn wake_keeper(&self) {
        self.keeper.fetch_add(1, Ordering::Release);
        futex_wake(&self.keeper, 1);
    }

    /// The keeper shall tick until a tick says that nothing is left, made visible before this. It is woken
    /// if it does not tick yet.
    pub(crate) fn want_ticks(&self) {
        // Partner: the fence in `begin_tick`. Either the next tick sees what there is, or this sees that the
        // wish was forgotten.
        fence(Ordering::SeqCst);
        // Relaxed: the wake orders it, where there is one.
        if !self.wants_tick.load(Ordering::Relaxed) {
            self.wants_tick.store(true, Ordering::Relaxed);
            self.wake_keeper();
        }
    }

    // ---- a worker -----------------------------------------------------------------------

    /// The signal, to be read before looking for work.
    pub(crate) fn signal(&self) -> u32 {
        // Acquire pairs with the Release in `wake`.
        self.signal.load(Ordering::Acquire)
    }

    /// A worker begins to look for work.
    pub(crate) fn idle(&self) {
        self.nr_idle.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker has found some.
    pub(crate) fn busy(&self) {
        self.nr_idle.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn nr_idle(&self) -> u32 {
        self.nr_idle.load(Ordering::Relaxed)
    }

    /// Sleeps until the signal is not `seen` any more. Called while idle.
    pub(crate) fn rest(&self, seen: u32) {
        // Partner: the fence in `wake`.
        fence(Ordering::SeqCst);
        futex_wait(&self.signal, seen, None);
    }

    /// An idle worker that is not needed any more ends. `false`: it is the last idle one.
    pub(crate) fn retire(&self) -> bool {
        let mut idle = self.nr_idle.load(Ordering::Relaxed);
        while idle > 1 {
            match self.nr_idle.compare_exchange_weak(
                idle,
                idle - 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.nr_workers.fetch_sub(1, Ordering::Relaxed);
                    return true;
                }
                Err(now) => idle = now,
            }
        }
        false
    }

    // ---- the keeper ---------------------------------------------------------------------

    /// Counts a worker that is about to be started. `false`: there are enough.
    pub(crate) fn hire(&self) -> bool {
        if self.nr_workers.load(Ordering::Relaxed) >= MAX_WORKERS {
            return false;
        }
        self.nr_workers.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// A worker that was counted could not be started.
    pub(crate) fn unhire(&self) {
        self.nr_workers.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn nr_workers(&self) -> u32 {
        self.nr_workers.load(Ordering::Relaxed)
    }

    pub(crate) fn set_keeper(&self, there: bool) {
        self.has_keeper.store(there, Ordering::Relaxed);
    }

    pub(crate) fn keeper_signal(&self) -> u32 {
        self.keeper.load(Ordering::Acquire)
    }

    pub(crate) fn keeper_rest(&self, seen: u32, timeout_ms: Option<u32>) {
        futex_wait(&self.keeper, seen, timeout_ms);
    }

    /// Whether somebody wanted ticks since the last one began. Relaxed: `keeper_signal` is read before.
    pub(crate) fn is_tick_wanted(&self) -> bool {
        self.wants_tick.load(Ordering::Relaxed)
    }

    /// A tick begins: who has something that it may not see any more wants another one.
    pub(crate) fn begin_tick(&self) {
        self.wants_tick.store(false, Ordering::Relaxed);
        // Partner: the fence in `want_ticks`.
        fence(Ordering::SeqCst);
    }

    /// Forgets all threads, in the child of a fork.
    pub(crate) fn forget(&self) {
        self.nr_workers.store(0, Ordering::Relaxed);
        self.nr_idle.store(0, Ordering::Relaxed);
        self.set_keeper(false);
        // What the parent's threads left may be there: a tick too many ends by itself.
        self.wants_tick.store(true, Ordering::Relaxed);
    }
}
