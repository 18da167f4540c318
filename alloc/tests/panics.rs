//! A panic inside a limited group, with a backtrace, which takes megabytes.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use memcg::Group;
use support::{Raw, case, pass};

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

const HOOK: &str = "a_panic_hook_may_allocate_where_the_group_is_full";

/// What a hook does that writes a report: it allocates, formats, and takes a backtrace.
fn report(info: &std::panic::PanicHookInfo<'_>) {
    let mut text = String::new();
    for line in 0..1000 {
        text.push_str(&format!("{line}: {info}\n"));
    }
    let backtrace = std::backtrace::Backtrace::force_capture().to_string();
    let large = vec![1_u8; 300 << 10];
    assert!(text.len() > 10_000 && large.len() > backtrace.len() / 1000);
    REPORTS.fetch_add(1, Ordering::SeqCst);
}

static REPORTS: AtomicU32 = AtomicU32::new(0);

#[test]
fn a_panic_hook_may_allocate_where_the_group_is_full() {
    if case().is_none() {
        return pass(HOOK, "hook");
    }
    std::panic::set_hook(Box::new(report));
    let group = Group::root().builder("full").max(64 << 10).build().expect("fresh");
    let mut filled: Vec<Raw> = Vec::with_capacity(1000);
    filled.extend(std::iter::from_fn(|| Raw::in_group(&group, 500)).take(1000));
    assert!(Raw::in_group(&group, 500).is_none(), "it is full");
    for _ in 0..3 {
        let caught = catch_unwind(AssertUnwindSafe(|| group.run(|| panic!("tenant code panics"))));
        assert!(caught.is_err());
        let thread = std::thread::scope(|scope| {
            scope.spawn(|| group.run(|| panic!("so does a thread of its"))).join()
        });
        assert!(thread.is_err());
    }
    drop(std::panic::take_hook());
    assert_eq!(REPORTS.load(Ordering::SeqCst), 6);
    assert!(group.events().forced > 0, "what a panicking thread needs is let through, and counted");
    filled.clear();
    memcg::drain();
    // What std keeps of the first backtrace is charged to who took it.
    assert!(group.usage() <= (64 << 10) + (16 << 20));
    memcg::check();
}
