//! The crate is linked, but the system's allocator serves the process: it says so, and nothing
//! panics or pretends.

use std::sync::Arc;
use std::thread;

use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};

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
fn it_says_that_it_is_not_installed() {
    assert!(!memcg::is_installed());
    let error = Group::root().create("tenant").expect_err("nothing could be charged");
    assert!(error.is_unsupported(), "{error}");
    assert!(error.to_string().contains("global_allocator"), "{error}");
    let error = Group::root().builder("tenant").max(1 << 20).build().expect_err("as above");
    assert!(error.is_unsupported(), "{error}");
    assert!(Group::lookup("/tenant").is_none());
    let error = Group::root().watch(memcg::Threshold::Usage(1)).expect_err("nothing is charged");
    assert!(error.is_unsupported(), "{error}");
    let task = Group::root().reclaim_async(1);
    let result = task.wait(std::time::Duration::from_secs(1)).expect("it is over");
    assert!(result.is_err_and(|error| error.is_again()), "there is nothing to reclaim");
    assert!(!memcg::is_installed(), "asking changes nothing");
}

#[test]
fn everything_else_is_harmless() {
    let root = Group::root();
    let value = Box::new([1_u8; 100]);
    let large = vec![1_u8; 1 << 20];
    assert_eq!(Group::of(&raw const *value), None);
    assert_eq!(Group::of(large.as_ptr()), None);
    assert_eq!(Group::of(std::ptr::null::<u8>()), None);
    assert_eq!(Group::current(), root);
    assert_eq!((root.name(), root.path()), (String::new(), "/".to_owned()));
    assert_eq!(root.parent(), None);
    assert!(root.children().is_empty());
    assert_eq!(Group::lookup("/"), Some(root.clone()));

    assert_eq!(root.run(|| vec![1_u8; 1000].len()), 1000);
    {
        let _entered = root.enter();
        let _owned = root.clone().enter_owned();
        assert_eq!(memcg::unaccounted(|| vec![2_u8; 1000].len()), 1000);
        assert_eq!(memcg::no_reclaim(|| vec![3_u8; 1000].len()), 1000);
        assert_eq!(memcg::fallible(|| vec![4_u8; 1000].len()), 1000);
    }
    memcg::drain();
    memcg::purge();
    memcg::check();
    assert_eq!((root.usage(), root.peak()), (0, 0));
    let stat = root.stat();
    assert_eq!((stat.usage, stat.slab, stat.large, stat.nr_descendants), (0, 0, 0, 0));
    assert!(root.classes().iter().all(|class| class.objects == 0));
    assert_eq!(memcg::snapshot(std::slice::from_ref(&root)).len(), 1);
    assert_eq!(memcg::self_stat().tags, 0);
    assert_eq!(root.events(), root.events_local());
    assert!(root.check().is_ok());
    assert!(root.set_max(1 << 20).expect_err("untracked").is_unsupported());
    root.set_max_descendants(10).expect("allowed");

    assert_eq!(root.reclaim(0).expect("nothing is easy"), 0);
    assert!(root.reclaim(1).expect_err("there is nothing").is_again());
    assert!(root.shrink_to(0).is_ok());
    assert_eq!(root.force_empty().expect("always"), 0);
    let registration = ShrinkerBuilder::new("nothing").register(Arc::new(Nothing));
    registration.mark(&root);
    assert!(root.reclaim(1).expect_err("there is nothing").is_again());
    drop(registration);
    let mut peak = root.peak_reader();
    peak.reset();
    assert_eq!(peak.get(), 0);

    thread::spawn(|| drop(Group::root().run(|| vec![0_u8; 100]))).join().expect("no panic");
    drop((value, large));
}
