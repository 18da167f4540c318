//! A global allocator that gives a tenant inside one process what a cgroup gives a container.
//!
//! Every allocation is tagged with the [`Group`] that it serves. A group has limits; at the
//! hard one registered [`Shrinker`]s evict that group's cached objects before `alloc` answers
//! null. When a group drops, its objects, lists and charges go to its parent. It is the Linux
//! kernel's memory controller for kernel objects, in user space.
//!
//! ```
//! use memcg::{Cache, Group};
//!
//! #[global_allocator]
//! static ALLOC: memcg::Memcg = memcg::Memcg::new();
//!
//! let tenant = Group::root().builder("acme").max(1 << 20).build()?;
//! let cache = Cache::<u64, [u8; 1000]>::direct("pages");
//! for key in 0..10_000 {
//!     tenant.run(|| cache.insert(key, [0; 1000])).expect("makes room for itself");
//!     assert!(tenant.usage() <= 1 << 20);
//! }
//! assert!(cache.stat().evictions > 8_000);
//! # Ok::<(), memcg::Error>(())
//! ```
//!
//! # Layers
//!
//! ```text
//!   memcg-accounting   who pays     groups, exact counters, contexts, stock
//!   memcg-shrink       who gives    shrinkers, lists, reclaim, the charge loop
//!   memcg (this)       who serves   classes, spans, magazines, large objects; what users see
//! ```

mod asan;
mod budget;
mod builder;
mod bypass;
mod cache;
mod cached;
mod central;
mod checks;
mod class;
mod cooling;
mod drain;
mod edge;
mod error;
mod features;
mod finding;
pub mod footprint;
mod fork;
mod free;
mod global;
mod group;
mod guarded;
mod hand;
mod hardened;
mod host;
mod in_group;
mod jemalloc;
mod large;
mod ledger;
mod links;
mod lru;
mod magazine;
mod maps;
mod notice;
mod object_cache;
mod objects;
mod os;
mod pages;
mod panics;
mod path;
mod peak;
mod plain_drop;
mod pressure;
mod process;
mod reclaim_task;
mod record;
mod refusal;
mod roster;
mod scope;
mod shrinker;
mod slow;
mod span;
mod start;
mod stat;
mod subtree;
mod summary;
mod threshold;
mod trigger;
#[cfg(doctest)]
mod types;
mod vector;
mod verify;
mod wakers;
mod watch;
mod worker;

#[cfg(memcg_counting)]
pub use memcg_accounting::sync::{Counts, counts};
pub use memcg_accounting::{EventKind, Events, Limit, OnLimit, ParseLimitError};

pub use builder::GroupBuilder;
pub use cache::{Cache, CacheStat};
pub use drain::{drain, purge};
pub use error::{Error, OverLimit};
pub use global::Memcg;
pub use group::{Entered, EnteredOwned, Group, is_installed};
pub use in_group::{FutureExt, InGroup, UntilOverLimit};
pub use lru::{Lru, LruNode, LruStatus};
pub use object_cache::{CacheBox, ObjectCache, ObjectCacheBuilder, ObjectCacheStat};
pub use objects::set_max_objects;
pub use panics::protect_panics;
pub use peak::PeakReader;
pub use plain_drop::PlainDrop;
pub use pressure::{Pressure, Stall};
pub use reclaim_task::ReclaimTask;
pub use refusal::{Refusal, on_refusal};
pub use scope::{fallible, no_reclaim, unaccounted};
pub use shrinker::{Cause, Count, Registration, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
pub use stat::{ClassStat, SelfStat, Stat, self_stat, snapshot};
pub use threshold::Threshold;
pub use verify::check;
pub use watch::{Changed, Watch};
