//! The workloads on memcg, in one group: a limited one, the last of a chain, or a tight one.

use std::process::ExitCode;

use memcg::{Error, Group};
use memcg_benches::ours::{self, Groups, ROOMY};
use memcg_benches::{child, proof};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Below what the cache workload would hold.
const TIGHT: u64 = 8 << 20;

/// A chain of that many groups, each limited; the last one.
fn chain(depth: u32) -> Result<Group, Error> {
    (0..depth).try_fold(Group::root(), |parent, level| {
        ours::limited(&parent, &format!("level {level}"), ROOMY << 2)
    })
}

fn main() -> ExitCode {
    ours::main(|state| {
        let group = match state {
            "limited" => ours::limited(&Group::root(), "limited", ROOMY << 2),
            "depth-8" => chain(8),
            "at-limit" => ours::limited(&Group::root(), "tight", TIGHT),
            _ => return None,
        };
        let one = |group| child::main(&ALLOC, Groups::<false>::new(vec![group]), proof::memcg);
        Some(group.map(one))
    })
}
