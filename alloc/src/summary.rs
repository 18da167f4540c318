//! Whose objects a thread caches, as far as somebody has looked: a set of trees that errs on one side.
//!
//! A free does not look whose object it takes, so a thread does not know whose objects it caches. What has
//! been looked at is below the floors of its [magazines](crate::magazine), and summed up here. A cut for a
//! group then looks at what is above the floors, and below them only if its tree may be here.
//!
//! What is noted is the number of an object's top-level tree, which is the same for all that an object's
//! tag may come to mean while it is charged: a group that goes leaves its objects to its parent, in the
//! same tree, and a top-level one to the root, whose cut takes everything.
//!
//! # Invariants
//!
//! - A tree of which the thread caches an object below a floor, or has an entry in its stock, is in the
//!   summary of objects, or of stock.

use memcg_accounting::Tag;
use memcg_accounting::sync::{AtomicU64, Ordering};

use crate::subtree::Subtree;

/// Numbers that are told apart; trees are numbered in turn.
const NUMBERS: usize = 8192;
const BITS: usize = u64::BITS as usize;

/// A set of trees. Zeros are an empty one.
#[derive(Debug)]
pub(crate) struct Summary {
    words: [AtomicU64; NUMBERS / BITS],
}

// Relaxed throughout: whoever changes it has the record's lock, or is its owner; a cut reads it where the
// gate tells that nobody has changed it since it was ordered before.
impl Summary {
    pub(crate) const fn new() -> Self {
        Self { words: [const { AtomicU64::new(0) }; NUMBERS / BITS] }
    }

    fn place(tree: u32) -> (usize, u64) {
        let bit = tree as usize % NUMBERS;
        (bit / BITS, 1 << (bit % BITS))
    }

    pub(crate) fn add(&self, tree: u32) {
        let (word, bit) = Self::place(tree);
        self.words[word].store(self.words[word].load(Ordering::Relaxed) | bit, Ordering::Relaxed);
    }

    /// `false`: it is not in.
    pub(crate) fn may_have(&self, tree: u32) -> bool {
        let (word, bit) = Self::place(tree);
        self.words[word].load(Ordering::Relaxed) & bit != 0
    }

    pub(crate) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Notes the tags of one object after the other, most of which were there a moment ago.
#[derive(Debug)]
pub(crate) struct Notes {
    recent: [Tag; 64],
}

impl Notes {
    pub(crate) const fn new() -> Self {
        Self { recent: [Tag::NOBODY; 64] }
    }

    fn place(tag: Tag) -> usize {
        tag.to_bits() as usize % 64
    }

    /// Whether there is nothing to be noted of `tag`.
    #[inline]
    pub(crate) fn has(&self, tag: Tag) -> bool {
        tag.is_nobody() || self.recent[Self::place(tag)] == tag
    }

    /// Notes in `summary` that there is an object with this tag, whose number is `tree`.
    #[inline]
    pub(crate) fn add(&mut self, summary: &Summary, tag: Tag, tree: u32) {
        self.recent[Self::place(tag)] = tag;
        summary.add(tree);
    }
}

/// What is known of a thread's caches.
#[derive(Debug)]
pub(crate) struct Sums {
    /// Whose objects lie below floors.
    pub(crate) seen: Summary,
    /// Who has an entry in the stock.
    pub(crate) payers: Summary,
}

impl Sums {
    pub(crate) const fn new() -> Self {
        Self { seen: Summary::new(), payers: Summary::new() }
    }

    /// Whether something of `subtree` may be there. `false`, and nothing is: if nothing lies above a floor.
    pub(crate) fn may_have(&self, subtree: &Subtree) -> bool {
        subtree.may_be_in(&self.seen) || subtree.may_be_in(&self.payers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_may_be_in_until_it_is_cleared_and_few_others() {
        let summary = Summary::new();
        for tree in [1, 64, 8191, 100_000] {
            summary.add(tree);
            assert!(summary.may_have(tree));
        }
        let others = (0..8192).filter(|tree| summary.may_have(*tree)).count();
        assert_eq!(others, 4);
        summary.clear();
        assert!((0..8192).all(|tree| !summary.may_have(tree)));
    }
}
