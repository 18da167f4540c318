//! Errands and deliveries: with a worker, and where none can be started.

extern crate std;

use core::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::vec::Vec;

use memcg_accounting::{EventKind, GroupRef, Root};

use super::sim::{Recipe, Sim, Toy, eventually, locked};
use crate::{Cause, ErrandEnd, Place, RawCount, RawScan};

const ROOT: GroupRef = GroupRef::ROOT;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn ends(sim: &Sim) -> Vec<(Option<ErrandEnd>, u64)> {
    locked(&sim.errands).1.iter().map(|errand| (errand.end(), errand.got())).collect()
}

#[test]
fn an_errand_goes_on_until_it_is_met_or_there_is_no_more() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(ROOT, "a", 64 * MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    assert!(sim.engine.summon());
    toy.fill(group, 600, 16 * KIB);
    sim.send_out(group, 5 * MIB);
    eventually("it is met", || ends(sim).len() == 1);
    let (end, got) = ends(sim)[0];
    assert_eq!(end, Some(ErrandEnd::Met));
    // The first batch is 128 objects, whatever they are.
    assert!((5 * MIB..8 * MIB).contains(&got), "{got}");
    assert_eq!(toy.len() as u64, 600 - got / (16 * KIB));
    let cause = locked(&toy.last).map(|(control, _)| control.cause);
    assert_eq!(cause, Some(Cause::Proactive));
    sim.send_out(group, 64 * MIB);
    eventually("it comes to an end", || ends(sim).len() == 2);
    assert_eq!(ends(sim)[1], (Some(ErrandEnd::Short), 600 * 16 * KIB - got));
    let events = sim.tree.events(group);
    assert_eq!((events.max, events.high, sim.engine.pressure(group).some.total_us), (0, 0, 0));
}

#[test]
fn garbage_comes_first_and_the_end_of_the_group_ends_it() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(group, 10, KIB);
    sim.caches.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        let object = sim.alloc(group, KIB).expect("room");
        sim.free(object);
    }
    assert!(sim.engine.summon());
    sim.send_out(group, 4 * KIB);
    eventually("it is met", || ends(sim).len() == 1);
    assert_eq!((ends(sim)[0], toy.len()), ((Some(ErrandEnd::Met), 4 * KIB), 10));
    while let Some(object) = toy.take() {
        sim.free(object);
    }
    sim.engine.put(group);
    sim.send_out(group, KIB);
    eventually("it ends", || ends(sim).len() == 2);
    assert_eq!(ends(sim)[1], (Some(ErrandEnd::Gone), 0));
}

#[test]
fn a_shrinker_that_is_busy_is_tried_again_for_a_while() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(ROOT, "a", MIB);
    let toy = Toy::new(sim);
    let (recipe, is_free) = (toy.recipe("toy", Place::Worker), Arc::new(AtomicBool::new(false)));
    let (scan, looks) = (recipe.scan, is_free.clone());
    let busy = Recipe {
        scan: std::boxed::Box::new(move |control| {
            // Busy at the first look.
            if looks.swap(true, Ordering::Relaxed) { scan(control) } else { RawScan::Stop }
        }),
        ..toy.recipe("busy", Place::Worker)
    };
    drop(recipe.count);
    sim.register(busy);
    toy.fill(group, 10, KIB);
    assert!(sim.engine.summon());
    sim.send_out(group, 10 * KIB);
    eventually("it is met", || ends(sim).len() == 1);
    assert_eq!(ends(sim)[0], (Some(ErrandEnd::Met), 10 * KIB));
    let never = Recipe::new("never", Place::Worker, |_| RawCount::Objects(5), |_| RawScan::Stop);
    sim.register(never);
    sim.send_out(group, KIB);
    eventually("it is given up", || ends(sim).len() == 2);
    assert_eq!(ends(sim)[1], (Some(ErrandEnd::Short), 0));
}

#[test]
fn without_a_worker_everything_happens_at_safe_points() {
    let sim = Sim::new(Root::Untracked);
    sim.can_start.store(false, Ordering::Relaxed);
    let group = sim.group(ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(group, 10, KIB);
    sim.send_out(group, 5 * KIB);
    sim.engine.ring();
    assert_eq!((ends(sim).len(), sim.nr_delivered.load(Ordering::Relaxed)), (0, 0));
    sim.engine.run_deferred();
    assert_eq!((ends(sim).len(), sim.nr_delivered.load(Ordering::Relaxed)), (1, 1));
    assert_eq!((ends(sim)[0], toy.len()), ((Some(ErrandEnd::Met), 5 * KIB), 5));
    let here = locked(&toy.last).map(|(_, thread)| thread);
    assert_eq!(here, Some(thread::current().id()));
    sim.engine.run_deferred();
    assert_eq!(sim.nr_delivered.load(Ordering::Relaxed), 1, "there is no more news");
}

#[test]
fn two_errands_take_turns() {
    let sim = Sim::new(Root::Untracked);
    sim.can_start.store(false, Ordering::Relaxed);
    let groups = ["a", "b"].map(|name| sim.group(ROOT, name, 64 * MIB));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    for group in groups {
        toy.fill(group, 1280, 16 * KIB);
        sim.send_out(group, 16 * MIB);
    }
    let mut turns = 0;
    while ends(sim).len() < 2 {
        // At safe points each does one turn.
        sim.engine.serve_here();
        turns += 1;
        let left: Vec<u64> = locked(&sim.errands).0.iter().map(|errand| errand.got()).collect();
        if let [one, other] = left[..] {
            assert!(one.abs_diff(other) <= 8 * MIB, "{one} and {other} after {turns} turns");
        }
    }
    assert!(turns >= 8, "a turn is about 4 MiB: {turns}");
}

#[test]
fn a_refusal_is_noted_once_a_second_for_each_group_and_what_is_kept_is_bounded() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(ROOT, "a", 1000);
    assert!(sim.alloc(group, 2000).is_err());
    assert!(sim.engine.take_refusal().is_none(), "nobody wants to know");
    sim.engine.want_refusals();
    for _ in 0..3 {
        assert!(sim.alloc(group, 2000).is_err());
    }
    let told = sim.engine.take_refusal().expect("noted");
    assert_eq!((told.over.group, told.over.requested, told.over.max), (group, 2000, 1000));
    assert_eq!((told.name.as_str(), told.payer, told.suppressed), ("a", Some(group), 0));
    assert!(told.tried.only_drained && told.children[0].is_none());
    assert!(sim.engine.take_refusal().is_none());
    for nr in 0..20 {
        let other = sim.group(ROOT, &std::format!("other {nr}"), 1000);
        assert!(sim.alloc(other, 2000).is_err());
    }
    let kept = core::iter::from_fn(|| sim.engine.take_refusal()).count();
    assert_eq!(kept, 8);
    assert_eq!(sim.tree.events(ROOT).of(EventKind::Oom), 24, "each is counted as an event");
}
