//! The workloads on `cap` over jemalloc, with a limit that is never met.

use std::process::ExitCode;

use cap::Cap;
use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: Cap<Jemalloc> = Cap::new(Jemalloc, 16 << 30);

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), || {
        proof::jemalloc() && proof::counted(|| ALLOC.allocated() as u64)
    })
}
