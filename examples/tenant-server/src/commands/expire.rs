//! Commands on times to live. The deadline is in the value's header, so none of them needs memory.

use super::{Call, Fault, Flow, Outcome};
use crate::memory::value::now_ms;
use crate::reply::Shown;
use crate::tenant::Tenant;

pub(super) fn expire(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    set(call, tenant, 1000, "ERR invalid expire time in 'expire' command")
}

pub(super) fn pexpire(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    set(call, tenant, 1, "ERR invalid expire time in 'pexpire' command")
}

/// The options of EXPIRE.
#[derive(Clone, Copy, Debug, Default)]
struct Conditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Conditions {
    /// Whether a key that expires at `before` may expire at `after` instead; never is later than any time.
    fn allow(self, before: Option<u64>, after: i64) -> bool {
        let before = before.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
        let refused = self.nx && before.is_some()
            || self.xx && before.is_none()
            || self.gt && before.is_none_or(|before| after <= before)
            || self.lt && before.is_some_and(|before| after >= before);
        !refused
    }
}

fn set(call: &mut Call<'_>, tenant: &Tenant, unit: i64, invalid: &'static str) -> Outcome {
    let given = call.integer(2)?;
    let now = i64::try_from(now_ms()).unwrap_or(i64::MAX);
    let at =
        given.checked_mul(unit).and_then(|ms| ms.checked_add(now)).ok_or(Fault::Say(invalid))?;
    let mut conditions = Conditions::default();
    for index in 3..call.args.len() {
        match () {
            () if call.args.is(index, "nx") => conditions.nx = true,
            () if call.args.is(index, "xx") => conditions.xx = true,
            () if call.args.is(index, "gt") => conditions.gt = true,
            () if call.args.is(index, "lt") => conditions.lt = true,
            () => {
                call.reply.error(format_args!(
                    "ERR Unsupported option {}",
                    Shown(call.args.get(index))
                ))?;
                return Ok(Flow::Next);
            }
        }
    }
    if conditions.nx && (conditions.xx || conditions.gt || conditions.lt) {
        return Err(Fault::Say(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if conditions.gt && conditions.lt {
        return Err(Fault::Say("ERR GT and LT options at the same time are not compatible"));
    }
    let slot = tenant.slot(call.args.get(1));
    let changed = match slot.get() {
        Some(value) if conditions.allow(value.deadline(), at) => {
            if at > now {
                tenant.set_deadline(&value, u64::try_from(at).ok());
            } else {
                slot.remove();
            }
            true
        }
        _ => false,
    };
    drop(slot);
    call.reply.integer(i64::from(changed))?;
    Ok(Flow::Next)
}

pub(super) fn ttl(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    say_left(call, tenant, |ms| (ms + 500) / 1000)
}

pub(super) fn pttl(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    say_left(call, tenant, |ms| ms)
}

fn say_left(call: &mut Call<'_>, tenant: &Tenant, unit: fn(u64) -> u64) -> Outcome {
    let left = match tenant.get(call.args.get(1)).map(|value| value.deadline()) {
        None => -2,
        Some(None) => -1,
        Some(Some(at)) => i64::try_from(unit(at.saturating_sub(now_ms()))).unwrap_or(i64::MAX),
    };
    call.reply.integer(left)?;
    Ok(Flow::Next)
}

pub(super) fn persist(call: &mut Call<'_>, tenant: &Tenant) -> Outcome {
    let slot = tenant.slot(call.args.get(1));
    let changed = match slot.get() {
        Some(value) if value.deadline().is_some() => {
            tenant.set_deadline(&value, None);
            true
        }
        _ => false,
    };
    drop(slot);
    call.reply.integer(i64::from(changed))?;
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_compare_with_what_was() {
        let gt = Conditions { gt: true, ..Conditions::default() };
        assert!(gt.allow(Some(5), 6) && !gt.allow(Some(5), 5) && !gt.allow(None, 6));
        let lt = Conditions { lt: true, ..Conditions::default() };
        assert!(lt.allow(Some(5), 4) && !lt.allow(Some(5), 5) && lt.allow(None, 6));
        let nx = Conditions { nx: true, ..Conditions::default() };
        assert!(nx.allow(None, 1) && !nx.allow(Some(5), 1));
        let xx = Conditions { xx: true, ..Conditions::default() };
        assert!(!xx.allow(None, 1) && xx.allow(Some(5), 1));
    }
}
