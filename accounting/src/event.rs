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

/// One group's counters: its own, and those of its subtree.
#[derive(Debug)]
pub(crate) struct EventCounters {
    local: [AtomicU64; KINDS],
    subtree: [AtomicU64; KINDS],
}

impl EventCounters {
    pub(crate) fn new() -> Self {
        Self {
            local: core::array::from_fn(|_| AtomicU64::new(0)),
            subtree: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Zeroes all, for a group that is being made.
    pub(crate) fn reset(&self) {
        for counter in self.local.iter().chain(&self.subtree) {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Counts an event of this group itself. Relaxed: counts order nothing.
    pub(crate) fn count_local(&self, kind: EventKind) {
        self.local[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event of this group or one below it.
    pub(crate) fn count_subtree(&self, kind: EventKind) {
        self.subtree[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read_local(&self) -> Events {
        read(&self.local)
    }

    pub(crate) fn read_subtree(&self) -> Events {
        read(&self.subtree)
    }
}

fn read(counters: &[AtomicU64; KINDS]) -> Events {
    let [low, high, max, oom, forced] =
        core::array::from_fn(|i| counters[i].load(Ordering::Relaxed));
    Events { low, high, max, oom, forced }
}
