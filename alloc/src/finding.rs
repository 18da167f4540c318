//! What is said of misuse that was found, before the process ends.
//!
//! One line on standard error, made on the stack and written with `write`: nothing is
//! allocated, nothing unwinds. Then `abort`.

use core::alloc::Layout;
use core::fmt::{self, Write};

use memcg_accounting::Tag;

use crate::class::Class;
use crate::path::Path;
use crate::process::TREE;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// It is free already.
    DoubleFree,
    /// It was never handed out.
    NeverOut,
    /// It is no object of this allocator's.
    Foreign,
    /// It points into an object, not to its start.
    Inside,
    /// It was allocated with another layout: the one given, then its own.
    Layout(Layout, Layout),
    /// A byte after its end was written.
    Overflow(usize),
    /// A byte of it was written while it was free.
    WriteAfterFree(usize),
    /// Its tag names nobody who could have paid for it.
    Tag(Tag),
    /// A free list handed out what is out.
    HandedOutTwice,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::DoubleFree => f.write_str("double free"),
            What::NeverOut => f.write_str("free of an object that was never handed out"),
            What::Foreign => f.write_str("free of a pointer that is not this allocator's"),
            What::Inside => f.write_str("free of a pointer into an object"),
            What::Layout(given, own) => write!(
                f,
                "wrong layout, {} bytes aligned to {} instead of {} aligned to {}",
                given.size(),
                given.align(),
                own.size(),
                own.align()
            ),
            What::Overflow(byte) => write!(f, "write past the end, to byte {byte}"),
            What::WriteAfterFree(byte) => write!(f, "write after free, to byte {byte}"),
            What::Tag(tag) => write!(f, "corrupt tag {:#x}", tag.to_bits()),
            What::HandedOutTwice => f.write_str("corrupt free list, it is handed out already"),
        }
    }
}

/// What an address is known to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of {
    Class(Class),
    Large,
    Nothing,
}

/// Says what was found at `address`, whose last payer's tag is `tag`, and ends the process.
#[cold]
#[inline(never)]
pub(crate) fn stop(what: What, address: usize, of: Of, tag: Tag) -> ! {
    let mut line = Line { bytes: [0; LONGEST], len: 0 };
    // A line that is full loses its end, never the process's.
    let _ = describe(&mut line, what, address, of, tag);
    let end = line.len;
    line.bytes[end] = b'\n';
    // SAFETY: the bytes up to `end` and the line's end are initialised.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), end + 1) };
    // SAFETY: it takes nothing, and does not return.
    unsafe { libc::abort() }
}

fn describe(line: &mut Line, what: What, address: usize, of: Of, tag: Tag) -> fmt::Result {
    write!(line, "memcg: {what}: {address:#x}, ")?;
    match of {
        Of::Class(class) => write!(line, "class {}, ", class.size())?,
        Of::Large => line.write_str("large, ")?,
        Of::Nothing => line.write_str("no class, ")?,
    }
    // A tag that is not to be believed leads nowhere, or to a group that exists.
    match TREE.owner(tag) {
        Some(group) => {
            write!(line, "group {}", Path(group))
        }
        None => line.write_str("no group"),
    }
}

/// The longest line, in bytes: a path of three names of the longest kind.
const LONGEST: usize = 1024;

/// A line that cannot grow: what does not fit is left out.
struct Line {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            // The last place is the line's end.
            if self.len + 1 == LONGEST {
                return Err(fmt::Error);
            }
            // A group's name may hold anything but `/` and NUL; this is one line.
            self.bytes[self.len] = if byte.is_ascii_control() { b'?' } else { byte };
            self.len += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memcg_accounting::{GroupRef, Root, Settings};

    use super::*;
    use crate::start;

    fn text(what: What, of: Of, tag: Tag) -> String {
        let mut line = Line { bytes: [0; LONGEST], len: 0 };
        let _ = describe(&mut line, what, 0x7000, of, tag);
        String::from_utf8_lossy(&line.bytes[..line.len]).into_owned()
    }

    #[test]
    fn a_finding_names_class_and_path_in_one_line_of_bounded_length() {
        assert!(start::begin(Root::Untracked));
        let class = Class::of(Layout::new::<[u8; 60]>()).expect("a slab class");
        let said = text(What::DoubleFree, Of::Class(class), Tag::NOBODY);
        assert_eq!(said, "memcg: double free: 0x7000, class 64, no group");

        let top = TREE.create(GroupRef::ROOT, "finding", Settings::default()).expect("fresh");
        let below = TREE.create(top, "be\nlow", Settings::default()).expect("fresh");
        let payer = TREE.payer(below);
        let said = text(What::Overflow(60), Of::Class(class), payer.tag);
        let expected = "write past the end, to byte 60: 0x7000, class 64, group /finding/be?low";
        assert_eq!(said, format!("memcg: {expected}"));

        let said = text(What::Tag(Tag::from_bits(77 << 20)), Of::Large, Tag::from_bits(77 << 20));
        assert_eq!(said, "memcg: corrupt tag 0x4d00000: 0x7000, large, no group");

        let mut deep = below;
        for _ in 0..20 {
            deep = TREE.create(deep, &"n".repeat(255), Settings::default()).expect("fresh");
        }
        let said = text(What::Foreign, Of::Nothing, TREE.payer(deep).tag);
        assert_eq!(said.len(), LONGEST - 1);
        assert!(said.contains("no class, group /../nnn"), "{said}");
    }
}
