//! Commands about the server and its tenants.

use memcg::Limit;

use super::{Call, Fault, Flow, NoRoom, Outcome, SYNTAX};
use crate::glob;
use crate::info::{Info, Sections};
use crate::memory::{Key, Value};
use crate::options::exceeds;
use crate::protocol::MAX_BULK;
use crate::reply::{Reply, Shown};
use crate::tenant::Tenant;

/// What one entry takes in the cache besides its key and its value, in bytes, about: links, hash and the places of both.
const NODE: usize = 64;

/// INFO [section ...]
pub(super) fn info(call: &mut Call<'_>) -> Outcome {
    let mut sections = if call.args.len() == 1 { Sections::all() } else { Sections::default() };
    for name in call.args.from(1) {
        sections.add(name);
    }
    call.reply.verbatim(Info { server: call.server, sections })?;
    Ok(Flow::Next)
}

// ---- MEMORY ---------------------------------------------------------------------------------------------------------

/// MEMORY USAGE key [SAMPLES count]
pub(super) fn memory_usage(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    match call.args.len() {
        3 => {}
        5 if call.args.is(3, "samples") => {
            if call.integer(4)? < 0 {
                return Err(SYNTAX);
            }
        }
        _ => return Err(SYNTAX),
    }
    let key = call.args.get(2);
    match tenant.get(key) {
        Some(value) => {
            call.reply.count(NODE + Key::footprint(key.len()) + Value::footprint(value.len()))?
        }
        None => call.reply.null()?,
    }
    Ok(Flow::Next)
}

/// The selected tenant's memory under Redis's names, then what only this server has.
pub(super) fn memory_stats(call: &mut Call<'_>) -> Outcome {
    let tenant = selected(call)?;
    let group = tenant.group();
    let stat = group.stat();
    let events = group.events();
    let (keys, all) = (tenant.len() as u64, call.server.tenants.group());
    let numbers = [
        ("peak.allocated", group.peak()),
        ("total.allocated", stat.usage),
        ("startup.allocated", 0),
        ("keys.count", keys),
        ("keys.bytes-per-key", stat.usage.checked_div(keys).unwrap_or(0)),
        ("tenant.index", u64::from(tenant.index())),
        ("tenant.slab", stat.slab),
        ("tenant.large", stat.large),
        ("tenant.evictions", tenant.evictions()),
        ("tenant.oom", events.oom),
        ("tenant.forced", events.forced),
        ("tenants.allocated", all.usage()),
        ("tenants.peak", all.peak()),
        ("process.resident", crate::process::resident_bytes()),
    ];
    call.reply.map(numbers.len() + 1)?;
    call.reply.bulk(b"fragmentation")?;
    call.reply.double(per(crate::process::resident_bytes(), all.usage()))?;
    for (name, number) in numbers {
        call.reply.bulk(name.as_bytes())?;
        call.reply.integer(i64::try_from(number).unwrap_or(i64::MAX))?;
    }
    Ok(Flow::Next)
}

/// A ratio for people; 0 to nothing.
fn per(part: u64, whole: u64) -> f64 {
    let thousandths = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0);
    u32::try_from(thousandths).map_or(f64::MAX, |thousandths| f64::from(thousandths) / 1000.0)
}

pub(super) fn memory_purge(call: &mut Call<'_>) -> Outcome {
    memcg::drain();
    memcg::purge();
    call.reply.ok()?;
    Ok(Flow::Next)
}

pub(super) fn memory_help(call: &mut Call<'_>) -> Outcome {
    call.help(&[
        "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "PURGE",
        "    Take back what threads have cached, and give freed pages to the system.",
        "STATS",
        "    Return information about the memory of the selected tenant.",
        "USAGE <key> [SAMPLES <count>]",
        "    Return memory in bytes used by <key> and its value.",
        "HELP",
        "    Print this help.",
    ])
}

// ---- CONFIG ---------------------------------------------------------------------------------------------------------

/// Parameters in the order in which CONFIG GET tells them.
const PARAMETERS: [&str; 9] = [
    "appendonly",
    "databases",
    "io-threads",
    "maxclients",
    "maxmemory",
    "maxmemory-policy",
    "proto-max-bulk-len",
    "save",
    "timeout",
];

