//! The workloads on memcg, its groups in one of five states, or accounting compiled out.

use std::process::ExitCode;

use memcg::{Error, Group};
use memcg_benches::child::{self, Ask};
use memcg_benches::ours::{Groups, ROOMY, Unused};
use memcg_benches::proof;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Below what the cache workload would hold.
const TIGHT: u64 = 8 << 20;

fn limited(parent: &Group, name: &str, max: u64) -> Result<Group, Error> {
    parent.builder(name).max(max).build()
}

/// A chain of that many groups, each limited; the last one.
fn chain(depth: u32) -> Result<Group, Error> {
    (0..depth).try_fold(Group::root(), |parent, level| {
        limited(&parent, &format!("level {level}"), ROOMY << 2)
    })
}

fn main() -> ExitCode {
    let state = Ask::of_this_process().map_or_else(String::new, |ask| ask.state);
    let one = |group: Group| child::main(&ALLOC, Groups::<false>::new(vec![group]), proof::memcg);
    let root = Group::root();
    let answer = match state.as_str() {
        "none" => Ok(child::main(&ALLOC, Unused::default(), memcg::is_installed)),
        "compiled-out" => Ok(child::main(&ALLOC, Unused::default(), proof::unaccounted)),
        "limited" => limited(&root, "limited", ROOMY << 2).map(one),
        "depth-8" => chain(8).map(one),
        "at-limit" => limited(&root, "tight", TIGHT).map(one),
        "groups-1000" => (0..1000)
            .map(|tenant| limited(&root, &format!("tenant {tenant}"), ROOMY << 2))
            .collect::<Result<Vec<_>, _>>()
            .map(|groups| child::main(&ALLOC, Groups::<true>::new(groups), proof::memcg)),
        _ => {
            eprintln!("no such state: {state}");
            return ExitCode::from(2);
        }
    };
    answer.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
