//! Groups, charges and limits with the allocator installed: one process, one tree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;

use memcg::{Group, Limit, OnLimit};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Tests share the process: each holds this for reading, and `check_at_rest` for writing.
static RUNNING: RwLock<()> = RwLock::new(());

fn running() -> RwLockReadGuard<'static, ()> {
    RUNNING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Checks every invariant while no other test runs.
fn check_at_rest(running: RwLockReadGuard<'static, ()>) {
    drop(running);
    let _alone = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
    memcg::check();
}

fn group(name: &str) -> Group {
    Group::root().create(name).expect("a fresh name")
}

/// Reserves `bytes` fallibly in `group`.
fn reserve(group: &Group, bytes: usize) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    group.run(|| value.try_reserve_exact(bytes)).ok()?;
    Some(value)
}

#[test]
fn the_depth_of_groups_is_bounded() {
    let running = running();
    let tenant = group("nests");
    assert_eq!((tenant.max_depth(), Group::root().max_depth()), (Limit::Bytes(64), Limit::Max));
    let mut last = tenant.clone();
    for _ in 0..64 {
        last = last.create("below").expect("within 64 levels");
    }
    let error = last.create("below").expect_err("too deep");
    assert!(error.is_again(), "{error}");
    assert_eq!((error.usage(), error.max()), (64, 64));
    assert!(error.to_string().starts_with("/nests: it has 64 levels"), "{error}");
    assert!(tenant.set_max_depth(65).expect_err("it was made shallow").is_unsupported());
    tenant.set_max_depth(3).expect("lower is allowed");
    tenant.set_max_depth(64).expect("and back");

    let deep = Group::root().builder("deep").max_depth(Limit::Max).build().expect("fresh");
    let mut last = deep.clone();
    for _ in 0..200 {
        last = last.create("below").expect("no bound");
    }
    let value = reserve(&last, 100_000).expect("no limit");
    assert_eq!(Group::of(value.as_ptr()), Some(last.clone()));
    assert!(deep.usage() >= 100_000);
    assert_eq!(Group::lookup(&last.path()), Some(last));
    drop(value);
    check_at_rest(running);
}

#[test]
fn readers_of_peaks_go_in_any_order() {
    let running = running();
    let group = group("peaks");
    let reset = |bytes: usize| {
        let mut reader = group.peak_reader();
        reader.reset();
        drop(reserve(&group, bytes).expect("no limit"));
        memcg::drain();
        reader
    };
    // Each has seen what came after it, and what the later ones saved for it.
    let mut readers: Vec<_> = (1..=50).rev().map(|i| Some((i << 20, reset(i << 20)))).collect();
    for gone in (0..50).step_by(3).chain((0..50).rev().step_by(7)) {
        readers[gone] = None;
        for (bytes, reader) in readers.iter().flatten() {
            assert!(
                (*bytes as u64..(*bytes as u64) + (1 << 19)).contains(&reader.get()),
                "{reader:?}"
            );
        }
        let mut last = group.peak_reader();
        last.reset();
    }
    drop(readers);
    check_at_rest(running);
}

#[test]
fn a_snapshot_of_many_groups_stops_others_for_some_at_a_time() {
    let running = running();
    let parent = group("many");
    let groups: Vec<_> = (0..2500).map(|i| parent.create(&i.to_string()).expect("fresh")).collect();
    let value = reserve(&groups[2400], 100_000).expect("no limit");
    let drains = memcg::self_stat().drains;
    let stats = memcg::snapshot(&groups);
    assert!(memcg::self_stat().drains >= drains + 3, "at most 1,024 at once");
    assert_eq!(stats.len(), 2500);
    assert!(stats[2400].usage >= 100_000 && stats[2399].usage == 0);
    drop((value, groups));
    check_at_rest(running);
}

#[test]
fn it_is_installed() {
    let _running = running();
    assert!(memcg::is_installed());
}

#[test]
fn objects_are_charged_for_what_they_take_and_usage_returns_to_zero() {
    let running = running();
    let group = group("sizes");
    for (request, takes) in [(1, 8), (8, 8), (9, 16), (100, 112), (4096, 4096), (65536, 65536)] {
        let before = group.stat().usage;
        let value = reserve(&group, request).expect("no limit");
        assert_eq!(group.stat().usage - before, takes, "{request} bytes");
        assert_eq!(Group::of(value.as_ptr()), Some(group.clone()));
        drop(value);
        memcg::drain();
        assert_eq!(group.usage(), 0, "{request} bytes");
    }
    let large = reserve(&group, 1 << 20).expect("no limit");
    let stat = group.stat();
    assert_eq!((stat.large, stat.slab), (1 << 20, 0));
    assert_eq!(Group::of(large.as_ptr()), Some(group.clone()));
    drop(large);
    assert_eq!(group.stat().usage, 0);
    check_at_rest(running);
}

