//! Objects that count for groups.

use std::{format, thread};

use super::support::{child, end, tree};
use crate::{GroupRef, Limit, Root};

const ROOT: GroupRef = GroupRef::ROOT;

#[test]
fn each_level_has_a_bound_and_a_refusal_changes_nothing() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let [a, b] = ["a", "b"].map(|name| child(tree, top, name));
    let join = |group| tree.join_objects(group, Limit::Bytes(3));
    assert_eq!(tree.max_objects(top), None);
    tree.set_max_objects(top, Limit::Bytes(5));
    assert_eq!([a, a, a].map(join), [Ok(()); 3]);
    let over = join(a).expect_err("its share");
    assert_eq!((over.group, over.usage, over.max), (a, 3, 3));
    assert_eq!([b, b].map(join), [Ok(()); 2]);
    let over = join(b).expect_err("what the parent may have");
    assert_eq!((over.group, over.usage, over.max), (top, 5, 5));
    assert_eq!([top, a, b].map(|group| tree.nr_objects(group)), [5, 3, 2]);
    for (limit, bytes) in [(Limit::Max, None), (Limit::Bytes(0), Some(0))] {
        tree.set_max_objects(top, limit);
        assert_eq!(tree.max_objects(top).map(Limit::bytes), Some(bytes));
    }
    assert_eq!(join(b).expect_err("none at all").usage, 5);
    tree.check();
    // The group goes, its objects stay where they were counted.
    end(tree, a);
    assert_eq!((tree.nr_objects(a), tree.nr_objects(top)), (0, 5));
    let again = child(tree, top, "a");
    assert_eq!((tree.nr_objects(again), tree.max_objects(again)), (0, None));
    (0..3).for_each(|_| tree.leave_objects(top));
    (0..2).for_each(|_| tree.leave_objects(b));
    assert_eq!((tree.nr_objects(top), tree.nr_objects(ROOT)), (0, 0));
    tree.check();
}

#[test]
fn numbers_are_exact_while_many_come_and_go() {
    const MOST: u32 = 20;
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    tree.set_max_objects(top, Limit::Bytes(MOST.into()));
    thread::scope(|scope| {
        for i in 0..3 {
            scope.spawn(move || {
                for _ in 0..300 {
                    let group = child(tree, top, &format!("{i}"));
                    let joined = |_: &u32| tree.join_objects(group, Limit::Bytes(15)).is_ok();
                    let made = (0..20).take_while(joined).count();
                    assert!(tree.nr_objects(top) <= MOST && made <= 15);
                    (0..made).for_each(|_| tree.leave_objects(group));
                    assert_eq!(tree.nr_objects(group), 0);
                    end(tree, group);
                }
            });
        }
        for _ in 0..20 {
            tree.check();
        }
    });
    assert_eq!(tree.nr_objects(top), 0);
    tree.check();
}
