//! jemalloc, which serves large objects and the chunks that spans are made of.
//!
//! The only file that calls it. Every function is safe to call from inside the allocator: none
//! of them calls back.

use core::alloc::Layout;
use core::ffi::{CStr, c_void};
use core::ptr;

use tikv_jemalloc_sys as sys;

use crate::edge::{ASAN, HARDENED};
use crate::{asan, hardened};

/// What jemalloc aligns everything to.
const NATURAL_ALIGN: usize = 16;

/// The flags that ask for `align`.
fn flags(align: usize) -> i32 {
    if align <= NATURAL_ALIGN { 0 } else { sys::MALLOCX_ALIGN(align) }
}

/// Bytes that an object of `layout` takes; 0 if there can be no such object.
pub(crate) fn real_size(layout: Layout) -> usize {
    // SAFETY: the size is not 0 (contract of `GlobalAlloc`, and large besides); `nallocx` only
    // computes.
    unsafe { sys::nallocx(layout.size(), flags(layout.align())) }
}

/// An object of `layout`, zeroed if asked for (fresh pages are not written for that); or null.
pub(crate) fn alloc(layout: Layout, zeroed: bool) -> *mut u8 {
    // What is poisoned still may not be zeroed by jemalloc.
    let flags = flags(layout.align()) | if zeroed && !ASAN { sys::MALLOCX_ZERO } else { 0 };
    // SAFETY: the size is not 0.
    let object: *mut u8 = unsafe { sys::mallocx(layout.size(), flags) }.cast();
    if ASAN && !object.is_null() {
        // SAFETY: allocated above.
        let all = unsafe { usable(object) };
        // SAFETY: the object is the caller's, with that many bytes.
        unsafe { asan::set(object, layout.size(), all) };
        if zeroed {
            // SAFETY: as above.
            unsafe { ptr::write_bytes(object, 0, layout.size()) };
        }
    }
    object
}

/// Bytes that a live object has.
///
/// # Safety
///
/// `object` came from this module and is live.
pub(crate) unsafe fn usable(object: *mut u8) -> usize {
    // SAFETY: by contract.
    unsafe { sys::sallocx(object.cast(), 0) }
}

/// Gives an object back.
///
/// # Safety
///
/// `object` came from [`alloc`] or [`resize_moving`] and is not used any more.
pub(crate) unsafe fn dealloc(object: *mut u8) {
    if HARDENED || ASAN {
        // SAFETY: by contract.
        let all = unsafe { usable(object) };
        // SAFETY: by contract: all of it is nobody's now.
        unsafe { wipe(object, all) };
    }
    // Not the sized form: an object that was resized in place may be larger than its layout.
    // SAFETY: by contract.
    unsafe { sys::dallocx(object.cast(), 0) };
}

/// Tries to make `object` hold `size` bytes where it is; answers the bytes that it has now.
///
/// # Safety
///
/// `object` came from this module, was allocated with `align`, and is live.
pub(crate) unsafe fn resize_in_place(object: *mut u8, size: usize, align: usize) -> usize {
    if HARDENED {
        // SAFETY: by contract.
        let all = unsafe { usable(object) };
        if all > size {
            // Before jemalloc has it. An object that can't be made smaller keeps it, unused.
            // SAFETY: by contract the caller gives the bytes after `size` up.
            unsafe { hardened::zero_pages(object.wrapping_add(size), all - size) };
        }
    }
    // SAFETY: by contract; the size is not 0.
    let now = unsafe { sys::xallocx(object.cast(), size, 0, flags(align)) };
    if ASAN {
        // SAFETY: the object has that many bytes.
        unsafe { asan::set(object, size.min(now), now) };
    }
    now
}

/// Makes `object` hold `size` bytes, moving it if need be. Null: it is untouched.
///
/// # Safety
///
/// As for [`resize_in_place`]; the object must not be used any more unless null is answered.
pub(crate) unsafe fn resize_moving(object: *mut u8, size: usize, align: usize) -> *mut u8 {
    if HARDENED || ASAN {
        // SAFETY: by contract.
        return unsafe { resize_and_wipe(object, size, align) };
    }
    // SAFETY: by contract; the size is not 0.
    unsafe { sys::rallocx(object.cast(), size, flags(align)) }.cast()
}

