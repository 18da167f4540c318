//! What a thread has charged ahead of need, and what it has yet to uncharge.
//!
//! An object that changes hands moves bytes between two entries of this table: its old payer's
//! grows, its new payer's shrinks. No shared counter is touched.
//!
//! # What a charge takes
//!
//! A payer's first charge takes a KiB, the next ones as much again as all before them: who allocates
//! much pays seldom. When its entry is trimmed it is known what it really used since: all that was
//! charged, but for the least that the entry had left. That is what its next charge takes. So a
//! payer that comes for one object in a thousand turns keeps what one object costs, and needs no charge
//! while all of them together stay within the bound.
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
/// Down to what a trim takes it.
const TRIMMED: u64 = MAX_UNSPENT / 4 * 3;

/// What the first charge takes at least.
const FIRST: u64 = 1 << 10;
/// What plans are counted in.
const UNIT: u64 = 8;

/// Bytes that a thread holds for one payer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// Whose; [`Payer::NOBODY`] marks an empty entry.
    pub payer: Payer,
    /// Charged and not yet spent.
    bytes: u32,
    /// What the next charge takes in all, in units; and whether that is what was charged since the
    /// last trim, or else what was used before it.
    plan: u16,
    /// The least that was left since the last charge, in units.
    least: u16,
}

/// Marks a plan as what was charged since the last trim.
const CHARGED: u16 = 1 << 15;

impl Entry {
    /// Bytes that are charged and not yet spent.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }

    fn planned(&self) -> u64 {
        u64::from(self.plan & !CHARGED) * UNIT
    }

    /// Takes `bytes`, of which there are as many.
    #[inline(always)]
    fn spend(&mut self, bytes: u32) {
        self.bytes -= bytes;
        self.least = self.least.min(in_units(self.bytes()));
    }

    /// Takes what is there: the end of what the plan is made from.
    fn trim(&mut self) -> u64 {
        if self.plan & CHARGED != 0 {
            self.plan = (self.plan & !CHARGED).saturating_sub(self.least);
        }
        self.least = 0;
        u64::from(core::mem::take(&mut self.bytes))
    }
}

/// As much of `bytes` as a plan can tell.
#[inline(always)]
fn in_units(bytes: u64) -> u16 {
    let units = (bytes / UNIT).min(u64::from(CHARGED - 1));
    #[expect(clippy::cast_possible_truncation, reason = "below the mark")]
    let units = units as u16;
    units
}

/// Why the stock did not see to an object's change of hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHandedOver {
    /// Who takes it has too little.
    TooLittle,
    /// Who gives it has no entry, or the table is over [`MAX_UNSPENT`].
    NoPlace,
}

/// A set-associative table of [`Entry`].
#[derive(Debug)]
#[repr(C)]
pub struct Stock {
    unspent: u64,
    /// The entry that [`select`](Stock::select) found.
    selected: u32,
    turn: u32,
    /// Where the next trim begins.
    hand: u32,
    /// A bit for each set that may have entries: the others are not touched.
    filled: Bits,
    /// A bit for each set that may have bytes.
    unspent_in: Bits,
    entries: [Entry; SETS * WAYS],
}

impl Default for Stock {
    fn default() -> Self {
        Self::new()
    }
}

const EMPTY: Entry = Entry { payer: Payer::NOBODY, bytes: 0, plan: 0, least: 0 };

