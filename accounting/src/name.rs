//! Names of groups: what a name may be, and where it is kept.

use core::fmt;
use core::ptr;

use crate::Source;

/// The longest name, in bytes, as the kernel's `NAME_MAX`.
pub(crate) const MAX_LEN: usize = 255;

/// A group's name, by value: reading it allocates nothing.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; MAX_LEN],
}

impl Name {
    pub(crate) const EMPTY: Name = Name { len: 0, bytes: [0; MAX_LEN] };

    /// What fits of `text`, in whole characters; `false` with it: that is not all.
    #[must_use]
    pub fn cut(text: &str) -> (Name, bool) {
        let fits = &text[..text.floor_char_boundary(MAX_LEN)];
        (Name::copy_of(fits.as_bytes()), fits.len() == text.len())
    }

    /// Copies `text`, of which the first [`MAX_LEN`] bytes count.
    pub(crate) fn copy_of(text: &[u8]) -> Name {
        let len = text.len().min(MAX_LEN);
        let mut name = Name::EMPTY;
        name.bytes[..len].copy_from_slice(&text[..len]);
        name.len = u8::try_from(len).unwrap_or(u8::MAX);
        name
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("?")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

/// Why a text can't name a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty.
    Empty,
    /// It is longer than 255 bytes.
    TooLong,
    /// It is `.` or `..`.
    Dots,
    /// It holds a `/` or a NUL.
    Separator,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameError::Empty => "a name must not be empty",
            NameError::TooLong => "a name has at most 255 bytes",
            NameError::Dots => "a name must not be `.` or `..`",
            NameError::Separator => "a name must not hold `/` or NUL",
        })
    }
}

impl core::error::Error for NameError {}

/// Checks what a name may be.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    match name {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::Dots),
        _ if name.len() > MAX_LEN => Err(NameError::TooLong),
        _ if name.bytes().any(|b| b == b'/' || b == 0) => Err(NameError::Separator),
        _ => Ok(()),
    }
}

/// Block sizes that names are kept in.
const BLOCKS: [usize; 5] = [16, 32, 64, 128, 256];
/// Bytes asked from the source at a time.
const CHUNK: usize = 64 << 10;

/// Keeps names: one free list per block size over chunks that are never given back.
///
/// # Invariants
///
/// - A free block's first word is the next free block of its size, or null.
/// - `fresh .. fresh + left` is mapped and handed to nobody.
#[derive(Debug)]
pub(crate) struct NameArena {
    free: [*mut u8; BLOCKS.len()],
    fresh: *mut u8,
    left: usize,
}

// SAFETY: the pointers lead to blocks that only the holder of the arena touches; none is tied
// to a thread.
unsafe impl Send for NameArena {}

/// A name that an arena keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) bytes: *mut u8,
    pub(crate) len: u8,
}

fn block_of(len: usize) -> usize {
    BLOCKS.iter().position(|&size| len <= size).unwrap_or(BLOCKS.len() - 1)
}

impl NameArena {
    pub(crate) const fn new() -> Self {
        Self { free: [ptr::null_mut(); BLOCKS.len()], fresh: ptr::null_mut(), left: 0 }
    }

    /// Keeps a copy of `name`, which [`check`] accepted. `None`: no memory.
    pub(crate) fn keep(&mut self, name: &str, source: &Source) -> Option<Kept> {
        let block = block_of(name.len());
        let bytes = self.take(block, source)?;
        // SAFETY: the block has room for `name.len()` bytes (`block_of`), and was handed to
        // nobody else.
        unsafe { ptr::copy_nonoverlapping(name.as_ptr(), bytes, name.len()) };
        Some(Kept { bytes, len: u8::try_from(name.len()).ok()? })
    }

    /// Takes back what [`keep`](NameArena::keep) answered.
    ///
    /// # Safety
    ///
    /// - `kept` came from this arena, and is given back once.
    /// - Nobody reads it any more.
    pub(crate) unsafe fn give_back(&mut self, kept: Kept) {
        let block = block_of(usize::from(kept.len));
        // SAFETY: by contract the block is ours again; blocks are at least a word long and
        // 16-byte aligned.
        unsafe { kept.bytes.cast::<*mut u8>().write(self.free[block]) };
        self.free[block] = kept.bytes;
    }

    fn take(&mut self, block: usize, source: &Source) -> Option<*mut u8> {
        let head = self.free[block];
        if !head.is_null() {
            // SAFETY: a free block begins with the next one (type invariant).
            self.free[block] = unsafe { head.cast::<*mut u8>().read() };
            return Some(head);
        }
        let size = BLOCKS[block];
        if self.left < size {
            // What is left of the old chunk, under 256 bytes, is given up.
            let chunk = (source.map)(CHUNK);
            if chunk.is_null() {
                return None;
            }
            (self.fresh, self.left) = (chunk, CHUNK);
        }
        let bytes = self.fresh;
        // SAFETY: `left >= size` bytes follow `fresh` (type invariant).
        self.fresh = unsafe { bytes.add(size) };
        self.left -= size;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_the_interface_says() {
        assert_eq!(check("acme"), Ok(()));
        assert_eq!(check("…"), Ok(()));
        assert_eq!(check(""), Err(NameError::Empty));
        assert_eq!(check("."), Err(NameError::Dots));
        assert_eq!(check(".."), Err(NameError::Dots));
        assert_eq!(check("a/b"), Err(NameError::Separator));
        assert_eq!(check("a\0b"), Err(NameError::Separator));
        assert_eq!(check(&"x".repeat(255)), Ok(()));
        assert_eq!(check(&"x".repeat(256)), Err(NameError::TooLong));
    }

    #[test]
    fn what_does_not_fit_is_cut_between_characters() {
        let cut = |text: &str| {
            let (name, is_whole) = Name::cut(text);
            (name.as_str().len(), is_whole)
        };
        assert_eq!(
            [cut(""), cut("acme"), cut(&"x".repeat(255))],
            [(0, true), (4, true), (255, true)]
        );
        assert_eq!([cut(&"x".repeat(256)), cut(&"…".repeat(86))], [(255, false), (255, false)]);
        assert_eq!(cut(&"é".repeat(128)), (254, false));
    }

    #[test]
    fn blocks_are_reused_by_size() {
        let mut arena = NameArena::new();
        let short = arena.keep("short", &crate::SYSTEM).expect("memory");
        let long = arena.keep(&"l".repeat(200), &crate::SYSTEM).expect("memory");
        assert_ne!(short.bytes, long.bytes);
        // SAFETY: kept above, given back once, read by nobody.
        unsafe { arena.give_back(short) };
        let again = arena.keep("other", &crate::SYSTEM).expect("memory");
        assert_eq!(again.bytes, short.bytes);
    }
}
