//! Which of several shrinkers that share a bit of the marks has something in a group.
//!
//! There are 128 bits of a kind. The first shrinker that has a bit has rank 0, and is asked where the bit is marked. Those of
//! higher ranks are marked one by one, in a group's leaf for the bit, which is made when it is first needed:
//!
//! ```text
//!   GroupRecord.marks     bit 5 marked: somebody that has it has something here
//!   GroupRecord.sharers ─► node ─► node ─► leaf of bit 5:  ranks 1, 2, … 128, and again: marked or not
//! ```
//!
//! A leaf is [`Marks`] again, with their protocol at each level. Who adds marks the leaf first, then the bit. Who found
//! nobody unmarks the bit, and then looks at the leaf again: of the two, one is seen by the other.
//!
//! # Invariants
//!
//! - A bit of which a leaf has a mark is marked, or whoever set that is about to mark it, or whoever unmarked it is about to
//!   look again.
//! - Of bits that start marked, a leaf that is not there says that all are marked; of the others, that none is.
//! - Nodes and leaves are linked under one lock, and stay with a slot's record: its next group finds them fresh, and who is
//!   late finds no other group's.
//!
//! Source: `struct shrinker_info_unit` in `mm/shrinker.c`, which has a bit for each shrinker, in units of a fixed size.

use memcg_accounting::Source;
use memcg_accounting::table::{NONE, Record, Table};

use crate::marks::{BITS_OF_A_KIND, Bit, Bits, Marks, WORDS};
use crate::sync::{AtomicU32, Lock, Ordering, lock};

/// Links of a node: two levels of them tell the bits apart.
const LINKS: usize = 16;
const _: () = assert!(LINKS * LINKS >= 64 * WORDS);

/// A step on the way from a group to a leaf.
#[derive(Debug)]
pub(crate) struct Node {
    links: [AtomicU32; LINKS],
    next_free: AtomicU32,
}

impl Record for Node {
    fn new() -> Self {
        Self {
            links: core::array::from_fn(|_| AtomicU32::new(NONE)),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // It is never given back, as the record that it belongs to.
        true
    }
}

/// Who is marked in one group, of those that share one bit.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) marks: Marks,
    next_free: AtomicU32,
}

impl Record for Leaf {
    fn new() -> Self {
        Self { marks: Marks::new(), next_free: AtomicU32::new(NONE) }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // As a node.
        true
    }
}

/// The leaves of all groups.
#[derive(Debug)]
pub(crate) struct Sharers {
    nodes: Table<Node>,
    leaves: Table<Leaf>,
    linking: Lock<()>,
}

/// The bit of a leaf that stands for rank `rank` of `bit`; ranks beyond the last begin again.
pub(crate) fn bit_of_rank(bit: Bit, rank: u32) -> Bit {
    Bit::new(rank.wrapping_sub(1), bit.is_inverted())
}

