//! Every workload once, at its smallest, on each allocator that one process can hold.

use std::alloc::System;

use cap::Cap;
use memcg::Group;
use memcg_benches::block::{Allocator, Heap};
use memcg_benches::child;
use memcg_benches::header::Header;
use memcg_benches::late::LateStats;
use memcg_benches::meter::Scale;
use memcg_benches::ours::{Groups, Unused};
use memcg_benches::tenants::{Nobody, Tenants};
use memcg_benches::tokens::Tokens;
use memcg_benches::workload::{self, Cx, Family};
use mimalloc::MiMalloc;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

static CAP: Cap<Jemalloc> = Cap::new(Jemalloc, 16 << 30);
static STATS: LateStats = LateStats::new();
static HEADER: Header<Jemalloc> = Header(Jemalloc);
static TRACKING: tracking_allocator::Allocator<Jemalloc> =
    tracking_allocator::Allocator::from_allocator(Jemalloc);

/// Runs what calls the allocator itself, and `programs` too where it is the installed one.
fn every<A: Allocator, T: Tenants>(allocator: &'static A, tenants: T, programs: bool) {
    let cx = Cx { heap: Heap(allocator), tenants, scale: Scale::Tiny, threads: None };
    for workload in workload::all::<A, T>() {
        if programs || workload.family != Family::Application {
            let answer = child::measure(cx, workload.name, None).expect("it is in the list");
            let found = if workload.family == Family::Memory { "memory" } else { "ns" };
            assert!(!answer[found].is_null(), "{}: {answer}", workload.name);
        }
    }
}

#[test]
fn peers_that_count_nothing() {
    every(&System, Nobody::new(), false);
    every(&Jemalloc, Nobody::new(), false);
    every(&MiMalloc, Nobody::new(), false);
}

#[test]
fn peers_that_count() {
    every(&CAP, Nobody::new(), false);
    every(&STATS, Nobody::new(), false);
    every(&HEADER, Nobody::new(), false);
    every(&TRACKING, Tokens, false);
}

#[test]
fn memcg_in_each_state() {
    let root = Group::root();
    let limited = |name: &str, max: u64| root.builder(name).max(max).build().expect("fresh");
    every(&ALLOC, Unused::default(), true);
    every(&ALLOC, Groups::<false>::new(vec![limited("one", 4 << 30)]), true);
    let many = (0..100).map(|tenant| limited(&format!("tenant {tenant}"), 4 << 30)).collect();
    every(&ALLOC, Groups::<true>::new(many), true);

    // The cache alone has something to evict, and it does: 800,000 bytes go to the workload's keys.
    let tight = limited("tight", 1200 << 10);
    let cx = Cx {
        heap: Heap(&ALLOC),
        tenants: Groups::<false>::new(vec![tight.clone()]),
        scale: Scale::Tiny,
        threads: None,
    };
    child::measure(cx, "cache.own", None).expect("it is in the list");
    assert!(tight.events().max > 0, "{:?}", tight.events());
}

#[test]
fn a_workload_runs_on_as_many_threads_as_are_asked_for() {
    let operations = |name: &str, threads| {
        let cx = Cx { heap: Heap(&System), tenants: Nobody::new(), scale: Scale::Tiny, threads };
        let answer = child::measure(cx, name, Some(3)).expect("it is in the list");
        answer["operations"].as_u64().expect("a number")
    };
    assert_eq!(operations("pair.64", Some(2)), 2 * operations("pair.64", None));
    assert_eq!(operations("pair.64", Some(1)), operations("pair.64", None));
    assert_eq!(operations("larson", None), 2 * operations("larson", Some(1)));
    assert_eq!(operations("xmalloc", None), operations("xmalloc", Some(2)));
}