/// The same where jemalloc may not leave a copy behind, or touch what is poisoned.
///
/// # Safety
///
/// As for [`resize_moving`].
unsafe fn resize_and_wipe(object: *mut u8, size: usize, align: usize) -> *mut u8 {
    // SAFETY: by contract.
    let now = unsafe { resize_in_place(object, size, align) };
    if now >= size {
        return object;
    }
    let Ok(layout) = Layout::from_size_align(size, align) else { return ptr::null_mut() };
    let moved = alloc(layout, false);
    if !moved.is_null() {
        // SAFETY: it has that many bytes, which are the caller's or nobody's.
        unsafe { asan::unpoison(object, now) };
        // SAFETY: both have that many bytes, and the new object overlaps nothing.
        unsafe { ptr::copy_nonoverlapping(object, moved, now) };
        // SAFETY: by contract.
        unsafe { dealloc(object) };
    }
    moved
}

/// Sees to it that nobody reads or writes what memory held.
///
/// # Safety
///
/// It is one of this module's objects, and free.
unsafe fn wipe(object: *mut u8, all: usize) {
    // SAFETY: by contract; its slack was poisoned.
    unsafe { asan::unpoison(object, all) };
    if HARDENED {
        // SAFETY: by contract, and jemalloc's memory is mapped so.
        unsafe { hardened::zero_pages(object, all) };
    }
    // SAFETY: by contract.
    unsafe { asan::poison(object, all) };
}

/// `size` bytes aligned to `size`'s chunk, for a span; or null.
pub(crate) fn alloc_span(size: usize, align: usize) -> *mut u8 {
    // SAFETY: the size is not 0.
    unsafe { sys::mallocx(size, sys::MALLOCX_ALIGN(align) | sys::MALLOCX_TCACHE_NONE) }.cast()
}

/// Gives a span's memory back.
///
/// # Safety
///
/// `memory` came from [`alloc_span`] and is not used any more.
pub(crate) unsafe fn dealloc_span(memory: *mut u8) {
    // SAFETY: by contract.
    unsafe { sys::dallocx(memory.cast(), sys::MALLOCX_TCACHE_NONE) };
}

/// Dirty pages go back to the system after this long; jemalloc's own 10 s ticks only on
/// activity.
const DECAY_MS: isize = 1000;

/// Boots jemalloc and sets what can be set at run time: a `malloc_conf` symbol would collide
/// with the application's.
pub(crate) fn boot() {
    write(c"arenas.dirty_decay_ms", DECAY_MS);
    write(c"arenas.muzzy_decay_ms", 0);
    // Arenas are made with these from now on; this one exists.
    write(c"arena.0.dirty_decay_ms", DECAY_MS);
    write(c"arena.0.muzzy_decay_ms", 0);
}

/// Lets what has decayed go back to the system.
pub(crate) fn decay() {
    command(ALL_DECAY);
}

/// Gives every unused page back to the system.
pub(crate) fn purge() {
    command(ALL_PURGE);
}

// `4096` is `MALLCTL_ARENAS_ALL` of jemalloc's header.
const ALL_DECAY: &CStr = c"arena.4096.decay";
const ALL_PURGE: &CStr = c"arena.4096.purge";

fn command(name: &CStr) {
    // SAFETY: both commands take and answer nothing.
    unsafe {
        sys::mallctl(name.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0);
    }
}

/// Writes an `ssize_t` leaf; one that this jemalloc does not have is left alone.
fn write(name: &CStr, mut value: isize) {
    let new: *mut c_void = (&raw mut value).cast();
    // SAFETY: every leaf that is written has the type `ssize_t`; nothing is read back.
    unsafe {
        sys::mallctl(name.as_ptr(), ptr::null_mut(), ptr::null_mut(), new, size_of::<isize>());
    }
}
