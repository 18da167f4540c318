//! Pauses over `high`: who pauses, for how long at most, and who does not.

extern crate std;

use memcg_accounting::{GroupRef, Limit, Root};

use super::sim::{Sim, locked};
use crate::LONGEST_THROTTLE_MS;

const MIB: u64 = 1 << 20;
/// What a pause may take on a machine that is busy with other things, in microseconds.
const MOST: u64 = 10_000_000;

#[test]
fn a_thread_pauses_where_a_level_asks_for_it_and_only_there() {
    let sim = Sim::new(Root::Untracked);
    let parent = sim.group(GroupRef::ROOT, "p", 1 << 40);
    let child = sim.group(parent, "c", 1 << 40);
    sim.tree.set_high(parent, Limit::Bytes(MIB));
    let pinned = sim.alloc(child, 2 * MIB).expect("high refuses nobody");
    assert_eq!(sim.engine.throttle(child, MIB), Some(0), "off by default");
    assert!(sim.engine.set_throttle(child, 50));
    assert_eq!(sim.engine.throttle(child, MIB), Some(0), "the child is not over its own");
    assert!(sim.engine.set_throttle(parent, 20));
    let paused = sim.engine.throttle(child, MIB).expect("long enough");
    assert!((20_000..MOST).contains(&paused), "{paused}");
    assert_eq!(sim.engine.throttle(parent, 0), None, "nothing was charged");
    assert_eq!(sim.engine.throttle(child, 1), None, "too short, and still owed");
    assert!(sim.engine.set_throttle(parent, u32::MAX));
    let paused = sim.engine.throttle(child, 1 << 30).expect("long enough");
    assert!((u64::from(LONGEST_THROTTLE_MS) * 1000..MOST).contains(&paused), "{paused}");
    assert!(sim.engine.set_throttle(parent, 0));
    assert_eq!(sim.engine.throttle(child, MIB), Some(0), "off again");
    assert!(sim.engine.set_throttle(parent, 20));
    sim.free(pinned);
    assert_eq!(sim.engine.throttle(child, MIB), Some(0), "not over it any more");
}

#[test]
fn what_is_charged_over_high_is_told_to_the_host_and_nothing_else() {
    let sim = Sim::new(Root::Untracked);
    let group = sim.group(GroupRef::ROOT, "a", 1 << 40);
    sim.tree.set_high(group, Limit::Bytes(MIB));
    let within = sim.alloc(group, MIB).expect("room");
    assert!(locked(&sim.over_high).is_empty());
    let over = sim.alloc(group, 1000).expect("room");
    assert_eq!(*locked(&sim.over_high), [(group, 1000)]);
    sim.free(within);
    sim.free(over);
    // The next user of the slot asks for nothing.
    assert!(sim.engine.set_throttle(group, 20));
    sim.engine.put(group);
    let next = sim.group(GroupRef::ROOT, "b", 1 << 40);
    assert_eq!(next.index(), group.index());
    sim.tree.set_high(next, Limit::Bytes(0));
    let over = sim.alloc(next, MIB).expect("room");
    assert_eq!(sim.engine.throttle(next, MIB), Some(0));
    sim.free(over);
}
