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

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memcg_accounting::now_ms;
use memcg_accounting::sync::yield_now;

/// Counts that threads share by their addresses, each on its own pair of cache lines.
const SHARDS: usize = 16;

#[repr(align(128))]
struct Shard(AtomicU32);

static HANDS: [Shard; SHARDS] = [const { Shard(AtomicU32::new(0)) }; SHARDS];
static FORKING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Nesting.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread's count: the same at any moment of its life.
fn count() -> &'static AtomicU32 {
    // Threads' blocks are pages apart.
    let address = DEPTH.with(|depth| core::ptr::from_ref(depth).addr());
    &HANDS[(address >> 12 ^ address >> 21) % SHARDS].0
}

/// From now on the calling thread may have bytes in hand. Nests. Waits while another forks.
pub(crate) fn take() {
    let depth = DEPTH.get();
    DEPTH.set(depth + 1);
    if depth > 0 {
        return;
    }
    loop {
        // SeqCst, as the two of `wait_for_none`: of this count and FORKING, one side sees the
        // other's.
        count().fetch_add(1, Ordering::SeqCst);
        if !FORKING.load(Ordering::SeqCst) {
            return;
        }
        count().fetch_sub(1, Ordering::Release);
        yield_now();
    }
}

/// Ends what [`take`] began.
pub(crate) fn put_down() {
    let depth = DEPTH.get();
    DEPTH.set(depth.saturating_sub(1));
    if depth == 1 {
        // Release pairs with the Acquire of `wait_for_none`.
        count().fetch_sub(1, Ordering::Release);
    }
}

/// How long a fork waits; a thread that the system does not run for that long loses what it has.
const PATIENCE_MS: u32 = 1000;

/// Lets nobody take anything in hand until [`resume`], and waits until nobody has.
pub(crate) fn wait_for_none() {
    FORKING.store(true, Ordering::SeqCst);
    let start = now_ms();
    let is_none = || HANDS.iter().all(|shard| shard.0.load(Ordering::SeqCst) == 0);
    while !is_none() && now_ms().wrapping_sub(start) < PATIENCE_MS {
        yield_now();
    }
}

/// After the fork.
pub(crate) fn resume() {
    FORKING.store(false, Ordering::Release);
}

/// In the child, whose one thread has nothing in hand.
pub(crate) fn forget_others() {
    for shard in &HANDS {
        shard.0.store(0, Ordering::Relaxed);
    }
}
