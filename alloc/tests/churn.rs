//! Groups that come and go by the million: nothing is left behind, and none pays for its objects
//! when it goes.

mod support;

use std::time::{Duration, Instant};

use memcg::{Group, Limit};
use support::{Raw, alone};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Cycles: a million where the compiler has optimised.
const CYCLES: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
/// Objects of the large group.
const MANY: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };

#[test]
fn a_million_groups_leave_nothing_behind() {
    let _alone = alone();
    let parent = Group::root().create("churn").expect("fresh");
    // Survivors: of each 100th group an object lives on, for 50,000 cycles.
    let mut survivors: Vec<Option<Raw>> = (0..500).map(|_| None).collect();
    let cycles = |from: usize, n: usize, survivors: &mut Vec<Option<Raw>>| {
        for i in from..from + n {
            let group =
                parent.builder("tenant").max(1 << 20).build().expect("the name is free again");
            let object = Raw::in_group(&group, 8 + i % 500).expect("fits");
            let large = (i % 64 == 0).then(|| Raw::in_group(&group, 80_000).expect("fits"));
            drop(group);
            drop(large);
            if i % 100 == 0 {
                survivors[i / 100 % 500] = Some(object);
            }
        }
    };
    cycles(0, 60_000, &mut survivors);
    let before = memcg::self_stat();
    cycles(60_000, CYCLES - 60_000, &mut survivors);
    let after = memcg::self_stat();
    assert_eq!(after.metadata, before.metadata, "records are used again");
    // Each survivor is alone of its context's; spans move a little.
    assert!(after.tags <= before.tags + (64 << 10), "{before:?} {after:?}");
    let stat = parent.stat();
    assert_eq!((stat.nr_descendants, stat.nr_dying), (0, 0));
    assert_eq!(stat.nr_contexts, 500, "a context for each survivor, and none else");
    let live: u64 =
        survivors.iter().flatten().map(|object| object.size().next_multiple_of(8) as u64).sum();
    assert!(stat.usage >= live && stat.usage <= live * 2);
    for object in survivors.iter().flatten() {
        assert_eq!(Group::of(object.as_ptr()), Some(parent.clone()));
    }
    survivors.clear();
    let stat = parent.stat();
    assert_eq!((stat.usage, stat.nr_contexts), (0, 0));
    memcg::check();
}

#[test]
fn deep_chains_and_wide_families_leave_nothing_behind() {
    let _alone = alone();
    let parent = Group::root().builder("shapes").max_depth(Limit::Max).build().expect("fresh");
    let mut metadata = 0;
    for turn in 0..20 {
        let mut chain = vec![parent.create("deep").expect("fresh")];
        for _ in 0..100 {
            let last = chain.last().expect("not empty");
            chain.push(last.create("deeper").expect("fresh"));
        }
        let deepest = chain.last().expect("not empty").clone();
        let object = Raw::in_group(&deepest, 100).expect("no limit");
        // The deepest keeps all of its ancestors; with it all of them go.
        drop(chain);
        assert_eq!(parent.stat().nr_descendants, 101);
        assert!(Group::lookup(&deepest.path()).is_some());
        drop(deepest);
        assert_eq!(parent.stat().nr_descendants, 0);
        assert_eq!(Group::of(object.as_ptr()), Some(parent.clone()));
        let family: Vec<Group> =
            (0..300).map(|i| parent.create(&i.to_string()).expect("fresh")).collect();
        drop((family, object));
        memcg::drain();
        match turn {
            0..3 => metadata = memcg::self_stat().metadata,
            _ => assert_eq!(memcg::self_stat().metadata, metadata),
        }
    }
    assert_eq!(parent.stat().usage, 0);
    memcg::check();
}

/// How long the drop of each group takes, the median of all.
fn median_drop(groups: Vec<Group>) -> Duration {
    let mut times: Vec<Duration> = groups
        .into_iter()
        .map(|group| {
            let start = Instant::now();
            drop(group);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn the_drop_of_a_group_costs_the_same_whatever_lives_in_it() {
    let _alone = alone();
    let parent = Group::root().create("drops").expect("fresh");
    let top = parent.create("top").expect("fresh");
    // A chain: what lives in the last is each one's in turn, as they go.
    let chain = |name: &str, objects: usize| {
        let mut groups = vec![top.create(name).expect("fresh")];
        for _ in 0..40 {
            let last = groups.last().expect("not empty");
            groups.push(last.create("below").expect("fresh"));
        }
        let last = groups.last().expect("not empty").clone();
        let mut held = Vec::with_capacity(objects);
        held.extend((0..objects).map_while(|_| Raw::in_group(&last, 16)));
        assert_eq!(held.len(), objects);
        drop(last);
        groups.reverse();
        (groups, held)
    };
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for turn in 0..5 {
        let (small, ten) = chain(&format!("small {turn}"), 10);
        let (large, million) = chain(&format!("large {turn}"), MANY);
        few.push(median_drop(small));
        many.push(median_drop(large));
        // It is correct, too.
        for object in [&ten[0], &ten[9], &million[0], &million[MANY / 2], &million[MANY - 1]] {
            assert_eq!(Group::of(object.as_ptr()), Some(top.clone()));
        }
        assert_eq!(top.stat().usage, 16 * (MANY as u64 + 10));
        assert_eq!(top.stat().nr_contexts, 2);
        drop((ten, million));
        assert_eq!(top.stat().usage, 0);
    }
    few.sort();
    many.sort();
    // A walk over the objects would take a hundred times this.
    let allowed = 3 * few[2] + Duration::from_micros(5);
    assert!(many[2] <= allowed, "10 objects: {few:?}, {MANY}: {many:?}");
    memcg::check();
}
