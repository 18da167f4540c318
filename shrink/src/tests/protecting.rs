//! What `min` and `low` keep.

extern crate std;

use core::sync::atomic::Ordering;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Limit, Root};

use super::sim::{Object, Sim, Toy};
use crate::{Cause, Place};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn free_all(sim: &Sim, objects: Vec<Object>) {
    objects.into_iter().for_each(|object| sim.free(object));
}

/// The tree of the kernel's `test_memcg_protection`, at 10 KiB for a MiB: `b` protects 50 for
/// `c`, `d`, `e` and `f`, which have caches of 50, 50, 50 and nothing.
struct Protected {
    sim: &'static Sim,
    a: GroupRef,
    b: GroupRef,
    children: [GroupRef; 4],
    /// Where what is pinned goes.
    beside: GroupRef,
}

const UNIT: u64 = 10 * KIB;

fn protected(place: Place, set: impl Fn(&Sim, GroupRef, u64)) -> Protected {
    let sim = Sim::new(Root::Untracked);
    let a = sim.group(GroupRef::ROOT, "a", 200 * UNIT);
    let (b, beside) = (sim.group(a, "b", 1 << 40), sim.group(a, "beside", 1 << 40));
    sim.be_patient_in(beside);
    set(sim, a, 50 * UNIT);
    set(sim, b, 50 * UNIT);
    let (toy, _) = Toy::registered(sim, place);
    let children = [("c", 75, 50), ("d", 25, 50), ("e", 0, 50), ("f", 500, 0)];
    let children = children.map(|(name, units, used)| {
        let group = sim.group(b, name, 1 << 40);
        set(sim, group, units * UNIT);
        toy.fill(group, used * 10, KIB);
        group
    });
    Protected { sim, a, b, children, beside }
}

impl Protected {
    fn units(&self, group: GroupRef) -> f64 {
        let bytes = u32::try_from(self.sim.tree.usage(group)).expect("small");
        f64::from(bytes) / 10_240.0
    }

    /// Pins up to so many units beside what is protected.
    fn pin(&self, units: usize) -> Vec<Object> {
        (0..units).map_while(|_| self.sim.alloc(self.beside, UNIT).ok()).collect()
    }

    /// The kernel's figures, with its tolerance of a tenth.
    fn assert_shares(&self) {
        let [c, d, e, f] = self.children.map(|group| self.units(group));
        assert!((48.0..=52.0).contains(&self.units(self.b)), "{c} {d} {e} {f}");
        assert!((26.0..=32.0).contains(&c), "{c} {d} {e} {f}");
        assert!((18.0..=24.0).contains(&d), "{c} {d} {e} {f}");
        assert!(e <= 1.5, "{c} {d} {e} {f}");
        assert!(f == 0.0);
    }
}

#[test]
fn min_is_shared_out_as_in_the_kernel_and_never_touched() {
    for place in [Place::Direct, Place::Worker] {
        let tree = protected(place, |sim, group, bytes| sim.tree.set_min(group, bytes));
        let pinned = tree.pin(148);
        assert_eq!(pinned.len(), 148);
        tree.assert_shares();
        let more = tree.pin(22);
        assert!(more.len() <= 3, "{} units came from under min", more.len());
        assert!(tree.units(tree.b) >= 47.0);
        let events = tree.sim.tree.events(tree.a);
        assert!(events.oom >= 1);
        assert_eq!(events.low, 0);
        free_all(tree.sim, pinned);
        free_all(tree.sim, more);
        tree.sim.tree.check();
    }
}

#[test]
fn low_is_shared_out_alike_and_given_when_nothing_else_is_left() {
    for place in [Place::Direct, Place::Worker] {
        let tree = protected(place, |sim, group, bytes| sim.tree.set_low(group, bytes));
        let pinned = tree.pin(148);
        assert_eq!(pinned.len(), 148);
        tree.assert_shares();
        let events = |group| tree.sim.tree.events_local(group).low;
        assert_eq!(tree.children.map(events), [0; 4], "there was other memory");
        let more = tree.pin(22);
        assert_eq!(more.len(), 22, "nobody is refused while a cache is left");
        let [c, d, e, f] = tree.children.map(events);
        assert!(c > 0 && d > 0, "{c} {d}");
        assert_eq!((e, f), (0, 0), "what has no protection is under none");
        assert_eq!(tree.sim.tree.events(tree.a).oom, 0);
        free_all(tree.sim, pinned);
        free_all(tree.sim, more);
    }
}

