//! Lists under plain threads, and against a model of what each group's part holds.

extern crate std;

use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::boxed::Box;
use std::collections::VecDeque;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root, SYSTEM, Settings, Source, Tag, Tree, Want};
use proptest::prelude::*;

use crate::list::{Isolated, Links};
use crate::list_walk::{LruStatus, Wait};
use crate::lists::{ListLru, Lists};

/// A node on the heap with a number.
#[repr(C)]
struct Node {
    links: Links,
    number: usize,
}

impl Node {
    fn new(number: usize) -> Pin<Box<Node>> {
        Box::pin(Node { links: Links::new(), number })
    }

    fn links(self: &Pin<Box<Self>>) -> NonNull<Links> {
        NonNull::from(&**self).cast()
    }

    /// # Safety
    ///
    /// - The links are a node's, and it is valid.
    unsafe fn number_of(links: NonNull<Links>) -> usize {
        // SAFETY: by contract; the links are a node's first field, and the pointer is to the node.
        unsafe { links.cast::<Node>().as_ref() }.number
    }
}

struct World {
    tree: Tree,
    lists: Lists,
}

impl World {
    fn new() -> World {
        let tree = Tree::new();
        assert!(tree.make(Root::Untracked, &SYSTEM));
        World { tree, lists: Lists::new(&SYSTEM) }
    }

    /// A group with a charge, so that its tag stays when it goes.
    fn group(&self, parent: GroupRef, name: &str) -> (GroupRef, Tag) {
        let group = self.tree.create(parent, name, Settings::default()).expect("made");
        let payer = self.tree.payer(group);
        self.tree.charge(payer, Want::exactly(1)).expect("there is no limit");
        (group, payer.tag)
    }

    fn offline(&self, group: GroupRef) -> Vec<(u64, GroupRef)> {
        let mut moved = Vec::new();
        let mut next = self.tree.put(group);
        while let Some(dying) = next {
            let parent = self.tree.parent_ref(dying.group()).expect("not the root");
            self.lists.reparent(dying.group(), parent, |cookie, heir| moved.push((cookie, heir)));
            next = self.tree.offline(dying);
        }
        moved
    }

    fn add(&self, list: &ListLru, node: &Pin<Box<Node>>, tag: Tag) -> Option<GroupRef> {
        // SAFETY: tests remove nodes before they drop them; the tag's bytes stay charged.
        unsafe { self.lists.add(&self.tree, list, node.links(), tag) }.newly_nonempty_in()
    }

    fn remove(&self, list: &ListLru, node: &Pin<Box<Node>>) -> bool {
        // SAFETY: the node is borrowed.
        unsafe { self.lists.remove(list, node.links()) }
    }

    /// Takes everything out of a group's part, and answers the numbers, from the hand on.
    fn empty(&self, list: &ListLru, group: GroupRef) -> Vec<usize> {
        let mut isolated = Isolated::new();
        self.lists.walk(list, group, usize::MAX, Wait::Yes, &mut isolated, |_| LruStatus::Removed);
        numbers(&mut isolated)
    }
}

fn numbers(isolated: &mut Isolated) -> Vec<usize> {
    // SAFETY: what these tests link are nodes that are still there.
    core::iter::from_fn(|| isolated.take()).map(|links| unsafe { Node::number_of(links) }).collect()
}

#[test]
fn a_node_joins_the_part_of_its_tags_group_and_the_first_is_told() {
    let world = World::new();
    let list = world.lists.create(1).expect("memory");
    let (a, tag_a) = world.group(GroupRef::ROOT, "a");
    let (b, tag_b) = world.group(GroupRef::ROOT, "b");
    let nodes: Vec<_> = (0..4).map(Node::new).collect();
    assert_eq!(world.add(&list, &nodes[0], tag_a), Some(a));
    assert_eq!(world.add(&list, &nodes[1], tag_a), None);
    assert_eq!(world.add(&list, &nodes[2], tag_b), Some(b));
    assert_eq!(world.add(&list, &nodes[3], Tag::NOBODY), Some(GroupRef::ROOT));
    assert_eq!(world.add(&list, &nodes[3], tag_a), None, "it is in a list already");
    assert_eq!([a, b, GroupRef::ROOT].map(|g| world.lists.count(&list, g)), [2, 1, 1]);
    world.lists.check();
    assert!(world.remove(&list, &nodes[0]));
    assert!(!world.remove(&list, &nodes[0]));
    assert_eq!(world.empty(&list, a), [1]);
    assert_eq!(world.empty(&list, b), [2]);
    assert_eq!(world.empty(&list, GroupRef::ROOT), [3]);
    assert_eq!(world.add(&list, &nodes[0], tag_a), Some(a), "it was empty again");
    assert_eq!(world.empty(&list, a), [0]);
    world.lists.check();
    assert!(world.lists.destroy(list));
    assert_eq!((world.lists.nr_records(), world.lists.nr_heads()), (0, 0));
}

