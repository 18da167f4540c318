//! A type-stable table: records that are reused as what they are and never move or go away.
//!
//! ```text
//!   segments ─► [ 64 records ]
//!               [ 128 records ]          record i lives in segment ⌊log2(i/64 + 1)⌋
//!               [ 256 records ] …
//!   free     ─► record ─► record ─► …    LIFO, threaded through the records
//! ```
//!
//! # Invariants
//!
//! - Records `0 .. len` are initialised, and `len` never falls.
//! - A record on the free list is on it once; a taken record is not on it.
//! - A record that is given back while something is in it, or leads to it, is kept for good: whoever
//!   takes a record never finds what another left there.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::Source;
use crate::sync::{AtomicPtr, AtomicU32, AtomicUsize, Lock, Ordering, lock};

/// What a [`Table`] holds.
pub trait Record: Sync {
    /// A fresh record, as it is before its first use.
    fn new() -> Self;
    /// The word that links the record into the free list while it is free.
    fn next_free(&self) -> &AtomicU32;
    /// Whether nothing is in the record, and nothing that it counts leads to it: only then may it
    /// be somebody else's. Called by whoever gives it back; takes no lock that is held then.
    fn is_empty(&self) -> bool;
}

/// Records in the first segment, as a power of two.
const FIRST_SHIFT: u32 = if cfg!(loom) { 3 } else { 6 };
const FIRST: u32 = 1 << FIRST_SHIFT;
/// Segments: together they hold 2^31 - 64 records.
const SEGMENTS: usize = if cfg!(loom) { 2 } else { 25 };
/// No record: the end of a free list, and any link that leads nowhere.
pub const NONE: u32 = u32::MAX;

/// A growing array of `T` whose elements never move; see the [module](self).
pub struct Table<T> {
    segments: [AtomicPtr<T>; SEGMENTS],
    len: AtomicU32,
    mapped: AtomicUsize,
    kept: AtomicU32,
    free: Lock<u32>,
    owns: PhantomData<T>,
}

impl<T> core::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T: Record> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Segment and offset of record `index`.
const fn locate(index: u32) -> (usize, usize) {
    let shifted = index + FIRST;
    let segment = shifted.ilog2() - FIRST_SHIFT;
    (segment as usize, (shifted - (FIRST << segment)) as usize)
}

impl<T> Table<T> {
    crate::const_new! {
        /// An empty table: it maps nothing until the first [`take`](Table::take).
        pub fn new() -> Self {
            #[cfg(not(loom))]
            let segments = [const { AtomicPtr::new(ptr::null_mut()) }; SEGMENTS];
            #[cfg(loom)]
            let segments = core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
            Self {
                segments,
                len: AtomicU32::new(0),
                mapped: AtomicUsize::new(0),
                kept: AtomicU32::new(0),
                free: Lock::new(NONE),
                owns: PhantomData,
            }
        }
    }

    /// How many records were ever taken at once: the first index that is not valid.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether no record was ever taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of address space that the table has mapped.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped.load(Ordering::Relaxed)
    }

    /// Records that were given back and were not empty. 0, or there is a fault.
    pub fn nr_kept(&self) -> u32 {
        self.kept.load(Ordering::Relaxed)
    }
}

