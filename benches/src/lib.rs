//! memcg next to its peers: one set of workloads, every allocator in one run.
//!
//! ```text
//!   workload/     what is measured: small functions over any allocator
//!   block, tenants, meter, random, rss       what they are made of
//!   child         one workload on the allocator of this process: a binary for each allocator
//!   proof         whether an allocator really serves the process
//!   build         building the children, those with a flag too
//!   compare/      the runner: children in interleaved rounds, table, aims, JSON, chart
//!   aim           a figure and the bound that it is to keep
//!   counts        memcg alone: atomics and locks of an operation
//!   scale/        memcg alone: groups, threads, depth, lives, bytes
//!   reclaim       memcg alone: at the limit
//! ```
//!
//! Invariant: nothing here but `ours`, `counted`, `scale` and `reclaim` knows memcg, so that
//! the peers' binaries are built without it.

pub mod aim;
pub mod block;
pub mod child;
pub mod counted;
pub mod header;
pub mod meter;
pub mod proof;
pub mod random;
pub mod rss;
pub mod second_chance;
pub mod tenants;
pub mod workload;

#[cfg(feature = "ours")]
pub mod build;
#[cfg(feature = "ours")]
pub mod compare;
#[cfg(feature = "ours")]
pub mod counts;
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
