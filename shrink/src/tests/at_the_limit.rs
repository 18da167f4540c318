//! What a charge does at a limit.

extern crate std;

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use memcg_accounting::{Events, GroupRef, Limit, OnLimit, Root, Tag};

use super::sim::{
    FALLIBLE, Latch, Moment, NO_RECLAIM, PANIC, Recipe, Sim, Toy, eventually, locked,
};
use crate::{
    Cause, PANIC_ALLOWANCE, Panic, Place, RECLAIM_RESERVE, REPORT_ALLOWANCE, RawCount, RawScan,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Counts of a group that are not 0, for comparing.
fn events(sim: &Sim, group: GroupRef) -> (u64, u64, u64, u64) {
    let Events { high, max, oom, forced, .. } = sim.tree.events_local(group);
    (high, max, oom, forced)
}

#[test]
fn a_direct_shrinker_makes_room_on_the_thread_that_allocates() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 1000, KIB);
    toy.fill(group, 1000, KIB);
    assert!(sim.tree.usage(group) <= MIB);
    let (control, thread) = locked(&toy.last).expect("scanned");
    assert_eq!((control.group, control.cause), (group, Cause::Direct));
    assert_eq!(thread, thread::current().id());
    let (high, max, oom, forced) = events(sim, group);
    assert_eq!((high, oom, forced), (0, 0, 0));
    // One in 64 inserts pays, for it gets a 16th of the limit.
    assert!((10..=40).contains(&max), "{max}");
    sim.tree.check();
}

#[test]
fn a_refusal_names_the_ancestor_and_leaves_nothing_behind() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", MIB);
    let child = sim.group(parent, "c", 10 * MIB);
    let pinned = sim.alloc(child, MIB - 100).expect("room");
    let peak = sim.tree.peak(parent);
    let over = sim.alloc(child, 101).expect_err("full");
    assert_eq!(over.group, parent);
    assert_eq!((over.requested, over.usage, over.max), (101, MIB - 100, MIB));
    assert_eq!(events(sim, parent), (0, 1, 1, 0));
    assert_eq!(events(sim, child), (0, 0, 0, 0));
    assert_eq!((sim.tree.usage(child), sim.tree.peak(parent)), (MIB - 100, peak));
    let rest = sim.alloc(child, 100).expect("what fits is not refused");
    sim.free(rest);
    sim.free(pinned);
    assert_eq!(sim.tree.usage(parent), 0);
    sim.tree.check();
}

#[test]
fn nothing_is_evicted_for_what_never_fits() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 100, KIB);
    assert!(sim.alloc(group, MIB + 1).is_err());
    assert_eq!(toy.len(), 100);
    sim.alloc(group, MIB).map(|object| sim.free(object)).expect("all of it, for that fits");
    assert_eq!(toy.len(), 0);
}

#[test]
fn siblings_of_the_caller_are_asked_where_the_parent_is_full() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", MIB);
    let (rich, poor) = (sim.group(parent, "rich", MIB), sim.group(parent, "poor", MIB));
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(rich, 1000, KIB);
    let object = sim.alloc(poor, 512 * KIB).expect("the sibling gives");
    assert!(sim.tree.usage(parent) <= MIB);
    assert!(sim.tree.usage(rich) <= 512 * KIB);
    sim.free(object);
    sim.tree.check();
}

#[test]
fn garbage_goes_before_live_data() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 300, KIB);
    sim.caches.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        let objects: Vec<_> = (0..700).map(|_| sim.alloc(group, KIB).expect("room")).collect();
        objects.into_iter().for_each(|object| sim.free(object));
    }
    assert_eq!(toy.len(), 300, "30 % live, and nothing of it evicted");
}

