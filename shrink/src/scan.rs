//! How many objects a shrinker is asked to look at.
//!
//! The kernel's arithmetic: the share of a cache that one pass touches halves with each step of
//! priority, and what a cache costs to fill again (`seeks`) makes its share smaller. Two things
//! differ. A pass takes what the share comes to, also when that is less than a batch: the kernel
//! passes caches of under 128 objects over until priority 1; and at priority 0 no cache, however
//! dear, is asked for less than all it has. While the last quarter of a cache is not to be
//! touched, one pass takes at most half.
//!
//! Work that a scan leaves undone, because the shrinker stopped or the time was over, is owed
//! (`deferred.rs`): a later scan takes a share of it on top of its own, the larger the harder it
//! presses. What a scan does not do because it is enough is not owed, for nobody wanted it. The
//! kernel, whose scans end only by count, has no such case.
//!
//! Source: `do_shrink_slab` in `mm/shrinker.c`.

/// A pass over a subtree begins here, at 1/4096 of each cache, as the kernel's `DEF_PRIORITY`.
pub(crate) const FIRST_PRIORITY: u32 = 12;
/// Passes down to here leave at least a quarter of each cache with the usual `seeks`: 1/2 of what
/// the passes before it left, which is at least 0.57. Below, everything may go.
pub(crate) const GENTLE_PRIORITY: u32 = 2;
/// Objects of one call where a shrinker does not say: the kernel's `SHRINK_BATCH`.
pub(crate) const DEFAULT_BATCH: u64 = 128;
/// No count is believed beyond this, so that sums do not overflow.
pub(crate) const MOST_OBJECTS: u64 = 1 << 40;

/// What one pass asks of one shrinker in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Objects to look at.
    pub(crate) total: u64,
    /// Objects of one call, at most.
    pub(crate) batch: u64,
    /// The scan's own part, and what was owed before it.
    delta: u64,
    owed: u64,
    /// No more than this can be owed.
    most_owed: u64,
}

/// A shrinker's count and what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Objects that could go, as the shrinker counts.
    pub(crate) freeable: u64,
    /// What an object costs to make again.
    pub(crate) seeks: u32,
    /// Objects of one call; 0: the default.
    pub(crate) batch: u32,
    /// Objects that earlier scans owe.
    pub(crate) owed: u64,
}

impl Plan {
    /// The plan at `priority`; a `gentle` one leaves the half of the cache alone.
    pub(crate) fn new(share: Share, priority: u32, gentle: bool) -> Self {
        let freeable = share.freeable.min(MOST_OBJECTS);
        let batch = if share.batch == 0 { DEFAULT_BATCH } else { u64::from(share.batch) };
        let least = if priority == 0 { freeable } else { 0 };
        let delta = match share.seeks {
            0 => freeable.div_ceil(2),
            seeks => (freeable >> priority) * 4 / u64::from(seeks),
        };
        let delta = delta.max(least);
        let most = if gentle { freeable / 2 } else { 2 * freeable };
        let delta = delta.min(most);
        let owed = share.owed.min(MOST_OBJECTS);
        let total = ((owed >> priority) + delta).min(most);
        Self { total, batch, delta, owed, most_owed: 2 * freeable }
    }

    /// What is owed after `scanned` objects were looked at; `is_cut`: the scan ended before its
    /// total, and not because it was enough.
    pub(crate) fn owed_after(&self, scanned: u64, is_cut: bool) -> u64 {
        let own = if is_cut { self.delta } else { self.delta.min(scanned) };
        (self.owed + own).saturating_sub(scanned).min(self.most_owed)
    }
}