/// CONFIG GET pattern ...
pub(super) fn config_get(call: &mut Call<'_>) -> Outcome {
    let args = call.args;
    let wanted = |name: &&&str| {
        args.from(2).any(|pattern| glob::matches_ignoring_case(pattern, name.as_bytes()))
    };
    call.reply.map(PARAMETERS.iter().filter(wanted).count())?;
    for name in PARAMETERS.iter().filter(wanted) {
        call.reply.bulk(name.as_bytes())?;
        say_parameter(call, name)?;
    }
    Ok(Flow::Next)
}

fn say_parameter(call: &mut Call<'_>, name: &str) -> Result<(), Fault> {
    let number = match name {
        "databases" => call.server.tenants.databases() as u64,
        "io-threads" => call.server.threads as u64,
        "maxclients" => call.server.max_clients,
        "maxmemory" => match selected(call)?.group().max() {
            Limit::Bytes(max) => max,
            Limit::Max => 0,
        },
        "proto-max-bulk-len" => MAX_BULK.unsigned_abs(),
        "timeout" => 0,
        "appendonly" => return Ok(call.reply.bulk(b"no")?),
        "maxmemory-policy" => return Ok(call.reply.bulk(b"allkeys-sieve")?),
        _ => return Ok(call.reply.bulk(b"")?),
    };
    Ok(say_number(call.reply, number)?)
}

fn say_number(reply: &mut Reply, number: u64) -> Result<(), NoRoom> {
    let digits = crate::protocol::number::Digits::new(i64::try_from(number).unwrap_or(i64::MAX));
    reply.bulk(digits.as_slice())
}

/// CONFIG SET name value ...: all of it is checked before any of it is set.
pub(super) fn config_set(call: &mut Call<'_>) -> Outcome {
    if !call.args.len().is_multiple_of(2) {
        return Err(Fault::Arity("config|set"));
    }
    let mut max = None;
    for at in (2..call.args.len()).step_by(2) {
        let name = call.args.get(at);
        if !call.args.is(at, "maxmemory") {
            let known = PARAMETERS.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
            return refuse_config(call, name, known.then_some("can't set immutable config"));
        }
        if max.is_some() {
            return refuse_config(call, name, Some("duplicate parameter"));
        }
        let Some(size) = parse_maxmemory(call.args.get(at + 1)) else {
            return refuse_config(call, name, Some("argument must be a memory value"));
        };
        if exceeds(size, call.server.tenants.group().max()) {
            return refuse_config(
                call,
                name,
                Some("argument must not exceed the total of all tenants"),
            );
        }
        max = Some(size);
    }
    if let Some(max) = max {
        // A limit below what is pinned stands all the same, as Redis has it: what comes next is refused until it is met.
        match selected(call)?.group().set_max(max) {
            Ok(()) => {}
            Err(error) if error.is_busy() => {}
            Err(_) => return refuse_config(call, b"maxmemory", Some("the limit could not be set")),
        }
    }
    call.reply.ok()?;
    Ok(Flow::Next)
}

/// A size as Redis takes it, where 0 stands for no limit.
fn parse_maxmemory(text: &[u8]) -> Option<Limit> {
    match core::str::from_utf8(text).ok()?.parse().ok()? {
        Limit::Bytes(0) => Some(Limit::Max),
        limit => Some(limit),
    }
}

fn refuse_config(call: &mut Call<'_>, name: &[u8], reason: Option<&str>) -> Outcome {
    let name = Shown(name);
    match reason {
        Some(reason) => call.reply.error(format_args!(
            "ERR CONFIG SET failed (possibly related to argument '{name}') - {reason}"
        ))?,
        None => call.reply.error(format_args!(
            "ERR Unknown option or number of arguments for CONFIG SET - '{name}'"
        ))?,
    }
    Ok(Flow::Next)
}

pub(super) fn config_resetstat(call: &mut Call<'_>) -> Outcome {
    call.server.stats.reset();
    call.reply.ok()?;
    Ok(Flow::Next)
}

pub(super) fn config_help(call: &mut Call<'_>) -> Outcome {
    call.help(&[
        "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "GET <pattern>",
        "    Return parameters matching the glob-like <pattern> and their values.",
        "SET <directive> <value>",
        "    Set the configuration <directive> to <value>: maxmemory, of the selected tenant.",
        "RESETSTAT",
        "    Reset statistics reported by the INFO command.",
        "HELP",
        "    Print this help.",
    ])
}

/// The tenant of the selected database, whether or not the connection has come to it.
fn selected<'a>(call: &Call<'a>) -> Result<&'a Tenant, Fault> {
    let tenant = call.server.tenants.open(call.identity.db);
    tenant.ok().flatten().ok_or(Fault::Say("ERR the tenant of this database could not be made"))
}
