//! One workload on the allocator of this process.
//!
//! `on-jemalloc --workload pair.64 --scale quick` answers one line of JSON.

use std::process::ExitCode;
use std::thread;

use serde_json::{Value, json};

use crate::block::{Allocator, Heap};
use crate::meter::{Meter, Scale};
use crate::tenants::Tenants;
use crate::workload::{self, Cx, Family};
use crate::{counted, rss};

/// What a child was asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which workload.
    pub workload: String,
    /// How much of it.
    pub scale: Scale,
    /// What memcg's groups are to be.
    pub state: String,
    /// Exactly so many turns, for counting instructions.
    pub turns: Option<usize>,
    /// On so many threads; none for as many as the workload has.
    pub threads: Option<usize>,
}

impl Ask {
    /// Of this process; none if it asked for nothing that there is.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let mut ask = Self {
            workload: String::new(),
            scale: Scale::Quick,
            state: String::from("none"),
            turns: None,
            threads: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(option) = arguments.next() {
            let value = arguments.next()?;
            match option.as_str() {
                "--workload" => ask.workload = value,
                "--scale" => ask.scale = Scale::named(&value)?,
                "--state" => ask.state = value,
                "--turns" => ask.turns = Some(value.parse().ok()?),
                "--threads" => ask.threads = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(ask)
    }

    /// As arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec![
            ("--workload", self.workload.clone()),
            ("--scale", self.scale.name().to_owned()),
            ("--state", self.state.clone()),
        ];
        all.extend(self.turns.map(|turns| ("--turns", turns.to_string())));
        all.extend(self.threads.map(|threads| ("--threads", threads.to_string())));
        all.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }
}

/// A child's whole `main`.
///
/// # Panics
///
/// If `serves` says that another allocator serves this process.
pub fn main<A: Allocator, T: Tenants>(
    allocator: &'static A,
    tenants: T,
    serves: impl FnOnce() -> bool,
) -> ExitCode {
    assert!(serves(), "the allocator under test does not serve this process");
    let Some(ask) = Ask::of_this_process() else {
        eprintln!(
            "usage: --workload NAME [--scale tiny|quick|full] [--state NAME] [--turns N] [--threads N]"
        );
        return ExitCode::from(2);
    };
    let cx = Cx { heap: Heap(allocator), tenants, scale: ask.scale, threads: ask.threads };
    match measure(cx, &ask.workload, ask.turns) {
        Some(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("no such workload: {}", ask.workload);
            ExitCode::from(2)
        }
    }
}

/// Runs the workload of that name, if there is one: for the time that its scale has, or `turns` times.
pub fn measure<A: Allocator, T: Tenants>(
    cx: Cx<A, T>,
    name: &str,
    turns: Option<usize>,
) -> Option<Value> {
    let workload = workload::all::<A, T>().into_iter().find(|workload| workload.name == name)?;
    let run = || {
        let mut meter = Meter::new(cx.scale, turns);
        let scope = cx.tenants.home();
        (workload.run)(cx, &mut meter);
        drop(scope);
        meter
    };
    // Others do the same beside it, where a workload of one thread is to have more.
    let others =
        if workload.family == Family::TwoThreads { 0 } else { cx.threads.map_or(0, |n| n - 1) };
    let (meter, beside) = thread::scope(|scope| {
        let others: Vec<_> = (0..others).map(|_| scope.spawn(|| run().operations())).collect();
        let meter = run();
        let join =
            |other: thread::ScopedJoinHandle<'_, usize>| other.join().expect("no workload panics");
        (meter, others.into_iter().map(join).sum::<usize>())
    });
    let memory = meter.found().map(|memory| {
        json!({
            "asked": memory.asked,
            "before": memory.before,
            "full": memory.full,
            "tenth": memory.tenth,
            "empty": memory.empty,
            "kept": memory.kept,
            "later": memory.later,
        })
    });
    Some(json!({
        "ns": meter.ns(),
        "cpu_ns": meter.cpu_ns(),
        "operations": meter.operations() + beside,
        "counts": counted::so_far(),
        "peak_rss": rss::peak(),
        "memory": memory,
    }))
}
