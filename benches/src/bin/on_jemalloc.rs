//! The workloads on tikv-jemallocator.

use std::process::ExitCode;

use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), proof::jemalloc)
}
