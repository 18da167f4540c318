//! Model: adding to a list, removing from it and walking it, against the end of the group.
//!
//! Each test with `should_panic` leaves one step out and shows that the model notices.

use core::ptr::NonNull;
use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use memcg_accounting::{GroupRef, Root, SYSTEM, Settings, Tag, Tree, Want};

use crate::list::{Isolated, Links};
use crate::list_walk::{LruStatus, Wait};
use crate::lists::{ListLru, Lists, Step};

/// What the lists' cookie is in every model.
const COOKIE: u64 = 7;

/// Two groups, one above the other, a list, and which of the groups is marked.
struct World {
    tree: Tree,
    lists: Lists,
    list: ListLru,
    parent: GroupRef,
    child: GroupRef,
    tag: Tag,
    /// Bit 0: the parent is marked; bit 1: the child.
    marks: AtomicU64,
}

impl World {
    fn new(left_out: Option<Step>) -> Arc<World> {
        let tree = Tree::new();
        assert!(tree.make(Root::Untracked, &SYSTEM));
        let parent = tree.create(GroupRef::ROOT, "p", Settings::default()).expect("made");
        let child = tree.create(parent, "c", Settings::default()).expect("made");
        let payer = tree.payer(child);
        tree.charge(payer, Want::exactly(64)).expect("there is no limit");
        let mut lists = Lists::new(&SYSTEM);
        lists.left_out = left_out;
        let list = lists.create(COOKIE).expect("memory");
        let marks = AtomicU64::new(0);
        Arc::new(World { tree, lists, list, parent, child, tag: payer.tag, marks })
    }

    fn mark(&self, group: GroupRef) {
        let bit = if group == self.parent { 1 } else { 2 };
        self.marks.fetch_or(bit, Ordering::Relaxed);
    }

    fn add(&self, node: &Node) {
        // SAFETY: nodes live until the model's end, and are removed before; the tag's bytes stay
        // charged.
        let added = unsafe { self.lists.add(&self.tree, &self.list, node.links(), self.tag) };
        assert!(added.linked);
        if let Some(group) = added.newly_nonempty_in() {
            self.mark(group);
        }
    }

    fn remove(&self, node: &Node) -> bool {
        // SAFETY: nodes live until the model's end.
        unsafe { self.lists.remove(&self.list, node.links()) }
    }

    /// The end of the child: its lists move, then it goes.
    fn offline(&self) {
        let dying = self.tree.put(self.child).expect("the last handle");
        self.lists.reparent(self.child, self.parent, |cookie, heir| {
            assert_eq!(cookie, COOKIE);
            self.mark(heir);
        });
        assert!(self.tree.offline(dying).is_none());
    }

    /// After the child went: `nr` nodes are the parent's, and reclaim of the parent finds them.
    fn finish(&self, nr: usize) {
        self.lists.check();
        assert_eq!(self.lists.count(&self.list, self.child), 0, "the child is gone");
        assert_eq!(self.lists.count(&self.list, self.parent), nr, "the parent has the nodes");
        let marked = self.marks.load(Ordering::Relaxed) & 1 != 0;
        assert!(nr == 0 || marked, "the parent is marked");
        let mut isolated = Isolated::new();
        let walked = self
            .lists
            .walk(&self.list, self.parent, 9, Wait::Yes, &mut isolated, |_| LruStatus::Removed);
        assert_eq!(walked.removed, nr);
        while isolated.take().is_some() {}
        self.lists.check();
        // The root's head, and the parent's if there is one: none that forwards.
        assert!(self.lists.nr_records() <= 2, "heads of gone groups are freed");
    }
}

/// A node, leaked for the model: what a thread links must outlive it.
#[derive(Clone, Copy)]
struct Node(&'static Links);

impl Node {
    fn new() -> Node {
        Node(Box::leak(Box::new(Links::new())))
    }

    fn links(&self) -> NonNull<Links> {
        NonNull::from(self.0)
    }
}

/// Every interleaving: the models are small enough.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.check(f);
}

