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
