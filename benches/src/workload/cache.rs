//! Caches under Zipf: a look-up, and an insertion where it misses.
//!
//! `cache.std` is the same code, of std's parts, on every allocator. `cache.own` is the cache that a
//! program on the allocator would use: `memcg::Cache` with memcg, the one of std's parts elsewhere; so it
//! compares caches as well as allocators.

use std::sync::Arc;

use super::{Cx, Family, Workload};
use crate::block::Allocator;
use crate::meter::Meter;
use crate::random::{Random, Zipf};
use crate::second_chance::SecondChance;
use crate::tenants::{Tenants, TestCache, Turn};

/// Keys that are asked for.
const KEYS: u32 = 100_000;
/// Entries that a cache may hold.
const ENTRIES: usize = 10_000;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    let one = |name, run| Workload::new(Family::Application, name, run);
    all.push(one("cache.std", zipf::<A, T, SecondChance>));
    all.push(one("cache.own", zipf::<A, T, T::Cache>));
}

fn zipf<A: Allocator, T: Tenants, C: TestCache>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(20_000);
    let mut random = Random::new(61);
    let keys = Zipf::new(KEYS);
    let cache = C::of(cx.scale.some(ENTRIES));
    let mut turn = cx.tenants.turn();
    let mut some = |times| {
        for _ in 0..times {
            let key = keys.next(&mut random) as u64;
            if cache.get(key).is_none() {
                let size = random.within(100, 1500);
                cache.put(key, Arc::from(vec![1; size]));
            }
            turn.tick();
        }
        times
    };
    // Filled first.
    some(4 * times);
    meter.run(|| some(times));
}
