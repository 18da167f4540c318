//! Which shrinkers have something in a group: a bit per shrinker.
//!
//! ```text
//!   adder                              reclaimer
//!   link the object                    count() says Empty
//!   fence        ◄──── pairs with ────► clear the bit; fence
//!   bit clear? set it                  count() again: not Empty? set it
//! ```
//!
//! Of the adder's object and the reclaimer's clearing, at least one is seen by the other: either
//! the adder finds the bit clear and sets it, or the second count finds the object.
//!
//! The first half of the bits belongs to shrinkers for which every group counts as marked until
//! they say `Empty`; there a bit that is set says "empty", so that a group that was never asked
//! is marked. In the second half a bit that is set says "marked".
//!
//! # Invariants
//!
//! - A bit may be marked for no reason, at the cost of one count. It is never unmarked while the
//!   shrinker has an object in the group and no call of it for the group is under way.
//! - Shrinkers beyond the number of bits share them; a shared bit is unmarked only after all
//!   that share it and are marked themselves (`sharers.rs`) said `Empty`.
//!
//! Source: `struct shrinker_info` and `shrink_slab_memcg` in `mm/shrinker.c`.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Words of a bitmap, half of them for each kind of bit.
pub(crate) const WORDS: usize = if cfg!(loom) { 2 } else { 4 };
/// Words whose bits say "empty".
const INVERTED: usize = WORDS / 2;
/// Bits of each kind.
pub(crate) const BITS_OF_A_KIND: u32 = if cfg!(loom) { 64 } else { 128 };
const _: () = assert!(2 * BITS_OF_A_KIND as usize == 64 * WORDS);

/// Bits as a value: a set of shrinkers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits(pub(crate) [u64; WORDS]);

impl Bits {
    pub(crate) const NONE: Bits = Bits([0; WORDS]);

    pub(crate) fn is_empty(self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn or(self, other: Bits) -> Bits {
        Bits(core::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    pub(crate) fn len(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The bits of the set in order, from `first` on and around.
    pub(crate) fn iter_from(self, first: Bit) -> impl Iterator<Item = Bit> {
        let below = |word: usize| match word.cmp(&first.word()) {
            core::cmp::Ordering::Less => u64::MAX,
            core::cmp::Ordering::Equal => first.mask() - 1,
            core::cmp::Ordering::Greater => 0,
        };
        let before = Bits(core::array::from_fn(|i| self.0[i] & below(i)));
        let after = Bits(core::array::from_fn(|i| self.0[i] & !below(i)));
        after.iter().chain(before.iter())
    }

    /// The bits of the set, lowest first.
    pub(crate) fn iter(self) -> impl Iterator<Item = Bit> {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            core::iter::from_fn(move || {
                let low = bits.checked_ilog2().map(|_| bits.trailing_zeros())?;
                bits &= bits - 1;
                u32::try_from(word).ok().map(|word| Bit(word * 64 + low))
            })
        })
    }
}

/// One bit of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bit(pub(crate) u32);

impl Bit {
    /// The `n`th bit of its kind; numbers beyond the last begin again.
    pub(crate) const fn new(n: u32, starts_marked: bool) -> Bit {
        let base = if starts_marked { 0 } else { BITS_OF_A_KIND };
        Bit(base + n % BITS_OF_A_KIND)
    }

    pub(crate) const fn word(self) -> usize {
        (self.0 / 64) as usize
    }

    pub(crate) const fn mask(self) -> u64 {
        1 << (self.0 % 64)
    }

    pub(crate) const fn is_inverted(self) -> bool {
        self.word() < INVERTED
    }
}

/// A step that a model leaves out, to show that it is needed.
#[cfg(loom)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The fence of whoever adds.
    MarkFence,
    /// The fence of whoever clears.
    ClearFence,
    /// The Release of the clearing.
    ClearRelease,
    /// The second question after clearing.
    AskAgain,
}

/// Unmarkings of all groups. While one is under way, a shrinker may have objects where it is not
/// marked; afterwards it is marked there again.
#[derive(Debug)]
pub(crate) struct Unmarkings {
    under_way: AtomicU32,
    mistaken: AtomicU32,
}

impl Unmarkings {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { under_way: AtomicU32::new(0), mistaken: AtomicU32::new(0) }
        }
    }

    /// Runs `settle`, which answers whether what it unmarked stays so.
    pub(crate) fn during(&self, settle: impl FnOnce() -> bool) {
        // Relaxed: the Release of the clearing publishes it.
        self.under_way.fetch_add(1, Ordering::Relaxed);
        if !settle() {
            // Release pairs with the Acquire in `mistaken`: who begins with this one counted finds
            // the mark that was set again.
            self.mistaken.fetch_add(1, Ordering::Release);
        }
        // Release pairs with the Acquire in `any`: who finds none under way finds the mark that
        // was set again, and the count of it.
        self.under_way.fetch_sub(1, Ordering::Release);
    }

    /// Whether one is under way that cleared a bit which the caller looked at.
    pub(crate) fn any(&self) -> bool {
        // Pairs with the Release in `Marks::clear`, by way of the bit that was read.
        fence(Ordering::Acquire);
        self.under_way.load(Ordering::Acquire) != 0
    }

    /// How many found afterwards that there was something.
    pub(crate) fn mistaken(&self) -> u32 {
        self.mistaken.load(Ordering::Acquire)
    }
}

