//! Commands on values.
//!
//! What reads and then writes holds the key's lock in between. What is written has been allocated by then, so that a
//! refusal comes before anything has changed.

use super::{Call, Fault, Flow, NOT_INTEGER, Outcome, SYNTAX};
use crate::memory::Value;
use crate::memory::value::now_ms;
use crate::protocol::MAX_BULK;
use crate::protocol::number::{Digits, parse_i64};
use crate::tenant::Tenant;

pub(super) fn get(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let value = call.server.stats.looked_up(tenant.get(call.args.get(1)));
    say(call, value)
}

pub(super) fn getdel(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let removed = tenant.slot(call.args.get(1)).remove();
    let value = call.server.stats.looked_up(removed);
    say(call, value)
}

/// A value, for which a piece is free, or nothing.
fn say(call: &mut Call<'_>, value: Option<Value>) -> Outcome {
    match value {
        Some(value) => call.reply.value(&value)?,
        None => call.reply.null()?,
    }
    Ok(Flow::Next)
}

pub(super) fn mget(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    call.reply.array(call.args.len() - 1)?;
    // All of them at one moment.
    let held = tenant.lock_all(call.args.from(1));
    for key in call.args.from(1) {
        match call.server.stats.looked_up(tenant.get_held(&held, key)) {
            Some(value) => call.reply.value(&value)?,
            None => call.reply.null()?,
        }
    }
    Ok(Flow::Next)
}

pub(super) fn strlen(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let value = call.server.stats.looked_up(tenant.get(call.args.get(1)));
    call.reply.count(value.map_or(0, |value| value.len()))?;
    Ok(Flow::Next)
}

// ---- SET ------------------------------------------------------------------------------------------------------------

/// When SET stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    IfMissing,
    IfPresent,
}

/// What SET does about the time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ttl {
    None,
    Keep,
    Until(u64),
}

#[derive(Clone, Copy, Debug)]
struct SetOptions {
    when: When,
    ttl: Ttl,
    get: bool,
}

impl SetOptions {
    fn of(call: &Call<'_>) -> Result<Self, Fault> {
        let mut options = Self { when: When::Always, ttl: Ttl::None, get: false };
        let mut at = 3;
        while at < call.args.len() {
            at += options.take(call, at)?;
        }
        Ok(options)
    }

    /// Takes the option at `at` and answers how many arguments it was.
    fn take(&mut self, call: &Call<'_>, at: usize) -> Result<usize, Fault> {
        let args = call.args;
        if args.is(at, "nx") && self.when != When::IfPresent {
            self.when = When::IfMissing;
        } else if args.is(at, "xx") && self.when != When::IfMissing {
            self.when = When::IfPresent;
        } else if args.is(at, "get") {
            self.get = true;
        } else if args.is(at, "keepttl") && matches!(self.ttl, Ttl::None | Ttl::Keep) {
            self.ttl = Ttl::Keep;
        } else if let Some(unit) = Unit::of(call, at)
            && self.ttl == Ttl::None
            && at + 1 < args.len()
        {
            self.ttl = Ttl::Until(unit.deadline(call.integer(at + 1)?)?);
            return Ok(2);
        } else {
            return Err(SYNTAX);
        }
        Ok(1)
    }
}

/// How SET's time to live is given.
#[derive(Clone, Copy, Debug)]
struct Unit {
    milliseconds: i64,
    absolute: bool,
}

impl Unit {
    fn of(call: &Call<'_>, at: usize) -> Option<Self> {
        let known =
            [("ex", 1000, false), ("px", 1, false), ("exat", 1000, true), ("pxat", 1, true)];
        known.iter().find(|(name, ..)| call.args.is(at, name)).map(|(_, milliseconds, absolute)| {
            Self { milliseconds: *milliseconds, absolute: *absolute }
        })
    }

