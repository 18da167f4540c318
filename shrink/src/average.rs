//! Stalled time as running averages: per cent of the last 10, 60 and 300 seconds.
//!
//! Time is cut into periods of two seconds from a group's first stall on. What a period had of
//! stalled time moves each average a step towards it. Between two looks a group is stalled all
//! the time or not at all, so a look that comes late cuts what lies between at the periods'
//! bounds: no timer runs, and the averages are what a timer would have made them.
//!
//! Source: `calc_avgs` in `kernel/sched/psi.c`, whose averages are fixed-point with 11 bits.

/// The length of a period.
pub(crate) const PERIOD_US: u64 = 2_000_000;

/// What is kept of an average over one period: `exp(-2 / seconds)`, for 10, 60 and 300.
const KEPT: [f64; 3] = [0.818_730_753_077_981_8, 0.967_216_100_482_005_9, 0.993_355_506_255_034_5];

/// Stalled time: the sum, and averages in per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stalled {
    /// Of the last 10 s, in per cent.
    pub avg10: f64,
    /// Of the last 60 s, in per cent.
    pub avg60: f64,
    /// Of the last 300 s, in per cent.
    pub avg300: f64,
    /// All of it, in microseconds.
    pub total_us: u64,
}

/// One kind of stalled time of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    averages: [f64; 3],
    total_us: u64,
    /// Stalled time of the period that runs.
    part_us: u64,
}

impl Meter {
    pub(crate) const fn new() -> Self {
        Self { averages: [0.0; 3], total_us: 0, part_us: 0 }
    }

    /// Time went from `at` to `to`, counted from the group's first stall, all of it stalled or
    /// none.
    pub(crate) fn run(&mut self, at: u64, to: u64, is_stalled: bool) {
        let stalled = |us: u64| if is_stalled { us } else { 0 };
        self.total_us += stalled(to - at);
        let end = (at / PERIOD_US + 1) * PERIOD_US;
        if to < end {
            self.part_us += stalled(to - at);
            return;
        }
        self.fold(self.part_us + stalled(end - at), 1);
        self.fold(stalled(PERIOD_US), (to - end) / PERIOD_US);
        self.part_us = stalled((to - end) % PERIOD_US);
    }

    /// `periods` are over, each with so much stalled time.
    fn fold(&mut self, stalled_us: u64, periods: u64) {
        #[expect(clippy::cast_precision_loss, reason = "at most a period, which is exact")]
        let now = stalled_us as f64 * (100.0 / PERIOD_US as f64);
        for (average, kept) in self.averages.iter_mut().zip(KEPT) {
            let kept = power(kept, periods);
            *average = now + (*average - now) * kept;
        }
    }

    pub(crate) fn read(&self) -> Stalled {
        let [avg10, avg60, avg300] = self.averages;
        Stalled { avg10, avg60, avg300, total_us: self.total_us }
    }
}

/// `base` to the power of `n`, by squaring.
fn power(mut base: f64, mut n: u64) -> f64 {
    let mut product = 1.0;
    while n != 0 {
        if n & 1 != 0 {
            product *= base;
        }
        base *= base;
        n >>= 1;
    }
    product
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The reference: a timer that fires at the end of each period and looks at every span.
    fn by_timer(spans: &[(u64, bool)]) -> ([f64; 3], u64) {
        let end: u64 = spans.iter().map(|(us, _)| us).sum();
        let mut averages = [0.0_f64; 3];
        for period in 0..end / PERIOD_US {
            let (from, to) = (period * PERIOD_US, (period + 1) * PERIOD_US);
            let (mut at, mut stalled) = (0, 0);
            for &(us, is_stalled) in spans {
                let overlap = (at + us).min(to).saturating_sub(at.max(from));
                stalled += if is_stalled { overlap } else { 0 };
                at += us;
            }
            let percent = 100.0 * stalled as f64 / PERIOD_US as f64;
            for (average, seconds) in averages.iter_mut().zip([10.0_f64, 60.0, 300.0]) {
                let kept = (-2.0 / seconds).exp();
                *average = *average * kept + percent * (1.0 - kept);
            }
        }
        let total = spans.iter().filter(|(_, stalled)| *stalled).map(|(us, _)| us).sum();
        (averages, total)
    }

    proptest! {
        #[test]
        fn averages_are_those_of_a_timer(
            spans in prop::collection::vec(
                (prop_oneof![0..5000_u64, 0..3_000_000_u64, 0..40_000_000_u64], any::<bool>()),
                1..40,
            ),
        ) {
            let mut meter = Meter::new();
            let mut at = 0;
            for &(us, is_stalled) in &spans {
                meter.run(at, at + us, is_stalled);
                at += us;
            }
            let (averages, total) = by_timer(&spans);
            prop_assert_eq!(meter.total_us, total);
            for (average, expected) in meter.averages.iter().zip(averages) {
                prop_assert!((average - expected).abs() < 1e-6, "{average} is not {expected}");
                prop_assert!((0.0..=100.0 + 1e-9).contains(average));
            }
        }

        #[test]
        fn looks_in_between_change_nothing(
            cuts in prop::collection::vec(0..30_000_000_u64, 0..20),
            is_stalled: bool,
        ) {
            let mut cuts: Vec<u64> = cuts;
            cuts.sort_unstable();
            let mut often = Meter::new();
            let mut at = 0;
            for &cut in &cuts {
                often.run(at, cut, is_stalled);
                at = cut;
            }
            often.run(at, 30_000_000, is_stalled);
            let mut once = Meter::new();
            once.run(0, 30_000_000, is_stalled);
            for (a, b) in often.averages.iter().zip(once.averages) {
                prop_assert!((a - b).abs() < 1e-9);
            }
            prop_assert_eq!((often.total_us, often.part_us), (once.total_us, once.part_us));
        }
    }

    #[test]
    fn a_stall_that_never_ends_is_a_hundred_per_cent_and_fades() {
        let mut meter = Meter::new();
        meter.run(0, 3_600_000_000, true);
        let Stalled { avg10, avg60, avg300, total_us } = meter.read();
        assert!(avg10 > 99.999 && avg60 > 99.999 && avg300 > 99.99, "{meter:?}");
        assert_eq!(total_us, 3_600_000_000);
        meter.run(3_600_000_000, 3_610_000_000, false);
        let Stalled { avg10, avg60, .. } = meter.read();
        assert!((avg10 - 36.788).abs() < 0.01 && (avg60 - 84.648).abs() < 0.01, "{meter:?}");
    }
}
