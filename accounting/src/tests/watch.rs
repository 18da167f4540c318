//! What is noticed of a group, and what is not.

use std::sync::atomic::{AtomicU32, Ordering};
use std::vec::Vec;

use super::support::{charge, child, end, tree};
use crate::{Bell, EventKind, EventSet, GroupRef, NoWatch, Root, Seen, Tree, Window};

const ROOT: GroupRef = GroupRef::ROOT;

fn noticed(tree: &Tree) -> Vec<u32> {
    let mut slots = Vec::new();
    tree.take_noticed(|slot| slots.push(slot));
    slots.sort_unstable();
    slots
}

fn arm(tree: &Tree, group: GroupRef, below: u64, above: u64) -> Seen {
    tree.watch(group, EventSet::NONE, |_| Window { below, above }).expect("online")
}

#[test]
fn usage_that_leaves_the_window_is_noticed_once_with_its_extremes() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    arm(tree, a, 0, 100);
    let tag = charge(tree, b, 99);
    assert!(noticed(tree).is_empty(), "99 is under 100");
    let more = charge(tree, b, 1);
    charge(tree, b, 50);
    tree.uncharge(more, 1);
    tree.uncharge(tag, 99);
    assert_eq!(noticed(tree), [a.index()], "once, for the level that is watched");
    let seen = arm(tree, a, 20, 100);
    assert_eq!(seen, Seen { usage: 50, lowest: 50, highest: 150 }, "outside the window alone");
    tree.uncharge(tag, 30);
    assert!(noticed(tree).is_empty(), "20 is not under 20");
    tree.uncharge(tag, 1);
    assert_eq!(noticed(tree), [a.index()]);
    assert_eq!(arm(tree, a, 0, u64::MAX), Seen { usage: 19, lowest: 19, highest: 19 });
}

#[test]
fn a_window_that_does_not_hold_the_usage_is_noticed_at_once() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    charge(tree, a, 100);
    arm(tree, a, 0, 100);
    assert_eq!(noticed(tree), [a.index()]);
    tree.unwatch(a);
    charge(tree, a, 100);
    assert!(noticed(tree).is_empty(), "nobody wants to know");
}

#[test]
fn events_that_are_wanted_are_noticed_up_to_the_untracked_root() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let oom = EventSet::NONE.with(EventKind::Oom);
    tree.watch(a, oom, |_| Window::ALL).expect("online");
    tree.watch(ROOT, oom.with(EventKind::High), |_| Window::ALL).expect("online");
    tree.count(b, EventKind::High);
    assert_eq!(noticed(tree), [0]);
    tree.refuse(b);
    assert_eq!(noticed(tree), [0, a.index()]);
    assert_eq!((tree.events(ROOT).oom, tree.events(ROOT).high, tree.events(b).oom), (1, 1, 1));
    end(tree, b);
    assert_eq!(tree.events(ROOT).oom, 1, "a count does not go with its group");
}

#[test]
fn the_end_of_a_group_is_noticed_and_the_next_of_its_slot_is_not_watched() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    arm(tree, a, 0, 10);
    end(tree, a);
    assert_eq!(noticed(tree), [a.index()]);
    assert_eq!(tree.watch(a, EventSet::NONE, |_| Window::ALL), Err(NoWatch::Gone));
    let next = child(tree, ROOT, "next");
    assert_eq!(next.index(), a.index(), "the slot is used again");
    charge(tree, next, 100);
    assert!(noticed(tree).is_empty());
    arm(tree, next, 0, 200);
    charge(tree, next, 100);
    assert_eq!(noticed(tree), [next.index()]);
    tree.check();
}

#[test]
fn only_the_first_of_an_empty_list_rings() {
    static RUNG: AtomicU32 = AtomicU32::new(0);
    fn ring() {
        RUNG.fetch_add(1, Ordering::Relaxed);
    }
    static BELL: Bell = Bell { ring };
    let tree = tree(Root::Untracked);
    tree.set_bell(&BELL);
    let groups = ["a", "b", "c"].map(|name| child(tree, ROOT, name));
    for group in groups {
        arm(tree, group, 0, 1);
        charge(tree, group, 1);
        charge(tree, group, 1);
    }
    assert_eq!(RUNG.load(Ordering::Relaxed), 1);
    assert_eq!(noticed(tree).len(), 3);
    charge(tree, groups[1], 1);
    assert_eq!(RUNG.load(Ordering::Relaxed), 2);
    assert_eq!(noticed(tree), [groups[1].index()]);
}

#[test]
fn the_largest_children_come_largest_first() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    for (name, usage) in [("p", 3), ("q", 9), ("r", 1), ("s", 7), ("t", 0)] {
        let group = child(tree, a, name);
        if usage != 0 {
            charge(tree, group, usage);
        }
    }
    let told = |found: &[Option<crate::Child>]| -> Vec<(std::string::String, u64)> {
        found.iter().flatten().map(|c| (c.name.as_str().into(), c.usage)).collect()
    };
    let three = tree.largest_children::<3>(a);
    assert_eq!(told(&three), [("q".into(), 9), ("s".into(), 7), ("p".into(), 3)]);
    assert_eq!(tree.largest_children::<7>(a).iter().flatten().count(), 5);
    assert_eq!(tree.largest_children::<2>(ROOT)[0].map(|c| c.usage), Some(20));
}