impl Sharers {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { nodes: Table::new(), leaves: Table::new(), linking: Lock::new(()) }
        }
    }

    fn steps(bit: Bit) -> (usize, usize) {
        let bit = bit.0 as usize;
        (bit / LINKS % LINKS, bit % LINKS)
    }

    // Acquire pairs with the Release in `make`: what a link leads to is fresh.
    fn follow(link: &AtomicU32) -> u32 {
        link.load(Ordering::Acquire)
    }

    /// The leaf for `bit` of the group whose sharers begin at `root`.
    pub(crate) fn leaf(&self, root: &AtomicU32, bit: Bit) -> Option<&Leaf> {
        let (first, second) = Self::steps(bit);
        let upper = self.nodes.get(Self::follow(root))?;
        let lower = self.nodes.get(Self::follow(&upper.links[first]))?;
        self.leaves.get(Self::follow(&lower.links[second]))
    }

    /// The same, made if need be; `None`: no memory.
    pub(crate) fn make(&self, source: &Source, root: &AtomicU32, bit: Bit) -> Option<&Leaf> {
        if let Some(leaf) = self.leaf(root, bit) {
            return Some(leaf);
        }
        let _linking = lock(&self.linking);
        let (first, second) = Self::steps(bit);
        let upper = self.node(source, root)?;
        let lower = self.node(source, &upper.links[first])?;
        let link = &lower.links[second];
        if Self::follow(link) == NONE {
            link.store(self.leaves.take(source)?, Ordering::Release);
        }
        self.leaves.get(Self::follow(link))
    }

    fn node(&self, source: &Source, link: &AtomicU32) -> Option<&Node> {
        if Self::follow(link) == NONE {
            link.store(self.nodes.take(source)?, Ordering::Release);
        }
        self.nodes.get(Self::follow(link))
    }

    /// Marks in the group of `to`, for each of `bits`, whoever is marked in that of `from`; `ranks` are the bits of a leaf
    /// that somebody has. Answers the bits of which somebody is; `None`: no memory.
    ///
    /// `takes`: `from` is left as that of a fresh group. What is marked there later stays there.
    pub(crate) fn add_up(
        &self,
        source: &Source,
        (from, to): (&AtomicU32, &AtomicU32),
        bits: Bits,
        ranks: Bits,
        takes: bool,
    ) -> Option<Bits> {
        let mut added = Bits::NONE;
        for bit in bits.iter() {
            let marked = match self.leaf(from, bit) {
                Some(leaf) if takes => leaf.marks.take(ranks),
                Some(leaf) => leaf.marks.read(ranks),
                None => Marks::fresh(ranks),
            };
            let marked = of_kind(marked, bit);
            if marked.is_empty() {
                continue;
            }
            added.0[bit.word()] |= bit.mask();
            // A leaf that starts marked and is not there is so already.
            match self.leaf(to, bit) {
                None if bit.is_inverted() => {}
                None => self.make(source, to, bit)?.marks.add(marked),
                Some(leaf) => leaf.marks.add(marked),
            }
        }
        if takes {
            self.reset(from, bits);
        }
        Some(added)
    }

    /// Leaves of bits that are not marked have nothing that is, and are made fresh.
    fn reset(&self, root: &AtomicU32, taken: Bits) {
        if self.nodes.get(Self::follow(root)).is_none() {
            return;
        }
        let all = Bits([u64::MAX; WORDS]);
        for bit in all.iter().filter(|bit| taken.0[bit.word()] & bit.mask() == 0) {
            if let Some(leaf) = self.leaf(root, bit) {
                leaf.marks.take(Bits::NONE);
            }
        }
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.nodes.mapped_bytes() + self.leaves.mapped_bytes()
    }

    #[cfg(not(loom))]
    pub(crate) fn raw_lock(&self) -> &Lock<()> {
        &self.linking
    }
}

/// Those of a leaf for `bit`: the other kind's half of it is not used.
pub(crate) fn of_kind(ranks: Bits, bit: Bit) -> Bits {
    Bits(core::array::from_fn(|i| {
        let is_inverted = i < WORDS / 2;
        if is_inverted == bit.is_inverted() { ranks.0[i] } else { 0 }
    }))
}

/// The bits of leaves that stand for the ranks up to `highest`.
#[expect(clippy::cast_possible_truncation, reason = "there are four words")]
pub(crate) fn ranks_up_to(highest: u32) -> Bits {
    Bits(core::array::from_fn(|i| {
        let before = (i % (WORDS / 2)) as u32 * 64;
        let here = highest.min(BITS_OF_A_KIND).saturating_sub(before).min(64);
        u64::MAX.checked_shr(64 - here).unwrap_or(0)
    }))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_as_many_bits_of_each_kind() {
        for highest in [0, 1, 63, 64, 65, 127, 128, 129, 1000] {
            let ranks = ranks_up_to(highest);
            assert_eq!(ranks.len(), 2 * highest.min(128));
            for starts_marked in [false, true] {
                let bit = Bit::new(7, starts_marked);
                assert_eq!(of_kind(ranks, bit).len(), highest.min(128));
                let has = |rank| {
                    ranks.0[bit_of_rank(bit, rank).word()] & bit_of_rank(bit, rank).mask() != 0
                };
                assert!((1..=highest).all(has) && (highest >= 128 || !has(highest + 1)));
            }
        }
    }
}
