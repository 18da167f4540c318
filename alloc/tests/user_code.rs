//! Code of the program that the library runs: what holds if it panics, comes back in, or never returns. The table of
//! all of it is `docs/user-code.md`; what is of one subject alone has its tests there (`cache_hostile`, `shrinkers`,
//! `refusal`, `watch`, `in_group`, `object_cache`).

mod support;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak, mpsc};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{
    Cache, Count, FutureExt, Group, Lru, LruNode, LruStatus, ObjectCache, Scan, ShrinkControl,
    Shrinker, ShrinkerBuilder, Threshold,
};
use support::{PATIENCE, Raw, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Counts its drops; throws its number in its drop, if it is told to.
#[derive(Clone)]
struct Bomb {
    number: u32,
    dropped: Arc<AtomicUsize>,
    throws: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        if self.throws {
            // As a panic, without the message.
            resume_unwind(Box::new(self.number));
        }
    }
}

const BOMBS: usize = 100;

/// Bombs of which every fifth throws.
fn bombs(dropped: &Arc<AtomicUsize>) -> impl Iterator<Item = Bomb> {
    let dropped = dropped.clone();
    (0..100).map(move |number| Bomb { number, dropped: dropped.clone(), throws: number % 5 == 0 })
}

/// What `f` throws; the panic goes its way once.
fn thrown(f: impl FnOnce()) -> Option<u32> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    Some(*payload.downcast().expect("a bomb's number"))
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

// ---- lists --------------------------------------------------------------------------------------

fn list_of_bombs(group: &Group, dropped: &Arc<AtomicUsize>) -> Lru<Bomb> {
    let lru = Lru::new();
    for (number, bomb) in bombs(dropped).enumerate() {
        let add = || assert!(lru.add(&LruNode::new(bomb)));
        if number % 2 == 0 { group.run(add) } else { add() }
    }
    lru
}

#[test]
fn a_list_of_values_whose_drops_panic_drops_them_all_and_the_next_list_is_empty() {
    let _running = running();
    let group = Group::root().create("bombs").expect("fresh");
    let dropped = Arc::new(AtomicUsize::new(0));
    let lru = list_of_bombs(&group, &dropped);
    assert!(thrown(|| drop(lru)).is_some(), "one panic goes on");
    assert_eq!(dropped.load(Ordering::SeqCst), BOMBS);
    // Of another type: what the last one left would be taken for its own.
    let texts = Lru::<&'static str>::new();
    assert_eq!([&group, &Group::root()].map(|group| texts.count(group)), [0, 0]);
    texts.check();
}

#[test]
fn a_list_that_is_dropped_while_its_thread_unwinds_ends_no_process() {
    let _running = running();
    let dropped = Arc::new(AtomicUsize::new(0));
    let lru = list_of_bombs(&Group::root(), &dropped);
    let first = thrown(|| {
        let _lru = lru;
        resume_unwind(Box::new(1000_u32));
    });
    assert_eq!((first, dropped.load(Ordering::SeqCst)), (Some(1000), BOMBS));
}

#[test]
fn a_walk_that_drops_a_value_which_panics_ends_there_and_goes_on_later() {
    let _running = running();
    let dropped = Arc::new(AtomicUsize::new(0));
    let lru = list_of_bombs(&Group::root(), &dropped);
    let walk = || {
        lru.walk(&Group::root(), usize::MAX, |_| LruStatus::Removed);
    };
    let mut panics = 0;
    while thrown(walk).is_some() {
        panics += 1;
        lru.check();
    }
    assert_eq!((panics, dropped.load(Ordering::SeqCst)), (BOMBS / 5, BOMBS));
}

#[test]
fn a_visitor_that_does_not_return_keeps_nobody_from_the_list() {
    let _running = running();
    let lru = Lru::new();
    let nodes: Vec<_> = (0..4).map(LruNode::new).collect();
    nodes.iter().for_each(|node| assert!(lru.add(node)));
    let (inside, goes_on) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            lru.walk(&Group::root(), 1, |_| {
                inside.wait();
                goes_on.wait();
                LruStatus::Removed
            })
        });
        inside.wait();
        assert!(lru.touch(&nodes[1]) && lru.remove(&nodes[2]) && lru.add(&LruNode::new(9)));
        assert_eq!(lru.walk(&Group::root(), 2, |_| LruStatus::Skip), 0);
        goes_on.wait();
    });
    assert_eq!(lru.count(&Group::root()), 3);
}

