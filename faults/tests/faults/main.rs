//! Everything that the allocator asks for is refused: call by call, for a while, by chance, and from the beginning of the
//! process. After each fault there was null or an error, every invariant holds, counters are right, and work goes on.
//!
//! `MEMCG_FAULTS` makes the run longer: it is how many faults there are at least (1,000 if it is not set).

#[cfg(not(debug_assertions))]
mod not_done;
mod seam;
#[path = "../../../alloc/tests/support/mod.rs"]
mod support;
mod world;

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Group, ShrinkerBuilder};
use seam::Point;
use support::hoard::Hoard;
use support::{Bare, Random, Raw, Sets, Watchdog, fork_and, is_case, pass, rerun, run};
use world::World;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Steps of a world between two checks.
const STEPS: usize = 40;

fn wanted() -> u64 {
    std::env::var("MEMCG_FAULTS").ok().map_or(1000, |n| n.parse().expect("a number"))
}

/// Runs the world with faults that `plan` asks for, then without; answers how many there were.
fn with_faults(world: &mut World, steps: usize, plan: impl FnOnce()) -> u64 {
    let before: u64 = Point::ALL.iter().map(|&point| seam::nr_refused(point)).sum();
    plan();
    seam::expose(true);
    world.run(steps);
    seam::expose(false);
    seam::relent();
    world.check();
    world.must_work();
    Point::ALL.iter().map(|&point| seam::nr_refused(point)).sum::<u64>() - before
}

/// Points that a running world meets. `Metadata` is asked for when tables grow and `Pages` when jemalloc has none left, so these
/// have tests of their own; so have `Barrier`, `ExitHook`, `ExitKey` and `ForkHandlers`, for what they change stays.
const MET: [Point; 8] = [
    Point::Object,
    Point::Moving,
    Point::InPlace,
    Point::Control,
    Point::Advice,
    Point::Sleep,
    Point::Thread,
    Point::Eventfd,
];

#[test]
fn after_each_fault_everything_is_in_order_and_goes_on() {
    const TEST: &str = "after_each_fault_everything_is_in_order_and_goes_on";
    if !is_case("a world of faults") {
        let ended = run(&mut rerun(TEST, "a world of faults"));
        assert!(ended.status.success(), "{ended:#?}");
        print!("{}", ended.stdout);
        return;
    }
    let _watchdog = Watchdog::new("a world of faults");
    let mut world = World::new(1);
    let mut random = Random::new(2);
    let mut faults = 0;
    // The n-th call of each kind, as long as there is one.
    for point in MET {
        for n in 1..=6 {
            let met = with_faults(&mut world, STEPS, || seam::refuse(point, n, n));
            faults += met;
            if met == 0 {
                break;
            }
        }
    }
    // All calls of a kind, then some of every kind.
    for point in MET {
        let last = if point == Point::Sleep { 100 } else { u64::MAX };
        faults += with_faults(&mut world, STEPS, || seam::refuse(point, 1, last));
    }
    let mut rounds = 0;
    while faults < wanted() || rounds < 5 {
        faults += with_faults(&mut world, 4 * STEPS, || {
            for point in MET {
                seam::refuse_some(point, u32::try_from(random.below(600)).expect("small"));
            }
        });
        rounds += 1;
    }
    let outcome = world.outcome;
    world.finish();
    for point in MET {
        let nr = seam::nr_refused(point);
        println!("{point:?}: {nr} refused");
        assert!(nr > 0, "{point:?} was met");
    }
    assert!(outcome.refused > 100 && outcome.done > 1000, "{outcome:?}");
    println!("{faults} faults, {} steps done, {} refused", outcome.done, outcome.refused);
    assert!(faults >= wanted());
}

// ---- tables that can't grow --------------------------------------------------------------------------------

