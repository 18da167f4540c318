//! std's maps under churn: entries come and go at random, their values on the heap.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;

use super::{Cx, Family, Workload};
use crate::block::Allocator;
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

const KEYS: usize = 20_000;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Application, "btreemap", btree));
    all.push(Workload::new(Family::Application, "hashmap", hash));
}

fn value(random: &mut Random) -> Vec<u8> {
    let mut value = Vec::with_capacity(random.power_law(16, 1024));
    value.push(1);
    black_box(value)
}

fn btree<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(20_000);
    let mut random = Random::new(41);
    let mut map = BTreeMap::new();
    let mut turn = cx.tenants.turn();
    meter.run(|| {
        for _ in 0..times {
            let key = random.below(KEYS);
            if map.remove(&key).is_none() {
                map.insert(key, value(&mut random));
            }
            turn.tick();
        }
        times
    });
}

/// The map itself grows from nothing in each turn.
fn hash<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(20_000);
    let mut random = Random::new(43);
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        let mut map: HashMap<u64, Box<[u64; 4]>> = HashMap::new();
        for time in 0..times {
            let key = random.below(times) as u64;
            if time % 3 == 0 {
                map.remove(&key);
            } else {
                map.insert(key, Box::new([key; 4]));
            }
            turn.tick();
        }
        times
    });
}
