//! Effective protection against a small reference model: the formula as the documents have it,
//! from the settings and usages alone, with every sum made anew.

use proptest::collection::vec;
use proptest::prelude::*;
use std::format;
use std::vec::Vec;

use super::support::{charge, end, tree};
use crate::protection::{Above, effective};
use crate::{GroupRef, Limit, Protection, Root, Settings, Tree};

const MIB: u64 = 1 << 20;

/// A group of the model; without a parent, a top-level one.
#[derive(Clone, Debug)]
struct Node {
    group: GroupRef,
    parent: Option<usize>,
    own: u64,
    min: u64,
    low: u64,
}

struct Model {
    tree: &'static Tree,
    nodes: Vec<Node>,
}

impl Model {
    fn add(&mut self, parent: Option<usize>, own: u64, min: u64, low: u64) -> usize {
        let above = parent.map_or(GroupRef::ROOT, |i| self.nodes[i].group);
        let name = format!("g{}", self.nodes.len());
        let max_depth = Some(Limit::Max);
        let settings = Settings { min, low, max_depth, ..Settings::default() };
        let group = self.tree.create(above, &name, settings).expect("made");
        charge(self.tree, group, own);
        self.nodes.push(Node { group, parent, own, min, low });
        self.nodes.len() - 1
    }

    fn children(&self, of: Option<usize>) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(move |&i| self.nodes[i].parent == of)
    }

    fn usage(&self, i: usize) -> u128 {
        let below: u128 = self.children(Some(i)).map(|child| self.usage(child)).sum();
        below + u128::from(self.nodes[i].own)
    }

    /// The effective protection of `i` where `target` is asked; `None` is the root.
    fn reference(&self, target: Option<usize>, i: usize, set: fn(&Node) -> u64) -> u128 {
        let was_set = |i: usize| u128::from(set(&self.nodes[i]));
        if target == Some(i) {
            return 0;
        }
        let Some(parent) = self.nodes[i].parent.filter(|&p| Some(p) != target) else {
            return was_set(i);
        };
        let claims = |i: usize| was_set(i).min(self.usage(i));
        let all: u128 = self.children(Some(parent)).map(claims).sum();
        let above = self.reference(target, parent, set);
        let own = claims(i);
        if all > above {
            own * above / all
        } else if above > all && self.usage(parent) > all && self.usage(i) > own {
            own + (above - all) * (self.usage(i) - own) / (self.usage(parent) - all)
        } else {
            own
        }
    }

    fn is_below(&self, target: Option<usize>, i: usize) -> bool {
        let mut way = core::iter::successors(Some(i), |&i| self.nodes[i].parent);
        target.is_none_or(|target| way.any(|level| level == target))
    }

    fn compare(&self) {
        self.tree.check();
        let targets = (0..self.nodes.len()).map(Some).chain([None]);
        for target in targets {
            let top = target.map_or(GroupRef::ROOT, |i| self.nodes[i].group);
            for (i, node) in self.nodes.iter().enumerate() {
                let found = self.tree.protection(top, node.group);
                assert_eq!(u128::from(found.usage), self.usage(i));
                let (min, low) = if self.is_below(target, i) {
                    (self.reference(target, i, |n| n.min), self.reference(target, i, |n| n.low))
                } else {
                    (0, 0)
                };
                let found = (u128::from(found.min), u128::from(found.low));
                assert_eq!(found, (min, low), "of {i} below {target:?}: {:?}", self.nodes);
            }
        }
    }
}

fn model() -> Model {
    Model { tree: tree(Root::Untracked), nodes: Vec::new() }
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..10_u64, 1..1_000_u64, 1..(1_u64 << 40)]
}

/// What is done to a group after all were made: charge, uncharge, set.
#[derive(Clone, Copy, Debug)]
enum Change {
    Charge(u64),
    Uncharge(u64),
    Min(u64),
    Low(u64),
}

fn change() -> impl Strategy<Value = (usize, Change)> {
    let change = prop_oneof![
        bytes().prop_map(Change::Charge),
        bytes().prop_map(Change::Uncharge),
        bytes().prop_map(Change::Min),
        bytes().prop_map(Change::Low),
    ];
    (any::<usize>(), change)
}