/// Groups until a table is full, and what then wants more of it.
fn no_metadata() {
    const CYCLES: usize = 6;
    let _watchdog = Watchdog::new("no metadata");
    let top = Group::root().create("metadata").expect("memory");
    let mut made: Vec<Group> = Vec::with_capacity(10_000);
    let mut names = 0;
    let mut create = |made: &mut Vec<Group>| {
        names += 1;
        top.create(&names.to_string()).map(|group| made.push(group))
    };
    for _ in 0..CYCLES {
        let before = seam::nr_refused(Point::Metadata);
        seam::refuse(Point::Metadata, 1, u64::MAX);
        seam::expose(true);
        let mut refused = 0;
        while refused < 20 && made.len() < 9_000 {
            if let Err(error) = create(&mut made) {
                assert!(error.is_system(), "{error}");
                refused += 1;
            }
        }
        // There are groups, and they work.
        for group in made.iter().rev().take(20) {
            let object = Raw::in_group(group, 100);
            assert_eq!(group.usage() > 0, object.is_some());
            let _ = group.watch(memcg::Threshold::Usage(1000));
        }
        seam::expose(false);
        seam::relent();
        assert!(seam::nr_refused(Point::Metadata) >= before + 20);
        assert_eq!(top.stat().nr_descendants, made.len() as u64, "nothing is half done");
        assert_eq!(top.stat().usage, 0);
        memcg::check();
        create(&mut made).expect("there is memory again");
    }
    assert!(made.len() > 1000, "{} groups", made.len());
    let watch = made[0].watch(memcg::Threshold::Usage(1000)).expect("memory");
    drop((watch, made));
    let stat = top.stat();
    assert_eq!((stat.nr_descendants, stat.nr_contexts, stat.usage), (0, 0, 0), "{stat:?}");
    memcg::check();
}

#[test]
fn without_metadata_there_are_errors_and_nothing_is_half_done() {
    const TEST: &str = "without_metadata_there_are_errors_and_nothing_is_half_done";
    if is_case("no metadata") {
        return no_metadata();
    }
    pass(TEST, "no metadata");
}

// ---- no pages for jemalloc ----------------------------------------------------------------------------------

/// Blocks that are larger than all that jemalloc has kept of earlier ones, with and without pages for them.
fn no_pages() {
    const MIB: usize = 1 << 20;
    let group = Group::root().create("pages").expect("memory");
    let mut kept: Vec<u8> = group.run(|| vec![7; MIB]);
    let charged = group.usage();
    // Four times as much each time: jemalloc keeps what it had mapped, and joins what lies side by side.
    for shift in (6..15).step_by(2) {
        let bytes = MIB << shift;
        let before = seam::nr_refused(Point::Pages);
        seam::refuse(Point::Pages, 1, u64::MAX);
        seam::expose(true);
        let new = Raw::in_group(&group, bytes);
        let grown = group.run(|| kept.try_reserve_exact(2 * bytes));
        seam::expose(false);
        seam::relent();
        assert!(new.is_none(), "{bytes} bytes: there was nothing to make them of");
        assert!(grown.is_err(), "{bytes} bytes: there was nothing to grow by");
        assert!(seam::nr_refused(Point::Pages) > before);
        assert!(kept.len() == MIB && kept.iter().all(|&byte| byte == 7));
        assert_eq!(group.usage(), charged);
        memcg::check();
        let new = Raw::in_group(&group, bytes).expect("there are pages again");
        assert!(group.usage() >= charged + bytes as u64);
        drop(new);
        assert_eq!(group.usage(), charged);
    }
    drop(kept);
    assert_eq!(group.usage(), 0);
}

#[test]
fn without_pages_there_is_null_and_the_old_block_stays() {
    const TEST: &str = "without_pages_there_is_null_and_the_old_block_stays";
    if is_case("no pages") {
        return no_pages();
    }
    pass(TEST, "no pages");
}

// ---- from the beginning of the process --------------------------------------------------------------------

