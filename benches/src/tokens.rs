//! tracking-allocator's groups as tenants: each thread enters one.

use std::sync::atomic::{AtomicU64, Ordering};

use tracking_allocator::{
    AllocationGroupId, AllocationGroupToken, AllocationGuard, AllocationRegistry, AllocationTracker,
};

use crate::second_chance::SecondChance;
use crate::tenants::{NoTurn, Tenants};

/// Bytes that were allocated and freed. The trait leaves it to the user what to do with an event;
/// this is the least that accounting can do.
static BYTES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

struct Sum;

impl AllocationTracker for Sum {
    fn allocated(&self, _: usize, object: usize, _: usize, _: AllocationGroupId) {
        // Relaxed: a sum.
        BYTES[0].fetch_add(object as u64, Ordering::Relaxed);
    }

    fn deallocated(
        &self,
        _: usize,
        object: usize,
        _: usize,
        _: AllocationGroupId,
        _: AllocationGroupId,
    ) {
        // Relaxed: a sum.
        BYTES[1].fetch_add(object as u64, Ordering::Relaxed);
    }
}

/// Starts to count, once for the process.
///
/// # Panics
///
/// If another tracker was set.
pub fn start() {
    AllocationRegistry::set_global_tracker(Sum).expect("the only tracker");
    AllocationRegistry::enable_tracking();
}

/// Bytes allocated since the start.
#[must_use]
pub fn allocated() -> u64 {
    // Relaxed: a sum for reading.
    BYTES[0].load(Ordering::Relaxed)
}

/// Each thread lives in a group of its own; there is no switching.
#[derive(Clone, Copy, Debug)]
pub struct Tokens;

/// A scope; none inside the thread's own.
pub type Entered = Option<AllocationGuard<'static>>;

impl Tenants for Tokens {
    type Scope = Entered;
    type Turn = NoTurn;
    type Cache = SecondChance;

    fn home(self) -> Entered {
        let token = AllocationGroupToken::register()?;
        Some(Box::leak(Box::new(token)).enter())
    }

    fn of(self, _: usize) -> Entered {
        None
    }

    fn turn(self) -> NoTurn {
        NoTurn
    }
}
