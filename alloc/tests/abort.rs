//! An infallible allocation that is refused ends with std's own message and SIGABRT.

mod support;

use std::os::unix::process::ExitStatusExt;

use memcg::Group;
use support::{Raw, case, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const TEST: &str = "an_infallible_allocation_over_the_limit_aborts_with_stds_message";

/// What each case asks for in the end, in bytes.
const CASES: [(&str, usize); 5] = [
    ("large", 2 << 20),
    ("small", 24),
    ("on another thread", 100),
    ("grows", 2 << 20),
    ("an ancestor's limit", 5000),
];

fn abort(case: &str) {
    let top = Group::root().builder("top").max(1 << 20).build().expect("fresh");
    let group = top.create("group").expect("fresh");
    let fill = |group: &Group, size: usize| {
        while let Some(object) = Raw::in_group(group, size) {
            std::mem::forget(object);
        }
    };
    match case {
        "large" => drop(std::hint::black_box(group.run(|| vec![1_u8; 2 << 20]))),
        "small" => {
            fill(&group, 8);
            group.run(|| drop(std::hint::black_box(Box::new([0_u64; 3]))));
        }
        "on another thread" => {
            fill(&group, 100);
            std::thread::scope(|scope| {
                scope.spawn(|| group.run(|| drop(std::hint::black_box(Box::new([0_u8; 100])))));
            });
        }
        "grows" => {
            let mut value = group.run(|| vec![1_u8; 600 << 10]);
            group.run(|| value.reserve_exact((2 << 20) - value.len()));
        }
        _ => {
            fill(&top, 4096);
            group.run(|| drop(std::hint::black_box(Box::new([0_u8; 5000]))));
        }
    }
}

#[test]
fn an_infallible_allocation_over_the_limit_aborts_with_stds_message() {
    if let Some(case) = case() {
        return abort(&case);
    }
    for (case, bytes) in CASES {
        for backtrace in ["0", "1"] {
            let ended = run(rerun(TEST, case).env("RUST_BACKTRACE", backtrace));
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{case}: {ended:#?}");
            let message = format!("memory allocation of {bytes} bytes failed");
            assert_eq!(ended.stderr.lines().next(), Some(&*message), "{case}: {ended:#?}");
        }
    }
}
