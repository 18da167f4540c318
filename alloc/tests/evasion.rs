//! How a tenant could take memory that it does not pay for: rows of the table of `SECURITY.md` that no other test
//! shows.

mod support;

use memcg::{Group, GroupBuilder, Limit};
use support::{Raw, alone};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: usize = 1 << 20;

/// Bytes that the process has in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with("Rss:")).expect("the kernel names it");
    line.split_whitespace().nth(1).expect("a number").parse::<usize>().expect("a number") << 10
}

/// Three tenants of 10 MiB after each other, under the same name, each of which leaves 9 MiB behind; answers how
/// much of it was granted.
fn three_generations(parent: &Group) -> Vec<Raw> {
    let mut left = Vec::new();
    for _ in 0..3 {
        let tenant =
            parent.builder("tenant").max(10 * MIB as u64).build().expect("its name is free");
        left.extend((0..9).map_while(|_| Raw::in_group(&tenant, MIB)));
    }
    left
}

#[test]
fn what_a_dropped_tenant_leaves_is_its_limited_parents() {
    let _alone = alone();
    let tenants = Group::root().builder("tenants").max(20 * MIB as u64).build().expect("fresh");
    let left = three_generations(&tenants);
    assert_eq!(left.len(), 20, "all generations together have what the parent has");
    assert_eq!(tenants.usage(), 20 * MIB as u64);
    assert_eq!(Group::of(left[0].as_ptr()), Some(tenants.clone()));
    drop(left);
    assert_eq!(tenants.stat().usage, 0);
}

#[test]
fn what_a_dropped_tenant_leaves_is_nobodys_where_the_root_is_untracked() {
    let _alone = alone();
    let left = three_generations(&Group::root());
    assert_eq!(left.len(), 27, "each generation has its 10 MiB");
    assert_eq!((Group::of(left[0].as_ptr()), Group::root().usage()), (None, 0));
}

/// How many MiB a thread gets that leaks a scope of `tenant`, which goes then; 100 at most.
fn by_a_leaked_scope(tenant: Group) -> usize {
    let work = move || {
        std::mem::forget(tenant.enter());
        drop(tenant);
        let got: Vec<_> = (0..100).map_while(|_| Raw::new(MIB)).collect();
        got.len()
    };
    std::thread::spawn(work).join().expect("no panic")
}

#[test]
fn a_scope_that_is_leaked_pays_as_the_limited_parent_or_as_nobody() {
    let _alone = alone();
    let tenants = Group::root().builder("all tenants").max(20 * MIB as u64).build().expect("fresh");
    let tenant = |parent: &Group| parent.builder("leaks").max(MIB as u64).build().expect("fresh");
    let got = by_a_leaked_scope(tenant(&tenants));
    assert!((10..=20).contains(&got), "{got} MiB of the parent's 20");
    assert_eq!(
        by_a_leaked_scope(tenant(&Group::root())),
        100,
        "nobody pays where the root is untracked"
    );
}

#[test]
fn a_handle_is_all_that_it_takes() {
    let _alone = alone();
    let tenant = Group::root().builder("its own master").max(MIB as u64).build().expect("fresh");
    tenant.run(|| {
        Group::current().set_max(Limit::Max).expect("who has a handle may");
        assert!(Raw::new(2 * MIB).is_some());
        let unaccounted = memcg::unaccounted(|| Raw::new(MIB)).expect("nobody's");
        assert_eq!(Group::of(unaccounted.as_ptr()), None);
    });
}

#[test]
fn a_gone_group_of_which_something_lives_costs_its_heir_what_lives() {
    let _alone = alone();
    let heir = Group::root().builder("heir").max(64 << 10).build().expect("fresh");
    let mut left = Vec::with_capacity(1 << 16);
    while let Some(object) = Raw::in_group(&heir.create("short").expect("its name is free"), 8) {
        left.push(object);
    }
    // So the bytes of a context are as many times as the heir's limit has room for 8.
    let contexts = heir.stat().nr_contexts;
    assert!(contexts <= (64 << 10) / 8, "{contexts}");
    assert!(left.len() > 4000, "{}", left.len());
    drop(left);
    assert_eq!(heir.stat().nr_contexts, 0);
}

#[test]
fn who_passes_objects_on_pays_for_them_and_who_frees_them_does_not_matter() {
    let _alone = alone();
    let [giver, taker] = ["giver", "taker"].map(|name| Group::root().create(name).expect("fresh"));
    let objects: Vec<_> =
        (0..100).map(|_| Raw::in_group(&giver, 1000).expect("no limit")).collect();
    assert_eq!((giver.stat().usage, taker.stat().usage), (102_400, 0));
    std::thread::scope(|scope| {
        scope.spawn(|| taker.run(|| drop(objects)));
    });
    assert_eq!((giver.stat().usage, taker.stat().usage), (0, 0));
}

#[test]
fn what_errors_and_builders_hold_for_nobody_is_bounded() {
    let _alone = alone();
    let name = "n".repeat(255);
    let mut last = Group::root().builder("top").max_depth(Limit::Max).build().expect("fresh");
    for _ in 0..64 {
        last = last.create(&name).expect("no bound");
    }
    let long = "x".repeat(MIB);
    let before = resident();
    // 64 names of 255 bytes, 10,000 times, are 160 MB; 500 names of 1 MiB are more.
    let errors: Vec<_> = (0..10_000).map(|_| last.create("a/b").expect_err("bad")).collect();
    let builders: Vec<GroupBuilder> = (0..500).map(|_| last.builder(&long)).collect();
    let held = resident().saturating_sub(before);
    assert!(held < 40 * MIB, "{held} bytes for {} and {}", errors.len(), builders.len());
    assert!(errors[0].to_string().contains("nnn: "), "{}", errors[0]);
    let error = builders[0].clone().build().expect_err("too long");
    assert!(error.is_invalid() && error.to_string().contains("255"), "{error}");
}
