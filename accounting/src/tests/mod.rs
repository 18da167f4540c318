//! Tests of the tree as a value, and the models of its protocols.

#[cfg(not(loom))]
mod charge;
#[cfg(not(loom))]
mod churn;
#[cfg(not(loom))]
mod contexts;
#[cfg(not(loom))]
mod depth;
#[cfg(not(loom))]
mod holds;
#[cfg(loom)]
mod loom_context;
#[cfg(loom)]
mod loom_cut;
#[cfg(loom)]
mod loom_exit;
#[cfg(loom)]
mod loom_gate;
#[cfg(loom)]
mod loom_hands;
#[cfg(loom)]
mod loom_holds;
#[cfg(loom)]
mod loom_limit;
#[cfg(loom)]
mod loom_notice;
#[cfg(loom)]
mod loom_objects;
#[cfg(loom)]
mod loom_span;
#[cfg(loom)]
mod loom_turn;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod objects;
#[cfg(not(loom))]
mod protection;
#[cfg(not(loom))]
mod readers;
#[cfg(not(loom))]
mod requests;
#[cfg(not(loom))]
mod stock_model;
#[cfg(not(loom))]
mod stress;
#[cfg(not(loom))]
mod support;
#[cfg(not(loom))]
mod tree;
#[cfg(not(loom))]
mod turns;
#[cfg(not(loom))]
mod watch;
#[cfg(not(loom))]
mod wrap;
