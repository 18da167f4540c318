//! What the fast path leaves: first use, refills, charges, flushes.
//!
//! The owner holds its record's lock here, or takes the [bypass](crate::bypass) if somebody
//! else does. It never charges with reclaim, drains or waits while it holds the lock.

use core::ptr;

use memcg_accounting::sync::AtomicU32;
use memcg_accounting::{Charged, Payer, Reason, Root, Want};

use crate::bypass;
use crate::cached::Step;
use crate::class::Class;
use crate::hand;
use crate::process::{self, ENGINE, TREE};
use crate::record::{self, Record};
use crate::scope::{self, Refused};
use crate::start;

/// What keeps an owner from working on its record at all.
const CLOSED: Reason = Reason::EMPTY.and(Reason::RECLAIM).and(Reason::EXITING);

/// An object of `class` for the current payer, or null.
#[cold]
pub(crate) fn alloc(class: Class, root: Root) -> *mut u8 {
    let Some(record) = workable(root) else { return bypass::alloc(class, root) };
    if record.gate.reasons().is(Reason::FENCE) && record.gate.enter_fenced() {
        // SAFETY: the gate is passed, and the reference ends before `leave`.
        let object = unsafe { record.cached() }.pop(class, record.current());
        record.gate.leave();
        if let Some(object) = object {
            return object;
        }
    }
    if !record.try_own() {
        return bypass::alloc(class, root);
    }
    record.pass();
    let outcome = locked_alloc(record, class);
    record.gate.unlock();
    match outcome {
        Outcome::Done(object) => object,
        Outcome::Charged(object, charged) => {
            ENGINE.after_charge(&charged);
            object
        }
        Outcome::NoMemory => {
            scope::set_refusal(Refused::System(class.size() as u64));
            ptr::null_mut()
        }
        Outcome::Refused(payer) => charge_and_retry(record, class, payer, root),
    }
}

/// An object of `class` where the one on top of the magazine is another payer's, whose tag is in `slot`:
/// the stock pays, if it can. Straight-line work too, out of line.
///
/// # Safety
///
/// The owner has passed the gate of `record`, its own, which is left here.
#[inline(never)]
pub(crate) unsafe fn alloc_others(
    record: &'static Record,
    class: Class,
    slot: &AtomicU32,
    root: Root,
) -> *mut u8 {
    // SAFETY: by contract, and the reference ends before `leave`.
    let object = unsafe { record.cached() }.take_others(class, record.current(), slot);
    record.gate.leave();
    object.unwrap_or_else(|| alloc(class, root))
}

/// The calling thread's record, if its owner may work on it.
fn workable(root: Root) -> Option<&'static Record> {
    if !process::has_begun() && !start::begin(root) {
        return None;
    }
    let record = record::own()?;
    (!record.gate.reasons().has(CLOSED)).then_some(record)
}

enum Outcome {
    Done(*mut u8),
    Charged(*mut u8, Charged),
    NoMemory,
    Refused(Payer),
}

/// The owner holds the lock.
fn locked_alloc(record: &Record, class: Class) -> Outcome {
    let payer = record.settle();
    // SAFETY: the owner holds the lock, and this is the only reference.
    let cached = unsafe { record.cached() };
    cached.trim_stock(payer.tag);
    match cached.alloc(class, payer.tag) {
        Step::Done(object) => Outcome::Done(object),
        Step::NoMemory => Outcome::NoMemory,
        Step::Charge => {
            let need = class.size() as u64;
            let ahead = cached.ahead_for(payer.tag, need);
            match TREE.charge(payer, Want { need, ahead, over: 0 }) {
                Ok(charged) => {
                    cached.give_ahead(charged.tag, need, charged.bytes - need);
                    Outcome::Charged(cached.finish(class, charged.tag), charged)
                }
                Err(_) => Outcome::Refused(payer),
            }
        }
    }
}

/// The limit was met: the whole charge loop, with nothing held.
fn charge_and_retry(record: &Record, class: Class, payer: Payer, root: Root) -> *mut u8 {
    let need = class.size() as u64;
    // Nothing ahead: until the record is locked again no cut would find it, and bytes that are
    // nobody's need must not refuse another's.
    let charged = match ENGINE.charge(payer, need, 0) {
        Ok(charged) => charged,
        Err(over) => {
            scope::set_refusal(Refused::Limit(over));
            return ptr::null_mut();
        }
    };
    let object = hand_out(record, class, charged, root);
    hand::put_down();
    object
}

/// An object for a charge that was made, or null.
fn hand_out(record: &Record, class: Class, charged: Charged, root: Root) -> *mut u8 {
    if record.gate.reasons().has(CLOSED) || !record.try_own() {
        return bypass::take_paid(class, charged, root);
    }
    let need = class.size() as u64;
    // The wait may have been long, and the keeper may have found the thread idle meanwhile.
    record.pass();
    // SAFETY: the owner holds the lock, and this is the only reference.
    let cached = unsafe { record.cached() };
    cached.give(charged.tag, charged.bytes - need);
    let object = match cached.alloc_paid(class, charged.tag) {
        Some(()) => cached.finish(class, charged.tag),
        None => {
            cached.give(charged.tag, need);
            scope::set_refusal(Refused::System(need));
            ptr::null_mut()
        }
    };
    record.gate.unlock();
    object
}

/// Takes a free object of `class` back.
///
/// # Safety
///
/// `object` is of `class`, ours, and nobody uses it any more.
#[cold]
pub(crate) unsafe fn dealloc(object: *mut u8, class: Class, root: Root) {
    let record = workable(root);
    let Some(record) = record else {
        // SAFETY: by contract.
        return unsafe { bypass::dealloc(object, class) };
    };
    if record.gate.reasons().is(Reason::FENCE) && record.gate.enter_fenced() {
        // SAFETY: the gate is passed, and the reference ends before `leave`.
        let pushed = unsafe { record.cached() }.push(class, object);
        record.gate.leave();
        if pushed {
            return;
        }
    }
    if !record.try_own() {
        // SAFETY: by contract.
        return unsafe { bypass::dealloc(object, class) };
    }
    record.pass();
    // SAFETY: the owner holds the lock, and this is the only reference.
    let cached = unsafe { record.cached() };
    cached.free(class, object);
    cached.trim_stock(record.current());
    record.gate.unlock();
}