// ---- caches -------------------------------------------------------------------------------------

#[test]
fn a_cache_of_values_whose_drops_panic_drops_them_all() {
    let _running = running();
    let group = Group::root().create("cached bombs").expect("fresh");
    type Way = fn(Cache<u32, Bomb>, &Group);
    let ways: [Way; 3] =
        [|cache, _| cache.clear(), |cache, group| cache.clear_in(group), |cache, _| drop(cache)];
    for (way, clear) in ways.into_iter().enumerate() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cache = Cache::<u32, Bomb>::new("bombs");
        for bomb in bombs(&dropped) {
            assert!(group.run(|| cache.insert(bomb.number, bomb)).is_ok());
        }
        assert!(thrown(|| clear(cache, &group)).is_some(), "way {way}: one panic goes on");
        assert_eq!(dropped.load(Ordering::SeqCst), BOMBS, "way {way}");
    }
    // Where the thread unwinds already, that panic is the one.
    let dropped = Arc::new(AtomicUsize::new(0));
    let cache = Cache::<u32, Bomb>::new("bombs");
    for bomb in bombs(&dropped) {
        assert!(cache.insert(bomb.number, bomb).is_ok());
    }
    let first = thrown(|| {
        let _cache = cache;
        resume_unwind(Box::new(1000_u32));
    });
    assert_eq!((first, dropped.load(Ordering::SeqCst)), (Some(1000), BOMBS));
}

#[test]
fn an_eviction_whose_drop_does_not_return_keeps_its_own_cache_alone() {
    let _running = running();
    #[derive(Clone)]
    struct Waits(Arc<(AtomicBool, AtomicBool)>, #[expect(dead_code, reason = "room")] [u8; 1000]);
    impl Drop for Waits {
        fn drop(&mut self) {
            let (is_in, may_go) = &*self.0;
            if thread::current().name() == Some("memcg-worker")
                || thread::current().name().is_none()
            {
                is_in.store(true, Ordering::SeqCst);
                wait_for("told to go", || may_go.load(Ordering::SeqCst));
            }
        }
    }
    let gates = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
    let _ends = support::Sets(&gates.1);
    let (stuck, other) = ["stuck", "beside it"]
        .map(|name| Group::root().builder(name).max(64 << 10).build().expect("fresh"))
        .into();
    let cache = Cache::<u32, Waits>::new("stuck");
    let mut refused = 0;
    for key in 0..70 {
        let value = Waits(gates.clone(), [0; 1000]);
        refused += u32::from(stuck.run(|| cache.insert(key, value)).is_err());
    }
    wait_for("an eviction is under way", || gates.0.load(Ordering::SeqCst));
    assert!(refused > 0, "nobody waits for it longer than the deadline");
    // Lookups and changes of the same cache go on, and so do evictions of others.
    assert!((0..70).any(|key| cache.get(&key).is_some()));
    assert!(Group::root().run(|| cache.insert(1000, Waits(gates.clone(), [0; 1000]))).is_ok());
    other.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    let beside = Cache::<u32, Vec<u8>>::new("beside");
    for key in 0..200 {
        other.run(|| beside.insert(key, vec![0; 500])).expect("another worker makes room");
    }
    gates.1.store(true, Ordering::SeqCst);
}

#[test]
fn code_of_keys_that_does_not_return_keeps_no_other_key() {
    let _running = running();
    static STOP: AtomicBool = AtomicBool::new(false);
    static IS_IN: AtomicBool = AtomicBool::new(false);
    #[derive(Eq)]
    struct Asked(u32);
    impl std::hash::Hash for Asked {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }
    impl PartialEq for Asked {
        fn eq(&self, other: &Self) -> bool {
            IS_IN.store(true, Ordering::SeqCst);
            wait_for("told to go", || STOP.load(Ordering::SeqCst));
            self.0 == other.0
        }
    }
    let cache = Cache::<Asked, u32>::new("asked");
    cache.insert(Asked(1), 1).expect("no limit");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(cache.get(&Asked(1)), Some(1)));
        wait_for("it compares", || IS_IN.load(Ordering::SeqCst));
        for key in 2..100 {
            cache.insert(Asked(key), key).expect("no limit");
        }
        assert_eq!(cache.len(), 99);
        STOP.store(true, Ordering::SeqCst);
    });
}

