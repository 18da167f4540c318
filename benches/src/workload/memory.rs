//! Resident bytes: many live objects of one size or of mixed ones, then 90 % of them freed at random, then
//! all. Every object is written to, page by page.

use std::thread;
use std::time::Duration;

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Block, Shape};
use crate::meter::{Memory, Meter, Scale};
use crate::random::Random;
use crate::rss;
use crate::tenants::{Tenants, Turn};

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    let one = |name, run| Workload::new(Family::Memory, name, run);
    all.extend([
        one("memory.16", |cx, meter| fill(cx, meter, 16, |_| 16)),
        one("memory.48", |cx, meter| fill(cx, meter, 48, |_| 48)),
        one("memory.256", |cx, meter| fill(cx, meter, 256, |_| 256)),
        one("memory.4096", |cx, meter| fill(cx, meter, 4096, |_| 4096)),
        one("memory.mixed", |cx, meter| {
            fill(cx, meter, 64, |random| random.power_law(16, 16 << 10))
        }),
    ]);
}

/// How long after everything was freed a heap is looked at.
#[must_use]
pub fn rest(scale: Scale) -> Duration {
    Duration::from_millis(match scale {
        Scale::Tiny => 0,
        Scale::Quick => 500,
        Scale::Full => 5000,
    })
}

/// `least` is what a size is on average, at least.
fn fill<A, T>(cx: Cx<A, T>, meter: &mut Meter, least: usize, size: fn(&mut Random) -> usize)
where
    A: Allocator,
    T: Tenants,
{
    let bytes = match cx.scale {
        Scale::Tiny => 1 << 20,
        Scale::Quick => 32 << 20,
        Scale::Full => 128 << 20,
    };
    let mut random = Random::new(73);
    let mut turn = cx.tenants.turn();
    // The table itself is there before and after.
    let mut blocks: Vec<Block> = Vec::with_capacity(bytes / least + 1);
    blocks.spare_capacity_mut().iter_mut().step_by(64).for_each(|slot| {
        // SAFETY: within the spare capacity; a byte of an unused slot.
        unsafe { slot.as_mut_ptr().cast::<u8>().write_volatile(0) };
    });
    let mut memory = Memory { before: rss::now(), ..Memory::default() };
    let mut asked = 0;
    while asked < bytes {
        let size = size(&mut random);
        let mut block = cx.heap.take_touched(Shape::of(size));
        block.touch_each(4096);
        blocks.push(block);
        asked += size;
        turn.tick();
    }
    memory.asked = asked as u64;
    memory.full = rss::now();
    random.shuffle(&mut blocks);
    let tenth = blocks.len() / 10;
    blocks.drain(tenth..).for_each(|block| cx.heap.give(block));
    thread::sleep(rest(cx.scale) / 5);
    memory.tenth = rss::now();
    blocks.drain(..).for_each(|block| cx.heap.give(block));
    thread::sleep(rest(cx.scale));
    memory.empty = rss::now();
    meter.memory(memory);
}
