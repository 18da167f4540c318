//! The workloads on memcg where no group is used, or with accounting compiled out.

use std::process::ExitCode;

use memcg_benches::ours::{self, Unused};
use memcg_benches::{child, proof};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn main() -> ExitCode {
    ours::main(|state| {
        let serves: fn() -> bool = match state {
            "none" => memcg::is_installed,
            "compiled-out" => proof::unaccounted,
            _ => return None,
        };
        Some(Ok(child::main(&ALLOC, Unused::default(), serves)))
    })
}
