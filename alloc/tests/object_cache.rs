//! `ObjectCache`: charged or not, refused instead of aborting, counted by name.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memcg::{CacheBox, Group, ObjectCache};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[test]
fn objects_are_charged_where_they_are_made() {
    let group = Group::root().create("oc-charged").expect("made");
    let cache = ObjectCache::<[u8; 500]>::new("buffers");
    let object = group.run(|| cache.alloc([1; 500])).expect("there is no limit");
    assert_eq!(Group::of(&raw const *object), Some(group.clone()));
    assert_eq!((cache.name(), CacheBox::cache_name(&object)), ("buffers", "buffers"));
    assert!(group.usage() >= 500);
    drop(object);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn unaccounted_objects_are_nobodys() {
    let group = Group::root().builder("oc-nobody").max(100).build().expect("made");
    let cache = ObjectCache::<[u8; 500]>::unaccounted("nobody");
    let object = group.run(|| cache.alloc([1; 500])).expect("it is not charged");
    assert_eq!(Group::of(&raw const *object), None);
    assert!(!cache.is_accounted());
    assert_eq!(group.usage(), 0);
}

#[test]
fn the_limit_refuses_and_the_value_is_not_made() {
    let group = Group::root().builder("oc-limit").max(64 << 10).build().expect("made");
    let cache = ObjectCache::<[u8; 1000]>::new("limited");
    let mut objects = Vec::with_capacity(100);
    let over = loop {
        match group.run(|| cache.alloc_with(|| [0; 1000])) {
            Ok(object) => objects.push(object),
            Err(over) => break over,
        }
    };
    assert_eq!(over.group(), Some(group.clone()));
    assert!(!over.is_system());
    assert!(over.requested() >= 1000 && over.max() == 64 << 10);
    let refused = group.run(|| cache.alloc_with(|| panic!("there is no room")));
    assert!(refused.is_err());
    let stat = cache.stat();
    assert_eq!((stat.live, stat.allocated), (objects.len(), objects.len() as u64));
    assert_eq!((stat.refused, stat.object_size), (2, 1000));
    assert!(group.usage() <= 64 << 10);
    objects.clear();
    assert_eq!(cache.stat().live, 0);
    assert!(group.run(|| cache.alloc([0; 1000])).is_ok(), "there is room again");
}

#[test]
fn objects_outlive_their_cache_and_their_group() {
    let parent = Group::root().create("oc-parent").expect("made");
    let child = parent.create("child").expect("made");
    let cache = ObjectCache::<String>::new("names");
    let other_handle = cache.clone();
    let mut object = child.run(|| cache.alloc("a".to_owned())).expect("there is no limit");
    assert_eq!(other_handle.stat().live, 1);
    drop((cache, other_handle, child));
    object.push('b');
    assert_eq!(*object, "ab");
    assert_eq!(Group::of(&raw const *object), Some(parent));
    assert_eq!(CacheBox::into_inner(object), "ab");
}

#[test]
fn each_object_is_dropped_once_also_where_code_panics() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted(bool);
    impl Drop for Counted {
        fn drop(&mut self) {
            LIVE.fetch_sub(1, Ordering::Relaxed);
            assert!(!self.0, "told to");
        }
    }
    let counted = |panics| {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Counted(panics)
    };
    let cache = ObjectCache::<Counted>::new("counted");
    let objects = [false, true, false].map(|panics| cache.alloc(counted(panics)).expect("room"));
    for object in objects {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
    }
    let making = AssertUnwindSafe(|| drop(cache.alloc_with(|| panic!("told to"))));
    assert!(catch_unwind(making).is_err());
    drop(CacheBox::into_inner(cache.alloc(counted(false)).expect("room")));
    assert_eq!((LIVE.load(Ordering::Relaxed), cache.stat().live), (0, 0));
}

#[test]
fn objects_without_a_size_and_with_a_large_alignment() {
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "it takes room")] [u8; 4096]);
    let units = ObjectCache::<()>::new("units");
    let pages = ObjectCache::<Page>::new("pages");
    let objects: Vec<_> = (0..10).map(|_| units.alloc(()).expect("no room is needed")).collect();
    assert_eq!(units.stat().live, 10);
    drop(objects);
    let page = pages.alloc(Page([0; 4096])).expect("there is no limit");
    assert!((&raw const *page).is_aligned());
}

#[test]
fn threads_share_a_cache() {
    let cache = Arc::new(ObjectCache::<[u64; 8]>::new("shared"));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut kept = Vec::new();
                for i in 0..5_000 {
                    let object = cache.alloc([thread; 8]).expect("there is no limit");
                    if i % 3 == 0 {
                        kept.push(object);
                    }
                    if kept.len() > 50 {
                        assert!(kept.drain(..).all(|object| *object == [thread; 8]));
                    }
                }
            });
        }
    });
    let stat = cache.stat();
    assert_eq!((stat.live, stat.allocated, stat.refused), (0, 20_000, 0));
}
