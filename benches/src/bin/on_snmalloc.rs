//! The workloads on snmalloc.

use std::process::ExitCode;

use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};
use snmalloc_rs::SnMalloc;

#[global_allocator]
static ALLOC: SnMalloc = SnMalloc;

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), proof::snmalloc)
}
