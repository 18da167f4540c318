//! A span: a run of chunks cut into objects of one class, and who pays for each of them.
//!
//! ```text
//!   span ── base ──► | object | object | object | …        memory of jemalloc
//!        └─ tags ──► |  tag   |  tag   |  tag   | …        out of band
//! ```
//!
//! # Invariants
//!
//! - A record serves one class for ever, so its vector fits whatever it serves next.
//! - `tags` leads to the zeros that all spans share until the span first serves an accounted
//!   object, then to a vector of its own, never back. The shared zeros are never written.
//! - The tag of an object that is in the span, and not out, is 0. While it is out, its tag is
//!   written by whoever has it.
//! - `base` is 0 while the record serves nothing.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr;

use memcg_accounting::Tag;
use memcg_accounting::sync::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use memcg_accounting::table::{NONE, Record};

use crate::class::{Class, MAX_OBJECTS};
use crate::features::{CHECKS, LEDGER};
use crate::free::Free;
use crate::links::Link;
use crate::pages::Pages;
use crate::vector;

/// What `tags` of a span without accounted objects leads to.
static ZEROS: [AtomicU32; MAX_OBJECTS] = [const { AtomicU32::new(0) }; MAX_OBJECTS];

/// A span's record: what lookups of any address read, then the central list's. The fast path reads the
/// page map's copy of it.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Span {
    base: AtomicUsize,
    tags: AtomicPtr<AtomicU32>,
    class: AtomicU32,
    next_free: AtomicU32,
    /// See [`crate::ledger`]; null where none is kept.
    ledger: AtomicPtr<AtomicU32>,
    /// Guarded by the lock of the class's central list.
    pub(crate) central: UnsafeCell<Listed>,
}

// SAFETY: the words are atomics; `central` is reached only with the lock that guards it.
unsafe impl Sync for Span {}

const _: () =
    assert!(size_of::<Span>() == 128, "two lines: one for lookups, one and a half for the list");

/// What the central list keeps in a span.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Which objects are in.
    pub(crate) free: Free,
    /// How many.
    pub(crate) nr_free: u32,
    /// Where it is.
    pub(crate) place: Place,
    /// How many objects are in of spans there: from the first on, and fewer than the second.
    holds: [u16; 2],
    pub(crate) by_place: Link,
    /// When the last object came back, in milliseconds.
    pub(crate) emptied_ms: u32,
    /// Whether it is on the list of those that cool.
    pub(crate) is_cooling: bool,
    pub(crate) by_age: Link,
    /// When it was put there, in ticks, and when an object last came or went.
    pub(crate) queued: u32,
    pub(crate) used: u32,
    /// What the system has of it: pages of objects that are in.
    pub(crate) returned: Pages,
}

/// Where a span is, by how much of it is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At least half of the objects are out.
    Mostly,
    /// At least an eighth.
    Partly,
    /// Fewer, but some.
    Sparse,
    /// None.
    Empty,
    /// On no list: all are out, or it serves nothing.
    Off,
    /// On no list, while pages of it go back.
    Lent,
}

impl Place {
    /// Places that have a list.
    pub(crate) const LISTED: usize = 4;

    /// That of a span that has `nr_free` of its `nr` objects in.
    pub(crate) fn of(nr_free: u32, nr: u32) -> Self {
        let places = [Self::Off, Self::Mostly, Self::Partly, Self::Sparse];
        let fits = |place: &Self| place.holds(nr).contains(&nr_free);
        places.into_iter().find(fits).unwrap_or(Self::Empty)
    }

    /// How many of `nr` objects a span there has in.
    pub(crate) fn holds(self, nr: u32) -> Range<u32> {
        let (half, seven_eighths) = (nr / 2 + 1, nr - nr.div_ceil(8) + 1);
        match self {
            Self::Off => 0..1,
            Self::Mostly => 1..half,
            Self::Partly => half..seven_eighths,
            Self::Sparse => seven_eighths..nr,
            Self::Empty => nr..u32::MAX,
            Self::Lent => 0..u32::MAX,
        }
    }
}

impl Listed {
    /// Notes where it is; answers where it was.
    pub(crate) fn be_at(&mut self, place: Place) -> Place {
        let holds = place.holds(self.free.nr());
        self.holds = [holds.start, holds.end].map(|nr| u16::try_from(nr).unwrap_or(u16::MAX));
        core::mem::replace(&mut self.place, place)
    }

    /// Whether it belongs elsewhere, by how much is in.
    #[inline(always)]
    pub(crate) fn is_misplaced(&self) -> bool {
        let [from, to] = self.holds.map(u32::from);
        self.nr_free < from || self.nr_free >= to
    }
}

impl Record for Span {
    fn new() -> Self {
        Self {
            base: AtomicUsize::new(0),
            tags: AtomicPtr::new(ptr::from_ref(&ZEROS).cast_mut().cast()),
            class: AtomicU32::new(0),
            next_free: AtomicU32::new(NONE),
            ledger: AtomicPtr::new(ptr::null_mut()),
            central: UnsafeCell::new(Listed {
                free: Free::new(),
                nr_free: 0,
                place: Place::Off,
                holds: [0, 1],
                by_place: Link::new(),
                emptied_ms: 0,
                is_cooling: false,
                by_age: Link::new(),
                queued: 0,
                used: 0,
                returned: Pages::NONE,
            }),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        !self.is_in_use()
    }
}

/// Words of the [ledger](crate::ledger) of a span of `class`.
fn ledger_len(class: Class) -> usize {
    class.nr_objects() * if CHECKS { 2 } else { 1 }
}

impl Span {
    /// Every object of the span, which serves `class` and is nobody's yet, was never out. `false`: no
    /// memory.
    pub(crate) fn begin_ledger(&self, class: Class) -> bool {
        if !LEDGER {
            return true;
        }
        let mut words = self.ledger.load(Ordering::Relaxed);
        if words.is_null() {
            words = vector::take_other(ledger_len(class));
            self.ledger.store(words, Ordering::Relaxed);
        }
        if words.is_null() {
            return false;
        }
        for index in 0..ledger_len(class) {
            self.ledger_entry(index).store(0, Ordering::Relaxed);
        }
        true
    }

