//! `ObjectCache` that is built: a constructor, idle objects by group, eviction, a shrink function.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memcg::{CacheBox, Group, ObjectCache, Scan};
use support::{Raw, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MAX: u64 = 256 << 10;

/// A group whose allocations wait for the worker for as long as a loaded machine may need to run it.
fn limited(name: &str) -> Group {
    let group = Group::root().builder(name).max(MAX).build().expect("fresh");
    group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    group
}

/// Takes room, and counts how many of it there are.
struct Counted {
    number: usize,
    live: Arc<AtomicUsize>,
    throws: bool,
    _room: [u8; 1000],
}

impl Counted {
    fn new(number: usize, live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self { number, live: live.clone(), throws: false, _room: [0; 1000] }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
        if self.throws {
            resume_unwind(Box::new(self.number));
        }
    }
}

/// A cache with a constructor that numbers what it makes, and how many there are.
fn numbered(name: &str, most: usize) -> (ObjectCache<Counted>, Arc<AtomicUsize>) {
    let (live, made) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let count = live.clone();
    let ctor = move || Counted::new(made.fetch_add(1, Ordering::SeqCst), &count);
    (ObjectCache::builder(name).ctor(ctor).keep_idle(most).build(), live)
}

fn get(cache: &ObjectCache<Counted>, group: &Group) -> CacheBox<Counted> {
    group.run(|| cache.get()).expect("there is room")
}

#[test]
fn an_object_is_made_once_and_is_taken_again_in_its_own_group_alone() {
    let _running = running();
    let (a, b) = (limited("oci-a"), limited("oci-b"));
    let (cache, live) = numbered("own", 10);
    drop([get(&cache, &a), get(&cache, &a)]);
    assert_eq!((cache.stat().live, cache.stat().idle), (0, 2));
    // The one that was used last comes first, whoever drops it and wherever.
    let last = get(&cache, &a);
    assert_eq!(last.number, 1);
    assert_eq!(get(&cache, &b).number, 2, "not another group's");
    assert_eq!(Group::of(&raw const *last), Some(a.clone()));
    b.run(|| drop(last));
    let (first, second) = (get(&cache, &a), get(&cache, &a));
    assert_eq!((first.number, second.number), (1, 0));
    assert_eq!(get(&cache, &a).number, 3, "no other is idle");
    let stat = cache.stat();
    assert_eq!((stat.live, stat.idle, stat.allocated, stat.reused), (2, 2, 4, 3));
    drop((first, second));
    // A value has a new object, and moving it out leaves none.
    let value = a.run(|| cache.alloc(Counted::new(100, &live))).expect("there is room");
    assert_eq!(CacheBox::into_inner(value).number, 100);
    assert_eq!((cache.stat().idle, live.load(Ordering::SeqCst)), (4, 4));
    cache.drop_idle();
    assert_eq!((cache.stat().idle, live.load(Ordering::SeqCst)), (0, 0));
    memcg::drain();
    assert_eq!((a.usage(), b.usage()), (0, 0));
}

#[test]
fn idle_objects_go_when_their_group_needs_room_the_oldest_first() {
    let _running = running();
    let (full, other) = (limited("oci-full"), limited("oci-other"));
    let (cache, live) = numbered("evicted", 1000);
    let fill = |group| drop((0..100).map(|_| get(&cache, group)).collect::<Vec<_>>());
    [&full, &other].into_iter().for_each(fill);
    assert_eq!(cache.stat().idle, 200);
    let object = Raw::in_group(&full, 200 << 10).expect("idle objects make room");
    assert!(full.usage() <= MAX);
    let stat = cache.stat();
    assert!(stat.evicted > 0 && stat.idle >= 100, "{stat:?}");
    assert_eq!(live.load(Ordering::SeqCst), stat.idle);
    // `drop` of the vector had the last one come back last.
    assert_eq!(get(&cache, &full).number, 99, "the one that was used last is there");
    drop(object);
    assert!(full.force_empty().is_ok());
    assert_eq!(cache.stat().idle, 100, "the others are another group's");
    memcg::drain();
    assert_eq!(full.usage(), 0);
}

#[test]
fn no_more_are_idle_than_was_said_and_none_outlives_the_last_handle() {
    let _running = running();
    let group = limited("oci-bound");
    let (cache, live) = numbered("bounded", 3);
    drop((0..10).map(|_| get(&cache, &group)).collect::<Vec<_>>());
    assert_eq!((cache.stat().idle, cache.stat().evicted), (3, 7));
    assert_eq!(get(&cache, &group).number, 9, "the oldest went");
    let (late, handle) = (get(&cache, &group), cache.clone());
    drop(cache);
    assert_eq!(live.load(Ordering::SeqCst), 3);
    drop(handle);
    assert_eq!(live.load(Ordering::SeqCst), 1, "idle ones went");
    drop(late);
    assert_eq!(live.load(Ordering::SeqCst), 0, "nobody is there to take it again");
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn idle_objects_of_a_group_that_goes_are_its_parents() {
    let _running = running();
    let parent = limited("oci-parent");
    let child = parent.create("child").expect("fresh");
    let (cache, live) = numbered("inherited", 10);
    drop(get(&cache, &child));
    drop(child);
    let object = get(&cache, &parent);
    assert_eq!((object.number, cache.stat().reused), (0, 1));
    drop(object);
    assert!(Raw::in_group(&parent, (256 << 10) - 100).is_some(), "it makes room there");
    assert_eq!(live.load(Ordering::SeqCst), 0);
}

#[test]
fn what_comes_back_is_reset() {
    let _running = running();
    let cache = ObjectCache::<Vec<u8>>::builder("reset")
        .ctor(|| Vec::with_capacity(100))
        .reset(Vec::clear)
        .build();
    let mut buffer = cache.get().expect("no limit");
    buffer.extend_from_slice(b"somebody's");
    let place = buffer.as_ptr();
    drop(buffer);
    let buffer = cache.get().expect("no limit");
    assert!(buffer.is_empty() && buffer.as_ptr() == place);
    // Where there is no constructor, the caller says what is made.
    let cache = ObjectCache::<u8>::builder("with").keep_idle(1).build();
    drop(cache.get_with(|| 7).expect("no limit"));
    assert_eq!(*cache.get_with(|| 8).expect("no limit"), 7);
    // Without either, nothing is kept.
    let cache = ObjectCache::<u8>::new("without");
    drop(cache.alloc(7).expect("no limit"));
    assert_eq!(*cache.get_with(|| 8).expect("no limit"), 8);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(cache.get()))).is_err());
}

