//! `tenant-load`: loads a `tenant-server` and checks what must hold meanwhile.
//!
//! ```text
//!   fill / verify   one tenant's keys, and whether all of them are still there
//!   spread          many tenants, written round-robin by a few connections
//!   watch           runs another program and samples the server until it ends
//!   release         flushes tenants and checks that all of their memory comes back
//! ```
//!
//! Each ends with one line of figures, and with exit code 1 if something did not hold.

mod keys;
mod release;
mod sample;
mod spread;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "tenant-load",
    about = "Loads a tenant-server and checks what must hold meanwhile"
)]
struct Cli {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    task: Task,
}

/// Which server.
#[derive(Clone, Debug, Args)]
struct Server {
    /// Where it listens
    #[arg(long)]
    address: SocketAddr,
    /// Its process, whose resident memory is read
    #[arg(long)]
    pid: u32,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Writes a tenant's keys
    Fill(keys::Keys),
    /// Checks that a tenant has every key that `fill` wrote, and each value
    Verify(keys::Keys),
    /// Writes to many tenants in turn
    Spread(spread::Spread),
    /// Runs a program and samples the server meanwhile
    Watch(watch::Watch),
    /// Flushes tenants and checks that their memory comes back
    Release(release::Release),
}

/// What a task found: figures for people, and whether all held.
type Outcome = io::Result<Result<String, String>>;

fn main() -> ExitCode {
    let Cli { server, task } = Cli::parse();
    resp_client::raise_open_files();
    let outcome = match task {
        Task::Fill(keys) => keys.fill(&server),
        Task::Verify(keys) => keys.verify(&server),
        Task::Spread(spread) => spread.run(&server),
        Task::Watch(watch) => watch.run(&server),
        Task::Release(release) => release.run(&server),
    };
    match outcome {
        Ok(Ok(figures)) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Ok(Err(broken)) => {
            eprintln!("tenant-load: {broken}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tenant-load: {error}");
            ExitCode::FAILURE
        }
    }
}
