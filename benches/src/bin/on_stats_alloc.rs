//! The workloads on `stats_alloc` over jemalloc.

use std::process::ExitCode;

use memcg_benches::late::LateStats;
use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};

#[global_allocator]
static ALLOC: LateStats = LateStats::new();

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), || {
        proof::jemalloc() && proof::counted(|| ALLOC.get().stats().bytes_allocated as u64)
    })
}