impl Stock {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            unspent: 0,
            selected: 0,
            turn: 0,
            hand: 0,
            filled: Bits([0; WORDS]),
            unspent_in: Bits([0; WORDS]),
            entries: [EMPTY; SETS * WAYS],
        }
    }

    #[inline(always)]
    fn set_of(tag: Tag) -> usize {
        tag.to_bits() as usize % SETS
    }

    /// Where the entry of `tag`, which is not nobody, is.
    #[inline(always)]
    fn find(&self, tag: Tag) -> Option<usize> {
        let first = Self::set_of(tag) * WAYS;
        if self.entries[first].payer.tag == tag {
            Some(first)
        } else if self.entries[first + 1].payer.tag == tag {
            Some(first + 1)
        } else {
            None
        }
    }

    /// Finds the entry of `payer` itself, and not of another user of its tag, and keeps it at hand
    /// for [`hand_over`](Stock::hand_over). `false`: it has none.
    #[inline]
    #[must_use]
    pub fn select(&mut self, payer: Payer) -> bool {
        let found = if payer.tag.is_nobody() { None } else { self.find(payer.tag) };
        let Some(index) = found.filter(|index| self.entries[*index].payer == payer) else {
            return false;
        };
        #[expect(clippy::cast_possible_truncation, reason = "there are 1,024")]
        let selected = index as u32;
        self.selected = selected;
        true
    }

    /// Takes `bytes` from `tag`'s entry; `false`: it has no entry, or less than that.
    #[must_use]
    pub fn take(&mut self, tag: Tag, bytes: u64) -> bool {
        let Some(index) = self.find(tag) else { return false };
        let entry = &mut self.entries[index];
        let Some(spent) = u32::try_from(bytes).ok().filter(|bytes| *bytes <= entry.bytes) else {
            return false;
        };
        entry.spend(spent);
        self.unspent -= bytes;
        true
    }

    /// Adds `bytes`, charged already, to `tag`'s entry; `false`: it has none, or no room.
    #[must_use]
    pub fn give(&mut self, tag: Tag, bytes: u64) -> bool {
        self.give_at(tag, bytes).is_some()
    }

    /// The same; answers where the entry is.
    #[inline]
    fn give_at(&mut self, tag: Tag, bytes: u64) -> Option<usize> {
        let index = self.find(tag)?;
        let entry = &mut self.entries[index];
        entry.bytes = u32::try_from(bytes).ok().and_then(|bytes| entry.bytes.checked_add(bytes))?;
        self.unspent += bytes;
        self.unspent_in.set(index / WAYS);
        Some(index)
    }

    /// How many bytes beyond `need` a charge for `tag` should take, `most` at most. The caller
    /// [gives](Stock::give_ahead) what it got.
    #[must_use]
    pub fn ahead_for(&self, tag: Tag, need: u64, most: u64) -> u64 {
        let Some(index) = self.find(tag) else { return 0 };
        self.entries[index].planned().saturating_sub(need).min(most)
    }

    /// Adds what a charge took beyond `need`, and plans the next one; `false`: as for `give`.
    #[must_use]
    pub fn give_ahead(&mut self, tag: Tag, need: u64, ahead: u64, most: u64) -> bool {
        let Some(index) = self.give_at(tag, ahead) else { return false };
        let entry = &mut self.entries[index];
        let before = if entry.plan & CHARGED == 0 { 0 } else { entry.planned() };
        entry.plan = in_units((before + need + ahead).min(most) + UNIT - 1) | CHARGED;
        entry.least = in_units(entry.bytes());
        true
    }

    /// Moves `bytes` of an object that goes from `from` to `to`, which is nobody or who was
    /// selected: into the one's entry, out of the other's. Nobody needs no entry.
    ///
    /// # Errors
    ///
    /// Nothing changed, and why.
    #[inline(always)]
    pub fn hand_over(&mut self, from: Tag, to: Tag, bytes: u32) -> Result<(), NotHandedOver> {
        let selected = self.selected as usize % self.entries.len();
        if !to.is_nobody() {
            let entry = &self.entries[selected];
            if entry.payer.tag != to || entry.bytes < bytes {
                return Err(NotHandedOver::TooLittle);
            }
        }
        if !from.is_nobody() {
            if self.unspent >= MAX_UNSPENT {
                return Err(NotHandedOver::NoPlace);
            }
            let Some(index) = self.find(from) else { return Err(NotHandedOver::NoPlace) };
            // No overflow: all entries together were below the bound.
            self.entries[index].bytes += bytes;
            self.unspent += u64::from(bytes);
            self.unspent_in.set(index / WAYS);
        }
        if !to.is_nobody() {
            self.entries[selected].spend(bytes);
            self.unspent -= u64::from(bytes);
        }
        Ok(())
    }

    /// Makes an entry of 0 bytes for `payer`, which has none and whose context the caller has
    /// pinned for it, and selects it. `keep` is not evicted. Answers the entry that had to go, with
    /// its bytes and its pin.
    #[must_use = "the evicted entry's bytes and pin are the caller's"]
    pub fn insert(&mut self, payer: Payer, keep: Tag) -> Option<Entry> {
        debug_assert!(self.find(payer.tag).is_none(), "one entry per tag");
        self.turn = self.turn.wrapping_add(1);
        let prefer_second = self.turn % 2 == 1;
        let set = Self::set_of(payer.tag);
        self.filled.set(set);
        let [first, second] = [set * WAYS, set * WAYS + 1];
        let tag_at = |index: usize| self.entries[index].payer.tag;
        let victim = if tag_at(first).is_nobody() {
            first
        } else if tag_at(second).is_nobody() || tag_at(first) == keep {
            second
        } else if tag_at(second) == keep || !prefer_second {
            first
        } else {
            second
        };
        let entry = Entry { payer, plan: in_units(FIRST), ..EMPTY };
        let old = core::mem::replace(&mut self.entries[victim], entry);
        self.unspent -= old.bytes();
        let selected = self.select(payer);
        debug_assert!(selected, "it was made above");
        (!old.payer.tag.is_nobody()).then_some(old)
    }

    /// Bytes of `tag`'s entry, if it has one.
    #[must_use]
    pub fn bytes_of(&self, tag: Tag) -> u64 {
        self.find(tag).map_or(0, |index| self.entries[index].bytes())
    }

    /// Bytes of all entries.
    #[must_use]
    pub const fn unspent(&self) -> u64 {
        self.unspent
    }

    /// Takes the bytes of every entry that `wanted` names; the entries and their pins stay.
    pub fn drain(&mut self, wanted: impl FnMut(Tag) -> bool, take: impl FnMut(Tag, u64)) {
        self.drain_to(0, wanted, take);
    }

    /// Takes bytes until the table is some way below [`MAX_UNSPENT`]: `keep`'s last. What was
    /// longest left alone goes first.
    pub fn trim(&mut self, keep: Tag, mut take: impl FnMut(Tag, u64)) {
        self.drain_to(TRIMMED, |tag| tag != keep, &mut take);
        self.drain_to(TRIMMED, |_| true, take);
    }

    /// Takes the bytes of entries that `wanted` names until at most `enough` are left.
    ///
    /// Sets whose numbers are equal modulo 64 come one after the other: tenants that were made in
    /// turn share their tree's lock with those.
    fn drain_to(
        &mut self,
        enough: u64,
        mut wanted: impl FnMut(Tag) -> bool,
        mut take: impl FnMut(Tag, u64),
    ) {
        for column in self.unspent_in.columns(self.hand) {
            if self.unspent <= enough {
                self.hand = column;
                return;
            }
            for set in self.unspent_in.column(column) {
                let mut is_spent = true;
                for entry in &mut self.entries[set * WAYS..][..WAYS] {
                    if entry.bytes != 0 && wanted(entry.payer.tag) {
                        let bytes = entry.trim();
                        self.unspent -= bytes;
                        take(entry.payer.tag, bytes);
                    }
                    is_spent &= entry.bytes == 0;
                }
                if is_spent {
                    self.unspent_in.clear(set);
                }
            }
        }
    }

    /// Takes out every entry that has no bytes and that `dead` names; its pin is the caller's.
    pub fn prune(&mut self, mut dead: impl FnMut(Tag) -> bool, mut unpin: impl FnMut(Tag)) {
        for set in self.filled.all() {
            let mut is_empty = true;
            for entry in &mut self.entries[set * WAYS..][..WAYS] {
                let tag = entry.payer.tag;
                if entry.bytes == 0 && !tag.is_nobody() && dead(tag) {
                    *entry = EMPTY;
                    unpin(tag);
                }
                is_empty &= entry.payer.tag.is_nobody();
            }
            if is_empty {
                self.filled.clear(set);
            }
        }
    }

    /// Each entry that is not empty.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.filled.all().flat_map(|set| &self.entries[set * WAYS..][..WAYS]);
        entries.filter(|entry| !entry.payer.tag.is_nobody())
    }

    /// Tests the invariants that can be seen from here.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub fn check(&self) {
        let sum: u64 = self.entries.iter().map(Entry::bytes).sum();
        assert_eq!(self.unspent, sum, "unspent is the sum of the entries");
        for (index, entry) in self.entries.iter().enumerate() {
            let (tag, set) = (entry.payer.tag, index / WAYS);
            assert!(tag.is_nobody() || self.filled.has(set), "{tag:?} is in a filled set");
            assert!(entry.bytes == 0 || self.unspent_in.has(set), "{tag:?} has bytes");
            assert!(tag.is_nobody() || Self::set_of(tag) == set, "{tag:?} in set {set}");
            assert!(!tag.is_nobody() || entry.bytes == 0, "nobody has no stock");
            assert!(u64::from(entry.least) * UNIT <= entry.bytes(), "the least is at most what is");
        }
        for pair in self.entries.chunks(WAYS) {
            let [first, second] = [pair[0].payer.tag, pair[1].payer.tag];
            assert!(first.is_nobody() || first != second, "one entry per tag");
        }
    }
}

/// A set of sets.
#[derive(Clone, Copy, Debug)]
struct Bits([u64; WORDS]);

impl Bits {
    #[inline(always)]
    fn set(&mut self, set: usize) {
        self.0[set / 64 % WORDS] |= 1 << (set % 64);
    }

    fn clear(&mut self, set: usize) {
        self.0[set / 64] &= !(1 << (set % 64));
    }

    fn has(&self, set: usize) -> bool {
        self.0[set / 64] >> (set % 64) & 1 != 0
    }

    /// The numbers modulo 64 of the sets that it has, `first` and those above it first.
    fn columns(self, first: u32) -> impl Iterator<Item = u32> {
        let mut left = self.0.iter().fold(0, |all, word| all | word).rotate_right(first);
        core::iter::from_fn(move || {
            let column = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            Some((column + first) % 64)
        })
    }

    /// Those of the sets `column`, `column + 64`, and so on that it has.
    fn column(self, column: u32) -> impl Iterator<Item = usize> {
        (0..WORDS).map(move |word| word * 64 + column as usize).filter(move |set| self.has(*set))
    }

    /// All that it has, column by column.
    fn all(self) -> impl Iterator<Item = usize> {
        self.columns(0).flat_map(move |column| self.column(column))
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
