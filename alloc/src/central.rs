//! The central list of a class: its spans, by how much of them is out.
//!
//! ```text
//!   mostly  ─► span ─► span ─► …       at least half of the objects out: taken from first
//!   partly  ─► span ─► span ─► …       at least an eighth
//!   sparse  ─► span ─► span ─► …       fewer
//!   empty   ─► span ─► span ─► …       all in, newest first: released after a short decay
//!   idle    ─► span ─► span ─► …       records that serve nothing now
//!   cooling ─► span ─► span ─► …       beside that: what may have free pages to give back
//!   (full spans are on no list of the first four, nor are those that are lent)
//! ```
//!
//! Fuller spans are taken from first, so that the others become empty.
//!
//! # Invariants
//!
//! - A span is on the list that [`Place::of`] names, unless it is [lent](crate::cooling), and on `idle` when
//!   `base` is 0.
//! - Objects that are in have no tag.
//! - What the system has of a span are pages of objects that are in.
//!
//! Lock order: a record's lock, then that of [cooling](crate::cooling), then a central list's, then the
//! vectors', then jemalloc's.

use core::ptr;

use memcg_accounting::sync::{Guard, Lock, lock};
use memcg_accounting::table::Table;
use memcg_accounting::{SYSTEM, now_ms};

use crate::class::{self, CHUNK, Class};
use crate::cooling::{self, Cooling};
use crate::fork::{self, AtFork};
use crate::links::{ByPlace, List};
use crate::maps;
use crate::pages::Pages;
use crate::span::{Listed, Place, Span};
use crate::{asan, jemalloc};

/// Empty spans go back after this long.
const DECAY_MS: u32 = 500;
/// Spans that go back under one lock.
const RELEASE_BATCH: usize = 8;

/// The spans of one class, alone on their cache lines.
#[repr(align(128))]
struct Central(Lock<Lists>);

pub(crate) struct Lists {
    by_place: [List<ByPlace>; Place::LISTED],
    /// What a record has made for itself fits its class: it serves that again.
    idle: List<ByPlace>,
    pub(crate) cooling: Cooling,
}

// SAFETY: the pointers lead to span records, which live for ever and are reached under the
// lock that holds this value.
unsafe impl Send for Lists {}

static CENTRALS: [Central; class::COUNT] = [const {
    Central(Lock::new(Lists {
        by_place: [const { List::new() }; Place::LISTED],
        idle: List::new(),
        cooling: Cooling::new(),
    }))
}; class::COUNT];

/// The records of all spans: one table, or each class would touch a page for its first. None is ever given back.
static SPANS: Table<Span> = Table::new();

pub(crate) fn lists(class: Class) -> Guard<'static, Lists> {
    lock(&CENTRALS[class.index()].0)
}

/// Fills `out` with untagged objects, as far as memory goes; answers how many there are.
pub(crate) fn take(class: Class, out: &mut [*mut u8]) -> usize {
    let mut lists = lists(class);
    let mut taken = 0;
    while taken < out.len() {
        let Some(span) = lists.first_with_objects(class) else { break };
        // SAFETY: the lock of the class is held.
        taken += unsafe { lists.take_from(span, class, &mut out[taken..]) };
    }
    taken
}

/// Takes objects back, whose tags were cleared.
///
/// # Safety
///
/// - Each is an object of `class` that is out, and nobody uses it any more.
/// - Its tag is 0.
pub(crate) unsafe fn give(class: Class, objects: &[*mut u8]) {
    let now = cooling::ticks();
    let mut lists = lists(class);
    for &object in objects {
        // SAFETY: by contract the object is ours and out.
        let span = unsafe { maps::span_of_object(object) };
        // SAFETY: the lock is held, and the object belongs to this span.
        unsafe { lists.put_back(span, class, object, now) };
    }
    lists.release_older_than(class, DECAY_MS, 2);
}

/// Releases every empty span that is older than the decay, or all of them. Answers whether any
/// is left.
pub(crate) fn release_empty(all: bool) -> bool {
    let mut left = false;
    let age = if all { 0 } else { DECAY_MS };
    for class in Class::all() {
        while lists(class).release_older_than(class, age, RELEASE_BATCH) {}
        left |= lists(class).oldest_empty().is_some();
    }
    left
}

