//! Without a record: one object at a time, charged exactly, uncharged at once.
//!
//! For a thread whose record is being drained, that has none (before first use, after exit), or
//! that reclaims: then its charges are forced, and what it frees becomes credit of the request
//! that asked.

use core::ptr;
use core::sync::atomic::Ordering;

use memcg_accounting::{Charged, OverLimit, Payer, Root, Tag};

use crate::central;
use crate::class::Class;
use crate::hand;
use crate::maps;
use crate::process::{ENGINE, TREE};
use crate::scope::{self, Refused};
use crate::start;

/// An object of `class` for the current payer, or null.
pub(crate) fn alloc(class: Class, root: Root) -> *mut u8 {
    if !start::begin(root) {
        return ptr::null_mut();
    }
    match charge(|payer| ENGINE.charge(payer, class.size() as u64, 0)) {
        Some(charged) => {
            let object = take_paid(class, charged, root);
            hand::put_down();
            object
        }
        None => ptr::null_mut(),
    }
}

/// Has `charge` charge the current payer exactly, by force if the thread reclaims. What it answers is
/// in [hand] until the caller puts it down. `None`: refused, and noted why.
pub(crate) fn charge(charge: impl FnOnce(Payer) -> Result<Charged, OverLimit>) -> Option<Charged> {
    let payer = scope::current().payer();
    if payer.tag.is_nobody() {
        hand::take();
        return Some(Charged::default());
    }
    match charge(payer) {
        Ok(charged) => {
            if let Some(request) = scope::eager().request {
                TREE.charged_for(charged.tag, charged.bytes, request);
            }
            Some(charged)
        }
        Err(over) => {
            scope::set_refusal(Refused::Limit(over));
            None
        }
    }
}

/// Gives bytes of `tag` back: to the request that the thread frees for, if there is one.
pub(crate) fn uncharge(tag: Tag, bytes: u64) {
    match scope::eager().request {
        Some(request) => TREE.uncharge_for(tag, bytes, request),
        None => TREE.uncharge(tag, bytes),
    }
}

/// The same for a large object, which is counted as one no longer.
pub(crate) fn uncharge_large(tag: Tag, bytes: u64) {
    match scope::eager().request {
        Some(request) => {
            TREE.sub_large(tag, bytes);
            TREE.uncharge_for(tag, bytes, request);
        }
        None => TREE.uncharge_large(tag, bytes),
    }
}

/// An object for a charge that was made; or null, and the charge is undone.
pub(crate) fn take_paid(class: Class, charged: Charged, root: Root) -> *mut u8 {
    debug_assert!(start::begin(root), "a charge was made");
    let need = class.size() as u64;
    if charged.bytes > need {
        TREE.uncharge(charged.tag, charged.bytes - need);
    }
    let mut object = [ptr::null_mut()];
    if central::take(class, &mut object) == 1 {
        if charged.tag.is_nobody() || tag(object[0], class, charged.tag) {
            return object[0];
        }
        // SAFETY: taken above, untagged and shown to nobody.
        unsafe { central::give(class, &object) };
    }
    TREE.uncharge(charged.tag, need);
    scope::set_refusal(Refused::System(need));
    ptr::null_mut()
}

/// Tags a fresh object; `false`: no memory for the vector.
fn tag(object: *mut u8, class: Class, tag: Tag) -> bool {
    // SAFETY: the object is out, and the caller's.
    if !unsafe { maps::make_taggable(object, class) } {
        return false;
    }
    // SAFETY: as above.
    let slot = unsafe { maps::tag_slot(object, class) };
    slot.store(tag.to_bits(), Ordering::Relaxed);
    true
}

/// Takes a free object back.
///
/// # Safety
///
/// `object` is of `class`, ours, and nobody uses it any more.
pub(crate) unsafe fn dealloc(object: *mut u8, class: Class) {
    // SAFETY: by contract the object is out, and the caller's.
    let slot = unsafe { maps::tag_slot(object, class) };
    let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
    if tag.is_nobody() {
        // SAFETY: by contract the object is free, and it has no tag.
        return unsafe { central::give(class, &[object]) };
    }
    hand::take();
    slot.store(0, Ordering::Relaxed);
    // SAFETY: by contract the object is free, and its tag is cleared.
    unsafe { central::give(class, &[object]) };
    // Last: usage is never below what lives.
    uncharge(tag, class.size() as u64);
    hand::put_down();
}
