//! After mimalloc's `test-stress`: objects of sizes by a power law, some kept and some short-lived, some
//! handed to other threads through a shared table, and new threads after a while.

use std::sync::Mutex;

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

/// Slots that threads exchange objects through.
const TRANSFER: usize = 1000;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::TwoThreads, "mstress", mstress));
}

fn mstress<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(50_000);
    let transfer: Vec<Mutex<Option<Block>>> =
        std::iter::repeat_with(|| Mutex::new(None)).take(TRANSFER).collect();
    meter.run(|| on_threads(cx, |thread| stress(cx, times, &transfer, thread)));
    for slot in transfer {
        if let Some(block) = slot.into_inner().expect("nobody panics") {
            cx.heap.give(block);
        }
    }
}

fn stress<A: Allocator, T: Tenants>(
    cx: Cx<A, T>,
    times: usize,
    transfer: &[Mutex<Option<Block>>],
    thread: usize,
) -> usize {
    let mut random = Random::new(31 + thread as u64);
    let mut turn = cx.tenants.turn();
    let mut kept: Vec<Block> = Vec::with_capacity(times);
    let mut short: Vec<Block> = Vec::with_capacity(times);
    for _ in 0..times {
        let fresh = cx.heap.take_touched(Shape::of(random.power_law(16, 8 << 10)));
        match random.below(100) {
            0..10 => kept.push(fresh),
            _ => short.push(fresh),
        }
        // About as many are freed as are made: any of the last hundred.
        if short.len() > 100 {
            let slot = short.len() - 1 - random.below(100);
            let mut block = short.swap_remove(slot);
            if random.below(100) < 25 {
                let place = &transfer[random.below(TRANSFER)];
                let other = place.lock().expect("nobody panics").replace(block);
                match other {
                    Some(other) => block = other,
                    None => continue,
                }
            }
            cx.heap.give(block);
        }
        turn.tick();
    }
    short.into_iter().chain(kept).for_each(|block| cx.heap.give(block));
    times
}
