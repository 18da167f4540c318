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
//! - A set that has an entry is `filled`; one that has bytes is in `unspent_in`.
//! - A stock of zeros is empty.

use crate::context::{Payer, Tag};

/// Sets of the table.
pub(crate) const SETS: usize = 512;
/// Entries in a set.
const WAYS: usize = 2;
/// Words that tell which sets have entries.
const WORDS: usize = SETS / 64;
/// What a thread may leave unspent over all its entries; more goes back on its slow path.
pub const MAX_UNSPENT: u64 = 128 << 10;

/// What a charge takes ahead at least.
const LEAST_AHEAD: u64 = 1 << 10;

/// Bytes that a thread holds for one payer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// Whose; [`Payer::NOBODY`] marks an empty entry.
    pub payer: Payer,
    /// Charged and not yet spent.
    bytes: u32,
    /// What the next charge takes ahead.
    ahead: u32,
}

impl Entry {
    /// Bytes that are charged and not yet spent.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }
}

/// A set-associative table of [`Entry`].
#[derive(Debug)]
#[repr(C)]
pub struct Stock {
    unspent: u64,
    turn: u32,
    /// A bit for each set that may have entries: the others are not touched.
    filled: [u64; WORDS],
    /// A bit for each set that may have bytes.
    unspent_in: [u64; WORDS],
    sets: [[Entry; WAYS]; SETS],
}

impl Default for Stock {
    fn default() -> Self {
        Self::new()
    }
}

const EMPTY: Entry = Entry { payer: Payer::NOBODY, bytes: 0, ahead: 0 };