#[test]
fn the_last_quarter_of_a_cache_goes_only_after_the_cut() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 200, KIB);
    // Garbage that a tidy drain misses.
    sim.caches.store(true, Ordering::Relaxed);
    sim.hides_garbage.store(true, Ordering::Relaxed);
    let garbage = sim.alloc(group, 800 * KIB).expect("room");
    sim.free(garbage);
    let object = sim.alloc(group, 900 * KIB - 200 * KIB).expect("the cut pays");
    assert!(toy.len() >= 50, "{} of 200 left", toy.len());
    assert!(sim.nr_cuts.load(Ordering::Relaxed) >= 1);
    sim.free(object);
}

#[test]
fn a_reclaiming_thread_is_never_refused_and_never_reclaims() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.hurry_in(group);
    let pinned = sim.alloc(group, MIB).expect("room");
    let inner = sim.tree.payer(group);
    let recipe = Recipe::new(
        "allocates",
        Place::Direct,
        |_| RawCount::Objects(1),
        move |_| {
            let sizes = [KIB, RECLAIM_RESERVE - KIB];
            let objects = sizes.map(|bytes| sim.alloc_for(inner, bytes).expect("forced"));
            assert!(objects.iter().all(|object| object.tag != Tag::NOBODY));
            assert!(sim.alloc_for(inner, KIB).is_err(), "beyond the reserve it is refused");
            assert_eq!(sim.tree.usage(group), MIB + RECLAIM_RESERVE);
            objects.into_iter().for_each(|object| sim.free(object));
            RawScan::Stop
        },
    );
    sim.register(recipe);
    assert!(sim.alloc(group, KIB).is_err());
    let (_, max, oom, forced) = events(sim, group);
    assert!(max == 1 && oom >= 2, "{max} {oom}: the reclaimer was refused, and who it was for");
    assert!(forced >= 2, "{forced}");
    assert!(sim.engine.stat().let_over >= RECLAIM_RESERVE);
    assert_eq!(sim.tree.usage(group), MIB, "paid back");
    sim.free(pinned);
}

#[test]
fn inside_no_reclaim_nothing_is_asked_and_the_worker_hears_of_it() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    sim.can_start.store(false, Ordering::Relaxed);
    toy.fill(group, 1024, KIB);
    NO_RECLAIM.set(true);
    let refused = sim.alloc(group, KIB);
    assert!(refused.is_err());
    sim.engine.run_deferred();
    NO_RECLAIM.set(false);
    assert_eq!(events(sim, group), (0, 1, 0, 0), "it counts as max and not as oom");
    assert_eq!(toy.nr_counts.load(Ordering::Relaxed), 0);
    sim.can_start.store(true, Ordering::Relaxed);
    sim.engine.run_deferred();
    eventually("the worker makes room", || sim.tree.usage(group) <= MIB - KIB);
    assert_eq!(locked(&toy.last).expect("scanned").0.cause, Cause::Background);
}

#[test]
fn the_policy_of_the_group_that_pays_counts() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", MIB);
    let child = sim.group(parent, "c", MIB);
    let pinned = sim.alloc(child, MIB).expect("room");
    sim.tree.set_on_limit(child, OnLimit::OvercommitBy(10 * KIB));
    let over = sim.alloc(child, 10 * KIB).expect("let through");
    assert!(sim.alloc(child, 1).is_err(), "not beyond it");
    assert_eq!(sim.tree.usage(parent), MIB + 10 * KIB);
    sim.tree.set_on_limit(child, OnLimit::Overcommit);
    FALLIBLE.set(true);
    assert!(sim.alloc(child, 1).is_err(), "the policy is not asked");
    FALLIBLE.set(false);
    let much = sim.alloc(child, 10 * MIB).expect("without a bound");
    assert_eq!(sim.tree.events(child).forced + sim.tree.events(parent).forced, 2 + 2);
    for object in [pinned, over, much] {
        sim.free(object);
    }
    assert_eq!(sim.tree.usage(parent), 0);
    sim.tree.check();
}

