//! The shape of the tree: names, handles, walks, and the end of groups.

use std::collections::HashSet;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::support::{charge, child, end, limited, live_contexts, max, offline, tree};
use crate::{CreateError, GroupRef, Limit, NameError, Root, SYSTEM, Settings, Tag, Tree, Want};

const ROOT: GroupRef = GroupRef::ROOT;

#[test]
fn making_a_tree_again_changes_nothing() {
    let tree = tree(Root::Accounted);
    let group = child(tree, ROOT, "a");
    assert!(tree.make(Root::Untracked, &SYSTEM));
    assert_eq!(tree.root_kind(), Root::Accounted);
    assert_eq!(tree.lookup("/a"), Some(group));
    tree.check();
}

#[test]
fn before_it_is_made_a_tree_has_no_root_and_no_children() {
    let tree = Tree::new();
    assert_eq!(tree.lookup("/"), None);
    assert_eq!(tree.create(ROOT, "a", Settings::default()), Err(CreateError::Gone));
    assert_eq!((tree.usage(ROOT), tree.metadata_bytes()), (0, 0));
}

#[test]
fn paths_lead_to_groups_and_nowhere_else() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b b");
    assert_eq!(tree.lookup("/"), Some(ROOT));
    assert_eq!(tree.lookup("/a"), Some(a));
    assert_eq!(tree.lookup("/a/b b"), Some(b));
    for path in ["", "a", "//", "/a/", "//a", "/a//b b", "/b b", "/a/b", "/A", "/a/b b/c"] {
        assert_eq!(tree.lookup(path), None, "{path:?}");
    }
    assert_eq!(tree.name(b).as_str(), "b b");
    assert_eq!(tree.name(ROOT).as_str(), "");
    assert_eq!(tree.parent(b), Some(a));
    assert_eq!(tree.parent(a), Some(ROOT));
    assert_eq!(tree.parent(ROOT), None);
    tree.check();
}

#[test]
fn a_name_is_one_siblings_at_a_time() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "x");
    assert_eq!(tree.create(ROOT, "x", Settings::default()), Err(CreateError::Exists));
    let below = child(tree, a, "x");
    assert_ne!(below, a);
    end(tree, below);
    end(tree, a);
    let again = child(tree, ROOT, "x");
    assert_ne!(again, a, "another generation");
    tree.check();
}

#[test]
fn the_name_of_a_dying_group_is_free_at_once() {
    let tree = tree(Root::Untracked);
    let old = child(tree, ROOT, "x");
    let dying = tree.put(old).expect("the last handle");
    assert_eq!(tree.lookup("/x"), None);
    assert_eq!(tree.name(old).as_str(), "x", "still readable");
    let new = child(tree, ROOT, "x");
    assert_eq!(tree.lookup("/x"), Some(new));
    tree.check();
    assert_eq!(tree.offline(dying), None);
    assert_eq!(tree.lookup("/x"), Some(new));
    tree.check();
}

#[test]
fn bad_names_and_gone_parents_are_errors() {
    let tree = tree(Root::Untracked);
    let create = |parent, name: &str| tree.create(parent, name, Settings::default());
    assert_eq!(create(ROOT, ""), Err(CreateError::Name(NameError::Empty)));
    assert_eq!(create(ROOT, "a/b"), Err(CreateError::Name(NameError::Separator)));
    let gone = child(tree, ROOT, "gone");
    let dying = tree.put(gone).expect("the last handle");
    assert_eq!(create(gone, "a"), Err(CreateError::Gone), "dying");
    offline(tree, Some(dying));
    assert_eq!(create(gone, "a"), Err(CreateError::Gone), "offline");
    assert_eq!(tree.nr_descendants(ROOT), 0);
    tree.check();
}

#[test]
fn descendants_are_limited_at_each_level_and_the_lowest_refuses() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let mid = child(tree, top, "mid");
    tree.set_max_descendants(top, Limit::Bytes(3));
    tree.set_max_descendants(mid, Limit::Bytes(1));
    let refused = |parent, name| match tree.create(parent, name, Settings::default()) {
        Err(CreateError::Descendants(over)) => (over.group, over.usage, over.max),
        other => panic!("{other:?}"),
    };
    let first = child(tree, mid, "1");
    assert_eq!(refused(mid, "2"), (mid, 1, 1));
    child(tree, top, "2");
    assert_eq!(refused(top, "3"), (top, 3, 3));
    assert_eq!((tree.nr_descendants(ROOT), tree.nr_descendants(mid)), (4, 1));

    let dying = tree.put(first).expect("the last handle");
    assert_eq!(refused(mid, "2"), (mid, 1, 1), "a dying group still has a record");
    offline(tree, Some(dying));
    child(tree, mid, "2");
    tree.set_max_descendants(top, Limit::Max);
    child(tree, top, "3");
    tree.check();
}

