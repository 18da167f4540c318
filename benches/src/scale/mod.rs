//! `scale`: memcg with many groups, many threads and deep trees, and how many bytes each takes.
//!
//! Not above the machine's CPUs: more threads than those share them, which shows what waiting costs and not
//! how far it scales.

mod bytes;
mod depth;
mod groups;
mod lives;
mod refusals;
mod threads;

use std::alloc::GlobalAlloc;
use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use memcg::{Group, Memcg};
use serde_json::Value;

use crate::aim::{self, Aim};
use crate::block::{Heap, Shape};
use crate::meter::{Scale, median};
use crate::random::Random;

/// The allocator of the process, as any other instance of it would do.
pub(crate) static MEMCG: Memcg = Memcg::new();

/// Far above what anything here allocates.
pub(crate) const ROOM: u64 = 8 << 30;

/// Measures and prints one table, and answers what there is an aim for.
type Section = fn(Scale) -> Result<Vec<Aim>, Box<dyn Error>>;

const SECTIONS: [(&str, Section); 6] = [
    ("groups", groups::run),
    ("threads", threads::run),
    ("depth", depth::run),
    ("lives", lives::run),
    ("refusals", refusals::run),
    ("bytes", bytes::run),
];

/// Runs the section of that name, or each in a process of its own: records of groups are never unmapped, so
/// what one section touched is resident in the next. What there is an aim for goes to `json` too.
///
/// # Errors
///
/// If a group cannot be made, a section fails, or the file cannot be written.
pub fn run(scale: Scale, only: Option<&str>, json: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let aims = if let Some(only) = only {
        let section = SECTIONS.iter().find(|section| section.0 == only);
        let aims = section.ok_or("no section of that name")?.1(scale)?;
        println!("{}", aim::table(&aims));
        aims
    } else {
        sections(scale, Stdio::inherit)?
    };
    if let Some(path) = json {
        fs::write(path, format!("{:#}\n", Value::from_iter(aims.iter().map(Aim::json))))?;
    }
    Ok(())
}

/// Runs each section, silently, for what there is an aim for.
///
/// # Errors
///
/// As [`run`] has them.
pub fn aims(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    sections(scale, Stdio::null)
}

fn sections(scale: Scale, output: fn() -> Stdio) -> Result<Vec<Aim>, Box<dyn Error>> {
    let file = env::temp_dir().join(format!("memcg-scale-{}.json", std::process::id()));
    let mut aims = Vec::new();
    for (name, _) in SECTIONS {
        let mut section = Command::new(env::current_exe()?);
        section.args(["scale", "--only", name, "--json"]).arg(&file).stdout(output());
        if scale != Scale::Full {
            section.arg("--quick");
        }
        if !section.status()?.success() {
            return Err(format!("{name} failed").into());
        }
        let answer: Vec<Value> = serde_json::from_slice(&fs::read(&file)?)?;
        aims.extend(answer.iter().filter_map(Aim::from_json));
    }
    fs::remove_file(file)?;
    Ok(aims)
}

/// A group that is limited, and far from its limit.
pub(crate) fn roomy(parent: &Group, name: &str) -> Result<Group, memcg::Error> {
    parent.builder(name).max(ROOM).build()
}

/// The median over eleven runs of the nanoseconds of one of `times` operations of `work`.
pub(crate) fn ns(times: usize, mut work: impl FnMut()) -> f64 {
    let runs: [f64; 11] = std::array::from_fn(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64 / times as f64
    });
    median(&runs)
}

/// What an operation is in these tables: an object of random size takes the place of a random one of a
/// thousand.
pub(crate) fn replace<A: GlobalAlloc + Sync + 'static>(
    heap: Heap<A>,
    times: usize,
    random: &mut Random,
    mut tick: impl FnMut(usize),
) {
    let mut slots: Vec<_> = std::iter::repeat_with(|| None).take(1000).collect();
    for time in 0..times {
        tick(time);
        let fresh = heap.take_touched(Shape::of(random.within(16, 512)));
        if let Some(old) = slots[random.below(1000)].replace(fresh) {
            heap.give(old);
        }
    }
    slots.into_iter().flatten().for_each(|block| heap.give(block));
}
