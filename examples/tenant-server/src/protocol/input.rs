//! What the socket gave and nobody has taken yet.

use core::mem::MaybeUninit;

use super::MAX_LINE;
use crate::memory::{NoRoom, reserve, room};

/// Bytes that every connection has reserved for input, also when idle.
pub(crate) const INPUT_BASE: usize = 1 << 10;

/// A buffer that is consumed at its front and received into at its back.
#[derive(Debug)]
pub(crate) struct Input {
    // INVARIANT: `taken <= bytes.len()`.
    bytes: Vec<u8>,
    taken: usize,
}

impl Input {
    /// A buffer of its base size that begins with `unread`.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn holding(unread: &[u8]) -> Result<Self, NoRoom> {
        let mut bytes = room::with_capacity(unread.len().max(INPUT_BASE))?;
        bytes.extend_from_slice(unread);
        Ok(Self { bytes, taken: 0 })
    }

    /// What nobody has taken yet.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Takes `count` bytes.
    pub(crate) fn take(&mut self, count: usize) {
        self.taken = self.bytes.len().min(self.taken + count);
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
    }

    /// Throws everything away.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }

    /// Room at the back, to be received into; what was taken at the front is given up first.
    pub(crate) fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.spare_capacity_mut()
    }

    /// Counts `count` received bytes.
    ///
    /// # Safety
    ///
    /// - `count` is at most the length of [`Input::spare`].
    /// - The first `count` bytes of it have been initialised since.
    pub(crate) unsafe fn advance(&mut self, count: usize) {
        let len = self.bytes.len() + count;
        debug_assert!(len <= self.bytes.capacity(), "advanced past the end");
        // SAFETY: the caller vouches for `count` initialised bytes behind the ones that were there, within the capacity.
        unsafe { self.bytes.set_len(len) };
    }

    /// Bytes that it can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether no byte can be received before some are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.unread().len() == self.bytes.capacity()
    }

    /// Makes it larger, for a line that does not fit: to at most one byte more than the longest line.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn grow_for_line(&mut self) -> Result<(), NoRoom> {
        let wanted = (2 * self.bytes.capacity()).min(MAX_LINE + 1);
        let additional = wanted.saturating_sub(self.bytes.len());
        reserve(&mut self.bytes, additional)
    }

    /// Makes it `capacity` bytes if there is room for that; it is no loss if not.
    pub(crate) fn try_grow(&mut self, capacity: usize) {
        let additional = capacity.saturating_sub(self.bytes.len());
        // Only more speed is at stake: a buffer of the old size goes on.
        let _kept = reserve(&mut self.bytes, additional);
    }

    /// Gives back what is beyond the base size.
    pub(crate) fn rest(&mut self) {
        if self.bytes.capacity() <= INPUT_BASE || self.unread().len() > INPUT_BASE {
            return;
        }
        if let Ok(smaller) = Self::holding(self.unread()) {
            *self = smaller;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(input: &mut Input, bytes: &[u8]) {
        let spare = input.spare();
        let count = bytes.len().min(spare.len());
        spare[..count].write_copy_of_slice(&bytes[..count]);
        // SAFETY: `count` bytes of the spare room were written in the line above.
        unsafe { input.advance(count) };
    }

    #[test]
    fn what_is_received_is_read_in_order() {
        let mut input = Input::holding(b"abc").expect("room");
        receive(&mut input, b"def");
        input.take(4);
        assert_eq!(input.unread(), b"ef");
        receive(&mut input, b"g");
        assert_eq!(input.unread(), b"efg");
        input.take(3);
        assert!(input.unread().is_empty());
        assert_eq!(input.spare().len(), INPUT_BASE);
    }

    #[test]
    fn grows_for_a_line_and_comes_back() {
        let mut input = Input::holding(b"").expect("room");
        while input.capacity() <= MAX_LINE {
            receive(&mut input, &[b'x'; MAX_LINE]);
            assert!(input.is_full());
            input.grow_for_line().expect("room");
        }
        assert_eq!(input.capacity(), MAX_LINE + 1);
        input.clear();
        input.rest();
        assert_eq!(input.capacity(), INPUT_BASE);
    }
}