/// Calls `f` with every span that serves something. It may be stale: spans come and go.
pub(crate) fn for_each_span(f: impl FnMut(&Span)) {
    let all = (0..SPANS.len()).filter_map(|index| SPANS.get(index));
    all.filter(|span| span.is_in_use()).for_each(f);
}

/// Tests the invariants of the lists.
///
/// # Panics
///
/// Panics if one does not hold.
pub(crate) fn check() {
    let _none_is_lent = cooling::hold();
    for class in Class::all() {
        lists(class).check(class);
    }
}

/// Bytes of address space that span records have mapped.
pub(crate) fn metadata_bytes() -> usize {
    SPANS.mapped_bytes()
}

impl Lists {
    /// A span with objects in, of which most are out, or a new one.
    fn first_with_objects(&mut self, class: Class) -> Option<&'static Span> {
        self.by_place.iter().find_map(List::first).or_else(|| self.begin_span(class))
    }

    /// # Safety
    ///
    /// The lock of the span's class is held, and objects of it are in.
    unsafe fn take_from(
        &mut self,
        span: &'static Span,
        class: Class,
        out: &mut [*mut u8],
    ) -> usize {
        // SAFETY: the lock guards it.
        let listed = unsafe { &mut *span.central.get() };
        let base: *mut u8 = ptr::with_exposed_provenance_mut(span.base());
        let taken = out.len().min(listed.nr_free as usize);
        // SAFETY: an object of the span.
        let at = |index| unsafe { base.add(index * class.size()) };
        let found = listed.free.take(class, &mut out[..taken], at);
        debug_assert_eq!(found, taken, "as many are in as are counted");
        #[expect(clippy::cast_possible_truncation, reason = "at most as many as are in")]
        let taken = taken as u32;
        listed.nr_free -= taken;
        if !listed.returned.is_empty() {
            self.cooling.warm(
                listed,
                class,
                out[..found].iter().map(|out| out.addr() - base.addr()),
            );
        }
        if listed.is_misplaced() {
            self.place(span);
        }
        self.cooling.touch(span, cooling::ticks());
        found
    }

    /// # Safety
    ///
    /// The lock of the span's class is held; `object` is the span's and nobody uses it.
    unsafe fn put_back(&mut self, span: &'static Span, class: Class, object: *mut u8, now: u32) {
        // SAFETY: the lock guards it.
        let listed = unsafe { &mut *span.central.get() };
        listed.free.put(class.object_at(object.addr() - span.base()));
        listed.nr_free += 1;
        debug_assert!(
            listed.nr_free as usize <= class.nr_objects(),
            "an object is given back once"
        );
        if listed.is_misplaced() {
            self.place(span);
        }
        self.cooling.touch(span, now);
    }

    /// Puts a span where it belongs.
    pub(crate) fn place(&mut self, span: &'static Span) {
        let (old, new) = with(span, |listed| {
            let new = Place::of(listed.nr_free, listed.free.nr());
            (listed.be_at(new), new)
        });
        if let Some(list) = self.by_place.get_mut(old as usize) {
            list.unlink(span);
        }
        if new == Place::Empty {
            with(span, |listed| listed.emptied_ms = now_ms());
        }
        if let Some(list) = self.by_place.get_mut(new as usize) {
            list.push_first(span);
        }
    }

    /// Takes a span off its list, until [`place`](Self::place) is called for it.
    pub(crate) fn lend(&mut self, span: &'static Span) {
        let old = with(span, |listed| listed.be_at(Place::Lent));
        if let Some(list) = self.by_place.get_mut(old as usize) {
            list.unlink(span);
        }
    }

    fn oldest_empty(&self) -> Option<&'static Span> {
        self.by_place[Place::Empty as usize].last()
    }

    /// Releases so many empty spans that are that old; answers whether there were as many.
    fn release_older_than(&mut self, class: Class, age_ms: u32, most: usize) -> bool {
        let mut now = None;
        for _ in 0..most {
            let Some(span) = self.oldest_empty() else { return false };
            let now = *now.get_or_insert_with(now_ms);
            if now.wrapping_sub(with(span, |listed| listed.emptied_ms)) < age_ms {
                return false;
            }
            self.by_place[Place::Empty as usize].unlink(span);
            self.release(class, span);
        }
        true
    }

    fn check(&self, class: Class) {
        let (mut nr_cooling, mut nr_returned) = (0, 0);
        for_each_span(|span| {
            if !span.serves(class) {
                return;
            }
            with(span, |listed| {
                let nr_in: usize = listed.free.runs().map(|run| run.len()).sum();
                assert_eq!(nr_in, listed.nr_free as usize, "as many are in as are counted");
                let place = Place::of(listed.nr_free, listed.free.nr());
                assert!(
                    listed.place == place && !listed.is_misplaced(),
                    "a span is where it belongs"
                );
                let free = cooling::free_pages(listed, class);
                assert!(listed.returned.without(free).is_empty(), "what went back is free");
                nr_cooling += usize::from(listed.is_cooling);
                nr_returned += listed.returned.len();
            });
        });
        self.cooling.check(nr_cooling, nr_returned);
        for (at, list) in self.by_place.iter().enumerate() {
            for span in list.iter() {
                assert!(span.serves(class), "a list has spans of its class");
                assert_eq!(
                    with(span, |listed| listed.place as usize),
                    at,
                    "it has those of its place"
                );
            }
        }
    }

    /// A span of fresh memory, on no list yet.
    fn begin_span(&mut self, class: Class) -> Option<&'static Span> {
        let span = self.idle.pop_first().or_else(|| SPANS.get(SPANS.take(&SYSTEM)?))?;
        let has_begun = begin(span, class);
        if !has_begun {
            self.idle.push_first(span);
        }
        has_begun.then_some(span)
    }

    /// Gives the memory of an empty span, which is on no list but that of cooling, back.
    fn release(&mut self, class: Class, span: &'static Span) {
        self.cooling.forget(span);
        with(span, |listed| listed.be_at(Place::Off));
        let memory = ptr::with_exposed_provenance_mut(span.base());
        maps::remove_span(span, class);
        span.end();
        // SAFETY: every object is in, so nobody uses the memory; it came from `alloc_span`.
        unsafe { jemalloc::dealloc_span(memory) };
        self.idle.push_first(span);
    }
}

