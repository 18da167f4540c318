//! memcg next to its peers: one set of workloads, every allocator in one run.
//!
//! ```text
//!   workload/     what is measured: small functions over any allocator
//!   block, tenants, meter, random, rss       what they are made of
//!   child         one workload on the allocator of this process: a binary for each allocator
//!   proof         whether an allocator really serves the process
//!   compare/      the runner: children in interleaved rounds, table, JSON, chart
//!   scale/        memcg alone: groups, threads, depth, bytes
//!   reclaim       memcg alone: at the limit
//! ```
//!
//! Invariant: nothing here but `ours`, `compare`, `scale` and `reclaim` knows memcg, so that
//! the peers' binaries are built without it.

pub mod block;
pub mod child;
pub mod header;
pub mod meter;
pub mod proof;
pub mod random;
pub mod rss;
pub mod second_chance;
pub mod tenants;
pub mod workload;

#[cfg(feature = "ours")]
pub mod compare;
#[cfg(feature = "peers")]
pub mod late;
#[cfg(feature = "ours")]
pub mod ours;
#[cfg(feature = "ours")]
pub mod reclaim;
#[cfg(feature = "ours")]
pub mod scale;
#[cfg(feature = "peers")]
pub mod tokens;
