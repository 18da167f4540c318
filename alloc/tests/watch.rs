//! Hearing of a group: thresholds, events, pressure, its end; by every way of waiting.

mod support;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{
    Count, EventKind, Group, OnLimit, Scan, ShrinkControl, Shrinker, ShrinkerBuilder, Threshold,
    Watch,
};
use support::future::{Unpark, block_on};
use support::{PATIENCE, Raw, alone, fork_and, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: usize = 1 << 20;

fn usage(group: &Group, bytes: usize) -> Watch {
    group.watch(Threshold::Usage(bytes as u64)).expect("a watch")
}

/// Long enough for a delivery that must not come to have come.
fn nothing_comes(watch: &Watch) -> bool {
    !watch.wait(Duration::from_millis(300))
}

#[test]
fn usage_is_told_of_when_it_crosses_up_and_when_it_crosses_down() {
    let _running = running();
    let group = Group::root().create("up-and-down").expect("fresh");
    let watches = [1, 2, 4, 8].map(|mib| usage(&group, mib * MIB));
    let object = Raw::in_group(&group, 3 * MIB).expect("no limit");
    assert!(watches[0].wait(PATIENCE) && watches[1].wait(PATIENCE));
    assert!(nothing_comes(&watches[2]) && !watches[0].try_wait(), "news is taken once");
    drop(object);
    assert!(watches[0].wait(PATIENCE) && watches[1].wait(PATIENCE));
    assert!(nothing_comes(&watches[3]) && !watches[2].try_wait());
    // At exactly the threshold it has risen, one byte below it has fallen.
    let exact = Raw::in_group(&group, 5 * MIB).expect("no limit");
    memcg::drain();
    let at = usage(&group, usize::try_from(group.usage()).expect("64-bit"));
    drop(exact);
    assert!(at.wait(PATIENCE));
}

#[test]
fn a_crossing_there_and_back_is_not_missed() {
    let _running = running();
    let group = Group::root().create("there-and-back").expect("fresh");
    let watch = usage(&group, 4 * MIB);
    for turn in 0..50 {
        drop(Raw::in_group(&group, 8 * MIB).expect("no limit"));
        assert!(watch.wait(PATIENCE), "turn {turn}");
        // Up and down may be told together, or one by one.
        while watch.wait(Duration::from_millis(20)) {}
    }
}

#[test]
fn many_small_objects_cross_within_what_a_thread_charges_ahead() {
    let _running = running();
    let group = Group::root().create("small-objects").expect("fresh");
    let watch = usage(&group, MIB);
    let mut objects = Vec::new();
    while objects.len() * 128 < MIB - 64 * 1024 {
        objects.push(Raw::in_group(&group, 128).expect("no limit"));
    }
    assert!(!watch.try_wait(), "what is ahead is 32 KiB at most");
    while objects.len() * 128 < MIB {
        objects.push(Raw::in_group(&group, 128).expect("no limit"));
    }
    assert!(watch.wait(PATIENCE));
    drop(objects);
    // What the thread keeps for reuse is charged until it is drained.
    memcg::drain();
    assert!(watch.wait(PATIENCE));
}

#[test]
fn a_parent_hears_of_its_children_and_so_does_the_root() {
    let _alone = alone();
    let parent = Group::root().create("hears").expect("fresh");
    let child = parent.create("child").expect("fresh");
    let (own, sibling) = (usage(&parent, 2 * MIB), parent.create("sibling").expect("fresh"));
    let quiet = usage(&sibling, 1);
    memcg::drain();
    let base = usize::try_from(Group::root().usage()).expect("64-bit");
    let root = usage(&Group::root(), base + 16 * MIB);
    let object = Raw::in_group(&child, 32 * MIB).expect("no limit");
    assert!(own.wait(PATIENCE), "a level above the payer");
    assert!(root.wait(PATIENCE), "the sum of the root's children");
    drop(object);
    assert!(own.wait(PATIENCE) && root.wait(PATIENCE));
    assert!(!quiet.try_wait());
}

#[test]
fn each_event_is_told_to_who_watches_it_and_to_the_groups_above() {
    let _running = running();
    let parent = Group::root().create("events").expect("fresh");
    let child = parent.builder("child").max(MIB as u64).build().expect("fresh");
    let on = |group: &Group, kind| group.watch(Threshold::Event(kind)).expect("a watch");
    let [max, oom, high, forced] =
        [EventKind::Max, EventKind::Oom, EventKind::High, EventKind::Forced]
            .map(|kind| [on(&child, kind), on(&parent, kind), on(&Group::root(), kind)]);
    assert!(Raw::in_group(&child, 2 * MIB).is_none());
    for watch in max.iter().chain(&oom) {
        assert!(watch.wait(PATIENCE), "{watch:?}");
    }
    assert!(!forced[0].try_wait() && !high[0].try_wait());
    child.set_on_limit(OnLimit::Overcommit);
    child.set_high(1000).expect("tracked");
    drop(Raw::in_group(&child, MIB / 2).expect("high refuses nothing"));
    let over = Raw::in_group(&child, 2 * MIB).expect("let through");
    for watch in forced.iter().chain(&high) {
        assert!(watch.wait(PATIENCE), "{watch:?}");
    }
    drop(over);
    // What is told can be read, and does not go with the child.
    let before = parent.events();
    assert!(before.max >= 2 && before.oom == 1 && before.forced >= 1 && before.high >= 1);
    assert_eq!(parent.events_local(), memcg::Events::default());
    drop(child);
    assert_eq!(parent.events(), before, "counts never run backwards");
    // The worker may visit it at this moment.
    let start = Instant::now();
    while !max[0].is_closed() {
        assert!(start.elapsed() < PATIENCE, "it ends");
        thread::sleep(MS);
    }
    assert!(!max[1].is_closed());
}

#[test]
fn the_end_of_a_group_is_news_for_good() {
    let _running = running();
    let group = Group::root().create("ends").expect("fresh");
    let watches = [
        usage(&group, MIB),
        group.watch(Threshold::Event(EventKind::Low)).expect("a watch"),
        group.watch(Threshold::Pressure { full: false, stall: MS, window: 500 * MS }).expect("one"),
    ];
    let waiter = usage(&group, MIB);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let told = waiter.wait(PATIENCE);
            sender.send(told).expect("the test waits");
        });
        assert!(!watches[0].is_closed());
        drop(group);
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(true), "a wait ends with the group");
    });
    for watch in &watches {
        assert!(watch.is_closed());
        assert!(watch.try_wait() && watch.wait(PATIENCE), "again and again");
        block_on(watch.changed());
        assert!(is_readable_within(watch, PATIENCE) && is_readable_within(watch, MS));
    }
    // The next group of the name, and most likely of the slot, is not told to them, nor they to it.
    let group = Group::root().create("ends").expect("the name is free");
    let fresh = usage(&group, MIB);
    assert!(!fresh.is_closed() && !fresh.try_wait());
    drop(watches);
    drop(Raw::in_group(&group, 2 * MIB));
    assert!(fresh.wait(PATIENCE));
}

