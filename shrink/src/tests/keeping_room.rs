//! The worker keeps room below the limit of a group that waited for it.

extern crate std;

use core::sync::atomic::Ordering;
use std::time::Duration;

use memcg_accounting::{GroupRef, Limit, Root};

use super::sim::{Sim, Toy, eventually};
use crate::Place;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What is kept free below a limit of [`MIB`].
const MARGIN: u64 = MIB / 16;

/// A group that is full of what `objects` objects of a cache on the worker have, and the rest.
fn full(objects: usize) -> (&'static Sim, GroupRef, std::sync::Arc<Toy>) {
    let sim = Sim::new(Root::Untracked);
    sim.be_patient_in(GroupRef::ROOT);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.be_patient_in(group);
    assert!(sim.engine.summon());
    let (toy, _) = Toy::registered(sim, Place::Worker);
    let pinned = MIB - objects as u64 * KIB;
    if pinned > 0 {
        // It is never given back.
        sim.alloc(group, pinned).map(core::mem::forget).expect("room");
    }
    toy.fill(group, objects, KIB);
    (sim, group, toy)
}

#[test]
fn after_a_wait_charges_find_room_without_one() {
    let (sim, group, toy) = full(1024);
    toy.fill(group, 1, KIB);
    let waits = sim.tree.events(group).max;
    assert_eq!(waits, 1);
    for _ in 0..20 {
        eventually("room is made again", || sim.tree.usage(group) <= MIB - MARGIN);
        toy.fill(group, 60, KIB);
    }
    assert_eq!(sim.tree.events(group).max, waits, "nobody waits any more");
    assert!(sim.tree.usage(group) >= MIB - 3 * MARGIN, "no more is evicted than room takes");
    sim.tree.check();
}

#[test]
fn room_is_made_of_what_a_cache_can_spare() {
    // Nearly all is pinned: the margin is more than the cache has.
    let (sim, group, toy) = full(60);
    let object = sim.alloc(group, KIB).expect("the cache gives");
    let left = toy.len();
    std::thread::sleep(Duration::from_millis(50));
    assert!(toy.len() >= left / 4, "{} of {left} objects left", toy.len());
    sim.free(object);
    sim.tree.check();
}

#[test]
fn where_nothing_more_comes_back_nobody_is_asked_again() {
    let (sim, group, toy) = full(1);
    let object = sim.alloc(group, KIB).expect("the last object goes");
    assert_eq!(toy.len(), 0);
    sim.free(object);
    let again = || {
        // Within the margin each time.
        let object = sim.alloc(group, KIB).expect("room");
        sim.free(object);
        std::thread::sleep(Duration::from_millis(5));
        toy.nr_counts.load(Ordering::Relaxed)
    };
    (0..5).for_each(|_| _ = again());
    let before = again();
    (0..5).for_each(|_| _ = again());
    assert_eq!(again(), before);
}

#[test]
fn another_limit_begins_anew() {
    let (sim, group, toy) = full(1024);
    toy.fill(group, 1, KIB);
    eventually("room is made", || sim.tree.usage(group) <= MIB - MARGIN);
    sim.tree.set_max(group, Limit::Bytes(MIB + 10 * KIB));
    let charged = sim.tree.charge(sim.tree.payer(group), memcg_accounting::Want::exactly(70 * KIB));
    let charged = charged.expect("room");
    assert_eq!(charged.near_max, None, "nobody has waited at this limit");
    sim.tree.uncharge(charged.tag, charged.bytes);
}
