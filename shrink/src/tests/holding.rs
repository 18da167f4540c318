//! Calls that do not end, many of them: whoever they are not for is served.

extern crate std;

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root};

use super::sim::{Latch, Recipe, Sim, Toy, eventually};
use crate::{MOST_HELD, MOST_UNPROVEN, Place, RawCount, RawScan};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A worker that lost its CPU looks held, and two that begin a call at once do not see each other.
const BESIDES: u32 = 4;

/// Shrinkers, each marked in one of `groups` in turn, whose scans wait for the latch; and how many are in one.
fn stuck(sim: &'static Sim, groups: &[GroupRef], number: usize) -> (Arc<Latch>, Arc<AtomicU32>) {
    let (latch, inside) = (Latch::new(), Arc::new(AtomicU32::new(0)));
    for &group in groups.iter().cycle().take(number) {
        let (held, entered) = (latch.clone(), inside.clone());
        let scan = move |_: &mut _| {
            entered.fetch_add(1, Ordering::SeqCst);
            held.wait();
            entered.fetch_sub(1, Ordering::SeqCst);
            RawScan::Freed(0)
        };
        let count = |_: &_| RawCount::Objects(100);
        let recipe = Recipe::new("stuck", Place::Worker, count, scan);
        let (id, _) = sim.register(Recipe { starts_marked: false, ..recipe });
        sim.engine.mark(group, id);
    }
    (latch, inside)
}

/// A group at its limit, all of it objects that the worker evicts.
fn served(sim: &'static Sim, parent: GroupRef, name: &str) -> (Arc<Toy>, GroupRef) {
    let group = sim.group(parent, name, 64 * KIB);
    sim.be_patient_in(group);
    let toy = Toy::new(sim);
    let recipe = toy.recipe("toy", Place::Worker);
    let (id, _) = sim.register(Recipe { starts_marked: false, ..recipe });
    toy.serve(id);
    toy.fill(group, 100, KIB);
    (toy, group)
}

#[test]
fn any_number_of_stuck_shrinkers_of_one_tenant_leaves_the_others_served() {
    for number in [1, 15, 16, 64, 200] {
        let sim = Sim::new(Root::Untracked);
        let bad = sim.group(GroupRef::ROOT, "bad", MIB);
        sim.hurry_in(bad);
        let (toy, good) = served(sim, GroupRef::ROOT, "good");
        let (latch, inside) = stuck(sim, &[bad], number);
        let pinned = sim.alloc(bad, MIB).expect("room");
        for _ in 0..4 {
            assert!(sim.alloc(bad, 1).is_err());
            toy.fill(good, 100, KIB);
        }
        let held = inside.load(Ordering::SeqCst);
        assert!((1..=MOST_UNPROVEN + BESIDES).contains(&held), "{held} of {number}");
        eventually("they are counted", || sim.engine.stat().held == held);
        latch.open();
        eventually("the surplus ends", || sim.engine.stat().workers == 1);
        assert_eq!(sim.engine.stat().held, 0);
        sim.free(pinned);
        sim.tree.check();
    }
}

#[test]
fn stuck_shrinkers_that_everybody_has_leave_those_that_gave_before() {
    let sim = Sim::new(Root::Untracked);
    let (toy, good) = served(sim, GroupRef::ROOT, "good");
    let deadline = crate::Deadline { first_ms: 400, total_ms: 10_000 };
    assert!(sim.engine.set_deadline(good, deadline));
    let (latch, inside) = (Latch::new(), Arc::new(AtomicU32::new(0)));
    for _ in 0..200 {
        let (held, entered) = (latch.clone(), inside.clone());
        let scan = move |_: &mut _| {
            entered.fetch_add(1, Ordering::SeqCst);
            held.wait();
            RawScan::Freed(0)
        };
        sim.register(Recipe::new("stuck", Place::Worker, |_| RawCount::Objects(100), scan));
    }
    for _ in 0..3 {
        toy.fill(good, 100, KIB);
    }
    assert!(inside.load(Ordering::SeqCst) <= MOST_UNPROVEN + BESIDES);
    latch.open();
}

#[test]
fn a_tenant_of_many_stuck_groups_leaves_the_others_served() {
    let sim = Sim::new(Root::Untracked);
    let bad = sim.group(GroupRef::ROOT, "bad", MIB);
    sim.hurry_in(bad);
    let below: Vec<_> = (0..90).map(|n| sim.group(bad, &std::format!("b{n}"), MIB)).collect();
    let (toy, good) = served(sim, GroupRef::ROOT, "good");
    let (latch, inside) = stuck(sim, &below, 90);
    let pinned = sim.alloc(bad, MIB).expect("room");
    for _ in 0..12 {
        assert!(sim.alloc(bad, 1).is_err());
        toy.fill(good, 100, KIB);
    }
    assert!(inside.load(Ordering::SeqCst) <= MOST_HELD / 2 + BESIDES);
    latch.open();
    sim.free(pinned);
}

#[test]
fn a_limit_above_both_is_served_by_the_one_that_can_give() {
    let sim = Sim::new(Root::Untracked);
    let above = sim.group(GroupRef::ROOT, "above", MIB);
    // As long as a loaded machine may take to start another worker.
    let deadline = crate::Deadline { first_ms: 400, total_ms: 10_000 };
    let (bad, good) = (sim.group(above, "bad", MIB), sim.group(above, "good", MIB));
    let (latch, _) = stuck(sim, &[bad], 50);
    let toy = Toy::new(sim);
    let (id, _) = sim.register(Recipe { starts_marked: false, ..toy.recipe("toy", Place::Worker) });
    toy.serve(id);
    assert!(sim.engine.set_deadline(good, deadline));
    // The worker meets what is stuck on its way, and those who wait for it go to another.
    toy.fill(good, 3000, KIB);
    assert_eq!(sim.tree.events(above).oom, 0);
    latch.open();
}

#[test]
fn whoever_waits_for_a_worker_to_come_is_as_patient_as_in_all() {
    let sim = Sim::new(Root::Untracked);
    let (toy, good) = served(sim, GroupRef::ROOT, "good");
    // The first 1 ms begins when a worker is at it, of which there is none for longer than that.
    let deadline = crate::Deadline { first_ms: 1, total_ms: 10_000 };
    let tenants: Vec<_> =
        (0..8).map(|n| sim.group(GroupRef::ROOT, &std::format!("t{n}"), MIB)).collect();
    let (latch, inside) = stuck(sim, &tenants, 8);
    for (nr, &tenant) in tenants.iter().enumerate() {
        sim.hurry_in(tenant);
        let pinned = sim.alloc(tenant, MIB).expect("room");
        let waiter = std::thread::spawn(move || assert!(sim.alloc(tenant, 1).is_err()));
        eventually("a worker is held", || inside.load(Ordering::SeqCst) as usize > nr);
        assert!(sim.engine.set_deadline(good, deadline));
        let object = sim.alloc(good, KIB);
        toy.insert(object.expect("another worker comes"));
        sim.be_patient_in(good);
        waiter.join().expect("no panic");
        sim.free(pinned);
    }
    latch.open();
}
