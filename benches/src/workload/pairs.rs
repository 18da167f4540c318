//! One allocation and its free, over and over: the shortest way through an allocator.
//!
//! `box` goes through the installed allocator as `Box` does, and is not inlined into the loop.

use std::hint::black_box;

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Shape};
use crate::meter::Meter;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    let one = |name, run| Workload::new(Family::Allocator, name, run);
    all.extend([
        one("pair.16", pair::<A, T, 16>),
        one("pair.64", pair::<A, T, 64>),
        one("pair.256", pair::<A, T, 256>),
        one("pair.1024", pair::<A, T, 1024>),
        one("pair.4096", pair::<A, T, 4096>),
        one("box.64", boxed),
        Workload::new(Family::TwoThreads, "threads.pair.64", two),
    ]);
}

fn some<A: Allocator, T: Tenants>(cx: Cx<A, T>, size: usize, times: usize) -> usize {
    let mut turn = cx.tenants.turn();
    let shape = Shape::of(size);
    for _ in 0..times {
        let block = cx.heap.take_touched(shape);
        cx.heap.give(block);
        turn.tick();
    }
    times
}

fn pair<A: Allocator, T: Tenants, const SIZE: usize>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(200_000);
    meter.run(|| some(cx, SIZE, times));
}

fn boxed<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(200_000);
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        for _ in 0..times {
            drop(black_box(Box::new(black_box([1_u64; 8]))));
            turn.tick();
        }
        times
    });
}

fn two<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(200_000);
    meter.run(|| on_threads(cx, |_| some(cx, 64, times)));
}
