//! Threads: what an operation costs when there are many more than CPUs.

use std::error::Error;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use memcg::Group;

use super::{MEMCG, replace, roomy};
use crate::aim::Aim;
use crate::block::Heap;
use crate::meter::{Scale, cpu_time, median};
use crate::random::Random;

/// Many more than CPUs.
const MANY: usize = 64;

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    let cpus = thread::available_parallelism()?.get();
    println!("### threads, on {cpus} CPUs\n");
    println!("ns for a replacement: of CPU time, the system's included, and of wall time by CPU\n");
    println!("| threads | all in one group, CPU | wall | each in its own, CPU | wall |");
    println!("|---|---|---|---|---|");
    let times = if scale == Scale::Full { 12_800_000 } else { 2_560_000 };
    let (mut two, mut many) = ([0.0; 4], [0.0; 4]);
    let mut count = 1;
    while count <= 256 {
        let one = roomy(&Group::root(), "threads")?;
        let same: Vec<Group> = vec![one.clone(); count];
        let own: Result<Vec<Group>, _> =
            (0..count).map(|thread| one.create(&format!("thread-{thread}"))).collect();
        let ((same_cpu, same), (own_cpu, own)) =
            (time(&same, times, cpus), time(&own?, times, cpus));
        println!("| {count} | {same_cpu:.1} | {same:.1} | {own_cpu:.1} | {own:.1} |");
        match count {
            2 => two = [same_cpu, same, own_cpu, own],
            MANY => many = [same_cpu, same, own_cpu, own],
            _ => {}
        }
        count *= 2;
    }
    println!();
    let what = [
        "in one group, CPU",
        "in one group, wall",
        "each in its own, CPU",
        "each in its own, wall",
    ];
    let aim = |at: usize| {
        Aim::new(format!("{MANY} threads / 2, {} time", what[at]), 1.3, many[at] / two[at])
    };
    Ok((0..what.len()).map(aim).collect())
}

/// One thread for each group; they share the work.
fn time(groups: &[Group], times: usize, cpus: usize) -> (f64, f64) {
    let each = times / groups.len();
    let busy = groups.len().min(cpus) as f64;
    let runs: [(f64, f64); 5] = std::array::from_fn(|_| {
        let begin = Barrier::new(groups.len() + 1);
        let (cpu, spans) = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, group) in groups.iter().enumerate() {
                let begin = &begin;
                threads.push(scope.spawn(move || {
                    begin.wait();
                    let start = Instant::now();
                    let mut random = Random::new(number as u64);
                    group.run(|| replace(Heap(&MEMCG), each, &mut random, |_| {}));
                    (start, Instant::now())
                }));
            }
            let cpu = cpu_time();
            begin.wait();
            let spans: Vec<(Instant, Instant)> =
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
            (cpu_time() - cpu, spans)
        });
        // The first may run to its end before the last one is told to begin.
        let start = spans.iter().map(|span| span.0).min().expect("a thread");
        let end = spans.iter().map(|span| span.1).max().expect("a thread");
        let done = (each * groups.len()) as f64;
        (cpu.as_nanos() as f64 / done, (end - start).as_nanos() as f64 * busy / done)
    });
    (median(&runs.map(|run| run.0)), median(&runs.map(|run| run.1)))
}
