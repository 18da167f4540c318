//! Marks, offline, reclaim by name, and what runs where no worker can.

extern crate std;

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root};

use super::sim::{NO_RECLAIM, Recipe, Sim, Toy, eventually, locked};
use crate::marks::BITS_OF_A_KIND;
use crate::{Cause, Place, RawCount, RawScan};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn lazy(toy: &Arc<Toy>, place: Place) -> Recipe {
    Recipe { starts_marked: false, ..toy.recipe("lazy", place) }
}

#[test]
fn only_marked_pairs_are_asked_and_empty_takes_the_mark_away() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let toy = Toy::new(sim);
    let (id, _) = sim.register(lazy(&toy, Place::Direct));
    let asked = || toy.nr_counts.swap(0, Ordering::Relaxed);
    assert_eq!(sim.engine.reclaim(group, KIB, Cause::Proactive), 0);
    assert_eq!(asked(), 0, "not marked yet");
    sim.engine.mark(group, id);
    assert!(sim.engine.is_marked(group, id));
    sim.engine.reclaim(group, KIB, Cause::Proactive);
    assert_eq!(asked(), 2, "asked, and asked again after clearing");
    assert!(!sim.engine.is_marked(group, id));
    toy.fill(group, 10, KIB);
    sim.engine.mark(group, id);
    assert_eq!(sim.engine.reclaim(group, 5 * KIB, Cause::Proactive), 5 * KIB);
    assert_eq!((toy.len(), sim.tree.usage(group)), (5, 5 * KIB));
    assert!(sim.engine.is_marked(group, id), "there is more");
    let (scanned, reclaimed) = sim.engine.scan_counts(group);
    assert!(scanned >= 5);
    assert_eq!(reclaimed, 5 * KIB);
}

#[test]
fn one_that_starts_marked_is_asked_once_in_every_group_new_ones_too() {
    let sim = Sim::new(Root::Untracked);
    let before = sim.group(GroupRef::ROOT, "before", MIB);
    let (toy, id) = Toy::registered(sim, Place::Direct);
    let after = sim.group(GroupRef::ROOT, "after", MIB);
    for group in [before, after] {
        assert!(sim.engine.is_marked(group, id));
        sim.engine.reclaim(group, KIB, Cause::Proactive);
        assert!(!sim.engine.is_marked(group, id));
    }
    assert_eq!(toy.nr_counts.load(Ordering::Relaxed), 4);
    // The next user of a slot, and of an id, begins afresh.
    sim.engine.put(after);
    let again = sim.group(GroupRef::ROOT, "again", MIB);
    assert_eq!(again.index(), after.index());
    assert!(sim.engine.is_marked(again, id));
    assert!(sim.engine.unregister(id));
    let (_, id) = Toy::registered(sim, Place::Direct);
    assert!(sim.engine.is_marked(before, id), "an earlier shrinker's word is not this one's");
}

#[test]
fn marks_and_counts_of_a_group_that_goes_are_the_parents() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", MIB);
    let child = sim.group(parent, "c", MIB);
    let (toy, eager_toy) = (Toy::new(sim), Toy::new(sim));
    let (id, _) = sim.register(lazy(&toy, Place::Direct));
    let (eager, _) = sim.register(eager_toy.recipe("eager", Place::Direct));
    sim.engine.reclaim(parent, KIB, Cause::Proactive);
    assert!(!sim.engine.is_marked(parent, eager));
    toy.fill(child, 10, KIB);
    eager_toy.fill(child, 10, KIB);
    sim.engine.mark(child, id);
    sim.engine.mark(child, eager);
    let taken = sim.engine.reclaim(child, 2 * KIB, Cause::Proactive);
    sim.engine.put(child);
    assert!(sim.engine.is_marked(parent, id) && sim.engine.is_marked(parent, eager));
    assert_eq!(sim.engine.scan_counts(parent).1, taken);
    assert_eq!(sim.engine.reclaim(parent, MIB, Cause::Proactive), 20 * KIB - taken);
    assert_eq!(sim.tree.usage(parent), 0);
    sim.tree.check();
}

