//! Objects beyond all size classes.
//!
//! `large` after mimalloc-bench's `alloc-large`: 5 to 25 MiB in 20 slots, a byte written in each 64 KiB.
//! `large.64k` is a hot pair just above the slab classes. `realloc` grows vectors from 16 bytes to 1 MiB
//! by doubling, four at a time, as `Vec` does.

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Allocator, "large", large));
    all.push(Workload::new(Family::Allocator, "large.64k", just_large));
    all.push(Workload::new(Family::Allocator, "realloc", realloc));
}

fn large<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(100);
    let mut random = Random::new(19);
    let mut slots: [Option<Block>; 20] = [const { None }; 20];
    let mut turn = cx.tenants.turn();
    meter.run(|| {
        for _ in 0..times {
            let slot = random.below(slots.len());
            if let Some(old) = slots[slot].take() {
                cx.heap.give(old);
            }
            let mut block = cx.heap.take(Shape::of(random.within(5 << 20, 25 << 20)));
            block.touch_each(64 << 10);
            slots[slot] = Some(block);
            turn.tick();
        }
        times
    });
    slots.into_iter().flatten().for_each(|block| cx.heap.give(block));
}

fn just_large<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(5_000);
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        for _ in 0..times {
            let block = cx.heap.take_touched(Shape::of(60_000));
            cx.heap.give(block);
            turn.tick();
        }
        times
    });
}

fn realloc<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let rounds = cx.scale.some(4);
    let top = if rounds > 1 { 1 << 20 } else { 64 << 10 };
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        let mut done = 0;
        for _ in 0..rounds {
            let mut blocks: [Block; 4] =
                std::array::from_fn(|_| cx.heap.take_touched(Shape::of(16)));
            let mut size = 16;
            while size < top {
                size *= 2;
                blocks = blocks.map(|block| {
                    let mut block = cx.heap.resize(block, size);
                    block.bump();
                    turn.tick();
                    block
                });
                done += blocks.len();
            }
            blocks.into_iter().for_each(|block| cx.heap.give(block));
        }
        done
    });
}
