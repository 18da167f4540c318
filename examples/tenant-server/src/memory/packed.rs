//! Counted byte strings in one allocation each.
//!
//! ```text
//!   Packed<H> ──► ┌──────────┬─────────┬───────┬──────────────────┐
//!                 │ refs u32 │ len u32 │ H     │ bytes ...        │
//!                 └──────────┴─────────┴───────┴──────────────────┘
//! ```
//!
//! `Arc<[u8]>` would do, but on stable Rust it can only be made by an allocation that aborts when it is refused, and from
//! bytes that are already somewhere else. A [`Filling`] is made fallibly and filled in place, so that a large value is
//! read from the socket straight into the memory in which the cache keeps it.
//!
//! The count saturates as the kernel's `refcount_t` does: at [`SATURATED`] it sticks, and that string is never freed.
//! To get there takes two billion references at once; a leak is then the harmless end of it.

use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering, fence};
use std::alloc::Layout;

use super::NoRoom;

/// The count at which a string stops being counted and lives for ever.
const SATURATED: u32 = 1 << 31;

/// What stands before the bytes.
#[repr(C)]
struct Head<H> {
    refs: AtomicU32,
    len: u32,
    extra: H,
}

/// A counted, immutable byte string with a header `H`; cloning it copies nothing and allocates nothing.
///
/// # Invariants
///
/// - `head` came from the global allocator with [`layout`]`::<H>(len)`, and is freed by whoever takes `refs` from 1 to 0.
/// - The `Head` is initialised, and so are the `len` bytes behind it, from the moment a `Packed` leaves this module.
/// - `H` has no drop glue (asserted at compile time in [`Filling::new`]).
pub(crate) struct Packed<H> {
    head: NonNull<Head<H>>,
}

/// A [`Packed`] that is being written: nobody else has it.
pub(crate) struct Filling<H> {
    // INVARIANT: `refs` is 1, and the first `filled` bytes are initialised; the others may not be, and are never read.
    packed: Packed<H>,
    filled: usize,
}

/// The layout of a string of `len` bytes and where its bytes begin.
fn layout<H>(len: usize) -> Option<(Layout, usize)> {
    let bytes = Layout::array::<u8>(len).ok()?;
    Layout::new::<Head<H>>().extend(bytes).ok()
}

impl<H> Packed<H> {
    /// Bytes that a string of `len` bytes asks the allocator for.
    pub(crate) fn footprint(len: usize) -> usize {
        layout::<H>(len).map_or(usize::MAX, |(layout, _)| layout.size())
    }

    /// Copies `bytes`.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn copy_of(bytes: &[u8]) -> Result<Self, NoRoom>
    where
        H: Default,
    {
        let mut filling = Filling::new(bytes.len(), H::default())?;
        filling.push(bytes);
        Ok(filling.finish())
    }

    fn head(&self) -> &Head<H> {
        // SAFETY: by the type's invariant the head is initialised, and `self` holds a reference, so it is not freed.
        unsafe { self.head.as_ref() }
    }

    fn data(&self) -> NonNull<u8> {
        let offset = size_of::<Head<H>>();
        // SAFETY: the allocation begins with a `Head`, so its end is within or one past the allocation.
        unsafe { self.head.cast::<u8>().add(offset) }
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes follow the head, initialised and never written again while `self` is shared.
        unsafe { core::slice::from_raw_parts(self.data().as_ptr(), self.len()) }
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.head().len as usize
    }

    /// The header.
    pub(crate) fn extra(&self) -> &H {
        &self.head().extra
    }
}

impl<H> Clone for Packed<H> {
    fn clone(&self) -> Self {
        // Relaxed: the caller has a reference already, so the string cannot go away; nothing is published by counting.
        let _sticks = self.head().refs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |refs| {
            (refs < SATURATED).then_some(refs + 1)
        });
        Self { head: self.head }
    }
}

impl<H> Drop for Packed<H> {
    fn drop(&mut self) {
        // Release: what this holder did with the string happens before whoever frees it; the partner is the fence below.
        let before = self.head().refs.fetch_update(Ordering::Release, Ordering::Relaxed, |refs| {
            (refs < SATURATED).then_some(refs - 1)
        });
        if before != Ok(1) {
            return;
        }
        fence(Ordering::Acquire);
        let Some((layout, _)) = layout::<H>(self.len()) else {
            return;
        };
        // SAFETY: this was the last reference (1 to 0), the memory came from the global allocator with this very layout,
        // and `H` has no drop glue that would have to run first.
        unsafe { std::alloc::dealloc(self.head.as_ptr().cast(), layout) }
    }
}

// SAFETY: a `Packed` is a counted reference to immutable bytes and a shared `H`: as with `Arc`, sending it to another
// thread needs `H` to be usable there by reference (`Sync`) and to be freed there (`Send`).
unsafe impl<H: Send + Sync> Send for Packed<H> {}
// SAFETY: as for `Send`; `&Packed` gives no more than `&H`, `&[u8]` and clones.
unsafe impl<H: Send + Sync> Sync for Packed<H> {}

