//! More shrinkers than there are bits: those that have nothing are not asked, and those that have are asked in turn.

extern crate std;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root};

use super::sim::{Recipe, Sim, Toy};
use crate::{Place, RawCount, RawScan, ShrinkerId};

const KIB: u64 = 1 << 10;

/// A cache like any other, but for how many counts all of them have had.
fn counted(
    sim: &'static Sim,
    starts_marked: bool,
    counts: &Arc<AtomicUsize>,
) -> (Arc<Toy>, ShrinkerId) {
    let toy = Toy::new(sim);
    let (counting, counts) = (toy.clone(), counts.clone());
    let recipe = toy.recipe("toy", Place::Direct);
    let count = move |control: &_| {
        counts.fetch_add(1, Ordering::Relaxed);
        counting.count(control)
    };
    let (id, _) =
        sim.register(Recipe { starts_marked, count: std::boxed::Box::new(count), ..recipe });
    toy.serve(id);
    (toy, id)
}

/// Counts for 200 objects at the limit, in a group that has one of `number` caches.
fn counts_beside(number: usize, starts_marked: bool) -> usize {
    let sim = Sim::new(Root::Untracked);
    let counts = Arc::new(AtomicUsize::new(0));
    let others: Vec<_> = (0..number).map(|_| counted(sim, starts_marked, &counts)).collect();
    let (toy, _) = &others[number / 2];
    let group = sim.group(GroupRef::ROOT, "a", 64 * KIB);
    for (nr, (other, _)) in others.iter().enumerate().filter(|(nr, _)| nr % 7 == 0) {
        let other_group = sim.group(GroupRef::ROOT, &std::format!("g{nr}"), 64 * KIB);
        other.fill(other_group, 1, KIB);
    }
    // What starts marked is asked once, some at each turn.
    toy.fill(group, 3000, KIB);
    counts.store(0, Ordering::Relaxed);
    toy.fill(group, 200, KIB);
    counts.load(Ordering::Relaxed)
}

#[test]
fn who_has_nothing_here_is_not_asked_however_many_there_are() {
    for starts_marked in [false, true] {
        let (few, many) = (counts_beside(10, starts_marked), counts_beside(3000, starts_marked));
        assert!(many <= 2 * few + 100, "{many} of 3,000, {few} of 10; {starts_marked}");
    }
}

#[test]
fn a_request_asks_a_bounded_number_of_a_groups_shrinkers_and_each_in_its_turn() {
    let sim = Sim::new(Root::Untracked);
    let counts = Arc::new(AtomicUsize::new(0));
    let group = sim.group(GroupRef::ROOT, "a", 4000 * KIB);
    let toys: Vec<_> = (0..1000).map(|_| counted(sim, false, &counts).0).collect();
    toys.iter().for_each(|toy| toy.fill(group, 4, KIB));
    counts.store(0, Ordering::Relaxed);
    // Half of all is evicted, for objects that stay.
    let mut kept = Vec::new();
    for _ in 0..2000 {
        kept.push(sim.alloc(group, KIB).expect("caches give"));
    }
    let asked = counts.load(Ordering::Relaxed);
    assert!(asked < 2000 * 64, "{asked} counts for 2,000 objects");
    let left: Vec<usize> = toys.iter().map(|toy| toy.len()).collect();
    let empty = left.iter().filter(|left| **left == 0).count();
    assert!(empty < 200, "{empty} of 1,000 have nothing left, where each could have half");
    sim.engine.put(group);
    sim.engine.run_deferred();
}

#[test]
fn marks_of_many_go_to_the_parent_and_to_no_later_group() {
    let sim = Sim::new(Root::Untracked);
    let counts = Arc::new(AtomicUsize::new(0));
    let parent = sim.group(GroupRef::ROOT, "p", 1000 * KIB);
    for starts_marked in [false, true] {
        let toys: Vec<_> = (0..400).map(|_| counted(sim, starts_marked, &counts)).collect();
        let child = sim.group(parent, "c", 1000 * KIB);
        for (toy, _) in toys.iter().step_by(3) {
            toy.fill(child, 2, KIB);
        }
        // The parent is asked for all, and knows of none, before the child goes.
        let none = sim.engine.reclaim(parent, 0, crate::Cause::Proactive);
        assert_eq!(none, 0);
        sim.engine.put(child);
        sim.engine.run_deferred();
        for (nr, (toy, id)) in toys.iter().enumerate() {
            assert!(toy.len() == 0 || sim.engine.is_marked(parent, *id), "{nr}");
        }
        // All of it is found there.
        let all = sim.alloc(parent, 1000 * KIB).expect("what the child left gives");
        sim.free(all);
        assert!(toys.iter().all(|(toy, _)| toy.len() == 0));
        let next = sim.group(parent, &std::format!("n{starts_marked}"), KIB);
        for (_, id) in &toys {
            assert_eq!(sim.engine.is_marked(next, *id), starts_marked);
            assert!(sim.engine.unregister(*id));
        }
    }
    sim.tree.check();
}

#[test]
fn a_shrinker_that_comes_later_to_a_shared_bit_is_asked_everywhere_if_it_starts_marked() {
    let sim = Sim::new(Root::Untracked);
    let counts = Arc::new(AtomicUsize::new(0));
    let group = sim.group(GroupRef::ROOT, "a", 64 * KIB);
    let first: Vec<_> = (0..300).map(|_| counted(sim, true, &counts)).collect();
    first[0].0.fill(group, 100, KIB);
    for (_, id) in &first[1..] {
        assert!(sim.engine.unregister(*id));
    }
    let late = Arc::new(AtomicUsize::new(0));
    for _ in 0..299 {
        let asked = late.clone();
        let count = move |_: &_| {
            asked.fetch_add(1, Ordering::Relaxed);
            RawCount::Empty
        };
        sim.register(Recipe::new("late", Place::Direct, count, |_| RawScan::Stop));
    }
    first[0].0.fill(group, 100, KIB);
    assert!(late.load(Ordering::Relaxed) >= 299, "{late:?}");
}