// ---- scopes and conversions ---------------------------------------------------------------------

#[test]
fn scopes_end_where_their_code_panics() {
    let _running = running();
    let group = Group::root().builder("scope").max(64 << 10).build().expect("fresh");
    let in_all = || {
        memcg::unaccounted(|| {
            memcg::no_reclaim(|| memcg::fallible(|| group.run(|| resume_unwind(Box::new(7_u32)))))
        })
    };
    assert_eq!(thrown(in_all), Some(7));
    assert_eq!(Group::current(), Group::root());
    let object = group.run(|| Box::new(1));
    assert_eq!(Group::of(&*object), Some(group.clone()), "it is charged again");
    // A conversion that panics changes nothing.
    struct Panics;
    impl From<Panics> for memcg::Limit {
        fn from(_: Panics) -> Self {
            resume_unwind(Box::new(8_u32))
        }
    }
    assert_eq!(thrown(|| drop(group.set_max(Panics))), Some(8));
    assert_eq!(group.max().bytes(), Some(64 << 10));
}

// ---- objects of a cache -------------------------------------------------------------------------

#[test]
fn what_makes_an_object_may_use_its_cache() {
    let _running = running();
    let cache = ObjectCache::<u32>::new("nested");
    let outer = cache.alloc_with(|| *cache.alloc_with(|| 1).expect("no limit") + 1);
    assert_eq!(outer.as_deref().copied().ok(), Some(2));
    assert_eq!(cache.stat().live, 1);
}

// ---- futures and wakers -------------------------------------------------------------------------

/// Never ready; throws in its drop.
struct Endless(Bomb);

impl Future for Endless {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let _ = &self.0;
        Poll::Pending
    }
}

#[test]
fn a_future_whose_drop_panics_is_dropped_once_and_its_group_left() {
    let _running = running();
    let dropped = Arc::new(AtomicUsize::new(0));
    let endless = |number| Endless(Bomb { number, dropped: dropped.clone(), throws: true });
    let group = Group::root().create("future").expect("fresh");
    let future = endless(1).in_group(&group);
    assert_eq!(thrown(|| drop(future)), Some(1));
    assert_eq!(Group::current(), Group::root());
    // Over the limit it is dropped by the poll.
    group.set_on_limit(memcg::OnLimit::Overcommit);
    let hog = group.run(|| vec![0_u8; 1 << 20]);
    assert!(group.set_max(1000_u64).is_err());
    let mut future = Box::pin(endless(2).in_group(&group).until_over_limit());
    let context = &mut Context::from_waker(Waker::noop());
    let poll = || assert!(future.as_mut().poll(context).is_pending());
    assert_eq!(thrown(poll), Some(2));
    drop(future);
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
    assert_eq!(Group::current(), Group::root());
    drop(hog);
}

/// A waker that throws whatever is done with it last.
struct Rude(Bomb);

impl Wake for Rude {
    fn wake(self: Arc<Self>) {
        let _ = &self.0;
    }
}

#[test]
fn wakers_whose_drops_panic_hurt_nobody() {
    let _running = running();
    let dropped = Arc::new(AtomicUsize::new(0));
    let group = Group::root().create("rude").expect("fresh");
    let watch = group.watch(Threshold::Usage(1 << 20)).expect("made");
    let task = group.reclaim_async(1 << 40);
    for number in 0..4 {
        let bomb = Bomb { number, dropped: dropped.clone(), throws: true };
        let waker = Waker::from(Arc::new(Rude(bomb)));
        let mut context = Context::from_waker(&waker);
        assert!(watch.poll_changed(&mut context).is_pending());
        // The watch has another count of each: its drop is the watch's.
        drop(waker);
    }
    drop(watch);
    assert_eq!(dropped.load(Ordering::SeqCst), 4, "all are dropped, on this thread");
    // The same where the worker wakes them.
    let watch = group.watch(Threshold::Usage(1 << 20)).expect("made");
    for number in 4..8 {
        let bomb = Bomb { number, dropped: dropped.clone(), throws: true };
        let waker = Waker::from(Arc::new(Rude(bomb)));
        assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    }
    let object = Raw::in_group(&group, 2 << 20);
    wait_for("the worker wakes all", || dropped.load(Ordering::SeqCst) == 8);
    drop((object, task));
}