#[test]
fn overcommit_does_not_reclaim_at_every_charge() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.tree.set_on_limit(group, OnLimit::Overcommit);
    let start = Instant::now();
    let objects: Vec<_> =
        (0..10_000).map(|_| sim.alloc(group, KIB).expect("let through")).collect();
    let cuts = u64::from(sim.nr_cuts.load(Ordering::Relaxed));
    let windows = u64::try_from(start.elapsed().as_millis()).expect("short") / 4 + 2;
    assert!(cuts <= windows, "{cuts} cuts in {:?}", start.elapsed());
    objects.into_iter().for_each(|object| sim.free(object));
}

#[test]
fn the_group_of_a_thread_that_panics_pays_and_is_let_over_its_limit_up_to_a_bound() {
    for (panic, bound) in [(Panic::Unwinds, PANIC_ALLOWANCE), (Panic::MayReport, REPORT_ALLOWANCE)]
    {
        let sim = Sim::new(Root::Untracked);
        let group = sim.group(GroupRef::ROOT, "a", MIB);
        let (toy, _) = Toy::registered(sim, Place::Direct);
        toy.fill(group, 1024, KIB);
        for _ in 0..2 {
            PANIC.set(Some(panic));
            let much = sim.alloc(group, bound - KIB).expect("let through");
            let rest = sim.alloc(group, KIB).expect("let through");
            assert_eq!(sim.tree.usage(group), MIB + bound);
            assert_eq!(toy.nr_counts.load(Ordering::Relaxed), 0, "no user code runs meanwhile");
            let (oom, cuts) = (events(sim, group).2, sim.nr_cuts.load(Ordering::Relaxed));
            assert!(sim.alloc(group, 1).is_err(), "refused beyond, as ever");
            assert_eq!(events(sim, group).2, oom + 1);
            assert!(sim.nr_cuts.load(Ordering::Relaxed) > cuts, "not for garbage");
            // Garbage makes room over the limit, too.
            sim.caches.store(true, Ordering::Relaxed);
            sim.free(rest);
            sim.caches.store(false, Ordering::Relaxed);
            let rest = sim.alloc(group, KIB).expect("a cut finds it");
            PANIC.set(None);
            assert!(events(sim, group).3 >= 3);
            sim.free(much);
            sim.free(rest);
        }
        assert_eq!(sim.tree.usage(group), MIB);
        assert!(sim.engine.stat().let_over >= 2 * bound);
    }
}

#[test]
fn the_policy_of_a_group_whose_thread_panics_may_allow_more() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.tree.set_on_limit(group, OnLimit::Overcommit);
    PANIC.set(Some(Panic::Unwinds));
    let much = sim.alloc(group, 2 * PANIC_ALLOWANCE).expect("let through");
    PANIC.set(None);
    sim.free(much);
}

#[test]
fn over_high_the_worker_brings_it_down_and_nobody_is_refused() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", 100 * MIB);
    sim.tree.set_high(group, Limit::Bytes(MIB));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(group, 5000, KIB);
    eventually("usage comes down to high", || sim.tree.usage(group) <= MIB);
    let (high, max, oom, _) = events(sim, group);
    assert!(high >= 1);
    assert_eq!((max, oom), (0, 0));
    assert!(sim.tree.usage(group) >= MIB / 2, "not much further: {}", sim.tree.usage(group));
}

#[test]
fn over_high_with_nothing_to_evict_is_not_kicked_at_every_charge() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", 100 * MIB);
    sim.tree.set_high(group, Limit::Bytes(KIB));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    let start = Instant::now();
    let objects: Vec<_> = (0..5000).map(|_| sim.alloc(group, KIB).expect("room")).collect();
    let (high, ..) = events(sim, group);
    let windows = u64::try_from(start.elapsed().as_millis()).expect("short") / 4 + 3;
    assert!(high <= windows, "{high} events in {:?}", start.elapsed());
    assert!(toy.nr_scanned.load(Ordering::Relaxed) == 0);
    objects.into_iter().for_each(|object| sim.free(object));
}

