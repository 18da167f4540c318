//! `reclaim`: memcg at its limits.
//!
//! How fast caches give, how long an allocation waits that meets its limit, what a tenant pays that lives
//! there, and whether a large tree of idle groups is in the way.

use std::error::Error;
use std::time::{Duration, Instant};

use memcg::{Cache, Group};

use crate::meter::{Scale, median, quantile};
use crate::scale::roomy;

/// A tenant that lives at its limit has this much.
const TIGHT: u64 = 8 << 20;
/// Patience that no noise of a machine exhausts.
const PATIENCE: Duration = Duration::from_secs(5);

type Value = [u8; 1000];
type Pages = Cache<u64, Value>;

/// Runs all of it and prints the tables.
///
/// # Errors
///
/// If a group cannot be made.
pub fn run(scale: Scale) -> Result<(), Box<dyn Error>> {
    evictions(scale)?;
    latency(scale)?;
    insertions(scale)?;
    trees(scale)
}

/// Makes a cache.
type Make = fn(&str) -> Pages;

/// Where a cache is evicted.
const PLACES: [(&str, Make); 2] = [("direct", Pages::direct), ("worker", Pages::new)];

fn tight(name: &str) -> Result<Group, memcg::Error> {
    let group = Group::root().builder(name).max(TIGHT).build()?;
    group.set_deadline(PATIENCE, PATIENCE);
    Ok(group)
}

fn evictions(scale: Scale) -> Result<(), Box<dyn Error>> {
    println!("### evictions by `Group::shrink_to(0)`\n");
    println!("| where | value | objects a second |");
    println!("|---|---|---|");
    let count = if scale == Scale::Full { 200_000 } else { 20_000 };
    let group = roomy(&Group::root(), "evicted")?;
    for (place, make) in PLACES {
        let cache = make("evicted");
        row(
            place,
            "1000 bytes inline",
            count,
            &group,
            |key| {
                let _ = cache.insert(key, [0; 1000]);
            },
            || cache.len(),
        );
    }
    let cache = Cache::<u64, Box<u64>>::direct("boxes");
    row(
        "direct",
        "a boxed number",
        count,
        &group,
        |key| {
            drop(cache.insert(key, Box::new(key)));
        },
        || cache.len(),
    );
    println!();
    Ok(())
}

fn row(
    place: &str,
    value: &str,
    count: u64,
    group: &Group,
    insert: impl Fn(u64),
    len: impl Fn() -> usize,
) {
    let runs: [f64; 3] = std::array::from_fn(|_| {
        group.run(|| (0..count).for_each(&insert));
        let before = len();
        let start = Instant::now();
        // Busy only if what threads cache came back in between; what counts is what went.
        drop(group.shrink_to(0));
        (before - len()) as f64 / start.elapsed().as_secs_f64()
    });
    println!("| {place} | {value} | {:.0} |", median(&runs));
}

fn latency(scale: Scale) -> Result<(), Box<dyn Error>> {
    println!("### an insertion that meets the limit, in microseconds\n");
    println!("| where | of | p50 | p99 | p99.9 | longest |");
    println!("|---|---|---|---|---|---|");
    let count = if scale == Scale::Full { 1_000_000 } else { 100_000 };
    for (place, make) in PLACES {
        let group = tight(place)?;
        let cache = make(place);
        let mut met: Vec<f64> = Vec::with_capacity(1 << 16);
        let mut every: Vec<f64> = Vec::with_capacity(1 << 16);
        let mut events = 0;
        for key in 0..count {
            let value = [0; 1000];
            let start = Instant::now();
            let inserted = group.run(|| cache.insert(key, value));
            let us = start.elapsed().as_nanos() as f64 / 1000.0;
            // A refusal is no insertion, but it met the limit too.
            let _ = inserted;
            let now = group.events().max;
            if now > events && met.len() < met.capacity() {
                met.push(us);
            }
            if key > 2 * TIGHT / 1000 && every.len() < every.capacity() {
                every.push(us);
            }
            events = now;
        }
        for (which, us) in [("those that reclaim", &met), ("all at the limit", &every)] {
            let at = |share| quantile(us, share);
            println!(
                "| {place} | {which}, {} | {:.2} | {:.2} | {:.2} | {:.0} |",
                us.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
        }
    }
    println!();
    Ok(())
}

fn insertions(scale: Scale) -> Result<(), Box<dyn Error>> {
    println!("### the mean cost of an insertion of 1,000 bytes, in ns\n");
    println!("`far below` holds as many entries by number, and replaces them\n");
    println!("| where | far below the limit | at the limit | ratio |");
    println!("|---|---|---|---|");
    let count = if scale == Scale::Full { 1_000_000 } else { 100_000 };
    for (place, make) in PLACES {
        let fits = usize::try_from(TIGHT / 1200)?;
        let below = roomy(&Group::root(), "below")?;
        let free = insert(&below, &make("below").with_max_entries(fits), count);
        let full = insert(&tight("at the limit")?, &make("full"), count);
        println!("| {place} | {free:.0} | {full:.0} | {:.2} |", full / free);
    }
    println!();
    Ok(())
}

fn insert(group: &Group, cache: &Pages, count: u64) -> f64 {
    group.run(|| {
        let fill = 2 * TIGHT / 1000;
        for key in 0..fill {
            let _ = cache.insert(key, [0; 1000]);
        }
        let start = Instant::now();
        for key in 0..count {
            let _ = cache.insert(fill + key, [0; 1000]);
        }
        start.elapsed().as_nanos() as f64 / count as f64
    })
}

fn trees(scale: Scale) -> Result<(), Box<dyn Error>> {
    println!("### one reclaim of 1 MiB from the top of a tree, 10 of whose groups have objects\n");
    println!("| groups | microseconds |");
    println!("|---|---|");
    let most = if scale == Scale::Full { 100_000 } else { 10_000 };
    let mut count = 10;
    while count <= most {
        let top = roomy(&Group::root(), "tree")?;
        let groups: Vec<Group> = (0..count)
            .map(|number| top.create(&format!("group-{number}")))
            .collect::<Result<_, _>>()?;
        let cache = Pages::direct("tree");
        let mut key = 0;
        let runs: [f64; 21] = std::array::from_fn(|_| {
            for group in groups.iter().step_by(count / 10) {
                group.run(|| {
                    for _ in 0..400 {
                        key += 1;
                        let _ = cache.insert(key, [0; 1000]);
                    }
                });
            }
            let start = Instant::now();
            // What is missing shows as a time that is too short, which the next size would not.
            drop(top.reclaim(1 << 20));
            let us = start.elapsed().as_nanos() as f64 / 1000.0;
            cache.clear();
            us
        });
        println!("| {count} | {:.0} |", median(&runs));
        count *= 10;
    }
    println!();
    Ok(())
}
