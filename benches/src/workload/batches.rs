//! A thousand objects, then their frees: last first, first first, or in random order.
//!
//! Thread caches overflow here; where they do is the difference between allocators.

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

const BATCH: usize = 1000;

#[derive(Clone, Copy)]
enum Order {
    Lifo,
    Fifo,
    Random,
}

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    let one = |name, run| Workload::new(Family::Allocator, name, run);
    all.extend([
        one("batch.lifo.64", |cx, meter| batch(cx, meter, 64, Order::Lifo)),
        one("batch.fifo.64", |cx, meter| batch(cx, meter, 64, Order::Fifo)),
        one("batch.random.64", |cx, meter| batch(cx, meter, 64, Order::Random)),
        one("batch.fifo.16", |cx, meter| batch(cx, meter, 16, Order::Fifo)),
        one("batch.random.256", |cx, meter| batch(cx, meter, 256, Order::Random)),
    ]);
}

fn batch<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter, size: usize, order: Order) {
    let shape = Shape::of(size);
    let batches = cx.scale.some(50);
    let mut indices: Vec<usize> = (0..BATCH).collect();
    match order {
        Order::Lifo => indices.reverse(),
        Order::Fifo => {}
        Order::Random => Random::new(7).shuffle(&mut indices),
    }
    let mut blocks: Vec<_> = std::iter::repeat_with(|| None).take(BATCH).collect();
    meter.run(|| {
        let mut turn = cx.tenants.turn();
        for _ in 0..batches {
            for slot in &mut blocks {
                *slot = Some(cx.heap.take_touched(shape));
                turn.tick();
            }
            for &index in &indices {
                if let Some(block) = blocks[index].take() {
                    cx.heap.give(block);
                }
            }
        }
        batches * BATCH
    });
}
