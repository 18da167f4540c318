//! Code of the program that never returns, on the workers: whoever it is not for is served all the same.

mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use memcg::{
    Cache, Count, EventKind, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder, Threshold,
};
use support::PATIENCE;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: u64 = 1 << 20;

/// Waits for a lock that nobody gives back.
struct Hangs;

impl Shrinker for Hangs {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Objects(100)
    }
    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        loop {
            std::thread::park();
        }
    }
}

/// A tenant at its limit whose entries only a worker can evict.
struct Served {
    group: Group,
    cache: Cache<u64, [u8; 1000]>,
    next: u64,
}

impl Served {
    fn new(name: &str) -> Self {
        let group = Group::root().builder(name).max(MIB).build().expect("fresh");
        // As long as a loaded machine may take to evict an entry; half of it for each call that holds a worker.
        group.set_deadline(Duration::from_millis(500), PATIENCE);
        let mut served = Served { group, cache: Cache::new("entries"), next: 0 };
        served.insert(2000);
        served
    }

    fn insert(&mut self, entries: u64) {
        let Served { group, cache, next } = self;
        for key in *next..*next + entries {
            group.run(|| cache.insert(key, [0; 1000])).expect("its own entries give");
        }
        *next += entries;
    }
}

#[test]
fn many_shrinkers_that_hang_refuse_nobody_else() {
    let mut good = Served::new("good");
    let bad = Group::root().builder("bad").max(MIB).build().expect("fresh");
    bad.set_deadline(Duration::from_millis(50), Duration::from_millis(100));
    let hang = |_| {
        let shrinker = ShrinkerBuilder::new("hangs").register(Arc::new(Hangs));
        shrinker.mark(&bad);
        shrinker
    };
    let hung: Vec<_> = (0..200).map(hang).collect();
    let most = bad.run(|| vec![0_u8; 700 << 10]);
    for _ in 0..6 {
        let more = bad.run(|| Vec::<u8>::new().try_reserve_exact(700 << 10));
        assert!(more.is_err());
        good.insert(1000);
    }
    let stat = memcg::self_stat();
    assert!((1..24).contains(&stat.held_workers), "{stat:?}");
    // They are asked for every group, and two of them hold a worker for each: what gave before is served beside them.
    // They never return, so they are never unregistered.
    std::mem::forget((hung, most));
}

/// A waker of a program that waits for a lock in it.
struct Stuck;

impl Wake for Stuck {
    fn wake(self: Arc<Self>) {
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn wakers_that_hang_keep_no_news_from_others() {
    let mut good = Served::new("awake");
    let bad = Group::root().create("asleep").expect("no limit");
    let waker = Waker::from(Arc::new(Stuck));
    let mut context = Context::from_waker(&waker);
    let watches: Vec<_> =
        (0..3).map(|_| bad.watch(Threshold::Usage(MIB)).expect("a watch")).collect();
    let heard = good.group.watch(Threshold::Event(EventKind::Max)).expect("a watch");
    let mut tasks: Vec<_> = (0..2).map(|_| bad.reclaim_async(1 << 40)).collect();
    for watch in &watches {
        assert!(watch.poll_changed(&mut context).is_pending());
    }
    for task in &mut tasks {
        drop(Pin::new(task).poll(&mut context));
    }
    let object = bad.run(|| vec![0_u8; 2 << 20]);
    for watch in &watches {
        assert!(watch.wait(PATIENCE), "the descriptor is readable before any waker is woken");
    }
    for _ in 0..3 {
        good.insert(1000);
        // More than it may ever have: its limit is met also where the worker kept room below it for the entries.
        let more = good.group.run(|| Vec::<u8>::new().try_reserve_exact(2 << 20));
        assert!(more.is_err());
        assert!(heard.wait(PATIENCE), "its limit was met");
    }
    let task = good.group.reclaim_async(1000);
    assert!(task.wait(PATIENCE).expect("it ends").is_ok());
    std::mem::forget((object, tasks));
}
