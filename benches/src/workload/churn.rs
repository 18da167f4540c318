//! Random sizes in random slots.
//!
//! `alloc-test` after node-dcpp's: 50,000 slots; a full one is emptied, an empty one filled, sizes by
//! a power law. `churn` replaces an object of 10,000 by a fresh one: each operation a free and an
//! allocation.

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Allocator, "alloc-test", alloc_test));
    all.push(Workload::new(Family::Allocator, "churn", churn));
}

fn alloc_test<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(100_000);
    let live = cx.scale.some(50_000);
    let mut random = Random::new(11);
    let mut slots: Vec<Option<Block>> = std::iter::repeat_with(|| None).take(2 * live).collect();
    let mut turn = cx.tenants.turn();
    let mut step = |slots: &mut Vec<Option<Block>>| {
        let slot = random.below(slots.len());
        match slots[slot].take() {
            Some(block) => cx.heap.give(block),
            None => {
                let size = random.power_law(8, 4096);
                slots[slot] = Some(cx.heap.take_touched(Shape::of(size)));
            }
        }
        turn.tick();
    };
    (0..4 * live).for_each(|_| step(&mut slots));
    meter.run(|| {
        (0..times).for_each(|_| step(&mut slots));
        times
    });
    slots.into_iter().flatten().for_each(|block| cx.heap.give(block));
}

fn churn<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(100_000);
    let mut random = Random::new(13);
    let take = |random: &mut Random| cx.heap.take_touched(Shape::of(random.within(16, 512)));
    let mut turn = cx.tenants.turn();
    let mut slots: Vec<Block> = Vec::new();
    for _ in 0..cx.scale.some(10_000) {
        slots.push(take(&mut random));
        turn.tick();
    }
    meter.run(|| {
        for _ in 0..times {
            let slot = random.below(slots.len());
            let old = std::mem::replace(&mut slots[slot], take(&mut random));
            cx.heap.give(old);
            turn.tick();
        }
        times
    });
    slots.into_iter().for_each(|block| cx.heap.give(block));
}
