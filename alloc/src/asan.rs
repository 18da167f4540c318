//! AddressSanitizer's shadow, in a build for it: what is free may not be touched.
//!
//! jemalloc is not instrumented, and magazines and spans hand memory out again without the
//! sanitizer's knowledge: so the allocator tells it. Free objects in magazines and spans are
//! poisoned, freed large objects, the memory of spans that was never handed out, and what lies
//! between the end of an object and that of its class. `ci/asan.sh` makes such a build.

#[cfg(memcg_asan)]
mod interface {
    use core::ffi::c_void;

    unsafe extern "C" {
        pub(super) fn __asan_poison_memory_region(from: *const c_void, bytes: usize);
        pub(super) fn __asan_unpoison_memory_region(from: *const c_void, bytes: usize);
    }
}

/// Forbids the bytes from `memory` on.
///
/// # Safety
///
/// They are the allocator's, or the caller's who gives them up.
#[inline(always)]
pub(crate) unsafe fn poison(memory: *mut u8, bytes: usize) {
    #[cfg(memcg_asan)]
    // SAFETY: it writes the shadow alone; by contract nobody has a right to the memory.
    unsafe {
        interface::__asan_poison_memory_region(memory.cast(), bytes);
    }
    let _ = (memory, bytes);
}

/// Allows them.
///
/// # Safety
///
/// They are the allocator's.
#[inline(always)]
pub(crate) unsafe fn unpoison(memory: *mut u8, bytes: usize) {
    #[cfg(memcg_asan)]
    // SAFETY: it writes the shadow alone.
    unsafe {
        interface::__asan_unpoison_memory_region(memory.cast(), bytes);
    }
    let _ = (memory, bytes);
}

/// Allows the first `size` bytes of `all`, and forbids the rest.
///
/// # Safety
///
/// All of them are the allocator's, or one object's.
#[inline(always)]
pub(crate) unsafe fn set(memory: *mut u8, size: usize, all: usize) {
    // SAFETY: by contract.
    unsafe { unpoison(memory, size) };
    if all > size {
        // SAFETY: by contract; the rest is nobody's.
        unsafe { poison(memory.wrapping_add(size), all - size) };
    }
}