#[test]
fn shrinkers_beyond_the_bits_share_them() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let toys: Vec<_> = (0..BITS_OF_A_KIND + 2).map(|_| Toy::new(sim)).collect();
    let ids: Vec<_> = toys.iter().map(|toy| sim.register(lazy(toy, Place::Direct)).0).collect();
    let (first, last) = (0, BITS_OF_A_KIND as usize);
    toys[last].fill(group, 4, KIB);
    sim.engine.mark(group, ids[last]);
    assert!(sim.engine.is_marked(group, ids[first]), "they share a bit");
    assert_eq!(sim.engine.reclaim(group, 2 * KIB, Cause::Proactive), 2 * KIB);
    assert!(sim.engine.is_marked(group, ids[last]), "one says empty, the other does not");
    assert!(sim.engine.unregister(ids[first]));
    assert_eq!(sim.engine.reclaim(group, MIB, Cause::Proactive), 2 * KIB);
    sim.engine.reclaim(group, MIB, Cause::Proactive);
    assert!(!sim.engine.is_marked(group, ids[last]), "all that share it say empty");
    let others = toys[1..last].iter().map(|toy| toy.nr_counts.load(Ordering::Relaxed));
    assert_eq!(others.sum::<usize>(), 0, "and only they were asked");
    for id in &ids[1..] {
        assert!(sim.engine.unregister(*id));
    }
}

#[test]
fn the_root_asks_everybody_also_where_it_is_nobodys_payer() {
    let sim = Sim::new(Root::Untracked);
    let groups: Vec<_> =
        ["a", "b", "c"].map(|name| sim.group(GroupRef::ROOT, name, MIB)).into_iter().collect();
    let (direct, _) = Toy::registered(sim, Place::Direct);
    let (worker, _) = Toy::registered(sim, Place::Worker);
    let unaware = Arc::new(AtomicU32::new(0));
    let asked = unaware.clone();
    sim.register(Recipe {
        group_aware: false,
        ..Recipe::new(
            "unaware",
            Place::Worker,
            move |control| {
                assert!(control.group.is_root());
                asked.fetch_add(1, Ordering::Relaxed);
                RawCount::Empty
            },
            |_| RawScan::Stop,
        )
    });
    for group in &groups {
        direct.fill(*group, 10, KIB);
        worker.fill(*group, 10, KIB);
    }
    assert_eq!(sim.engine.reclaim(groups[0], MIB, Cause::Proactive), 20 * KIB);
    assert_eq!(unaware.load(Ordering::Relaxed), 0, "asked only when the root reclaims");
    assert_eq!(sim.engine.reclaim(GroupRef::ROOT, MIB, Cause::Proactive), 40 * KIB);
    assert!(unaware.load(Ordering::Relaxed) > 0);
    assert_eq!(sim.tree.usage(GroupRef::ROOT), 0);
    assert_eq!((direct.len(), worker.len()), (0, 0));
}

#[test]
fn reclaim_asks_each_kind_in_its_place_and_says_why() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    for place in [Place::Direct, Place::Worker] {
        let (toy, id) = Toy::registered(sim, place);
        toy.fill(group, 100, KIB);
        let got = sim.engine.reclaim(group, 10 * KIB, Cause::Proactive);
        assert!((10 * KIB..=11 * KIB).contains(&got), "{got}");
        let (control, thread) = locked(&toy.last).expect("scanned");
        assert_eq!(control.cause, Cause::Proactive);
        assert_eq!(thread == thread::current().id(), place == Place::Direct);
        sim.engine.reclaim(group, MIB, Cause::Proactive);
        assert!(sim.engine.unregister(id));
    }
    assert_eq!(sim.tree.events(group).max, 0, "it is not pressure");
}

