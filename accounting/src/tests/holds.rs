//! What the library holds: a record, and neither a name nor a group.

use super::support::{charge, charge_as, child, end, limited, live_contexts, offline, tree};
use crate::{CreateError, GroupRef, Limit, Root, Settings};

const ROOT: GroupRef = GroupRef::ROOT;

#[test]
fn a_hold_keeps_the_reference_and_nothing_else() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let a = limited(tree, top, "a", 100);
    let tag = charge(tree, a, 7);
    assert!(tree.hold(a));
    end(tree, a);
    tree.check();
    assert!(!tree.is_online(a) && !tree.exists(a) && !tree.hold(a) && !tree.try_get(a));
    assert_eq!((tree.usage(a), tree.usage(top), tree.owner(tag)), (0, 7, Some(top)));
    assert_eq!((tree.nr_dying(), tree.nr_descendants(top)), (1, 0));
    assert_eq!(tree.name(a).as_str(), "a", "still readable");
    assert_eq!(tree.parent_ref(a), Some(top));
    assert!(tree.is_in_subtree(top, a), "what it had is there");

    let again = limited(tree, top, "a", 10);
    assert_ne!(again.index(), a.index(), "the record is held");
    tree.set_max(a, Limit::Bytes(1));
    assert_eq!(tree.max(again), Limit::Bytes(10));
    let made = tree.create(a, "child", Settings::default());
    assert_eq!(made, Err(CreateError::Gone));
    let heir = charge_as(tree, tree.payer(a), 1);
    assert_eq!(tree.owner(heir), Some(top), "who enters it pays as its heir");
    tree.uncharge(heir, 1);
    tree.uncharge(tag, 7);
    tree.let_go(a);
    assert_eq!((tree.nr_dying(), live_contexts(tree)), (0, 2));
    assert_eq!(tree.name(a).as_str(), "", "stale");
    tree.check();
}

#[test]
fn a_handle_that_is_made_of_a_hold_keeps_the_record() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    assert!(tree.hold(a));
    end(tree, a);
    tree.get(a);
    tree.get(a);
    tree.let_go(a);
    assert_eq!(tree.name(a).as_str(), "a");
    assert_eq!(tree.put(a), None);
    assert_eq!((tree.name(a).as_str(), tree.nr_dying()), ("a", 1));
    tree.check();
    assert_eq!(tree.put(a), None, "it ended once");
    assert_eq!((tree.name(a).as_str(), tree.nr_dying()), ("", 0));
    tree.check();
}

#[test]
fn a_handle_that_is_made_of_a_hold_before_the_last_one_goes_keeps_the_group() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    assert!(tree.hold(a));
    tree.get(a);
    assert_eq!(tree.put(a), None);
    tree.let_go(a);
    assert_eq!(tree.lookup("/a"), Some(a));
    assert_eq!(tree.put(a), None);
    end(tree, a);
    assert_eq!((tree.lookup("/a"), tree.nr_dying()), (None, 0));
    tree.check();
}

/// Names that the end of a child has to free, too.
#[test]
fn the_name_of_a_group_is_free_while_its_children_have_yet_to_go() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let c = child(tree, b, "c");
    assert_eq!((tree.put(a), tree.put(b)), (None, None));
    let dying = tree.put(c).expect("the last handle");
    assert_eq!(tree.lookup("/a"), None, "nothing keeps it but what is yet to be done");
    let again = child(tree, ROOT, "a");
    assert_eq!(tree.nr_dying(), 3);
    tree.check();
    offline(tree, Some(dying));
    assert_eq!((tree.lookup("/a"), tree.nr_dying()), (Some(again), 0));
    tree.check();
}

#[test]
fn a_held_record_keeps_those_above_it() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    assert!(tree.hold(b));
    end(tree, b);
    end(tree, a);
    assert_eq!((tree.nr_dying(), tree.nr_descendants(ROOT)), (2, 0));
    let above = tree.parent_ref(b).expect("held");
    assert_eq!((above, tree.name(above).as_str()), (a, "a"), "its path can be told");
    assert_eq!(tree.parent(b), Some(ROOT), "whose its objects are");
    tree.check();
    tree.let_go(b);
    assert_eq!(tree.nr_dying(), 0);
    tree.check();
}

#[test]
fn the_root_is_held_for_nothing() {
    let tree = tree(Root::Untracked);
    assert!(tree.hold(ROOT));
    tree.let_go(ROOT);
    tree.let_go(ROOT);
    assert!(tree.hold(ROOT));
    tree.check();
}
