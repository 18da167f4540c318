//! Pauses over `high`: at safe points, and nowhere else.

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use memcg::{FutureExt, Group};
use support::{Raw, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const HIGH: u64 = 1 << 20;
const LONGEST: Duration = Duration::from_millis(100);
/// If each of so many steps paused, it would take 40 s.
const STEPS: usize = 400;
const FAR_LESS: Duration = Duration::from_secs(20);

/// A group that is at twice its `high`, with what keeps it there.
fn over_high(name: &str, longest: Option<Duration>) -> (Group, Vec<Raw>) {
    let group = Group::root().builder(name).high(HIGH).build().expect("a fresh name");
    let pinned = memcg::no_reclaim(|| {
        (0..4).map(|_| Raw::in_group(&group, 512 << 10).expect("never refused")).collect()
    });
    // What was owed for it was owed before throttling was asked for.
    group.check().expect("no max");
    group.set_throttle(longest);
    (group, pinned)
}

fn took(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// Charges at once, without a stock, 1 % of `high` or so.
fn charge(group: &Group) -> Raw {
    let _scope = group.enter();
    Raw::in_group(group, 64 << 10).expect("never refused")
}

#[test]
fn the_end_of_a_scope_pauses() {
    let _running = running();
    let (group, pinned) = over_high("scope", Some(LONGEST));
    let mut object = None;
    let time = took(|| object = Some(charge(&group)));
    assert!(time >= LONGEST, "{time:?}");
    let stalled = Duration::from_micros(group.pressure().some.total);
    assert!(stalled >= LONGEST && stalled <= time, "{stalled:?} of {time:?}");
    group.set_throttle(None);
    let time = took(|| (0..STEPS).for_each(|_| drop(charge(&group))));
    assert!(time < FAR_LESS, "off: {time:?}");
    drop((object, pinned));
}

/// They are charged many at a time, on another path than large ones.
#[test]
fn small_objects_are_owed_for_too() {
    let _running = running();
    let (group, pinned) = over_high("small", Some(LONGEST));
    let mut objects = Vec::with_capacity(256);
    let time = took(|| {
        let _scope = group.enter();
        objects.extend((0..256).filter_map(|_| Raw::in_group(&group, 512)));
    });
    assert!(time >= LONGEST, "{time:?}");
    drop((objects, pinned));
}

#[test]
fn allocations_do_not_and_check_does() {
    let _running = running();
    let (group, pinned) = over_high("check", Some(LONGEST));
    // Scopes end inside, where no pause may be: code that holds locks.
    let time = took(|| memcg::no_reclaim(|| (0..STEPS).for_each(|_| drop(charge(&group)))));
    assert!(time < FAR_LESS, "{time:?}");
    let time = took(|| group.check().expect("no max"));
    assert!(time >= LONGEST, "{time:?}");
    let time = took(|| (0..STEPS).for_each(|_| group.check().expect("no max")));
    assert!(time < FAR_LESS, "what was owed is paid: {time:?}");
    assert_eq!(group.events().oom, 0);
    drop(pinned);
}

#[test]
fn a_future_pauses_between_polls() {
    let _running = running();
    let (group, pinned) = over_high("future", Some(LONGEST));
    let inner = group.clone();
    let future = async move {
        let object = memcg::no_reclaim(|| charge(&inner));
        drop(object);
    };
    let mut future = pin!(future.in_group(&group));
    let time = took(|| {
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(()));
    });
    assert!(time >= LONGEST, "{time:?}");
    drop(pinned);
}

#[test]
fn within_high_nobody_pauses() {
    let _running = running();
    let group = Group::root().builder("within").high(HIGH).build().expect("a fresh name");
    group.set_throttle(Some(LONGEST));
    let time = took(|| (0..STEPS).for_each(|_| drop(charge(&group))));
    assert!(time < FAR_LESS, "{time:?}");
}
