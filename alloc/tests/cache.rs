//! The cache as its users see it: against a model, under pressure, under threads. What it makes of hostile keys and values is in
//! `cache_hostile.rs`.

mod support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use memcg::{Cache, Group};
use proptest::prelude::*;
use support::keys;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: u64 = 1 << 20;

/// A small generator, so that tests need no dependency and repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn group(name: &str, max: u64) -> Group {
    Group::root().builder(name).max(max).build().expect("made")
}

// ---- against a model ----------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Op {
    Insert(u16, u32),
    InsertIn(usize, u16, u32),
    Get(u16),
    Remove(u16),
    Add(u16, u32),
    Drop(u16),
    Clear,
    ClearIn(usize),
    Scan,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..300u16;
    prop_oneof![
        12 => (key(), any::<u32>()).prop_map(|(k, v)| Op::Insert(k, v)),
        12 => (0..2usize, key(), any::<u32>()).prop_map(|(g, k, v)| Op::InsertIn(g, k, v)),
        8 => key().prop_map(Op::Get),
        8 => key().prop_map(Op::Remove),
        4 => (key(), any::<u32>()).prop_map(|(k, v)| Op::Add(k, v)),
        2 => key().prop_map(Op::Drop),
        1 => Just(Op::Clear),
        1 => (0..2usize).prop_map(Op::ClearIn),
        1 => Just(Op::Scan),
    ]
}

/// A key of which many have the same hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Poor(u16);

impl std::hash::Hash for Poor {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0 % 7).hash(state);
    }
}

fn run_against_model<K>(ops: &[Op], key: impl Fn(u16) -> K)
where
    K: std::hash::Hash + Eq + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let cache = Cache::<K, u32>::new("model");
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let root = Group::root().create(&format!("model-{run}")).expect("made");
    let groups = [0, 1].map(|i| root.create(&format!("g{i}")).expect("made"));
    // Value and group (2: none) of each key.
    let mut model = HashMap::<u16, (u32, usize)>::new();
    for op in ops {
        match *op {
            Op::Insert(k, v) => {
                let old = cache.insert(key(k), v).expect("no limit");
                assert_eq!(old, model.insert(k, (v, 2)).map(|(v, _)| v));
            }
            Op::InsertIn(g, k, v) => {
                let old = groups[g].run(|| cache.insert(key(k), v)).expect("no limit");
                assert_eq!(old, model.insert(k, (v, g)).map(|(v, _)| v));
            }
            Op::Get(k) => assert_eq!(cache.get(&key(k)), model.get(&k).map(|(v, _)| *v)),
            Op::Remove(k) => assert_eq!(cache.remove(&key(k)), model.remove(&k).map(|(v, _)| v)),
            Op::Add(k, n) => {
                let add = |old: Option<u32>| Some(old.unwrap_or(0).wrapping_add(n));
                let expected = add(model.get(&k).map(|(v, _)| *v));
                assert_eq!(cache.update(&key(k), add), Ok(expected));
                model.insert(k, (expected.expect("set"), 2));
            }
            Op::Drop(k) => {
                assert_eq!(cache.update(&key(k), |_| None), Ok(None));
                model.remove(&k);
            }
            Op::Clear => {
                cache.clear();
                model.clear();
            }
            Op::ClearIn(g) => {
                cache.clear_in(&groups[g]);
                model.retain(|_, (_, group)| *group != g);
            }
            Op::Scan => {
                let seen = keys::scan_all(&cache);
                assert_eq!(seen.len(), model.len(), "each key is seen once");
                assert!(model.keys().all(|k| seen.contains(&key(*k))));
            }
        }
        assert_eq!(cache.len(), model.len());
        for (g, group) in groups.iter().enumerate() {
            let expected = model.values().filter(|(_, of)| *of == g).count();
            assert_eq!(cache.len_in(group), expected);
        }
    }
    cache.check();
    assert_eq!(cache.stat().evictions, 0, "nothing was under pressure");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn does_what_a_hash_map_does(ops in proptest::collection::vec(op(), 1..600)) {
        run_against_model(&ops, |k| k);
    }

    #[test]
    fn does_so_with_keys_that_collide(ops in proptest::collection::vec(op(), 1..300)) {
        run_against_model(&ops, Poor);
    }
}

