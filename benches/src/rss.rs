//! The resident memory of this process.

use std::fs;

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the kernel names it");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") * 1024
}

/// Bytes resident now.
///
/// # Panics
///
/// Without `/proc`.
#[must_use]
pub fn now() -> u64 {
    status("VmRSS:")
}

/// The most that ever were.
///
/// # Panics
///
/// Without `/proc`.
#[must_use]
pub fn peak() -> u64 {
    status("VmHWM:")
}
