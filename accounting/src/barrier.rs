//! The heavy side of the asymmetric fence.
//!
//! Owners of thread records announce themselves with plain stores and a compiler fence. Whoever
//! revokes makes all of them visible at once with `membarrier(2)`, which interrupts every CPU
//! that runs a thread of this process. Where the system refuses it, both sides use full fences:
//! see [`Reason::FENCE`](crate::Reason::FENCE).

use crate::sync::{AtomicU32, Ordering, fence};

/// How the two sides of the fence are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierKind {
    /// Compiler fences for owners, `membarrier` for revokers.
    Membarrier,
    /// Full fences for both.
    Fence,
}

const UNKNOWN: u32 = 0;
const MEMBARRIER: u32 = 1;
const FENCE: u32 = 2;

/// The process's choice of fence.
#[derive(Debug)]
pub struct Barrier {
    kind: AtomicU32,
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
}

impl Barrier {
    crate::const_new! {
        /// A barrier that has yet to be [registered](Barrier::register).
        pub fn new() -> Self {
            Self { kind: AtomicU32::new(UNKNOWN) }
        }
    }

    /// Asks the system for `membarrier`. To be called while the process has one thread, where
    /// it takes 0.4 µs; later it takes milliseconds.
    pub fn register(&self) -> BarrierKind {
        if self.kind.load(Ordering::Relaxed) == UNKNOWN {
            let works = !cfg!(loom)
                && membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
                && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
            let kind = if works { MEMBARRIER } else { FENCE };
            // Relaxed: two threads that race here find the same answer.
            self.kind.store(kind, Ordering::Relaxed);
        }
        self.kind()
    }

    /// How the fence is made now.
    pub fn kind(&self) -> BarrierKind {
        // Relaxed: a record learns the kind from its own `revoke` word, under its lock.
        match self.kind.load(Ordering::Relaxed) {
            MEMBARRIER => BarrierKind::Membarrier,
            _ => BarrierKind::Fence,
        }
    }

    /// The heavy side: every owner's stores before this are visible after it, and every owner
    /// sees the stores that came before it.
    ///
    /// `false`: `membarrier` has begun to fail, and nothing is promised this time. From now on
    /// the kind is [`BarrierKind::Fence`]; the caller tells the owners and waits.
    #[must_use]
    pub fn heavy(&self) -> bool {
        match self.kind() {
            BarrierKind::Membarrier if membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) => true,
            BarrierKind::Membarrier => {
                self.kind.store(FENCE, Ordering::Relaxed);
                false
            }
            // Partner: the full fence in `Gate::enter_fenced`.
            BarrierKind::Fence => {
                fence(Ordering::SeqCst);
                true
            }
        }
    }
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: `membarrier` reads no memory of ours; an unknown command is an error.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
