//! A panic inside a limited group: its hook, with a backtrace that takes megabytes, and what drops take meanwhile.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use memcg::Group;
use support::{Raw, case, pass, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// How far over its limits a group can come as its thread panics, and where the hook is not known to run for nobody.
const UNWINDING: u64 = 16 << 20;
const REPORT: u64 = 64 << 20;

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
    assert!(group.usage() > 1 << 20, "std keeps its symbols");
    assert!(group.usage() <= (1 << 20) + REPORT, "and there is a bound");
    assert!(memcg::self_stat().overshot >= group.peak() - (1 << 20), "and all of it is counted");
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
    assert!(group.usage() <= (64 << 10) + REPORT);
    memcg::check();
}

const LOOP: &str = "a_tenant_that_panics_again_and_again_at_its_limit_stays_as_it_was";

/// With the hook protected: what std keeps of it is nobody's.
fn panic_in_a_loop() {
    // A hook of the program's own, as many have one.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        assert_eq!(Group::current(), Group::root());
        REPORTS.fetch_add(1, Ordering::SeqCst);
        default(info);
    }));
    memcg::protect_panics();
    memcg::protect_panics();
    let group = Group::root().builder("full").max(256 << 10).build().expect("fresh");
    let other = Group::root().builder("other").max(256 << 10).build().expect("fresh");
    let mut filled: Vec<Raw> = Vec::with_capacity(1000);
    filled.extend(std::iter::from_fn(|| Raw::in_group(&group, 500)).take(1000));
    assert!(Raw::in_group(&group, 500).is_none(), "it is full");
    let usage = group.stat().usage;
    for turn in 1..=10 {
        let caught = catch_unwind(AssertUnwindSafe(|| group.run(|| panic!("tenant code panics"))));
        assert!(caught.is_err());
        drop(caught);
        assert_eq!(REPORTS.load(Ordering::SeqCst), turn, "wrapped once");
        assert_eq!(group.stat().usage, usage, "nothing of it stays");
        assert!(group.peak() <= (256 << 10) + (64 << 10), "the payload, and not the backtrace");
        // Its next request is as good as ever, and so is everybody else's.
        filled.pop();
        filled.extend(Raw::in_group(&group, 500));
        assert_eq!(group.stat().usage, usage);
        assert!(Raw::in_group(&other, 200 << 10).is_some());
    }
    assert_eq!(other.stat().usage, 0);
    filled.clear();
    assert_eq!(group.stat().usage, 0);
    // Another hook in its place has to be protected again.
    std::panic::set_hook(Box::new(|_| assert_ne!(Group::current(), Group::root())));
    assert!(catch_unwind(AssertUnwindSafe(|| group.run(|| panic!("again")))).is_err());
    std::panic::set_hook(Box::new(|_| assert_eq!(Group::current(), Group::root())));
    memcg::protect_panics();
    assert!(catch_unwind(AssertUnwindSafe(|| group.run(|| panic!("again")))).is_err());
    drop(std::panic::take_hook());
    memcg::check();
}

#[test]
fn a_tenant_that_panics_again_and_again_at_its_limit_stays_as_it_was() {
    if case().is_some() {
        return panic_in_a_loop();
    }
    for backtrace in ["0", "1"] {
        let ended = run(rerun(LOOP, "loop").env("RUST_BACKTRACE", backtrace));
        assert!(ended.status.success(), "{ended:#?}");
    }
}

/// As it is dropped, takes all that there is.
struct Hoarder<'a>(&'a mut Vec<Raw>, usize);

impl Drop for Hoarder<'_> {
    fn drop(&mut self) {
        self.0.extend(std::iter::from_fn(|| Raw::new(self.1)).take(100_000));
    }
}

const HOARD: &str = "what_drops_take_as_the_stack_unwinds_is_charged_and_bounded";

fn hoard(bound: u64, size: usize) {
    const MAX: u64 = 1 << 20;
    let group = Group::root().builder("hoarder").max(MAX).build().expect("fresh");
    let mut kept = Vec::with_capacity(300_000);
    for _ in 0..3 {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            group.run(|| {
                let _hoarder = Hoarder(&mut kept, size);
                panic!("on purpose");
            })
        }));
        drop(caught);
        let bytes: u64 = kept.iter().map(|object| object.size() as u64).sum();
        assert!(bytes > bound / 2 && bytes <= MAX + bound, "{bytes} of {bound}");
        assert_eq!(Group::of(kept[kept.len() - 1].as_ptr()), Some(group.clone()));
        assert_eq!(group.stat().usage, bytes);
        assert!(Raw::in_group(&group, size).is_none(), "it is over its limit");
    }
    let events = group.events();
    assert!(events.forced > 0 && events.oom >= 3, "{events:?}");
    assert!(memcg::self_stat().overshot >= bound / 2);
    kept.clear();
    assert!(Raw::in_group(&group, size).is_some(), "it has room again");
    memcg::check();
}

#[test]
fn what_drops_take_as_the_stack_unwinds_is_charged_and_bounded() {
    let Some(case) = case() else {
        return ["small", "large", "not protected"].iter().for_each(|case| pass(HOARD, case));
    };
    std::panic::set_hook(Box::new(|_| ()));
    if case != "not protected" {
        memcg::protect_panics();
    }
    match &*case {
        "small" => hoard(UNWINDING, 4096),
        "large" => hoard(UNWINDING, 112 << 10),
        _ => hoard(REPORT, 4096),
    }
}

const ABORT: &str = "an_allocation_that_cannot_fail_is_refused_beyond_it_with_stds_message";

#[test]
fn an_allocation_that_cannot_fail_is_refused_beyond_it_with_stds_message() {
    struct Grows;
    impl Drop for Grows {
        fn drop(&mut self) {
            drop(std::hint::black_box(vec![1_u8; 30 << 20]));
        }
    }
    if case().is_some() {
        memcg::protect_panics();
        let group = Group::root().builder("small").max(1 << 20).build().expect("fresh");
        group.run(|| {
            let _grows = Grows;
            panic!("on purpose");
        })
    }
    for backtrace in ["0", "1"] {
        let ended = run(rerun(ABORT, "aborts").env("RUST_BACKTRACE", backtrace));
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:#?}");
        assert!(ended.stderr.contains("memory allocation of 31457280 bytes failed"), "{ended:#?}");
    }
}
