//! Stalls: whose they are, when all wait, and what is left of a group that goes.

extern crate std;

use core::time::Duration;
use std::thread;

use memcg_accounting::{GroupRef, Root};

use super::sim::{Recipe, Sim, locked};
use crate::{Engine, Place, Pressure, RawCount, RawScan};

const ROOT: GroupRef = GroupRef::ROOT;

fn totals(engine: &Engine, group: GroupRef) -> (u64, u64) {
    let Pressure { some, full, .. } = engine.pressure(group);
    (some.total_us, full.total_us)
}

fn pass_time() {
    thread::sleep(Duration::from_millis(2));
}

#[test]
fn a_stall_counts_for_its_group_and_all_above_while_it_lasts() {
    let sim = Sim::new(Root::Untracked);
    let engine = &sim.engine;
    let a = sim.group(ROOT, "a", 1 << 20);
    let b = sim.group(a, "b", 1 << 20);
    let c = sim.group(a, "c", 1 << 20);
    let stall = engine.stall(b).expect("memory");
    pass_time();
    let (some, full) = totals(engine, b);
    assert!(some >= 2000 && full >= 2000, "counted while it lasts: {some} {full}");
    drop(stall);
    let ended = totals(engine, b);
    pass_time();
    assert_eq!(totals(engine, b), ended, "and not after");
    assert_eq!((totals(engine, a), totals(engine, ROOT)), (ended, ended));
    assert_eq!(totals(engine, c), (0, 0));
    let second = engine.stall(c).expect("memory");
    pass_time();
    drop(second);
    assert_eq!(totals(engine, b), ended);
    assert_eq!(totals(engine, a).0, ended.0 + totals(engine, c).0, "one after the other");
}

#[test]
fn stalls_at_once_are_one_stretch_of_time() {
    let sim = Sim::new(Root::Untracked);
    let engine = &sim.engine;
    let a = sim.group(ROOT, "a", 1 << 20);
    let b = sim.group(a, "b", 1 << 20);
    let c = sim.group(a, "c", 1 << 20);
    let first = engine.stall(b).expect("memory");
    let second = engine.stall(c).expect("memory");
    pass_time();
    drop(first);
    let of_b = totals(engine, b);
    pass_time();
    drop(second);
    let (of_a, of_c) = (totals(engine, a), totals(engine, c));
    assert!(of_a.0 < of_b.0 + of_c.0, "they overlap");
    assert!(of_a.0 >= of_b.0.max(of_c.0));
    assert!(of_a.1 < of_a.0, "the first thread was busy while the second waited");
    assert!(of_c.1 >= of_c.0, "inside `c` nobody was");
}

#[test]
fn all_wait_below_the_lowest_group_with_a_busy_thread() {
    let sim = Sim::new(Root::Accounted);
    let engine = &sim.engine;
    let a = sim.group(ROOT, "a", 1 << 20);
    let b = sim.group(a, "b", 1 << 20);
    let c = sim.group(b, "c", 1 << 20);
    let d = sim.group(a, "d", 1 << 20);
    let tag = |group| sim.tree.payer(group).tag;
    for (busy, waits_in) in [
        // Somebody in a sibling's subtree is inside `a`, and above.
        (std::vec![tag(d)], [true, true, false, false]),
        (std::vec![tag(b), tag(d)], [true, false, false, false]),
        (std::vec![tag(d), tag(c)], [false; 4]),
        // A thread at the root is in no scope.
        (std::vec![tag(ROOT)], [true; 4]),
        (std::vec![], [true; 4]),
    ] {
        *locked(&sim.busy) = busy.clone();
        let chain = [c, b, a, ROOT];
        let before = chain.map(|group| totals(engine, group));
        let stall = engine.stall(c).expect("memory");
        pass_time();
        drop(stall);
        for ((group, before), waits) in chain.into_iter().zip(before).zip(waits_in) {
            let now = totals(engine, group);
            assert!(now.0 >= before.0 + 2000);
            assert_eq!(now.1 > before.1, waits, "{group:?} with {busy:?} busy");
        }
    }
}

#[test]
fn a_look_finds_who_came_in_between() {
    let sim = Sim::new(Root::Untracked);
    let engine = &sim.engine;
    let a = sim.group(ROOT, "a", 1 << 20);
    let stall = engine.stall(a).expect("memory");
    pass_time();
    locked(&sim.busy).push(sim.tree.payer(a).tag);
    stall.look();
    let found = totals(engine, a);
    assert!(found.1 >= 2000);
    pass_time();
    assert_eq!(totals(engine, a).1, found.1);
    locked(&sim.busy).clear();
    stall.look();
    pass_time();
    assert!(totals(engine, a).1 > found.1);
    drop(stall);
}

#[test]
fn a_group_may_go_while_its_stall_lasts() {
    let sim = Sim::new(Root::Untracked);
    let engine = &sim.engine;
    let a = sim.group(ROOT, "a", 1 << 20);
    drop(engine.stall(a));
    let mapped = engine.stalls.mapped_bytes();
    for turn in 0..500 {
        let b = sim.group(a, "b", 1 << 20);
        let stall = engine.stall(b).expect("memory");
        assert!(totals(engine, b).0 < 1_000_000, "a new group begins at nothing, turn {turn}");
        engine.put(b);
        assert!(engine.stall(b).is_none(), "it is gone");
        // The next group of the slot has nothing to do with it.
        let next = sim.group(a, "b", 1 << 20);
        assert_eq!((next.index(), totals(engine, next)), (b.index(), (0, 0)));
        drop(engine.stall(next));
        drop(stall);
        engine.put(next);
    }
    let ended = totals(engine, a);
    pass_time();
    assert_eq!(totals(engine, a), ended, "every stall ended above too");
    assert_eq!(engine.stalls.mapped_bytes(), mapped, "records are used again");
}

#[test]
fn a_charge_that_is_refused_after_a_wait_stalled_for_as_long() {
    let sim = Sim::new(Root::Untracked);
    let a = sim.group(ROOT, "a", 1000);
    let slow = Recipe::new(
        "slow",
        Place::Direct,
        |_| RawCount::Objects(1),
        |_| {
            thread::sleep(Duration::from_millis(3));
            RawScan::Stop
        },
    );
    sim.register(slow);
    assert!(sim.alloc(a, 900).is_ok(), "fits");
    assert_eq!(totals(&sim.engine, a), (0, 0), "what fits waits for nothing");
    assert!(sim.alloc(a, 900).is_err());
    let once = totals(&sim.engine, a).0;
    assert!(once >= 3000, "{once}");
    assert_eq!(totals(&sim.engine, ROOT).0, once);
}

#[test]
fn the_child_of_a_fork_has_no_stalls_of_others() {
    let sim = Sim::new(Root::Untracked);
    let a = sim.group(ROOT, "a", 1 << 20);
    let stall = sim.engine.stall(a).expect("memory");
    pass_time();
    sim.engine.after_fork_child();
    let then = totals(&sim.engine, a);
    pass_time();
    assert_eq!(totals(&sim.engine, a), then);
    core::mem::forget(stall);
}
