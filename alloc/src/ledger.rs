//! The ledger: which objects are out, and with what layout each was asked for.
//!
//! ```text
//!   span ── ledger ──► | word | word | word | …       one for each object, out of band
//!   LARGE[address / 4 KiB] ──► word                   no two large objects begin in one page
//!
//!   word:  0                 never out since its span began
//!          OUT | layout      the program's
//!          FREED             came back
//!          BLANK             came back, and the system has had its memory since
//! ```
//!
//! An object is looked up as any address may be, and its word compared with the one that its
//! layout asks for: one comparison finds a double free, a wrong size and a wrong alignment. What
//! it was is found out only then.
//!
//! # Invariants
//!
//! - A word is changed by whoever has the object: on its way out, or back.
//! - With `debug-checks`, after the words of a span come as many more: who paid for the object when
//!   it came back last.

use core::alloc::Layout;

use memcg_accounting::Tag;
use memcg_accounting::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::class::Class;
use crate::features::{CHECKS, LEDGER};
use crate::finding::{Of, What, stop};
use crate::maps::{self, PAGE_SHIFT, PageMap};

const OUT: u32 = 1 << 31;
const FREED: u32 = 1 << 30;
const BLANK: u32 = 1 << 29;
/// Where the alignment begins: above a size of at most 64 KiB.
const ALIGN_SHIFT: u32 = 17;

/// The word of an object that is out with `layout`.
#[inline(always)]
pub(crate) fn word(layout: Layout) -> u32 {
    debug_assert!(layout.size() < 1 << ALIGN_SHIFT, "a slab-class object");
    #[expect(clippy::cast_possible_truncation, reason = "classes end at 64 KiB")]
    let size = layout.size() as u32;
    OUT | layout.align().trailing_zeros() << ALIGN_SHIFT | size
}

/// What [`word`] was made of.
fn layout_of(word: u32) -> Layout {
    let size = (word & ((1 << ALIGN_SHIFT) - 1)) as usize;
    let align = 1 << ((word >> ALIGN_SHIFT) & 31);
    Layout::from_size_align(size, align).unwrap_or(Layout::new::<()>())
}

/// The word of an object.
///
/// # Safety
///
/// `object` is of `class`, and the caller's.
#[inline(always)]
unsafe fn slot(object: *mut u8, class: Class) -> &'static AtomicU32 {
    // SAFETY: by contract.
    let span = unsafe { maps::span_of_object(object) };
    span.ledger_entry(class.object_at(object.addr() - span.base()))
}

/// Notes that an object goes out; answers whether it came back before.
///
/// # Safety
///
/// `object` is of `class`, and was taken for the program.
#[inline(always)]
pub(crate) unsafe fn hand_out(object: *mut u8, class: Class, layout: Layout) -> bool {
    // SAFETY: by contract.
    let slot = unsafe { slot(object, class) };
    let before = slot.load(Ordering::Relaxed);
    if before & OUT != 0 {
        stop(What::HandedOutTwice, object.addr(), Of::Class(class), maps::tag_at(object.addr()));
    }
    slot.store(word(layout), Ordering::Relaxed);
    before & FREED != 0
}

/// Notes that what an object that is in holds is about to be lost; answers whether it came back before.
///
/// # Safety
///
/// `object` is of `class`, and in.
pub(crate) unsafe fn blank(object: *mut u8, class: Class) -> bool {
    // SAFETY: by contract.
    let slot = unsafe { slot(object, class) };
    let came_back = slot.load(Ordering::Relaxed) & FREED != 0;
    if came_back {
        slot.store(BLANK, Ordering::Relaxed);
    }
    came_back
}

/// Whether the ledger has an object as the program's.
///
/// # Safety
///
/// As for [`slot`].
pub(crate) unsafe fn is_out(object: *mut u8, class: Class) -> bool {
    // SAFETY: by contract.
    LEDGER && unsafe { slot(object, class) }.load(Ordering::Relaxed) & OUT != 0
}

