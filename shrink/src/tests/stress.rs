//! Threads against each other, with limits, garbage and groups that go.

extern crate std;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root};

use super::sim::{Sim, Toy, eventually};
use crate::{Cause, Place};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A small generator, so that a run repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// One thread's life: it reserves what it is about to allocate, so that what lives and what is
/// asked for never pass the limit together. Then every refusal is wrong, whatever is cached,
/// evictable, or held as another request's credit.
fn live_within(sim: &'static Sim, group: GroupRef, toys: &[Arc<Toy>], live: &AtomicU64, seed: u64) {
    let (mut dice, mut held) = (Dice(seed), Vec::new());
    for _ in 0..3000 {
        let bytes = 1 + dice.roll(100 * KIB);
        if live.fetch_add(bytes, Ordering::SeqCst) + bytes <= MIB {
            held.push(sim.alloc(group, bytes).expect("it fits"));
            continue;
        }
        live.fetch_sub(bytes, Ordering::SeqCst);
        while let Some(object) = held.pop() {
            let bytes = object.bytes;
            match toys.get(usize::try_from(dice.roll(4)).expect("small")) {
                // It can be evicted, so it does not count as live.
                Some(toy) => toy.insert(object),
                None => sim.free(object),
            }
            live.fetch_sub(bytes, Ordering::SeqCst);
        }
    }
    held.into_iter().for_each(|object| sim.free(object));
}

fn what_fits_is_never_refused(greedy: bool) {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.be_patient_in(group);
    sim.caches.store(true, Ordering::Relaxed);
    let (direct, _) = Toy::registered(sim, Place::Direct);
    let pinned = sim.alloc(group, KIB).expect("room");
    let live = Arc::new(AtomicU64::new(KIB));
    let threads: Vec<_> = (0..6u64)
        .map(|seed| {
            let (live, toys) = (live.clone(), [direct.clone()]);
            thread::spawn(move || live_within(sim, group, &toys, &live, seed))
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(Ordering::SeqCst) {
                assert!(sim.tree.usage(group) <= MIB);
                // Takes all the credit that it can get, and never has enough.
                assert!(!greedy || sim.alloc(group, MIB).is_err());
                thread::yield_now();
            }
        }
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no wrong refusal"));
    done.store(true, Ordering::SeqCst);
    watcher.join().expect("usage never passes max");
    if !greedy {
        assert_eq!(sim.tree.events(group).oom, 0);
    }
    sim.engine.reclaim(group, u64::MAX, Cause::Proactive);
    assert_eq!((sim.tree.usage(group), direct.len()), (KIB, 0));
    sim.caches.store(false, Ordering::Relaxed);
    sim.free(pinned);
    assert_eq!(sim.tree.usage(group), 0);
    sim.tree.check();
}

#[test]
fn what_fits_is_not_refused_to_threads_that_share_a_limit() {
    what_fits_is_never_refused(false);
}

#[test]
fn what_fits_is_not_refused_beside_one_that_never_fits() {
    what_fits_is_never_refused(true);
}

/// Tenants that live at their limits, with shrinkers of both places, while groups come and go
/// and shrinkers are registered and unregistered.
#[test]
fn everything_at_once() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 4 * MIB);
    sim.caches.store(true, Ordering::Relaxed);
    let (direct, _) = Toy::registered(sim, Place::Direct);
    let (worker, _) = Toy::registered(sim, Place::Worker);
    let threads: Vec<_> = (0..4u64)
        .map(|n| {
            let (direct, worker) = (direct.clone(), worker.clone());
            thread::spawn(move || {
                let mut dice = Dice(n);
                for turn in 0..10 {
                    let group = sim.group(top, &std::format!("g{n}-{turn}"), MIB);
                    for _ in 0..500 {
                        let Ok(object) = sim.alloc(group, 1 + dice.roll(8 * KIB)) else { continue };
                        match dice.roll(3) {
                            0 => direct.insert(object),
                            1 => worker.insert(object),
                            _ => sim.free(object),
                        }
                    }
                    sim.engine.put(group);
                    sim.engine.run_deferred();
                }
            })
        })
        .collect();
    let churn = thread::spawn(move || {
        for n in 0..100 {
            let place = if n % 2 == 0 { Place::Direct } else { Place::Worker };
            let toy = Toy::new(sim);
            let (id, dropped) = sim.register(toy.recipe("churn", place));
            thread::yield_now();
            assert!(sim.engine.unregister(id));
            assert_eq!(dropped.load(Ordering::SeqCst), 1);
        }
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    churn.join().expect("no panic");
    sim.engine.reclaim(top, u64::MAX, Cause::Proactive);
    eventually("all of it comes back", || {
        sim.engine.run_deferred();
        sim.engine.reclaim(top, u64::MAX, Cause::Proactive);
        sim.tree.usage(top) == 0
    });
    assert_eq!((direct.len(), worker.len()), (0, 0));
    assert_eq!((sim.tree.nr_dying(), sim.tree.nr_descendants(top)), (0, 0));
    sim.tree.check();
}