#[test]
fn a_limit_is_exact_and_a_refusal_leaves_everything_as_it_was() {
    let running = running();
    let group = Group::root().builder("exact").max(1 << 20).build().expect("fresh");
    let mut held = Vec::new();
    while let Some(value) = reserve(&group, 1000) {
        assert!(group.usage() <= 1 << 20);
        held.push(value);
    }
    // 1,000 bytes take 1,024.
    assert_eq!(held.len(), 1024);
    assert_eq!(group.usage(), 1 << 20);
    assert!(group.events().oom >= 1);
    assert_eq!(group.events().forced, 0);
    held.pop();
    assert!(reserve(&group, 1000).is_some(), "a free makes room at once");
    drop(held);
    memcg::drain();
    assert_eq!(group.usage(), 0);
    check_at_rest(running);
}

#[test]
fn an_ancestor_refuses_for_its_whole_subtree() {
    let _running = running();
    let top = Group::root().builder("above").max(1 << 20).build().expect("fresh");
    let left = top.create("left").expect("fresh");
    let right = top.builder("right").max(Limit::Max).build().expect("fresh");
    let _half = reserve(&left, 600 << 10).expect("fits");
    assert!(reserve(&right, 600 << 10).is_none());
    assert!(reserve(&right, 300 << 10).is_some());
    assert_eq!(top.events_local().oom, 1);
    assert_eq!(right.events().oom, 0, "the refusal is the limiting group's");
}

#[test]
fn overcommit_is_let_through_counted_and_seen_by_check() {
    let _running = running();
    let group = Group::root()
        .builder("over")
        .max(1 << 20)
        .on_limit(OnLimit::OvercommitBy(1 << 20))
        .build()
        .expect("fresh");
    let _a = reserve(&group, 1 << 20).expect("fits");
    assert!(group.check().is_ok());
    assert!(memcg::fallible(|| reserve(&group, 4096)).is_none());
    let _b = reserve(&group, 512 << 10).expect("within the allowance");
    let over = group.check().expect_err("over its max");
    assert_eq!(over.group(), Some(group.clone()));
    assert!(group.events().forced >= 1);
    assert!(reserve(&group, 1 << 20).is_none(), "beyond the allowance");
}

#[test]
fn a_dropped_group_leaves_its_charges_to_its_parent() {
    let running = running();
    let parent = group("parent");
    let child = parent.create("child").expect("fresh");
    let small: Vec<Box<[u8; 100]>> = child.run(|| (0..100).map(|_| Box::new([0; 100])).collect());
    let large = reserve(&child, 1 << 20).expect("no limit");
    let before = parent.stat().usage;
    drop(child);
    assert_eq!(Group::lookup("/parent/child"), None);
    assert_eq!(Group::of(large.as_ptr()), Some(parent.clone()));
    assert_eq!(Group::of(&raw const *small[7]), Some(parent.clone()));
    assert_eq!(parent.stat().usage, before);
    assert!(parent.stat().nr_contexts >= 1);
    drop((small, large));
    memcg::drain();
    assert_eq!(parent.usage(), 0);
    assert_eq!(parent.stat().nr_contexts, 0);
    check_at_rest(running);
}

#[test]
fn zeroed_memory_is_zero_and_realloc_keeps_content_and_payer() {
    let running = running();
    let first = group("first payer");
    let second = group("second payer");
    for size in [5, 100, 5000, 80_000, 3 << 20] {
        drop(first.run(|| vec![0xAA_u8; size]));
        assert!(first.run(|| vec![0_u8; size]).iter().all(|&byte| byte == 0), "{size} bytes");
    }
    let mut value = first.run(|| (0..=255_u8).collect::<Vec<_>>());
    for target in [300, 5_000, 40_000, 1 << 20, 8 << 20] {
        second.run(|| value.reserve_exact(target - value.len()));
        assert!(value.iter().copied().eq(0..=255), "grown to {target}");
    }
    assert_eq!(Group::of(value.as_ptr()), Some(second.clone()), "moved, the current group pays");
    second.run(|| value.shrink_to_fit());
    assert!(value.iter().copied().eq(0..=255));
    drop(value);
    memcg::drain();
    assert_eq!((first.usage(), second.usage()), (0, 0));
    check_at_rest(running);
}

#[test]
fn a_refused_realloc_leaves_the_old_block() {
    let _running = running();
    let group = Group::root().builder("realloc").max(256 << 10).build().expect("fresh");
    let mut value = reserve(&group, 200 << 10).expect("fits");
    value.resize(200 << 10, 7);
    let before = group.usage();
    assert!(group.run(|| value.try_reserve_exact(1 << 20)).is_err());
    assert!(value.iter().all(|&byte| byte == 7));
    assert_eq!(group.usage(), before);
}

