//! The children: each says truly that its allocator serves it, and answers a figure.
//!
//! This process runs on the system's allocator, so no other proof may hold here.

use std::process::Command;

use memcg_benches::proof;
use serde_json::Value;

const CHILDREN: [(&str, &str); 8] = [
    ("memcg", env!("CARGO_BIN_EXE_on-memcg-alone")),
    ("system", env!("CARGO_BIN_EXE_on-system")),
    ("jemalloc", env!("CARGO_BIN_EXE_on-jemalloc")),
    ("mimalloc", env!("CARGO_BIN_EXE_on-mimalloc")),
    ("cap", env!("CARGO_BIN_EXE_on-cap")),
    ("stats_alloc", env!("CARGO_BIN_EXE_on-stats-alloc")),
    ("tracking", env!("CARGO_BIN_EXE_on-tracking")),
    ("header", env!("CARGO_BIN_EXE_on-header")),
];

fn answer(binary: &str, workload: &str, state: &str) -> Value {
    let output = Command::new(binary)
        .args(["--workload", workload, "--scale", "tiny", "--state", state])
        .output()
        .expect("it was built");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{binary} {workload} {state}: {error}");
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[test]
fn no_proof_holds_where_another_allocator_serves() {
    assert!(proof::system());
    assert!(!proof::jemalloc());
    assert!(!proof::mimalloc());
    assert!(!proof::memcg());
    assert!(!proof::counted(|| memcg_benches::header::usage().unsigned_abs()));
    assert!(!proof::counted(memcg_benches::tokens::allocated));
}

#[test]
fn each_child_runs_programs_on_its_allocator() {
    for (name, binary) in CHILDREN {
        for workload in ["box.64", "json", "tokio", "cache.own"] {
            let answer = answer(binary, workload, "none");
            assert!(answer["ns"].as_f64().is_some_and(|ns| ns > 0.0), "{name}: {answer}");
            assert!(answer["peak_rss"].as_u64().is_some_and(|bytes| bytes > 0), "{name}: {answer}");
        }
    }
}

#[test]
fn memcg_runs_in_each_state() {
    let (one, many) = (env!("CARGO_BIN_EXE_on-memcg"), env!("CARGO_BIN_EXE_on-memcg-tenants"));
    for (binary, state) in
        [(one, "limited"), (one, "depth-8"), (many, "groups-1000"), (one, "at-limit")]
    {
        let answer = answer(binary, "cache.own", state);
        assert!(answer["ns"].as_f64().is_some_and(|ns| ns > 0.0), "{state}: {answer}");
    }
}

#[test]
fn what_a_child_does_not_know_is_an_error() {
    for arguments in [["--workload", "nothing"], ["--scale", "huge"], ["--what", "is this"]] {
        let status = Command::new(CHILDREN[1].1).args(arguments).output().expect("it was built");
        assert_eq!(status.status.code(), Some(2), "{arguments:?}");
    }
}
