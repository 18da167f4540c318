//! Deep trees: how deep they may be, and whom they cost something.

use std::format;
use std::thread;
use std::vec::Vec;

use super::support::{child, end, offline, tree};
use crate::{CreateError, DEPTH, GroupRef, Limit, Root, Settings, Tree};

const ROOT: GroupRef = GroupRef::ROOT;

fn deep() -> Settings {
    Settings { max_depth: Some(Limit::Max), ..Settings::default() }
}

/// Who refuses a child of `parent`, how many levels are above it from there, and how many may be.
fn refused(tree: &Tree, parent: GroupRef) -> (GroupRef, u64, u64) {
    match tree.create(parent, "too deep", Settings::default()) {
        Err(CreateError::Depth(over)) => (over.group, over.usage, over.max),
        other => panic!("{other:?}"),
    }
}

/// A chain of `levels` groups below `top`; the last one's handle is the caller's, the others are kept by it.
fn chain(tree: &Tree, top: GroupRef, levels: u64) -> GroupRef {
    let mut at = top;
    for _ in 0..levels {
        let next = child(tree, at, "x");
        if at != top {
            assert_eq!(tree.put(at), None, "its child keeps it");
        }
        at = next;
    }
    at
}

#[test]
fn depth_is_limited_at_each_level_and_the_lowest_refuses() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let a = child(tree, top, "a");
    assert!(tree.set_max_depth(top, Limit::Bytes(2)));
    let b = child(tree, a, "b");
    assert_eq!(refused(tree, b), (top, 2, 2));
    assert!(tree.set_max_depth(a, Limit::Bytes(1)));
    assert_eq!(refused(tree, b), (a, 1, 1));
    assert!(tree.set_max_depth(b, Limit::Bytes(0)));
    assert_eq!(refused(tree, b), (b, 0, 0));
    // The root's counts too, and lowering one ends nobody.
    assert!(tree.set_max_depth(ROOT, Limit::Bytes(1)));
    assert_eq!(refused(tree, a), (ROOT, 2, 1));
    child(tree, ROOT, "another top");
    assert_eq!((tree.max_depth(ROOT), tree.max_depth(b)), (Limit::Bytes(1), Limit::Bytes(0)));
    assert_eq!([ROOT, top, a, b].map(|group| tree.nr_descendants(group)), [4, 2, 1, 0]);
    tree.check();
}

#[test]
fn a_tree_has_64_levels_below_its_top_unless_it_was_made_deep() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    assert_eq!((tree.max_depth(top), tree.max_depth(ROOT)), (Limit::Bytes(DEPTH), Limit::Max));
    let last = chain(tree, top, DEPTH);
    assert_eq!(tree.max_depth(last), Limit::Max);
    assert_eq!(refused(tree, last), (top, DEPTH, DEPTH));
    assert!(!tree.set_max_depth(top, Limit::Bytes(DEPTH + 1)), "it has its lock for life");
    assert!(!tree.set_max_depth(top, Limit::Max));
    assert_eq!(refused(tree, last), (top, DEPTH, DEPTH));

    let top = tree.create(ROOT, "deep", deep()).expect("made");
    let last = chain(tree, top, 1000);
    assert!(tree.set_max_depth(top, Limit::Bytes(1001)));
    child(tree, last, "still");
    tree.check();
}

#[test]
fn with_an_accounted_root_that_is_the_top() {
    let tree = tree(Root::Accounted);
    let last = chain(tree, ROOT, DEPTH);
    assert_eq!(refused(tree, last), (ROOT, DEPTH, DEPTH));
    assert!(tree.set_max_depth(ROOT, Limit::Max));
    child(tree, last, "there is one lock in any case");
}

#[test]
fn a_tree_that_may_be_deep_shares_its_lock_with_such_alone() {
    let tree = tree(Root::Untracked);
    let stripe = |group| tree.group(group).expect("live").stripe();
    for i in 0..200 {
        let shallow = child(tree, ROOT, &format!("shallow {i}"));
        let most = Settings { max_depth: Some(Limit::Bytes(DEPTH)), ..Settings::default() };
        let most = tree.create(ROOT, &format!("most {i}"), most).expect("made");
        let deep = tree.create(ROOT, &format!("deep {i}"), deep()).expect("made");
        assert!(!Tree::is_deep(stripe(shallow)) && !Tree::is_deep(stripe(most)));
        assert!(Tree::is_deep(stripe(deep)) && Tree::is_deep(stripe(child(tree, deep, "below"))));
    }
    tree.check();
}

#[test]
fn numbers_of_descendants_are_exact_while_a_deep_tree_changes() {
    const MOST: u64 = 40;
    let tree = tree(Root::Untracked);
    let top = tree.create(ROOT, "top", deep()).expect("made");
    let last = chain(tree, top, 300);
    tree.set_max_descendants(top, Limit::Bytes(300 + MOST));
    thread::scope(|scope| {
        for i in 0..3 {
            scope.spawn(move || {
                for _ in 0..200 {
                    let made: Vec<_> = (0..20)
                        .map_while(|k| {
                            let name = format!("{i} {k}");
                            match tree.create(last, &name, Settings::default()) {
                                Ok(group) => Some(group),
                                Err(CreateError::Descendants(over)) => {
                                    assert_eq!((over.group, over.max), (top, 300 + MOST));
                                    None
                                }
                                Err(other) => panic!("{other:?}"),
                            }
                        })
                        .collect();
                    assert!(u64::from(tree.nr_descendants(top)) <= 300 + MOST);
                    made.into_iter().for_each(|group| end(tree, group));
                }
            });
        }
        for _ in 0..20 {
            tree.check();
        }
    });
    assert_eq!((tree.nr_descendants(top), tree.nr_descendants(last)), (300, 0));
    tree.check();
    offline(tree, tree.put(last));
    assert_eq!(tree.nr_descendants(top), 0);
    tree.check();
}

#[test]
fn a_walk_goes_on_from_the_end_of_a_deep_chain() {
    let tree = tree(Root::Untracked);
    let top = tree.create(ROOT, "top", deep()).expect("made");
    let after = child(tree, top, "after");
    let last = chain(tree, top, 1000);
    assert_eq!(tree.next_in_subtree(top, Some(last)), Some(after));
    assert_eq!(tree.next_in_subtree(top, Some(after)), None);
    assert!(tree.is_in_subtree(top, last) && !tree.is_in_subtree(after, last));
    assert_eq!(tree.lookup(&format!("/top{}", "/x".repeat(1000))), Some(last));
}