// SAFETY: dropping a `Packed` counts down and, for the last one, frees a block; `H` has no drop glue (asserted in
// `Filling::new`), so no other code runs. It is what `Arc<[u8]>` does.
unsafe impl<H> memcg::PlainDrop for Packed<H> {}

impl<H> fmt::Debug for Packed<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} bytes)", self.len())
    }
}

impl<H> Filling<H> {
    /// Allocates a string of `len` bytes, to be filled.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none, or where `len` does not fit 32 bits.
    pub(crate) fn new(len: usize, extra: H) -> Result<Self, NoRoom> {
        const { assert!(!core::mem::needs_drop::<H>(), "the header is never dropped") };
        let count = u32::try_from(len).map_err(|_| NoRoom)?;
        let (layout, _) = layout::<H>(len).ok_or(NoRoom)?;
        let block = memcg::fallible(|| {
            // SAFETY: the layout holds at least a `Head`, so its size is not zero.
            unsafe { std::alloc::alloc(layout) }
        });
        let head = NonNull::new(block.cast::<Head<H>>()).ok_or(NoRoom)?;
        // SAFETY: `head` is a fresh block of at least `Head`'s size and alignment that nobody else knows.
        unsafe { head.write(Head { refs: AtomicU32::new(1), len: count, extra }) };
        Ok(Self { packed: Packed { head }, filled: 0 })
    }

    /// Bytes still to come.
    pub(crate) fn missing(&self) -> usize {
        self.packed.len() - self.filled
    }

    /// Takes as many of `bytes` as are missing and answers how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.missing());
        let spare = &mut self.spare()[..count];
        spare.write_copy_of_slice(&bytes[..count]);
        self.filled += count;
        count
    }

    /// The part that is still missing, to be written from outside, for instance by `recv`.
    pub(crate) fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let missing = self.missing();
        // SAFETY: `filled <= len`, so this stays within the allocation (one past its end when nothing is missing).
        let start = unsafe { self.packed.data().add(self.filled) };
        // SAFETY: `missing` bytes from there are the string's own, nobody else has it, and `MaybeUninit` claims nothing
        // about what is in them.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr().cast(), missing) }
    }

    /// Counts `count` bytes at the front of [`Filling::spare`] as written.
    ///
    /// # Safety
    ///
    /// - `count` is at most [`Filling::missing`].
    /// - The first `count` bytes of `spare()` have been initialised.
    pub(crate) unsafe fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.missing(), "advanced past the end");
        self.filled += count;
    }

    /// The string, now shared and immutable.
    ///
    /// # Panics
    ///
    /// When bytes are missing: they would be uninitialised.
    pub(crate) fn finish(self) -> Packed<H> {
        assert_eq!(self.missing(), 0, "a string was finished before it was filled");
        self.packed
    }
}

impl<H> fmt::Debug for Filling<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filling({} of {} bytes)", self.filled, self.packed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_filled_in_parts_and_read_back() {
        let mut filling: Filling<u64> = Filling::new(10, 7).expect("room");
        assert_eq!(filling.push(b"hello"), 5);
        assert_eq!(filling.missing(), 5);
        filling.spare()[..2].write_copy_of_slice(b", ");
        // SAFETY: two of the five missing bytes were written in the line above.
        unsafe { filling.advance(2) };
        assert_eq!(filling.push(b"world"), 3, "takes no more than is missing");
        let packed = filling.finish();
        assert_eq!(packed.as_slice(), b"hello, wor");
        assert_eq!(*packed.extra(), 7);
    }

    #[test]
    fn clones_share_and_the_last_one_frees() {
        let first: Packed<()> = Packed::copy_of(b"shared").expect("room");
        let second = first.clone();
        assert_eq!(first.as_slice().as_ptr(), second.as_slice().as_ptr());
        drop(first);
        assert_eq!(second.as_slice(), b"shared");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mine = second.clone();
                std::thread::spawn(move || (0..1000).map(|_| mine.clone().len()).sum::<usize>())
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), 6000);
        }
        assert_eq!(second.head().refs.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_empty_string_and_an_unfinished_one_are_freed() {
        let empty: Packed<()> = Packed::copy_of(b"").expect("room");
        assert_eq!(empty.as_slice(), b"");
        let unfinished: Filling<()> = Filling::new(1 << 20, ()).expect("room");
        assert_eq!(unfinished.missing(), 1 << 20);
    }

    #[test]
    fn the_count_sticks_when_it_saturates() {
        let packed: Packed<()> = Packed::copy_of(b"x").expect("room");
        packed.head().refs.store(SATURATED - 1, Ordering::Relaxed);
        let last_counted = packed.clone();
        let not_counted = packed.clone();
        drop(last_counted);
        drop(not_counted);
        assert_eq!(packed.head().refs.load(Ordering::Relaxed), SATURATED);
        packed.head().refs.store(1, Ordering::Relaxed);
    }

    #[test]
    fn a_length_beyond_32_bits_is_refused() {
        assert!(Filling::<()>::new(u32::MAX as usize + 1, ()).is_err());
    }
}
