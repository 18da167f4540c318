//! The edge: what is done to an object as it is handed to the program, and as it comes back.
//!
//! ```text
//!   alloc ──► hand_out ──► the program ──► take_back ──► dealloc
//!              ledger: out                  ledger: was it? with this layout?   (checks, hardened)
//!              poison whole? redzone laid   redzone whole? tag sane? poisoned   (checks)
//!                                           zeroed                              (hardened)
//!              shadow cleared               shadow poisoned                     (memcg_asan)
//! ```
//!
//! Only [`Memcg`](crate::Memcg) calls it for objects, where the layout is known and no lock is
//! held; only `central.rs` for spans and `jemalloc.rs` for the memory of large objects. With both
//! features off, and outside builds for AddressSanitizer, each function here is empty.

use core::alloc::Layout;

use memcg_accounting::sync::AtomicU32;

use crate::class::Class;
use crate::features::{ACTIVE, ASAN, BLANKS, CHECKS, HARDENED, LEDGER};
use crate::{asan, checks, hardened, ledger};

/// Where the ledger has a slab-class object as live, so that it is looked up once in an operation.
/// Nothing where no ledger is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live(Option<&'static AtomicU32>);

/// Answers `object`, which is about to be the program's.
///
/// # Safety
///
/// It is null, or of `class` and out of its magazine or span, and nobody has it yet.
#[inline(always)]
pub(crate) unsafe fn hand_out(object: *mut u8, class: Class, layout: Layout) -> *mut u8 {
    if ACTIVE && !object.is_null() {
        if ASAN {
            // SAFETY: by contract.
            unsafe { asan::unpoison(object, class.size()) };
        }
        if LEDGER {
            // SAFETY: by contract.
            let before = unsafe { ledger::hand_out(object, class, layout) };
            if CHECKS && before {
                // SAFETY: by contract, and it was poisoned when it came back.
                unsafe { checks::poison_is_whole(object, class) };
            }
        }
        // SAFETY: by contract.
        unsafe { dress(object, class, layout) };
    }
    object
}

/// Sees to the bytes between the end of a layout and that of its class.
///
/// # Safety
///
/// `object` is of `class`, with this layout, and not in use by another thread.
#[inline(always)]
unsafe fn dress(object: *mut u8, class: Class, layout: Layout) {
    if CHECKS && !ASAN {
        // SAFETY: by contract.
        unsafe { checks::lay_redzone(object, layout.size(), class.size()) };
    }
    if ASAN {
        // SAFETY: by contract.
        unsafe { asan::set(object, layout.size(), class.size()) };
    }
}

/// Stops the process unless `object` is live and has `layout`.
///
/// # Safety
///
/// If it is, it is the caller's.
#[inline(always)]
pub(crate) unsafe fn check_live(object: *mut u8, class: Option<Class>, layout: Layout) -> Live {
    if !LEDGER {
        return Live(None);
    }
    let Some(class) = class else {
        ledger::live_large(object, layout);
        if CHECKS {
            // SAFETY: the ledger has it as live.
            unsafe { checks::is_sound_large(object, layout) };
        }
        return Live(None);
    };
    let slot = ledger::live(object, class, layout);
    if CHECKS {
        // SAFETY: the ledger has it as live.
        unsafe { checks::is_sound(object, class, layout) };
    }
    Live(Some(slot))
}

/// Takes an object back; stops the process if it is not the program's to give.
///
/// # Safety
///
/// If the ledger has it as live, nobody uses it any more.
#[inline(always)]
pub(crate) unsafe fn take_back(object: *mut u8, class: Class, layout: Layout) {
    let live = Live(if LEDGER { Some(ledger::live(object, class, layout)) } else { None });
    // SAFETY: by contract.
    unsafe { take_back_live(object, live, class, layout) };
}

/// Takes back an object that was live a while ago.
///
/// # Safety
///
/// `live` is what [`check_live`] answered for it, and nobody has used it since but the caller.
#[inline(always)]
pub(crate) unsafe fn take_back_later(object: *mut u8, live: Live, class: Class, layout: Layout) {
    if let Live(Some(slot)) = live {
        // Others may have run meanwhile.
        ledger::still_live(object, slot, layout);
    }
    // SAFETY: by contract.
    unsafe { take_back_live(object, live, class, layout) };
}

