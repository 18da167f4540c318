//! The workloads on mimalloc.

use std::process::ExitCode;

use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOC: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), proof::mimalloc)
}