/// A process from whose beginning on calls of `point` are refused: it lives, or says why it ends.
fn at_start(test: &str, point: Point, first: u64, last: u64) -> bool {
    let mut command = rerun(test, "from the beginning");
    command.env(seam::AT_START, format!("{} {first} {last}", point as usize));
    let ended = run(&mut command);
    if ended.status.success() {
        return true;
    }
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{point:?} {first}: {ended:#?}");
    let said = ended.stderr.contains("memory allocation of") && ended.stderr.contains("failed");
    assert!(said, "{point:?} {first}: {ended:#?}");
    false
}

#[test]
fn a_process_that_is_refused_from_its_beginning_lives_or_says_why_not() {
    const TEST: &str = "a_process_that_is_refused_from_its_beginning_lives_or_says_why_not";
    if is_case("from the beginning") {
        // Nothing was lost by what was refused until now.
        seam::relent();
        let mut world = World::new(3);
        world.run(2 * STEPS);
        return world.finish();
    }
    let mut lived = 0;
    for n in 1..=16 {
        lived += u32::from(at_start(TEST, Point::Metadata, n, n));
    }
    assert!(lived > 4, "most of what is asked for is asked for again");
    // Nothing at all: it ends at once, with a message.
    assert!(!at_start(TEST, Point::Metadata, 1, u64::MAX));
    assert!(!at_start(TEST, Point::Object, 1, u64::MAX));
    for point in [Point::Control, Point::Barrier, Point::ExitHook] {
        assert!(at_start(TEST, point, 1, u64::MAX), "{point:?}");
    }
    // The first keys are the allocator's: to have the last of the good ones, and that one, which is asked for again.
    // std ends the process if it gets none of its own.
    assert!(at_start(TEST, Point::ExitKey, 1, 1));
    assert!(at_start(TEST, Point::ExitKey, 1, 2));
}

// ---- no handlers of fork -----------------------------------------------------------------------------------

/// The handlers were refused at first. They are asked for again before there is anything that a child would miss.
fn handlers_refused_once() {
    assert_eq!(seam::nr_refused(Point::ForkHandlers), 1, "the first allocation asked for them");
    let group = Group::root().builder("handlers").max(1 << 20).build().expect("memory");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(Raw::in_group(&group, 500));
                drop(Raw::in_group(&group, 5000));
            }
        });
        for _ in 0..10 {
            fork_and(|| {
                memcg::drain();
                // What the other thread had out at that moment stays out.
                assert!([0, 512, 5120].contains(&group.usage()), "{} bytes", group.usage());
                assert_eq!(memcg::self_stat().given_up, 0, "nobody is waited for in vain");
                memcg::check();
                let own = Group::root().create("of the child").expect("memory");
                let start = Instant::now();
                while !support::thread_names().iter().any(|name| name == "memcg-keeper") {
                    assert!(start.elapsed() < Duration::from_secs(60), "the child has a keeper");
                    thread::sleep(Duration::from_millis(1));
                }
                drop(Raw::in_group(&own, 1000));
            });
        }
    });
}

/// They are refused for good: what is left is a fork from a process in which nobody else allocates, and programs that are started.
fn handlers_refused() {
    fork_and(|| {
        let objects: Vec<Raw> = (1..1000).filter_map(Raw::new).collect();
        assert_eq!(objects.len(), 999);
        drop((objects, Raw::new(1 << 20)));
    });
    let before = seam::nr_refused(Point::ForkHandlers);
    let group = Group::root().create("no handlers").expect("it needs none");
    assert!(seam::nr_refused(Point::ForkHandlers) > before, "they are asked for again");
    drop(Raw::in_group(&group, 1000));
    let started = std::process::Command::new("true").status();
    assert!(started.expect("it ran").success());
    memcg::check();
}

#[test]
fn without_handlers_of_fork_they_are_asked_for_again() {
    const TEST: &str = "without_handlers_of_fork_they_are_asked_for_again";
    if is_case("from the beginning") {
        let _watchdog = Watchdog::new("a fork");
        let is_once = std::env::var(seam::AT_START).expect("set").ends_with(" 1 1");
        return if is_once { handlers_refused_once() } else { handlers_refused() };
    }
    assert!(at_start(TEST, Point::ForkHandlers, 1, 1));
    assert!(at_start(TEST, Point::ForkHandlers, 1, u64::MAX));
}

// ---- no exit hook -----------------------------------------------------------------------------------------

#[test]
fn a_thread_without_an_exit_hook_caches_nothing() {
    const TEST: &str = "a_thread_without_an_exit_hook_caches_nothing";
    if !is_case("no hook") {
        return pass(TEST, "no hook");
    }
    let group = Group::root().create("hookless").expect("memory");
    drop(Raw::in_group(&group, 100));
    memcg::drain();
    seam::refuse(Point::ExitHook, 1, u64::MAX);
    // A thread that allocates nothing before it is exposed.
    drop(Bare::new(&|| {
        seam::expose(true);
        for i in 1..200 {
            let object = Raw::in_group(&group, 10 * i).expect("the bypass serves it");
            assert_eq!(Group::of(object.as_ptr()), Some(group.clone()));
            drop(object);
            assert_eq!(group.usage(), 0, "what is freed is uncharged at once");
        }
        seam::expose(false);
    }));
    assert!(seam::nr_refused(Point::ExitHook) > 0);
    seam::relent();
    assert_eq!(group.usage(), 0, "the thread is gone, and left nothing");
    memcg::check();
}

