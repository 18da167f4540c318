//! Charges: exact limits at every level, batches, peaks, force, events.

use std::thread::sleep;
use std::time::Duration;

use super::support::{charge, charge_as, child, end, limited, live_contexts, tree};
use crate::tree::EXACT_BELOW;
use crate::{EventKind, GroupRef, Limit, OverLimit, Payer, Root, Tag, Tree, Want};

const ROOT: GroupRef = GroupRef::ROOT;

fn usages<const N: usize>(tree: &Tree, groups: [GroupRef; N]) -> [u64; N] {
    groups.map(|group| tree.usage(group))
}

fn refusal(tree: &Tree, group: GroupRef, need: u64) -> OverLimit {
    tree.charge(tree.payer(group), Want::exactly(need)).expect_err("over a limit")
}

#[test]
fn limits_are_exact_at_every_level_and_the_lowest_refuses() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = limited(tree, a, "b", 60);
    let c = child(tree, b, "c");
    let d = child(tree, a, "d");

    let over = refusal(tree, c, 101);
    assert_eq!(over, OverLimit { group: b, requested: 101, usage: 0, max: 60 }, "both refuse");
    charge(tree, c, 60);
    let over = refusal(tree, c, 1);
    assert_eq!(over, OverLimit { group: b, requested: 1, usage: 60, max: 60 });
    let over = refusal(tree, d, 41);
    assert_eq!(over, OverLimit { group: a, requested: 41, usage: 60, max: 100 });
    assert_eq!(usages(tree, [a, b, c, d]), [60, 60, 60, 0], "a refusal changes nothing");
    let tag = charge(tree, d, 40);
    assert_eq!(usages(tree, [a, b, c, d, ROOT]), [100, 60, 60, 40, 100]);
    tree.uncharge(tag, 15);
    assert_eq!(usages(tree, [a, d]), [85, 25]);
    assert_eq!(refusal(tree, d, 16).group, a);
    charge(tree, d, 15);
    assert_eq!(refusal(tree, d, 1).usage, 100);
    tree.check();
}

#[test]
fn an_accounted_root_is_a_level_and_an_untracked_one_is_not() {
    for root in [Root::Accounted, Root::Untracked] {
        let tree = tree(root);
        tree.set_max(ROOT, Limit::Bytes(50));
        let a = child(tree, ROOT, "a");
        let b = child(tree, ROOT, "b");
        charge(tree, a, 30);
        let second = tree.charge(tree.payer(b), Want::exactly(30));
        if root == Root::Accounted {
            assert_eq!(second.map_err(|over| over.group), Err(ROOT));
            assert_eq!(charge(tree, ROOT, 20), tree.payer(ROOT).tag);
            assert_eq!(usages(tree, [ROOT, a, b]), [50, 30, 0]);
        } else {
            assert!(second.is_ok());
            assert_eq!(charge(tree, ROOT, 1000), Tag::NOBODY);
            assert_eq!(usages(tree, [ROOT, a, b]), [60, 30, 30], "the sum of the children");
        }
        tree.check();
    }
}

#[test]
fn nobody_pays_nothing() {
    let tree = tree(Root::Untracked);
    let charged = tree.charge(Payer::NOBODY, Want { need: 5, ahead: 9, over: 0 }).expect("fits");
    assert_eq!((charged.tag, charged.bytes, charged.forced), (Tag::NOBODY, 5, false));
    assert_eq!(tree.force(Payer::NOBODY, 5).tag, Tag::NOBODY);
    tree.uncharge(Tag::NOBODY, 5);
    assert_eq!(tree.usage(ROOT), 0);
}

#[test]
fn the_largest_numbers_do_not_wrap() {
    let tree = tree(Root::Untracked);
    let zero = limited(tree, ROOT, "zero", 0);
    assert_eq!(refusal(tree, zero, 1).max, 0);
    assert_eq!(charge(tree, zero, 0), tree.payer(zero).tag);
    let free = child(tree, ROOT, "free");
    let tag = charge(tree, free, 1);
    assert_eq!(refusal(tree, free, u64::MAX).usage, 1);
    let want = Want { need: u64::MAX - 1, ahead: u64::MAX, over: u64::MAX };
    assert_eq!(tree.charge(tree.payer(free), want).expect("fits").bytes, u64::MAX - 1);
    assert_eq!(refusal(tree, free, 1).usage, u64::MAX);
    tree.uncharge_all(&[(tag, u64::MAX - 1), (tag, 1)]);
    assert_eq!(tree.usage(free), 0);
    tree.check();
}

/// What a charge of 1 byte takes beyond it, given back.
fn ahead(tree: &Tree, group: GroupRef, ahead: u64) -> u64 {
    let want = Want { need: 1, ahead, over: 0 };
    let charged = tree.charge(tree.payer(group), want).expect("fits");
    tree.uncharge(charged.tag, charged.bytes);
    charged.bytes - 1
}