proptest! {
    #[test]
    fn effective_protection_is_the_references(
        made in vec((any::<usize>(), bytes(), bytes(), bytes()), 1..10),
        changes in vec(change(), 0..20),
    ) {
        let mut model = model();
        for (parent, own, min, low) in made {
            // One in a few is a top-level group.
            let parent = parent % (model.nodes.len() + 1);
            model.add(parent.checked_sub(1), own, min, low);
        }
        model.compare();
        let tree = model.tree;
        for (of, change) in changes {
            let of = of % model.nodes.len();
            let node = &mut model.nodes[of];
            match change {
                Change::Charge(bytes) => {
                    charge(tree, node.group, bytes);
                    node.own += bytes;
                }
                Change::Uncharge(bytes) => {
                    let bytes = bytes.min(node.own);
                    tree.uncharge(tree.payer(node.group).tag, bytes);
                    node.own -= bytes;
                }
                Change::Min(bytes) => {
                    tree.set_min(node.group, bytes);
                    node.min = bytes;
                }
                Change::Low(bytes) => {
                    tree.set_low(node.group, bytes);
                    node.low = bytes;
                }
            }
        }
        model.compare();
        // The last one made has no child: it goes, and claims nothing more.
        let last = model.nodes.pop().expect("one at least");
        end(tree, last.group);
        if let Some(parent) = last.parent {
            model.nodes[parent].own += last.own;
        }
        model.compare();
    }

    /// Below the target, siblings share what their parent has and no more; and whatever the
    /// numbers are, nothing overflows and nothing is divided by zero.
    #[test]
    fn siblings_have_no_more_than_their_parent(
        siblings in vec((0..1_u64 << 50, 0..1_u64 << 50), 1..8),
        beside in 0..1_u64 << 50,
        protected: u64,
    ) {
        let used = beside + siblings.iter().map(|(usage, _)| usage).sum::<u64>();
        let claimed = siblings.iter().map(|(usage, set)| usage.min(set)).sum();
        let above = Above { usage: used, effective: protected.min(used), claimed };
        let shares: Vec<_> =
            siblings.iter().map(|&(usage, set)| effective(usage, set, above)).collect();
        prop_assert!(shares.iter().sum::<u64>() <= above.effective, "{shares:?}");
        for (share, (usage, _)) in shares.iter().zip(&siblings) {
            prop_assert!(share <= usage);
        }
    }

    #[test]
    fn numbers_that_do_not_belong_together_do_no_harm(
        usage: u64,
        setting: u64,
        used: u64,
        above: u64,
        claimed: u64,
    ) {
        effective(usage, setting, Above { usage: used, effective: above, claimed });
    }

    /// What is left to scan is in proportion to what is above the protection, never nothing and
    /// never more than there is.
    #[test]
    fn a_share_is_what_is_above_protection(
        usage: u64,
        min: u64,
        low: u64,
        objects in 1..1_u64 << 40,
    ) {
        let protection = Protection { usage, min, low };
        for breaks_low in [false, true] {
            let share = protection.share_of(objects, breaks_low);
            prop_assert!((1..=objects).contains(&share));
            let kept = protection.kept(breaks_low);
            if kept == 0 {
                prop_assert_eq!(share, objects);
            } else if usage > kept {
                let exact = u128::from(objects) * u128::from(usage - kept) / u128::from(usage);
                prop_assert!(u128::from(share).abs_diff(exact.max(1)) <= 1 + u128::from(objects) / u128::from(usage));
            } else {
                // As in the kernel's formula, what is left of a group that is all protected
                // rounds to next to nothing.
                prop_assert!(u128::from(share) <= 1 + u128::from(objects) / u128::from(kept));
            }
        }
    }
}

/// `test_memcg_protection` of the kernel's selftests, before anything is reclaimed: 50 MiB for
/// children that claim 50 and 25.
#[test]
fn the_tree_of_the_kernels_test() {
    let mut model = model();
    let a = model.add(None, 0, 50 * MIB, 0);
    let b = model.add(Some(a), 0, 50 * MIB, 0);
    let c = model.add(Some(b), 50 * MIB, 75 * MIB, 0);
    let d = model.add(Some(b), 50 * MIB, 25 * MIB, 0);
    let e = model.add(Some(b), 50 * MIB, 0, 0);
    let f = model.add(Some(b), 0, 500 * MIB, 0);
    let min = |i: usize| model.tree.protection(GroupRef::ROOT, model.nodes[i].group).min;
    assert_eq!((min(a), min(b)), (50 * MIB, 50 * MIB));
    assert_eq!((min(c), min(d)), (50 * MIB * 50 / 75, 25 * MIB * 50 / 75));
    assert_eq!((min(e), min(f)), (0, 0), "what is not used is not claimed");
    model.compare();
}

/// The example of the kernel's comment: A has 2 GiB of `low`, B claims 1 of it and C nothing.
#[test]
fn what_nobody_claims_goes_to_those_who_use_more() {
    let mut model = model();
    let a = model.add(None, 0, 0, 2 << 30);
    let b = model.add(Some(a), 2 << 30, 0, 1 << 30);
    let c = model.add(Some(a), 2 << 30, 0, 0);
    let low = |i: usize| model.tree.protection(GroupRef::ROOT, model.nodes[i].group).low;
    assert_eq!(low(b), (1 << 30) + (1 << 30) / 3);
    assert_eq!(low(c), (1_u64 << 30) * 2 / 3);
    model.compare();
}

#[test]
fn the_target_is_not_protected_and_nothing_of_an_earlier_walk_stays() {
    let mut model = model();
    let a = model.add(None, 0, 10, 0);
    let b = model.add(Some(a), 100, 60, 0);
    let group = |i: usize| model.nodes[i].group;
    let min = |target: usize, i: usize| model.tree.protection(group(target), group(i)).min;
    assert_eq!(model.tree.protection(GroupRef::ROOT, group(b)).min, 10);
    assert_eq!((min(a, a), min(b, b)), (0, 0));
    assert_eq!(min(a, b), 60, "nominal below the target, whatever the target has");
    assert_eq!(min(b, a), 0, "not below the target");
    assert_eq!(model.tree.protection(GroupRef::ROOT, group(b)).min, 10);
}

#[test]
fn deep_trees_are_walked_in_parts() {
    let mut model = model();
    let mut at = None;
    for level in 0..100 {
        at = Some(model.add(at, 1 + level % 3, 1000 - level * 7, level * 5));
    }
    let last = model.nodes.len() - 1;
    for target in [None, Some(0), Some(1), Some(35), Some(67), Some(98), Some(99)] {
        let top = target.map_or(GroupRef::ROOT, |i| model.nodes[i].group);
        let found = model.tree.protection(top, model.nodes[last].group);
        assert_eq!(u128::from(found.min), model.reference(target, last, |n| n.min));
        assert_eq!(u128::from(found.low), model.reference(target, last, |n| n.low));
    }
    model.tree.check();
}
