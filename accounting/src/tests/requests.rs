//! Requests: freed bytes become the credit of who asked, and of nobody else.

use super::support::{charge, charge_as, child, end, limited, live_contexts, tree};
use crate::{GroupRef, Limit, Payer, Request, Root, Want};

const ROOT: GroupRef = GroupRef::ROOT;

#[test]
fn freed_bytes_are_the_requests_and_nobody_snatches_them() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let (b, rival) = (child(tree, a, "b"), child(tree, a, "rival"));
    let (payer, garbage) = (tree.payer(b), charge(tree, a, 100));
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    assert_eq!((request.target(), request.is_met()), (a, false));

    tree.uncharge_for(garbage, 30, &request);
    assert_eq!((request.credit(), request.freed(), tree.usage(a)), (30, 30, 100));
    assert!(tree.charge(tree.payer(rival), Want::exactly(1)).is_err());
    assert_eq!(tree.usage(b), 30, "the credit is charged to the payer");
    tree.check();

    tree.uncharge_for(garbage, 30, &request);
    assert_eq!((request.credit(), request.freed()), (40, 60), "never more than the need");
    assert!(request.is_met());
    assert_eq!((tree.usage(a), tree.usage(b), tree.peak(a)), (80, 40, 100));
    tree.uncharge_for(garbage, 10, &request);
    assert_eq!((request.credit(), tree.usage(a)), (40, 70));

    assert_eq!(tree.close_request(&request), 40);
    assert_eq!((request.credit(), tree.usage(b), tree.usage(a)), (0, 0, 30), "given back");
    tree.check();
}

#[test]
fn credit_takes_what_fits_where_usage_was_forced_over() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = tree.force(payer, 120).tag;
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    tree.uncharge_for(garbage, 15, &request);
    assert_eq!((request.credit(), request.freed(), tree.usage(a)), (0, 15, 105));
    tree.uncharge_for(garbage, 30, &request);
    assert_eq!((request.credit(), tree.usage(a)), (25, 100), "the last 25 of the 30 fit");
    assert_eq!(tree.close_request(&request), 25);
    tree.check();
}

#[test]
fn another_trees_bytes_are_only_given_back() {
    let tree = tree(Root::Untracked);
    let (a, other) = (limited(tree, ROOT, "a", 100), child(tree, ROOT, "other"));
    let foreign = charge(tree, other, 50);
    let request = Request::new();
    assert!(tree.open_request(&request, tree.payer(a), a, 40));
    tree.uncharge_for(foreign, 50, &request);
    assert_eq!((request.credit(), request.freed()), (0, 0));
    assert_eq!((tree.usage(a), tree.usage(other)), (0, 0));
    assert_eq!(tree.close_request(&request), 0);
    tree.check();
}

#[test]
fn only_the_targets_bytes_are_progress() {
    let tree = tree(Root::Untracked);
    let top = child(tree, ROOT, "top");
    let (a, b) = (child(tree, top, "a"), child(tree, top, "b"));
    let (ours, theirs) = (charge(tree, a, 50), charge(tree, b, 50));
    let request = Request::new();
    assert!(tree.open_request(&request, tree.payer(a), a, 100));
    tree.uncharge_for(theirs, 20, &request);
    assert_eq!((request.freed(), request.credit()), (0, 20), "credit all the same: it fits");
    tree.uncharge_for(ours, 20, &request);
    assert_eq!((request.freed(), request.credit()), (20, 40));
    tree.close_request(&request);
    tree.check();
}

#[test]
fn a_closed_request_gets_nothing_and_closes_once() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = charge_as(tree, payer, 100);
    let request = Request::new();
    tree.uncharge_for(garbage, 10, &request);
    assert_eq!((request.credit(), tree.usage(a)), (0, 90), "never opened");
    assert_eq!(tree.close_request(&request), 0);
    assert!(tree.open_request(&request, payer, a, 40));
    assert_eq!(tree.close_request(&request), 0);
    tree.uncharge_for(garbage, 10, &request);
    assert_eq!((request.credit(), tree.usage(a)), (0, 80));
    assert_eq!(tree.close_request(&request), 0);
    tree.check();
    // Used again, it begins anew.
    assert!(tree.open_request(&request, payer, a, 5));
    tree.uncharge_for(garbage, 80, &request);
    assert_eq!((request.credit(), request.freed(), tree.usage(a)), (5, 80, 5));
    assert_eq!(tree.close_request(&request), 5);
    tree.check();
}

#[test]
fn a_request_outlives_its_payers_group() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = child(tree, a, "b");
    let (payer, garbage) = (tree.payer(b), charge(tree, a, 100));
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    end(tree, b);
    tree.uncharge_for(garbage, 60, &request);
    assert_eq!((request.credit(), tree.usage(a)), (40, 80));
    assert_eq!(tree.owner(payer.tag), Some(a));
    assert_eq!(tree.close_request(&request), 40);
    assert_eq!(live_contexts(tree), 1);
    tree.check();
    assert!(!tree.open_request(&request, payer, a, 1), "the payer is gone");
    assert!(!tree.open_request(&request, Payer::NOBODY, a, 1));
    assert_eq!(tree.close_request(&request), 0);
    tree.check();
}

#[test]
fn a_request_whose_payer_went_to_nobody_gets_no_credit() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = charge_as(tree, payer, 100);
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    end(tree, a);
    tree.uncharge_for(garbage, 100, &request);
    assert_eq!((request.credit(), request.freed()), (0, 0));
    assert_eq!(live_contexts(tree), 1, "the request keeps the tag");
    assert_eq!(tree.close_request(&request), 0);
    assert_eq!(live_contexts(tree), 0);
    tree.check();
}