/// # Safety
///
/// The object is live, and nobody uses it any more.
#[inline(always)]
unsafe fn take_back_live(object: *mut u8, live: Live, class: Class, layout: Layout) {
    if let Live(Some(slot)) = live {
        ledger::take_back(object, slot, class, layout);
        if CHECKS {
            // Not before: of two threads that free it the second one would see what the first one makes of it.
            // SAFETY: it was live, and is this thread's alone now.
            unsafe { checks::is_sound(object, class, layout) };
        }
    }
    if ASAN {
        // SAFETY: the object is ours again, whole.
        unsafe { asan::unpoison(object, class.size()) };
    }
    if CHECKS {
        // SAFETY: as above.
        unsafe { checks::poison(object, class) };
    } else if HARDENED {
        // SAFETY: as above.
        unsafe { hardened::zero(object, class.size()) };
    }
    if ASAN {
        // SAFETY: as above.
        unsafe { asan::poison(object, class.size()) };
    }
}

/// What an object that is in holds is about to be lost, in whole or in part, for pages of it go back.
///
/// # Safety
///
/// `object` is of `class`, in its span, and nobody takes it meanwhile.
#[inline(always)]
pub(crate) unsafe fn blank(object: *mut u8, class: Class) {
    // SAFETY: by contract.
    if !BLANKS || !unsafe { ledger::blank(object, class) } {
        return;
    }
    // SAFETY: by contract.
    unsafe { asan::unpoison(object, class.size()) };
    // SAFETY: by contract, and it was poisoned when it came back.
    unsafe { checks::poison_is_whole(object, class) };
    // SAFETY: by contract.
    unsafe { asan::poison(object, class.size()) };
}

/// An object was resized within its class.
///
/// # Safety
///
/// `live` is what [`check_live`] answered for it with the layout `old`, and it is the caller's.
#[inline(always)]
pub(crate) unsafe fn resized(
    object: *mut u8,
    live: Live,
    class: Class,
    (old, new): (Layout, Layout),
) {
    if let Live(Some(slot)) = live {
        ledger::resized(object, slot, old, new);
    }
    // SAFETY: by contract.
    unsafe { dress(object, class, new) };
}

// ---- large objects ------------------------------------------------------------------------

/// Answers `object`, which is about to be the program's.
///
/// # Safety
///
/// It is null, or a large object of this layout, and the caller's.
#[inline(always)]
pub(crate) unsafe fn hand_out_large(object: *mut u8, layout: Layout) -> *mut u8 {
    if LEDGER && !object.is_null() {
        ledger::hand_out_large(object, layout);
        if CHECKS && !ASAN {
            // SAFETY: by contract.
            unsafe { checks::lay_redzone_large(object, layout) };
        }
    }
    object
}

/// As [`take_back`].
///
/// # Safety
///
/// The same.
#[inline(always)]
pub(crate) unsafe fn take_back_large(object: *mut u8, layout: Layout) {
    // SAFETY: by contract.
    let _ = unsafe { check_live(object, None, layout) };
    if LEDGER {
        ledger::take_back_large(object, layout);
    }
    if CHECKS {
        // SAFETY: the object is ours again, whole.
        unsafe { checks::poison_large(object, layout) };
    }
}

/// A large object is about to be resized, and may be given back on the way.
#[inline(always)]
pub(crate) fn resizing_large(object: *mut u8, old: Layout) {
    if LEDGER {
        ledger::take_back_large(object, old);
    }
}

/// What [`resizing_large`] announced was tried; answers `moved`.
///
/// # Safety
///
/// `moved` is the caller's with the new layout; or it is null, and `object` still with the old.
#[inline(always)]
pub(crate) unsafe fn resized_large(
    object: *mut u8,
    old: Layout,
    moved: *mut u8,
    new: Layout,
) -> *mut u8 {
    let (now, layout) = if moved.is_null() { (object, old) } else { (moved, new) };
    // SAFETY: by contract.
    unsafe { hand_out_large(now, layout) };
    moved
}
