//! After Larson and Krishnan's server simulation: each thread replaces random objects of its slots, dies,
//! and hands the slots to a new thread, which frees what a dead one allocated.

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

const SLOTS: usize = 1000;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::TwoThreads, "larson", larson));
}

fn larson<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(50_000);
    let generations = cx.scale.some(4);
    meter.run(|| {
        on_threads(cx, |chain| {
            let mut random = Random::new(23 + chain as u64);
            let mut slots: Vec<Block> = (0..SLOTS)
                .map(|_| cx.heap.take_touched(Shape::of(random.within(10, 1000))))
                .collect();
            for _ in 0..generations {
                let heir = || {
                    let _home = cx.tenants.home();
                    let mut turn = cx.tenants.turn();
                    for _ in 0..times {
                        let slot = random.below(SLOTS);
                        let fresh = cx.heap.take_touched(Shape::of(random.within(10, 1000)));
                        cx.heap.give(std::mem::replace(&mut slots[slot], fresh));
                        turn.tick();
                    }
                };
                std::thread::scope(|scope| {
                    scope.spawn(heir).join().expect("no workload panics");
                });
            }
            slots.into_iter().for_each(|block| cx.heap.give(block));
            generations * times
        })
    });
}
