//! What the calling thread has in hand: [`Hands`] has the protocol, and why.

use core::cell::Cell;

use memcg_accounting::Hands;

use crate::fork::{AtFork, Place};

static HANDS: Hands = Hands::new();

thread_local! {
    /// Nesting.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread's number: the same at any moment of its life.
fn number() -> usize {
    // Threads' blocks are pages apart.
    let address = DEPTH.with(|depth| core::ptr::from_ref(depth).addr());
    address >> 12 ^ address >> 21
}

/// From now on the calling thread may have bytes in hand. Nests. Waits while another forks.
pub(crate) fn take() {
    let depth = DEPTH.get();
    DEPTH.set(depth + 1);
    if depth == 0 {
        HANDS.take(number());
    }
}

/// Ends what [`take`] began.
pub(crate) fn put_down() {
    let depth = DEPTH.get();
    DEPTH.set(depth.saturating_sub(1));
    if depth == 1 {
        HANDS.put_down(number());
    }
}

/// How long a fork waits; a thread that the system does not run for that long loses what it has.
const PATIENCE_MS: u32 = 1000;

/// Before a fork nobody takes anything in hand, and nobody has; in the child its one thread has nothing either.
pub(crate) static AT_FORK: AtFork = AtFork {
    place: Place::Hands,
    prepare: || HANDS.wait_for_none(PATIENCE_MS),
    release: |in_child| {
        if in_child {
            HANDS.forget_others();
        }
        HANDS.resume();
    },
    in_child: || (),
};