#[test]
fn a_child_keeps_its_ancestors() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = child(tree, a, "b");
    let c = child(tree, b, "c");
    assert_eq!(tree.put(a), None);
    assert_eq!(tree.put(b), None);
    assert_eq!(tree.lookup("/a/b/c"), Some(c));
    end(tree, c);
    assert!(tree.charge(tree.payer(c), Want::exactly(101)).is_err(), "their limits hold");
    let dying = tree.put(c).expect("the last handle of the last child");
    let dying = tree.offline(dying).expect("b was kept by c alone");
    assert_eq!(dying.group(), b);
    let dying = tree.offline(dying).expect("a was kept by b alone");
    assert_eq!(dying.group(), a);
    assert_eq!(tree.offline(dying), None, "nothing ends the root");
    assert_eq!((tree.nr_descendants(ROOT), live_contexts(tree)), (0, 0));
    tree.check();
}

#[test]
fn a_group_without_handles_is_found_through_its_child() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    assert_eq!(tree.put(a), None);
    assert_eq!(tree.lookup("/a"), Some(a));
    end(tree, b);
    assert_eq!(tree.lookup("/a"), Some(a), "the handle keeps it now");
    assert_eq!(tree.put(a), None);
    end(tree, a);
    assert_eq!(tree.lookup("/a"), None);
    tree.check();
}

#[test]
fn handles_are_counted() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    tree.get(a);
    assert!(tree.try_get(a));
    assert_eq!(tree.put(a), None);
    assert_eq!(tree.put(a), None);
    let dying = tree.put(a).expect("the third handle of three");
    assert!(!tree.try_get(a), "dying");
    offline(tree, Some(dying));
    assert!(!tree.try_get(a), "gone");
    assert_eq!(tree.put(a), None, "a stale reference");
    tree.get(ROOT);
    assert!(tree.try_get(ROOT));
    assert_eq!(tree.put(ROOT), None, "the root has no handles");
    tree.check();
}

#[test]
fn deferred_groups_wait_and_come_back_once() {
    let tree = tree(Root::Untracked);
    let groups: Vec<_> = ["a", "b", "c"].map(|name| child(tree, ROOT, name)).into();
    for &group in &groups {
        tree.defer(tree.put(group).expect("the last handle"));
    }
    assert_eq!((tree.nr_dying(), tree.nr_descendants(ROOT)), (3, 3));
    assert_eq!(tree.next_child(ROOT, None), None, "nobody finds them");
    tree.check();
    let mut back = HashSet::new();
    while let Some(dying) = tree.take_deferred() {
        back.insert(dying.group());
        offline(tree, Some(dying));
    }
    assert_eq!(back, groups.into_iter().collect());
    assert_eq!((tree.nr_dying(), tree.nr_descendants(ROOT)), (0, 0));
    tree.check();
}

#[test]
fn a_stale_reference_names_nobody_and_changes_nobody() {
    let tree = tree(Root::Untracked);
    let old = limited(tree, ROOT, "old", 10);
    end(tree, old);
    let new = limited(tree, ROOT, "new", 20);
    assert_eq!(new.index(), old.index(), "the slot is used again");
    charge(tree, new, 7);
    assert_eq!((tree.usage(old), tree.peak(old), tree.max(old)), (0, 0, Limit::Max));
    assert_eq!(tree.name(old).as_str(), "");
    assert_eq!(tree.payer(old).tag, Tag::NOBODY);
    tree.set_max(old, Limit::Bytes(1));
    tree.set_high(old, Limit::Bytes(1));
    tree.set_low(old, 5);
    tree.set_min(old, 5);
    tree.refuse(old);
    assert_eq!((tree.max(new), tree.high(new)), (Limit::Bytes(20), Limit::Max));
    assert_eq!((tree.low(new), tree.min(new)), (0, 0));
    assert_eq!(tree.events(new).oom, 0);
    assert_eq!(GroupRef::from_bits(new.to_bits()), new);
    assert!(!tree.is_in_subtree(old, new) && !tree.contains(old, tree.payer(new).tag));
    tree.check();
}