const MS: Duration = Duration::from_millis(1);

fn is_readable_within(watch: &Watch, timeout: Duration) -> bool {
    let fd = watch.as_fd().as_raw_fd();
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).expect("short");
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut entry, 1, ms) == 1 && entry.revents & libc::POLLIN != 0 }
}

#[test]
fn epoll_tells_which_watch_has_news() {
    let _running = running();
    let group = Group::root().create("epoll").expect("fresh");
    let watches = [MIB, 64 * MIB].map(|bytes| usage(&group, bytes));
    // SAFETY: it takes flags.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0);
    for (nr, watch) in watches.iter().enumerate() {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: nr as u64 };
        // SAFETY: both descriptors are open, and the event is valid.
        let added =
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watch.as_raw_fd(), &mut event) };
        assert_eq!(added, 0);
    }
    let ready = |timeout: Duration| {
        let mut events = [libc::epoll_event { events: 0, u64: 99 }; 4];
        let ms = i32::try_from(timeout.as_millis()).expect("short");
        // SAFETY: four events fit.
        let nr = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 4, ms) };
        (nr, events[0].u64)
    };
    assert_eq!(ready(Duration::ZERO).0, 0);
    let object = Raw::in_group(&group, 2 * MIB).expect("no limit");
    assert_eq!(ready(PATIENCE), (1, 0));
    assert!(watches[0].try_wait());
    assert_eq!(ready(Duration::ZERO).0, 0, "news that was taken is not readable");
    let large = Raw::in_group(&group, 64 * MIB).expect("no limit");
    assert_eq!(ready(PATIENCE), (1, 1));
    drop((object, large));
    // SAFETY: it is open, and nobody else's.
    unsafe { libc::close(epoll) };
}