#[test]
fn a_node_of_one_list_is_none_of_anothers() {
    let world = World::new();
    let lists = [0, 1].map(|cookie| world.lists.create(cookie).expect("memory"));
    let node = Node::new(0);
    world.add(&lists[0], &node, Tag::NOBODY);
    assert!(!world.remove(&lists[1], &node));
    // SAFETY: the node is borrowed.
    assert!(!unsafe { world.lists.touch(&lists[1], node.links()) });
    assert!(world.remove(&lists[0], &node));
    assert!(lists.into_iter().all(|list| world.lists.destroy(list)));
}

#[test]
fn the_newest_node_of_a_part_is_taken_first() {
    let world = World::new();
    let list = world.lists.create(0).expect("memory");
    let (a, tag_a) = world.group(GroupRef::ROOT, "a");
    let nodes: Vec<_> = (0..3).map(Node::new).collect();
    let newest = |group| {
        let mut isolated = Isolated::new();
        let taken = world.lists.take_newest(&list, group, &mut isolated);
        assert_eq!(taken, !isolated.is_empty());
        numbers(&mut isolated).first().copied()
    };
    assert_eq!((newest(a), newest(GroupRef::ROOT)), (None, None));
    nodes
        .iter()
        .for_each(|node| assert!(world.add(&list, node, tag_a).is_none() != (node.number == 0)));
    assert_eq!((newest(GroupRef::ROOT), newest(a)), (None, Some(2)));
    world.lists.check();
    world.offline(a);
    assert_eq!(
        (newest(a), newest(GroupRef::ROOT), newest(GroupRef::ROOT)),
        (None, Some(1), Some(0))
    );
    assert!(world.lists.destroy(list));
}

/// What is not empty is nobody's from then on, in every build: its nodes may be of another type than
/// the next list's.
#[test]
fn a_list_that_ends_with_nodes_in_it_is_never_anothers() {
    let world = World::new();
    let (a, tag_a) = world.group(GroupRef::ROOT, "a");
    let nodes: Vec<_> = (0..2).map(Node::new).collect();
    for (node, tag) in nodes.iter().zip([tag_a, Tag::NOBODY]) {
        let list = world.lists.create(0).expect("memory");
        world.add(&list, node, tag);
        assert!(!world.lists.destroy(list));
        world.lists.check();
        for _ in 0..3 {
            let next = world.lists.create(0).expect("memory");
            let parts = [a, GroupRef::ROOT].map(|group| world.lists.count(&next, group));
            assert_eq!(parts, [0, 0]);
            let late = Node::new(2);
            assert_eq!(world.add(&next, &late, tag_a), Some(a), "its part is its own");
            assert!(world.remove(&next, &late) && !world.remove(&next, node));
            assert!(world.lists.destroy(next));
        }
    }
    // Its nodes move up as before.
    world.offline(a);
    world.lists.check();
}

#[test]
fn a_walk_does_what_its_visitor_says() {
    let world = World::new();
    let list = world.lists.create(0).expect("memory");
    let nodes: Vec<_> = (0..5).map(Node::new).collect();
    for node in &nodes {
        world.add(&list, node, Tag::NOBODY);
    }
    let mut seen = Vec::new();
    let mut isolated = Isolated::new();
    let mut retried = false;
    let walked = world.lists.walk(&list, GroupRef::ROOT, 6, Wait::No, &mut isolated, |links| {
        // SAFETY: the nodes are valid.
        let number = unsafe { Node::number_of(links) };
        seen.push(number);
        match number {
            0 => LruStatus::Removed,
            1 => LruStatus::Skip,
            2 => LruStatus::Rotate,
            3 if !retried => {
                retried = true;
                LruStatus::Retry
            }
            3 => LruStatus::Skip,
            _ => LruStatus::Stop,
        }
    });
    assert_eq!(seen, [0, 1, 2, 3, 3, 4]);
    assert_eq!((walked.shown, walked.removed, walked.was_busy), (6, 1, false));
    assert_eq!(numbers(&mut isolated), [0]);
    world.lists.check();
    assert_eq!(world.empty(&list, GroupRef::ROOT), [4, 2, 1, 3], "from the hand on, and around");
    assert!(world.lists.destroy(list));
}