#[test]
fn the_last_bytes_of_the_payer_itself_become_credit() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = child(tree, a, "b");
    let payer = tree.payer(b);
    let tag = charge_as(tree, payer, 10);
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 10));
    end(tree, b);
    tree.uncharge_for(tag, 10, &request);
    assert_eq!((request.credit(), request.freed(), tree.usage(a)), (10, 10, 10));
    assert_eq!(tree.close_request(&request), 10);
    assert_eq!((tree.usage(a), live_contexts(tree)), (0, 1));
    tree.check();
}

#[test]
fn a_limit_that_is_lowered_meanwhile_stops_the_credit() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = charge_as(tree, payer, 100);
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    tree.set_max(a, Limit::Bytes(10));
    tree.uncharge_for(garbage, 60, &request);
    assert_eq!((request.credit(), tree.usage(a)), (0, 40));
    tree.uncharge_for(garbage, 35, &request);
    assert_eq!((request.credit(), tree.usage(a)), (5, 10));
    assert_eq!(tree.close_request(&request), 5);
    tree.check();
}

#[test]
fn settling_charges_what_the_credit_leaves_uncovered() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = charge_as(tree, payer, 100);
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    tree.uncharge_for(garbage, 30, &request);
    let over = tree.settle_request(&request, 0, 0).expect_err("10 are missing");
    assert_eq!((over.group, over.requested, over.usage), (a, 40, 100));
    assert_eq!(request.credit(), 30, "it stays open, with its credit");
    tree.uncharge(garbage, 15);
    let charged = tree.settle_request(&request, 0, 0).expect("fits");
    assert_eq!((charged.tag, charged.bytes, tree.usage(a)), (payer.tag, 40, 95));
    assert_eq!(tree.close_request(&request), 0, "it is closed");
    tree.check();

    assert!(tree.open_request(&request, payer, a, 5));
    tree.uncharge_for(garbage, 20, &request);
    let charged = tree.settle_request(&request, 1 << 20, 0).expect("met");
    assert_eq!((charged.bytes, tree.usage(a)), (5, 80), "a request that is met takes no more");
    tree.check();
}

#[test]
fn settling_for_nobody_keeps_no_charge() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let payer = tree.payer(a);
    let garbage = charge_as(tree, payer, 100);
    let request = Request::new();
    assert!(tree.open_request(&request, payer, a, 40));
    tree.uncharge_for(garbage, 100, &request);
    assert_eq!(request.credit(), 40);
    end(tree, a);
    let charged = tree.settle_request(&request, 0, 0).expect("nobody pays");
    assert_eq!((charged.tag.is_nobody(), charged.bytes), (true, 40));
    assert_eq!(live_contexts(tree), 0);
    tree.check();
}

#[test]
fn credit_is_surrendered_in_the_subtree_that_needs_it() {
    let tree = tree(Root::Untracked);
    let top = limited(tree, ROOT, "top", 100);
    let (a, b) = (child(tree, top, "a"), child(tree, top, "b"));
    let garbage = charge(tree, b, 100);
    let request = Request::new();
    assert!(tree.open_request(&request, tree.payer(a), top, 40));
    tree.uncharge_for(garbage, 30, &request);
    tree.surrender_credit(&request, b);
    assert_eq!((request.credit(), tree.usage(top)), (30, 100), "its payer is not below `b`");
    tree.surrender_credit(&request, top);
    assert_eq!((request.credit(), tree.usage(top), tree.usage(a)), (0, 70, 0));
    tree.uncharge_for(garbage, 40, &request);
    assert_eq!((request.credit(), request.is_met()), (40, true), "the request goes on");
    assert_eq!(tree.close_request(&request), 40);
    tree.surrender_credit(&request, top);
    assert_eq!(tree.usage(top), 30, "a closed request has nothing left");
    tree.check();
}

#[test]
fn reclaim_without_a_payer_counts_and_takes_no_credit() {
    let tree = tree(Root::Untracked);
    let (a, other) = (child(tree, ROOT, "a"), child(tree, ROOT, "other"));
    let below = child(tree, a, "below");
    let tags = [a, below, other].map(|group| charge(tree, group, 50));
    let request = Request::new();
    for (target, freed) in [(below, 10), (a, 20), (other, 10), (ROOT, 30)] {
        tree.open_reclaim(&request, target);
        tags.iter().for_each(|&tag| tree.uncharge_for(tag, 10, &request));
        assert_eq!((request.freed(), request.credit()), (freed, 0), "{target:?}");
        assert_eq!(tree.close_request(&request), 0);
    }
    assert_eq!([a, below, other].map(|group| tree.usage(group)), [20, 10, 10]);
    tree.check();
}

#[test]
fn a_record_that_nobody_uses_takes_no_credit() {
    let tree = tree(Root::Untracked);
    let payer = child(tree, ROOT, "payer");
    let gone = child(tree, payer, "gone");
    let tag = tree.payer(gone).tag;
    let garbage = charge(tree, payer, 100);
    end(tree, gone);
    // As of a request that was closed, and its tag freed, since somebody looked whose it is.
    let request = Request::new();
    let stripe = tree.context(garbage).expect("it has bytes").stripe();
    request.begin(tag, stripe, ROOT, 50);
    tree.uncharge_for(garbage, 100, &request);
    assert_eq!((request.credit(), tree.usage(payer)), (0, 0));
    request.end();
    tree.check();
}
