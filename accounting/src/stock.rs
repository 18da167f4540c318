//! What a thread has charged ahead of need, and what it has yet to uncharge.
//!
//! An object that changes hands moves bytes between two entries of this table: its old payer's
//! grows, its new payer's shrinks. No shared counter is touched.
//!
//! # Invariants
//!
//! - Each entry's bytes are charged through its tag, and the entry pins its context: so a tag
//!   that has an entry is not reused, and the tag alone finds the entry.
//! - A tag has at most one entry, in the set that its low bits name.
//! - `unspent` is the sum of the entries' bytes.

use crate::context::{Payer, Tag};

/// Sets of the table.
const SETS: usize = 64;
/// Entries in a set.
const WAYS: usize = 2;
/// What a thread may leave unspent over all its entries; more goes back on its slow path.
pub const MAX_UNSPENT: u64 = 128 << 10;

/// Bytes that a thread holds for one payer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// Whose; [`Payer::NOBODY`] marks an empty entry.
    pub payer: Payer,
    /// Charged and not yet spent.
    pub bytes: u64,
}

/// A set-associative table of [`Entry`].
#[derive(Debug)]
#[repr(C)]
pub struct Stock {
    sets: [[Entry; WAYS]; SETS],
    unspent: u64,
    turn: u32,
}

impl Default for Stock {
    fn default() -> Self {
        Self::new()
    }
}

const EMPTY: Entry = Entry { payer: Payer::NOBODY, bytes: 0 };