#[test]
fn reclaim_waits_for_a_worker_that_is_slow_but_gives() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let toy = Toy::new(sim);
    let (counting, scanning) = (toy.clone(), toy.clone());
    sim.register(Recipe {
        batch: 4,
        ..Recipe::new(
            "slow",
            Place::Worker,
            move |control| counting.count(control),
            move |control| {
                thread::sleep(Duration::from_millis(120));
                scanning.scan(control)
            },
        )
    });
    toy.fill(group, 8, KIB);
    assert_eq!(sim.engine.reclaim(group, MIB, Cause::Proactive), 8 * KIB);
}

#[test]
fn inside_no_reclaim_only_garbage_comes_back() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 10, KIB);
    sim.caches.store(true, Ordering::Relaxed);
    let garbage = sim.alloc(group, 3 * KIB).expect("room");
    sim.free(garbage);
    NO_RECLAIM.set(true);
    assert_eq!(sim.engine.reclaim(group, MIB, Cause::Proactive), 3 * KIB);
    NO_RECLAIM.set(false);
    assert_eq!(toy.len(), 10);
}

#[test]
fn without_a_worker_its_shrinkers_run_at_safe_points() {
    let sim = Sim::new(Root::Untracked);
    sim.can_start.store(false, Ordering::Relaxed);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(group, 1024, KIB);
    assert!(sim.alloc(group, KIB).is_err(), "not inside an allocation");
    assert_eq!(toy.nr_counts.load(Ordering::Relaxed), 0);
    sim.engine.run_deferred();
    let object = sim.alloc(group, KIB).expect("the safe point made room");
    sim.free(object);
    assert!(sim.engine.reclaim(group, 100 * KIB, Cause::Proactive) >= 100 * KIB);
    assert_eq!(sim.engine.stat().workers, 0);
    // Until one can be started.
    sim.can_start.store(true, Ordering::Relaxed);
    while sim.alloc(group, KIB).map(|object| toy.insert(object)).is_ok() {}
    sim.engine.run_deferred();
    eventually("it makes room", || sim.tree.usage(group) < MIB);
    sim.be_patient_in(group);
    toy.fill(group, 1000, KIB);
    eventually("a worker serves", || sim.engine.stat().workers == 1);
}

#[test]
fn the_keeper_ticks_while_it_is_wanted_and_sleeps_otherwise() {
    let sim = Sim::new(Root::Untracked);
    assert!(sim.engine.summon());
    thread::sleep(Duration::from_millis(250));
    let ticks = || sim.nr_ticks.load(Ordering::Relaxed);
    assert_eq!(ticks(), 0, "nobody wants any");
    sim.engine.want_ticks();
    eventually("it ticks until there is no more to do", || ticks() == 3);
    thread::sleep(Duration::from_millis(250));
    assert_eq!(ticks(), 3);
}

#[test]
fn a_keeper_that_ticks_is_not_woken_for_more_ticks() {
    let sim = Sim::new(Root::Untracked);
    assert!(sim.engine.summon());
    let (crew, ticks) = (&sim.engine.crew, || sim.nr_ticks.load(Ordering::Relaxed));
    let before = crew.keeper_signal();
    for _ in 0..50 {
        sim.engine.want_ticks();
        thread::sleep(Duration::from_millis(1));
    }
    let woken = crew.keeper_signal() - before;
    // It asks anew for each tick, and sees to it that there is a worker.
    assert!(woken <= ticks() + 3, "woken {woken} times for {} ticks", ticks());
}

#[test]
fn a_subtree_of_many_groups_is_asked_only_where_it_is_marked() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 100 * MIB);
    let toy = Toy::new(sim);
    let (id, _) = sim.register(lazy(&toy, Place::Direct));
    let groups: Vec<_> = (0..1000).map(|n| sim.group(top, &std::format!("g{n}"), MIB)).collect();
    for group in groups.iter().step_by(100) {
        toy.fill(*group, 10, KIB);
        sim.engine.mark(*group, id);
    }
    assert_eq!(sim.engine.reclaim(top, MIB, Cause::Proactive), 100 * KIB);
    let asked = toy.nr_counts.load(Ordering::Relaxed);
    assert!(asked <= 10 * 20, "{asked} questions for 10 groups");
}