/// The word of an object that is out with `layout`; the process ends if it is not.
#[inline(always)]
pub(crate) fn live(object: *mut u8, class: Class, layout: Layout) -> &'static AtomicU32 {
    if let Some(span) = maps::span_of(object.addr())
        && span.serves(class)
    {
        let offset = object.addr().wrapping_sub(span.base());
        if offset < class.used_bytes() {
            let index = class.object_at(offset);
            let slot = span.ledger_entry(index);
            if index * class.size() == offset && slot.load(Ordering::Relaxed) == word(layout) {
                return slot;
            }
        }
    }
    diagnose(object.addr(), layout)
}

/// An object that was live with the layout `old` is resized within its class.
#[inline(always)]
pub(crate) fn resized(object: *mut u8, slot: &'static AtomicU32, old: Layout, new: Layout) {
    if !CHECKS {
        return slot.store(word(new), Ordering::Relaxed);
    }
    // If another thread freed it meanwhile, it stays free.
    let (old, new) = (word(old), word(new));
    if slot.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        diagnose(object.addr(), layout_of(old));
    }
}

/// Ends the process unless an object whose word is `slot`, and which was live, still is.
#[inline(always)]
pub(crate) fn still_live(object: *mut u8, slot: &'static AtomicU32, layout: Layout) {
    if slot.load(Ordering::Relaxed) != word(layout) {
        diagnose(object.addr(), layout);
    }
}

/// Notes that an object came back, whose word is `slot`.
#[inline(always)]
pub(crate) fn take_back(object: *mut u8, slot: &'static AtomicU32, class: Class, layout: Layout) {
    if !CHECKS {
        return slot.store(FREED, Ordering::Relaxed);
    }
    if slot.swap(FREED, Ordering::Relaxed) != word(layout) {
        diagnose(object.addr(), layout);
    }
    // SAFETY: of those who free it at once one comes here: the object is that one's.
    let last = unsafe { last(object, class) };
    last.store(maps::tag_at(object.addr()).to_bits(), Ordering::Relaxed);
}

/// Where it is kept who paid last.
///
/// # Safety
///
/// As for [`slot`].
unsafe fn last(object: *mut u8, class: Class) -> &'static AtomicU32 {
    // SAFETY: by contract.
    let span = unsafe { maps::span_of_object(object) };
    span.ledger_entry(class.nr_objects() + class.object_at(object.addr() - span.base()))
}

/// Who paid for an object when it came back last, as far as it is known.
///
/// # Safety
///
/// As for [`slot`].
pub(crate) unsafe fn last_payer(object: *mut u8, class: Class) -> Tag {
    // SAFETY: by contract.
    Tag::from_bits(unsafe { last(object, class) }.load(Ordering::Relaxed))
}

/// Says what is wrong with a pointer that is not live with `layout`, and ends the process.
#[cold]
#[inline(never)]
fn diagnose(address: usize, layout: Layout) -> ! {
    let Some(span) = maps::span_of(address) else { diagnose_large(address, layout) };
    let class = span.class();
    let index = class.object_at(address.wrapping_sub(span.base()).min(class.span_bytes() - 1));
    if index >= class.nr_objects() {
        stop(What::Foreign, address, Of::Nothing, Tag::NOBODY);
    }
    let (start, word) = (span.base() + index * class.size(), span.ledger_entry(index));
    let word = word.load(Ordering::Relaxed);
    let mut tag = span.tag_at(address);
    if CHECKS && word & (FREED | BLANK) != 0 {
        let last = span.ledger_entry(class.nr_objects() + index);
        tag = Tag::from_bits(last.load(Ordering::Relaxed));
    }
    let what = match word {
        _ if start != address => What::Inside,
        0 => What::NeverOut,
        word if word & OUT == 0 => What::DoubleFree,
        word => What::Layout(layout, layout_of(word)),
    };
    stop(what, address, Of::Class(class), tag)
}

// ---- large objects ------------------------------------------------------------------------

/// A word for each page that a large object begins in: 48 bits of size, 8 of its offset in the
/// page (in 16 bytes), 6 of its alignment, 2 that say whether it is out.
static LARGE: PageMap = PageMap::new();
/// Set when a large object could not be noted, for want of memory: from then on one that is not
/// known may be ours.
static IS_LOST: AtomicBool = AtomicBool::new(false);

