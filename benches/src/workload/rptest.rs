//! After rpmalloc's benchmark: each thread fills and empties parts of its table, of random sizes up to
//! 8 KiB, and now and then swaps a batch of objects with another thread.

use std::sync::Mutex;

use super::{Cx, Family, Workload, on_threads};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

const TABLE: usize = 2_048;
const CROSS: usize = 200;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::TwoThreads, "rptest", rptest));
}

fn rptest<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let loops = cx.scale.some(500);
    meter.run(|| {
        let crossing: Mutex<Vec<Block>> = Mutex::new(Vec::with_capacity(CROSS));
        let done = on_threads(cx, |thread| table(cx, loops, &crossing, thread));
        let left = crossing.into_inner().expect("nobody panics");
        left.into_iter().for_each(|block| cx.heap.give(block));
        done
    });
}

fn table<A: Allocator, T: Tenants>(
    cx: Cx<A, T>,
    loops: usize,
    crossing: &Mutex<Vec<Block>>,
    thread: usize,
) -> usize {
    let mut random = Random::new(37 + thread as u64);
    let mut turn = cx.tenants.turn();
    let mut slots: Vec<Option<Block>> = std::iter::repeat_with(|| None).take(TABLE).collect();
    let mut mine: Vec<Block> = Vec::with_capacity(CROSS);
    let mut done = 0;
    for _ in 0..loops {
        let begin = random.below(TABLE);
        for offset in 0..random.within(100, 300) {
            let size = random.power_law(16, 8 << 10);
            let fresh = cx.heap.take_touched(Shape::of(size));
            if let Some(old) = slots[(begin + offset * 7) % TABLE].replace(fresh) {
                cx.heap.give(old);
            }
            turn.tick();
            done += 1;
        }
        for _ in 0..CROSS / 4 {
            mine.push(cx.heap.take_touched(Shape::of(random.within(16, 1024))));
            turn.tick();
            done += 1;
        }
        if mine.len() == CROSS {
            // What was in it is the other thread's, most of the time.
            std::mem::swap(&mut mine, &mut crossing.lock().expect("nobody panics"));
            mine.drain(..).for_each(|block| cx.heap.give(block));
        }
    }
    slots.into_iter().flatten().chain(mine).for_each(|block| cx.heap.give(block));
    done
}
