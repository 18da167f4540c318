//! Shrinkers that panic, lie, never return, allocate, register, unregister and drop groups.

extern crate std;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use memcg_accounting::{GroupRef, Root};

use super::sim::{Latch, Recipe, Sim, Toy, eventually, locked};
use crate::{Cause, Place, RawCount, RawScan, Report, ShrinkerId};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[test]
fn the_worker_makes_room_while_the_thread_waits() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    sim.be_patient_in(group);
    toy.fill(group, 3000, KIB);
    assert!(sim.tree.usage(group) <= MIB);
    let (control, thread) = locked(&toy.last).expect("scanned");
    // After a wait it makes some room that nobody waits for.
    assert!(matches!(control.cause, Cause::Worker | Cause::Background), "{:?}", control.cause);
    assert_ne!(thread, thread::current().id());
    assert_eq!(sim.tree.events(group).oom, 0);
    sim.tree.check();
}

#[test]
fn one_that_never_returns_holds_up_its_own_group_for_the_deadline_and_no_other() {
    let sim = Sim::new(Root::Untracked);
    let (bad, good) =
        (sim.group(GroupRef::ROOT, "bad", MIB), sim.group(GroupRef::ROOT, "good", MIB));
    sim.hurry_in(bad);
    let (latch, calls) = (Latch::new(), Arc::new(AtomicU32::new(0)));
    let (held, counted) = (latch.clone(), calls.clone());
    sim.register(Recipe::new(
        "tar pit",
        Place::Worker,
        move |control| if control.group == bad { RawCount::Objects(10) } else { RawCount::Empty },
        move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            held.wait();
            RawScan::Freed(1_000_000)
        },
    ));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(good, 1000, KIB);
    let pinned = sim.alloc(bad, MIB).expect("room");
    // Whatever waits for the tar pit waits for ever, or for a deadline.
    sim.be_patient_in(good);
    let start = Instant::now();
    assert!(sim.alloc(bad, 1).is_err());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

    // The worker is inside that call, and stays there.
    for _ in 0..20 {
        let start = Instant::now();
        toy.fill(good, 100, KIB);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
    assert_eq!(sim.tree.events(good).oom, 0);
    eventually("it is named", || {
        locked(&sim.reports)
            .iter()
            .any(|r| matches!(r, Report::Stuck(n) if n.as_str() == "tar pit"))
    });
    assert!(sim.alloc(bad, 1).is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 1, "it is not called again until it returns");
    assert_eq!(sim.engine.stat().workers, 2);

    latch.open();
    eventually("the surplus worker ends", || sim.engine.stat().workers == 1);
    assert!(sim.alloc(bad, 1).is_err(), "what it said it freed is not believed");
    assert!(calls.load(Ordering::SeqCst) > 1);
    sim.free(pinned);
    sim.tree.check();
}

#[test]
fn a_slow_call_does_not_make_another_group_miss_its_deadline() {
    let sim = Sim::new(Root::Untracked);
    let (slow, other) =
        (sim.group(GroupRef::ROOT, "slow", MIB), sim.group(GroupRef::ROOT, "other", MIB));
    sim.hurry_in(slow);
    // As long as a loaded machine may take to start another worker.
    sim.be_patient_in(other);
    let calling = Arc::new(AtomicBool::new(false));
    let (seen, latch) = (calling.clone(), Latch::new());
    let held = latch.clone();
    sim.register(Recipe::new(
        "slow",
        Place::Worker,
        move |control| if control.group == slow { RawCount::Objects(10) } else { RawCount::Empty },
        move |_| {
            seen.store(true, Ordering::SeqCst);
            held.wait();
            RawScan::Freed(0)
        },
    ));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(other, 1024, KIB);
    let pinned = sim.alloc(slow, MIB).expect("room");
    let waiter = thread::spawn(move || assert!(sim.alloc(slow, 1).is_err()));
    eventually("the worker is in the call", || calling.load(Ordering::SeqCst));
    // Arrives in the first milliseconds of that call.
    let object = sim.alloc(other, KIB).expect("another worker serves it in time");
    latch.open();
    waiter.join().expect("no panic");
    sim.free(object);
    sim.free(pinned);
}

