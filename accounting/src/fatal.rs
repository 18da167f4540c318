//! The end of the process, where to go on would be unsound and nothing may unwind.

/// Says `line` on standard error and ends the process. Allocates nothing, takes no lock: it may be called
/// inside an allocation.
#[cold]
pub(crate) fn fatal(line: &str) -> ! {
    // SAFETY: the bytes are valid for reading. What comes of it changes nothing.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    // SAFETY: it ends the process.
    unsafe { libc::abort() }
}