#[test]
fn impossible_layouts_are_null() {
    let _running = running();
    let mut value = Vec::<u8>::new();
    assert!(value.try_reserve_exact(isize::MAX as usize).is_err());
    assert!(value.try_reserve_exact(isize::MAX as usize - 4096).is_err());
    let group = group("impossible");
    assert!(group.run(|| value.try_reserve_exact(isize::MAX as usize - 65536)).is_err());
    assert_eq!(group.usage(), 0);
}

#[test]
fn any_alignment_is_served() {
    let _running = running();
    let group = group("aligned");
    let _scope = group.enter();
    for shift in 0..=21 {
        for size in [1, 24, 100, 5000, 70_000] {
            let layout = std::alloc::Layout::from_size_align(size, 1 << shift).expect("valid");
            // SAFETY: the size is not 0.
            let object = unsafe { std::alloc::alloc(layout) };
            assert!(!object.is_null() && object.addr().is_multiple_of(1 << shift));
            assert_eq!(Group::of(object), Some(group.clone()), "{layout:?}");
            // SAFETY: allocated above with this layout.
            unsafe { std::alloc::dealloc(object, layout) };
        }
    }
    memcg::drain();
    // The scope's own allocations are gone, too.
    assert_eq!(group.usage(), 0);
}

#[test]
fn scopes_nest_and_unaccounted_is_nobodys() {
    let _running = running();
    let outer = group("outer scope");
    let inner = outer.create("inner").expect("fresh");
    outer.run(|| {
        assert_eq!(Group::current(), outer);
        inner.run(|| {
            assert_eq!(Group::current(), inner);
            let free = memcg::unaccounted(|| {
                assert_eq!(Group::current(), Group::root());
                Box::new([1_u8; 50])
            });
            assert_eq!(Group::of(&raw const *free), None);
            let again = memcg::unaccounted(|| inner.run(|| Box::new([1_u8; 50])));
            assert_eq!(Group::of(&raw const *again), Some(inner.clone()));
        });
        assert_eq!(Group::current(), outer);
    });
    assert_eq!(Group::current(), Group::root());
}

#[test]
fn a_leaked_scope_charges_the_nearest_live_ancestor_and_never_a_stranger() {
    let _running = running();
    thread::spawn(|| {
        let parent = group("leaky parent");
        let child = parent.create("leaky").expect("fresh");
        std::mem::forget(child.enter());
        drop(child);
        let value = Box::new([0_u8; 64]);
        assert_eq!(Group::of(&raw const *value), Some(parent.clone()));
        drop(parent);
        let value = Box::new([0_u8; 64]);
        assert_eq!(Group::of(&raw const *value), None);
        let strangers: Vec<Group> = (0..100).map(|i| group(&format!("stranger {i}"))).collect();
        let value = Box::new([0_u8; 64]);
        assert_eq!(Group::of(&raw const *value), None);
        memcg::drain();
        assert!(strangers.iter().all(|stranger| stranger.usage() == 0));
    })
    .join()
    .expect("no panic");
}

#[test]
fn threads_free_what_others_allocated_and_all_returns_to_zero() {
    let running = running();
    let groups: Vec<Group> = (0..8)
        .map(|i| Group::root().builder(&format!("mixed {i}")).max(4 << 20).build().expect("fresh"))
        .collect();
    let stop = AtomicBool::new(false);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| std::sync::mpsc::sync_channel::<Vec<u8>>(64)).unzip();
    thread::scope(|scope| {
        for (index, receiver) in receivers.into_iter().enumerate() {
            let (groups, senders) = (&groups, senders.clone());
            scope.spawn(move || {
                let mut random = index as u64 + 1;
                let mut held = Vec::new();
                for turn in 0..20_000_u64 {
                    random =
                        random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let group = &groups[(random >> 33) as usize % groups.len()];
                    let size =
                        1 + (random >> 40) as usize % if turn % 50 == 0 { 60_000 } else { 700 };
                    if let Some(mut value) = reserve(group, size) {
                        value.resize(size, turn.to_le_bytes()[0]);
                        held.push(value);
                    }
                    assert!(group.usage() <= 4 << 20);
                    if held.len() > 100 {
                        let value = held.swap_remove((random >> 20) as usize % held.len());
                        assert!(value.iter().all(|&byte| byte == value[0]), "nobody wrote here");
                        let _ = senders[(turn % 4) as usize].try_send(value);
                    }
                    drop(receiver.try_recv());
                }
            });
        }
        drop(senders);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memcg::drain();
                thread::sleep(std::time::Duration::from_millis(1));
                if std::thread::panicking() {
                    break;
                }
                if groups.iter().all(|g| g.usage() == 0) {
                    break;
                }
            }
        });
        thread::sleep(std::time::Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
    });
    memcg::drain();
    for group in &groups {
        assert_eq!(group.usage(), 0, "{group:?}");
    }
    check_at_rest(running);
}