/// The next priority to try after a pass at `priority` that had nothing to look at anywhere,
/// with `most` objects in the largest cache that was asked: the one at which that cache has a
/// share, or the next.
pub(crate) fn skip_to(priority: u32, most: u64) -> u32 {
    let next = priority.saturating_sub(1);
    // (most >> p) is at least 1 from p = log2(most) on down.
    most.checked_ilog2().map_or(next, |log| log.min(next))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(freeable: u64, seeks: u32) -> Share {
        Share { freeable, seeks, batch: 0, owed: 0 }
    }

    /// What `do_shrink_slab` scans, and what it defers, where the shrinker stops after `stop`.
    fn kernel(share: Share, priority: u32, stop: u64) -> (u64, u64) {
        let batch = if share.batch == 0 { 128 } else { u64::from(share.batch) };
        let delta = match share.seeks {
            0 => share.freeable / 2,
            seeks => (share.freeable >> priority) * 4 / u64::from(seeks),
        };
        let mut total = ((share.owed >> priority) + delta).min(2 * share.freeable);
        let mut scanned = 0;
        while (total >= batch || (total >= share.freeable && total > 0)) && scanned < stop {
            let now = batch.min(total);
            scanned += now;
            total -= now;
        }
        (scanned, (share.owed + delta).saturating_sub(scanned).min(2 * share.freeable))
    }

    #[test]
    fn the_figures_of_the_kernel() {
        let total = |freeable, priority| Plan::new(share(freeable, 2), priority, false).total;
        assert_eq!(total(100_000, 10), 194);
        assert_eq!(total(100_000, 1), 100_000);
        assert_eq!(total(1_000, 1), 1_000);
        assert_eq!(total(100, 0), 200);
        assert_eq!(total(100, 6), 2, "the kernel takes nothing of 100 objects before priority 1");
    }

    #[test]
    fn gentle_passes_leave_a_quarter() {
        for objects in [1u64, 2, 3, 7, 100, 1_000, 123_456] {
            let mut left = objects;
            for priority in (GENTLE_PRIORITY..=FIRST_PRIORITY).rev() {
                left -= Plan::new(share(left, 2), priority, true).total;
            }
            assert!(4 * left >= objects, "{left} of {objects}");
        }
    }

    #[test]
    fn skipping_goes_to_where_the_largest_cache_has_a_share() {
        assert_eq!(skip_to(12, 100), 6);
        assert_eq!(skip_to(12, 1 << 20), 11);
        assert_eq!(skip_to(12, 1), 0);
        assert_eq!(skip_to(12, 0), 11);
        assert_eq!(skip_to(0, 5), 0);
    }

    proptest! {
        /// Where the kernel scans whole batches, ours is its total with at most one part of a
        /// batch more; and never more than twice the cache.
        #[test]
        fn no_less_than_the_kernel_and_at_most_a_batch_more(
            freeable in 0u64..10_000_000,
            seeks in 0u32..9,
            batch in 0u32..1_000,
            priority in 1u32..=12,
            owed in 0u64..10_000_000,
        ) {
            let share = Share { freeable, seeks, batch, owed };
            let plan = Plan::new(share, priority, false);
            let (scanned, _) = kernel(share, priority, u64::MAX);
            prop_assert!(plan.total >= scanned, "{} < {scanned}", plan.total);
            prop_assert!(plan.total <= scanned + plan.batch, "{} >> {scanned}", plan.total);
            prop_assert!(plan.total <= 2 * freeable);
        }

        /// Where a shrinker stops in the middle, as much is owed as in the kernel: the same
        /// batches were looked at then.
        #[test]
        fn as_much_is_owed_as_in_the_kernel(
            freeable in 0u64..1_000_000,
            seeks in 1u32..9,
            priority in 1u32..=12,
            owed in 0u64..3_000_000,
            batches in 0u64..100,
        ) {
            let share = Share { freeable, seeks, batch: 0, owed };
            let plan = Plan::new(share, priority, false);
            let stop = (batches * plan.batch).min(plan.total / plan.batch * plan.batch);
            let (scanned, deferred) = kernel(share, priority, stop);
            prop_assert_eq!(scanned, stop);
            prop_assert_eq!(plan.owed_after(stop, true), deferred);
        }

        /// What was not wanted is not owed, and what is done is not owed any more.
        #[test]
        fn only_what_was_wanted_is_owed(
            freeable in 0u64..1_000_000,
            priority in 0u32..=12,
            owed in 0u64..3_000_000,
            part in 0u64..=100,
            gentle: bool,
        ) {
            let share = Share { freeable, seeks: 2, batch: 0, owed };
            let plan = Plan::new(share, priority, gentle);
            let scanned = plan.total * part / 100;
            prop_assert!(plan.owed_after(scanned, false) <= owed);
            prop_assert!(plan.owed_after(scanned, false) <= plan.owed_after(scanned, true));
            if owed == 0 {
                prop_assert_eq!(plan.owed_after(plan.total, true), 0);
                prop_assert_eq!(plan.owed_after(scanned, false), 0);
            }
        }

        /// No cache is too small: some priority looks at it, and the last at all of it.
        #[test]
        fn no_cache_is_overlooked(freeable in 1u64..1_000_000, seeks in 0u32..9) {
            prop_assert!(Plan::new(share(freeable, seeks), 0, false).total >= freeable);
            let first = skip_to(FIRST_PRIORITY, freeable);
            prop_assert!(seeks > 4 || Plan::new(share(freeable, seeks), first, false).total >= 1);
        }

        #[test]
        fn nothing_overflows(freeable: u64, seeks: u32, batch: u32, owed: u64, priority in 0u32..=12) {
            let plan = Plan::new(Share { freeable, seeks, batch, owed }, priority, false);
            plan.owed_after(freeable, true);
            prop_assert!(plan.total <= 2 * freeable.min(MOST_OBJECTS));
        }
    }
}