#[test]
fn an_ancestor_over_high_is_brought_down_too() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", 100 * MIB);
    let (a, b) = (sim.group(parent, "a", 100 * MIB), sim.group(parent, "b", 100 * MIB));
    sim.tree.set_high(parent, Limit::Bytes(2 * MIB));
    sim.tree.set_high(b, Limit::Bytes(KIB));
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(a, 3000, KIB);
    eventually("the parent comes down", || sim.tree.usage(parent) <= 2 * MIB);
    // What is pinned in the child hides the parent behind the child's own `high`.
    let pinned = sim.alloc(b, MIB).expect("room");
    eventually("the parent comes down again", || sim.tree.usage(parent) <= 2 * MIB);
    sim.free(pinned);
}

#[test]
fn a_payer_that_is_gone_pays_nothing() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let payer = sim.tree.payer(group);
    sim.engine.put(group);
    let object = sim.alloc_for(payer, 10 * MIB).expect("nobody pays");
    assert_eq!(object.tag, Tag::NOBODY);
    assert_eq!(sim.tree.nr_dying(), 0);
}

#[test]
fn a_deadline_that_is_set_holds() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let short = crate::Deadline { first_ms: 10, total_ms: 20 };
    assert!(sim.engine.set_deadline(group, short));
    assert_eq!(sim.engine.deadline(group), short);
    let latch = Latch::new();
    let held = latch.clone();
    sim.register(Recipe::new(
        "never returns",
        Place::Worker,
        |_| RawCount::Objects(1000),
        move |_| {
            held.wait();
            RawScan::Freed(1)
        },
    ));
    let pinned = sim.alloc(group, MIB).expect("room");
    let start = Instant::now();
    assert!(sim.alloc(group, 1).is_err());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    latch.open();
    sim.free(pinned);
}

/// A shrinker that runs `scan` once, on the first thread that scans, and is empty for others.
fn once(name: &'static str, scan: impl Fn() + Send + Sync + 'static) -> (Recipe, Arc<AtomicBool>) {
    let entered = Arc::new(AtomicBool::new(false));
    let (counting, scanning) = (entered.clone(), entered.clone());
    let recipe = Recipe::new(
        name,
        Place::Direct,
        move |_| {
            let is_over = counting.load(Ordering::SeqCst);
            if is_over { RawCount::Empty } else { RawCount::Objects(1000) }
        },
        move |_| {
            if !scanning.swap(true, Ordering::SeqCst) {
                scan();
            }
            RawScan::Freed(0)
        },
    );
    (recipe, entered)
}

#[test]
fn the_credit_of_a_request_that_may_never_be_met_refuses_nobody() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let pinned = sim.alloc(group, 512 * KIB).expect("room");
    let evictable = Mutex::new(Some(sim.alloc(group, 256 * KIB).expect("room")));
    let latch = Latch::new();
    let held = latch.clone();
    let (recipe, entered) = once("giver", move || {
        locked(&evictable).take().into_iter().for_each(|object| sim.free(object));
        held.wait();
    });
    sim.register(recipe);
    let greedy = thread::spawn(move || sim.alloc(group, 900 * KIB).is_err());
    eventually("the credit is there", || {
        entered.load(Ordering::SeqCst) && sim.tree.usage(group) == 768 * KIB
    });
    thread::sleep(Duration::from_millis(20));
    assert_eq!(sim.tree.usage(group), 768 * KIB, "what was freed is the request's");
    let object = sim.alloc(group, 400 * KIB).expect("it fits beside what lives");
    latch.open();
    assert!(greedy.join().expect("no panic"));
    sim.free(object);
    sim.free(pinned);
    assert_eq!(sim.tree.usage(group), 0);
    sim.tree.check();
}