#[test]
fn futures_are_woken_outside_the_allocation() {
    let _running = running();
    let group = Group::root().create("futures").expect("fresh");
    let watch = Arc::new(usage(&group, MIB));
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let watch = watch.clone();
            thread::spawn(move || block_on(watch.changed()))
        })
        .collect();
    // One crossing may end one of them; each is told in the end.
    while tasks.iter().any(|task| !task.is_finished()) {
        drop(Raw::in_group(&group, 2 * MIB));
        thread::sleep(MS);
    }
    tasks.into_iter().for_each(|task| task.join().expect("no panic"));

    // A waker that panics, and one that allocates at a limit, hurt nobody.
    struct Rude(Group);
    impl Wake for Rude {
        fn wake(self: Arc<Self>) {
            drop(self.0.run(|| vec![0_u8; 100]));
            panic!("a waker that panics");
        }
    }
    while watch.try_wait() {}
    let rude = Waker::from(Arc::new(Rude(group.clone())));
    let mut changed = pin!(watch.changed());
    while changed.as_mut().poll(&mut Context::from_waker(&rude)).is_ready() {}
    let polite = Unpark::new();
    let waker = Waker::from(polite.clone());
    let mut other = pin!(watch.changed());
    assert!(other.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let _object = Raw::in_group(&group, 2 * MIB);
    let start = Instant::now();
    while polite.woken() == 0 {
        assert!(start.elapsed() < PATIENCE, "woken all the same");
        thread::park_timeout(10 * MS);
    }
    assert!(other.poll(&mut Context::from_waker(&waker)).is_ready());
}

#[cfg(feature = "stream")]
#[test]
fn a_stream_ends_with_its_group() {
    use futures_core::Stream;
    use std::pin::Pin;
    let _running = running();
    let group = Group::root().create("stream").expect("fresh");
    let mut watch = usage(&group, MIB);
    let next =
        |watch: &mut Watch| block_on(std::future::poll_fn(|c| Pin::new(&mut *watch).poll_next(c)));
    let object = Raw::in_group(&group, 2 * MIB);
    assert_eq!(next(&mut watch), Some(()));
    drop((object, group));
    while next(&mut watch).is_some() {}
}

#[test]
fn a_dropped_watch_leaves_nothing_and_the_others_alone() {
    let _alone = alone();
    let open = || std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    let group = Group::root().create("dropped").expect("fresh");
    let keeper = usage(&group, MIB);
    let before = open();
    let others: Vec<Watch> = (1..100).map(|nr| usage(&group, nr * 1000)).collect();
    assert!(open() >= before + 99);
    drop(others);
    // The worker may be about to signal one of them.
    let start = Instant::now();
    while open() > before {
        assert!(start.elapsed() < PATIENCE, "descriptors are left");
        thread::sleep(MS);
    }
    let object = Raw::in_group(&group, 2 * MIB);
    assert!(keeper.wait(PATIENCE));
    drop((object, keeper));
    drop(Raw::in_group(&group, 2 * MIB));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let _running = running();
    let group = Group::root().create("senseless").expect("fresh");
    let pressure = |stall: u64, window: u64| {
        let (stall, window) = (Duration::from_millis(stall), Duration::from_millis(window));
        group.watch(Threshold::Pressure { full: false, stall, window })
    };
    for (stall, window) in [(0, 1000), (1001, 1000), (1, 499), (1, 10_001)] {
        let error = pressure(stall, window).expect_err("out of bounds");
        assert!(error.is_invalid() && error.to_string().contains("/senseless"), "{error}");
    }
    assert!(pressure(1, 500).is_ok() && pressure(10_000, 10_000).is_ok());
    assert!(group.watch(Threshold::Usage(0)).is_err_and(|error| error.is_invalid()));
}

