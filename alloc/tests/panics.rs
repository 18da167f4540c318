//! A panic inside a limited group, with a backtrace, which takes megabytes.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use memcg::Group;
use support::{case, pass};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const TEST: &str = "a_panic_with_a_backtrace_in_a_small_group_unwinds";

#[test]
fn a_panic_with_a_backtrace_in_a_small_group_unwinds() {
    if case().is_none() {
        // A fresh process: std resolves symbols once.
        return pass(TEST, "panics");
    }
    // SAFETY: no other thread of this process looks at the environment.
    unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
    let group = Group::root().builder("small").max(1 << 20).build().expect("fresh");
    let caught = catch_unwind(AssertUnwindSafe(|| group.run(|| panic!("tenant code panics"))));
    assert!(caught.is_err());
    assert!(group.usage() <= (1 << 20) + (16 << 20), "what is beyond the allowance is nobody's");
}