/// A group's bitmap.
#[derive(Debug)]
pub(crate) struct Marks {
    words: [AtomicU64; WORDS],
    #[cfg(loom)]
    weakened: Option<Weakened>,
}

/// Whether a step is taken: always, but where a model leaves it out.
macro_rules! step {
    ($marks:expr, $site:ident) => {{
        #[cfg(not(loom))]
        {
            true
        }
        #[cfg(loom)]
        {
            $marks.weakened != Some(Weakened::$site)
        }
    }};
}

impl Marks {
    pub(crate) fn new() -> Self {
        Self {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            #[cfg(loom)]
            weakened: None,
        }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn weakened(site: Option<Weakened>) -> Self {
        Self { weakened: site, ..Self::new() }
    }

    /// The marked bits of `in_use`. Relaxed: what is found is asked, and what is missed was
    /// marked after the look.
    pub(crate) fn read(&self, in_use: Bits) -> Bits {
        Bits(core::array::from_fn(|i| {
            let word = self.words[i].load(Ordering::Relaxed);
            (if i < INVERTED { !word } else { word }) & in_use.0[i]
        }))
    }

    /// What a group has of which nothing was ever noted.
    pub(crate) fn fresh(in_use: Bits) -> Bits {
        Bits(core::array::from_fn(|i| if i < INVERTED { in_use.0[i] } else { 0 }))
    }

    pub(crate) fn is_marked(&self, bit: Bit) -> bool {
        let set = self.words[bit.word()].load(Ordering::Relaxed) & bit.mask() != 0;
        set != bit.is_inverted()
    }

    /// Marks `bit`. What the caller linked before is found by every later [`settle`](Marks::settle),
    /// or the mark stays.
    ///
    /// Answers whether it had to be set.
    pub(crate) fn mark(&self, bit: Bit) -> bool {
        if step!(self, MarkFence) {
            // Partner: the fence in `settle`. Without it the look below could come before the
            // link, find the bit still set, and miss that it is being cleared.
            fence(Ordering::SeqCst);
        }
        let is_new = !self.is_marked(bit);
        if is_new {
            self.set(bit);
        }
        is_new
    }

    /// Sets a bit to "marked". Relaxed: the fences around it order it.
    fn set(&self, bit: Bit) {
        let word = &self.words[bit.word()];
        if bit.is_inverted() {
            word.fetch_and(!bit.mask(), Ordering::Relaxed);
        } else {
            word.fetch_or(bit.mask(), Ordering::Relaxed);
        }
    }

    fn clear(&self, bit: Bit) {
        let word = &self.words[bit.word()];
        // Release pairs with the fence in `Unmarkings::any`: who reads the bit cleared finds the
        // unmarking.
        let order = if step!(self, ClearRelease) { Ordering::Release } else { Ordering::Relaxed };
        if bit.is_inverted() {
            word.fetch_or(bit.mask(), order);
        } else {
            word.fetch_and(!bit.mask(), order);
        }
    }

    /// After everybody that has `bit` said `Empty`: unmarks it, unless `is_empty` says otherwise
    /// when it is asked again. Answers whether it is unmarked.
    pub(crate) fn settle(&self, bit: Bit, is_empty: impl FnOnce() -> bool) -> bool {
        self.clear(bit);
        if step!(self, ClearFence) {
            // Partner: the fence in `mark`. Without it the count below could come before the
            // clearing, and miss an object whose adder still saw the bit set.
            fence(Ordering::SeqCst);
        }
        if !step!(self, AskAgain) || is_empty() {
            return true;
        }
        self.set(bit);
        false
    }

    /// Takes all marks of `in_use`, and leaves what a fresh group has.
    pub(crate) fn take(&self, in_use: Bits) -> Bits {
        Bits(core::array::from_fn(|i| {
            // One step, so that a mark is taken or stays. Release pairs with the fence in
            // `Unmarkings::any`: who finds it taken finds that the group is ending.
            let word = self.words[i].swap(0, Ordering::Release);
            (if i < INVERTED { !word } else { word }) & in_use.0[i]
        }))
    }

    /// Marks each of `bits`.
    pub(crate) fn add(&self, bits: Bits) {
        fence(Ordering::SeqCst);
        for bit in bits.iter() {
            self.set(bit);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    const ALL: Bits = Bits([u64::MAX; WORDS]);

    #[test]
    fn a_fresh_group_is_marked_for_those_that_start_marked() {
        let marks = Marks::new();
        assert_eq!(marks.read(ALL), Marks::fresh(ALL));
        let (eager, lazy) = (Bit::new(3, true), Bit::new(3, false));
        assert!(marks.is_marked(eager));
        assert!(!marks.is_marked(lazy));
        assert!(marks.settle(eager, || true));
        assert!(!marks.is_marked(eager));
        marks.mark(eager);
        marks.mark(lazy);
        assert!(marks.is_marked(eager) && marks.is_marked(lazy));
        assert!(!marks.settle(lazy, || false));
        assert!(marks.is_marked(lazy));
    }

    #[test]
    fn taken_marks_are_what_was_marked_and_leave_a_fresh_group() {
        let (child, parent) = (Marks::new(), Marks::new());
        let (eager, lazy) = (Bit::new(0, true), Bit::new(127, false));
        let in_use = {
            let mut bits = Bits::NONE;
            bits.0[eager.word()] |= eager.mask();
            bits.0[lazy.word()] |= lazy.mask();
            bits
        };
        assert!(parent.settle(eager, || true));
        child.mark(lazy);
        let taken = child.take(in_use);
        assert_eq!(taken, in_use);
        parent.add(taken);
        assert!(parent.is_marked(eager) && parent.is_marked(lazy));
        assert_eq!(child.read(in_use), Marks::fresh(in_use));
    }

    #[test]
    fn bits_are_listed_in_order_and_wrap() {
        let mut bits = Bits::NONE;
        for bit in [0, 5, 63, 64, 200, 255] {
            bits.0[Bit(bit).word()] |= Bit(bit).mask();
        }
        let listed: Vec<u32> = bits.iter().map(|bit| bit.0).collect();
        assert_eq!(listed, [0, 5, 63, 64, 200, 255]);
        let around = |first| bits.iter_from(Bit(first)).map(|bit| bit.0).collect::<Vec<u32>>();
        assert_eq!(around(0), listed);
        assert_eq!(around(64), [64, 200, 255, 0, 5, 63]);
        assert_eq!(around(201), [255, 0, 5, 63, 64, 200]);
        assert_eq!(bits.len(), 6);
        assert_eq!(Bit::new(BITS_OF_A_KIND + 2, false), Bit::new(2, false));
    }
}
