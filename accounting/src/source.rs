//! Where metadata comes from: two functions, map and unmap.
//!
//! Records of groups, contexts and threads must not come from the allocator that they describe,
//! so they come from here. The bytes are charged to nobody.
//!
//! With the feature `guard-pages` each mapping lies between two pages that nobody may touch.

use core::ptr;

/// A source of pages for metadata.
///
/// # Guarantees
///
/// What `map` answers is null, or page-aligned, zeroed, `size` bytes long and owned by the
/// caller until it gives it to `unmap` with the same size.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Answers `size` zeroed bytes, or null.
    pub map: fn(size: usize) -> *mut u8,
    /// Takes back what `map` answered for `size`.
    ///
    /// # Safety
    ///
    /// - `memory` came from `map` of the same source with this `size`.
    /// - Nobody uses it any more.
    pub unmap: unsafe fn(memory: *mut u8, size: usize),
}

/// Pages of the system, by `mmap`: committed when they are touched.
pub static SYSTEM: Source = Source { map: system_map, unmap: system_unmap };

/// Bytes before and after each mapping that nobody may touch: a page, or none.
const GUARD: usize = if cfg!(feature = "guard-pages") { PAGE } else { 0 };
const PAGE: usize = 4096;

/// Bytes of a mapping with its guards.
const fn whole(size: usize) -> usize {
    if GUARD == 0 { size } else { size.next_multiple_of(PAGE) + 2 * GUARD }
}

fn system_map(size: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let protection = if GUARD == 0 { access } else { libc::PROT_NONE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice replaces
    // nothing that exists.
    let memory = unsafe { libc::mmap(ptr::null_mut(), whole(size), protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let inner = memory.wrapping_byte_add(GUARD);
    // SAFETY: the pages between the guards are ours, and nobody has them yet.
    if GUARD != 0 && unsafe { libc::mprotect(inner, size, access) } != 0 {
        // SAFETY: mapped above with this size, and shown to nobody.
        unsafe { libc::munmap(memory, whole(size)) };
        return ptr::null_mut();
    }
    inner.cast()
}

/// # Safety
///
/// See [`Source::unmap`].
unsafe fn system_unmap(memory: *mut u8, size: usize) {
    // SAFETY: by contract the range is a whole mapping of ours that nobody uses.
    unsafe { libc::munmap(memory.wrapping_byte_sub(GUARD).cast(), whole(size)) };
}

#[cfg(all(test, feature = "guard-pages", not(loom)))]
mod tests {
    use super::*;

    /// How a child ends that writes to the byte at `offset` from `memory`.
    fn writes(memory: *mut u8, offset: isize) -> i32 {
        // SAFETY: the child writes one byte and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: it is mapped, or the child ends here, which is what is asked.
            unsafe { memory.wrapping_offset(offset).write_volatile(1) };
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place is valid.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
    }

    #[test]
    fn a_write_past_either_end_of_a_mapping_ends_the_process() {
        for size in [PAGE, 3 * PAGE, (2 << 20) + PAGE] {
            let memory = (SYSTEM.map)(size);
            assert!(!memory.is_null() && memory.addr().is_multiple_of(PAGE));
            let end = isize::try_from(size).expect("small");
            for inside in [0, end / 2, end - 1] {
                assert_eq!(writes(memory, inside), 0, "{inside} of {size}");
            }
            for outside in [-1, end] {
                assert_eq!(writes(memory, outside), libc::SIGSEGV, "{outside} of {size}");
            }
            // SAFETY: mapped above with this size, and not used any more.
            unsafe { (SYSTEM.unmap)(memory, size) };
        }
    }
}
