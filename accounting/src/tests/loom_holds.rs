//! Holds and handles against the end of a group: the name is free at the last user's handle, the record
//! when nobody has a reference to it any more, and the group ends once.

use super::loom_context::{beside, charge, child, end, explore, is_at_rest, is_needed, tree};
use crate::tree::Weakened;
use crate::{GroupRef, Tree};

const ROOT: GroupRef = GroupRef::ROOT;

/// What a call of a shrinker does with its group: the reference is good for as long as it is held.
fn call(tree: &Tree, group: GroupRef) -> bool {
    let held = tree.hold(group);
    if held {
        assert_eq!(tree.name(group).as_str(), "b", "the record is held");
        tree.let_go(group);
    }
    held
}

/// A call is under way, or about to begin, while its group is dropped and made again.
#[test]
fn loom_a_hold_keeps_no_name() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let tag = charge(&tree, tree.payer(b), 10);
        let other = beside(&tree, move |tree| call(tree, b));
        end(&tree, b);
        assert_eq!(tree.owner(tag), Some(a), "its charges are the parent's at once");
        let again = child(&tree, a, "b");
        assert_ne!(again, b);
        tree.uncharge(tag, 10);
        other.join().expect("no panic");
        assert_eq!((tree.nr_dying(), tree.name(again).as_str()), (0, "b"));
        is_at_rest(&tree, a, 2);
    });
}

/// Groups of which each is kept by the one below, while the lowest is held.
#[test]
fn loom_a_hold_keeps_the_records_above() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        assert_eq!(tree.put(a), None);
        let other = beside(&tree, move |tree| {
            if tree.hold(b) {
                let above = tree.parent_ref(b).expect("kept");
                assert_eq!((above, tree.name(above).as_str()), (a, "a"));
                tree.let_go(b);
            }
        });
        end(&tree, b);
        let again = child(&tree, ROOT, "a");
        other.join().expect("no panic");
        assert_eq!((tree.nr_dying(), tree.lookup("/a")), (0, Some(again)));
        is_at_rest(&tree, ROOT, 1);
    });
}

/// A call makes a handle of its group, which outlives it, while the last one of its users goes.
fn clone_of_a_hold(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let other = beside(&tree, move |tree| {
            if !tree.hold(b) {
                return 0;
            }
            tree.get(b);
            tree.let_go(b);
            assert_eq!(tree.name(b).as_str(), "b", "the handle keeps the record");
            tree.put(b).map(|dying| tree.offline(dying)).into_iter().count()
        });
        let ended = tree.put(b).map(|dying| tree.offline(dying)).into_iter().count();
        // It takes the slot, if it is free.
        let c = child(&tree, a, "c");
        let ended = ended + other.join().expect("no panic");
        assert_eq!((ended, tree.nr_dying()), (1, 0), "it ended once");
        assert_eq!(tree.name(c).as_str(), "c");
        is_at_rest(&tree, a, 2);
    });
}

#[test]
fn loom_a_clone_of_a_hold_keeps_the_record() {
    clone_of_a_hold(None);
}

#[test]
fn loom_needs_the_hold_of_the_first_handle() {
    is_needed(Weakened::FirstHandle, clone_of_a_hold);
}

#[test]
fn loom_needs_the_second_look_at_the_handles() {
    is_needed(Weakened::LastAgain, clone_of_a_hold);
}

/// Two calls make handles of one group that goes: the hold of the handles comes and goes once.
#[test]
fn loom_clones_of_two_holds_against_the_last_handle() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        assert!(tree.hold(a) && tree.hold(a));
        let made = move |tree: &Tree| {
            tree.get(a);
            tree.let_go(a);
            assert_eq!(tree.name(a).as_str(), "a");
            end(tree, a);
        };
        let first = beside(&tree, made);
        let second = beside(&tree, made);
        end(&tree, a);
        first.join().expect("no panic");
        second.join().expect("no panic");
        assert_eq!((tree.nr_dying(), tree.lookup("/a")), (0, None));
        is_at_rest(&tree, ROOT, 0);
    });
}

/// Of three levels the lowest ends on one thread, while the last handle of the one above it, which alone keeps the
/// highest, goes on another: somebody ends each.
#[test]
fn loom_each_level_ends_whoever_comes_last() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let c = child(&tree, b, "c");
        assert_eq!(tree.put(a), None);
        let lowest = tree.put(c);
        let other = beside(&tree, move |tree| {
            let mut next = lowest;
            while let Some(dying) = next {
                next = tree.offline(dying);
            }
        });
        end(&tree, b);
        other.join().expect("no panic");
        assert_eq!((tree.nr_dying(), tree.nr_descendants(ROOT)), (0, 0), "nobody ends the rest");
    });
}
