//! The lives of groups: making and dropping them, entering and leaving.

use std::error::Error;
use std::time::{Duration, Instant};

use memcg::Group;

use super::{MEMCG, ns, roomy};
use crate::aim::Aim;
use crate::block::{Block, Heap, Shape};
use crate::meter::{Scale, median};

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    println!("### lives of groups\n");
    println!("| live objects | create, ns | drop, ns |");
    println!("|---|---|---|");
    let parent = roomy(&Group::root(), "lives")?;
    let times = if scale == Scale::Full { 20_000 } else { 2_000 };
    let mut lives = Vec::new();
    for objects in [0, 1, 10, 1_000] {
        let (create, end) = life(&parent, times.min(2_000_000 / (objects + 1)), objects)?;
        println!("| {objects} | {create:.0} | {end:.0} |");
        lives.push(create + end);
    }
    println!("\n| | ns |");
    println!("|---|---|");
    let group = roomy(&parent, "entered")?;
    let times = 1_000_000;
    let scope = ns(times, || (0..times).for_each(|_| drop(std::hint::black_box(&group).enter())));
    println!("| enter and leave | {scope:.1} |");
    let heap = Heap(&MEMCG);
    let shape = Shape::of(64);
    // Each run has another object: what a pair costs depends on where its object and its tag lie.
    let mut held: Vec<Block> = Vec::with_capacity(100);
    let pair = group.run(|| {
        ns(times, || {
            held.push(heap.take_touched(shape));
            (0..times).for_each(|_| heap.give(heap.take_touched(shape)));
        })
    });
    held.into_iter().for_each(|block| heap.give(block));
    println!("| a hot pair of 64 bytes beside it | {pair:.1} |");
    println!();
    let longest = lives[1..].iter().fold(0.0, |longest: f64, life| longest.max(*life));
    Ok(vec![
        Aim::new("enter and leave a scope / a hot pair", 0.5, scope / pair),
        Aim::new("create and drop of an empty group, ns", 1000.0, lives[0]),
        Aim::new("the same with live objects / of an empty one", 3.0, longest / lives[0]),
    ])
}

/// The median time to make a group and the one to drop it while `objects` of it live.
fn life(parent: &Group, times: usize, objects: usize) -> Result<(f64, f64), Box<dyn Error>> {
    let heap = Heap(&MEMCG);
    let mut created: Vec<f64> = Vec::with_capacity(times);
    let mut ended: Vec<f64> = Vec::with_capacity(times);
    let mut blocks: Vec<Block> = Vec::with_capacity(objects);
    // The clock itself takes a fifth of a microsecond on some machines.
    let clock = {
        let start = Instant::now();
        for _ in 0..1000 {
            std::hint::black_box(Instant::now());
        }
        start.elapsed() / 1000
    };
    let time = |since: Instant| since.elapsed().checked_sub(clock).unwrap_or(Duration::ZERO);
    for _ in 0..times {
        let start = Instant::now();
        let group = parent.create("life")?;
        created.push(time(start).as_nanos() as f64);
        group.run(|| blocks.extend((0..objects).map(|_| heap.take_touched(Shape::of(64)))));
        let start = Instant::now();
        drop(group);
        ended.push(time(start).as_nanos() as f64);
        blocks.drain(..).for_each(|block| heap.give(block));
    }
    Ok((median(&created), median(&ended)))
}
