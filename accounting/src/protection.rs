//! Protection: how much of a group reclaim leaves alone.
//!
//! ```text
//!   reclaim in T              T            its own min and low do not count
//!                           ╱   ╲
//!   nominal                A     B         what was set, as it was set
//!                         ╱ ╲
//!   a share of A's       C   D             what each claims (up to its use); less if the claims
//!                                          pass A's; more, if A's is not claimed in full
//! ```
//!
//! A group claims of its protection what it uses. Each level keeps the sum of its children's
//! claims, so that a group's share is found by one way down from the target.
//!
//! # Invariants
//!
//! - `children_min` of a group is the sum over its children of min(usage, min), and so for `low`;
//!   the untracked root keeps none. They change with usage, under the stripe lock.
//! - The effective protection of the children of a group is together at most the group's own,
//!   but below the target, where it is nominal.
//!
//! Source: `mem_cgroup_calculate_protection` and `effective_protection`, with
//! `memory_recursiveprot`, and `propagate_protected_usage` in `mm/page_counter.c`. The kernel
//! stores what it computes in the groups, where a later walk finds it stale; here nothing is
//! stored.

use crate::Tree;
use crate::counter::Counter;
use crate::group::{Group, GroupRef};
use crate::sync::{AtomicU64, Ordering};

/// What reclaim in some subtree leaves alone of a group in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Usage of the group.
    pub usage: u64,
    /// Bytes that are never taken.
    pub min: u64,
    /// Bytes that are taken only when nothing else is left.
    pub low: u64,
}

impl Protection {
    /// Whether all that the group uses is never taken.
    #[must_use]
    pub const fn is_below_min(self) -> bool {
        self.min != 0 && self.usage <= self.min
    }

    /// Whether all that the group uses is taken only when nothing else is left.
    #[must_use]
    pub const fn is_below_low(self) -> bool {
        self.low != 0 && self.usage <= self.low
    }

    /// Bytes to leave alone: in an ordinary pass, or in one that breaks into `low`.
    #[must_use]
    pub const fn kept(self, breaks_low: bool) -> u64 {
        if breaks_low || self.min > self.low { self.min } else { self.low }
    }

    /// Of `objects`, which are all that there are, the share above what is kept: in proportion to
    /// the bytes, and at least one.
    #[must_use]
    pub fn share_of(self, objects: u64, breaks_low: bool) -> u64 {
        let kept = self.kept(breaks_low);
        if kept == 0 || objects == 0 {
            return objects;
        }
        let spared = scale(objects, kept, self.usage.max(kept).saturating_add(1));
        (objects - spared).max(1)
    }
}

/// `part` of `whole` as a share of `value`; `part <= whole`, so it is at most `value`.
fn scale(value: u64, part: u64, whole: u64) -> u64 {
    debug_assert!(part <= whole && whole != 0, "{part} of {whole}");
    let scaled = u128::from(value) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(value)
}

/// What is known of a parent when protection comes down from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above {
    pub(crate) usage: u64,
    /// Its own effective protection.
    pub(crate) effective: u64,
    /// What its children claim together.
    pub(crate) claimed: u64,
}

/// The effective protection of a group that uses `usage` bytes and was set to `setting`.
pub(crate) fn effective(usage: u64, setting: u64, above: Above) -> u64 {
    let claim = usage.min(setting);
    let Above { usage: used, effective, claimed } = above;
    if claimed > effective {
        // Overcommitted: in proportion to what is claimed, so that what one does not use is the
        // others'.
        return scale(claim, effective, claimed);
    }
    // What nobody claims goes to those who use more than they claim, by how much more.
    if effective > claimed && used > claimed && usage > claim {
        let more = (usage - claim).min(used - claimed);
        return claim.saturating_add(scale(effective - claimed, more, used - claimed));
    }
    claim
}

/// What a change of usage makes of a group's claims: differences, wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    min: u64,
    low: u64,
}

impl Counter {
    /// What the group claims of its parent's protection.
    pub(crate) fn claims(&self) -> Claims {
        let usage = self.usage();
        Claims { min: usage.min(self.min()), low: usage.min(self.low()) }
    }

    /// The change from `before` to what it claims now.
    pub(crate) fn claims_since(&self, before: Claims) -> Claims {
        let now = self.claims();
        Claims { min: now.min.wrapping_sub(before.min), low: now.low.wrapping_sub(before.low) }
    }
}

