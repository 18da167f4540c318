//! Tests of the engine against a simulated host, of the lists, and the models of the protocols.

#[cfg(not(loom))]
mod at_the_limit;
#[cfg(not(loom))]
mod errands;
#[cfg(not(loom))]
mod holding;
#[cfg(not(loom))]
mod hostile;
#[cfg(not(loom))]
mod keeping_room;
#[cfg(not(loom))]
mod list;
#[cfg(loom)]
mod loom_call;
#[cfg(loom)]
mod loom_list;
#[cfg(loom)]
mod loom_mark;
#[cfg(loom)]
mod loom_marked;
#[cfg(loom)]
mod loom_tick;
#[cfg(loom)]
mod loom_walks;
#[cfg(not(loom))]
mod many_shrinkers;
#[cfg(not(loom))]
mod protecting;
#[cfg(not(loom))]
mod reclaiming;
#[cfg(not(loom))]
mod sim;
#[cfg(not(loom))]
mod stalls;
#[cfg(not(loom))]
mod stress;
#[cfg(not(loom))]
mod throttling;
#[cfg(not(loom))]
mod walking;
