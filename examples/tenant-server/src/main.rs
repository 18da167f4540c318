//! `tenant-server`: a cache that speaks the Redis protocol, whose databases are tenants of one process.
//!
//! ```text
//!   options ──► server ──► connection ──► dialogue ──► commands ──► tenant ──► memcg::Cache
//!                  │            │             │
//!               tenants      the socket    protocol (requests), reply (replies), memory (allocated fallibly)
//! ```
//!
//! Every allocation of a tenant's request happens inside the tenant's group, and those that a client can make large happen
//! fallibly: a full tenant gets `-OOM`, its connection lives, and nobody else notices.

mod buffers;
mod commands;
mod connection;
mod dialogue;
mod expiry;
mod glob;
mod identity;
mod info;
mod memory;
mod options;
mod process;
mod protocol;
mod reply;
mod server;
mod stats;
mod stripes;
mod tenant;
mod tenants;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use options::{Options, Stop};
use server::Server;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// What the shell gets when the server could not be started as asked.
const CANNOT_START: u8 = 2;

/// Commands that may take long at a time, each on a thread of its own; further ones wait for their turn.
const SLOW_AT_ONCE: usize = 32;

/// How long the runtime's threads may take to end.
const RUNTIME_GRACE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // No tenant pays for the report of a panic.
    memcg::protect_panics();
    let options = match Options::of(std::env::args_os()) {
        Ok(options) => options,
        Err(Stop::Help(text)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return cannot_start(&wrong.to_string()),
    };
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => cannot_start(&format!("tenant-server: {line}")),
    }
}

fn start(options: &Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.threads)
        .max_blocking_threads(SLOW_AT_ONCE)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let served = runtime.block_on(serve(options));
    runtime.shutdown_timeout(RUNTIME_GRACE);
    served
}

async fn serve(options: &Options) -> Result<(), String> {
    let open_files = resp_client::raise_open_files();
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let listener = server::listen(options).await?;
    let address = local_address(&listener)?;
    let server = Server::start(options, address.port(), open_files)
        .map_err(|error| format!("cannot make the group of all tenants: {error}"))?;
    print(&format!("ready on {address}\n"));
    tokio::spawn(expiry::sweep(server));
    let accepting = tokio::spawn(server.accept(listener));
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    tokio::select! {
        () = server.stop() => {}
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    accepting.abort();
    Ok(())
}

fn local_address(listener: &TcpListener) -> Result<std::net::SocketAddr, String> {
    listener.local_addr().map_err(|error| error.to_string())
}

/// Prints to stdout; that nobody listens there is no reason not to serve.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn cannot_start(line: &str) -> ExitCode {
    let _told = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(CANNOT_START)
}