/// The names of the walk over `top`, in its order.
fn walk(tree: &Tree, top: GroupRef) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = tree.next_in_subtree(top, None);
    while let Some(group) = at {
        names.push(tree.name(group).to_string());
        at = tree.next_in_subtree(top, Some(group));
        end(tree, group);
    }
    names
}

#[test]
fn a_walk_visits_the_subtree_parents_first() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let c = child(tree, a, "c");
    let d = child(tree, b, "d");
    child(tree, ROOT, "stranger");
    assert_eq!(walk(tree, a), ["a", "c", "b", "d"]);
    assert_eq!(walk(tree, b), ["b", "d"]);
    assert_eq!(walk(tree, c), ["c"]);
    assert_eq!(walk(tree, ROOT), ["", "stranger", "a", "c", "b", "d"]);
    assert!(tree.is_in_subtree(a, d) && tree.is_in_subtree(ROOT, d) && tree.is_in_subtree(d, d));
    assert!(!tree.is_in_subtree(b, c) && !tree.is_in_subtree(d, b));

    let mut children = HashSet::new();
    let mut at = tree.next_child(a, None);
    while let Some(group) = at {
        children.insert(group);
        at = tree.next_child(a, Some(group));
        end(tree, group);
    }
    assert_eq!(children, HashSet::from([b, c]));
    tree.check();
}

#[test]
fn a_walk_survives_changes_around_it() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let groups: Vec<_> = (0..8).map(|i| child(tree, top, &format!("g{i}"))).collect();
    let below = child(tree, groups[4], "below");
    let mut seen = Vec::new();
    let mut at = tree.next_in_subtree(top, None);
    while let Some(group) = at {
        seen.push(group);
        if group == groups[6] {
            end(tree, groups[5]); // the next one
            end(tree, groups[7]); // the one before
            end(tree, group); // the one that the walk stands on: its handle keeps it
            child(tree, top, "new");
        }
        if group == groups[3] {
            end(tree, below);
            end(tree, groups[4]);
        }
        at = tree.next_in_subtree(top, Some(group));
        end(tree, group);
        tree.check();
    }
    let expected = [top, groups[7], groups[6], groups[4], below, groups[3]];
    assert_eq!(seen[..6], expected);
    assert_eq!(seen[6..], [groups[2], groups[1], groups[0]]);
    assert_eq!(tree.nr_descendants(top), 5);
}

#[test]
fn the_name_index_grows_and_loses_nobody() {
    let tree = tree(Root::Untracked);
    let groups: Vec<_> = (0..2000).map(|i| child(tree, ROOT, &format!("group {i}"))).collect();
    let find = |i: usize| tree.lookup(&format!("/group {i}"));
    for (i, &group) in groups.iter().enumerate() {
        assert_eq!(find(i), Some(group));
        assert_eq!(tree.put(group), None);
    }
    tree.check();
    for (_, &group) in groups.iter().enumerate().filter(|(i, _)| i % 3 == 0) {
        end(tree, group);
    }
    for (i, &group) in groups.iter().enumerate() {
        assert_eq!(find(i), (i % 3 != 0).then_some(group));
    }
    tree.check();
}

#[test]
fn settings_are_what_a_group_is_made_with() {
    use crate::OnLimit::{Fail, Overcommit, OvercommitBy};
    let tree = tree(Root::Untracked);
    let settings = Settings { high: Limit::Bytes(7), low: 5, min: 3, ..max(9) };
    let a = tree.create(ROOT, "a", Settings { on_limit: Some(OvercommitBy(4)), ..settings });
    let a = a.expect("created");
    assert_eq!((tree.max(a), tree.high(a)), (Limit::Bytes(9), Limit::Bytes(7)));
    assert_eq!((tree.low(a), tree.min(a)), (5, 3));
    let b = child(tree, a, "b");
    assert_eq!(tree.on_limit(b), OvercommitBy(4), "the parent's");
    tree.set_on_limit(a, Overcommit);
    assert_eq!((tree.on_limit(a), tree.on_limit(b)), (Overcommit, OvercommitBy(4)));
    assert_eq!(tree.policy_of(tree.payer(b)), OvercommitBy(4));
    assert_eq!(tree.policy_of(crate::Payer::NOBODY), Fail);
    end(tree, b);
    let again = limited(tree, ROOT, "again", 1);
    assert_eq!((tree.on_limit(again), tree.low(again)), (Fail, 0), "nothing of the slot's past");
}