const OUT_LARGE: u64 = 1 << 62;
const FREED_LARGE: u64 = 1 << 63;
const STATE: u64 = OUT_LARGE | FREED_LARGE;

/// The word of a large object, without its state.
fn word_large(address: usize, layout: Layout) -> u64 {
    let offset = (address % (1 << PAGE_SHIFT) / 16) as u64;
    let align = u64::from(layout.align().trailing_zeros());
    align << 56 | offset << 48 | layout.size() as u64
}

fn layout_of_large(word: u64) -> Layout {
    let size = usize::try_from(word & ((1 << 48) - 1)).unwrap_or(0);
    Layout::from_size_align(size, 1 << ((word >> 56) & 63)).unwrap_or(Layout::new::<()>())
}

/// Whether the object of `word` begins at `address`, which lies in its first page.
fn begins_at(word: u64, address: usize) -> bool {
    let offset = usize::try_from((word >> 48) & 255).unwrap_or(0) * 16;
    offset == address % (1 << PAGE_SHIFT)
}

/// Notes that a large object goes out.
pub(crate) fn hand_out_large(object: *mut u8, layout: Layout) {
    match LARGE.get_or_make(object.addr()) {
        Some(entry) => {
            entry.store(OUT_LARGE | word_large(object.addr(), layout), Ordering::Relaxed);
        }
        None => IS_LOST.store(true, Ordering::Relaxed),
    }
}

fn read_large(address: usize) -> u64 {
    LARGE.get(address).map_or(0, |entry: &AtomicU64| entry.load(Ordering::Relaxed))
}

/// Ends the process unless the object is out with `layout`.
pub(crate) fn live_large(object: *mut u8, layout: Layout) {
    let address = object.addr();
    // A word knows its object's place in the page to 16 bytes, which is what jemalloc aligns to.
    let may_begin = address.is_multiple_of(16);
    if !may_begin || read_large(address) != OUT_LARGE | word_large(address, layout) {
        diagnose_unless_lost(address, layout);
    }
}

/// Notes that it came back.
pub(crate) fn take_back_large(object: *mut u8, layout: Layout) {
    let word = word_large(object.addr(), layout);
    let before = LARGE
        .get(object.addr())
        .map_or(0, |entry| entry.swap(FREED_LARGE | word, Ordering::Relaxed));
    if before & OUT_LARGE == 0 {
        diagnose_unless_lost(object.addr(), layout);
    }
}

fn diagnose_unless_lost(address: usize, layout: Layout) {
    if !IS_LOST.load(Ordering::Relaxed) || maps::span_of(address).is_some() {
        diagnose(address, layout);
    }
}

#[cold]
fn diagnose_large(address: usize, layout: Layout) -> ! {
    let word = read_large(address);
    let tag = maps::tag_at(address);
    let what = match word & STATE {
        OUT_LARGE if begins_at(word, address) => What::Layout(layout, layout_of_large(word)),
        FREED_LARGE if begins_at(word, address) => What::DoubleFree,
        OUT_LARGE => What::Inside,
        _ => stop(What::Foreign, address, Of::Nothing, Tag::NOBODY),
    };
    stop(what, address, Of::Large, tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_every_layout_of_their_kind() {
        for (size, align) in [(1, 1), (1, 4096), (60, 4), (64 << 10, 8), (4096, 4096)] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            assert_eq!(layout_of(word(layout)), layout);
            assert_eq!(word(layout) & (FREED | BLANK), 0);
        }
        for (size, align) in [(65 << 10, 1), (1, 8192), (1 << 46, 64), (5 << 30, 1 << 30)] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            let word = word_large(0x7fff_dead_b040, layout);
            assert_eq!(layout_of_large(word), layout);
            assert_eq!(word & STATE, 0);
            assert!(begins_at(word, 0x7fff_dead_b040) && !begins_at(word, 0x7fff_dead_b050));
        }
    }
}
