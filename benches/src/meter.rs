//! How long a workload runs and what is kept of it.

use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// One small turn: that it runs, not how fast.
    #[default]
    Tiny,
    /// A figure within tens of milliseconds.
    Quick,
    /// A figure to keep.
    Full,
}

impl Scale {
    /// Its name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// The scale of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Tiny, Self::Quick, Self::Full].into_iter().find(|scale| scale.name() == name)
    }

    /// `n`, or few where only the working of a workload counts.
    #[must_use]
    pub fn some(self, n: usize) -> usize {
        if self == Self::Tiny { n.div_ceil(64) } else { n }
    }

    /// How long to run before measuring, and how long to measure.
    fn budget(self) -> (Duration, Duration) {
        match self {
            Self::Tiny => (Duration::ZERO, Duration::ZERO),
            Self::Quick => (Duration::from_millis(10), Duration::from_millis(30)),
            Self::Full => (Duration::from_millis(50), Duration::from_millis(200)),
        }
    }
}

/// Resident bytes around a filling and an emptying of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Bytes that were asked for.
    pub asked: u64,
    /// Before.
    pub before: u64,
    /// With everything live.
    pub full: u64,
    /// After 90 % was freed at random.
    pub tenth: u64,
    /// Some time after everything was freed.
    pub empty: u64,
    /// When all but a few were freed, which are what was asked for then; 0 where that was not done.
    pub kept: u64,
    /// Ten seconds after.
    pub later: u64,
}

/// Turns that are kept.
const MOST: usize = 4096;

/// CPU time of all threads of the process.
///
/// # Panics
///
/// On a system without the clock.
#[must_use]
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the one time.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(answer, 0, "every Linux has this clock");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Runs a workload's turns and keeps their times.
#[derive(Debug)]
pub struct Meter {
    scale: Scale,
    turns: Option<usize>,
    operations: usize,
    ns: Vec<f64>,
    cpu_ns: Vec<f64>,
    memory: Option<Memory>,
}

impl Meter {
    /// An empty one; `turns` is how often a turn runs, or none for as long as goes with the scale.
    #[must_use]
    pub fn new(scale: Scale, turns: Option<usize>) -> Self {
        Self {
            scale,
            turns,
            operations: 0,
            ns: Vec::with_capacity(MOST),
            cpu_ns: Vec::with_capacity(MOST),
            memory: None,
        }
    }

    /// How much is measured.
    #[must_use]
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Runs `turn`, which answers how many operations it did, until the time is up: first to
    /// warm up, then for the figure. At least once.
    pub fn run(&mut self, mut turn: impl FnMut() -> usize) {
        if let Some(turns) = self.turns {
            for _ in 0..turns {
                self.operations += turn();
            }
            return;
        }
        let (warm, measured) = self.scale.budget();
        let start = Instant::now();
        while start.elapsed() < warm {
            turn();
        }
        let start = Instant::now();
        loop {
            let (cpu, wall) = (cpu_time(), Instant::now());
            let operations = turn();
            let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
            self.ns.push(wall.as_nanos() as f64 / operations.max(1) as f64);
            self.cpu_ns.push(cpu.as_nanos() as f64 / operations.max(1) as f64);
            self.operations += operations;
            if start.elapsed() >= measured || self.ns.len() == MOST {
                break;
            }
        }
    }

    /// Operations that were measured.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations
    }

    /// Keeps what a memory workload found.
    pub fn memory(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// The median time of an operation in nanoseconds; none of a workload of memory.
    #[must_use]
    pub fn ns(&self) -> Option<f64> {
        (!self.ns.is_empty()).then(|| median(&self.ns))
    }

    /// The median CPU time of an operation in nanoseconds, that of all threads.
    #[must_use]
    pub fn cpu_ns(&self) -> Option<f64> {
        (!self.cpu_ns.is_empty()).then(|| median(&self.cpu_ns))
    }

    /// What a memory workload found.
    #[must_use]
    pub fn found(&self) -> Option<Memory> {
        self.memory
    }
}

/// The median; of an even number, the mean of the two in the middle.
///
/// # Panics
///
/// Of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The value that `share` of all lie below.
///
/// # Panics
///
/// Of nothing.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, reason = "an index")]
    let at = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.0), 1.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), 3.0);
    }

    #[test]
    fn a_tiny_run_is_one_turn() {
        let mut meter = Meter::new(Scale::Tiny, None);
        let mut turns = 0;
        meter.run(|| {
            turns += 1;
            10
        });
        assert_eq!((turns, meter.operations()), (1, 10));
        assert!(meter.ns().is_some());
    }

    #[test]
    fn turns_may_be_counted() {
        let mut meter = Meter::new(Scale::Full, Some(3));
        meter.run(|| 7);
        assert_eq!((meter.operations(), meter.ns()), (21, None));
    }
}