// ---- no membarrier ----------------------------------------------------------------------------------------

/// Threads allocate and free in one group, across its limit, while others drain; `membarrier` is refused at the `n`-th call.
fn barrier_refused(n: u64) {
    const MAX: u64 = 256 << 10;
    let group = Group::root().builder("barrier").max(MAX).build().expect("memory");
    seam::refuse(Point::Barrier, n, u64::MAX);
    seam::expose_all(true);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for seed in 0..2 {
            let (group, stop) = (&group, &stop);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut held: Vec<Raw> = Vec::with_capacity(64);
                while !stop.load(Ordering::Relaxed) {
                    held.extend(Raw::in_group(group, 1 + random.below(3000)));
                    assert!(group.usage() <= MAX);
                    while held.len() > 50 {
                        held.swap_remove(random.below(held.len()));
                    }
                }
            });
        }
        let start = Instant::now();
        while seam::nr_refused(Point::Barrier) == 0 || start.elapsed() < Duration::from_millis(100)
        {
            memcg::drain();
        }
        stop.store(true, Ordering::Relaxed);
    });
    seam::relent();
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

#[test]
fn drains_are_exact_from_whichever_call_on_membarrier_is_refused() {
    const TEST: &str = "drains_are_exact_from_whichever_call_on_membarrier_is_refused";
    if let Some(n) = support::case().and_then(|case| case.strip_prefix("barrier ")?.parse().ok()) {
        let _watchdog = Watchdog::new("drains without membarrier");
        return barrier_refused(n);
    }
    for n in [1, 2, 3, 10, 50] {
        pass(TEST, &format!("barrier {n}"));
    }
}

// ---- no threads -------------------------------------------------------------------------------------------

/// As many threads as are wanted are refused; then there are some.
fn threads_refused(point: Point) {
    const MAX: u64 = 1 << 20;
    seam::refuse(point, 1, u64::MAX);
    seam::expose_all(true);
    let group = Group::root().builder("threadless").max(MAX).build().expect("it needs no thread");
    group.set_deadline(Duration::from_secs(20), Duration::from_secs(40));
    let hoard = std::sync::Arc::new(Hoard::new(Vec::with_capacity(1000)));
    let registration = ShrinkerBuilder::new("hoard").register(hoard.clone());
    let fill = || {
        let mut objects = hoard.lock();
        while objects.len() < 1000
            && let Some(object) = memcg::no_reclaim(|| Raw::in_group(&group, 4096))
        {
            objects.push(object);
        }
        objects.len()
    };
    assert!(fill() > 200);
    let start = Instant::now();
    // There is no worker: the answer comes, whatever it is, and the limit holds.
    let answered = Raw::in_group(&group, 64 << 10).is_some();
    assert!(group.usage() <= MAX);
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "nobody waits for a thread that is not there"
    );
    let watch = group.watch(memcg::Threshold::Usage(MAX / 2)).expect("it needs no thread");
    // News come at safe points.
    hoard.lock().truncate(10);
    memcg::drain();
    assert!(watch.wait(Duration::from_secs(60)), "usage fell");
    assert!(seam::nr_refused(point) > 0, "{answered}");
    // Threads again: the next that needs one starts it, and the worker makes room.
    seam::relent();
    let again = Group::root().create("with threads").expect("memory");
    drop(again);
    assert!(fill() > 200);
    let start = Instant::now();
    while Raw::in_group(&group, 64 << 10).is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "the worker makes room");
        drop(group.create("wakes").expect("memory"));
        thread::sleep(Duration::from_millis(10));
    }
    assert!(support::thread_names().iter().any(|name| name == "memcg-worker"));
    drop((registration, watch));
    hoard.lock().clear();
    memcg::drain();
    assert_eq!(group.usage(), 0);
    memcg::check();
}

#[test]
fn without_threads_limits_hold_and_nobody_hangs() {
    const TEST: &str = "without_threads_limits_hold_and_nobody_hangs";
    if is_case("no threads") {
        return threads_refused(Point::Thread);
    }
    if is_case("no attributes") {
        return threads_refused(Point::Attributes);
    }
    pass(TEST, "no threads");
    pass(TEST, "no attributes");
}
