//! The free objects of a span out of band: a stack of their numbers.
//!
//! By default a span links its free objects through their first words (see `central.rs`).
//! Where freed memory must stay as it was left, or must not be trusted, the numbers are kept
//! here instead, in memory that no object touches. Hardened, each comes to a random place.
//!
//! # Invariants
//!
//! - `places[.. len]` are the numbers of the objects that are in, each once.
//! - The storage belongs to the span's record for ever: it fits its class.

use core::ptr;

use crate::class::Class;
use crate::edge::{HARDENED, OUT_OF_BAND};
use crate::{hardened, vector};

/// A span's stack. Empty and unused where free lists are in the spans.
#[derive(Debug)]
pub(crate) struct Order {
    places: *mut u16,
    len: usize,
    chance: u64,
}

impl Order {
    pub(crate) const fn new() -> Self {
        Self { places: ptr::null_mut(), len: 0, chance: 0 }
    }

    /// All objects of a span of `class` are in. `false`: no memory.
    pub(crate) fn begin(&mut self, class: Class) -> bool {
        if !OUT_OF_BAND {
            return true;
        }
        let nr = class.nr_objects();
        if self.places.is_null() {
            self.places = vector::take_other(nr.div_ceil(2)).cast();
            if self.places.is_null() {
                return false;
            }
        }
        if HARDENED {
            self.chance = hardened::seed(self.chance);
        }
        self.len = 0;
        // The last one is on top: without chance they go out from the first on.
        for index in (0..nr).rev() {
            self.push(index);
        }
        true
    }

    fn place(&mut self, at: usize) -> &mut u16 {
        debug_assert!(at <= self.len, "a place of the stack, or the one above it");
        // SAFETY: the storage has a place for each object of the span, and no more are in.
        let place = unsafe { self.places.add(at) };
        // SAFETY: the storage is zeroed at first, never unmapped, and this value's alone.
        unsafe { &mut *place }
    }

    /// Takes an object out. `None`: the span's own list is asked.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<usize> {
        if !OUT_OF_BAND || self.len == 0 {
            return None;
        }
        self.len -= 1;
        let top = self.len;
        Some(usize::from(*self.place(top)))
    }

    /// Puts an object in, which is out. `false`: the span's own list takes it.
    #[inline]
    pub(crate) fn push(&mut self, index: usize) -> bool {
        if !OUT_OF_BAND {
            return false;
        }
        let top = self.len;
        let mut index = u16::try_from(index).unwrap_or(0);
        if HARDENED {
            let at = hardened::below(&mut self.chance, top + 1);
            if at < top {
                core::mem::swap(self.place(at), &mut index);
            }
        }
        *self.place(top) = index;
        self.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use core::alloc::Layout;

    use super::*;

    #[test]
    fn each_object_comes_out_once_and_in_a_random_order_only_if_hardened() {
        let class = Class::of(Layout::new::<[u64; 4]>()).expect("a slab class");
        let mut order = Order::new();
        assert!(order.begin(class));
        let mut taken: Vec<usize> = core::iter::from_fn(|| order.pop()).collect();
        if !OUT_OF_BAND {
            assert!(taken.is_empty() && !order.push(0), "the span's own list has them");
            return;
        }
        assert_eq!(taken.is_sorted(), !HARDENED);
        for &index in &taken {
            assert!(order.push(index));
        }
        let again: Vec<usize> = core::iter::from_fn(|| order.pop()).collect();
        assert_eq!(again.iter().rev().eq(&taken), !HARDENED, "last in, first out");
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..class.nr_objects()));
    }
}
