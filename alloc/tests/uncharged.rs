//! What a tenant can make that nobody pays for: names are cut, and objects are counted and bounded.

mod support;

use std::future::Future;
use std::panic::catch_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use memcg::{
    Cache, Count, Group, Limit, Lru, ObjectCache, Scan, ShrinkControl, Shrinker, ShrinkerBuilder,
    Threshold, self_stat, set_max_objects,
};
use support::alone;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

struct Nothing;

impl Shrinker for Nothing {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Empty
    }
    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        Scan::Stop
    }
}

#[test]
fn a_name_of_any_length_is_kept_to_255_bytes() {
    let _alone = alone();
    let text = "é".repeat(100_000);
    let caches = [
        ObjectCache::<u64>::new(&text),
        ObjectCache::<u64>::unaccounted(&text),
        ObjectCache::<u64>::builder(&text).build(),
    ];
    for cache in &caches {
        assert_eq!(cache.name(), "é".repeat(127));
    }
    assert_eq!(ObjectCache::<u64>::new("short").name(), "short");
    drop(caches);
    assert!(Group::root().create(&text).is_err_and(|error| error.to_string().len() < 2000));
}

#[test]
fn every_object_counts_and_beyond_the_limit_there_is_none() {
    let _alone = alone();
    let group = Group::root().create("tenant").expect("fresh");
    assert_eq!(self_stat().objects, 0);
    let list = Lru::<u64>::new();
    let cache = Cache::<u64, u64>::new("a cache");
    let direct = Cache::<u64, u64>::direct("a direct one");
    let objects = ObjectCache::<u64>::new("objects");
    let watch = group.watch(Threshold::Usage(1)).expect("a watch");
    let shrinker = ShrinkerBuilder::new("nothing").register(Arc::new(Nothing));
    assert_eq!(self_stat().objects, 6);

    set_max_objects(6);
    assert!(catch_unwind(Lru::<u64>::new).is_err());
    assert!(catch_unwind(|| Cache::<u64, u64>::new("one more")).is_err());
    assert!(catch_unwind(|| Cache::<u64, u64>::direct("one more")).is_err());
    assert!(catch_unwind(|| ObjectCache::<u64>::new("one more")).is_err());
    assert!(group.watch(Threshold::Usage(1)).is_err_and(|error| error.is_system()));
    let refused = ShrinkerBuilder::new("one more").register(Arc::new(Nothing));
    assert!(format!("{refused:?}").contains("is_registered: false"));
    let task = pin!(group.reclaim_async(1 << 20));
    let Poll::Ready(Err(error)) = task.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it ends at once");
    };
    assert!(error.is_again());
    // What is there goes on.
    group.run(|| cache.insert(1, 1)).expect("no limit");
    assert_eq!(self_stat().objects, 6);

    drop((list, cache, direct, objects, watch, shrinker));
    assert_eq!(self_stat().objects, 0);
    set_max_objects(Limit::Max);
    drop(Lru::<u64>::new());
}

