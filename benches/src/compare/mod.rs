//! `compare`: every allocator on every workload, in one run.
//!
//! Each figure is a process of its own. A round runs one of each, those of a workload one after the other
//! and each round in another order, so that whatever drifts on the machine hits everyone alike. A ratio is
//! the median over the rounds of the ratios within a round.

mod aims;
mod cells;
mod chart;
mod report;
mod rounds;
mod table;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

pub use cells::{Cell, Kind};
pub use report::{Figure, Report, Row};

use crate::meter::Scale;
use crate::tenants::Nobody;
use crate::workload::{self, Family};
use crate::{aim, build, scale};

/// What to compare.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How much of each workload.
    pub scale: Scale,
    /// Compare CPU time, not wall time.
    pub cpu: bool,
    /// Rounds; none for what goes with the scale.
    pub rounds: Option<usize>,
    /// Only workloads whose name contains it.
    pub only: Option<String>,
    /// Further builds of a child: `NAME=BINARY` or `NAME=BINARY:STATE`.
    pub also: Vec<String>,
    /// Where the report goes.
    pub json: Option<PathBuf>,
    /// Where the chart goes.
    pub svg: Option<PathBuf>,
}

/// Builds the children, runs the rounds, prints the table, what was aimed at and what it came to, and writes the
/// files. Of some aims [`scale`] has the figure: it is run too, unless `only` some workloads are.
///
/// # Errors
///
/// If a child cannot be built or fails, or a file cannot be written.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let children = build::children()?;
    let mut cells = cells::all(&children);
    for also in &options.also {
        cells.push(Cell::parse(also).ok_or_else(|| format!("not NAME=BINARY[:STATE]: {also}"))?);
    }
    let workloads: Vec<(&'static str, Family)> = workload::all::<std::alloc::System, Nobody>()
        .iter()
        .map(|workload| (workload.name, workload.family))
        .filter(|(name, _)| options.only.as_ref().is_none_or(|only| name.contains(only)))
        .collect();
    if workloads.is_empty() {
        return Err("no workload of that name".into());
    }
    let rounds = options.rounds.unwrap_or(if options.scale == Scale::Full { 5 } else { 3 });
    let measured = rounds::run(&cells, &workloads, options.scale, rounds)?;
    let report = Report::new(cells, &measured, options, rounds);
    print!("{}", table::print(&report));
    let mut aims = aims::of(&report);
    if options.only.is_none() {
        aims.extend(scale::aims(options.scale)?);
    }
    println!("\n### Against the aims\n\n{}", aim::table(&aims));
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", report.json(&aims)))?;
    }
    if let Some(path) = &options.svg {
        chart::draw(&report, path)?;
    }
    Ok(())
}
