//! Model: a group is marked while a walk finds nothing in it and unlinks it: walks find it.
//!
//! Each test with `should_panic` leaves one step out and shows that the model notices.

use std::boxed::Box;
use std::sync::Arc;

use loom::thread;
use memcg_accounting::{GroupRef, Root, SYSTEM, Settings, Tree};

use crate::groups::Groups;
use crate::marked::{Locked, Marked, Weakened};
use crate::marks::{Bit, Bits};

/// An adder that marks and a walk that prunes; at the end the group is marked, so it is linked.
fn model(site: Option<Weakened>) {
    loom::model(move || {
        let tree = Box::new(Tree::new());
        assert!(tree.make(Root::Untracked, &SYSTEM));
        let group = tree.create(GroupRef::ROOT, "g", Settings::default()).expect("made");
        let bit = Bit::new(0, false);
        let mut in_use = Bits::NONE;
        in_use.0[bit.word()] = bit.mask();
        let mut marked = Marked::new();
        marked.weakened = site;
        let all = Arc::new((tree, Groups::new(), marked));
        {
            // Of an object that is gone: the group is linked, and has no mark.
            let (tree, groups, marked) = &*all;
            groups.record(tree, group).expect("memory");
            groups.linked(tree, marked, group);
        }
        let adder = {
            let all = all.clone();
            thread::spawn(move || {
                let (tree, groups, marked) = &*all;
                let record = groups.find(group).expect("made");
                if record.marks.mark(bit) || !record.marked.is_linked() {
                    groups.linked(tree, marked, group);
                }
            })
        };
        let (tree, groups, marked) = &*all;
        Locked::new(marked, groups).prune(group.index(), in_use);
        adder.join().expect("no panic");
        assert!(groups.has_marked(marked, GroupRef::ROOT, in_use), "marked, and no walk finds it");
        assert!(tree.exists(group));
    });
}

#[test]
fn a_marked_group_is_found() {
    model(None);
}

#[test]
#[should_panic(expected = "and no walk finds it")]
fn without_the_adders_fence() {
    model(Some(Weakened::LinkFence));
}

#[test]
#[should_panic(expected = "and no walk finds it")]
fn without_the_pruners_fence() {
    model(Some(Weakened::UnlinkFence));
}

#[test]
#[should_panic(expected = "and no walk finds it")]
fn without_looking_again() {
    model(Some(Weakened::LookAgain));
}
