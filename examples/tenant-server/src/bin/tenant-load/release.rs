//! Flushes tenants and checks that all of their memory comes back.

use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use resp_client::{Client, Reply2};

use crate::keys::connect;
use crate::sample::{Mib, Sample, resident_bytes};
use crate::{Outcome, Server};

/// How long the memory may take to come back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of what was used, this part in percent has to leave the process.
const PART: u64 = 80;

/// Which tenants.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// Databases to flush; every one that has been selected if none is named
    #[arg(long)]
    db: Vec<u32>,
}

impl Release {
    pub(crate) fn run(&self, server: &Server) -> Outcome {
        // This connection stays without a tenant, so that it is charged to none.
        let mut client = Client::connect(server.address)?;
        let before = Sample::take(&mut client, server.pid)?;
        let named = |db: u32| self.db.is_empty() || self.db.contains(&db);
        let used: u64 = before.tenants.iter().filter(|t| named(t.db)).map(|t| t.usage).sum();
        let keys: u64 = before.tenants.iter().filter(|t| named(t.db)).map(|t| t.keys).sum();
        for tenant in before.tenants.iter().filter(|tenant| named(tenant.db)) {
            let mut flusher = connect(server, tenant.db)?;
            ok(&mut flusher, &[b"FLUSHDB"])?;
            ok(&mut flusher, &[b"QUIT"])?;
            // Closed means that the connection's own memory is free.
            flusher.is_closed()?;
        }
        ok(&mut client, &[b"MEMORY", b"PURGE"])?;
        let since = Instant::now();
        let goal = before.resident.saturating_sub(used / 100 * PART);
        loop {
            let after = Sample::take(&mut client, server.pid)?;
            let left: u64 = after.tenants.iter().filter(|t| named(t.db)).map(|t| t.usage).sum();
            let resident = resident_bytes(server.pid)?;
            if left == 0 && resident <= goal {
                return Ok(Ok(format!(
                    "{keys} keys flushed, usage from {used} to {left} bytes, resident from {} to {} in {} ms",
                    Mib(before.resident),
                    Mib(resident),
                    since.elapsed().as_millis()
                )));
            }
            if since.elapsed() > PATIENCE {
                return Ok(Err(format!(
                    "after {PATIENCE:?} usage is {left} bytes, and {} are resident where {} were: {} is the aim",
                    Mib(resident),
                    Mib(before.resident),
                    Mib(goal)
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn ok(client: &mut Client, words: &[&[u8]]) -> io::Result<()> {
    match client.call(words)? {
        Reply2::SimpleString(_) => Ok(()),
        other => Err(io::Error::other(format!("{words:?} was answered {other:?}"))),
    }
}
