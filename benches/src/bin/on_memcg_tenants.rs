//! The workloads on memcg, for 1,000 limited groups in turn.

use std::process::ExitCode;

use memcg::{Error, Group};
use memcg_benches::ours::{self, Groups, ROOMY};
use memcg_benches::{child, proof};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn main() -> ExitCode {
    ours::main(|state| {
        if state != "groups-1000" {
            return None;
        }
        let tenant =
            |number| ours::limited(&Group::root(), &format!("tenant {number}"), ROOMY << 2);
        let groups: Result<Vec<Group>, Error> = (0..1000).map(tenant).collect();
        let all = |groups| child::main(&ALLOC, Groups::<true>::new(groups), proof::memcg);
        Some(groups.map(all))
    })
}
