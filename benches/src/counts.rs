//! `counts`: what memcg's threads share, of each operation.
//!
//! Two cores cannot show how far an allocator scales. What it would be made of can be counted: atomic
//! read-modify-writes, locks, and tries that found a lock taken. By a build of its own, whose times say nothing.
//! As by `callgrind.sh`, a figure is the difference of a run of many turns and one of few, so what a
//! process does once is not in it.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::build;
use crate::child::Ask;
use crate::meter::Scale;
use crate::ours::child_of;
use crate::workload::THREADS;

/// And whether it can be had with one thread.
const WORKLOADS: [(&str, bool); 6] = [
    ("pair.64", true),
    ("batch.random.64", true),
    ("churn", true),
    ("larson", true),
    ("xmalloc", false),
    ("mstress", true),
];
const STATES: [&str; 2] = ["limited", "groups-1000"];

/// Builds the child that counts, runs it and prints the table.
///
/// # Errors
///
/// If the child cannot be built, fails, or does not count.
pub fn run(scale: Scale) -> Result<(), Box<dyn Error>> {
    let folder = build::ours_with("counting")?;
    let turns = if scale == Scale::Full { (5, 45) } else { (2, 12) };
    println!("### of one operation\n");
    println!(
        "| | threads | read-modify-writes, in one limited group | locks | found taken | \
         read-modify-writes, 1,000 groups in turn | locks | found taken |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (workload, alone) in WORKLOADS {
        for threads in if alone { 1..=THREADS } else { THREADS..=THREADS } {
            print!("| {workload} | {threads} |");
            for state in STATES {
                let child = folder.join(child_of(state));
                let few = Run::of(&child, workload, state, threads, turns.0)?;
                let many = Run::of(&child, workload, state, threads, turns.1)?;
                for figure in many.since(&few) {
                    print!(" {:.4} |", figure.max(0.0));
                }
            }
            println!();
        }
    }
    Ok(())
}

/// What a child answered.
struct Run {
    operations: f64,
    counts: Vec<f64>,
}

impl Run {
    fn of(
        child: &Path,
        workload: &str,
        state: &str,
        threads: usize,
        turns: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let ask = Ask {
            workload: workload.to_owned(),
            scale: Scale::Quick,
            state: state.to_owned(),
            turns: Some(turns),
            threads: Some(threads),
        };
        let output = Command::new(child).args(ask.arguments()).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{workload}, {state}: {}: {error}", output.status).into());
        }
        Self::read(&serde_json::from_slice(&output.stdout)?)
            .ok_or_else(|| "the child does not count".into())
    }

    fn read(answer: &Value) -> Option<Self> {
        let counts = answer["counts"].as_array()?;
        Some(Self {
            operations: answer["operations"].as_f64()?,
            counts: counts.iter().map(Value::as_f64).collect::<Option<_>>()?,
        })
    }

    /// Of each operation that the other run did not do.
    fn since<'a>(&'a self, few: &'a Self) -> impl Iterator<Item = f64> + 'a {
        let operations = self.operations - few.operations;
        self.counts.iter().zip(&few.counts).map(move |(many, few)| (many - few) / operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_process_does_once_is_not_in_a_figure() {
        let run = |operations: u64, counts: [u64; 3]| {
            Run::read(&json!({ "operations": operations, "counts": counts })).expect("it counts")
        };
        let (few, many) = (run(10, [105, 50, 1]), run(20, [115, 55, 1]));
        assert_eq!(many.since(&few).collect::<Vec<_>>(), [1.0, 0.5, 0.0]);
        assert!(Run::read(&json!({ "operations": 1, "counts": null })).is_none());
    }
}
