//! Checks for finding misuse, the feature `debug-checks`: what a program under test can afford.
//!
//! Beside what the [ledger](crate::ledger) finds: freed memory is poisoned, and looked at before
//! it is handed out again; the bytes between the end of an object and that of its class are
//! looked at when it is freed or resized; and a live object's tag must name somebody who is charged for
//! that much. Of a large object the first page is poisoned, and nothing is found in it later:
//! jemalloc gives its pages back.

use core::alloc::Layout;
use core::ptr;

use memcg_accounting::Tag;

use crate::class::Class;
use crate::features::{ASAN, HARDENED};
use crate::finding::{Of, What, stop};
use crate::process::TREE;
use crate::{jemalloc, ledger, maps};

/// What freed memory holds.
const POISON: u8 = if HARDENED { 0 } else { 0xDF };
/// What lies after an object.
const REDZONE: u8 = 0xBD;
/// The longest redzone after a large object.
const REDZONE_LARGE: usize = 64;
/// Bytes of a large object that are poisoned.
const POISONED_LARGE: usize = 4096;

/// The first byte of `from .. to` that is not `byte`.
///
/// # Safety
///
/// The bytes are initialised, and nobody else uses them.
unsafe fn first_other(object: *mut u8, from: usize, to: usize, byte: u8) -> Option<usize> {
    // SAFETY: by contract.
    let bytes = unsafe { core::slice::from_raw_parts(object.wrapping_add(from), to - from) };
    let (first, rest) = bytes.split_first()?;
    // All are alike: one comparison of memory, in a debug build too.
    if *first == byte && bytes[..rest.len()] == *rest {
        return None;
    }
    bytes.iter().position(|&other| other != byte).map(|at| from + at)
}

/// Poisons an object that came back.
///
/// # Safety
///
/// It is of `class`, and nobody uses it.
pub(crate) unsafe fn poison(object: *mut u8, class: Class) {
    // SAFETY: by contract.
    unsafe { ptr::write_bytes(object, POISON, class.size()) };
}

/// Ends the process unless an object that goes out again is as [`poison`] left it.
///
/// # Safety
///
/// As for [`poison`].
pub(crate) unsafe fn poison_is_whole(object: *mut u8, class: Class) {
    // SAFETY: by contract.
    if let Some(byte) = unsafe { first_other(object, 0, class.size(), POISON) } {
        // SAFETY: by contract.
        let tag = unsafe { ledger::last_payer(object, class) };
        stop(What::WriteAfterFree(byte), object.addr(), Of::Class(class), tag);
    }
}

/// Fills what is left of an object's class.
///
/// # Safety
///
/// The object has `end` bytes, of which the program has the first `size`.
pub(crate) unsafe fn lay_redzone(object: *mut u8, size: usize, end: usize) {
    // SAFETY: by contract.
    unsafe { ptr::write_bytes(object.wrapping_add(size), REDZONE, end - size) };
}

/// Ends the process unless a live object's redzone and tag are as they must be.
///
/// # Safety
///
/// It is the caller's, and live with this layout, or was until a moment ago.
pub(crate) unsafe fn is_sound(object: *mut u8, class: Class, layout: Layout) {
    // As any address: a span that goes meanwhile is nobody's.
    let tag = maps::tag_at(object.addr());
    is_paid(object, class.size(), Of::Class(class), tag);
    // SAFETY: by contract.
    unsafe { redzone_is_whole(object, layout.size(), class.size(), Of::Class(class), tag) };
}

/// Ends the process unless `tag` is charged for an object of that many bytes.
fn is_paid(object: *mut u8, bytes: usize, of: Of, tag: Tag) {
    if !tag.is_nobody() && TREE.context_bytes(tag) < bytes as u64 {
        stop(What::Tag(tag), object.addr(), of, Tag::NOBODY);
    }
}

/// # Safety
///
/// As for [`lay_redzone`].
unsafe fn redzone_is_whole(object: *mut u8, size: usize, end: usize, of: Of, tag: Tag) {
    // With the sanitizer it may not be read, and needs not.
    if ASAN {
        return;
    }
    // SAFETY: by contract.
    if let Some(byte) = unsafe { first_other(object, size, end, REDZONE) } {
        stop(What::Overflow(byte), object.addr(), of, tag);
    }
}

// ---- large objects ------------------------------------------------------------------------

