//! Where metadata comes from: two functions, map and unmap.
//!
//! Records of groups, contexts and threads must not come from the allocator that they describe,
//! so they come from here. The bytes are charged to nobody.

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

fn system_map(size: usize) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice replaces
    // nothing that exists.
    let memory = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED { ptr::null_mut() } else { memory.cast() }
}

/// # Safety
///
/// See [`Source::unmap`].
unsafe fn system_unmap(memory: *mut u8, size: usize) {
    // SAFETY: by contract the range is a whole mapping of ours that nobody uses.
    unsafe { libc::munmap(memory.cast(), size) };
}
