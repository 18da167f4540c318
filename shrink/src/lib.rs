//! Who gives: shrinkers, lists of objects, reclaim, and the charge loop.
//!
//! This is the middle layer of memcg. Accounting below it says no, and calls nobody; here is
//! what stands between that no and a refused allocation. Whoever charges uses the same loop.
//!
//! ```text
//!   Engine::charge ─► tree: fits? ─no─► drain ─► reclaim ─► the one cut ─► policy ─► refused
//!                                                   │
//!                      ┌── direct shrinkers: on this thread, inside the allocation
//!                      └── the others: on a worker, while this thread waits, within a deadline
//!
//!   registry   who can give            marks    in which groups each has something
//!   marked     the groups where anything is, as a tree; walks go over it
//!   pass       asks them all, from a touch to everything, group by group
//!   lists      objects per group, found by their tags; they move up when a group goes
//!   crew       the workers and their keeper      offline   the end of a group, in order
//!   held       how many workers calls that do not end may hold
//!   stall      how long threads waited           refusal   what is told of a refusal
//! ```
//!
//! The crate is `no_std` and does not link `alloc`: it cannot reach the global allocator that
//! it is a part of. What it needs of the layer above is one trait, [`Host`].
//!
//! # Lock order
//!
//! 1. the drain mutex of the host
//! 2. the locks of the tree
//! 3. the lists' (see `lists.rs`; never together with the tree's)
//! 4. marked groups, registry, records of reclaimers, background queue
//! 5. growing the groups' records, what shrinkers owe, reports
//!
//! No lock of this crate is held while a shrinker runs, and none but the first while a thread
//! waits.
//!
//! Source: the kernel's `mm/vmscan.c`, `mm/shrinker.c`, `mm/list_lru.c`, and the loop of
//! `try_charge_memcg` in `mm/memcontrol.c`.
#![cfg_attr(not(loom), no_std)]

mod average;
mod background;
mod charge;
mod crew;
mod deferred;
mod engine;
mod errand;
mod groups;
mod held;
mod host;
mod list;
mod list_head;
mod list_index;
mod list_offline;
mod list_walk;
mod lists;
mod marked;
mod marks;
mod offline;
mod pass;
mod patience;
mod raw;
mod reclaim;
mod reclaimer;
mod refusal;
mod registry;
mod reports;
mod scan;
mod session;
mod sharers;
mod slot;
mod stall;
mod sync;
mod throttle;
mod tidy;
mod walks;
mod work;

pub use average::Stalled;
pub use charge::{PANIC_ALLOWANCE, RECLAIM_RESERVE, REPORT_ALLOWANCE};
pub use crew::MAX_WORKERS;
pub use engine::{Engine, EngineStat};
pub use errand::{Errand, ErrandEnd};
pub use held::{MOST_HELD, MOST_UNPROVEN};
pub use host::{Caller, Host, Panic, Report};
pub use list::{Isolated, Links};
pub use list_walk::{LruStatus, Wait, Walked};
pub use lists::{Added, ListLru, Lists};
pub use patience::Deadline;
pub use raw::{Cause, Control, Place, RawCount, RawScan, RawShrinker, ShrinkerName};
pub use refusal::{CHILDREN, Refusal, Tried};
pub use registry::ShrinkerId;
pub use stall::{Pressure, Stall};
pub use sync::{futex_wait, futex_wake};
pub use throttle::LONGEST_THROTTLE_MS;

#[cfg(test)]
mod tests;
