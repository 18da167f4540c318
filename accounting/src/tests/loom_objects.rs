//! Objects that count for groups: never more than may be, and none is left when all are gone, whatever becomes of the
//! group that they counted for.

use super::loom_context::{beside, charge, child, end, explore, is_at_rest, is_needed, tree};
use crate::tree::Weakened;
use crate::{GroupRef, Limit};

const ROOT: GroupRef = GroupRef::ROOT;

/// Two come to the last place.
fn last_place(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let join = move |tree: &crate::Tree| tree.join_objects(a, Limit::Bytes(1)).is_ok();
        let other = beside(&tree, join);
        let joined = join(&tree);
        let joined = [joined, other.join().expect("no panic")];
        assert_eq!(joined.iter().filter(|joined| **joined).count(), 1, "one place");
        assert_eq!(tree.nr_objects(a), 1);
    });
}

#[test]
fn loom_the_last_place_is_one_objects() {
    last_place(None);
}

#[test]
fn loom_needs_one_step_for_look_and_count() {
    is_needed(Weakened::OneStep, last_place);
}

/// An object goes while the group that it counts for does.
fn goes_with_its_group(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        // Stands for the pin of its place.
        let tag = charge(&tree, tree.payer(b), 1);
        tree.join_objects(b, Limit::Max).expect("no bound");
        let other = beside(&tree, move |tree| {
            if let Some(owner) = tree.owner_handle(tag) {
                tree.leave_objects(owner);
                end(tree, owner);
            }
        });
        end(&tree, b);
        other.join().expect("no panic");
        assert_eq!(tree.nr_objects(a), 0, "nothing is left");
        tree.uncharge(tag, 1);
        is_at_rest(&tree, a, 1);
    });
}

#[test]
fn loom_an_object_goes_while_its_group_ends() {
    goes_with_its_group(None);
}

#[test]
fn loom_needs_to_ask_again_for_whom_it_counts() {
    is_needed(Weakened::AskAgain, goes_with_its_group);
}
