//! What is told of a refusal: noted inside the allocation that was refused, in a place of fixed
//! size, and told when somebody may be called.
//!
//! One refusal of a group is noted a second, and how many were not in between: a program that is
//! refused in a loop is told once.
//!
//! Source: `mem_cgroup_print_oom_context` in `mm/memcontrol.c`, with `__ratelimit`.

use memcg_accounting::{Child, GroupRef, Name, OverLimit, now_ms};

use crate::Engine;
use crate::sync::{AtomicBool, Lock, Ordering, lock};

/// How many children of the group that refused are named: the largest.
pub const CHILDREN: usize = 5;
/// Refusals that are kept until they are told.
const KEPT: usize = 8;
/// Groups whose last refusal is remembered, for the rate.
const REMEMBERED: usize = 64;
/// A group's refusals are noted this far apart.
const EVERY_MS: u32 = 1000;

/// What reclaim tried for a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tried {
    /// Rounds of reclaim.
    pub rounds: u32,
    /// Objects that shrinkers looked at.
    pub scanned: u64,
    /// Bytes that came back for the charge.
    pub reclaimed: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Waits for the worker that ended at the deadline.
    pub gave_up: u32,
    /// Shrinkers were not asked: the caller was inside `no_reclaim`, or the request is larger than
    /// the limit.
    pub only_drained: bool,
}

/// A refused charge.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// Who refused, what was asked for, and how full it was.
    pub over: OverLimit,
    /// The name of the group that refused: it may be gone when this is told.
    pub name: Name,
    /// The group that would have paid.
    pub payer: Option<GroupRef>,
    /// The largest children of the group that refused.
    pub children: [Option<Child>; CHILDREN],
    /// What reclaim tried.
    pub tried: Tried,
    /// Refusals of this group that were not noted since the one before.
    pub suppressed: u64,
}

/// When a group's refusal was last noted.
#[derive(Clone, Copy, Debug)]
struct Last {
    group: GroupRef,
    at_ms: u32,
    suppressed: u64,
}

#[derive(Debug)]
pub(crate) struct Kept {
    refusals: [Option<Refusal>; KEPT],
    first: usize,
    len: usize,
    last: [Option<Last>; REMEMBERED],
}

/// Refusals that wait to be told.
#[derive(Debug)]
pub(crate) struct Refusals {
    wanted: AtomicBool,
    kept: Lock<Kept>,
}

impl Kept {
    /// How many refusals of `group` went unnoted before this one; `None`: this one does too.
    fn admit(&mut self, group: GroupRef, now_ms: u32) -> Option<u64> {
        let place = &mut self.last[group.index() as usize % REMEMBERED];
        let last = place.filter(|last| last.group == group);
        let is_due = last.is_none_or(|last| now_ms.wrapping_sub(last.at_ms) >= EVERY_MS);
        let before = last.map_or(0, |last| last.suppressed);
        if is_due && self.len < KEPT {
            *place = Some(Last { group, at_ms: now_ms, suppressed: 0 });
            return Some(before);
        }
        let at_ms = last.map_or(now_ms.wrapping_sub(EVERY_MS), |last| last.at_ms);
        *place = Some(Last { group, at_ms, suppressed: before + 1 });
        None
    }

    fn push(&mut self, refusal: Refusal) {
        if self.len < KEPT {
            self.refusals[(self.first + self.len) % KEPT] = Some(refusal);
            self.len += 1;
        }
    }

    /// One that was popped waits again, before all others; where there is no place any more it counts as not noted.
    fn put_back(&mut self, refusal: Refusal) {
        if self.len < KEPT {
            self.first = (self.first + KEPT - 1) % KEPT;
            self.refusals[self.first] = Some(refusal);
            self.len += 1;
            return;
        }
        let group = refusal.over.group;
        let place = &mut self.last[group.index() as usize % REMEMBERED];
        if let Some(last) = place.as_mut().filter(|last| last.group == group) {
            last.suppressed += refusal.suppressed + 1;
        }
    }

    fn pop(&mut self) -> Option<Refusal> {
        let refusal = self.refusals[self.first].take()?;
        self.first = (self.first + 1) % KEPT;
        self.len -= 1;
        Some(refusal)
    }
}

impl Refusals {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            let kept =
                Kept { refusals: [None; KEPT], first: 0, len: 0, last: [None; REMEMBERED] };
            Self { wanted: AtomicBool::new(false), kept: Lock::new(kept) }
        }
    }

    #[cfg(not(loom))]
    pub(crate) fn lock(&self) -> &Lock<Kept> {
        &self.kept
    }

    /// In the child of a fork: what waits is the parent's to tell.
    pub(crate) fn forget(&self) {
        let mut kept = lock(&self.kept);
        while kept.pop().is_some() {}
    }
}

impl Engine {
    /// From now on refusals are noted, and [rung](Engine::ring) for.
    pub fn want_refusals(&self) {
        self.refusals.wanted.store(true, Ordering::Relaxed);
    }

    /// The refusal that has waited longest.
    pub fn take_refusal(&self) -> Option<Refusal> {
        lock(&self.refusals.kept).pop()
    }

    /// It could not be told, and waits again.
    pub fn put_refusal_back(&self, refusal: Refusal) {
        lock(&self.refusals.kept).put_back(refusal);
    }

    /// Whether some wait.
    pub fn has_refusals(&self) -> bool {
        lock(&self.refusals.kept).len != 0
    }

    /// A charge that `payer` would have paid for was refused. A load where nobody wants to know.
    pub(crate) fn note_refusal(&self, over: OverLimit, payer: Option<GroupRef>, tried: Tried) {
        if !self.refusals.wanted.load(Ordering::Relaxed) {
            return;
        }
        let admitted = lock(&self.refusals.kept).admit(over.group, now_ms());
        let Some(suppressed) = admitted else { return };
        let refusal = Refusal {
            over,
            name: self.tree.name(over.group),
            payer,
            children: self.tree.largest_children(over.group),
            tried,
            suppressed,
        };
        lock(&self.refusals.kept).push(refusal);
        self.ring();
    }
}
