//! How many workers may be held at once, and by whom.
//!
//! A worker that has been inside one call for [`HELD_AFTER_MS`] counts as held: by the shrinker that it called, by the
//! group that it visits, and by every group above. What may still be held is shared along the tree:
//!
//! ```text
//!   root              64 in all
//!    ├─ bad           as many as are left to the others: alone 32
//!    │   ├─ x         as many of those as are left to its siblings: alone 16; shrinkers that never returned 2
//!    │   └─ y
//!    └─ good          always one, until 64 different children of the root hold one
//! ```
//!
//! # Invariants
//!
//! - A worker begins no call of a shrinker that holds one.
//! - A shrinker that has never returned from a scan holds none in a group whose shrinkers hold two: those that did are
//!   served there all the same, and may hold what the group's share is.
//! - These are bounds on what is held when a call begins. Calls that begin at once do not see each other, so there may be a few more.
//! - A child may hold one more while it holds fewer than are left of its parent's share. So of `n` children that take all
//!   they may, each has 1/(n + 1), and as much is left for those that hold none.
//! - What runs the program's code for nobody in particular, news and drops, holds [`MOST_ERRANDS`] at most.
//! - Workers are started only while all there are are held: at most [`MOST_HELD`], and one.
//!
//! Source: dynamic thresholds of shared buffers (Choudhury and Hahne, 1998).

use memcg_accounting::{GroupRef, Tree, now_ms};

use crate::Engine;
use crate::errand::NO_SHRINKER;
use crate::reclaimer::Reclaimer;
use crate::slot::Slot;

/// A worker that has been inside one call for this long is held, and replaced if work waits: well before the deadline of
/// whoever waits.
pub(crate) const HELD_AFTER_MS: u32 = 20;
/// Workers that may be held at once.
pub const MOST_HELD: u32 = 64;
/// Workers that shrinkers of one group may hold that have never returned from a scan, groups below it apart.
pub const MOST_UNPROVEN: u32 = 2;
/// Workers that news and drops may hold.
const MOST_ERRANDS: u32 = 4;
/// Levels that are told apart, counted from the root; what is deeper counts as one group.
const LEVELS: usize = 16;
const WORKERS: usize = MOST_HELD as usize + 1;

/// A group and those above it, from the child of the root on down. Of the root it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lineage {
    levels: [GroupRef; LEVELS],
    len: usize,
}

impl Lineage {
    const ROOT: Self = Self { levels: [GroupRef::ROOT; LEVELS], len: 0 };

    /// That of a group that is online; of one that is not, what is found, which is at worst the root's.
    fn of(tree: &Tree, group: GroupRef) -> Self {
        let up = |from: &GroupRef| tree.online_parent(*from);
        let depth = core::iter::successors(up(&group), up).count();
        let skipped = depth.saturating_sub(LEVELS);
        let mut lineage = Self { len: depth - skipped, ..Self::ROOT };
        let groups = core::iter::successors(Some(group), up).skip(skipped);
        for (place, group) in lineage.levels[..lineage.len].iter_mut().rev().zip(groups) {
            *place = group;
        }
        lineage
    }

    fn levels(&self) -> &[GroupRef] {
        &self.levels[..self.len]
    }

    /// How many of the levels are `other`'s too, from the root's child on.
    fn shared(&self, other: &Lineage) -> usize {
        self.levels().iter().zip(other.levels()).take_while(|(a, b)| a == b).count()
    }
}

