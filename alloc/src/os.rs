//! What is asked of the system about pages that are mapped.

/// Whether the system's pages are as large as is assumed here: larger ones can't be given back in part.
pub(crate) fn pages_are_small() -> bool {
    // SAFETY: it only answers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) == 4096 }
}

/// Gives pages back; they stay mapped. `false`: the system does not take them, for they are locked, say.
///
/// # Safety
///
/// They are a private anonymous mapping, and hold zeros or what nobody reads: it is zeros afterwards.
pub(crate) unsafe fn give_back(pages: *mut u8, bytes: usize) -> bool {
    // SAFETY: by contract.
    pages_are_small() && unsafe { libc::madvise(pages.cast(), bytes, libc::MADV_DONTNEED) } == 0
}