    fn deadline(self, given: i64) -> Result<u64, Fault> {
        let invalid = Fault::Say("ERR invalid expire time in 'set' command");
        let now = if self.absolute { 0 } else { i64::try_from(now_ms()).unwrap_or(i64::MAX) };
        let at = given.checked_mul(self.milliseconds).and_then(|ms| ms.checked_add(now));
        match at {
            Some(at) if given > 0 => u64::try_from(at).map_err(|_| invalid),
            _ => Err(invalid),
        }
    }
}

pub(super) fn set(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let options = SetOptions::of(call)?;
    let value = call.args.value(2)?;
    let slot = tenant.slot(call.args.get(1));
    let before = match options {
        SetOptions { when: When::Always, ttl: Ttl::None | Ttl::Until(_), get: false } => None,
        _ => slot.get(),
    };
    let stores = match options.when {
        When::Always => true,
        When::IfMissing => before.is_none(),
        When::IfPresent => before.is_some(),
    };
    if stores {
        value.set_deadline(match options.ttl {
            Ttl::None => None,
            Ttl::Keep => before.as_ref().and_then(Value::deadline),
            Ttl::Until(at) => Some(at),
        });
        slot.put(value)?;
    }
    drop(slot);
    if options.get {
        return say(call, before);
    }
    if stores {
        call.reply.ok()?
    } else {
        call.reply.null()?
    }
    Ok(Flow::Next)
}

pub(super) fn setnx(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let value = call.args.value(2)?;
    let slot = tenant.slot(call.args.get(1));
    let stores = slot.get().is_none();
    if stores {
        slot.put(value)?;
    }
    drop(slot);
    call.reply.integer(i64::from(stores))?;
    Ok(Flow::Next)
}

pub(super) fn mset(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    if call.args.len().is_multiple_of(2) {
        return Err(Fault::Arity("mset"));
    }
    let args = call.args;
    let pairs = (args.len() - 1) / 2;
    let key = |pair: usize| args.get(1 + 2 * pair);
    let held = tenant.lock_all((0..pairs).map(key));
    tenant.put_all(&held, pairs, key, |pair| args.value(2 + 2 * pair))?;
    drop(held);
    call.reply.ok()?;
    Ok(Flow::Next)
}

pub(super) fn append(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let tail = call.args.get(2);
    let slot = tenant.slot(call.args.get(1));
    let value = match slot.get() {
        None => call.args.value(2)?,
        Some(before) => {
            let len = before.len() + tail.len();
            if i64::try_from(len).is_ok_and(|len| len > MAX_BULK) {
                return Err(Fault::Say(
                    "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
                ));
            }
            before.joined(tail)?
        }
    };
    let len = value.len();
    slot.put(value)?;
    drop(slot);
    call.reply.count(len)?;
    Ok(Flow::Next)
}

// ---- numbers --------------------------------------------------------------------------------------------------------

pub(super) fn incr(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    add(call, tenant, 1)
}

pub(super) fn decr(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    add(call, tenant, -1)
}

pub(super) fn incrby(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let step = call.integer(2)?;
    add(call, tenant, step)
}

pub(super) fn decrby(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let step = call.integer(2)?;
    let step = step.checked_neg().ok_or(Fault::Say("ERR decrement would overflow"))?;
    add(call, tenant, step)
}

fn add(call: &mut Call<'_>, tenant: &Tenant, step: i64) -> Outcome {
    let slot = tenant.slot(call.args.get(1));
    let before = slot.get();
    let number =
        before.as_ref().map_or(Some(0), |value| parse_i64(value.as_slice())).ok_or(NOT_INTEGER)?;
    let sum =
        number.checked_add(step).ok_or(Fault::Say("ERR increment or decrement would overflow"))?;
    let value = Value::copy_of(Digits::new(sum).as_slice())?;
    value.set_deadline(before.as_ref().and_then(Value::deadline));
    slot.put(value)?;
    drop(slot);
    call.reply.integer(sum)?;
    Ok(Flow::Next)
}
