//! One look at a server: what each tenant uses, and what the process has.

use std::io;

use resp_client::{Client, Reply2};

/// What a tenant may exceed its limit by.
const OVERSHOOT: u64 = 64 << 10;

/// What the process may have besides what its tenants use.
const PROCESS: u64 = 64 << 20;

/// One tenant's line.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) db: u32,
    pub(crate) keys: u64,
    pub(crate) usage: u64,
    pub(crate) peak: u64,
    pub(crate) max: Option<u64>,
    pub(crate) evictions: u64,
    pub(crate) oom: u64,
    pub(crate) forced: u64,
}

/// One look.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) resident: u64,
}

impl Sample {
    /// Takes one.
    pub(crate) fn take(client: &mut Client, pid: u32) -> io::Result<Self> {
        let text = match client.call(&[b"INFO", b"tenants"])? {
            Reply2::BulkString(text) => text,
            other => return Err(io::Error::other(format!("INFO was answered {other:?}"))),
        };
        let text = String::from_utf8_lossy(&text);
        let tenants = text.lines().filter(|line| line.starts_with("db"));
        let tenants =
            tenants.map(|line| Tenant::of(line).ok_or_else(|| io::Error::other(line.to_owned())));
        Ok(Self { tenants: tenants.collect::<io::Result<_>>()?, resident: resident_bytes(pid)? })
    }

    /// What all tenants use.
    pub(crate) fn usage(&self) -> u64 {
        self.tenants.iter().map(|tenant| tenant.usage).sum()
    }

    /// What the process may have: what its tenants use, a quarter of that, and what it needs itself.
    pub(crate) fn allowed(&self) -> u64 {
        let usage = self.usage();
        usage + usage / 4 + PROCESS
    }

    /// The first thing that does not hold.
    pub(crate) fn broken(&self) -> Option<String> {
        let over = self.tenants.iter().find(|tenant| {
            tenant.max.is_some_and(|max| tenant.usage.max(tenant.peak) > max + OVERSHOOT)
        });
        if let Some(tenant) = over {
            return Some(format!("a tenant exceeds its limit: {tenant:?}"));
        }
        (self.resident > self.allowed()).then(|| {
            format!(
                "{} are resident, where {} are allowed",
                Mib(self.resident),
                Mib(self.allowed())
            )
        })
    }
}

impl Tenant {
    fn of(line: &str) -> Option<Self> {
        let (db, fields) = line.strip_prefix("db")?.split_once(':')?;
        let field = |name: &str| {
            let mut fields = fields.split(',').filter_map(|field| field.split_once('='));
            fields.find(|(known, _)| *known == name).map(|(_, value)| value)
        };
        let number = |name: &str| field(name)?.parse().ok();
        Some(Self {
            db: db.parse().ok()?,
            keys: number("keys")?,
            usage: number("usage")?,
            peak: number("peak")?,
            max: match field("max")? {
                "max" => None,
                bytes => Some(bytes.parse().ok()?),
            },
            evictions: number("evictions")?,
            oom: number("oom")?,
            forced: number("forced")?,
        })
    }
}

/// Memory of a process that is resident, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other("the system does not tell what is resident"))
}

/// Bytes in MiB, for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mib(pub(crate) u64);

impl std::fmt::Display for Mib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = (self.0 * 10) >> 20;
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}
