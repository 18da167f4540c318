//! After `test_memcontrol.c`, but for the two tests of protection.

use memcg::{Limit, OnLimit};

use crate::support::running;
use crate::{MIB, PAGE, PageCache, Pinned, assert_close, group, patient, sampled, task, wait_for};

/// Usage and peak begin at 0 and follow 50 MiB of pinned and of cached memory; each reader of the
/// peak is reset for itself, in any order.
#[test]
fn test_memcg_current_peak() {
    let _running = running();
    let group = group("current_peak");
    assert_eq!((group.usage(), group.peak(), group.stat().usage), (0, 0, 0));
    let [mut first, mut second, mut third, mut fourth] = [0; 4].map(|_| group.peak_reader());

    task(|| {
        let anon = Pinned::new(&group, 50 * MIB);
        assert!(anon.complete);
        let (usage, stat) = (group.usage(), group.stat());
        assert!(usage >= 50 * MIB);
        assert_close("usage", usage, 50 * MIB, 3);
        assert_close("stat", stat.usage, usage, 3);
        assert_eq!((stat.slab, stat.large), (50 * MIB, 0), "after a drain it is exact");
    });
    memcg::drain();
    assert_eq!(group.usage(), 0);
    assert!(group.peak() >= 50 * MIB);
    assert_close("peak", group.peak(), 50 * MIB, 3);

    // One is reset: the others, the group and whoever comes later are not.
    second.reset();
    assert_eq!(second.get(), 0);
    for reader in [&first, &third, &fourth, &group.peak_reader()] {
        assert_eq!(reader.get(), group.peak());
    }
    // Out of order: the third ends before the first is reset.
    third.reset();
    assert_eq!((third.get(), second.get()), (0, 0));
    drop(third);

    let pages = PageCache::new("current_peak");
    task(|| pages.read(&group, 50 * MIB)).expect("no limit");
    let usage = group.usage();
    assert!(usage >= 50 * MIB);
    assert_close("usage", usage, 50 * MIB, 3);
    assert_eq!(group.stat().usage, pages.bytes_in(&group));
    assert_eq!(group.stat().usage, 50 * MIB);
    assert!(group.peak() >= 50 * MIB);
    assert!(second.get() >= 50 * MIB, "anew since its reset");

    pages.cache.clear();
    memcg::drain();
    first.reset();
    assert_eq!(first.get(), 0);
    assert!(second.get() >= 50 * MIB && fourth.get() >= 50 * MIB);
    drop(second);
    fourth.reset();
    assert_eq!((first.get(), fourth.get(), group.usage()), (0, 0, 0));
    assert!(group.peak() >= 50 * MIB, "the group's own is never reset");
}

/// `high` is no limit: pinned memory passes it, cached memory is brought back to it by the worker,
/// and `max` has nothing to do with it.
#[test]
fn test_memcg_high() {
    let _running = running();
    let group = group("high");
    assert_eq!(group.high(), Limit::Max);
    group.set_high(30 * MIB).expect("tracked");
    assert_eq!(group.high(), Limit::Bytes(30 * MIB));

    task(|| {
        let anon = Pinned::new(&group, 31 * MIB);
        assert!(anon.complete);
        assert!(group.usage() >= 31 * MIB);
    });
    let pages = PageCache::new("high");
    task(|| pages.read(&group, 50 * MIB)).expect("`high` refuses nothing");
    // Nobody waits for the worker, so a loaded machine may leave it behind.
    wait_for("the worker reclaims to `high`", || {
        memcg::drain();
        group.usage() <= 30 * MIB + 30 * MIB / 20
    });
    // It stops there, and evicts no more.
    assert_close("usage", group.usage(), 30 * MIB, 5);
    let events = group.events();
    assert!(events.high > 0);
    assert_eq!((events.max, events.oom, events.forced), (0, 0, 0));
}

/// A large pinned allocation over `high` is noticed while it goes on, long before `max`. The kernel
/// puts the task to sleep; here the count is made, and a pause comes only where it was asked for.
#[test]
fn test_memcg_high_sync() {
    let _running = running();
    let group = group("high_sync");
    group.set_high(30 * MIB).expect("tracked");
    group.set_max(140 * MIB).expect("empty");
    assert_eq!(group.events().high, 0);

    let below = Pinned::new(&group, 29 * MIB);
    assert!(below.complete);
    assert_eq!(group.events().high, 0);
    let over = Pinned::new(&group, 2 * MIB);
    assert!(over.complete);
    assert!(group.events().high > 0, "counted by the charge that passed it");
    let more = Pinned::new(&group, 108 * MIB);
    assert!(more.complete, "139 MiB in all");
    assert_eq!(group.events().max, 0);
    let events = group.events();
    // The kernel's task wants 200 MiB.
    assert!(!Pinned::new(&group, 61 * MIB).complete);
    assert!(group.events().max > events.max);
}

