//! One group's counter: usage, its peak, and the limits that it is held to.
//!
//! # Invariants
//!
//! - `usage <= max` but for what was forced, and for a `max` that was lowered below usage.
//! - `usage` of a group is at least the sum of its children's.
//! - Writers hold the stripe lock of the tree; readers take one relaxed load, for a number that
//!   may change right after orders nothing.

use crate::Tree;
use crate::group::{Group, GroupRef};
use crate::limit::Limit;
use crate::sync::{AtomicU64, Ordering};

/// The limit words, with `u64::MAX` for none, as the kernel's `PAGE_COUNTER_MAX`. What every charge
/// reads comes first, on one line.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counter {
    usage: AtomicU64,
    max: AtomicU64,
    /// The least of `max`, `high` and `near`: a charge that passes it has something to tell.
    alarm: AtomicU64,
    /// The peak since the last reset by any reader: the kernel's `local_watermark`.
    local_peak: AtomicU64,
    peak: AtomicU64,
    low: AtomicU64,
    min: AtomicU64,
    large: AtomicU64,
    high: AtomicU64,
    /// From here on a charge says that it is near `max`.
    near: AtomicU64,
}

fn encode(limit: Limit) -> u64 {
    limit.bytes().unwrap_or(u64::MAX)
}

fn decode(word: u64) -> Limit {
    if word == u64::MAX { Limit::Max } else { Limit::Bytes(word) }
}

impl Counter {
    pub(crate) fn new() -> Self {
        Self {
            usage: AtomicU64::new(0),
            max: AtomicU64::new(u64::MAX),
            alarm: AtomicU64::new(u64::MAX),
            local_peak: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            low: AtomicU64::new(0),
            min: AtomicU64::new(0),
            large: AtomicU64::new(0),
            high: AtomicU64::new(u64::MAX),
            near: AtomicU64::new(u64::MAX),
        }
    }