#[test]
fn a_groups_own_protection_does_not_hold_against_its_own_limit() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", MIB);
    sim.tree.set_min(group, 10 * MIB);
    sim.tree.set_low(group, 10 * MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(group, 3000, KIB);
    assert!(sim.tree.usage(group) <= MIB);
    assert_eq!(sim.tree.events(group).low, 0);
    // Nor what a parent has against a limit of the parent's.
    let child = sim.group(group, "child", MIB);
    toy.fill(child, 1000, KIB);
    let usage = sim.tree.usage(group);
    assert_eq!(sim.engine.reclaim(group, usage, Cause::Proactive), usage);
    assert_eq!(toy.len(), 0);
}

#[test]
fn a_share_is_in_proportion_to_what_is_above_protection() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (kept, free) = (sim.group(top, "kept", 1 << 40), sim.group(top, "free", 1 << 40));
    sim.tree.set_low(kept, 900 * KIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(kept, 1000, KIB);
    toy.fill(free, 1000, KIB);
    let got = sim.engine.reclaim(top, 300 * KIB, Cause::Proactive);
    assert!((300 * KIB..=310 * KIB).contains(&got), "{got}");
    let gave = |group| 1000 * KIB - sim.tree.usage(group);
    assert!(gave(kept) * 6 <= gave(free), "{} and {}", gave(kept), gave(free));
    assert!(gave(kept) > 0, "what is above protection is asked too");
    // All there is, but for what is protected: it is asked last, and not below it.
    let got = sim.engine.reclaim(top, sim.tree.usage(top) - 900 * KIB, Cause::Proactive);
    assert_eq!(sim.tree.usage(free), 0, "after {got}");
    assert_eq!(sim.tree.usage(kept), 900 * KIB);
    assert_eq!(sim.tree.events(top).low, 0);
}

#[test]
fn under_min_nothing_is_even_counted() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let kept = sim.group(top, "kept", 1 << 40);
    sim.tree.set_min(kept, MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    // The top itself has nothing, so that only the child could be asked.
    toy.fill(kept, 1000, KIB);
    sim.engine.reclaim(top, 1, Cause::Proactive);
    let before = toy.nr_counts.load(Ordering::Relaxed);
    assert_eq!(sim.engine.reclaim(kept, 10 * KIB, Cause::Proactive), 10 * KIB, "by itself");
    let asked = toy.nr_counts.load(Ordering::Relaxed) - before;
    assert!(asked > 0);
    let before = toy.nr_scanned.load(Ordering::Relaxed);
    assert_eq!(sim.engine.reclaim(top, MIB, Cause::Proactive), 0);
    assert_eq!(toy.nr_scanned.load(Ordering::Relaxed), before);
    assert_eq!(toy.len(), 990);
    // A byte over it is not all under it any more.
    sim.tree.set_min(kept, 900 * KIB);
    assert_eq!(sim.engine.reclaim(top, MIB, Cause::Proactive), 90 * KIB);
}

#[test]
fn the_cut_comes_before_groups_under_low() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", MIB);
    let (kept, other) = (sim.group(top, "kept", MIB), sim.group(top, "other", MIB));
    sim.tree.set_low(kept, MIB);
    let (toy, _) = Toy::registered(sim, Place::Direct);
    toy.fill(kept, 512, KIB);
    sim.caches.store(true, Ordering::Relaxed);
    sim.hides_garbage.store(true, Ordering::Relaxed);
    let garbage = sim.alloc(other, 512 * KIB).expect("room");
    sim.free(garbage);
    let object = sim.alloc(other, 100 * KIB).expect("only the cut finds the room");
    assert_eq!(toy.len(), 512, "nothing was evicted for it");
    assert_eq!(sim.tree.events(top).low, 0);
    let more = sim.alloc(other, 500 * KIB).expect("low gives before a refusal");
    assert!(sim.tree.events_local(kept).low > 0);
    sim.caches.store(false, Ordering::Relaxed);
    free_all(sim, std::vec![object, more]);
}

#[test]
fn background_work_breaks_into_low_for_high() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (low, min) = (sim.group(top, "low", 1 << 40), sim.group(top, "min", 1 << 40));
    sim.tree.set_low(low, MIB);
    sim.tree.set_min(min, MIB);
    let (toy, _) = Toy::registered(sim, Place::Worker);
    toy.fill(min, 500, KIB);
    toy.fill(low, 500, KIB);
    sim.tree.set_high(top, Limit::Bytes(600 * KIB));
    let pinned = sim.alloc(top, KIB).expect("room");
    super::sim::eventually("it comes down", || sim.tree.usage(top) <= 600 * KIB);
    assert_eq!(sim.tree.usage(min), 500 * KIB);
    assert!(sim.tree.events_local(low).low > 0);
    sim.free(pinned);
}