#[test]
fn a_walk_that_unwinds_leaves_the_list_as_it_was() {
    let world = World::new();
    let list = world.lists.create(0).expect("memory");
    let node = Node::new(0);
    world.add(&list, &node, Tag::NOBODY);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut isolated = Isolated::new();
        world.lists.walk(&list, GroupRef::ROOT, 1, Wait::Yes, &mut isolated, |_| panic!("told"))
    }));
    assert!(caught.is_err());
    world.lists.check();
    assert_eq!(world.empty(&list, GroupRef::ROOT), [0]);
    assert!(world.lists.destroy(list));
}

#[test]
fn nodes_of_a_group_that_goes_are_the_parents() {
    let world = World::new();
    let list = world.lists.create(42).expect("memory");
    let (top, tag_top) = world.group(GroupRef::ROOT, "top");
    let (mid, tag_mid) = world.group(top, "mid");
    let (low, tag_low) = world.group(mid, "low");
    let nodes: Vec<_> = (0..6).map(Node::new).collect();
    for (node, tag) in nodes.iter().zip([tag_low, tag_low, tag_mid, tag_top, tag_top, tag_low]) {
        world.add(&list, node, tag);
    }
    assert_eq!(world.offline(low), [(42, mid)]);
    world.lists.check();
    assert_eq!([low, mid, top].map(|g| world.lists.count(&list, g)), [0, 4, 2]);
    assert!(world.remove(&list, &nodes[0]), "a node is found under the head that it went to");
    assert_eq!(world.add(&list, &nodes[0], tag_low), None, "the old tag leads to the parent");
    assert_eq!(world.lists.count(&list, mid), 4);
    assert_eq!(world.offline(mid), [(42, top)]);
    assert_eq!(world.lists.count(&list, top), 6);
    assert_eq!(world.offline(top), [(42, GroupRef::ROOT)]);
    world.lists.check();
    assert_eq!(world.lists.nr_records(), 4, "the root's and three that forward");
    let mut all = world.empty(&list, GroupRef::ROOT);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    assert_eq!(world.lists.nr_records(), 1, "heads that nothing leads to are free");
    assert!(world.lists.destroy(list));
}

#[test]
fn a_parent_without_a_part_gets_the_childs() {
    let world = World::new();
    let list = world.lists.create(3).expect("memory");
    let (top, tag_top) = world.group(GroupRef::ROOT, "top");
    let (low, tag_low) = world.group(top, "low");
    let nodes = [Node::new(0), Node::new(1)];
    world.add(&list, &nodes[0], tag_low);
    assert_eq!(world.offline(low), [(3, top)]);
    world.lists.check();
    assert_eq!(world.add(&list, &nodes[1], tag_top), None, "it is not empty");
    assert_eq!(world.lists.nr_records(), 2, "no head forwards");
    assert_eq!(world.empty(&list, top), [0, 1]);
    assert_eq!(world.offline(top), [], "of an empty list nothing moved");
    assert!(world.lists.destroy(list));
}

#[test]
fn groups_come_and_go_and_records_are_used_again() {
    let world = World::new();
    let list = world.lists.create(0).expect("memory");
    let survivor = Node::new(0);
    let (first, tag) = world.group(GroupRef::ROOT, "first");
    world.add(&list, &survivor, tag);
    world.offline(first);
    let mut bytes = 0;
    for i in 0..20_000 {
        let (group, tag) = world.group(GroupRef::ROOT, "g");
        let node = Node::new(i);
        world.add(&list, &node, tag);
        world.tree.uncharge(tag, 1);
        world.offline(group);
        assert!(world.remove(&list, &node));
        if i == 100 {
            bytes = world.lists.metadata_bytes();
        }
    }
    assert_eq!(world.lists.metadata_bytes(), bytes);
    assert_eq!(world.lists.nr_records(), 2);
    assert!(world.remove(&list, &survivor));
    assert_eq!(world.lists.nr_records(), 1);
    assert!(world.lists.destroy(list));
}