/// Where the redzone of a large object ends.
///
/// # Safety
///
/// It is jemalloc's, and live.
unsafe fn end_of_redzone(object: *mut u8, layout: Layout) -> usize {
    // SAFETY: by contract.
    let all = unsafe { jemalloc::usable(object) };
    all.min(layout.size() + REDZONE_LARGE)
}

/// As [`lay_redzone`].
///
/// # Safety
///
/// The object is large, has this layout, and is the caller's.
pub(crate) unsafe fn lay_redzone_large(object: *mut u8, layout: Layout) {
    // SAFETY: by contract.
    let end = unsafe { end_of_redzone(object, layout) };
    // SAFETY: by contract.
    unsafe { lay_redzone(object, layout.size(), end) };
}

/// As [`is_sound`].
///
/// # Safety
///
/// The same, of a large object.
pub(crate) unsafe fn is_sound_large(object: *mut u8, layout: Layout) {
    let word = maps::large(object.addr());
    let tag = word.map_or(Tag::NOBODY, |word| word.tag);
    is_paid(object, word.map_or(0, |word| word.bytes), Of::Large, tag);
    // SAFETY: by contract.
    let end = unsafe { end_of_redzone(object, layout) };
    // SAFETY: by contract.
    unsafe { redzone_is_whole(object, layout.size(), end, Of::Large, tag) };
}

/// Poisons the beginning of a large object that came back.
///
/// # Safety
///
/// It has this layout, and nobody uses it.
pub(crate) unsafe fn poison_large(object: *mut u8, layout: Layout) {
    // SAFETY: by contract.
    unsafe { ptr::write_bytes(object, POISON, layout.size().min(POISONED_LARGE)) };
}

#[cfg(all(test, feature = "debug-checks"))]
mod tests {
    use std::alloc::GlobalAlloc;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::atomic::Ordering;

    use memcg_accounting::{GroupRef, Root, Settings};

    use super::*;
    use crate::{Memcg, start};

    const CASE: &str = "MEMCG_TEST_CASE";
    const LARGE: usize = 100_000;

    /// Allocates, overwrites the tag out of band, and frees.
    fn corrupt(case: &str) {
        static ALLOC: Memcg = Memcg::new();
        let size = if case == "of a large object" { LARGE } else { 60 };
        let layout = Layout::from_size_align(size, 8).expect("a layout");
        // SAFETY: the size is not 0.
        let object = unsafe { ALLOC.alloc(layout) };
        assert!(start::begin(Root::Untracked));
        let group = TREE.create(GroupRef::ROOT, "idle", Settings::default()).expect("fresh");
        match case {
            "of a large object" => {
                // SAFETY: the object is live.
                let all = unsafe { jemalloc::usable(object) };
                assert!(maps::tag_large(object.addr(), layout.align(), Tag::from_bits(77), all));
            }
            case => {
                let nobody = Tag::from_bits(0x00F0_0F00);
                let tag = if case == "nobody's" { nobody } else { TREE.payer(group).tag };
                let class = Class::of(layout).expect("a slab class");
                // SAFETY: the object is live, and of the class.
                assert!(unsafe { maps::make_taggable(object, class) });
                // SAFETY: as above.
                unsafe { maps::tag_slot(object, class) }.store(tag.to_bits(), Ordering::Relaxed);
            }
        }
        // SAFETY: allocated above with this layout.
        unsafe { ALLOC.dealloc(object, layout) };
    }

    #[test]
    fn a_tag_that_nothing_is_charged_to_ends_the_process() {
        if let Ok(case) = std::env::var(CASE) {
            return corrupt(&case);
        }
        let test = "checks::tests::a_tag_that_nothing_is_charged_to_ends_the_process";
        for (case, of) in [
            ("nobody's", "class 64, no group"),
            ("of a group without charges", "class 64, no group"),
            ("of a large object", "large, no group"),
        ] {
            let mut child = Command::new(std::env::current_exe().expect("a test has a path"));
            let child = child.args([test, "--exact", "--nocapture", "--test-threads=1"]);
            let ended = child.env(CASE, case).output().expect("a child");
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{case}: {ended:?}");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(said.lines().count(), 1, "{case}: {said}");
            assert!(said.starts_with("memcg: corrupt tag 0x"), "{case}: {said}");
            assert!(said.trim_end().ends_with(of), "{case}: {said}");
        }
    }
}
