//! The resident memory of this process.

use std::fs;

fn bytes(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with(field)).expect("the kernel names it");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") * 1024
}

/// Bytes resident now. Exact: the sum in `status` may be a hundred pages behind.
///
/// # Panics
///
/// Without `/proc`.
#[must_use]
pub fn now() -> u64 {
    bytes("/proc/self/smaps_rollup", "Rss:")
}

/// The most that ever were.
///
/// # Panics
///
/// Without `/proc`.
#[must_use]
pub fn peak() -> u64 {
    bytes("/proc/self/status", "VmHWM:")
}
