//! Commands on keys, whatever their values.

use super::{Call, Fault, Flow, Outcome, SYNTAX};
use crate::glob;
use crate::memory::{Key, NoRoom, room};
use crate::tenant::Tenant;

/// Keys that SCAN looks at when it is not told how many.
const SCAN_COUNT: i64 = 10;

/// Most steps of the cache's walk that one SCAN makes, however few keys they show.
const SCAN_STEPS: usize = 1000;

pub(super) fn del(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let removed = call.args.from(1).filter(|key| tenant.slot(key).remove().is_some()).count();
    call.reply.count(removed)?;
    Ok(Flow::Next)
}

pub(super) fn exists(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let found = call
        .args
        .from(1)
        .filter(|key| call.server.stats.looked_up(tenant.get(key)).is_some())
        .count();
    call.reply.count(found)?;
    Ok(Flow::Next)
}

pub(super) fn kind(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let found = tenant.get(call.args.get(1)).is_some();
    call.reply.simple(if found { "string" } else { "none" })?;
    Ok(Flow::Next)
}

pub(super) fn dbsize(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    call.reply.count(tenant.len())?;
    Ok(Flow::Next)
}

pub(super) fn flushdb(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    check_flush(call)?;
    tenant.flush();
    call.reply.ok()?;
    Ok(Flow::Next)
}

pub(super) fn flushall(call: &mut Call<'_>) -> Outcome {
    check_flush(call)?;
    call.server.tenants.iter().for_each(Tenant::flush);
    call.reply.ok()?;
    Ok(Flow::Next)
}

fn check_flush(call: &Call<'_>) -> Result<(), Fault> {
    match call.args.len() {
        1 => Ok(()),
        2 if call.args.is(1, "async") || call.args.is(1, "sync") => Ok(()),
        _ => Err(SYNTAX),
    }
}

pub(super) fn keys(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let pattern = call.args.get(1);
    let mut found = Vec::new();
    let mut cursor = 0;
    loop {
        cursor = collect(tenant, cursor, &mut found, |key| glob::matches(pattern, key))?;
        if cursor == 0 {
            break;
        }
    }
    say_keys(call, &found)
}

/// SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]
pub(super) fn scan(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let cursor = core::str::from_utf8(call.args.get(1)).ok().and_then(|text| text.parse().ok());
    let mut cursor: u64 = cursor.ok_or(Fault::Say("ERR invalid cursor"))?;
    let mut pattern = b"*".as_slice();
    let mut count = SCAN_COUNT;
    let mut only_strings = true;
    let mut at = 2;
    while at < call.args.len() {
        if at + 1 == call.args.len() {
            return Err(SYNTAX);
        }
        if call.args.is(at, "match") {
            pattern = call.args.get(at + 1);
        } else if call.args.is(at, "count") {
            count = call.integer(at + 1)?;
            if count < 1 {
                return Err(SYNTAX);
            }
        } else if call.args.is(at, "type") {
            only_strings = call.args.is(at + 1, "string");
        } else {
            return Err(SYNTAX);
        }
        at += 2;
    }
    let mut found = Vec::new();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    let mut looked_at = 0;
    for _ in 0..SCAN_STEPS {
        cursor = collect(tenant, cursor, &mut found, |key| {
            looked_at += 1;
            only_strings && glob::matches(pattern, key)
        })?;
        if cursor == 0 || looked_at >= wanted {
            break;
        }
    }
    call.reply.array(2)?;
    let mut text = [0; 20];
    call.reply.bulk(spell(cursor, &mut text))?;
    say_keys(call, &found)
}

/// Adds the live keys of one step of the cache's walk that match; where to go on.
fn collect(
    tenant: &Tenant,
    cursor: u64,
    found: &mut Vec<Key>,
    mut matches: impl FnMut(&[u8]) -> bool,
) -> Result<u64, NoRoom> {
    let (next, keys) = tenant.scan(cursor);
    for key in keys {
        if matches(key.as_slice()) && tenant.is_live(&key) {
            room::reserve_one(found)?;
            found.push(key);
        }
    }
    Ok(next)
}

fn say_keys(call: &mut Call<'_>, keys: &[Key]) -> Outcome {
    call.reply.array(keys.len())?;
    for key in keys {
        call.reply.bulk(key.as_slice())?;
    }
    Ok(Flow::Next)
}

fn spell(number: u64, text: &mut [u8; 20]) -> &[u8] {
    let mut rest = &mut text[..];
    // Twenty digits are enough for any u64.
    let _fits = std::io::Write::write_fmt(&mut rest, format_args!("{number}"));
    let left = rest.len();
    &text[..20 - left]
}
