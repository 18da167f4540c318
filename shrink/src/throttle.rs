//! Pauses over `high`: a thread that charges there may be slowed down, at a safe point.
//!
//! A thread owes for what it charged while a group was over its `high`. At the next safe point,
//! with no allocation on the stack, it pauses: the longer the further over it, after the kernel's
//! curve, and no longer than the group allows. Off unless a group asks for it; never a refusal.
//!
//! ```text
//!   o = (usage - high) / high      pause = o² × pages charged, in seconds
//! ```
//!
//! # Invariants
//!
//! - One pause is at most [`LONGEST_THROTTLE_MS`], whatever was asked for.
//! - Nothing here runs inside an allocation or under a lock.
//!
//! Source: `calculate_high_delay` and `mem_cgroup_handle_over_high` in `mm/memcontrol.c`, where a
//! pause takes up to 2 s. As there, the level that is furthest over decides.

use memcg_accounting::{GroupRef, now_ms};

use crate::Engine;
use crate::sync::{AtomicU32, Ordering, futex_wait};

/// The longest that one pause may be.
pub const LONGEST_THROTTLE_MS: u32 = 100;
/// What comes to less is not worth a sleep, and stays owed.
const LEAST_MS: u32 = 1;
/// The kernel's `MEMCG_DELAY_PRECISION_SHIFT` and `MEMCG_DELAY_SCALING_SHIFT`.
const PRECISION: u32 = 20;
const SCALING: u32 = 14;
/// What the kernel's curve is for: `MEMCG_CHARGE_BATCH` pages.
const BATCH: u128 = 64 * PAGE as u128;
const PAGE: u64 = 4096;

/// How long whoever charged `bytes` pauses, in milliseconds, without a bound.
fn delay_ms(usage: u64, high: u64, bytes: u64) -> u64 {
    if usage <= high {
        return 0;
    }
    // Beyond this it is as long as can be anyway, and the square stays within its word.
    let over = (u128::from(usage - high) << PRECISION) / u128::from(high.max(PAGE));
    let over = over.min(1 << 40);
    let of_batch = (over * over * 1000) >> PRECISION >> SCALING;
    u64::try_from(of_batch.saturating_mul(u128::from(bytes)) / BATCH).unwrap_or(u64::MAX)
}

/// Sleeps for `ms`; answers for how long it did, in microseconds.
pub(crate) fn pause(ms: u32) -> u64 {
    let start = now_ms();
    loop {
        let slept = now_ms().wrapping_sub(start);
        if slept >= ms {
            return u64::from(slept) * 1000;
        }
        futex_wait(&AtomicU32::new(0), 0, Some(ms - slept));
    }
}

impl Engine {
    /// Sets how long a thread that charges over the `high` of `group` may pause at a time, in
    /// milliseconds, at most [`LONGEST_THROTTLE_MS`]; 0: not at all, which is how it begins.
    /// `false`: no memory to note it, or the group is gone.
    pub fn set_throttle(&self, group: GroupRef, longest_ms: u32) -> bool {
        if !self.tree.is_online(group) {
            return false;
        }
        let Some(record) = self.groups.record(self.tree, group) else { return false };
        // Relaxed: a fact of its own; a stale one is one pause more or less.
        record.throttle_ms.store(longest_ms.min(LONGEST_THROTTLE_MS), Ordering::Relaxed);
        true
    }

    /// Pauses the calling thread, which charged `bytes` while `group` or a level above it was
    /// over its `high`, for as long as the levels that are over it now ask. Answers how long it
    /// was, in microseconds; `None`: not worth a pause yet, and the bytes are still owed.
    ///
    /// Never inside an allocation or under a lock.
    pub fn throttle(&self, group: GroupRef, bytes: u64) -> Option<u64> {
        let (mut longest, mut is_over) = (0, false);
        let mut at = Some(group);
        while let Some(level) = at {
            if let Some(high) = self.tree.high(level).bytes()
                && let Some(record) = self.groups.find(level)
            {
                let allowed = record.throttle_ms.load(Ordering::Relaxed);
                let usage = self.tree.usage(level);
                let delay = u32::try_from(delay_ms(usage, high, bytes)).unwrap_or(u32::MAX);
                is_over |= allowed != 0 && usage > high;
                longest = longest.max(delay.min(allowed));
            }
            at = self.tree.online_parent(level);
        }
        if !is_over {
            return Some(0);
        }
        if longest < LEAST_MS {
            return None;
        }
        let _stall = self.stall(group);
        Some(pause(longest))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// The figures of the kernel's own table: `high` at 100 MiB, a batch of 64 pages.
    #[test]
    fn the_kernels_curve() {
        let of = |usage: u64| delay_ms(usage * MIB, 100 * MIB, 64 * PAGE);
        assert_eq!([99, 100, 101, 105, 110, 115].map(of), [0, 0, 6, 159, 639, 1439]);
        assert!((2000..=2074).contains(&of(118)));
    }

    proptest! {
        #[test]
        fn it_is_the_square_of_the_overage_in_seconds(
            high in MIB..1 << 40,
            over in 0..1_000_u64,
            pages in 1..1_000_u64,
        ) {
            // In per mille of `high`.
            let usage = high + high / 1000 * over;
            let exact = over * over * pages / 1000;
            let found = delay_ms(usage, high, pages * PAGE);
            prop_assert!(found.abs_diff(exact) <= 2 + exact / 50 + pages, "{found} and {exact}");
        }

        #[test]
        fn it_grows_with_both_and_nothing_overflows(usage: u64, high: u64, bytes: u64, more: u64) {
            let delay = delay_ms(usage, high, bytes);
            prop_assert!(delay <= delay_ms(usage.saturating_add(more), high, bytes));
            prop_assert!(delay <= delay_ms(usage, high, bytes.saturating_add(more)));
            prop_assert_eq!(delay_ms(high, high, bytes), 0);
        }
    }
}
