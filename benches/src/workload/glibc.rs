//! After glibc's own: `bench-malloc-simple` fills an array with blocks of one size and empties it,
//! `bench-malloc-thread` replaces random slots by blocks of sizes from 4 bytes to 32 KiB, small ones
//! by far the most.

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Allocator, "glibc-simple", simple));
    all.push(Workload::new(Family::TwoThreads, "glibc-thread", thread));
}

fn simple<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let rounds = cx.scale.some(8);
    let mut blocks: Vec<Block> = Vec::with_capacity(1600);
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        let mut done = 0;
        for _ in 0..rounds {
            for count in [25, 100, 400, 1600] {
                for size in [8, 24, 64, 256, 1024] {
                    let shape = Shape::of(size);
                    for _ in 0..count {
                        blocks.push(cx.heap.take_touched(shape));
                        turn.tick();
                    }
                    blocks.drain(..).for_each(|block| cx.heap.give(block));
                    done += count;
                }
            }
        }
        done
    });
}

fn thread<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(200_000);
    let slots = cx.scale.some(1024);
    meter.run(|| {
        on_threads(cx, |thread| {
            let mut random = Random::new(17 + thread as u64);
            let mut turn = cx.tenants.turn();
            let mut blocks: Vec<Option<Block>> =
                std::iter::repeat_with(|| None).take(slots).collect();
            for _ in 0..times {
                let fresh = cx.heap.take_touched(Shape::of(random.power_law(4, 32 << 10)));
                if let Some(old) = blocks[random.below(slots)].replace(fresh) {
                    cx.heap.give(old);
                }
                turn.tick();
            }
            blocks.into_iter().flatten().for_each(|block| cx.heap.give(block));
            times
        })
    });
}
