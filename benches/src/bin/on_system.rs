//! The workloads on the system's allocator.

use std::alloc::System;
use std::process::ExitCode;

use memcg_benches::tenants::Nobody;
use memcg_benches::{child, proof};

#[global_allocator]
static ALLOC: System = System;

fn main() -> ExitCode {
    child::main(&ALLOC, Nobody::new(), proof::system)
}