/// One thread adds while the group goes; `heir` says whether the parent has a head before.
fn add_against_reparent(left_out: Option<Step>, first: bool, heir: bool) {
    model(move || {
        let world = World::new(left_out);
        let mut nr = 1;
        if first {
            world.add(&Node::new());
            nr += 1;
        }
        let payer = world.tree.payer(world.parent);
        if heir {
            world.tree.charge(payer, Want::exactly(64)).expect("there is no limit");
            // SAFETY: the node is leaked, so it stays valid; the tag's bytes stay charged.
            unsafe { world.lists.add(&world.tree, &world.list, Node::new().links(), payer.tag) };
            world.mark(world.parent);
            nr += 1;
        }
        let adder = {
            let (world, node) = (world.clone(), Node::new());
            thread::spawn(move || world.add(&node))
        };
        world.offline();
        adder.join().expect("the adder is done");
        world.finish(nr);
    });
}

#[test]
fn a_late_adder_finds_the_parent() {
    add_against_reparent(None, false, false);
}

#[test]
fn a_late_adder_finds_the_parent_whose_list_was_the_childs() {
    add_against_reparent(None, true, false);
}

#[test]
fn a_late_adder_finds_the_parent_that_has_a_list() {
    add_against_reparent(None, true, true);
}

#[test]
#[should_panic(expected = "the child is gone")]
fn without_the_gone_word_a_late_adder_is_lost() {
    add_against_reparent(Some(Step::Gone), false, false);
}

#[test]
#[should_panic(expected = "nodes are under live heads")]
fn without_the_look_under_the_lock_a_late_adder_is_lost() {
    add_against_reparent(Some(Step::Recheck), true, true);
}

#[test]
#[should_panic(expected = "the index finds a head")]
fn without_the_forward_a_late_adder_is_lost() {
    add_against_reparent(Some(Step::Forward), true, true);
}

#[test]
#[should_panic(expected = "the parent is marked")]
fn marking_the_tags_group_loses_the_parents_mark() {
    add_against_reparent(Some(Step::ReportHead), false, false);
}

#[test]
#[should_panic(expected = "the parent is marked")]
fn not_marking_the_parent_of_what_moved_loses_its_mark() {
    add_against_reparent(Some(Step::ReportMoved), true, false);
}

/// One thread removes a node while the group goes, and adds it again.
fn remove_against_reparent(left_out: Option<Step>) {
    model(move || {
        let world = World::new(left_out);
        let payer = world.tree.payer(world.parent);
        world.tree.charge(payer, Want::exactly(64)).expect("there is no limit");
        let (node, stays) = (Node::new(), Node::new());
        // SAFETY: the node is leaked, so it stays valid; the tag's bytes stay charged.
        unsafe { world.lists.add(&world.tree, &world.list, stays.links(), payer.tag) };
        world.mark(world.parent);
        world.add(&node);
        let remover = {
            let world = world.clone();
            thread::spawn(move || assert!(world.remove(&node)))
        };
        world.offline();
        remover.join().expect("the remover is done");
        assert!(!world.remove(&node), "a node is removed once");
        world.finish(1);
    });
}

#[test]
fn a_remover_finds_the_node_wherever_it_went() {
    remove_against_reparent(None);
}

#[test]
#[should_panic(expected = "the last node is the oldest")]
fn without_the_second_look_a_remover_holds_the_wrong_lock() {
    remove_against_reparent(Some(Step::Refollow));
}

#[test]
fn of_two_removers_and_a_walk_one_gets_the_node() {
    model(|| {
        let world = World::new(None);
        let node = Node::new();
        world.add(&node);
        let walker = {
            let world = world.clone();
            thread::spawn(move || {
                let mut isolated = Isolated::new();
                for group in [world.child, world.parent] {
                    world.lists.walk(&world.list, group, 2, Wait::No, &mut isolated, |_| {
                        LruStatus::Removed
                    });
                }
                let mut nr = 0;
                while isolated.take().is_some() {
                    nr += 1;
                }
                nr
            })
        };
        let removed = usize::from(world.remove(&node));
        world.offline();
        let walked = walker.join().expect("the walker is done");
        assert_eq!(removed + walked, 1);
        world.finish(0);
    });
}
