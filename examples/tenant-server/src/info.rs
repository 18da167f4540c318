//! The text of INFO.

use core::fmt::{self, Formatter};
use std::process;

use memcg::Limit;

use crate::process::resident_bytes;
use crate::server::{Server, VERSION};
use crate::tenant::Tenant;

/// One section of INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// The program and its process.
    Server,
    /// Connections.
    Clients,
    /// All tenants together.
    Memory,
    /// Counters.
    Stats,
    /// Each database's keys.
    Keyspace,
    /// Each database's memory.
    Tenants,
}

const ALL: [(&str, Section); 6] = [
    ("server", Section::Server),
    ("clients", Section::Clients),
    ("memory", Section::Memory),
    ("stats", Section::Stats),
    ("keyspace", Section::Keyspace),
    ("tenants", Section::Tenants),
];

/// Which sections are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sections([bool; ALL.len()]);

impl Sections {
    /// Every one.
    pub(crate) fn all() -> Self {
        Self([true; ALL.len()])
    }

    /// Adds those of this name; none if there is no such section.
    pub(crate) fn add(&mut self, name: &[u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let everything = is("all") || is("everything") || is("default");
        for (wanted, (known, _)) in self.0.iter_mut().zip(ALL) {
            *wanted |= everything || is(known);
        }
    }
}

/// The text, written as it is asked for: nothing is gathered first.
#[derive(Debug)]
pub(crate) struct Info<'a> {
    /// Of which server.
    pub(crate) server: &'a Server,
    /// Of what.
    pub(crate) sections: Sections,
}

impl fmt::Display for Info<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (wanted, (_, section)) in self.sections.0.iter().zip(ALL) {
            if !wanted {
                continue;
            }
            if !core::mem::take(&mut first) {
                f.write_str("\r\n")?;
            }
            match section {
                Section::Server => self.server(f)?,
                Section::Clients => self.clients(f)?,
                Section::Memory => self.memory(f)?,
                Section::Stats => self.stats(f)?,
                Section::Keyspace => self.keyspace(f)?,
                Section::Tenants => self.tenants(f)?,
            }
        }
        Ok(())
    }
}

impl Info<'_> {
    fn server(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let up = self.server.started.elapsed().as_secs();
        write!(
            f,
            "# Server\r\nredis_version:{VERSION}\r\nserver_name:tenant-server\r\nserver_version:"
        )?;
        write!(f, "{}\r\nredis_mode:standalone\r\n", env!("CARGO_PKG_VERSION"))?;
        write!(f, "os:{}\r\narch_bits:{}\r\n", std::env::consts::OS, usize::BITS)?;
        write!(f, "process_id:{}\r\ntcp_port:{}\r\n", process::id(), self.server.port)?;
        write!(f, "uptime_in_seconds:{up}\r\nuptime_in_days:{}\r\n", up / 86400)?;
        write!(
            f,
            "io_threads:{}\r\ndatabases:{}\r\n",
            self.server.threads,
            self.server.tenants.databases()
        )
    }

    fn clients(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let clients = self.server.stats.clients();
        write!(
            f,
            "# Clients\r\nconnected_clients:{clients}\r\nmaxclients:{}\r\n",
            self.server.max_clients
        )?;
        f.write_str("blocked_clients:0\r\n")
    }

    /// The sizes are those of the group of all tenants.
    fn memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let group = self.server.tenants.group();
        let (used, rss) = (group.usage(), resident_bytes());
        f.write_str("# Memory\r\n")?;
        let max = match group.max() {
            Limit::Bytes(max) => max,
            Limit::Max => 0,
        };
        for (name, bytes) in [
            ("used_memory", used),
            ("used_memory_rss", rss),
            ("used_memory_peak", group.peak()),
            ("maxmemory", max),
        ] {
            write!(f, "{name}:{bytes}\r\n{name}_human:{}\r\n", Human(bytes))?;
        }
        f.write_str("maxmemory_policy:allkeys-sieve\r\nmem_allocator:memcg\r\n")?;
        write!(f, "mem_fragmentation_ratio:{}\r\n", Ratio(rss, used))
    }

    fn stats(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("# Stats\r\n")?;
        for (name, count) in self.server.stats.named() {
            write!(f, "{name}:{count}\r\n")?;
        }
        let sum = |of: fn(&Tenant) -> u64| self.server.tenants.iter().map(of).sum::<u64>();
        write!(
            f,
            "expired_keys:{}\r\nevicted_keys:{}\r\n",
            sum(Tenant::expired),
            sum(Tenant::evictions)
        )
    }

    fn keyspace(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("# Keyspace\r\n")?;
        for tenant in self.server.tenants.iter().filter(|tenant| tenant.len() > 0) {
            let (index, keys, expires) = (tenant.index(), tenant.len(), tenant.expiring());
            write!(f, "db{index}:keys={keys},expires={expires},avg_ttl={}\r\n", tenant.mean_ttl())?;
        }
        Ok(())
    }

    fn tenants(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("# Tenants\r\n")?;
        for tenant in self.server.tenants.iter() {
            let group = tenant.group();
            let events = group.events();
            write!(f, "db{}:keys={},usage={}", tenant.index(), tenant.len(), group.usage())?;
            write!(
                f,
                ",peak={},max={},high={}",
                group.peak(),
                Bytes(group.max()),
                Bytes(group.high())
            )?;
            write!(
                f,
                ",evictions={},oom={},forced={}\r\n",
                tenant.evictions(),
                events.oom,
                events.forced
            )?;
        }
        Ok(())
    }
}

/// A limit as a plain number of bytes, or `max`.
struct Bytes(Limit);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Limit::Bytes(bytes) => write!(f, "{bytes}"),
            Limit::Max => f.write_str("max"),
        }
    }
}

/// Bytes as people read them, in Redis's form: `1.50M`.
struct Human(u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
        match units.iter().find(|(shift, _)| self.0 >> shift > 0) {
            None => write!(f, "{}B", self.0),
            Some((shift, unit)) => {
                // In hundredths, rounded; a u128 holds them of any size.
                let hundredths = (u128::from(self.0) * 100 + (1 << shift) / 2) >> shift;
                write!(f, "{}.{:02}{unit}", hundredths / 100, hundredths % 100)
            }
        }
    }
}

/// A ratio with two digits; 0 to nothing.
struct Ratio(u64, u64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let hundredths = (u128::from(self.0) * 100).checked_div(u128::from(self.1)).unwrap_or(0);
        write!(f, "{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00K"),
            (1536, "1.50K"),
            (64 << 20, "64.00M"),
            (3 << 40, "3.00T"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
        assert_eq!(
            (Ratio(3, 2).to_string(), Ratio(3, 0).to_string()),
            ("1.50".into(), "0.00".into())
        );
    }

    #[test]
    fn sections_are_named() {
        let mut sections = Sections::default();
        sections.add(b"Memory");
        sections.add(b"nonsense");
        assert_eq!(sections.0.iter().filter(|wanted| **wanted).count(), 1);
        sections.add(b"everything");
        assert!(sections.0.iter().all(|wanted| *wanted));
    }
}