#[test]
fn what_is_taken_ahead_shrinks_towards_the_tightest_limit() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    assert_eq!(ahead(tree, b, 32 << 10), 32 << 10, "no limit");
    tree.set_max(b, Limit::Bytes(1 << 30));
    for (left, expected) in [
        (EXACT_BELOW - 1, 0),
        (EXACT_BELOW, EXACT_BELOW / 4),
        (100_000, 25_000),
        (200_000, 32 << 10),
    ] {
        tree.set_max(a, Limit::Bytes(1 + left));
        assert_eq!(ahead(tree, b, 32 << 10), expected, "{left} bytes left");
    }
    tree.set_max(a, Limit::Bytes(100_001));
    assert_eq!(ahead(tree, b, 0), 0, "none is asked for");
    tree.set_nr_threads(5);
    assert_eq!(ahead(tree, b, 32 << 10), 5_000, "each thread takes its part");
    tree.set_nr_threads(0);
    assert_eq!(ahead(tree, b, 32 << 10), 25_000, "one thread is the least");
    tree.check();
}

#[test]
fn batches_of_many_threads_leave_room_for_requests() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 1 << 20);
    tree.set_nr_threads(8);
    let want = Want { need: 1, ahead: 32 << 10, over: 0 };
    for _ in 0..8 {
        tree.charge(tree.payer(a), want).expect("fits");
    }
    assert!(tree.usage(a) <= (1 << 20) / 4 + 8, "{}", tree.usage(a));
}

#[test]
fn after_a_refusal_charges_are_exact_for_a_while() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let other = child(tree, ROOT, "other");
    let begun = crate::now_ms();
    tree.refuse(a);
    let (below, stranger) = (ahead(tree, b, 100), ahead(tree, other, 100));
    // On a machine that stood still for that long, nothing was seen.
    if crate::now_ms().wrapping_sub(begun) < 5 {
        assert_eq!(below, 0, "an ancestor refused");
    }
    assert_eq!(stranger, 100);
    sleep(Duration::from_millis(40));
    assert_eq!(ahead(tree, b, 100), 100);
    assert_eq!((tree.events(a).oom, tree.events(b).oom), (1, 0));
}

#[test]
fn a_refusal_is_not_seen_again_when_the_clock_wraps() {
    let tree = tree(Root::Untracked);
    let group = tree.group(ROOT).expect("the root");
    for refused in [1_000_u32, u32::MAX - 3] {
        group.set_exact_from(refused);
        for (after, exact) in [
            (0, true),
            (9, true),
            (11, false),
            (1 << 30, false),
            (1 << 31, false),
            (3 << 30, false),
        ] {
            assert_eq!(group.is_exact_at(refused.wrapping_add(after)), exact, "{after} ms after");
        }
    }
}

#[test]
fn peaks_are_exact_at_every_level() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let (b, c) = (child(tree, a, "b"), child(tree, a, "c"));
    let tag = charge(tree, b, 10);
    charge(tree, c, 5);
    tree.uncharge(tag, 10);
    charge(tree, c, 4);
    assert_eq!([a, b, c].map(|group| tree.peak(group)), [15, 10, 9]);
    assert_eq!(usages(tree, [a, b, c]), [9, 0, 9]);
    charge(tree, b, 7);
    assert_eq!([a, b].map(|group| tree.peak(group)), [16, 10]);
    tree.check();
}

#[test]
fn an_allowance_goes_over_each_limit_and_no_further() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = limited(tree, a, "b", 50);
    let want = |need| Want { need, ahead: 1 << 20, over: 20 };
    let payer = tree.payer(b);
    let within = tree.charge(payer, want(50)).expect("fits");
    assert!(!within.forced);
    let beyond = tree.charge(payer, want(20)).expect("allowed");
    assert_eq!((beyond.bytes, beyond.forced), (20, true), "nothing is taken ahead there");
    assert_eq!(tree.charge(payer, want(1)).map_err(|over| over.group), Err(b));
    charge(tree, a, 30);
    assert!(tree.charge(tree.payer(a), want(21)).is_err());
    assert!(tree.charge(tree.payer(a), want(20)).expect("allowed").forced);
    assert_eq!(usages(tree, [a, b]), [120, 70]);
    tree.check();
}

#[test]
fn force_passes_every_limit_and_is_counted_where_it_did() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = limited(tree, a, "b", 150);
    let c = child(tree, b, "c");
    let forced = |group| (tree.events_local(group).forced, tree.events(group).forced);
    let payer = tree.payer(c);

    assert!(!tree.force(payer, 100).forced);
    assert_eq!([a, b, c].map(forced), [(0, 0); 3], "within the limits nothing is counted");
    assert_eq!(tree.over_max(c), None);
    assert!(tree.force(payer, 1).forced);
    assert_eq!([a, b, c].map(forced), [(1, 1), (0, 0), (0, 0)]);
    let over = OverLimit { group: a, requested: 0, usage: 101, max: 100 };
    assert_eq!(tree.over_max(c), Some(over));
    let charged = tree.force(payer, 50);
    assert_eq!((charged.tag, charged.bytes), (payer.tag, 50));
    assert_eq!([a, b, c].map(forced), [(1, 2), (1, 1), (0, 0)]);
    assert_eq!(tree.over_max(c).map(|over| over.group), Some(b));
    assert_eq!(tree.over_max(ROOT), None);
    assert_eq!(usages(tree, [a, b, c]), [151; 3]);
    tree.uncharge(payer.tag, 151);
    assert_eq!((tree.over_max(c), tree.usage(a)), (None, 0));
    tree.check();
}

