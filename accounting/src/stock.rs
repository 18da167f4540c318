//! What a thread has charged ahead of need, and what it has yet to uncharge.
//!
//! An object that changes hands moves bytes between two entries of this table: its old payer's
//! grows, its new payer's shrinks. No shared counter is touched.
//!
//! # What a charge takes
//!
//! A payer's first charge takes a KiB, or what it needs if that is more, the next ones as much again as
//! all before them, up to 32 KiB: who allocates much pays seldom. When its entry is trimmed it is known
//! what it really used since: all that was charged, but for the least that the entry had left since the
//! last charge. That is what its next charge takes. So a payer that comes for one object in a thousand
//! turns keeps what one object costs, and needs no charge while all of them together stay within the
//! bound.
//!
//! # Invariants
//!
//! - Each entry's bytes are charged through its tag, and the entry pins its context: so a tag
//!   that has an entry is not reused, and the tag alone finds the entry.
//! - A tag has at most one entry, in the set that its low bits name.
//! - `unspent` is the sum of the entries' bytes.
//! - Where there is an entry is in `filled`; one that has bytes is in `unspent_in`.
//! - A stock of zeros is empty.

use crate::Tree;
use crate::context::{Payer, Tag};
use crate::gate::step;
#[cfg(all(loom, test))]
use crate::tree::Weakened;

/// Sets of the table.
pub(crate) const SETS: usize = 512;
/// Entries in a set.
const WAYS: usize = 2;
/// Sets whose numbers are equal modulo this are one column, and lie side by side.
const COLUMNS: usize = 64;
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
    selected: usize,
    turn: u32,
    /// Where the next trim begins.
    hand: usize,
    /// Where there may be an entry: other places are not touched.
    filled: Bits,
    /// Where there may be bytes.
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
            filled: Bits([0; COLUMNS]),
            unspent_in: Bits([0; COLUMNS]),
            entries: [EMPTY; SETS * WAYS],
        }
    }

    /// Where the set of `tag` begins.
    #[inline(always)]
    fn first_of(tag: Tag) -> usize {
        let set = tag.to_bits() as usize % SETS;
        (set % COLUMNS * (SETS / COLUMNS) + set / COLUMNS) * WAYS
    }

    /// Where the entry of `tag`, which is not nobody, is: at one of two places side by side.
    #[inline(always)]
    fn find(&self, tag: Tag) -> Option<usize> {
        let first = Self::first_of(tag);
        // Which of the two is no branch: it would be guessed wrong every other time.
        let index = first + usize::from(self.entries[first].payer.tag != tag);
        (self.entries[index].payer.tag == tag).then_some(index)
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
        self.selected = index;
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
        self.unspent_in.set(index);
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
        let selected = self.selected % self.entries.len();
        if !to.is_nobody() {
            let entry = &self.entries[selected];
            if entry.payer.tag != to || entry.bytes < bytes {
                return Err(NotHandedOver::TooLittle);
            }
        }
        if !from.is_nobody() {
            // What nobody takes stays.
            let more = if to.is_nobody() { u64::from(bytes) } else { 0 };
            if self.unspent + more >= MAX_UNSPENT {
                return Err(NotHandedOver::NoPlace);
            }
            let Some(index) = self.find(from) else { return Err(NotHandedOver::NoPlace) };
            // No overflow: all entries together are below the bound, and this object.
            self.entries[index].bytes += bytes;
            self.unspent += u64::from(bytes);
            self.unspent_in.set(index);
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
        let first = Self::first_of(payer.tag);
        let second = first + 1;
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
        self.filled.set(victim);
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
    /// By columns: tenants that were made in turn share their tree's lock with those of the same one.
    fn drain_to(
        &mut self,
        enough: u64,
        mut wanted: impl FnMut(Tag) -> bool,
        mut take: impl FnMut(Tag, u64),
    ) {
        for step in 0..COLUMNS {
            let column = (self.hand + step) % COLUMNS;
            if self.unspent <= enough {
                self.hand = column;
                return;
            }
            for index in self.unspent_in.column(column) {
                let entry = &mut self.entries[index];
                if entry.bytes != 0 && !wanted(entry.payer.tag) {
                    continue;
                }
                self.unspent_in.clear(index);
                if entry.bytes != 0 {
                    let bytes = entry.trim();
                    self.unspent -= bytes;
                    take(entry.payer.tag, bytes);
                }
            }
        }
    }

    /// Takes out every entry that has no bytes and that `dead` names; its pin is the caller's.
    pub fn prune(&mut self, mut dead: impl FnMut(Tag) -> bool, mut unpin: impl FnMut(Tag)) {
        for index in self.filled.all() {
            let entry = &mut self.entries[index];
            let tag = entry.payer.tag;
            if entry.bytes == 0 && dead(tag) {
                *entry = EMPTY;
                self.filled.clear(index);
                unpin(tag);
            }
        }
    }

    /// Each entry that is not empty.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.filled.all().map(|index| &self.entries[index])
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
            let tag = entry.payer.tag;
            let is_in_set = Self::first_of(tag) == index / WAYS * WAYS;
            assert_eq!(!tag.is_nobody(), self.filled.has(index), "{tag:?} is where it may be");
            assert!(entry.bytes == 0 || self.unspent_in.has(index), "{tag:?} has bytes");
            assert!(tag.is_nobody() || is_in_set, "{tag:?} is in its set");
            assert!(!tag.is_nobody() || entry.bytes == 0, "nobody has no stock");
            assert!(u64::from(entry.least) * UNIT <= entry.bytes(), "the least is at most what is");
        }
        for pair in self.entries.chunks(WAYS) {
            let [first, second] = [pair[0].payer.tag, pair[1].payer.tag];
            assert!(first.is_nobody() || first != second, "one entry per tag");
        }
    }
}