#[test]
fn a_waker_whose_clone_panics_is_not_left() {
    let _running = running();
    const NEVER: &str = "it was never cloned";
    static TABLE: RawWakerVTable = RawWakerVTable::new(
        |_| resume_unwind(Box::new(5_u32)),
        |_| panic!("{NEVER}"),
        |_| (),
        |_| (),
    );
    // SAFETY: the functions do nothing with the data.
    let waker = unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &TABLE)) };
    let group = Group::root().create("no clone").expect("fresh");
    let watch = group.watch(Threshold::Usage(1 << 20)).expect("made");
    let poll = || assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(thrown(poll), Some(5));
    let object = Raw::in_group(&group, 2 << 20);
    assert!(watch.wait(PATIENCE), "news comes all the same");
    drop(object);
}

#[test]
fn a_waker_may_end_the_watch_that_wakes_it() {
    let _running = running();
    struct Ends(Mutex<Option<memcg::Watch>>, mpsc::Sender<()>);
    impl Wake for Ends {
        fn wake(self: Arc<Self>) {
            let watch = self.0.lock().expect("not poisoned").take();
            drop(watch);
            let _ = self.1.send(());
        }
    }
    let group = Group::root().create("ends").expect("fresh");
    let watch = group.watch(Threshold::Usage(1 << 20)).expect("made");
    let (send, receive) = mpsc::channel();
    let ends = Arc::new(Ends(Mutex::new(None), send));
    let waker = Waker::from(ends.clone());
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    *ends.0.lock().expect("not poisoned") = Some(watch);
    let object = Raw::in_group(&group, 2 << 20);
    receive.recv_timeout(PATIENCE).expect("woken");
    drop(object);
}

// ---- shrinkers and hooks ------------------------------------------------------------------------

#[test]
fn a_shrinker_whose_drop_panics_ends_all_the_same() {
    let _running = running();
    struct Falls(Bomb);
    impl Shrinker for Falls {
        fn count(&self, _: &ShrinkControl<'_>) -> Count {
            Count::Objects(usize::from(self.0.throws))
        }
        fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
            Scan::Stop
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    for number in 0..3 {
        let bomb = Bomb { number, dropped: dropped.clone(), throws: true };
        drop(ShrinkerBuilder::new("falls").register(Arc::new(Falls(bomb))));
    }
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
}

#[test]
fn a_hook_may_be_replaced_from_inside_and_its_drop_may_panic() {
    let _running = running();
    let dropped = Arc::new(AtomicUsize::new(0));
    let second = Arc::new(AtomicU32::new(0));
    let (bomb, seen) = (Bomb { number: 1, dropped: dropped.clone(), throws: true }, second.clone());
    memcg::on_refusal(move |_| {
        let _ = &bomb;
        let seen = seen.clone();
        memcg::on_refusal(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        });
    });
    let refuse = |name: &str| {
        let group = Group::root().builder(name).max(4096).build().expect("fresh");
        assert!(Raw::in_group(&group, 100_000).is_none());
    };
    refuse("hook-1");
    wait_for("the first hook is replaced, and dropped", || dropped.load(Ordering::SeqCst) == 1);
    refuse("hook-2");
    wait_for("the second one is told", || second.load(Ordering::SeqCst) >= 1);
    memcg::on_refusal(|_| ());
}

/// An evicted value that holds the last handle of the cache itself.
#[test]
fn a_cache_may_be_dropped_by_its_own_eviction() {
    let _running = running();
    type Place = Mutex<Option<Arc<Cache<u32, Holds>>>>;
    #[derive(Clone)]
    struct Holds(Weak<Cache<u32, Holds>>, Arc<Place>);
    impl Drop for Holds {
        fn drop(&mut self) {
            let last = self.1.lock().expect("not poisoned").take();
            drop(last);
            assert!(self.0.upgrade().is_none());
        }
    }
    let group = Group::root().create("its own end").expect("fresh");
    let place = Arc::new(Mutex::new(None));
    let cache = Arc::new(Cache::<u32, Holds>::new("its own end"));
    for key in 0..20 {
        let value = Holds(Arc::downgrade(&cache), place.clone());
        assert!(group.run(|| cache.insert(key, value)).is_ok());
    }
    *place.lock().expect("not poisoned") = Some(cache);
    let _ = group.force_empty();
    wait_for("all went", || Arc::strong_count(&place) == 1);
}