impl Group {
    /// Has `change` change this group's usage, after a child's claims have changed by `below`; answers
    /// how its own have. Called with the stripe locked.
    #[inline(always)]
    pub(crate) fn claims_after(&self, below: Claims, change: impl FnOnce()) -> Claims {
        if below == Claims::default() && self.counter.min() | self.counter.low() == 0 {
            change();
            return below;
        }
        self.change_children(below);
        let before = self.counter.claims();
        change();
        self.counter.claims_since(before)
    }

    /// A child's claims have changed. Called with the stripe locked.
    pub(crate) fn change_children(&self, change: Claims) {
        if change != Claims::default()
            && let Some(below) = self.below()
        {
            let sums = [(&below.children_min, change.min), (&below.children_low, change.low)];
            for (sum, by) in sums {
                sum.store(sum.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
            }
        }
    }

    /// The sums of the children's claims, of `min` and of `low`.
    pub(crate) fn children_claims(&self) -> (u64, u64) {
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        self.below().map_or((0, 0), |below| (read(&below.children_min), read(&below.children_low)))
    }
}

impl Counter {
    /// Protection that comes down from `above`, whose own effective protection is given.
    fn protection_below(&self, above: &Group, of_above: Protection) -> Protection {
        let (claimed_min, claimed_low) = above.children_claims();
        let (usage, used) = (self.usage(), above.counter.usage());
        let down = |setting, effective_above, claimed| {
            effective(usage, setting, Above { usage: used, effective: effective_above, claimed })
        };
        Protection {
            usage,
            min: down(self.min(), of_above.min, claimed_min),
            low: down(self.low(), of_above.low, claimed_low),
        }
    }

    /// Protection as it was set.
    fn nominal(&self) -> Protection {
        Protection { usage: self.usage(), min: self.min(), low: self.low() }
    }
}

/// Levels that one way up remembers.
const LEVELS: usize = 32;

impl Tree {
    /// What reclaim in the subtree of `target` leaves alone of `group`. The target itself is not
    /// protected against reclaim in it. `O(depth)`, one short lock.
    pub fn protection(&self, target: GroupRef, group: GroupRef) -> Protection {
        let Some((_guard, record)) = self.lock_group(group) else { return Protection::default() };
        let mut known = Protection { usage: record.counter.usage(), min: 0, low: 0 };
        let mut top = target.index;
        // The levels between are found on the way up and needed on the way down: the highest few
        // at a time.
        while top != group.index {
            let mut way = [0; LEVELS];
            let mut len = 0;
            let mut is_below = false;
            for (slot, _) in self.ancestors(group.index) {
                if slot == top {
                    is_below = true;
                    break;
                }
                way[len % LEVELS] = slot;
                len += 1;
            }
            if !is_below {
                return Protection { min: 0, low: 0, ..known };
            }
            for step in 1..=len.min(LEVELS) {
                let slot = way[(len - step) % LEVELS];
                let (Some(above), Some(below)) = (self.groups.get(top), self.groups.get(slot))
                else {
                    return Protection::default();
                };
                known = if top == target.index {
                    below.counter.nominal()
                } else {
                    below.counter.protection_below(above, known)
                };
                top = slot;
            }
        }
        known
    }

    /// Best-effort protection, in bytes.
    pub fn low(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.counter.low())
    }

    /// Sets best-effort protection.
    pub fn set_low(&self, group: GroupRef, bytes: u64) {
        if let Some((_guard, record)) = self.lock_group(group) {
            self.change_claims(record, |counter| counter.set_low(bytes));
        }
    }

    /// Protection, in bytes.
    pub fn min(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.counter.min())
    }

    /// Sets protection.
    pub fn set_min(&self, group: GroupRef, bytes: u64) {
        if let Some((_guard, record)) = self.lock_group(group) {
            self.change_claims(record, |counter| counter.set_min(bytes));
        }
    }

    /// A group that goes claims nothing more. Called with the stripe locked.
    pub(crate) fn end_protection(&self, record: &Group) {
        self.change_claims(record, |counter| {
            counter.set_min(0);
            counter.set_low(0);
        });
    }

    /// Makes a change to a group's settings that its parent hears of. Called with the stripe
    /// locked.
    fn change_claims(&self, record: &Group, change: impl FnOnce(&Counter)) {
        let before = record.counter.claims();
        change(&record.counter);
        if let Some((_, above)) = self.chain(record.parent()).next() {
            above.change_children(record.counter.claims_since(before));
        }
    }
}