#[test]
fn what_another_thread_is_about_to_free_is_waited_for() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let pinned = sim.alloc(group, 512 * KIB).expect("room");
    let evictable = Mutex::new(Some(sim.alloc(group, 512 * KIB).expect("room")));
    let (recipe, entered) = once("slow giver", move || {
        // Nobody finds the object any more, and it is not freed yet.
        let object = locked(&evictable).take();
        thread::sleep(Duration::from_millis(4));
        object.into_iter().for_each(|object| sim.free(object));
    });
    sim.register(recipe);
    let other = thread::spawn(move || sim.alloc(group, KIB).expect("room"));
    while !entered.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    let object = sim.alloc(group, 100 * KIB).expect("the other thread frees");
    let other = other.join().expect("no panic");
    for object in [object, other, pinned] {
        sim.free(object);
    }
    sim.tree.check();
}

/// The same where the other thread begins to evict during the cut, and has what it freed as its
/// credit by the time that anybody looks.
#[test]
fn what_was_being_freed_during_the_cut_is_no_reason_to_refuse() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let pinned = sim.alloc(group, 256 * KIB).expect("room");
    let mut object = Some(sim.alloc(group, 512 * KIB).expect("room"));
    let evictable = Arc::new(Mutex::new(None));
    let (latch, entered) = (Latch::new(), Arc::new(AtomicBool::new(false)));
    let recipe = {
        let (counted, scanned) = (evictable.clone(), evictable.clone());
        let (latch, entered) = (latch.clone(), entered.clone());
        Recipe::new(
            "giver",
            Place::Direct,
            move |_| RawCount::Objects(1000 * usize::from(locked(&counted).is_some())),
            move |_| {
                let taken = locked(&scanned).take();
                entered.store(true, Ordering::SeqCst);
                latch.wait();
                taken.into_iter().for_each(|object| sim.free(object));
                RawScan::Freed(1)
            },
        )
    };
    sim.register(recipe);
    let greedy = Arc::new(Mutex::new(None));
    let started = greedy.clone();
    *locked(&sim.around_cut) = Some(std::boxed::Box::new(move |moment| match moment {
        // The first one tidies up.
        _ if sim.nr_cuts.load(Ordering::Relaxed) < 2 => {}
        Moment::BeforeCut => {
            let Some(object) = object.take() else { return };
            *locked(&evictable) = Some(object);
            let thread = thread::spawn(move || sim.alloc(group, 900 * KIB).is_err());
            *locked(&started) = Some(thread);
            eventually("it has been taken", || entered.load(Ordering::SeqCst));
        }
        Moment::AfterCut => {
            latch.open();
            let in_call = || sim.engine.reclaimers.iter().any(|(_, r)| r.call_number().is_some());
            eventually("the call is over", || !in_call());
        }
    }));
    let object = sim.alloc(group, 600 * KIB).expect("it fits beside what lives");
    *locked(&sim.around_cut) = None;
    let greedy = locked(&greedy).take().expect("started");
    assert!(greedy.join().expect("no panic"), "it never fits");
    sim.free(object);
    sim.free(pinned);
    assert_eq!(sim.tree.usage(group), 0);
    sim.tree.check();
}

#[test]
fn what_can_be_evicted_only_from_the_cut_on_is_evicted() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    let pinned = sim.alloc(group, 256 * KIB).expect("room");
    let (toy, _) = Toy::registered(sim, Place::Direct);
    let mut object = Some(sim.alloc(group, 512 * KIB).expect("room"));
    let filled = toy.clone();
    *locked(&sim.around_cut) = Some(std::boxed::Box::new(move |_| {
        object.take().into_iter().for_each(|object| filled.insert(object));
    }));
    let object = sim.alloc(group, 600 * KIB).expect("it fits beside what lives");
    *locked(&sim.around_cut) = None;
    assert_eq!((toy.len(), sim.tree.events(group).oom), (0, 0));
    sim.free(object);
    sim.free(pinned);
    sim.tree.check();
}

