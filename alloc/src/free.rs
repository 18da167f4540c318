//! Which objects of a span are in: a bit for each, out of band.
//!
//! The memory of a free object is not touched. It may be cold, or in another core's cache, and a list
//! through it is a wait for each object; nor need it be trusted, if the program may have written to it
//! after it gave it back. Objects go out in the order of their addresses; hardened, in a random one.
//!
//! # Invariants
//!
//! - The bit of an object is set exactly while it is in. Words below `first` are 0 (hardened it stays 0).
//! - The storage belongs to the span's record for ever: it fits its class.

use core::ops::Range;
use core::ptr;

use crate::class::Class;
use crate::features::HARDENED;
use crate::{hardened, vector};

const BITS: usize = u64::BITS as usize;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Objects that are looked at together: they fill at least one line.
const GROUP: usize = u8::BITS as usize;

/// The objects of a span that are in.
#[derive(Debug)]
pub(crate) struct Free {
    words: *mut u64,
    chance: u64,
    nr: u32,
    first: u32,
}

impl Free {
    pub(crate) const fn new() -> Self {
        Self { words: ptr::null_mut(), chance: 0, nr: 0, first: 0 }
    }

    /// All objects of a span of `class` are in. `false`: no memory.
    pub(crate) fn begin(&mut self, class: Class) -> bool {
        let nr = class.nr_objects();
        if self.words.is_null() {
            // Vectors are aligned to a cache line, and zeroed.
            self.words = vector::take_other(2 * nr.div_ceil(BITS)).cast();
            if self.words.is_null() {
                return false;
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most 2^13")]
            let nr = nr as u32;
            self.nr = nr;
        }
        if HARDENED {
            self.chance = hardened::seed(self.chance);
        }
        self.first = 0;
        let words = self.words();
        words.fill(u64::MAX);
        if let Some(last) = words.last_mut().filter(|_| !nr.is_multiple_of(BITS)) {
            *last = (1 << (nr % BITS)) - 1;
        }
        true
    }

    /// How many objects the span has.
    pub(crate) fn nr(&self) -> u32 {
        self.nr
    }

    fn words(&mut self) -> &mut [u64] {
        debug_assert!(!self.words.is_null(), "the span was begun");
        // SAFETY: the storage has that many words, is never unmapped, and is this value's alone.
        unsafe { core::slice::from_raw_parts_mut(self.words, (self.nr as usize).div_ceil(BITS)) }
    }

    /// Takes as many objects out as `out` has room for, of those that are in; answers how many. `at` says
    /// where an object is.
    ///
    /// They are for a magazine, which hands out its last word first: in the order of their addresses, but those
    /// that share a cache line with objects that are out already come after the others. Those are
    /// another thread's, it may be, which writes to them.
    pub(crate) fn take(
        &mut self,
        class: Class,
        out: &mut [*mut u8],
        at: impl Fn(usize) -> *mut u8,
    ) -> usize {
        let share = class.size() < LINE && !HARDENED;
        let (mut low, mut high) = (0, out.len());
        let (mut group, mut apart) = (usize::MAX, true);
        while low < high {
            let Some(index) = self.pop() else { break };
            if share && group != index / GROUP {
                group = index / GROUP;
                apart = self.is_alone_missing(index);
            }
            if apart {
                high -= 1;
                out[high] = at(index);
            } else {
                out[low] = at(index);
                low += 1;
            }
        }
        let taken = low + (out.len() - high);
        out.copy_within(high.., low);
        taken
    }

    /// Whether all but this one are in of the [`GROUP`] that it is of.
    fn is_alone_missing(&mut self, index: usize) -> bool {
        let group = self.words()[index / BITS].to_le_bytes()[index % BITS / GROUP];
        group | 1 << (index % GROUP) == u8::MAX
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<usize> {
        // Hardened, the search begins anywhere, and goes round.
        let start = if HARDENED {
            hardened::below(&mut self.chance, self.nr as usize)
        } else {
            self.first as usize * BITS
        };
        let (first, turn) = (start / BITS, start % BITS);
        let words = self.words();
        for step in 0..words.len() {
            let at =
                if first + step < words.len() { first + step } else { first + step - words.len() };
            if words[at] == 0 {
                continue;
            }
            // The lowest bit that is set from `turn` on, and from the lowest if there is none.
            #[expect(clippy::cast_possible_truncation, reason = "below 64")]
            let turned = words[at].rotate_right(turn as u32);
            let bit = (turned.trailing_zeros() as usize + turn) % BITS;
            words[at] &= !(1 << bit);
            self.first = if HARDENED { 0 } else { word_number(at) };
            return Some(at * BITS + bit);
        }
        None
    }

    /// Puts an object in, which is out.
    #[inline]
    pub(crate) fn put(&mut self, index: usize) {
        let word = &mut self.words()[index / BITS];
        debug_assert_eq!(*word >> (index % BITS) & 1, 0, "an object is given back once");
        *word |= 1 << (index % BITS);
        self.first = self.first.min(word_number(index / BITS));
    }

    /// The runs of objects that are in, one after another.
    pub(crate) fn runs(&mut self) -> impl Iterator<Item = Range<usize>> {
        let words: &[u64] = self.words();
        let mut at = 0;
        core::iter::from_fn(move || {
            let start = find(words, at, true)?;
            at = find(words, start, false).unwrap_or(words.len() * BITS);
            Some(start..at)
        })
    }
}

/// As [`Free`] keeps it.
#[expect(clippy::cast_possible_truncation, reason = "a span has at most 2^13 objects")]
#[inline(always)]
fn word_number(at: usize) -> u32 {
    at as u32
}

/// The first bit from `from` on that is as wanted.
fn find(words: &[u64], from: usize, wanted: bool) -> Option<usize> {
    let mut ahead = u64::MAX << (from % BITS);
    for (at, &word) in words.iter().enumerate().skip(from / BITS) {
        let word = if wanted { word } else { !word } & ahead;
        if word != 0 {
            return Some(at * BITS + word.trailing_zeros() as usize);
        }
        ahead = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use core::alloc::Layout;

    use super::*;

    fn take_all(free: &mut Free) -> Vec<usize> {
        let mut out = [ptr::null_mut(); 10_000];
        // Of objects that fill a line: in their order.
        let class = Class::of(Layout::new::<[u64; 8]>()).expect("a slab class");
        let taken = free.take(class, &mut out, ptr::without_provenance_mut);
        out[..taken].iter().rev().map(|object| object.addr()).collect()
    }

    #[test]
    fn each_object_comes_out_once_and_in_a_random_order_only_if_hardened() {
        for class in Class::all() {
            let mut free = Free::new();
            assert!(free.begin(class));
            let mut taken = take_all(&mut free);
            assert_eq!(taken.len(), class.nr_objects());
            assert_eq!(taken.is_sorted(), !HARDENED || taken.len() < 3);
            taken.sort_unstable();
            assert!(taken.into_iter().eq(0..class.nr_objects()));
            assert_eq!(take_all(&mut free), []);
        }
    }

    #[test]
    fn objects_of_a_line_that_is_in_part_out_go_out_last() {
        let class = Class::of(Layout::new::<u64>()).expect("a slab class");
        let mut free = Free::new();
        assert!(free.begin(class));
        let take = |free: &mut Free, n: usize| {
            let mut out = vec![ptr::null_mut::<u8>(); n];
            assert_eq!(free.take(class, &mut out, ptr::without_provenance_mut), n);
            out.into_iter().rev().map(|object| object.addr()).collect::<Vec<_>>()
        };
        let first = take(&mut free, 12);
        [3, 5].into_iter().for_each(|index| free.put(index));
        let second = take(&mut free, 10);
        if !HARDENED {
            assert!(first.into_iter().eq(0..12));
            // Of the line of 3 and 5, and of that of 12 to 15, some are out.
            assert_eq!(second, [16, 17, 18, 19, 15, 14, 13, 12, 5, 3]);
        }
    }

    #[test]
    fn runs_are_what_is_in() {
        let runs =
            |free: &mut Free| free.runs().map(|run| (run.start, run.end)).collect::<Vec<_>>();
        for class in Class::all() {
            let (mut free, nr) = (Free::new(), class.nr_objects());
            assert!(free.begin(class));
            assert_eq!(runs(&mut free), [(0, nr)]);
            take_all(&mut free);
            assert_eq!(runs(&mut free), []);
            [nr - 1, 1, 2].into_iter().for_each(|index| free.put(index));
            let found = if nr == 4 { vec![(1, 4)] } else { vec![(1, 3), (nr - 1, nr)] };
            assert_eq!(runs(&mut free), found, "{class:?}");
        }
    }

    #[test]
    fn what_comes_back_goes_out_again() {
        let class = Class::of(Layout::new::<[u64; 4]>()).expect("a slab class");
        let mut free = Free::new();
        assert!(free.begin(class));
        assert_eq!(take_all(&mut free).len(), class.nr_objects());
        for index in [900, 3, 64, 63] {
            free.put(index);
        }
        let mut again = take_all(&mut free);
        assert!(HARDENED || again.is_sorted());
        again.sort_unstable();
        assert_eq!(again, [3, 63, 64, 900]);
        // A second use of the record.
        assert!(free.begin(class));
        assert_eq!(take_all(&mut free).len(), class.nr_objects());
    }
}
