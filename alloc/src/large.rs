//! Large objects: jemalloc's, with who pays for them out of band.
//!
//! They are charged exactly, one by one, for what they really take. The charge comes first and
//! the memory second, so a refusal has nothing to undo; of what is huge the memory comes first,
//! for the system may have none. Back comes the memory first.

use core::alloc::Layout;
use core::ptr;

use memcg_accounting::{Charged, Payer, Root};

use crate::bypass;
use crate::hand;
use crate::jemalloc;
use crate::maps;
use crate::process::{self, ENGINE, TREE};
use crate::scope::{self, Refused};
use crate::start;

/// From this size on the memory comes before the charge.
const HUGE: usize = 1 << 30;

/// An object of `layout` for the current payer, or null.
pub(crate) fn alloc(layout: Layout, zeroed: bool, root: Root) -> *mut u8 {
    if !start::begin(root) {
        return ptr::null_mut();
    }
    if !process::is_tracking() {
        return system(layout, jemalloc::alloc(layout, zeroed));
    }
    let bytes = jemalloc::real_size(layout);
    if bytes == 0 {
        return system(layout, ptr::null_mut());
    }
    // What the system may not have is asked of it first, so that no peak tells of what never was.
    let object = if bytes >= HUGE { jemalloc::alloc(layout, zeroed) } else { ptr::null_mut() };
    if bytes >= HUGE && object.is_null() {
        return system(layout, object);
    }
    let Some(charged) = bypass::charge(|payer| ENGINE.charge_large(payer, bytes as u64)) else {
        if !object.is_null() {
            // SAFETY: allocated above and shown to nobody.
            unsafe { jemalloc::dealloc(object) };
        }
        return ptr::null_mut();
    };
    let object = if object.is_null() { jemalloc::alloc(layout, zeroed) } else { object };
    let object = give_to(layout, object, charged, bytes);
    hand::put_down();
    object
}

/// Makes `object`, of `bytes` or null, the payer's of a charge that was made; or null, and the charge is
/// undone.
fn give_to(layout: Layout, object: *mut u8, charged: Charged, bytes: usize) -> *mut u8 {
    if charged.tag.is_nobody() {
        return system(layout, object);
    }
    if object.is_null() || !maps::tag_large(object.addr(), layout.align(), charged.tag, bytes) {
        if !object.is_null() {
            // SAFETY: allocated above and shown to nobody.
            unsafe { jemalloc::dealloc(object) };
        }
        TREE.uncharge_large(charged.tag, charged.bytes);
        return system(layout, ptr::null_mut());
    }
    object
}

/// Notes that the system had no memory, if it had none.
fn system(layout: Layout, object: *mut u8) -> *mut u8 {
    if object.is_null() {
        scope::set_refusal(Refused::System(layout.size() as u64));
    }
    object
}

/// Gives an object back.
///
/// # Safety
///
/// `object` is a large object of ours, and nobody uses it any more.
pub(crate) unsafe fn dealloc(object: *mut u8) {
    if !process::is_tracking() || maps::large(object.addr()).is_none() {
        // SAFETY: by contract.
        return unsafe { jemalloc::dealloc(object) };
    }
    hand::take();
    // The word goes first: the address may be another object's as soon as jemalloc has it.
    let word = maps::untag_large(object.addr());
    // SAFETY: by contract.
    unsafe { jemalloc::dealloc(object) };
    if let Some(word) = word {
        bypass::uncharge_large(word.tag, word.bytes as u64);
    }
    hand::put_down();
}

/// Makes a large object hold `size` bytes, where it is or elsewhere. Null: it is untouched.
///
/// In place the old payer keeps it, and pays what it grows by; moved, the current one pays.
///
/// # Safety
///
/// As for `GlobalAlloc::realloc`; both layouts are large.
pub(crate) unsafe fn realloc(object: *mut u8, old: Layout, size: usize, root: Root) -> *mut u8 {
    let Ok(new) = Layout::from_size_align(size, old.align()) else { return ptr::null_mut() };
    let word = if process::is_tracking() { maps::large(object.addr()) } else { None };
    let Some(word) = word else {
        if scope::current().payer().tag.is_nobody() || !process::is_tracking() {
            // SAFETY: by contract.
            return system(new, unsafe { jemalloc::resize_moving(object, size, old.align()) });
        }
        // SAFETY: by contract.
        return unsafe { move_to(object, old, new, root) };
    };
    let bytes = jemalloc::real_size(new);
    if bytes == 0 {
        return system(new, ptr::null_mut());
    }
    hand::take();
    let resized = if bytes <= word.bytes {
        // SAFETY: by contract.
        unsafe { shrink_in_place(object, new, word) }
    } else {
        // SAFETY: by contract.
        unsafe { grow_in_place(object, new, word, bytes) }
    };
    hand::put_down();
    if resized {
        return object;
    }
    // SAFETY: by contract.
    unsafe { move_to(object, old, new, root) }
}

/// # Safety
///
/// As for [`realloc`].
unsafe fn shrink_in_place(object: *mut u8, new: Layout, word: maps::LargeWord) -> bool {
    // SAFETY: by contract.
    let now = unsafe { jemalloc::resize_in_place(object, new.size(), new.align()) };
    if now > word.bytes {
        return false;
    }
    let less = (word.bytes - now) as u64;
    maps::tag_large(object.addr(), new.align(), word.tag, now);
    bypass::uncharge_large(word.tag, less);
    true
}

/// # Safety
///
/// As for [`realloc`].
unsafe fn grow_in_place(object: *mut u8, new: Layout, word: maps::LargeWord, bytes: usize) -> bool {
    if bytes >= HUGE {
        return false;
    }
    let more = (bytes - word.bytes) as u64;
    let payer: Payer = TREE.payer_of(word.tag);
    // Without reclaim: if there is no room here, moving may find some and asks for it.
    let want = memcg_accounting::Want::exactly(more);
    let Ok(charged) = TREE.charge(payer, want) else { return false };
    ENGINE.after_charge(&charged);
    // SAFETY: by contract.
    let now = unsafe { jemalloc::resize_in_place(object, new.size(), new.align()) };
    let grown = now.saturating_sub(word.bytes) as u64;
    debug_assert!(grown <= more, "jemalloc gives a size class or leaves the object as it is");
    if grown > 0 && charged.tag.is_nobody() {
        // The old payer went to an untracked root: its word may not claim what was not charged.
        maps::untag_large(object.addr());
        TREE.uncharge(word.tag, word.bytes as u64);
    } else if grown > 0 {
        maps::tag_large(object.addr(), new.align(), word.tag, now);
        TREE.add_large(word.tag, grown);
    }
    if !charged.tag.is_nobody() && grown < more {
        TREE.uncharge(charged.tag, more - grown);
    }
    now >= new.size()
}

/// # Safety
///
/// As for [`realloc`].
unsafe fn move_to(object: *mut u8, old: Layout, new: Layout, root: Root) -> *mut u8 {
    let moved = alloc(new, false, root);
    if !moved.is_null() {
        // SAFETY: both hold that many bytes, and the new object overlaps nothing.
        unsafe { ptr::copy_nonoverlapping(object, moved, old.size().min(new.size())) };
        // SAFETY: by contract; the caller will not use it any more.
        unsafe { dealloc(object) };
    }
    moved
}