/// A group that is about to be its parent's cannot be visited: what it has is found afterwards.
#[test]
fn what_a_dying_group_has_is_evicted_before_a_refusal() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", MIB);
    let child = sim.group(top, "child", MIB);
    sim.be_patient_in(top);
    let pinned = sim.alloc(top, 256 * KIB).expect("room");
    let (toy, _) = Toy::registered(sim, Place::Direct);
    let has_cut = Arc::new(AtomicBool::new(false));
    let armed = has_cut.clone();
    let recipe = Recipe::new(
        "drops the child",
        Place::Direct,
        move |control| {
            if control.group == top && armed.swap(false, Ordering::SeqCst) {
                sim.engine.put(child);
            }
            RawCount::Objects(0)
        },
        |_| RawScan::Stop,
    );
    sim.register(recipe);
    let mut object = Some(sim.alloc(child, 512 * KIB).expect("room"));
    let filled = toy.clone();
    *locked(&sim.around_cut) = Some(std::boxed::Box::new(move |moment| {
        // The first one tidies up.
        let is_first = sim.nr_cuts.load(Ordering::Relaxed) < 2;
        if moment == Moment::AfterCut
            && !is_first
            && let Some(object) = object.take()
        {
            filled.insert(object);
            has_cut.store(true, Ordering::SeqCst);
        }
    }));
    let object = sim.alloc(top, 600 * KIB).expect("it fits beside what lives");
    *locked(&sim.around_cut) = None;
    assert_eq!((toy.len(), sim.tree.events(top).oom), (0, 0));
    sim.free(object);
    sim.free(pinned);
    assert_eq!(sim.tree.nr_dying(), 0);
    sim.tree.check();
}

/// A group at its limit, whose tenant owes for its cuts.
fn indebted(owed_us: u64) -> (&'static Sim, GroupRef) {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.engine.set_deadline(group, crate::Deadline { first_ms: 50, total_ms: 60 });
    sim.debt.store(owed_us, Ordering::Relaxed);
    (sim, group)
}

#[test]
fn who_owes_for_its_cuts_waits_half_of_its_deadline_and_is_refused_by_a_cut_all_the_same() {
    let (sim, group) = indebted(u64::MAX);
    let _held = sim.alloc(group, MIB).expect("room");
    assert_eq!(sim.nr_debts.load(Ordering::Relaxed), 0, "what fits owes nothing");
    let start = Instant::now();
    sim.alloc(group, 1).expect_err("full");
    assert!(start.elapsed() >= Duration::from_millis(25), "it waits");
    assert!(sim.nr_debts.load(Ordering::Relaxed) >= 2, "and looks again meanwhile");
    assert!(sim.nr_cuts.load(Ordering::Relaxed) >= 1, "no refusal without a cut");
    assert!(sim.engine.pressure(group).some.total_us > 0, "it is a stall");
}

#[test]
fn who_waits_for_its_budget_takes_what_comes_free_without_a_cut() {
    let (sim, group) = indebted(u64::MAX);
    let held = sim.alloc(group, MIB).expect("room");
    let asked = || sim.nr_debts.load(Ordering::Relaxed) != 0;
    let cuts = thread::scope(|scope| {
        scope.spawn(|| {
            while !asked() {
                thread::yield_now();
            }
            sim.free(held);
        });
        let _fits = sim.alloc(group, 1).expect("it came free");
        sim.nr_cuts.load(Ordering::Relaxed)
    });
    assert_eq!(cuts, 0);
}

#[test]
fn inside_no_reclaim_nobody_waits_for_a_budget() {
    let (sim, group) = indebted(u64::MAX);
    let _held = sim.alloc(group, MIB).expect("room");
    NO_RECLAIM.set(true);
    sim.alloc(group, 1).expect_err("full");
    NO_RECLAIM.set(false);
    assert_eq!(sim.nr_debts.load(Ordering::Relaxed), 0);
}
