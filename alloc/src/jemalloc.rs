//! jemalloc, which serves large objects and the chunks that spans are made of.
//!
//! The only file that calls it. Every function is safe to call from inside the allocator: none
//! of them calls back.

use core::alloc::Layout;
use core::arch::global_asm;
use core::cell::Cell;
use core::ffi::{CStr, c_char, c_uint, c_void};
use core::ptr;

use tikv_jemalloc_sys as sys;

use crate::features::{ASAN, HARDENED};
use crate::{asan, hardened};

/// What jemalloc aligns everything to.
const NATURAL_ALIGN: usize = 16;

/// The flags that ask for `align`.
fn flags(align: usize) -> i32 {
    if align <= NATURAL_ALIGN { 0 } else { sys::MALLOCX_ALIGN(align) }
}

thread_local! {
    /// Whether jemalloc has an arena for the thread.
    static HAS_ARENA: Cell<bool> = const { Cell::new(false) };
}

/// The flags that say where memory is to come from: by jemalloc's choice, if it can make one.
fn arena() -> i32 {
    if HAS_ARENA.get() { 0 } else { choose_arena() }
}

/// Has jemalloc choose an arena for the thread. 5.3.1 does not survive an allocation for which it can't make the
/// one that it has chosen; this says so instead, and what there is comes from the first arena, until it can.
#[cold]
fn choose_arena() -> i32 {
    let mut arena: c_uint = 0;
    let mut size = size_of::<c_uint>();
    let (name, place) = (c"thread.arena".as_ptr(), (&raw mut arena).cast());
    // SAFETY: the leaf is an `unsigned`, as large as `place`; nothing is written.
    let answer = unsafe { sys::mallctl(name, place, &raw mut size, ptr::null_mut(), 0) };
    HAS_ARENA.set(answer == 0);
    if answer == 0 { 0 } else { sys::MALLOCX_ARENA(0) }
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
    let zero = if zeroed && !ASAN { sys::MALLOCX_ZERO } else { 0 };
    let flags = flags(layout.align()) | zero | arena();
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
    unsafe { sys::rallocx(object.cast(), size, flags(align) | arena()) }.cast()
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
    let flags = sys::MALLOCX_ALIGN(align) | sys::MALLOCX_TCACHE_NONE | arena();
    // SAFETY: the size is not 0.
    unsafe { sys::mallocx(size, flags) }.cast()
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

/// What jemalloc is told where the application tells it nothing: to have no thread caches of its own. They end at
/// 32 KiB, and whoever allocates here asks for more. With them it makes an arena for a thread as it
/// first sees it, and 5.3.1 does not survive that there is no memory for one; without them a thread takes none.
static DEFAULTS: [u8; 13] = *b"tcache:false\0";

// jemalloc's `malloc_conf`. Weak, as jemalloc's own empty one, which comes later in every link: the application's
// is the one that counts, and the environment has its say after either.
// SAFETY: it defines a pointer that nobody writes to, to a string that ends with a NUL.
global_asm!(
    ".pushsection .data.rel.ro._rjem_malloc_conf, \"aw\", @progbits",
    ".balign 8",
    ".weak _rjem_malloc_conf",
    ".type _rjem_malloc_conf, @object",
    ".size _rjem_malloc_conf, 8",
    "_rjem_malloc_conf:",
    ".quad {defaults}",
    ".popsection",
    defaults = sym DEFAULTS,
);

/// Sees to it that jemalloc knows the calling thread, and begins it if it has not begun. Takes no memory where its
/// own thread caches are off ([`DEFAULTS`]).
///
/// A thread that it first meets in its last round of destructors would stay in its list of threads after its end.
pub(crate) fn meet() {
    // SAFETY: the size is not 0; it only computes.
    unsafe { sys::nallocx(1, 0) };
}

/// Dirty pages go back to the system after this long; jemalloc's own 10 s ticks only on
/// activity.
const DECAY_MS: isize = 1000;

/// Begins jemalloc, and sets what can be set at run time as far as the application has not.
pub(crate) fn boot() {
    meet();
    let defaults = [
        // Arenas are made with the first from now on; arena 0 exists.
        (c"dirty_decay_ms", DECAY_MS, [c"arenas.dirty_decay_ms", c"arena.0.dirty_decay_ms"]),
        (c"muzzy_decay_ms", 0, [c"arenas.muzzy_decay_ms", c"arena.0.muzzy_decay_ms"]),
    ];
    for (option, value, leaves) in defaults {
        if !is_set(option) {
            leaves.into_iter().for_each(|leaf| write(leaf, value));
        }
    }
}

/// Where jemalloc takes its options from.
const SOURCES: [&CStr; 5] = [
    c"config.malloc_conf",
    c"opt.malloc_conf.global_var",
    c"opt.malloc_conf.symlink",
    c"opt.malloc_conf.env_var",
    c"opt.malloc_conf.global_var_2_conf_harder",
];

/// Whether the application has said what `option` is to be: as it was built, or in its environment.
fn is_set(option: &CStr) -> bool {
    SOURCES
        .into_iter()
        .filter_map(read_string)
        .any(|text| names(text.to_bytes(), option.to_bytes()))
}

/// Whether `text`, of the form `name:value,name:value`, names `option`.
fn names(text: &[u8], option: &[u8]) -> bool {
    let name = |pair: &[u8]| pair.iter().position(|&byte| byte == b':').unwrap_or(pair.len());
    text.split(|&byte| byte == b',').any(|pair| &pair[..name(pair)] == option)
}

/// Reads a leaf that is a string; `None`: it is none, or this jemalloc does not have it.
fn read_string(name: &CStr) -> Option<&'static CStr> {
    let mut text: *const c_char = ptr::null();
    let mut size = size_of::<*const c_char>();
    let place: *mut c_void = (&raw mut text).cast();
    // SAFETY: `place` holds a pointer, which is what the leaf is; nothing is written.
    unsafe { sys::mallctl(name.as_ptr(), place, &raw mut size, ptr::null_mut(), 0) };
    // SAFETY: null, or one of jemalloc's sources: a string that is kept as long as the process lives.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_named_before_a_colon() {
        let text = b"background_thread:true,dirty_decay_ms:10,stats_print_opts:muzzy_decay_ms";
        assert!(names(text, b"background_thread") && names(text, b"dirty_decay_ms"));
        assert!(
            !names(text, b"muzzy_decay_ms") && !names(text, b"decay_ms") && !names(b"", b"tcache")
        );
    }
}