// ---- limits -------------------------------------------------------------------------------

#[test]
fn a_full_group_makes_room_for_itself_and_for_nobody_else() {
    let (a, b) = (group("full-a", MIB), group("full-b", MIB));
    let cache = Cache::<u64, [u8; 1000]>::direct("full");
    for key in 0..100 {
        b.run(|| cache.insert(key, [1; 1000])).expect("there is room");
    }
    for key in 1000..11_000 {
        a.run(|| cache.insert(key, [2; 1000])).expect("it makes room for itself");
        assert!(a.usage() <= MIB, "usage {} is above max", a.usage());
    }
    assert_eq!(cache.len_in(&b), 100, "others keep what they have");
    assert!((0..100).all(|key| cache.get(&key).is_some()));
    let stat = cache.stat();
    assert_eq!(stat.evictions, 10_100 - cache.len() as u64);
    assert!(cache.len_in(&a) > 500, "a group keeps what it has room for");
    assert!(a.peak() <= MIB);
    cache.check();
}

#[test]
fn the_worker_evicts_what_has_a_drop_of_its_own() {
    struct Counted(#[expect(dead_code, reason = "it takes room")] [u8; 900], Arc<AtomicU64>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicU64::new(0));
    let a = group("worker", MIB);
    let cache = Cache::<u64, Arc<Counted>>::new("worker");
    let mut refused = 0;
    for key in 0..5_000 {
        // The value is an allocation of the group's as well, and that one can abort.
        let value = a.run(|| {
            memcg::fallible(|| Vec::<Counted>::new().try_reserve_exact(1)).ok()?;
            Some(Arc::new(Counted([0; 900], dropped.clone())))
        });
        match value.map(|value| a.run(|| cache.insert(key, value))) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => refused += 1,
        }
        assert!(a.usage() <= MIB);
    }
    assert!(refused < 50, "{refused} of 5000 were refused");
    let stat = cache.stat();
    assert!(stat.evictions > 3_000, "{stat:?}");
    drop(cache);
    // A worker that is inside a call keeps the insides until it returns.
    let deadline = Instant::now() + Duration::from_secs(5);
    while dropped.load(Ordering::Relaxed) < stat.inserts && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(dropped.load(Ordering::Relaxed) >= stat.inserts);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_changes() {
    let a = group("refused", 64 << 10);
    let cache = Cache::<u32, Box<[u8]>>::direct("refused");
    let kept = a.run(|| vec![7u8; 56 << 10]);
    a.run(|| cache.insert(1, Box::from([1, 2, 3]))).expect("there is room");
    let large = Cache::<u32, [u8; 16 << 10]>::direct("refused-large");
    let over = a.run(|| large.insert(1, [0; 16 << 10])).expect_err("there is no room");
    assert_eq!(over.group(), Some(a.clone()));
    assert!(over.requested() >= 16 << 10);
    assert!(large.is_empty());
    assert_eq!(large.stat().inserts, 0);
    assert_eq!(Group::root().run(|| large.insert(1, [5; 16 << 10])), Ok(None));
    let over = a.run(|| large.insert(1, [6; 16 << 10])).expect_err("there is no room");
    assert_eq!(over.max(), 64 << 10);
    assert_eq!(large.get(&1), Some([5; 16 << 10]), "what was there is still there");
    drop(kept);
}

#[test]
fn an_overwrite_moves_the_entry_to_the_group_that_overwrites() {
    let (a, b) = (group("move-a", MIB), group("move-b", MIB));
    let cache = Cache::<u32, u32>::direct("move");
    a.run(|| cache.insert(1, 1)).expect("there is room");
    assert_eq!((cache.len_in(&a), cache.len_in(&b)), (1, 0));
    assert_eq!(b.run(|| cache.insert(1, 2)), Ok(Some(1)));
    assert_eq!((cache.len_in(&a), cache.len_in(&b)), (0, 1));
    a.run(|| cache.update(&1, |old| old)).expect("there is room");
    assert_eq!((cache.len_in(&a), cache.len_in(&b)), (1, 0));
    assert_eq!(cache.stat().evictions, 0, "an overwrite is none");
}

#[test]
fn entries_of_a_group_that_drops_are_its_parents_and_can_be_evicted_there() {
    let parent = group("heir", MIB);
    let child = parent.create("gone").expect("made");
    let cache = Cache::<u64, [u8; 1000]>::direct("heir");
    for key in 0..300 {
        child.run(|| cache.insert(key, [0; 1000])).expect("there is room");
    }
    drop(child);
    assert_eq!(cache.len_in(&parent), 300);
    assert!((0..300).all(|key| cache.get(&key).is_some()));
    for key in 1_000..3_000 {
        parent.run(|| cache.insert(key, [0; 1000])).expect("the child's entries make room");
        assert!(parent.usage() <= MIB);
    }
    assert!((0..300).filter(|key| cache.get(key).is_some()).count() < 300);
    cache.check();
    cache.clear();
    memcg::drain();
    assert_eq!(parent.usage(), 0);
}

#[test]
fn clear_in_takes_one_groups_entries_and_clear_gives_everything_back() {
    let (a, b) = (group("clear-a", MIB), group("clear-b", MIB));
    let cache = Cache::<u32, [u8; 100]>::direct("clear");
    for key in 0..2_000 {
        let payer = if key % 2 == 0 { &a } else { &b };
        payer.run(|| cache.insert(key, [0; 100])).expect("there is room");
    }
    cache.clear_in(&a);
    assert_eq!((cache.len_in(&a), cache.len_in(&b)), (0, 1_000));
    memcg::drain();
    assert_eq!(a.usage(), 0);
    cache.clear();
    assert_eq!(cache.len(), 0);
    memcg::drain();
    assert_eq!(b.usage(), 0);
    assert_eq!(cache.stat().evictions, 0);
    assert_eq!(keys::scan_all(&cache), Vec::<u32>::new());
    cache.check();
}

#[test]
fn max_entries_bounds_a_cache_outside_groups() {
    let cache = Cache::<u32, u32>::direct("bounded").with_max_entries(100);
    for key in 0..1_000 {
        cache.insert(key, key).expect("no limit");
        assert!(cache.len() <= 100);
    }
    assert_eq!(cache.len(), 100);
    assert_eq!(cache.stat().evictions, 900);
    cache.insert(5_000, 0).expect("no limit");
    assert_eq!(cache.len(), 100);
}

#[test]
fn a_thousand_empty_caches_take_little() {
    let a = group("small", 64 << 10);
    let caches: Vec<_> = a.run(|| (0..1_000).map(|_| Cache::<u64, u64>::direct("small")).collect());
    memcg::drain();
    // The vector of the caches, and nothing of theirs.
    assert!(a.usage() <= 32 << 10, "{}", a.usage());
    drop(caches);
}

// ---- what stays ---------------------------------------------------------------------------

/// A key by Zipf's law with exponent 1, of `n`.
fn zipf(random: &mut Random, harmonic: &[f64]) -> u64 {
    let at = (random.next() >> 11) as f64 / (1u64 << 53) as f64 * harmonic[harmonic.len() - 1];
    harmonic.partition_point(|sum| *sum < at) as u64
}

#[test]
fn scans_do_not_push_out_what_is_used() {
    const KEYS: usize = 20_000;
    let tenant = group("zipf", 2 * MIB);
    let cache = Cache::<u64, [u8; 440]>::direct("zipf");
    let mut harmonic = Vec::with_capacity(KEYS);
    let mut sum = 0.0;
    for i in 1..=KEYS {
        sum += 1.0 / i as f64;
        harmonic.push(sum);
    }
    let mut random = Random(0x5eed);
    let read = |key: u64| {
        if cache.get(&key).is_some() {
            return true;
        }
        tenant.run(|| cache.insert(key, [0; 440])).expect("it makes room for itself");
        false
    };
    for _ in 0..100_000 {
        read(zipf(&mut random, &harmonic));
    }
    let mut rate = |nr: u32, scans: bool| {
        let (mut hits, mut scanned) = (0, 1 << 32);
        for i in 0..nr {
            hits += u32::from(read(zipf(&mut random, &harmonic)));
            if scans && i % 2 == 0 {
                // Keys that nobody asks for again: as many as half of the real reads.
                scanned += 1;
                read(scanned);
            }
        }
        f64::from(hits) / f64::from(nr)
    };
    let (quiet, noisy) = (rate(100_000, false), rate(100_000, true));
    let kept = cache.len() as f64 / KEYS as f64;
    assert!(quiet > 0.6, "hit rate {quiet:.3} with {kept:.2} of the keys");
    assert!(noisy > quiet - 0.12, "hit rate {noisy:.3} beside scans, {quiet:.3} without");
    let hot = (0..100).filter(|key| cache.get(key).is_some()).count();
    assert!(hot >= 95, "{hot} of the 100 hottest are there");
}

#[test]
fn scanning_sees_every_key_that_stays_while_the_tables_grow_and_shrink() {
    let cache = Cache::<u32, u32>::new("scanned");
    for key in 0..500 {
        cache.insert(key, 0).expect("no limit");
    }
    for round in 0..6 {
        let (mut seen, mut cursor, mut turn) = (HashMap::<u32, u32>::new(), 0, 0);
        loop {
            let (next, keys) = cache.scan(cursor);
            for key in keys {
                *seen.entry(key).or_default() += 1;
            }
            // Ten thousand others come in one round and go in the next.
            let others = (0..1_000).map(|i| 1_000 + (turn * 1_000 + i) % 10_000);
            for other in others {
                if round % 2 == 0 {
                    cache.insert(other, 0).expect("no limit");
                } else {
                    cache.remove(&other);
                }
            }
            turn += 1;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        for key in 0..500 {
            assert_eq!(seen.get(&key), Some(&1), "key {key} in round {round}");
        }
        cache.check();
    }
}

// ---- threads ------------------------------------------------------------------------------

#[test]
fn updates_of_one_key_are_one_after_the_other() {
    let cache = Cache::<&str, u64>::new("counter");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..2_000u32 {
                    let count = |old: Option<u64>| {
                        if i % 64 == 0 {
                            std::thread::yield_now();
                        }
                        Some(old.unwrap_or(0) + 1)
                    };
                    cache.update(&"n", count).expect("no limit");
                }
            });
        }
    });
    assert_eq!(cache.get(&"n"), Some(8_000), "{:?}", cache.stat());
}

#[test]
fn an_insertion_beside_an_update_comes_before_or_after_it() {
    let cache = Cache::<u32, u32>::new("beside");
    let inside = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            inside.wait();
            cache.insert(1, 100).expect("no limit");
        });
        let update = |old: Option<u32>| {
            inside.wait();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(old, None);
            assert_eq!(cache.insert(2, 2), Ok(None), "other keys can be changed");
            assert_eq!(cache.get(&1), None, "lookups pass");
            Some(1)
        };
        assert_eq!(cache.update(&1, update), Ok(Some(1)));
    });
    assert_eq!(cache.get(&1), Some(100), "it had to wait");
}

#[test]
fn changing_a_key_from_within_its_own_update_panics_and_does_not_hang() {
    let cache = Cache::<u32, u32>::new("nested");
    cache.insert(1, 1).expect("no limit");
    let nested = catch_unwind(AssertUnwindSafe(|| {
        cache.update(&1, |_| cache.insert(1, 2).expect("no limit"))
    }));
    assert!(nested.is_err());
    assert_eq!(cache.get(&1), Some(1));
    assert_eq!(cache.insert(1, 3), Ok(Some(1)), "the update is over");
}
