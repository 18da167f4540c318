//! The workloads on the strawman over jemalloc.

use std::process::ExitCode;

use memcg_benches::header::{self, Header};
use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: Header<Jemalloc> = Header(Jemalloc);

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), || {
        proof::jemalloc() && proof::counted(|| header::usage().unsigned_abs())
    })
}
