//! Which tags a drain wants: those that lead into a subtree.

use memcg_accounting::{GroupRef, Tag};

use crate::process::TREE;
use crate::summary::Summary;

/// The tags that lead into the subtree of a group, or of the root: all. Remembers what it asked last, for
/// objects of one payer come in runs.
#[derive(Clone, Debug)]
pub(crate) struct Subtree {
    top: GroupRef,
    /// The number of its top-level tree; `None`: everything is wanted.
    tree: Option<u32>,
    last: Option<(Tag, bool)>,
}

impl Subtree {
    /// That of `top`. `None`: it is gone, and nothing leads there.
    pub(crate) fn of(top: GroupRef) -> Option<Self> {
        let tree = if top.is_root() { None } else { Some(TREE.number_of_group(top)?) };
        Some(Self { top, tree, last: None })
    }

    /// Everything.
    pub(crate) const fn all() -> Self {
        Self { top: GroupRef::ROOT, tree: None, last: None }
    }

    /// Whether a thread that `summary` is of may have something of it.
    pub(crate) fn may_be_in(&self, summary: &Summary) -> bool {
        self.tree.is_none_or(|tree| summary.may_have(tree))
    }

    /// Whether `tag`, which is not nobody, leads there. `tree` is its number.
    pub(crate) fn has(&mut self, tag: Tag, tree: u32) -> bool {
        let Some(wanted) = self.tree else { return true };
        if tree != wanted {
            return false;
        }
        match self.last {
            Some((last, is)) if last == tag => is,
            _ => {
                let is = TREE.contains(self.top, tag);
                self.last = Some((tag, is));
                is
            }
        }
    }

    /// The same for who does not know the number.
    pub(crate) fn has_tag(&mut self, tag: Tag) -> bool {
        !tag.is_nobody() && self.has(tag, TREE.number_of(tag))
    }
}
