//! Resident bytes after a burst of which little stays: one object in ten, in a hundred, in each 64 KiB and in each
//! 256 KiB. Looked at when the others have just been freed, and after ten seconds in which the program goes on.

use std::thread;
use std::time::{Duration, Instant};

use super::{Cx, Family, Workload};
use crate::block::{Allocator, Block, Shape};
use crate::meter::{Memory, Meter, Scale};
use crate::random::Random;
use crate::rss;
use crate::tenants::{Tenants, Turn};

/// Which stay.
#[derive(Clone, Copy)]
enum Keep {
    /// One of so many.
    OneOf(usize),
    /// One of so many bytes.
    Each(usize),
}

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    macro_rules! workloads {
        ($($name:literal: $size:literal, $keep:expr;)*) => {
            $(all.push(Workload::new(Family::Memory, $name, |cx, meter| fill(cx, meter, $size, $keep)));)*
        };
    }
    workloads! {
        "kept.16.tenth": 16, Keep::OneOf(10);
        "kept.16.hundredth": 16, Keep::OneOf(100);
        "kept.16.64k": 16, Keep::Each(64 << 10);
        "kept.16.256k": 16, Keep::Each(256 << 10);
        "kept.1024.tenth": 1024, Keep::OneOf(10);
        "kept.1024.hundredth": 1024, Keep::OneOf(100);
        "kept.1024.64k": 1024, Keep::Each(64 << 10);
        "kept.1024.256k": 1024, Keep::Each(256 << 10);
        "kept.8192.tenth": 8192, Keep::OneOf(10);
        "kept.8192.hundredth": 8192, Keep::OneOf(100);
        "kept.8192.64k": 8192, Keep::Each(64 << 10);
        "kept.8192.256k": 8192, Keep::Each(256 << 10);
        "kept.32768.tenth": 32_768, Keep::OneOf(10);
        "kept.32768.hundredth": 32_768, Keep::OneOf(100);
        "kept.32768.256k": 32_768, Keep::Each(256 << 10);
    }
}

fn fill<A, T>(cx: Cx<A, T>, meter: &mut Meter, size: usize, keep: Keep)
where
    A: Allocator,
    T: Tenants,
{
    let bytes = if cx.scale == Scale::Tiny { 1 << 20 } else { 48 << 20 };
    let nr = bytes / size;
    let one_of = match keep {
        Keep::OneOf(nr) => nr,
        Keep::Each(bytes) => bytes / size,
    };
    let mut random = Random::new(79);
    let mut turn = cx.tenants.turn();
    // The tables themselves are there before and after.
    let mut blocks: Vec<Block> = Vec::with_capacity(nr);
    let mut kept: Vec<Block> = Vec::with_capacity(nr / one_of * 2 + 100);
    for table in [&mut blocks, &mut kept] {
        table.spare_capacity_mut().iter_mut().step_by(64).for_each(|slot| {
            // SAFETY: within the spare capacity; a byte of an unused slot.
            unsafe { slot.as_mut_ptr().cast::<u8>().write_volatile(0) };
        });
    }
    let mut memory = Memory { before: rss::now(), ..Memory::default() };
    for _ in 0..nr {
        let mut block = cx.heap.take_touched(Shape::of(size));
        block.touch_each(4096);
        blocks.push(block);
        turn.tick();
    }
    memory.full = rss::now();
    for block in blocks.drain(..) {
        if random.below(one_of) == 0 && kept.len() < kept.capacity() {
            kept.push(block);
        } else {
            cx.heap.give(block);
        }
    }
    memory.asked = (kept.len() * size) as u64;
    memory.kept = rss::now();
    let start = Instant::now();
    let rest = Duration::from_secs(if cx.scale == Scale::Tiny { 0 } else { 10 });
    while start.elapsed() < rest {
        // Who gives memory back as the program allocates has its turns.
        for _ in 0..1000 {
            cx.heap.give(cx.heap.take_touched(Shape::of(48)));
        }
        thread::sleep(Duration::from_millis(10));
    }
    memory.later = rss::now();
    kept.drain(..).for_each(|block| cx.heap.give(block));
    meter.memory(memory);
}
