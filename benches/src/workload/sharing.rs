//! After Hoard's `cache-scratch` and `cache-thrash`: whether an allocator puts objects of two threads into
//! one cache line. In `cache-scratch` each thread begins with an object that the main thread made, one
//! after the other; in `cache-thrash` with nothing. Then it frees, allocates and writes.

use std::sync::Mutex;

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Shape};
use crate::meter::Meter;
use crate::tenants::{Tenants, Turn};

/// Writes to each object: enough to show a shared line, few enough to show the allocator.
const WRITES: usize = 100;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    let one = |name, run| Workload::new(Family::TwoThreads, name, run);
    all.push(one("cache-scratch", |cx, meter| sharing(cx, meter, true)));
    all.push(one("cache-thrash", |cx, meter| sharing(cx, meter, false)));
}

fn sharing<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter, given: bool) {
    let times = cx.scale.some(100_000);
    let shape = Shape::of(8);
    meter.run(|| {
        let gift = || Mutex::new(given.then(|| cx.heap.take_touched(shape)));
        let gifts: Vec<_> = std::iter::repeat_with(gift).take(cx.team()).collect();
        on_threads(cx, |thread| {
            let mut turn = cx.tenants.turn();
            if let Some(gift) = gifts[thread].lock().expect("nobody panics").take() {
                cx.heap.give(gift);
            }
            for _ in 0..times {
                let mut block = cx.heap.take_touched(shape);
                for _ in 0..WRITES {
                    block.bump();
                }
                cx.heap.give(block);
                turn.tick();
            }
            times
        })
    });
}
