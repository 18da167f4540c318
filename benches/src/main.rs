//! `memcg-benches`: memcg next to its peers, and memcg alone at scale and at its limits.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use memcg_benches::meter::Scale;
use memcg_benches::{compare, counts, reclaim, scale};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[derive(Parser)]
#[command(about = "Measures memcg next to its peers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every allocator on every workload: a table, JSON, a chart
    Compare(Compare),
    /// memcg with many groups, threads and levels; bytes of each
    Scale(Scaled),
    /// memcg's atomics and locks of each operation, by a build that counts them
    Counts(Alone),
    /// memcg at its limits: evictions, latency, large trees
    Reclaim(Alone),
}

#[derive(Args)]
struct Compare {
    /// Within some minutes
    #[arg(long)]
    quick: bool,
    /// Compare CPU time, for a machine that does other work too
    #[arg(long)]
    cpu: bool,
    /// How many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only workloads whose name contains it
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Another build of a child, in a column of its own
    #[arg(long, value_name = "NAME=BINARY[:STATE]")]
    also: Vec<String>,
    /// Write all figures there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the geometric means there
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct Scaled {
    #[command(flatten)]
    alone: Alone,
    /// One section: groups, threads, depth, lives or bytes
    #[arg(long, value_name = "SECTION")]
    only: Option<String>,
    /// Write the figures that have an aim there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Alone {
    /// Less of everything
    #[arg(long)]
    quick: bool,
}

impl Alone {
    fn scale(&self) -> Scale {
        if self.quick { Scale::Quick } else { Scale::Full }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Compare(compare) => compare::run(&compare::Options {
            scale: if compare.quick { Scale::Quick } else { Scale::Full },
            cpu: compare.cpu,
            rounds: compare.rounds,
            only: compare.only,
            also: compare.also,
            json: compare.json,
            svg: compare.svg,
        }),
        Command::Scale(scaled) => {
            scale::run(scaled.alone.scale(), scaled.only.as_deref(), scaled.json.as_deref())
        }
        Command::Counts(alone) => counts::run(alone.scale()),
        Command::Reclaim(alone) => reclaim::run(alone.scale()),
    }
}

fn main() -> ExitCode {
    assert!(memcg::is_installed(), "memcg serves this process");
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memcg-benches: {error}");
            ExitCode::FAILURE
        }
    }
}