#[test]
fn without_memory_for_a_head_an_ancestors_is_used() {
    static NONE_LEFT: AtomicUsize = AtomicUsize::new(0);
    static SCARCE: Source = Source {
        map: |size| {
            if NONE_LEFT.load(Ordering::Relaxed) == 0 {
                (SYSTEM.map)(size)
            } else {
                core::ptr::null_mut()
            }
        },
        unmap: |memory, size| {
            // SAFETY: what is given back came from `SYSTEM`.
            unsafe { (SYSTEM.unmap)(memory, size) };
        },
    };
    let tree = Tree::new();
    assert!(tree.make(Root::Untracked, &SYSTEM));
    let world = World { tree, lists: Lists::new(&SCARCE) };
    let list = world.lists.create(0).expect("memory");
    NONE_LEFT.store(1, Ordering::Relaxed);
    let (group, tag) = world.group(GroupRef::ROOT, "g");
    let node = Node::new(0);
    assert_eq!(world.add(&list, &node, tag), Some(GroupRef::ROOT));
    assert_eq!(world.lists.create(1).map(|_| ()), Some(()), "a record was left");
    assert!(world.remove(&list, &node));
    world.offline(group);
    NONE_LEFT.store(0, Ordering::Relaxed);
    // A group went unrecorded, so there are no more heads, but adding works.
    let (_, tag) = world.group(GroupRef::ROOT, "h");
    assert_eq!(world.add(&list, &node, tag), Some(GroupRef::ROOT));
    world.lists.check();
    assert!(world.remove(&list, &node));
}

#[test]
fn threads_add_remove_and_walk_while_groups_go() {
    const THREADS: usize = 4;
    let rounds = if cfg!(debug_assertions) { 300 } else { 3_000 };
    let world = World::new();
    let list = world.lists.create(0).expect("memory");
    let removed = AtomicUsize::new(0);
    let (top, _) = world.group(GroupRef::ROOT, "top");
    for _ in 0..rounds / 100 {
        let groups: Vec<_> =
            (0..THREADS * 2).map(|i| world.group(top, &std::format!("g{i}"))).collect();
        std::thread::scope(|scope| {
            for i in 0..THREADS {
                let (world, list, groups, removed) = (&world, &list, &groups, &removed);
                scope.spawn(move || {
                    for round in 0..100 {
                        let nodes: Vec<_> = (0..8).map(Node::new).collect();
                        for (j, node) in nodes.iter().enumerate() {
                            world.add(list, node, groups[(i + j) % groups.len()].1);
                        }
                        if round == 50 {
                            world.offline(groups[i].0);
                        }
                        for node in &nodes {
                            removed.fetch_add(
                                usize::from(world.remove(list, node)),
                                Ordering::Relaxed,
                            );
                        }
                    }
                });
            }
            let (world, list) = (&world, &list);
            scope.spawn(move || {
                for _ in 0..100 {
                    let mut isolated = Isolated::new();
                    world.lists.walk(list, top, 4, Wait::No, &mut isolated, |_| LruStatus::Rotate);
                    world.lists.walk(list, top, 4, Wait::Yes, &mut isolated, |_| LruStatus::Skip);
                    world.lists.check();
                }
            });
        });
        for (group, tag) in groups {
            world.tree.uncharge(tag, 1);
            // Of those that a thread ended already the reference is stale.
            world.offline(group);
        }
        world.lists.check();
    }
    assert_eq!(removed.load(Ordering::Relaxed), rounds / 100 * 100 * THREADS * 8);
    assert_eq!(world.lists.count(&list, top), 0);
    world.offline(top);
    assert!(world.lists.destroy(list));
    assert_eq!(world.lists.nr_records(), 0);
}

/// A step of the property test, on nodes and groups by number.
#[derive(Clone, Debug)]
enum Op {
    Add(usize, usize),
    Remove(usize),
    Touch(usize),
    Evict(usize, usize),
    Offline(usize),
}

