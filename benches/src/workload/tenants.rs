//! Work that is done for one tenant after another, as a server does. For a peer without groups it is the
//! same work for nobody.
//!
//! `tenants.request`: a request of a tenant makes 16 objects, works on them and frees them.
//! `tenants.replace`: a tenant replaces one of the objects that it keeps. `tenants.pair`: one pair.

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::Tenants;

const TENANTS: usize = 1000;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Groups, "tenants.pair", pair));
    all.push(Workload::new(Family::Groups, "tenants.request", request));
    all.push(Workload::new(Family::Groups, "tenants.replace", replace));
}

fn pair<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(50_000);
    let shape = Shape::of(64);
    meter.run(|| {
        for time in 0..times {
            let scope = cx.tenants.of(time % TENANTS);
            let block = cx.heap.take_touched(shape);
            cx.heap.give(block);
            drop(scope);
        }
        times
    });
}

fn request<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(5_000);
    let mut random = Random::new(67);
    meter.run(|| {
        for _ in 0..times {
            let scope = cx.tenants.of(random.below(TENANTS));
            let mut blocks: [Block; 16] = std::array::from_fn(|_| {
                cx.heap.take_touched(Shape::of(random.power_law(16, 2048)))
            });
            blocks.iter_mut().for_each(Block::bump);
            blocks.into_iter().for_each(|block| cx.heap.give(block));
            drop(scope);
        }
        times
    });
}

fn replace<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let times = cx.scale.some(50_000);
    let mut random = Random::new(71);
    let mut kept: Vec<Option<Block>> = std::iter::repeat_with(|| None).take(20 * TENANTS).collect();
    meter.run(|| {
        for _ in 0..times {
            let slot = random.below(kept.len());
            let scope = cx.tenants.of(slot % TENANTS);
            let fresh = cx.heap.take_touched(Shape::of(random.within(16, 512)));
            if let Some(old) = kept[slot].replace(fresh) {
                cx.heap.give(old);
            }
            drop(scope);
        }
        times
    });
    kept.into_iter().flatten().for_each(|block| cx.heap.give(block));
}
