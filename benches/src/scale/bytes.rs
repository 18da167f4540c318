//! Resident bytes: of a thread, and of a context that outlives its group.

use std::error::Error;
use std::sync::Barrier;
use std::thread;

use memcg::Group;

use super::{MEMCG, replace, roomy};
use crate::aim::Aim;
use crate::block::{Block, Heap, Shape};
use crate::meter::Scale;
use crate::random::Random;
use crate::rss;

/// Threads that are alive at once.
const THREADS: usize = 64;

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    println!("### resident bytes\n");
    println!("| | bytes |");
    println!("|---|---|");
    let group = roomy(&Group::root(), "bytes")?;
    // The first one pays for what all of them use.
    thread::spawn(|| {}).join().expect("no panic");
    let before = rss::now();
    let threads = |work: &(dyn Fn(usize) + Sync)| threads(before, work);
    let idle = threads(&|_| {});
    println!("| a thread that allocates nothing itself | {idle:.0} |");
    let few =
        threads(&|_| group.run(|| Heap(&MEMCG).give(Heap(&MEMCG).take_touched(Shape::of(64)))));
    println!("| a thread that allocated and freed one object | {few:.0} |");
    let busy = threads(&|thread| {
        let mut random = Random::new(thread as u64);
        group.run(|| replace(Heap(&MEMCG), 100_000, &mut random, |_| {}));
    });
    println!("| a thread that replaced 100,000 objects and freed all | {busy:.0} |");
    println!("| a context that outlives its group, beside its object | {:.0} |", contexts(scale)?);
    println!();
    Ok(Vec::new())
}

/// What a thread that did `work` and is idle now takes, its stack included, where `before` were resident
/// without any. Its record may be one that a thread has left.
fn threads(before: u64, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let (done, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (done, end) = (&done, &end);
            scope.spawn(move || {
                work(thread);
                done.wait();
                end.wait();
            });
        }
        done.wait();
        let resident = rss::now().saturating_sub(before) as f64 / THREADS as f64;
        end.wait();
        resident
    })
}

/// Groups that go while one 64-byte object of each lives, beside as many objects of one group.
fn contexts(scale: Scale) -> Result<f64, Box<dyn Error>> {
    let count = if scale == Scale::Full { 200_000 } else { 50_000 };
    let heap = Heap(&MEMCG);
    let shape = Shape::of(64);
    let parent = roomy(&Group::root(), "contexts")?;
    let mut blocks: Vec<Block> = Vec::with_capacity(3 * count);
    let resident = || rss::now() as f64 / count as f64;
    // The first go takes what was free before.
    parent.run(|| blocks.extend((0..count).map(|_| heap.take_touched(shape))));
    let start = resident();
    parent.run(|| blocks.extend((0..count).map(|_| heap.take_touched(shape))));
    let one = resident();
    for _ in 0..count {
        let group = parent.create("short")?;
        group.run(|| blocks.push(heap.take_touched(shape)));
    }
    let each = resident();
    blocks.drain(..).for_each(|block| heap.give(block));
    Ok((each - one) - (one - start))
}
