//! Counts of what happened to a group.

use crate::sync::{AtomicU64, Ordering};

/// What is counted, as in cgroup v2's `memory.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum EventKind {
    /// The group was reclaimed although under its `low`.
    Low,
    /// Usage was over `high`, and reclaim was started.
    High,
    /// An allocation was about to pass `max`.
    Max,
    /// An allocation was refused.
    Oom,
    /// An allocation was let through over `max`.
    Forced,
}

/// How many kinds there are.
const KINDS: usize = 5;

/// A group's counts since it was made. They never run backwards, also when a child goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// Reclaims under `low`.
    pub low: u64,
    /// Times over `high`.
    pub high: u64,
    /// Charges that met `max`.
    pub max: u64,
    /// Refused allocations.
    pub oom: u64,
    /// Charges let through over `max`.
    pub forced: u64,
}

impl Events {
    /// What is left without those of `others`, which are among them.
    pub(crate) fn without(self, others: Events) -> Events {
        let rest = |kind| self.of(kind).saturating_sub(others.of(kind));
        Events {
            low: rest(EventKind::Low),
            high: rest(EventKind::High),
            max: rest(EventKind::Max),
            oom: rest(EventKind::Oom),
            forced: rest(EventKind::Forced),
        }
    }

    /// The count of one kind.
    #[must_use]
    pub const fn of(&self, kind: EventKind) -> u64 {
        match kind {
            EventKind::Low => self.low,
            EventKind::High => self.high,
            EventKind::Max => self.max,
            EventKind::Oom => self.oom,
            EventKind::Forced => self.forced,
        }
    }
}

/// A counter of each kind.
#[derive(Debug)]
pub(crate) struct EventCounters([AtomicU64; KINDS]);

impl EventCounters {
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Zeroes all, for a group that is being made.
    pub(crate) fn reset(&self) {
        for counter in &self.0 {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Counts an event. Release pairs with the Acquire in `read`.
    pub(crate) fn count(&self, kind: EventKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Release);
    }

    /// All counts. Acquire: who counts in two places and reads them the other way round finds in the second
    /// all that the first had.
    pub(crate) fn read(&self) -> Events {
        let [low, high, max, oom, forced] =
            core::array::from_fn(|i| self.0[i].load(Ordering::Acquire));
        Events { low, high, max, oom, forced }
    }
}