/// Whether a shrinker of `group` may hold one more worker beside those that are `held`; a proven one has given before.
fn may_hold(group: &Lineage, held: &[Lineage], is_proven: bool) -> bool {
    let within = |levels: usize| {
        let count = held.iter().filter(|other| group.shared(other) >= levels).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    // A share is what is left of the parent's and what is held of it already, halved: one that holds as many as are
    // left has its share.
    let share = |above: u32, held_above: u32, held: u32| {
        (above.saturating_sub(held_above) + held).div_ceil(2)
    };
    let (mut most, mut held_here) = (MOST_HELD, within(0));
    for level in 1..=group.len {
        let held_below = within(level);
        (most, held_here) = (share(most, held_here, held_below), held_below);
    }
    let own = held.iter().filter(|other| *other == group).count();
    let own = u32::try_from(own).unwrap_or(u32::MAX);
    let own_most = if is_proven { MOST_HELD } else { MOST_UNPROVEN };
    held_here < most && own < share(most, held_here, own).min(own_most)
}

impl Engine {
    /// The workers that are held, each by its slot and the group that it visits.
    fn held(&self) -> impl Iterator<Item = (u32, GroupRef)> {
        let now = now_ms();
        let workers = self.reclaimers.iter().filter(|(_, record)| record.is_worker());
        workers.filter_map(move |(_, worker)| {
            let (slot, age) = worker.call(now)?;
            (age >= HELD_AFTER_MS).then(|| (slot, worker.visited()))
        })
    }

    /// How many workers are held.
    pub(crate) fn nr_held(&self) -> u32 {
        u32::try_from(self.held().count()).unwrap_or(u32::MAX)
    }

    /// Whether `me` may begin a call of the shrinker in `slot`: always, but of a worker beside others that are held.
    pub(crate) fn may_call(&self, me: &Reclaimer, index: u32, slot: &Slot) -> bool {
        !me.is_worker()
            || self.crew.nr_workers() <= 1
            || self.may_call_beside(me, index, slot.has_scanned())
    }

    // Not inlined: what it has on its stack is no allocation's.
    #[cold]
    #[inline(never)]
    fn may_call_beside(&self, me: &Reclaimer, slot: u32, is_proven: bool) -> bool {
        let mut held = [Lineage::ROOT; WORKERS];
        let mut nr = 0;
        for ((holder, group), place) in self.held().zip(&mut held) {
            if holder == slot {
                return false;
            }
            *place = Lineage::of(self.tree, group);
            nr += 1;
        }
        nr == 0 || may_hold(&Lineage::of(self.tree, me.visited()), &held[..nr], is_proven)
    }

    /// Whether a worker may run the program's code that is no shrinker.
    pub(crate) fn may_run_errands(&self) -> bool {
        if self.crew.nr_workers() <= 1 {
            return true;
        }
        let (mut errands, mut all) = (0, 0);
        for (slot, _) in self.held() {
            errands += u32::from(slot == NO_SHRINKER);
            all += 1;
        }
        errands < MOST_ERRANDS && all < MOST_HELD
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    extern crate std;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The group that is reached by these numbers of children.
    fn at(path: &[u32]) -> Lineage {
        let mut lineage = Lineage { len: path.len(), ..Lineage::ROOT };
        let mut number = 0u64;
        for (child, place) in path.iter().zip(&mut lineage.levels) {
            number = number.wrapping_mul(1009).wrapping_add(u64::from(*child) + 1);
            *place = GroupRef::from_bits(number);
        }
        lineage
    }

    /// Lets each of `paths` take all that it may, in turn; answers how many each has.
    fn greedy(paths: &[&[u32]], is_proven: bool) -> Vec<usize> {
        let mut held = Vec::new();
        loop {
            let before = held.len();
            for path in paths {
                if may_hold(&at(path), &held, is_proven) {
                    held.push(at(path));
                }
            }
            if held.len() == before {
                return paths
                    .iter()
                    .map(|path| held.iter().filter(|h| **h == at(path)).count())
                    .collect();
            }
        }
    }

    #[test]
    fn a_group_holds_two_and_leaves_the_others_theirs() {
        assert_eq!(greedy(&[&[0]], false), [2]);
        assert_eq!(greedy(&[&[0], &[1, 1], &[2, 2, 2]], false), [2, 2, 2]);
        assert_eq!(greedy(&[&[]], false), [2], "those of the root alone");
        assert_eq!(greedy(&[&[0]], true), [32 - 16], "half of the half");
    }

    #[test]
    fn a_tenant_of_many_groups_holds_no_more_than_it_leaves() {
        let children: Vec<[u32; 2]> = (0..99).map(|child| [0, child]).collect();
        let children: Vec<&[u32]> = children.iter().map(|path| &path[..]).collect();
        let held: usize = greedy(&children, false).iter().sum();
        assert_eq!(held, 32);
    }

    #[test]
    fn sixty_four_different_tenants_are_served_each() {
        let tenants: Vec<[u32; 1]> = (0..99).map(|child| [child]).collect();
        let mut held = Vec::new();
        for tenant in &tenants[..64] {
            assert!(may_hold(&at(tenant), &held, false), "{tenant:?} beside {}", held.len());
            held.push(at(tenant));
        }
        assert!(!may_hold(&at(&tenants[64]), &held, true));
    }

    proptest! {
        /// Whatever is held by groups of a few tenants, another one is served; and no more are held than may be.
        #[test]
        fn whoever_holds_none_may_hold_one(
            takers in vec((0u32..6, vec(0u32..9, 0..5), any::<bool>()), 1..400),
        ) {
            let mut held: Vec<Lineage> = Vec::new();
            for (tenant, below, is_proven) in takers {
                let path: Vec<u32> = core::iter::once(tenant).chain(below).collect();
                let group = at(&path);
                if may_hold(&group, &held, is_proven) {
                    held.push(group);
                }
                prop_assert!(held.len() <= MOST_HELD as usize);
                prop_assert!(may_hold(&at(&[50]), &held, false));
                prop_assert!(may_hold(&at(&[50, 1, 2, 3, 4, 5, 6, 7, 8, 9]), &held, false));
            }
        }
    }
}