#[test]
fn unaccounted_objects_are_idle_too_and_go_when_the_root_reclaims() {
    let _running = running();
    let cache = ObjectCache::<[u8; 100]>::builder("nobody").unaccounted().keep_idle(5).build();
    let group = limited("oci-nobody");
    drop(group.run(|| cache.get_with(|| [1; 100])).expect("it is not charged"));
    assert_eq!(*cache.get_with(|| [2; 100]).expect("it is not charged"), [1; 100]);
    assert_eq!(group.usage(), 0);
    let _ = Group::root().reclaim(1 << 40);
    assert_eq!(cache.stat().idle, 0);
}

type Held = Arc<Mutex<Vec<CacheBox<Counted>>>>;

/// A cache whose objects the program holds, and lets go of when it is told to.
fn shrunk(name: &str, most_idle: usize) -> (ObjectCache<Counted>, Held) {
    let held = Held::default();
    let shrunk = held.clone();
    let cache = ObjectCache::builder(name)
        .keep_idle(most_idle)
        .shrink(move |control| {
            let Ok(mut held) = shrunk.try_lock() else { return Scan::Stop };
            let is_meant = |object: &CacheBox<Counted>| {
                Group::of(&raw const **object).as_ref() == Some(control.group())
            };
            let mut left = control.nr_to_scan();
            let before = held.len();
            held.retain(|object| {
                let goes = left > 0 && is_meant(object);
                left -= usize::from(goes);
                !goes
            });
            Scan::Freed(before - held.len())
        })
        .build();
    (cache, held)
}

#[test]
fn a_shrink_function_lets_go_of_live_objects_of_the_group_that_needs_room() {
    let _running = running();
    let (full, other) = (limited("oci-shrink"), limited("oci-beside"));
    for most_idle in [0, 1000] {
        let (cache, held) = shrunk("shrunk", most_idle);
        let live = Arc::new(AtomicUsize::new(0));
        let add = |group: &Group, number| {
            let object = group.run(|| cache.alloc(Counted::new(number, &live)));
            let object = object.expect("older ones make room");
            memcg::unaccounted(|| held.lock().expect("not poisoned").push(object));
        };
        (0..50).for_each(|number| add(&other, number));
        (0..1000).for_each(|number| add(&full, number));
        assert!(full.usage() <= MAX);
        let kept = held.lock().expect("not poisoned").len();
        assert_eq!(cache.stat().live, kept);
        assert!((100..400).contains(&kept), "{kept}");
        assert_eq!(held.lock().expect("not poisoned")[49].number, 49, "not another group's");
        assert!(full.force_empty().is_ok());
        assert_eq!(held.lock().expect("not poisoned").len(), 50);
        held.lock().expect("not poisoned").clear();
        assert_eq!(cache.stat().idle, most_idle.min(50));
        drop(cache);
        assert_eq!(live.load(Ordering::SeqCst), 0);
    }
    memcg::drain();
    assert_eq!((full.usage(), other.usage()), (0, 0));
}