/// `max` is kept at every instant: 100 MiB of pinned memory are refused before 30 MiB are passed,
/// and cached memory makes room for itself.
#[test]
fn test_memcg_max() {
    let _running = running();
    let group = group("max");
    assert_eq!(group.max(), Limit::Max);
    group.set_max(30 * MIB).expect("empty");
    assert_eq!(group.max(), Limit::Bytes(30 * MIB));

    let (anon, highest) = sampled(&group, || task(|| Pinned::new(&group, 100 * MIB)));
    assert!(!anon.complete);
    assert_eq!(anon.bytes(), 30 * MIB, "every page that fits was served");
    assert!(highest <= 30 * MIB);
    drop(anon);

    let pages = PageCache::new("max");
    let (answer, highest) = sampled(&group, || task(|| pages.read(&group, 50 * MIB)));
    answer.expect("it makes room for itself");
    assert!(highest <= 30 * MIB);
    assert!(group.peak() <= 30 * MIB, "nor between two samples");
    memcg::drain();
    assert_close("usage", group.usage(), 30 * MIB, 5);
    assert_eq!(group.stat().usage, pages.bytes_in(&group));
    let events = group.events();
    assert!(events.max > 0);
    assert_eq!((events.oom, events.forced), (1, 0), "the one page that was refused");
}

/// What is asked for is reclaimed, about that much and no less; less is an error that says how much.
#[test]
fn test_memcg_reclaim() {
    let _running = running();
    let group = group("reclaim");
    assert_eq!(group.usage(), 0);
    let pages = PageCache::new("reclaim");
    task(|| pages.read(&group, 50 * MIB)).expect("no limit");
    assert_close("usage", group.usage(), 50 * MIB, 3);

    let wanted = group.usage() - 30 * MIB;
    let reclaimed = group.reclaim(wanted).expect("all of it can be had");
    assert!(reclaimed >= wanted);
    assert!(group.usage() <= 30 * MIB);
    assert_close("usage", group.usage(), 30 * MIB, 3);
    assert_eq!(pages.cache.stat().evictions, 50 * MIB / PAGE - pages.cache.len() as u64);

    memcg::drain();
    let left = group.usage();
    let error = group.reclaim(1 << 30).expect_err("there is not so much");
    assert!(error.is_again(), "{error}");
    assert_eq!((error.requested(), error.reclaimed()), (1 << 30, left));
    assert_eq!((group.usage(), pages.cache.len()), (0, 0));
    // A program that asks is no pressure.
    assert_eq!(group.events(), memcg::Events::default());
}

/// One allocation that is refused is one event, and nothing of it stays.
#[test]
fn test_memcg_oom_events() {
    let _running = running();
    let group = group("oom_events");
    group.set_max(30 * MIB).expect("empty");
    let complete = task(|| Pinned::new(&group, 100 * MIB).complete);
    assert!(!complete);
    let events = group.events();
    assert_eq!((events.oom, events.forced), (1, 0));
    assert!(events.max >= 1);
    assert_eq!(group.events_local(), events);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

/// A refusal is the business of the group whose limit refused, and of those above it, which hear of
/// it; no other memory of either is touched.
#[test]
fn test_memcg_oom_group_leaf_events() {
    let _running = running();
    let parent = group("oom_group_leaf");
    let child = patient(parent.builder("child").max(50 * MIB));
    let above = Pinned::new(&parent, 60 * MIB);
    let others = [0; 2].map(|_| task(|| Pinned::new(&child, MIB)));
    assert!(!task(|| Pinned::new(&child, 100 * MIB).complete));

    assert_eq!(child.events_local().oom, 1);
    assert_eq!(parent.events_local().oom, 0);
    assert_eq!((child.events().oom, parent.events().oom), (1, 1));
    assert!(above.complete && above.is_charged_to(&parent));
    for other in &others {
        assert!(other.complete && other.is_charged_to(&child));
    }
}

/// A limit above the group that asks is the one that refuses, and it alone counts it.
#[test]
fn test_memcg_oom_group_parent_events() {
    let _running = running();
    let parent = group("oom_group_parent");
    parent.set_max(80 * MIB).expect("empty");
    let child = patient(parent.builder("child"));
    let above = Pinned::new(&parent, 60 * MIB);
    let others = [0; 2].map(|_| task(|| Pinned::new(&child, MIB)));
    let refused = task(|| Pinned::new(&child, 100 * MIB));
    assert!(!refused.complete);
    assert_eq!(refused.bytes(), 18 * MIB);
    drop(refused);

    assert_eq!((parent.events_local().oom, parent.events().oom), (1, 1));
    assert_eq!((child.events_local().oom, child.events().oom), (0, 0));
    assert!(parent.peak() <= 80 * MIB);
    assert!(above.complete && above.is_charged_to(&parent));
    for other in &others {
        assert!(other.complete && other.is_charged_to(&child));
    }
}

/// Who must not be killed has a policy of its own: it is let through, and counted, where others are
/// refused.
#[test]
fn test_memcg_oom_group_score_events() {
    let _running = running();
    let parent = group("oom_group_score");
    parent.set_max(50 * MIB).expect("empty");
    let exempt = patient(parent.builder("exempt").on_limit(OnLimit::Overcommit));
    let other = patient(parent.builder("other"));
    let safe = Pinned::new(&exempt, MIB);
    let refused = Pinned::new(&other, 100 * MIB);
    assert!(safe.complete && !refused.complete);
    assert_eq!(parent.events_local().oom, 1);
    assert_eq!(parent.events_local().forced, 0);

    let more = Pinned::new(&exempt, MIB);
    assert!(more.complete && parent.usage() > 50 * MIB);
    assert!(parent.events_local().forced > 0);
    assert_eq!(parent.events_local().oom, 1);
    assert!(other.check().is_err() && exempt.check().is_err(), "until somebody gives in");
    drop(refused);
    memcg::drain();
    assert!(other.check().is_ok());
    assert!(Pinned::new(&other, MIB).complete);
    drop((safe, more));
    memcg::drain();
    assert_eq!(parent.usage(), 0);
}