    /// A word of the ledger, of which there are [`ledger_len`].
    #[inline(always)]
    pub(crate) fn ledger_entry(&self, index: usize) -> &'static AtomicU32 {
        // Relaxed: made before the span's first object was handed out.
        let words = self.ledger.load(Ordering::Relaxed);
        // SAFETY: there is a word for each object, and callers stay below the length.
        let word = unsafe { words.add(index) };
        // SAFETY: a ledger is never unmapped.
        unsafe { &*word }
    }

    /// Makes the record serve the memory at `base`. Only the central list calls it, before any
    /// object is out.
    pub(crate) fn begin(&self, class: Class, base: usize) {
        self.class.store(u32::try_from(class.index()).unwrap_or(0), Ordering::Relaxed);
        if self.has_vector() {
            vector::wake(self.tags(), class.nr_objects());
        }
        // Release pairs with the Acquire in `tag_at`.
        self.base.store(base, Ordering::Release);
    }

    /// Makes the record serve nothing, after all objects came back.
    pub(crate) fn end(&self) {
        self.base.store(0, Ordering::Release);
        if self.has_vector() {
            vector::rest(self.tags(), self.class().nr_objects());
        }
    }

    /// Whether it serves something, of which the caller sees the class. Acquire pairs with the Release in `begin`.
    pub(crate) fn is_in_use(&self) -> bool {
        self.base.load(Ordering::Acquire) != 0
    }

    #[inline(always)]
    pub(crate) fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    pub(crate) fn class(&self) -> Class {
        Class::from_index(self.class.load(Ordering::Relaxed))
    }

    /// Whether it serves `class`.
    #[inline(always)]
    pub(crate) fn serves(&self, class: Class) -> bool {
        self.class.load(Ordering::Relaxed) as usize == class.index()
    }

    /// The words of its tags. Acquire pairs with the Release in `make_vector`.
    pub(crate) fn tags(&self) -> *mut AtomicU32 {
        self.tags.load(Ordering::Acquire)
    }

    /// The same, if they are its own.
    pub(crate) fn own_tags(&self) -> Option<*mut AtomicU32> {
        let tags = self.tags();
        (!ptr::eq(tags, ZEROS.as_ptr())).then_some(tags)
    }

    /// Whether it has tags of its own.
    pub(crate) fn has_vector(&self) -> bool {
        self.own_tags().is_some()
    }

    /// Whether `slot` is one of the zeros that spans share, which must not be written.
    #[inline(always)]
    pub(crate) fn is_shared(slot: &AtomicU32) -> bool {
        ptr::from_ref(slot).addr().wrapping_sub(ZEROS.as_ptr().addr()) < size_of_val(&ZEROS)
    }

    /// Gives the span tags of its own, if it has none. `false`: no memory for a vector.
    pub(crate) fn make_vector(&self) -> bool {
        if self.has_vector() {
            return true;
        }
        let tags = vector::take(self.class().nr_objects());
        if tags.is_null() {
            return false;
        }
        let zeros = ZEROS.as_ptr().cast_mut();
        // Release: who sees the vector sees its zeros. If another thread was first, this
        // vector is lost, once for each such race and span record.
        let _ = self.tags.compare_exchange(zeros, tags, Ordering::AcqRel, Ordering::Acquire);
        true
    }

    /// Who pays for the object that `address` lies in, for any address at all.
    pub(crate) fn tag_at(&self, address: usize) -> Tag {
        let base = self.base.load(Ordering::Acquire);
        let class = self.class();
        let offset = address.wrapping_sub(base);
        if base == 0 || offset >= class.used_bytes() {
            return Tag::NOBODY;
        }
        let tags = self.tags();
        // SAFETY: `offset` lies in an object, and both kinds of vector have a word for each
        // object of the record's class.
        let slot = unsafe { tags.add(class.object_at(offset)) };
        // SAFETY: neither kind is ever unmapped.
        let slot = unsafe { &*slot };
        Tag::from_bits(slot.load(Ordering::Relaxed))
    }

    /// Calls `f` with the tag of each object that has one.
    pub(crate) fn for_each_tag(&self, mut f: impl FnMut(Tag)) {
        if self.base() == 0 || !self.has_vector() {
            return;
        }
        let tags = self.tags();
        for index in 0..self.class().nr_objects() {
            // SAFETY: a vector has a word for each object of the class.
            let slot = unsafe { tags.add(index) };
            // SAFETY: it is never unmapped.
            let slot = unsafe { &*slot };
            let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
            if !tag.is_nobody() {
                f(tag);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_objects_has_one_place() {
        for class in Class::all() {
            let nr = u32::try_from(class.nr_objects()).expect("few");
            assert!(u16::try_from(nr).is_ok_and(|nr| nr < u16::MAX));
            for nr_free in 0..=nr {
                let out = nr - nr_free;
                let place = match () {
                    () if nr_free == 0 => Place::Off,
                    () if out * 2 >= nr => Place::Mostly,
                    () if out * 8 >= nr => Place::Partly,
                    () if out > 0 => Place::Sparse,
                    () => Place::Empty,
                };
                assert_eq!(Place::of(nr_free, nr), place, "{nr_free} of {nr}");
                assert!(place.holds(nr).contains(&nr_free));
            }
        }
    }
}