impl Tree {
    /// Sees to it that `stock` has an entry of `payer` itself, selected and pinned: from then on its tag
    /// means this payer, and nobody else, for as long as the entry stays. `keep` is not evicted.
    /// `false`: the payer is gone, with all that it was charged for.
    ///
    /// The tag alone would not do. A scope that was leaked, or left out of order, names a payer that
    /// nothing pins: once its group is gone the tag may be another group's, and that one may well have
    /// an entry here. Where the two are taken for each other, a stranger pays.
    pub fn settle(&self, stock: &mut Stock, payer: Payer, keep: Tag) -> bool {
        let is_known = payer.tag.is_nobody() || stock.select(payer);
        if is_known || !step!(self, WholePayer) && stock.find(payer.tag).is_some() {
            return true;
        }
        if !self.pin(payer) {
            return false;
        }
        if let Some(old) = stock.insert(payer, keep) {
            if old.bytes() > 0 {
                self.uncharge(old.payer.tag, old.bytes());
            }
            self.unpin(old.payer.tag);
        }
        true
    }
}

/// A set of places in the table: a word for each column.
#[derive(Clone, Copy, Debug)]
struct Bits([u16; COLUMNS]);

const _: () = assert!(SETS * WAYS == COLUMNS * PLACES);

/// Places in a column: the bits of a word.
const PLACES: usize = 16;

impl Bits {
    #[inline(always)]
    fn set(&mut self, index: usize) {
        self.0[index / PLACES] |= 1 << (index % PLACES);
    }

    fn clear(&mut self, index: usize) {
        self.0[index / PLACES] &= !(1 << (index % PLACES));
    }

    fn has(&self, index: usize) -> bool {
        self.0[index / PLACES] >> (index % PLACES) & 1 != 0
    }

    /// The places that it has in a column.
    fn column(&self, column: usize) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.0[column];
        core::iter::from_fn(move || {
            let place = left.trailing_zeros() as usize;
            left &= left.checked_sub(1)?;
            Some(column * PLACES + place)
        })
    }

    /// All places that it has, column by column.
    fn all(self) -> impl Iterator<Item = usize> {
        (0..COLUMNS).flat_map(move |column| self.column(column))
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

    /// All that is noted. Where it passes [`MAX_UNSPENT`] together with what a stock has unspent, it is
    /// applied, at the next slow path at the latest.
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
