//! Who pays: groups, hierarchical counters with exact limits, contexts, stock.
//!
//! This is the lowest layer of memcg. It is mechanism only: a charge that does not fit
//! answers [`OverLimit`], which names the group whose limit refused, and calls nobody. What
//! happens then is policy, and lives one layer up.
//!
//! ```text
//!   thread ── stock ──► context ──► group ──► parent ──► … ──► top-level group ──► root
//!             (bytes     (who pays    usage ≤ max at each level, under one lock
//!              ahead)     now)        per top-level tree
//! ```
//!
//! The crate is `no_std` and does not link `alloc`: it cannot reach the global allocator that
//! it is a part of. Its records come from type-stable [tables](table) over a [`Source`] of pages.
//!
//! # Lock order
//!
//! 1. the topology lock (names, links, handles that reach 0)
//! 2. the stripe lock of a tree (counters, contexts)
//! 3. the free list of a table, the name arena
//!
//! Source: the kernel's `mm/memcontrol.c` and `mm/page_counter.c`.
#![cfg_attr(not(loom), no_std)]

mod barrier;
mod below;
mod clock;
mod context;
mod counter;
#[cfg(all(memcg_counting, not(loom)))]
mod counting;
mod event;
mod fatal;
mod finding;
mod gate;
mod group;
mod hands;
mod hash;
mod index;
mod limit;
mod name;
mod objects;
mod protection;
mod reading;
mod request;
mod source;
mod stock;
pub mod sync;
pub mod table;
mod topology;
mod tree;
mod turn;
mod verify;
mod walks;
mod watch;

pub use barrier::{Barrier, BarrierKind};
pub use clock::{cpu_us, now_ms, now_us};
pub use context::{Payer, Tag};
pub use counter::{Charged, OverLimit, Want};
pub use event::{EventKind, Events};
pub use gate::{Cut, Gate, Reason};
pub use group::{GroupRef, OnLimit, Settings};
pub use hands::Hands;
pub use limit::{Limit, ParseLimitError};
pub use name::{Name, NameError};
pub use protection::Protection;
pub use reading::Child;
pub use request::Request;
pub use source::{SYSTEM, Source};
pub use stock::{Entry, MAX_UNSPENT, NotHandedOver, Stock, UnchargeLog};
pub use topology::{CreateError, DEPTH, Dying};
pub use tree::{Root, Tree};
pub use turn::{Turn, Turns};
pub use watch::{Bell, EventSet, NoWatch, Seen, Window};

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;