/// Runs `f` on what the central list keeps in `span`. The lock that guards it is held: it is called by
/// methods of [`Lists`] and of what they have.
pub(crate) fn with<R>(span: &Span, f: impl FnOnce(&mut Listed) -> R) -> R {
    // SAFETY: the lock of the class is held, and `f` does not reach another span.
    f(unsafe { &mut *span.central.get() })
}

/// Makes a record serve fresh memory. `false`: there is none, and it serves nothing.
fn begin(span: &'static Span, class: Class) -> bool {
    let bytes = class.span_bytes();
    let has_lists = with(span, |listed| {
        #[expect(clippy::cast_possible_truncation, reason = "at most 2^13")]
        let nr = class.nr_objects() as u32;
        (listed.nr_free, listed.returned) = (nr, Pages::NONE);
        listed.free.begin(class)
    });
    if !has_lists || !span.begin_ledger(class) {
        return false;
    }
    let memory = jemalloc::alloc_span(bytes, CHUNK);
    if memory.is_null() {
        return false;
    }
    // SAFETY: allocated above and shown to nobody.
    unsafe { asan::poison(memory, bytes) };
    span.begin(class, memory.expose_provenance());
    if !maps::add_span(span, class) {
        span.end();
        // SAFETY: allocated above and shown to nobody.
        unsafe { jemalloc::dealloc_span(memory) };
        return false;
    }
    true
}

/// Every central list is locked, in the order of classes.
pub(crate) static AT_FORK: AtFork = AtFork {
    place: fork::Place::Spans,
    prepare: || CENTRALS.iter().for_each(|central| core::mem::forget(lock(&central.0))),
    release: |_| {
        for central in &CENTRALS {
            // SAFETY: `prepare` took the lock and forgot the guard.
            unsafe { central.0.force_unlock() };
        }
    },
    in_child: || (),
};