#[test]
fn one_that_panics_is_never_called_again_and_the_others_are() {
    for place in [Place::Direct, Place::Worker] {
        let sim = Sim::new(Root::Untracked);
        let group = sim.group(GroupRef::ROOT, "a", MIB);
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let (id, dropped) = sim.register(Recipe::new(
            "bomb",
            place,
            |_| RawCount::Objects(100),
            move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                RawScan::Panicked
            },
        ));
        sim.register(Recipe::new("dud", place, |_| RawCount::Panicked, |_| RawScan::Stop));
        let (toy, _) = Toy::registered(sim, place);
        sim.be_patient_in(group);
        toy.fill(group, 3000, KIB);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(sim.engine.stat().panicked, 2);
        sim.engine.run_deferred();
        eventually("both are named", || {
            sim.engine.run_deferred();
            let reports = locked(&sim.reports);
            reports.iter().filter(|report| matches!(report, Report::Panicked(_))).count() == 2
        });
        assert!(sim.engine.unregister(id));
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_lie_is_not_believed_and_takes_no_longer_than_the_deadline() {
    for place in [Place::Direct, Place::Worker] {
        let sim = Sim::new(Root::Untracked);
        let group = sim.group(GroupRef::ROOT, "a", MIB);
        sim.hurry_in(group);
        sim.register(Recipe::new(
            "liar",
            place,
            |_| RawCount::Objects(usize::MAX),
            |control| RawScan::Freed(control.nr_to_scan),
        ));
        sim.register(Recipe::new(
            "braggart",
            place,
            |_| RawCount::Objects(7),
            |control| {
                control.nr_scanned = usize::MAX;
                RawScan::Freed(usize::MAX)
            },
        ));
        let pinned = sim.alloc(group, MIB).expect("room");
        let start = Instant::now();
        assert!(sim.alloc(group, 1).is_err());
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_eq!(sim.engine.reclaim(group, KIB, Cause::Proactive), 0);
        sim.free(pinned);
    }
}

#[test]
fn one_that_says_stop_is_asked_again_and_in_the_end_given_up_on() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = (Toy::new(sim), ());
    let stops = Arc::new(AtomicU32::new(0));
    let (counting, scanning, left) = (toy.clone(), toy.clone(), stops.clone());
    sim.register(Recipe::new(
        "shy",
        Place::Direct,
        move |control| counting.count(control),
        move |control| {
            if left.fetch_add(1, Ordering::SeqCst) < 5 {
                return RawScan::Stop;
            }
            scanning.scan(control)
        },
    ));
    toy.fill(group, 1025, KIB);
    assert!(stops.load(Ordering::SeqCst) > 5);
    stops.store(0, Ordering::SeqCst);
    sim.register(Recipe::new("no", Place::Direct, |_| RawCount::Objects(1), |_| RawScan::Stop));
    while let Some(object) = toy.take() {
        sim.free(object);
    }
    let pinned = sim.alloc(group, MIB).expect("room");
    let start = Instant::now();
    assert!(sim.alloc(group, 1).is_err());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    sim.free(pinned);
}

