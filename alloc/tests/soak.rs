//! Everything at once, for as long as `MEMCG_SOAK_SECONDS` says: groups come and go with objects inside, limits change, caches
//! and shrinkers come and go, threads begin and end, the process forks. After each round usage is 0 and every invariant
//! holds; memory does not grow from round to round.

mod support;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cache, Group, ShrinkerBuilder};
use support::hoard::Hoard;
use support::{Random, Raw, Watchdog, alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Without a number of seconds.
const SHORT: u64 = 2;
/// The limit of all that a round does.
const MAX: u64 = 8 << 20;

/// How far a thread that reclaims may bring a group over its limit.
const RESERVE: u64 = 1 << 20;

fn work(top: &Group, cache: &Cache<u64, [u8; 500]>, seed: u64) {
    let mut random = Random::new(seed);
    let mut held: Vec<Raw> = Vec::new();
    let hoard = Arc::new(Hoard::new(Vec::new()));
    let registration = ShrinkerBuilder::new("hoard").register(hoard.clone());
    for turn in 0..400_u64 {
        let name = format!("{seed} {turn}");
        let group = top.builder(&name).max(64 << 10).build().expect("a fresh name");
        let below = group.create("below").expect("fresh");
        for _ in 0..20 {
            let most = if random.below(20) == 0 { 80_000 } else { 1500 };
            held.extend(Raw::in_group(&below, 1 + random.below(most)));
            let _ = group.run(|| cache.insert(random.next() % 2000, [7; 500]));
        }
        if let Some(mut hoard) = hoard.try_lock() {
            hoard.extend(memcg::no_reclaim(|| Raw::in_group(top, 3000)));
        }
        if random.below(4) == 0 {
            let _ = group.set_max(random.next() % (32 << 10));
        }
        while held.len() > 100 {
            drop(held.swap_remove(random.below(held.len())));
        }
    }
    drop(registration);
}

fn round(nr: u64) {
    let top = Group::root().builder("soak").max(MAX).build().expect("the last one is gone");
    let cache = Cache::<u64, [u8; 500]>::direct("soak");
    thread::scope(|scope| {
        for seed in 0..3 {
            let (top, cache) = (&top, &cache);
            scope.spawn(move || work(top, cache, 10 * nr + seed));
        }
        for _ in 0..3 {
            fork_and(|| {
                memcg::check();
                assert!(top.usage() <= MAX);
                drop(Raw::in_group(&top, 1000));
            });
        }
    });
    assert!(top.peak() <= MAX + RESERVE);
    drop(cache);
    memcg::drain();
    // At once: what the library is at keeps no group, and nothing charged.
    let stat = top.stat();
    assert_eq!((stat.usage, stat.nr_descendants), (0, 0), "{stat:?}");
    // But its record, for the length of a call, which a busy machine may make a long one.
    let is_over = Instant::now() + Duration::from_secs(60);
    while top.stat().nr_contexts != 0 && Instant::now() < is_over {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(top.stat().nr_contexts, 0, "{:?}", top.stat());
    memcg::check();
}

#[test]
fn rounds_of_everything_leave_nothing_behind() {
    let _alone = alone();
    let seconds = std::env::var("MEMCG_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(SHORT, |seconds| seconds.parse().expect("a number"));
    let (start, mut nr, mut metadata) = (Instant::now(), 0, 0);
    while nr < 3 || start.elapsed() < Duration::from_secs(seconds) {
        let _watchdog = Watchdog::new("a round");
        round(nr);
        let now = memcg::self_stat().metadata;
        match nr {
            0..3 => metadata = metadata.max(now),
            // A record for a thread that met more others than any before.
            _ => assert!(now <= metadata + (2 << 20), "round {nr}: {metadata}, now {now}"),
        }
        nr += 1;
    }
    println!("{nr} rounds in {} s", start.elapsed().as_secs());
}