/// It has something, and can never give it now: whoever needs it waits for the whole deadline.
struct Slow;

impl Shrinker for Slow {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if ctl.group().name() == "slow" { Count::Objects(1000) } else { Count::Empty }
    }
    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        Scan::Stop
    }
}

#[test]
fn pressure_is_told_when_the_window_holds_enough() {
    let _running = running();
    let top = Group::root().create("pressed").expect("fresh");
    let group = top.builder("slow").max(MIB as u64).build().expect("fresh");
    let _registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow));
    let trigger = |group: &Group, full, stall: u64| {
        let (stall, window) = (Duration::from_millis(stall), Duration::from_secs(10));
        group.watch(Threshold::Pressure { full, stall, window }).expect("a watch")
    };
    let watches = [trigger(&group, false, 10), trigger(&top, false, 10), trigger(&group, true, 10)];
    let too_much = trigger(&group, false, 10_000);
    assert!(!watches[0].try_wait());
    // 16 rounds with pauses are a few ms each.
    let start = Instant::now();
    while group.pressure().full.total < 50_000 {
        assert!(Raw::in_group(&group, MIB / 2).and(Raw::in_group(&group, MIB)).is_none());
        assert!(start.elapsed() < PATIENCE, "{:?}", group.pressure());
    }
    for watch in &watches {
        assert!(watch.wait(PATIENCE), "{watch:?}");
    }
    assert!(group.pressure().some.total > 9_000_000 || !too_much.try_wait());
    if start.elapsed() < Duration::from_secs(5) {
        drop(Raw::in_group(&group, MIB));
        assert!(nothing_comes(&watches[0]), "once per window");
    }
}

#[test]
fn the_child_of_a_fork_is_told_nothing_and_tells_nothing() {
    let _alone = alone();
    let group = Group::root().create("forked").expect("fresh");
    let watch = usage(&group, MIB);
    fork_and(|| {
        assert!(watch.is_closed() && watch.try_wait() && watch.wait(PATIENCE));
        assert!(is_readable_within(&watch, MS));
        block_on(watch.changed());
        // The child crosses in its own copy of the group, with watches of its own.
        let own = usage(&group, MIB);
        let object = Raw::in_group(&group, 2 * MIB);
        assert!(own.wait(PATIENCE));
        drop((object, own));
    });
    assert!(!watch.is_closed() && nothing_comes(&watch), "nothing of it is seen here");
    let object = Raw::in_group(&group, 2 * MIB);
    assert!(watch.wait(PATIENCE));
    drop(object);
}

#[test]
fn a_future_that_is_dropped_takes_its_waker_along() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let _running = running();
    let group = Group::root().create("impatient").expect("fresh");
    let watch = usage(&group, MIB);
    let reclaim = group.reclaim_async(1 << 40);
    let task = Arc::new(Task);
    let waker = Waker::from(task.clone());
    let mut context = Context::from_waker(&waker);
    for _ in 0..5000 {
        let mut changed = pin!(watch.changed());
        assert!(changed.as_mut().poll(&mut context).is_pending());
        assert!(changed.poll(&mut context).is_pending());
        assert!(watch.poll_changed(&mut context).is_pending());
    }
    // One of whoever polls without a future.
    assert_eq!(Arc::strong_count(&task), 3);
    let mut reclaim = Box::pin(reclaim);
    drop(reclaim.as_mut().poll(&mut context));
    drop(reclaim);
    drop(watch);
    let start = Instant::now();
    while Arc::strong_count(&task) != 2 {
        assert!(start.elapsed() < PATIENCE, "{}", Arc::strong_count(&task));
        thread::sleep(MS);
    }
}