// ---- code that panics ---------------------------------------------------------------------------

fn thrown(f: impl FnOnce()) -> Option<usize> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    payload.downcast().ok().map(|number| *number)
}

#[test]
fn code_that_panics_leaves_every_object_dropped_once() {
    let _running = running();
    let live = Arc::new(AtomicUsize::new(0));
    let bomb = |number| {
        let mut object = Counted::new(number, &live);
        object.throws = true;
        object
    };
    let fill = |cache: &ObjectCache<Counted>| {
        let objects: Vec<_> =
            (0..10).map(|number| cache.alloc(bomb(number)).expect("no limit")).collect();
        drop(objects);
        assert_eq!(cache.stat().idle, 10);
    };
    let cache = ObjectCache::<Counted>::builder("bombs").keep_idle(10).build();
    fill(&cache);
    assert!(thrown(|| cache.drop_idle()).is_some(), "one panic goes on");
    assert_eq!((live.load(Ordering::SeqCst), cache.stat().idle), (0, 0));
    fill(&cache);
    // Evictions end what is thrown.
    drop(cache.alloc(bomb(10)).expect("no limit"));
    assert_eq!(cache.stat().idle, 10);
    assert!(thrown(|| drop(cache)).is_some(), "one panic goes on");
    assert_eq!(live.load(Ordering::SeqCst), 0);

    // A constructor, and a reset.
    let count = live.clone();
    let cache = ObjectCache::<Counted>::builder("panics")
        .ctor(|| resume_unwind(Box::new(3_usize)))
        .reset(|object| {
            if object.number == 4 {
                resume_unwind(Box::new(4_usize))
            }
        })
        .build();
    assert_eq!(thrown(|| drop(cache.get())), Some(3));
    let object = cache.get_with(|| Counted::new(4, &count)).expect("no limit");
    assert_eq!(thrown(|| drop(object)), Some(4));
    assert_eq!((live.load(Ordering::SeqCst), cache.stat().idle), (0, 0));
    let stat = cache.stat();
    assert_eq!((stat.live, stat.allocated), (0, 1));
}

/// Both use the cache that they are called from.
#[test]
fn constructors_and_drops_may_use_the_cache() {
    let _running = running();
    struct Nested(ObjectCache<Nested>, u32);
    impl Drop for Nested {
        fn drop(&mut self) {
            if self.1 == 0 {
                drop(self.0.get_with(|| Nested(self.0.clone(), 1)));
                self.0.drop_idle();
            }
        }
    }
    let cache = ObjectCache::<Nested>::builder("nested").keep_idle(2).build();
    for number in 0..3 {
        let make = || {
            drop(cache.get_with(|| Nested(cache.clone(), number)));
            Nested(cache.clone(), 0)
        };
        drop(cache.alloc_with(make).expect("no limit"));
        cache.drop_idle();
    }
    cache.drop_idle();
    assert_eq!(cache.stat().idle, 0);
}

#[test]
fn threads_take_and_give_back_while_groups_come_and_go() {
    let _running = running();
    let top = limited("oci-threads");
    let (cache, live) = numbered("threads", 8);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (cache, top) = (&cache, &top);
            scope.spawn(move || {
                for round in 0..200 {
                    let group = top.create(&format!("{thread}-{round}")).expect("fresh");
                    let objects: Vec<_> = (0..4).map(|_| get(cache, &group)).collect();
                    drop(group);
                    drop(objects);
                }
            });
        }
        scope.spawn(|| (0..200).for_each(|_| drop(top.reclaim(4000))));
    });
    let stat = cache.stat();
    assert_eq!((stat.live, stat.idle), (0, live.load(Ordering::SeqCst)));
    drop(cache);
    assert_eq!(live.load(Ordering::SeqCst), 0);
    memcg::drain();
    assert_eq!(top.usage(), 0);
}