impl Stock {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self { sets: [[EMPTY; WAYS]; SETS], unspent: 0, turn: 0 }
    }

    #[inline(always)]
    fn set_of(tag: Tag) -> usize {
        tag.to_bits() as usize % SETS
    }

    /// The entry of `tag`, which is not nobody.
    #[inline(always)]
    fn entry(&mut self, tag: Tag) -> Option<&mut Entry> {
        let [first, second] = &mut self.sets[Self::set_of(tag)];
        if first.payer.tag == tag {
            Some(first)
        } else if second.payer.tag == tag {
            Some(second)
        } else {
            None
        }
    }

    /// Whether `payer` itself, and not another user of its tag, has an entry.
    #[inline]
    #[must_use]
    pub fn holds(&self, payer: Payer) -> bool {
        let set = &self.sets[Self::set_of(payer.tag)];
        !payer.tag.is_nobody() && set.iter().any(|entry| entry.payer == payer)
    }

    /// Takes `bytes` from `tag`'s entry; `false`: it has no entry, or less than that.
    #[inline]
    #[must_use]
    pub fn take(&mut self, tag: Tag, bytes: u64) -> bool {
        let Some(entry) = self.entry(tag) else { return false };
        if entry.bytes < bytes {
            return false;
        }
        entry.bytes -= bytes;
        self.unspent -= bytes;
        true
    }

    /// Adds `bytes`, charged already, to `tag`'s entry; `false`: it has none.
    #[inline]
    #[must_use]
    pub fn give(&mut self, tag: Tag, bytes: u64) -> bool {
        let Some(entry) = self.entry(tag) else { return false };
        entry.bytes += bytes;
        self.unspent += bytes;
        true
    }

    /// Moves `bytes` of an object that goes from `from` to `to`: into the one's entry, out of
    /// the other's. Nobody needs no entry. `false`: an entry is missing or has too little, or
    /// the table is over [`MAX_UNSPENT`]; nothing changed.
    #[inline]
    #[must_use]
    pub fn hand_over(&mut self, from: Tag, to: Tag, bytes: u64) -> bool {
        if !from.is_nobody() && (self.unspent >= MAX_UNSPENT || self.entry(from).is_none()) {
            return false;
        }
        if !to.is_nobody() && !self.take(to, bytes) {
            return false;
        }
        from.is_nobody() || self.give(from, bytes)
    }

    /// Makes an entry of 0 bytes for `payer`, which has none and whose context the caller has
    /// pinned for it. `keep` is not evicted. Answers the entry that had to go, with its bytes
    /// and its pin.
    #[must_use = "the evicted entry's bytes and pin are the caller's"]
    pub fn insert(&mut self, payer: Payer, keep: Tag) -> Option<Entry> {
        debug_assert!(self.entry(payer.tag).is_none(), "one entry per tag");
        self.turn = self.turn.wrapping_add(1);
        let prefer_second = self.turn % 2 == 1;
        let [first, second] = &mut self.sets[Self::set_of(payer.tag)];
        let victim = if first.payer.tag.is_nobody() {
            first
        } else if second.payer.tag.is_nobody() || first.payer.tag == keep {
            second
        } else if second.payer.tag == keep || !prefer_second {
            first
        } else {
            second
        };
        let old = core::mem::replace(victim, Entry { payer, bytes: 0 });
        self.unspent -= old.bytes;
        (!old.payer.tag.is_nobody()).then_some(old)
    }

    /// Bytes of all entries.
    #[must_use]
    pub const fn unspent(&self) -> u64 {
        self.unspent
    }

    /// Takes the bytes of every entry that `wanted` names; the entries and their pins stay.
    pub fn drain(&mut self, mut wanted: impl FnMut(Tag) -> bool, mut take: impl FnMut(Tag, u64)) {
        for entry in self.sets.as_flattened_mut() {
            if entry.bytes != 0 && wanted(entry.payer.tag) {
                self.unspent -= entry.bytes;
                take(entry.payer.tag, core::mem::take(&mut entry.bytes));
            }
        }
    }

    /// Takes out every entry that has no bytes and that `dead` names; its pin is the caller's.
    pub fn prune(&mut self, mut dead: impl FnMut(Tag) -> bool, mut unpin: impl FnMut(Tag)) {
        for entry in self.sets.as_flattened_mut() {
            let tag = entry.payer.tag;
            if entry.bytes == 0 && !tag.is_nobody() && dead(tag) {
                *entry = EMPTY;
                unpin(tag);
            }
        }
    }

    /// Each entry that is not empty.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.sets.as_flattened().iter().filter(|entry| !entry.payer.tag.is_nobody())
    }

    /// Tests the invariants that can be seen from here.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub fn check(&self) {
        let sum: u64 = self.sets.as_flattened().iter().map(|entry| entry.bytes).sum();
        assert_eq!(self.unspent, sum, "unspent is the sum of the entries");
        for (index, [first, second]) in self.sets.iter().enumerate() {
            for entry in [first, second] {
                let tag = entry.payer.tag;
                assert!(tag.is_nobody() || Self::set_of(tag) == index, "{tag:?} in set {index}");
                assert!(!tag.is_nobody() || entry.bytes == 0, "nobody has no stock");
            }
            assert!(
                first.payer.tag.is_nobody() || first.payer.tag != second.payer.tag,
                "one entry per tag"
            );
        }
    }
}

/// Entries of the log.
const LOG: usize = 64;

/// Uncharges that found no entry in the stock: applied together, under one lock. Late
/// uncharging is always safe: usage is never below what lives.
#[derive(Debug)]
#[repr(C)]
pub struct UnchargeLog {
    entries: [(Tag, u64); LOG],
    len: usize,
}

impl Default for UnchargeLog {
    fn default() -> Self {
        Self::new()
    }
}

impl UnchargeLog {
    /// An empty log.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [(Tag::NOBODY, 0); LOG], len: 0 }
    }

    /// Notes that `bytes` of `tag` are to be uncharged. `false`: the log is full, apply it
    /// first; nothing changed.
    #[must_use]
    pub fn push(&mut self, tag: Tag, bytes: u64) -> bool {
        if let Some((last, sum)) = self.entries[..self.len].last_mut()
            && *last == tag
        {
            *sum += bytes;
            return true;
        }
        let Some(entry) = self.entries.get_mut(self.len) else { return false };
        *entry = (tag, bytes);
        self.len += 1;
        true
    }

    /// Everything noted, which the caller applies now.
    pub fn take(&mut self) -> &[(Tag, u64)] {
        let len = core::mem::take(&mut self.len);
        &self.entries[..len]
    }

    /// What is noted, left where it is.
    #[must_use]
    pub fn peek(&self) -> &[(Tag, u64)] {
        &self.entries[..self.len]
    }
}
