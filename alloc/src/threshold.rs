//! What a watch waits for.

use std::time::Duration;

use memcg_accounting::EventKind;

/// What a [`Watch`](crate::Watch) waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Usage crosses this many bytes, up or down: it reaches the threshold, or falls below it.
    Usage(u64),
    /// The count of an event of the group or below it moves.
    Event(EventKind),
    /// Threads of the group or below it wait for memory for `stall` within `window`, as a trigger
    /// of the kernel's pressure stall information.
    Pressure {
        /// Only time in which all threads inside waited counts; `false`: any thread's.
        full: bool,
        /// How much waiting is news: more than nothing, at most `window`.
        stall: Duration,
        /// Within how long: 500 ms to 10 s. There is one notification per window at most.
        window: Duration,
    },
}

impl Threshold {
    /// What is wrong with it.
    pub(crate) fn check(self) -> Result<(), &'static str> {
        const SHORTEST: Duration = Duration::from_millis(500);
        const LONGEST: Duration = Duration::from_secs(10);
        match self {
            Threshold::Usage(0) => Err("usage never crosses 0 bytes"),
            Threshold::Pressure { window, .. } if !(SHORTEST..=LONGEST).contains(&window) => {
                Err("a window of pressure is 500 ms to 10 s")
            }
            Threshold::Pressure { stall, window, .. }
                if stall > window || stall.as_micros() == 0 =>
            {
                Err("a stall is longer than nothing and at most its window")
            }
            _ => Ok(()),
        }
    }
}