    /// Back to what `new` makes, for a group that is being made.
    pub(crate) fn reset(&self) {
        for (word, value) in [
            (&self.usage, 0),
            (&self.large, 0),
            (&self.peak, 0),
            (&self.local_peak, 0),
            (&self.max, u64::MAX),
            (&self.alarm, u64::MAX),
            (&self.high, u64::MAX),
            (&self.near, u64::MAX),
            (&self.low, 0),
            (&self.min, 0),
        ] {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn usage(&self) -> u64 {
        self.usage.load(Ordering::Relaxed)
    }

    /// The part of usage that is large objects.
    pub(crate) fn large(&self) -> u64 {
        self.large.load(Ordering::Relaxed)
    }

    pub(crate) fn set_large(&self, bytes: u64) {
        self.large.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn max(&self) -> Limit {
        decode(self.max.load(Ordering::Relaxed))
    }

    pub(crate) fn set_max(&self, limit: Limit) {
        self.max.store(encode(limit), Ordering::Relaxed);
        self.near.store(u64::MAX, Ordering::Relaxed);
        self.set_alarm();
    }

    /// After one of the three has changed. Called with the stripe locked.
    fn set_alarm(&self) {
        self.alarm.store(self.least_limit(), Ordering::Relaxed);
    }

    fn least_limit(&self) -> u64 {
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        word(&self.max).min(word(&self.high)).min(word(&self.near))
    }

    /// Tests that the alarm is the least of the three. Called with the stripe locked.
    ///
    /// # Panics
    ///
    /// Panics if it is not.
    pub(crate) fn check(&self) {
        let alarm = self.alarm.load(Ordering::Relaxed);
        assert_eq!(alarm, self.least_limit(), "the alarm is the least limit");
    }

    /// Whether usage is over `high`, over `max` or near it: if not, it is none of these.
    #[inline]
    pub(crate) fn is_alarming(&self) -> bool {
        self.usage() > self.alarm.load(Ordering::Relaxed)
    }

    /// Has charges tell when usage comes within `margin` of `max`; 0: they do not, which is so
    /// again after `max` changed.
    pub(crate) fn set_margin(&self, margin: u64) {
        let max = self.max.load(Ordering::Relaxed);
        let near = if margin == 0 { u64::MAX } else { max.saturating_sub(margin) };
        self.near.store(near, Ordering::Relaxed);
        self.set_alarm();
    }

    /// Whether usage is within the margin.
    pub(crate) fn is_near_max(&self) -> bool {
        self.usage() > self.near.load(Ordering::Relaxed)
    }

    pub(crate) fn high(&self) -> Limit {
        decode(self.high.load(Ordering::Relaxed))
    }

    pub(crate) fn set_high(&self, limit: Limit) {
        self.high.store(encode(limit), Ordering::Relaxed);
        self.set_alarm();
    }

    pub(crate) fn low(&self) -> u64 {
        self.low.load(Ordering::Relaxed)
    }

    pub(crate) fn set_low(&self, bytes: u64) {
        self.low.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn min(&self) -> u64 {
        self.min.load(Ordering::Relaxed)
    }

    pub(crate) fn set_min(&self, bytes: u64) {
        self.min.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that still fit under `max`.
    pub(crate) fn headroom(&self) -> u64 {
        self.max.load(Ordering::Relaxed).saturating_sub(self.usage())
    }

    /// Whether usage is over `high`.
    pub(crate) fn is_over_high(&self) -> bool {
        self.usage() > self.high.load(Ordering::Relaxed)
    }

    /// Whether usage is over `max`, by force or because `max` was lowered.
    pub(crate) fn is_over_max(&self) -> bool {
        self.usage() > self.max.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more stay within `max + over`.
    pub(crate) fn fits(&self, bytes: u64, over: u64) -> bool {
        let bound = self.max.load(Ordering::Relaxed).saturating_add(over);
        self.usage().checked_add(bytes).is_some_and(|usage| usage <= bound)
    }

    /// Whether usage is within `max + over`.
    pub(crate) fn is_within(&self, over: u64) -> bool {
        self.fits(0, over)
    }

    /// Adds `bytes`, which the caller found to fit or forces, and raises the peak. Called with
    /// the stripe locked, so load and store are one step.
    pub(crate) fn add(&self, bytes: u64) {
        let usage = self.usage() + bytes;
        self.usage.store(usage, Ordering::Relaxed);
        if usage > self.local_peak.load(Ordering::Relaxed) {
            self.local_peak.store(usage, Ordering::Relaxed);
            if usage > self.peak() {
                self.peak.store(usage, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn local_peak(&self) -> u64 {
        self.local_peak.load(Ordering::Relaxed)
    }

    /// Begins the local peak anew at the usage of now. Called with the stripe locked.
    pub(crate) fn reset_local_peak(&self) {
        self.local_peak.store(self.usage(), Ordering::Relaxed);
    }

    /// Takes `bytes` away. Called with the stripe locked.
    pub(crate) fn sub(&self, bytes: u64) {
        let usage = self.usage();
        debug_assert!(bytes <= usage, "uncharge of {bytes} bytes from a usage of {usage}");
        self.usage.store(usage - bytes, Ordering::Relaxed);
    }
}

/// How much to charge.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Bytes that are needed: all of them, or nothing.
    pub need: u64,
    /// Bytes to take ahead where there is room.
    pub ahead: u64,
    /// How far over each `max` the charge may go.
    pub over: u64,
}

impl Want {
    /// Exactly `need` bytes, within every limit.
    #[must_use]
    pub const fn exactly(need: u64) -> Self {
        Self { need, ahead: 0, over: 0 }
    }
}

/// A charge that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged {
    /// The tag of who pays: the payer's, or [`Tag::NOBODY`](crate::Tag::NOBODY) if it is gone.
    pub tag: crate::Tag,
    /// Bytes charged: at least what was needed.
    pub bytes: u64,
    /// A group of the chain that is now over its `high`.
    pub over_high: Option<GroupRef>,
    /// A group of the chain that is now within its [margin](crate::Tree::set_margin) of `max`.
    pub near_max: Option<GroupRef>,
    /// Whether some level is now over its `max`.
    pub forced: bool,
}

impl Charged {
    /// Notes what a level has to tell.
    #[cold]
    pub(crate) fn tell_of(&mut self, slot: u32, group: &Group) {
        self.forced |= group.counter.is_over_max();
        if self.over_high.is_none() && group.counter.is_over_high() {
            self.over_high = Some(Tree::ref_to(slot, group));
        }
        if self.near_max.is_none() && group.counter.is_near_max() {
            self.near_max = Some(Tree::ref_to(slot, group));
        }
    }
}

/// A charge that a limit refused: the facts, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// The group whose limit refused: the payer's or an ancestor of it.
    pub group: GroupRef,
    /// Bytes that were asked for.
    pub requested: u64,
    /// Usage of `group` when it refused.
    pub usage: u64,
    /// Its `max` then.
    pub max: u64,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fits_is_exact_at_the_limit_and_does_not_wrap() {
        let counter = Counter::new();
        counter.set_max(Limit::Bytes(100));
        counter.add(60);
        assert!(counter.fits(40, 0));
        assert!(!counter.fits(41, 0));
        assert!(counter.fits(41, 1));
        assert!(!counter.fits(u64::MAX, u64::MAX));
        assert_eq!(counter.headroom(), 40);
        counter.sub(60);
        assert_eq!((counter.usage(), counter.peak()), (0, 60));
    }
}