const NODES: usize = 12;
/// Parents: 0 is the root; 1 and 2 are below it, 3 below 1, 4 below 3.
const PARENTS: [usize; 5] = [0, 0, 0, 1, 3];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..NODES, 0..5usize).prop_map(|(n, g)| Op::Add(n, g)),
        2 => (0..NODES).prop_map(Op::Remove),
        1 => (0..NODES).prop_map(Op::Touch),
        1 => (0..5usize, 0..4usize).prop_map(|(g, n)| Op::Evict(g, n)),
        1 => (1..5usize).prop_map(Op::Offline),
    ]
}

proptest! {
    #[test]
    fn parts_hold_what_a_model_says(ops in proptest::collection::vec(op(), 1..80)) {
        let world = World::new();
        let list = world.lists.create(0).expect("memory");
        let nodes: Vec<_> = (0..NODES).map(Node::new).collect();
        let mut groups = std::vec![(GroupRef::ROOT, Tag::NOBODY)];
        for (i, parent) in PARENTS.iter().enumerate().skip(1) {
            groups.push(world.group(groups[*parent].0, &std::format!("g{i}")));
        }
        // The model: each group's part, oldest first; who pays for whose tag.
        let mut parts: [VecDeque<usize>; 5] = Default::default();
        let mut payer: [usize; 5] = core::array::from_fn(|i| i);
        let mut handle = [true; 5];
        for op in ops {
            match op {
                Op::Add(n, g) => {
                    let linked = parts.iter().any(|part| part.contains(&n));
                    let told = world.add(&list, &nodes[n], groups[g].1);
                    let part = &mut parts[payer[g]];
                    let expected = !linked && part.is_empty();
                    prop_assert_eq!(told, expected.then_some(groups[payer[g]].0));
                    if !linked {
                        part.push_back(n);
                    }
                }
                Op::Remove(n) => {
                    let at = parts.iter_mut().find(|part| part.contains(&n));
                    prop_assert_eq!(world.remove(&list, &nodes[n]), at.is_some());
                    if let Some(part) = at {
                        part.retain(|m| *m != n);
                    }
                }
                Op::Touch(n) => {
                    let at = parts.iter_mut().find(|part| part.contains(&n));
                    // SAFETY: the node is valid.
                    let touched = unsafe { world.lists.touch(&list, nodes[n].links()) };
                    prop_assert_eq!(touched, at.is_some());
                    if let Some(part) = at {
                        part.retain(|m| *m != n);
                        part.push_back(n);
                    }
                }
                Op::Evict(g, nr) => {
                    let mut isolated = Isolated::new();
                    let (group, removed) = (groups[g].0, LruStatus::Removed);
                    world.lists.walk(&list, group, nr, Wait::No, &mut isolated, |_| removed);
                    let evicted = numbers(&mut isolated);
                    let nr = nr.min(parts[g].len());
                    let expected: Vec<_> = parts[g].drain(..nr).collect();
                    prop_assert_eq!(evicted, expected);
                }
                Op::Offline(g) => {
                    if core::mem::take(&mut handle[g]) {
                        world.offline(groups[g].0);
                    }
                    // A group with a child that is there stays.
                    for g in (1..5).rev() {
                        let kept = handle[g] || payer[g] != g
                            || (1..5).any(|c| PARENTS[c] == g && payer[c] == c);
                        if !kept {
                            let heir = PARENTS[g];
                            let older = core::mem::take(&mut parts[g]);
                            older.into_iter().rev().for_each(|n| parts[heir].push_front(n));
                            for payer in payer.iter_mut().filter(|payer| **payer == g) {
                                *payer = heir;
                            }
                        }
                    }
                }
            }
            world.lists.check();
            for (g, part) in parts.iter().enumerate() {
                prop_assert_eq!(world.lists.count(&list, groups[g].0), part.len());
            }
        }
        let mut isolated = Isolated::new();
        let nr = world.lists.take_any(&list, usize::MAX, &mut isolated);
        prop_assert_eq!(nr, parts.iter().map(VecDeque::len).sum::<usize>());
        while isolated.take().is_some() {}
        assert!(world.lists.destroy(list));
        prop_assert_eq!(world.lists.nr_records(), 0);
    }
}
