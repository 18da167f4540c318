//! Threads: what an operation costs when there are many more than CPUs.

use std::error::Error;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use memcg::Group;

use super::{MEMCG, replace, roomy};
use crate::block::Heap;
use crate::meter::{Scale, median};
use crate::random::Random;

pub(super) fn run(scale: Scale) -> Result<(), Box<dyn Error>> {
    let cpus = thread::available_parallelism()?.get();
    println!("### threads, on {cpus} CPUs\n");
    println!("ns of CPU time for a replacement\n");
    println!("| threads | all in one group | each in its own |");
    println!("|---|---|---|");
    let times = if scale == Scale::Full { 4_000_000 } else { 500_000 };
    let mut count = 1;
    while count <= 256 {
        let one = roomy(&Group::root(), "threads")?;
        let same: Vec<Group> = vec![one.clone(); count];
        let own: Result<Vec<Group>, _> =
            (0..count).map(|thread| one.create(&format!("thread-{thread}"))).collect();
        let (same, own) = (time(&same, times, cpus), time(&own?, times, cpus));
        println!("| {count} | {same:.1} | {own:.1} |");
        count *= 2;
    }
    println!();
    Ok(())
}

/// One thread for each group; they share the work.
fn time(groups: &[Group], times: usize, cpus: usize) -> f64 {
    let each = times / groups.len();
    let runs: [f64; 3] = std::array::from_fn(|_| {
        let begin = Barrier::new(groups.len() + 1);
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, group) in groups.iter().enumerate() {
                let begin = &begin;
                threads.push(scope.spawn(move || {
                    begin.wait();
                    let mut random = Random::new(number as u64);
                    group.run(|| replace(Heap(&MEMCG), each, &mut random, |_| {}));
                }));
            }
            begin.wait();
            let start = Instant::now();
            threads.into_iter().for_each(|thread| thread.join().expect("no thread panics"));
            let busy = groups.len().min(cpus);
            start.elapsed().as_nanos() as f64 * busy as f64 / (each * groups.len()) as f64
        })
    });
    median(&runs)
}