#[test]
fn groups_dropped_inside_a_shrinker_end_at_a_safe_point() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let victims = Mutex::new(std::vec![
        sim.group(GroupRef::ROOT, "v1", MIB),
        sim.group(GroupRef::ROOT, "v2", MIB),
    ]);
    let seen = Arc::new(AtomicU32::new(0));
    let dying = seen.clone();
    sim.register(Recipe::new(
        "dropper",
        Place::Direct,
        |_| RawCount::Objects(1),
        move |_| {
            locked(&victims).drain(..).for_each(|victim| sim.engine.put(victim));
            dying.fetch_max(sim.tree.nr_dying(), Ordering::SeqCst);
            RawScan::Freed(0)
        },
    ));
    let pinned = sim.alloc(group, MIB).expect("room");
    assert!(sim.alloc(group, 1).is_err());
    assert_eq!(seen.load(Ordering::SeqCst), 2, "not inside the call");
    sim.engine.run_deferred();
    assert_eq!(sim.tree.nr_dying(), 0);
    assert_eq!(sim.tree.lookup("/v1"), None);
    sim.free(pinned);
}

#[test]
fn the_group_that_is_reclaimed_may_go_meanwhile() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", MIB);
    let child = sim.group(parent, "c", MIB);
    let dropped = Arc::new(AtomicBool::new(false));
    let once = dropped.clone();
    let (toy, _) = (Toy::new(sim), ());
    let (counting, scanning) = (toy.clone(), toy.clone());
    sim.register(Recipe::new(
        "dropper",
        Place::Direct,
        move |control| counting.count(control),
        move |control| {
            if control.group == child && !once.swap(true, Ordering::SeqCst) {
                sim.engine.put(child);
            }
            scanning.scan(control)
        },
    ));
    toy.fill(child, 1000, KIB);
    let objects: std::vec::Vec<_> =
        (0..500).map(|_| sim.alloc(parent, KIB).expect("the child's give")).collect();
    assert!(dropped.load(Ordering::SeqCst));
    sim.engine.run_deferred();
    assert_eq!(sim.tree.nr_dying(), 0);
    // The rest is the parent's now, and found there.
    let more = sim.alloc(parent, 500 * KIB).expect("what the child left gives");
    sim.free(more);
    objects.into_iter().for_each(|object| sim.free(object));
    sim.tree.check();
}

// ---- registering and unregistering ----------------------------------------------------------

#[test]
fn a_slot_of_the_registry_whose_generations_are_used_up_is_not_used_again() {
    let sim = Sim::new(Root::Untracked);
    let register = || {
        sim.register(Recipe::new("worn", Place::Direct, |_| RawCount::Empty, |_| RawScan::Stop)).0
    };
    let first = register();
    assert!(sim.engine.unregister(first));
    let slot = sim.engine.registry.slot(first.slot).expect("there");
    slot.wear(u32::MAX - 1);
    let last = register();
    assert_eq!((last.slot, last.generation), (first.slot, u32::MAX - 1));
    assert!(sim.engine.unregister(last));
    let next = register();
    assert_ne!(next.slot, first.slot, "the id of the first would be this one's");
    assert!(!sim.engine.unregister(first) && !sim.engine.unregister(last));
    assert!(sim.engine.unregister(next));
}

#[test]
fn unregistering_waits_for_a_call_in_flight() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (latch, inside) = (Latch::new(), Arc::new(AtomicBool::new(false)));
    let (held, entered) = (latch.clone(), inside.clone());
    let (id, dropped) = sim.register(Recipe::new(
        "direct",
        Place::Direct,
        |_| RawCount::Objects(1),
        move |_| {
            entered.store(true, Ordering::SeqCst);
            held.wait();
            RawScan::Freed(0)
        },
    ));
    let pinned = sim.alloc(group, MIB).expect("room");
    let caller = thread::spawn(move || sim.alloc(group, 1).is_err());
    eventually("the call is under way", || inside.load(Ordering::SeqCst));
    let opener = latch.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        opener.open();
    });
    let start = Instant::now();
    assert!(sim.engine.unregister(id));
    assert!(start.elapsed() >= Duration::from_millis(40));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(!sim.engine.unregister(id), "a stale id is recognised");
    assert!(caller.join().expect("no panic"));
    sim.free(pinned);
}

