//! How long a charge waits: a while, renewed while bytes arrive, and not beyond a total.

/// The time that reclaim may take on behalf of one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Without a byte coming back, it is over this long after a worker is at it. Milliseconds.
    pub first_ms: u32,
    /// It is over after this long in any case. Milliseconds.
    pub total_ms: u32,
}

impl Default for Deadline {
    fn default() -> Self {
        Self::ALLOCATION
    }
}

impl Deadline {
    /// What an allocation waits where nothing else was set.
    pub const ALLOCATION: Deadline = Deadline { first_ms: 50, total_ms: 200 };
    /// What a program waits that asked for reclaim by name: as long as bytes arrive.
    pub(crate) const PROACTIVE: Deadline = Deadline { first_ms: 1000, total_ms: u32::MAX };
    /// How long background work goes on without a byte.
    pub(crate) const BACKGROUND: Deadline = Deadline { first_ms: 50, total_ms: u32::MAX };

    /// 0 for the default, which no set deadline encodes to.
    pub(crate) fn to_bits(self) -> u64 {
        if self == Self::ALLOCATION {
            return 0;
        }
        (u64::from(self.first_ms) << 32) | u64::from(self.total_ms).max(1)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        if bits == 0 {
            return Self::ALLOCATION;
        }
        let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
        Self {
            first_ms: u32::from_le_bytes([e, f, g, h]),
            total_ms: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// A deadline that runs. Times are [`now_ms`](memcg_accounting::now_ms), which wraps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    deadline: Deadline,
    began: u32,
    renewed: u32,
    freed: u64,
}

impl Patience {
    pub(crate) fn new(deadline: Deadline, now_ms: u32) -> Self {
        Self { deadline, began: now_ms, renewed: now_ms, freed: 0 }
    }

    /// The first deadline begins anew: nobody is at it yet.
    pub(crate) fn renew(&mut self, now_ms: u32) {
        self.renewed = now_ms;
    }

    /// Milliseconds that are left when `freed` bytes have come back by now: more than were there
    /// before begin the first deadline anew.
    pub(crate) fn left(&mut self, now_ms: u32, freed: u64) -> u32 {
        if freed > self.freed {
            self.freed = freed;
            self.renewed = now_ms;
        }
        let first = self.deadline.first_ms.saturating_sub(now_ms.wrapping_sub(self.renewed));
        let total = self.deadline.total_ms.saturating_sub(now_ms.wrapping_sub(self.began));
        first.min(total)
    }

    /// Whether a call that has gone on for `age_ms` may be about to end: an older one is not
    /// waited for.
    pub(crate) fn is_young(&self, age_ms: u32) -> bool {
        age_ms < self.deadline.first_ms
    }

    /// Whether a call that has gone on for `age_ms` is worth waiting for alone: beyond half of the first deadline
    /// others are asked, while there is time for them.
    pub(crate) fn is_worth(&self, age_ms: u32) -> bool {
        age_ms < self.deadline.first_ms / 2
    }

    pub(crate) fn is_over(&mut self, now_ms: u32, freed: u64) -> bool {
        self.left(now_ms, freed) == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_renew_the_first_deadline_but_not_the_total() {
        let start = u32::MAX - 20;
        let at = |ms: u32| start.wrapping_add(ms);
        let mut patience = Patience::new(Deadline::ALLOCATION, start);
        assert_eq!(patience.left(at(0), 0), 50);
        assert_eq!(patience.left(at(49), 0), 1);
        assert_eq!(patience.left(at(49), 1), 50);
        assert_eq!(patience.left(at(98), 1), 1);
        assert!(patience.is_over(at(99), 1));
        let mut patience = Patience::new(Deadline::ALLOCATION, start);
        for ms in 0..20u32 {
            assert!(!patience.is_over(at(ms * 10), u64::from(ms) + 1));
        }
        assert!(patience.is_over(at(200), 1000));
    }

    #[test]
    fn a_deadline_survives_its_word() {
        for deadline in [
            Deadline::ALLOCATION,
            Deadline { first_ms: 0, total_ms: 1 },
            Deadline { first_ms: 7, total_ms: u32::MAX },
        ] {
            assert_eq!(Deadline::from_bits(deadline.to_bits()), deadline);
        }
        let none = Deadline { first_ms: 0, total_ms: 0 };
        assert!(Patience::new(Deadline::from_bits(none.to_bits()), 0).is_over(0, 0));
    }
}
