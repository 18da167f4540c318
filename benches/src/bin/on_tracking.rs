//! The workloads on tracking-allocator over jemalloc, each thread in a group.

use std::process::ExitCode;

use memcg_benches::tenants::Tenants;
use memcg_benches::tokens::{self, Tokens};
use memcg_benches::{child, proof};
use tikv_jemallocator::Jemalloc;
use tracking_allocator::Allocator;

#[global_allocator]
static ALLOC: Allocator<Jemalloc> = Allocator::from_allocator(Jemalloc);

fn main() -> ExitCode {
    tokens::start();
    child::main(&ALLOC, Tokens, || {
        let _scope = Tokens.home();
        proof::jemalloc() && proof::counted(tokens::allocated)
    })
}