#[test]
fn from_within_its_own_call_it_does_not_wait_and_is_dropped_afterwards() {
    for place in [Place::Direct, Place::Worker] {
        let sim = Sim::new(Root::Untracked);
        let group = sim.group(GroupRef::ROOT, "a", MIB);
        let id: Arc<Mutex<Option<ShrinkerId>>> = Arc::default();
        let own = id.clone();
        let (registered, dropped) = sim.register(Recipe::new(
            "suicidal",
            place,
            |_| RawCount::Objects(1),
            move |_| {
                if let Some(id) = locked(&own).take() {
                    assert!(!sim.engine.unregister(id), "the call still has the data");
                    let (again, _) = sim.register(Recipe::new(
                        "made inside",
                        place,
                        |_| RawCount::Empty,
                        |_| RawScan::Stop,
                    ));
                    assert!(sim.engine.unregister(again));
                }
                RawScan::Freed(0)
            },
        ));
        *locked(&id) = Some(registered);
        let pinned = sim.alloc(group, MIB).expect("room");
        assert!(sim.alloc(group, 1).is_err());
        eventually("it is dropped", || {
            sim.engine.run_deferred();
            dropped.load(Ordering::SeqCst) == 1
        });
        assert_eq!(sim.engine.stat().left, 0);
        sim.free(pinned);
    }
}

#[test]
fn a_stuck_one_is_left_to_its_call_after_a_second() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.hurry_in(group);
    let latch = Latch::new();
    let (held, entered) = (latch.clone(), Arc::new(AtomicBool::new(false)));
    let is_in = entered.clone();
    let (id, dropped) = sim.register(Recipe::new(
        "stuck",
        Place::Worker,
        |_| RawCount::Objects(1),
        move |_| {
            is_in.store(true, Ordering::SeqCst);
            held.wait();
            RawScan::Freed(0)
        },
    ));
    let pinned = sim.alloc(group, MIB).expect("room");
    eventually("the worker is in the call", || {
        assert!(sim.alloc(group, 1).is_err());
        entered.load(Ordering::SeqCst)
    });
    let start = Instant::now();
    assert!(!sim.engine.unregister(id));
    let waited = start.elapsed();
    assert!((900..10_000).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "the call keeps it");
    assert_eq!(sim.engine.stat().left, 1);
    latch.open();
    eventually("it is dropped when the call returns", || dropped.load(Ordering::SeqCst) == 1);
    eventually("it is told", || {
        sim.engine.run_deferred();
        locked(&sim.reports).iter().any(|report| matches!(report, Report::Left(_)))
    });
    sim.free(pinned);
}

#[test]
fn in_the_child_of_a_fork_calls_of_threads_that_are_gone_are_over() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (latch, inside) = (Latch::new(), Arc::new(AtomicBool::new(false)));
    let (held, entered) = (latch.clone(), inside.clone());
    let (id, dropped) = sim.register(Recipe::new(
        "direct",
        Place::Direct,
        |_| RawCount::Objects(1),
        move |_| {
            entered.store(true, Ordering::SeqCst);
            held.wait();
            // The thread does not exist any more, so it does not return.
            loop {
                thread::park();
            }
        },
    ));
    let pinned = sim.alloc(group, MIB).expect("room");
    thread::spawn(move || sim.alloc(group, 1).is_err());
    eventually("the call is under way", || inside.load(Ordering::SeqCst));
    sim.engine.lock_all();
    // SAFETY: `lock_all` was called above.
    unsafe { sim.engine.unlock_all() };
    sim.engine.after_fork_child();
    assert!(sim.engine.unregister(id));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(sim.alloc(group, 1).is_err(), "the engine works");
    sim.free(pinned);
    sim.engine.put(group);
    sim.engine.run_deferred();
    assert_eq!(sim.tree.nr_dying(), 0);
    assert_eq!(sim.tree.lookup("/a"), None, "the handle of the visit was given back");
    sim.tree.check();
}
