//! Runs a program and samples the server until it ends.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use resp_client::Client;

use crate::sample::{Mib, Sample};
use crate::{Outcome, Server};

/// What to run and how often to look.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Milliseconds between two samples
    #[arg(long, default_value_t = 10)]
    every_ms: u64,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    program: Vec<String>,
}

/// The extremes of all samples.
#[derive(Debug, Default)]
struct Seen {
    samples: u64,
    longest_gap: Duration,
    fullest: u64,
    resident: u64,
    least_room: Option<u64>,
    evictions: u64,
    oom: u64,
    forced: u64,
}

impl Seen {
    fn add(&mut self, sample: &Sample, gap: Duration) {
        self.samples += 1;
        self.longest_gap = self.longest_gap.max(gap);
        let fullest = sample.tenants.iter().map(|tenant| tenant.usage).max().unwrap_or(0);
        self.fullest = self.fullest.max(fullest);
        self.resident = self.resident.max(sample.resident);
        let room = sample.allowed().saturating_sub(sample.resident);
        self.least_room = Some(self.least_room.map_or(room, |least| least.min(room)));
        self.evictions = sample.tenants.iter().map(|tenant| tenant.evictions).sum();
        self.oom = sample.tenants.iter().map(|tenant| tenant.oom).sum();
        self.forced = sample.tenants.iter().map(|tenant| tenant.forced).sum();
    }

    fn figures(&self) -> String {
        format!(
            "{} samples, at most {} ms apart; fullest tenant {} bytes; resident at most {}, always {} or more below what is \
             allowed; {} evictions, {} refusals, {} forced",
            self.samples,
            self.longest_gap.as_millis(),
            self.fullest,
            Mib(self.resident),
            Mib(self.least_room.unwrap_or(0)),
            self.evictions,
            self.oom,
            self.forced,
        )
    }
}

impl Watch {
    pub(crate) fn run(&self, server: &Server) -> Outcome {
        let mut client = Client::connect(server.address)?;
        let (name, arguments) =
            self.program.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(name).args(arguments).spawn()?;
        let pause = Duration::from_millis(self.every_ms);
        let mut seen = Seen::default();
        let mut broken = None;
        let mut last = Instant::now();
        let status = loop {
            let began = Instant::now();
            let sample = match Sample::take(&mut client, server.pid) {
                Ok(sample) => sample,
                Err(error) => {
                    child.kill()?;
                    child.wait()?;
                    return Err(error);
                }
            };
            seen.add(&sample, last.elapsed());
            broken = broken.or_else(|| sample.broken());
            last = Instant::now();
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(pause.saturating_sub(began.elapsed()));
        };
        if !status.success() {
            broken = broken.or_else(|| Some(format!("{name} ended with {status}")));
        }
        Ok(match broken {
            None => Ok(seen.figures()),
            Some(broken) => Err(format!("{broken}; {}", seen.figures())),
        })
    }
}
