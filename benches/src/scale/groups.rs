//! Groups alive: what an operation costs in one of them, and going from one to the next.

use std::error::Error;
use std::time::Instant;

use memcg::Group;

use super::{MEMCG, ns, replace, roomy};
use crate::aim::Aim;
use crate::block::{Heap, Shape};
use crate::meter::Scale;
use crate::ours::STRETCH;
use crate::random::Random;
use crate::rss;

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    println!("### groups alive\n");
    println!("ns for an operation; bytes resident for an idle group, its name included\n");
    println!(
        "| groups | pair, in one | replace, in one | replace, next group each {STRETCH} | create | resident |"
    );
    println!("|---|---|---|---|---|---|");
    let most = if scale == Scale::Full { 1_000_000 } else { 100_000 };
    let first = alive(1)?;
    let mut last = first;
    let mut count = 1;
    while count < most {
        count *= 10;
        last = alive(count)?;
    }
    println!();
    Ok(vec![
        Aim::new(format!("{most} groups alive / 1, a pair in one"), 1.2, last.pair / first.pair),
        Aim::new(
            format!("{most} groups alive / 1, a replacement in one"),
            1.2,
            last.one / first.one,
        ),
        Aim::told(
            format!("{most} groups alive / 1, a replacement, another group each {STRETCH}"),
            last.every / first.every,
        ),
        Aim::new(format!("resident bytes of an idle group, at {most}"), 256.0, last.resident),
    ])
}

/// A row: nanoseconds of an operation, and bytes.
#[derive(Clone, Copy)]
struct Alive {
    pair: f64,
    one: f64,
    every: f64,
    resident: f64,
}

fn alive(count: usize) -> Result<Alive, Box<dyn Error>> {
    let top = roomy(&Group::root(), "alive")?;
    // Handles live in one vector, in no group, and resident before the groups are.
    let mut made: Vec<Option<Group>> = vec![None; count];
    let mut parents: Vec<Group> = Vec::with_capacity(count / 1000 + 1);
    let before = rss::now();
    let start = Instant::now();
    for (number, group) in made.iter_mut().enumerate() {
        if number % 1000 == 0 {
            parents.push(top.create(&format!("parent-{number}"))?);
        }
        *group = Some(parents[number / 1000].create(&format!("group-{number}"))?);
    }
    let create = start.elapsed().as_nanos() as f64 / count as f64;
    // A tenth of them found the records of the row above.
    let fresh = count - count / 10;
    let resident = rss::now().saturating_sub(before) as f64 / fresh as f64;
    let groups: Vec<Group> = made.into_iter().flatten().collect();

    let heap = Heap(&MEMCG);
    let mut random = Random::new(1);
    let times = 100_000;
    let shape = Shape::of(64);
    let pair = groups[count / 2].run(|| {
        ns(times, || {
            for _ in 0..times {
                let block = heap.take_touched(shape);
                heap.give(block);
            }
        })
    });
    let one = groups[count / 2].run(|| ns(times, || replace(heap, times, &mut random, |_| {})));
    let mut choice = Random::new(2);
    let every = ns(times, || {
        let mut scope = None;
        replace(heap, times, &mut random, |time| {
            if time % STRETCH as usize == 0 {
                drop(scope.take());
                scope = Some(groups[choice.below(count)].enter());
            }
        });
    });
    println!("| {count} | {pair:.1} | {one:.1} | {every:.1} | {create:.0} | {resident:.0} |");
    Ok(Alive { pair, one, every, resident })
}
