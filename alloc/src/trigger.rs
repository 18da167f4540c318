//! A trigger of pressure: so much stalled time within a window, once per window at most.
//!
//! Source: `window_update` and `update_triggers` in `kernel/sched/psi.c`.

/// One trigger. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trigger {
    stall: u64,
    window: u64,
    began: u64,
    total_then: u64,
    /// What the window before this one grew by.
    grew_before: u64,
    looked: (u64, u64),
    fired: Option<u64>,
}

impl Trigger {
    /// A trigger of `stall` within `window`, when stalls come to `total`.
    pub(crate) const fn new(stall: u64, window: u64, now: u64, total: u64) -> Self {
        Self {
            stall,
            window,
            began: now,
            total_then: total,
            grew_before: 0,
            looked: (now, total),
            fired: None,
        }
    }

    /// Stalls come to `total` now: whether it fires.
    ///
    /// The window slides by interpolation: of the one before, as much counts as lies within. It
    /// is looked at soon after every stall, so what came since a look of long ago came just now.
    pub(crate) fn look(&mut self, now: u64, total: u64) -> bool {
        let (looked_at, total_there) = core::mem::replace(&mut self.looked, (now, total));
        if now.saturating_sub(looked_at) > self.window {
            (self.began, self.total_then, self.grew_before) = (now, total_there, 0);
        }
        let elapsed = now.saturating_sub(self.began);
        let mut growth = total.saturating_sub(self.total_then);
        if elapsed > self.window {
            (self.began, self.total_then, self.grew_before) = (now, total, growth);
        } else {
            growth += self.grew_before.saturating_mul(self.window - elapsed) / self.window;
        }
        let is_due = self.fired.is_none_or(|fired| now.saturating_sub(fired) >= self.window);
        let fires = growth >= self.stall && is_due;
        if fires {
            self.fired = Some(now);
        }
        fires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    #[test]
    fn it_fires_when_the_window_holds_enough_and_once_per_window() {
        let mut trigger = Trigger::new(100 * MS, 1000 * MS, 0, 0);
        assert!(!trigger.look(100 * MS, 40 * MS));
        assert!(!trigger.look(200 * MS, 99 * MS));
        assert!(trigger.look(300 * MS, 101 * MS));
        for ms in (400..1300).step_by(100) {
            assert!(!trigger.look(ms * MS, ms * MS / 2), "at {ms} ms");
        }
        assert!(trigger.look(1300 * MS, 650 * MS));
    }

    #[test]
    fn stalls_that_lie_a_window_apart_do_not_add_up() {
        let mut trigger = Trigger::new(100 * MS, 1000 * MS, 0, 0);
        for nr in 1..50 {
            assert!(!trigger.look(nr * 3000 * MS, nr * 60 * MS), "stall {nr}");
        }
        // Two of them within one window do.
        let total = 49 * 60 * MS;
        assert!(trigger.look((49 * 3000 + 500) * MS, total + 60 * MS));
    }

    #[test]
    fn the_window_before_counts_as_far_as_it_is_within() {
        let mut trigger = Trigger::new(100 * MS, 1000 * MS, 0, 0);
        // 80 ms at the end of one window, 50 ms at the beginning of the next.
        for ms in (100..1000).step_by(100) {
            assert!(!trigger.look(ms * MS, 0));
        }
        assert!(!trigger.look(1001 * MS, 80 * MS));
        assert!(trigger.look(1101 * MS, 130 * MS));
        // The other way round the first is over when the second comes.
        let mut trigger = Trigger::new(100 * MS, 1000 * MS, 0, 0);
        assert!(!trigger.look(100 * MS, 80 * MS));
        for ms in (200..1900).step_by(100) {
            assert!(!trigger.look(ms * MS, 80 * MS), "at {ms} ms");
        }
        assert!(!trigger.look(1900 * MS, 130 * MS));
    }
}
