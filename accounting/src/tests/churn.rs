//! Many groups that come and go, and a source without memory.

use std::boxed::Box;
use std::collections::VecDeque;
use std::format;
use std::time::{Duration, Instant};
use std::vec::Vec;

use super::support::{
    METERED, allow_maps, charge, child, end, limited, live_contexts, mapped, tree,
};
use crate::{CreateError, GroupRef, Root, Settings, Tag, Tree};

const ROOT: GroupRef = GroupRef::ROOT;
const CYCLES: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
/// Groups, and tags of groups that are gone, that are kept at any time.
const SURVIVORS: usize = 200;

#[test]
fn memory_is_flat_and_ids_are_reused_over_many_groups() {
    let tree: &'static Tree = Box::leak(Box::new(Tree::new()));
    assert!(tree.make(Root::Untracked, &METERED));
    let top = limited(tree, ROOT, "top", 1 << 20);
    let mut groups = VecDeque::new();
    let mut tags = VecDeque::<Tag>::new();
    let (mut flat, mut highest) = (None, (0, 0));
    for i in 0..CYCLES {
        let parent = groups.back().copied().filter(|_| i % 3 == 0).unwrap_or(top);
        let group = child(tree, parent, &format!("group number {i}"));
        let tag = charge(tree, group, 16);
        highest = highest.max((group.index(), tag.to_bits()));
        if i % 100 == 0 {
            groups.push_back(group);
        } else {
            end(tree, group);
        }
        if i % 50 == 0 {
            tags.push_back(tag);
        } else {
            tree.uncharge(tag, 16);
        }
        if groups.len() > SURVIVORS {
            end(tree, groups.pop_front().expect("one"));
        }
        if tags.len() > SURVIVORS {
            tree.uncharge(tags.pop_front().expect("one"), 16);
        }
        if i == 50 * SURVIVORS * 3 {
            flat = Some((mapped(), tree.metadata_bytes()));
        }
    }
    assert_eq!(Some((mapped(), tree.metadata_bytes())), flat, "names and the index too");
    assert!(highest.0 <= 512 && highest.1 <= 1024, "{highest:?}");
    tree.check();
    for tag in tags {
        tree.uncharge(tag, 16);
    }
    for group in groups {
        end(tree, group);
    }
    assert_eq!((tree.usage(top), tree.nr_descendants(top), live_contexts(tree)), (0, 0, 1));
    tree.check();
}

#[test]
fn without_memory_nothing_is_made_and_nothing_changes() {
    // Where memory ends: the n-th map is refused, whatever it is for.
    let mut refused_at = Vec::new();
    for n in 0..9 {
        let tree = Tree::new();
        allow_maps(n);
        if !tree.make(Root::Accounted, &METERED) {
            assert_eq!(tree.lookup("/"), None);
            allow_maps(usize::MAX);
            assert!(tree.make(Root::Accounted, &METERED), "a second try with memory");
            allow_maps(0);
        }
        let mut made = 0;
        let name = |i: u32| format!("{i:0250}");
        let error = loop {
            match tree.create(ROOT, &name(made), Settings::default()) {
                Ok(group) => assert_eq!(tree.usage(group), 0),
                Err(error) => break Some(error),
            }
            made += 1;
            if made == 1000 {
                break None;
            }
        };
        allow_maps(usize::MAX);
        assert!(matches!(error, None | Some(CreateError::NoMemory)), "{error:?}");
        tree.check();
        assert_eq!((tree.nr_descendants(ROOT), live_contexts(&tree)), (made, made as usize + 1));
        assert_eq!(tree.lookup(&format!("/{}", name(made))), None);
        if error.is_some() {
            let group = child(&tree, ROOT, &name(made));
            assert_eq!(group.index(), made + 1, "the failure lost no record");
            assert_eq!(tree.payer(group).tag.to_bits(), made + 2, "nor a context");
            charge(&tree, group, 1);
            tree.check();
        }
        refused_at.push(made);
    }
    assert!(refused_at[8] > refused_at[5], "{refused_at:?}");
    // The four tables, chunks of names, second segments. Without one of the index nothing fails.
    assert_eq!(refused_at[..5], [0, 0, 0, 0, 0], "{refused_at:?}");
    refused_at[4..].windows(2).for_each(|w| assert!(w[0] <= w[1], "{refused_at:?}"));
}

/// The shortest time that the end of a group takes which pays for the contexts of `n` others.
fn time_to_end(n: usize) -> Duration {
    let tree = tree(Root::Untracked);
    let mut chain = std::vec![child(tree, ROOT, "top")];
    for _ in 0..10 {
        chain.push(child(tree, *chain.last().expect("one"), "below"));
    }
    let lowest = *chain.last().expect("one");
    for _ in 0..n {
        let gone = child(tree, lowest, "gone");
        charge(tree, gone, 1);
        end(tree, gone);
    }
    let mut shortest = Duration::MAX;
    for &group in chain[1..].iter().rev() {
        assert!(tree.nr_contexts(group) as usize >= n);
        let begun = Instant::now();
        end(tree, group);
        shortest = shortest.min(begun.elapsed());
    }
    assert_eq!(tree.usage(chain[0]), n as u64);
    shortest
}

#[test]
fn the_end_of_a_group_costs_the_same_whatever_it_leaves() {
    let few = time_to_end(10);
    let many = time_to_end(100_000);
    assert!(many < 3 * few + Duration::from_micros(20), "{few:?} for 10, {many:?} for 100,000");
}
