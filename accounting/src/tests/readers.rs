//! What readers and chosen names cost those who make and end groups.

use std::collections::HashSet;
use std::format;
use std::string::String;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use super::support::{charge, child, end, tree};
use crate::sync::lock;
use crate::{GroupRef, Root};

const ROOT: GroupRef = GroupRef::ROOT;

#[test]
fn usage_of_the_root_is_the_sum_of_its_trees_and_needs_no_topology() {
    let tree = tree(Root::Untracked);
    let groups: Vec<_> = (0..200).map(|i| child(tree, ROOT, &format!("g{i}"))).collect();
    for (bytes, &group) in (1..).zip(&groups) {
        let below = child(tree, group, "below");
        charge(tree, group, bytes);
        charge(tree, below, 1000);
        tree.uncharge(tree.payer(below).tag, 500);
        end(tree, below);
    }
    assert_eq!(tree.usage(ROOT), 200 * 201 / 2 + 200 * 500);
    tree.check();
    // What a tenant leaves behind is charged to nobody.
    end(tree, groups[9]);
    assert_eq!(tree.usage(ROOT), 200 * 201 / 2 + 200 * 500 - 510);
    tree.check();

    let held = lock(&tree.topology);
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(tree.usage(ROOT)).expect("somebody waits"));
    let usage = answered.recv_timeout(Duration::from_secs(30)).expect("nobody is waited for");
    drop(held);
    assert_eq!(usage, tree.usage(ROOT));
}

/// FNV-1a without a key, as it was once used here.
fn unkeyed(parent: u32, name: &[u8]) -> u64 {
    parent.to_le_bytes().iter().chain(name).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[test]
fn names_that_were_chosen_to_collide_do_not() {
    let tree = tree(Root::Untracked);
    let chosen = (0..).map(|i| format!("u{i:x}")).filter(|name| {
        unkeyed(0, name.as_bytes()) & 1023 == 0x123 // all in one bucket of 1,024
    });
    let chosen: Vec<String> = chosen.take(1000).collect();
    let groups: Vec<_> = chosen.iter().map(|name| child(tree, ROOT, name)).collect();
    // 1,000 groups in as many buckets: more than 20 in one has a chance of less than 1 in 10^12.
    let longest = lock(&tree.topology).index.longest(&tree.groups);
    assert!(longest <= 20, "a look at a name walks over {longest} groups");
    for (name, &group) in chosen.iter().zip(&groups) {
        assert_eq!(tree.lookup(&format!("/{name}")), Some(group));
    }
    tree.check();
}

#[test]
fn the_largest_of_many_children_are_found_in_steps() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let groups: Vec<_> = (0..1000).map(|i| child(tree, top, &format!("g{i}"))).collect();
    for (bytes, at) in [(30, 999), (20, 500), (10, 0)] {
        charge(tree, groups[at], bytes);
    }
    let told = || tree.largest_children::<3>(top).map(|child| child.map(|c| (c.name, c.usage)));
    let names = told().map(|child| child.map(|(name, usage)| (format!("{name}"), usage)));
    let expected = [("g999", 30), ("g500", 20), ("g0", 10)];
    assert_eq!(names, expected.map(|(name, usage)| Some((name.into(), usage))));
    // Also while others come and go.
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            for i in 0..500 {
                end(tree, child(tree, top, &format!("other {i}")));
                end(tree, groups[1 + i % 400 + usize::from(i >= 400) * 500]);
            }
        });
        while !others.is_finished() {
            let seen: HashSet<_> = told().iter().flatten().map(|(_, usage)| *usage).collect();
            assert!(seen.is_subset(&HashSet::from([30, 20, 10, 0])), "{seen:?}");
        }
    });
    tree.check();
}