impl<T: Record> Table<T> {
    /// The record `index`, taken or free; `None` if it never existed.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        if index >= self.len() {
            return None;
        }
        let (segment, offset) = locate(index);
        let base = self.segments[segment].load(Ordering::Acquire);
        // SAFETY: `index < len`, so its segment is published and long enough.
        let record = unsafe { base.add(offset) };
        // SAFETY: records below `len` are initialised (type invariant) and never unmapped while
        // the table lives, which `&self` borrows; they are only ever shared.
        Some(unsafe { &*record })
    }

    /// Takes a record: a freed one as it was left, else a fresh one. `None`: the source has no
    /// memory, or the table is full.
    pub fn take(&self, source: &Source) -> Option<u32> {
        let mut free = lock(&self.free);
        let index = *free;
        if index != NONE {
            *free = self.get(index)?.next_free().load(Ordering::Relaxed);
            return Some(index);
        }
        // Relaxed: `len` only changes under the lock that is held.
        let index = self.len.load(Ordering::Relaxed);
        let (segment, offset) = locate(index);
        let base = self.segment(segment, source)?;
        // SAFETY: `offset` lies in the segment that `locate` named, which was mapped whole.
        let record = unsafe { base.as_ptr().add(offset) };
        // SAFETY: the record is at or above `len`, so nobody else refers to it; it is mapped
        // and aligned (see `segment`).
        unsafe { record.write(T::new()) };
        // INVARIANT: the record was initialised before `len` covers it. Release pairs with the
        // Acquire in `len()`.
        self.len.store(index + 1, Ordering::Release);
        Some(index)
    }

    /// Gives record `index` back for reuse. The caller took it, and gives it back once. One that is
    /// not [empty](Record::is_empty) is nobody's from then on, in every build.
    pub fn put(&self, index: u32) {
        let Some(record) = self.get(index) else { return };
        if !record.is_empty() {
            self.kept.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut free = lock(&self.free);
        record.next_free().store(*free, Ordering::Relaxed);
        *free = index;
    }

    /// Shows `visit` each free record, with the free list locked: at most as many as there are
    /// records and one more, so that a record that was given back twice shows.
    pub fn each_free(&self, mut visit: impl FnMut(u32)) {
        let free = lock(&self.free);
        let mut index = *free;
        for _ in 0..=self.len() {
            let Some(record) = self.get(index) else { return };
            visit(index);
            index = record.next_free().load(Ordering::Relaxed);
        }
    }

    /// The base of `segment`, mapped at its first use. Called with the free list locked.
    fn segment(&self, segment: usize, source: &Source) -> Option<NonNull<T>> {
        const { assert!(align_of::<T>() <= 4096, "pages align every record") };
        let slot = self.segments.get(segment)?;
        if let Some(base) = NonNull::new(slot.load(Ordering::Acquire)) {
            return Some(base);
        }
        let size = (FIRST as usize) << segment;
        let bytes = size.checked_mul(size_of::<T>())?;
        let base = NonNull::new((source.map)(bytes).cast::<T>())?;
        self.mapped.fetch_add(bytes, Ordering::Relaxed);
        slot.store(base.as_ptr(), Ordering::Release);
        Some(base)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Word(AtomicU32, AtomicU32);
    impl Record for Word {
        fn new() -> Self {
            Self(AtomicU32::new(0), AtomicU32::new(0))
        }
        fn next_free(&self) -> &AtomicU32 {
            &self.0
        }
        fn is_empty(&self) -> bool {
            self.1.load(Ordering::Relaxed) == 0
        }
    }

    #[test]
    fn indices_fill_segments_without_gaps() {
        let mut expected = (0usize, 0usize);
        for index in 0..100_000 {
            assert_eq!(locate(index), expected, "record {index}");
            expected.1 += 1;
            if expected.1 == (FIRST as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }

    #[test]
    fn a_freed_record_is_the_next_one_taken_and_addresses_stay() {
        let table = Table::<Word>::new();
        let taken: [u32; 300] =
            core::array::from_fn(|_| table.take(&crate::SYSTEM).expect("memory"));
        let first = core::ptr::from_ref(table.get(0).expect("taken"));
        table.put(taken[17]);
        table.put(taken[4]);
        assert_eq!(table.take(&crate::SYSTEM), Some(4));
        assert_eq!(table.take(&crate::SYSTEM), Some(17));
        assert_eq!(table.take(&crate::SYSTEM), Some(300));
        assert_eq!(core::ptr::from_ref(table.get(0).expect("taken")), first);
        assert!(table.get(301).is_none());
    }

    #[test]
    fn a_record_with_something_in_it_is_never_taken_again() {
        let table = Table::<Word>::new();
        let index = table.take(&crate::SYSTEM).expect("memory");
        table.get(index).expect("taken").1.store(1, Ordering::Relaxed);
        table.put(index);
        assert_eq!(table.take(&crate::SYSTEM), Some(index + 1));
        assert_eq!(table.nr_kept(), 1);
    }

    #[test]
    fn each_free_shows_what_is_free_and_a_record_given_back_twice() {
        let table = Table::<Word>::new();
        for _ in 0..4 {
            table.take(&crate::SYSTEM).expect("memory");
        }
        let shown = || {
            let mut seen = [0; 4];
            table.each_free(|index| seen[index as usize] += 1);
            seen
        };
        assert_eq!(shown(), [0; 4]);
        table.put(2);
        table.put(0);
        assert_eq!(shown(), [1, 0, 1, 0]);
        table.put(0);
        assert!(shown()[0] > 1, "{:?}", shown());
    }

    #[test]
    fn no_memory_is_none_and_leaves_the_table_as_it_was() {
        let none = Source { map: |_| ptr::null_mut(), unmap: |_, _| () };
        let table = Table::<Word>::new();
        assert_eq!(table.take(&none), None);
        assert_eq!(table.take(&crate::SYSTEM), Some(0));
    }
}