impl Stock {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            unspent: 0,
            turn: 0,
            filled: [0; WORDS],
            unspent_in: [0; WORDS],
            sets: [[EMPTY; WAYS]; SETS],
        }
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
        let Some(left) = u32::try_from(bytes).ok().and_then(|bytes| entry.bytes.checked_sub(bytes))
        else {
            return false;
        };
        entry.bytes = left;
        self.unspent -= bytes;
        true
    }

    /// Adds `bytes`, charged already, to `tag`'s entry; `false`: it has none, or no room.
    #[inline]
    #[must_use]
    pub fn give(&mut self, tag: Tag, bytes: u64) -> bool {
        let Some(entry) = self.entry(tag) else { return false };
        let Some(sum) = u32::try_from(bytes).ok().and_then(|bytes| entry.bytes.checked_add(bytes))
        else {
            return false;
        };
        entry.bytes = sum;
        self.unspent += bytes;
        let set = Self::set_of(tag);
        self.unspent_in[set / 64] |= 1 << (set % 64);
        true
    }

    /// How many bytes a charge of `need` for `tag` should take ahead, `most` at most: twice what
    /// the last one took, since the entry was drained. So a payer that allocates much pays seldom,
    /// and many that allocate little leave little unspent.
    #[must_use]
    pub fn ahead_for(&mut self, tag: Tag, need: u64, most: u64) -> u64 {
        let Some(entry) = self.entry(tag) else { return 0 };
        let ahead = u64::from(entry.ahead).max(LEAST_AHEAD).min(most);
        entry.ahead = u32::try_from((2 * ahead + need).min(most)).unwrap_or(u32::MAX);
        ahead
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
        let set = Self::set_of(payer.tag);
        self.filled[set / 64] |= 1 << (set % 64);
        let [first, second] = &mut self.sets[set];
        let victim = if first.payer.tag.is_nobody() {
            first
        } else if second.payer.tag.is_nobody() || first.payer.tag == keep {
            second
        } else if second.payer.tag == keep || !prefer_second {
            first
        } else {
            second
        };
        let old = core::mem::replace(victim, Entry { payer, ..EMPTY });
        self.unspent -= old.bytes();
        (!old.payer.tag.is_nobody()).then_some(old)
    }

    /// Bytes of all entries.
    #[must_use]
    pub const fn unspent(&self) -> u64 {
        self.unspent
    }

    /// Takes the bytes of every entry that `wanted` names; the entries and their pins stay.
    pub fn drain(&mut self, mut wanted: impl FnMut(Tag) -> bool, mut take: impl FnMut(Tag, u64)) {
        for set in ones(self.unspent_in) {
            let mut is_spent = true;
            for entry in &mut self.sets[set] {
                if entry.bytes != 0 && wanted(entry.payer.tag) {
                    let bytes = u64::from(core::mem::take(&mut entry.bytes));
                    entry.ahead = 0;
                    self.unspent -= bytes;
                    take(entry.payer.tag, bytes);
                }
                is_spent &= entry.bytes == 0;
            }
            if is_spent {
                self.unspent_in[set / 64] &= !(1 << (set % 64));
            }
        }
    }

    /// Takes out every entry that has no bytes and that `dead` names; its pin is the caller's.
    pub fn prune(&mut self, mut dead: impl FnMut(Tag) -> bool, mut unpin: impl FnMut(Tag)) {
        for set in ones(self.filled) {
            let mut is_empty = true;
            for entry in &mut self.sets[set] {
                let tag = entry.payer.tag;
                if entry.bytes == 0 && !tag.is_nobody() && dead(tag) {
                    *entry = EMPTY;
                    unpin(tag);
                }
                is_empty &= entry.payer.tag.is_nobody();
            }
            if is_empty {
                self.filled[set / 64] &= !(1 << (set % 64));
            }
        }
    }

    /// Each entry that is not empty.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let sets = ones(self.filled).flat_map(|set| &self.sets[set]);
        sets.filter(|entry| !entry.payer.tag.is_nobody())
    }

    /// Tests the invariants that can be seen from here.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub fn check(&self) {
        let sum: u64 = self.sets.as_flattened().iter().map(Entry::bytes).sum();
        assert_eq!(self.unspent, sum, "unspent is the sum of the entries");
        for (index, [first, second]) in self.sets.iter().enumerate() {
            let has = |words: [u64; WORDS]| words[index / 64] >> (index % 64) & 1 != 0;
            for entry in [first, second] {
                let tag = entry.payer.tag;
                assert!(tag.is_nobody() || has(self.filled), "{tag:?} is in a filled set");
                assert!(entry.bytes == 0 || has(self.unspent_in), "{tag:?} has bytes");
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

/// The numbers of the bits that are set.
fn ones(words: [u64; WORDS]) -> impl Iterator<Item = usize> {
    words.into_iter().enumerate().flat_map(|(word, mut bits)| {
        core::iter::from_fn(move || {
            let low = bits.trailing_zeros();
            bits = bits.checked_sub(1)? & bits;
            Some(word * 64 + low as usize)
        })
    })
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
    bytes: u64,
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
        Self { entries: [(Tag::NOBODY, 0); LOG], len: 0, bytes: 0 }
    }

    /// Whether [`push`](UnchargeLog::push) has an entry for `tag`.
    #[inline]
    #[must_use]
    pub fn has_room_for(&self, tag: Tag) -> bool {
        self.len < LOG || self.entries[LOG - 1].0 == tag
    }

    /// All that is noted. Together with what a stock has unspent it stays within
    /// [`MAX_UNSPENT`], or it is applied.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes that `bytes` of `tag` are to be uncharged. `false`: the log is full, apply it
    /// first; nothing changed.
    #[must_use]
    pub fn push(&mut self, tag: Tag, bytes: u64) -> bool {
        if let Some((last, sum)) = self.entries[..self.len].last_mut()
            && *last == tag
        {
            *sum += bytes;
            self.bytes += bytes;
            return true;
        }
        let Some(entry) = self.entries.get_mut(self.len) else { return false };
        *entry = (tag, bytes);
        self.len += 1;
        self.bytes += bytes;
        true
    }

    /// Everything noted, which the caller applies now.
    pub fn take(&mut self) -> &[(Tag, u64)] {
        let len = core::mem::take(&mut self.len);
        self.bytes = 0;
        &self.entries[..len]
    }

    /// What is noted, left where it is.
    #[must_use]
    pub fn peek(&self) -> &[(Tag, u64)] {
        &self.entries[..self.len]
    }
}