#[test]
fn high_is_reported_and_refuses_nothing() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    tree.set_high(a, Limit::Bytes(10));
    tree.set_high(b, Limit::Bytes(20));
    let over_high = |need| tree.charge(tree.payer(b), Want::exactly(need)).expect("fits").over_high;
    assert_eq!(over_high(10), None);
    assert_eq!(over_high(1), Some(a));
    assert_eq!(over_high(10), Some(b), "the lowest");
    assert_eq!(tree.set_high(a, Limit::Max), 21);
}

#[test]
fn a_limit_below_usage_holds_at_once() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let tag = charge(tree, a, 100);
    assert_eq!(tree.set_max(a, Limit::Bytes(40)), 100);
    assert_eq!(tree.over_max(a).map(|over| (over.usage, over.max)), Some((100, 40)));
    assert_eq!(refusal(tree, a, 1).usage, 100);
    assert!(tree.charge(tree.payer(a), Want::exactly(0)).is_err(), "over is over");
    tree.uncharge(tag, 61);
    assert_eq!(tree.over_max(a), None);
    charge(tree, a, 1);
    assert_eq!(refusal(tree, a, 1).usage, 40);
    tree.check();
}

#[test]
fn uncharges_of_several_trees_go_together() {
    let tree = tree(Root::Untracked);
    let tops = ["a", "b", "c"].map(|name| child(tree, ROOT, name));
    let below = child(tree, tops[0], "below");
    let stripes = tops.map(|top| tree.group(top).expect("online").stripe());
    assert!(stripes[0] != stripes[1] && stripes[1] != stripes[2], "each tree has its lock");
    let tags = tops.map(|top| charge(tree, top, 10));
    let low = charge(tree, below, 10);
    tree.uncharge_all(&[
        (tags[0], 1),
        (tags[1], 2),
        (Tag::NOBODY, 99),
        (tags[1], 3),
        (low, 4),
        (tags[0], 0),
        (tags[2], 10),
        (tags[0], 5),
    ]);
    assert_eq!(usages(tree, tops), [10, 5, 0]);
    assert_eq!(tree.usage(below), 6);
    tree.uncharge_all(&[]);
    tree.check();
    // The last bytes of a group that is gone free its context in the middle of a run.
    end(tree, below);
    end(tree, tops[0]);
    tree.uncharge_all(&[(low, 6), (tags[0], 4), (tags[1], 5)]);
    assert_eq!((tree.usage(ROOT), live_contexts(tree)), (0, 2));
    tree.check();
}

#[test]
fn events_go_up_and_local_ones_do_not() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    for kind in [EventKind::Low, EventKind::High, EventKind::Max, EventKind::Oom, EventKind::Max] {
        tree.count(b, kind);
    }
    tree.count(a, EventKind::High);
    let counts = |e: crate::Events| [e.low, e.high, e.max, e.oom, e.forced];
    assert_eq!(counts(tree.events(b)), [1, 1, 2, 1, 0]);
    assert_eq!(counts(tree.events_local(b)), [1, 1, 2, 1, 0]);
    assert_eq!(counts(tree.events(a)), [1, 2, 2, 1, 0]);
    assert_eq!(counts(tree.events_local(a)), [0, 1, 0, 0, 0]);
    end(tree, b);
    assert_eq!(counts(tree.events(a)), [1, 2, 2, 1, 0], "they never run backwards");
    tree.count(b, EventKind::Oom);
    assert_eq!(tree.events(a).oom, 1, "a stale reference counts nothing");
}

#[test]
fn a_charge_names_the_payers_own_tag() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let payer = tree.payer(b);
    let kept = charge_as(tree, payer, 8);
    assert_eq!(kept, payer.tag);
    assert_ne!(kept, tree.payer(a).tag);
    assert_eq!((tree.owner(kept), tree.owner(tree.payer(a).tag)), (Some(b), Some(a)));
}

#[test]
fn a_local_peak_begins_anew_and_large_bytes_go_up() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let tag = charge(tree, b, 100);
    tree.add_large(tag, 60);
    tree.uncharge(tag, 40);
    assert_eq!(tree.reset_local_peak(a), (100, 60));
    assert_eq!([a, b].map(|group| tree.local_peak(group)), [60, 100]);
    charge(tree, b, 10);
    assert_eq!((tree.local_peak(a), tree.peak(a)), (70, 100), "the peak itself stays");
    assert_eq!([a, b].map(|group| tree.large_bytes(group)), [60, 60]);
    end(tree, b);
    assert_eq!(tree.reset_local_peak(b), (0, 0), "a stale reference");
    tree.sub_large(tag, 60);
    assert_eq!(tree.large_bytes(a), 0);
    assert_eq!((tree.context_bytes(tag), tree.payer_of(tag).tag), (70, tag));
}
