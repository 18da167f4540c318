//! A group's path as it is shown to people: in `Debug`, in errors and in reports.
//!
//! Writing one allocates nothing, so a group that is full can be named by a thread inside it; takes
//! short locks of the tree, one after the other; and writes at most some 4 KiB, on one line.

use std::fmt::{self, Write};

use memcg_accounting::GroupRef;

use crate::process::TREE;

/// How many groups of a path are named, from the last one up.
const DEEPEST: usize = 16;

/// Shows the path of a group, of which nobody needs a handle: it may be gone.
#[derive(Clone, Copy)]
pub(crate) struct Path(pub(crate) GroupRef);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_root() {
            return f.write_str("/");
        }
        if !TREE.is_known(self.0) {
            return f.write_str("a group that is gone");
        }
        let mut groups = [GroupRef::ROOT; DEEPEST];
        let (mut depth, mut at) = (0, Some(self.0));
        while let Some(group) = at.filter(|group| !group.is_root()) {
            if depth == DEEPEST {
                f.write_str("/..")?;
                break;
            }
            groups[depth] = group;
            depth += 1;
            at = TREE.parent_ref(group);
        }
        for &group in groups[..depth].iter().rev() {
            write!(f, "/{}", Shown(TREE.name(group).as_str()))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `value` as text; `None`: there is no memory for it.
pub(crate) fn try_to_string(value: impl fmt::Display) -> Option<String> {
    struct Growing(String);

    impl Write for Growing {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
            self.0.push_str(text);
            Ok(())
        }
    }

    let mut text = Growing(String::new());
    write!(text, "{value}").ok().map(|()| text.0)
}

/// The longest name that is shown, in bytes: that of a group.
const LONGEST: usize = 255;

/// Shows a name that may hold anything: on one line, and not all of it where it is long.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = 0;
        for char in self.0.chars() {
            shown += char.len_utf8();
            if shown > LONGEST {
                return f.write_char('…');
            }
            f.write_char(if char.is_control() { '?' } else { char })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