#[test]
fn a_tenant_that_makes_objects_without_end_leaves_others_theirs() {
    let _alone = alone();
    set_max_objects(400_u64);
    let tenants = Group::root().create("tenants").expect("fresh");
    let [greedy, other] = ["greedy", "other"].map(|name| tenants.create(name).expect("fresh"));
    assert_eq!([&greedy, &Group::root()].map(Group::max_objects), [100, 400].map(Limit::Bytes));
    tenants.set_max_objects(150_u64).expect("no other error");
    other.set_max_objects(Limit::Max).expect("no other error");

    let make = |group: &Group| catch_unwind(|| group.run(Lru::<u64>::new)).ok();
    let of_greedy: Vec<_> = std::iter::from_fn(|| make(&greedy)).collect();
    assert_eq!((of_greedy.len(), greedy.stat().nr_objects), (100, 100), "a quarter");
    let of_other: Vec<_> = std::iter::from_fn(|| make(&other)).collect();
    assert_eq!((of_other.len(), tenants.stat().nr_objects), (50, 150), "what both may have");
    let of_host = Lru::<u64>::new();
    assert_eq!((tenants.stat().nr_objects, self_stat().objects), (150, 151));

    // Whoever watches counts it, not who is watched; all kinds do.
    let watch = greedy.watch(Threshold::Usage(1)).expect("the host's");
    let refused = greedy.run(|| other.watch(Threshold::Usage(1)));
    let error = refused.expect_err("the tenant's");
    assert!(error.is_system() && error.to_string().contains("/tenants/greedy"), "{error}");
    assert!(catch_unwind(|| greedy.run(|| other.peak_reader())).is_err());
    let refused = greedy.run(|| ShrinkerBuilder::new("no").register(Arc::new(Nothing)));
    assert!(format!("{refused:?}").contains("is_registered: false"));
    let task = greedy.run(|| greedy.reclaim_async(1 << 20));
    assert!(task.is_done());
    assert_eq!(greedy.stat().nr_objects, 100);
    drop((watch, task, refused));

    // The end of the group makes them its parent's.
    drop(greedy);
    assert_eq!((tenants.stat().nr_objects, tenants.stat().nr_descendants), (150, 1));
    let greedy = tenants.create("greedy").expect("its name is free");
    assert_eq!(greedy.stat().nr_objects, 0);
    drop(of_greedy);
    assert_eq!(tenants.stat().nr_objects, 50);
    drop((of_other, of_host));
    assert_eq!((tenants.stat().nr_objects, other.stat().nr_objects), (0, 0));
    assert_eq!((self_stat().objects, Group::root().stat().nr_objects), (0, 0));
    set_max_objects(Limit::Max);
}

#[test]
fn objects_of_each_kind_count_for_the_group_that_made_them() {
    let _alone = alone();
    let group = Group::root().create("maker").expect("fresh");
    let objects = group.run(|| {
        let watch = Group::root().watch(Threshold::Usage(1)).expect("a watch");
        let shrinker = ShrinkerBuilder::new("nothing").register(Arc::new(Nothing));
        (Lru::<u64>::new(), Cache::<u64, u64>::new("cache"), watch, shrinker)
    });
    assert_eq!(group.stat().nr_objects, 4);
    let others = group.run(|| {
        let direct = Cache::<u64, u64>::direct("direct");
        let built = ObjectCache::<u64>::builder("built").shrink(|_| Scan::Stop).build();
        (direct, ObjectCache::<u64>::new("objects"), built, Group::root().peak_reader())
    });
    // A built cache that can be shrunk counts for two lists and a shrinker too.
    assert_eq!((group.stat().nr_objects, self_stat().objects), (11, 11));
    let top = Group::root().create("top").expect("fresh");
    let list = top.create("gone").expect("fresh").run(Lru::<u64>::new);
    assert_eq!((top.stat().nr_objects, top.stat().nr_contexts), (1, 1), "its place is kept");
    drop((objects, others, list));
    assert_eq!((group.stat().nr_objects, self_stat().objects), (0, 0));
    assert_eq!((top.stat().nr_objects, top.stat().nr_contexts), (0, 0));
}

#[test]
fn in_the_child_of_a_fork_watches_and_tasks_of_the_parent_do_not_count() {
    let _alone = alone();
    let group = Group::root().create("forks").expect("fresh");
    let watch = group.run(|| group.watch(Threshold::Usage(1))).expect("a watch");
    let list = group.run(Lru::<u64>::new);
    let task = group.run(|| group.reclaim_async(1 << 30));
    support::fork_and(|| {
        // A task that had ended counts until it is dropped.
        assert!((1..=2).contains(&group.stat().nr_objects), "the list's, and maybe the task's");
        drop((watch, task, list));
        assert_eq!((group.stat().nr_objects, self_stat().objects), (0, 0));
    });
}

/// Without its shrinker it would keep idle objects that nothing evicts.
#[test]
fn a_built_cache_has_all_that_counts_or_is_not_made() {
    let _alone = alone();
    let build = || ObjectCache::<u64>::builder("built").ctor(|| 1).build();
    set_max_objects(Limit::Max);
    let whole = build();
    let all = self_stat().objects;
    assert_eq!(all, 3, "the cache, a list, a shrinker");
    drop(whole);
    for room in 0..all {
        set_max_objects(room);
        assert!(catch_unwind(build).is_err(), "with room for {room}");
        assert_eq!(self_stat().objects, 0);
    }
    set_max_objects(all);
    drop(build());
    set_max_objects(Limit::Max);
}
