//! Depth: what an operation costs when a charge goes up many levels.

use std::collections::HashMap;
use std::error::Error;

use memcg::Group;

use super::{MEMCG, ns, replace, roomy};
use crate::aim::Aim;
use crate::block::{Block, Heap, Shape};
use crate::meter::Scale;
use crate::random::Random;

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    println!("### depth of the tree\n");
    println!(
        "ns for an operation; `fill` is an object that is new to its group, so charged, and its free\n"
    );
    println!("| depth | pair | replace | fill | large |");
    println!("|---|---|---|---|---|");
    let times = if scale == Scale::Full { 200_000 } else { 50_000 };
    let heap = Heap(&MEMCG);
    let shape = Shape::of(64);
    let mut of_depth = HashMap::new();
    for depth in [1, 2, 4, 8, 16] {
        let mut group = roomy(&Group::root(), "depth")?;
        for level in 1..depth {
            group = roomy(&group, &format!("level-{level}"))?;
        }
        let mut random = Random::new(depth);
        let mut blocks: Vec<Block> = Vec::with_capacity(times);
        group.run(|| {
            let pair = ns(times, || (0..times).for_each(|_| heap.give(heap.take_touched(shape))));
            let one = ns(times, || replace(heap, times, &mut random, |_| {}));
            let fill = ns(times, || {
                blocks.extend((0..times).map(|_| heap.take_touched(shape)));
                blocks.drain(..).for_each(|block| heap.give(block));
            });
            let few = times / 100;
            let large = Shape::of(60_000);
            let large = ns(few, || (0..few).for_each(|_| heap.give(heap.take(large))));
            println!("| {depth} | {pair:.1} | {one:.1} | {fill:.1} | {large:.0} |");
            of_depth.insert(depth, [pair, one, fill, large]);
        });
    }
    println!();
    let what = ["pair", "replace", "fill", "large"];
    let ratio = |at: usize| of_depth[&8][at] / of_depth[&1][at];
    let aim = |at: usize| Aim::new(format!("depth 8 / depth 1, {}", what[at]), 1.05, ratio(at));
    Ok((0..what.len()).map(aim).collect())
}
