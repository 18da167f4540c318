//! The central list of a class: its spans, by whether they have objects in.
//!
//! ```text
//!   partial ─► span ─► span ─► …       some objects in, some out: taken from first
//!   empty   ─► span ─► span ─► …       all in, newest first: released after a short decay
//!   idle    ─► span ─► span ─► …       records that serve nothing now
//!   (full spans are on no list)
//! ```
//!
//! # Invariants
//!
//! - A span is on `partial` when `0 < nr_free < nr_objects`, on `empty` when
//!   `nr_free == nr_objects`, on neither when `nr_free == 0`, and on `idle` when `base` is 0.
//! - Objects that are in have no tag.
//!
//! Lock order: a record's lock, then a central list's, then the vectors', then jemalloc's.

use core::ptr;

use memcg_accounting::sync::{Guard, Lock, lock};
use memcg_accounting::table::Table;
use memcg_accounting::{SYSTEM, now_ms};

use crate::class::{self, CHUNK, Class};
use crate::fork::{AtFork, Place};
use crate::maps;
use crate::span::{Listed, Span};
use crate::{asan, jemalloc, ledger};

/// Empty spans go back after this long.
const DECAY_MS: u32 = 500;

/// The spans of one class, alone on their cache lines.
#[repr(align(128))]
struct Central(Lock<Lists>);

struct Lists {
    partial: *const Span,
    empty: *const Span,
    /// The oldest of `empty`.
    empty_tail: *const Span,
    /// What a record has made for itself fits its class: it serves that again.
    idle: *const Span,
}

// SAFETY: the pointers lead to span records, which live for ever and are reached under the
// lock that holds this value.
unsafe impl Send for Lists {}

static CENTRALS: [Central; class::COUNT] = [const {
    Central(Lock::new(Lists {
        partial: ptr::null(),
        empty: ptr::null(),
        empty_tail: ptr::null(),
        idle: ptr::null(),
    }))
}; class::COUNT];

/// The records of all spans: one table, or each class would touch a page for its first. None is ever given back.
static SPANS: Table<Span> = Table::new();

fn lists(class: Class) -> Guard<'static, Lists> {
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
    let mut lists = lists(class);
    for &object in objects {
        // SAFETY: by contract the object is ours and out.
        let span = unsafe { maps::span_of_object(object) };
        // SAFETY: the lock is held, and the object belongs to this span.
        unsafe { lists.put_back(span, class, object) };
    }
    lists.release_older_than(class, DECAY_MS, 2);
}

/// Releases every empty span that is older than the decay, or all of them. Answers whether any
/// is left.
pub(crate) fn release_empty(all: bool) -> bool {
    let mut left = false;
    for class in Class::all() {
        let age = if all { 0 } else { DECAY_MS };
        let mut lists = lists(class);
        lists.release_older_than(class, age, usize::MAX);
        left |= !lists.empty.is_null();
    }
    left
}

/// Calls `f` with every span that serves something. It may be stale: spans come and go.
pub(crate) fn for_each_span(f: impl FnMut(&Span)) {
    let all = (0..SPANS.len()).filter_map(|index| SPANS.get(index));
    all.filter(|span| span.is_in_use()).for_each(f);
}

/// Bytes of address space that span records have mapped.
pub(crate) fn metadata_bytes() -> usize {
    SPANS.mapped_bytes()
}

impl Lists {
    /// A span with objects in: a partial one, else an empty one, else a new one.
    fn first_with_objects(&mut self, class: Class) -> Option<&'static Span> {
        // SAFETY: list links lead to span records, which live for ever.
        if let Some(span) = unsafe { self.partial.as_ref() } {
            return Some(span);
        }
        // SAFETY: as above.
        let span = match unsafe { self.empty.as_ref() } {
            Some(span) => {
                self.unlink_empty(span);
                span
            }
            None => self.begin_span(class)?,
        };
        self.push_partial(span);
        Some(span)
    }

    /// # Safety
    ///
    /// The lock of the span's class is held, and `span` is on `partial`.
    unsafe fn take_from(
        &mut self,
        span: &'static Span,
        class: Class,
        out: &mut [*mut u8],
    ) -> usize {
        // SAFETY: the lock guards it.
        let listed = unsafe { &mut *span.central.get() };
        let base: *mut u8 = ptr::with_exposed_provenance_mut(span.base());
        let taken = out.len().min(listed.nr_free);
        // SAFETY: an object of the span.
        let at = |index| unsafe { base.add(index * class.size()) };
        let found = listed.free.take(class, &mut out[..taken], at);
        debug_assert_eq!(found, taken, "as many are in as are counted");
        listed.nr_free -= taken;
        if listed.nr_free == 0 {
            self.unlink_partial(span);
        }
        found
    }

    /// # Safety
    ///
    /// The lock of the span's class is held; `object` is the span's and nobody uses it.
    unsafe fn put_back(&mut self, span: &'static Span, class: Class, object: *mut u8) {
        // SAFETY: the lock guards it.
        let listed = unsafe { &mut *span.central.get() };
        listed.free.put(class.object_at(object.addr() - span.base()));
        listed.nr_free += 1;
        let nr_free = listed.nr_free;
        debug_assert!(nr_free <= class.nr_objects(), "an object is given back once");
        if nr_free == 1 {
            self.push_partial(span);
        }
        if nr_free == class.nr_objects() {
            self.unlink_partial(span);
            self.push_empty(span);
        }
    }

    fn release_older_than(&mut self, class: Class, age_ms: u32, most: usize) {
        if self.empty.is_null() {
            return;
        }
        let now = now_ms();
        for _ in 0..most {
            // SAFETY: list links lead to span records, which live for ever.
            let Some(span) = (unsafe { self.empty_tail.as_ref() }) else { return };
            // SAFETY: the lock of the class is held.
            let emptied = unsafe { (*span.central.get()).emptied_ms };
            if now.wrapping_sub(emptied) < age_ms {
                return;
            }
            self.unlink_empty(span);
            self.release(class, span);
        }
    }

    /// A span of fresh memory, on no list yet.
    fn begin_span(&mut self, class: Class) -> Option<&'static Span> {
        let span = self.pop_idle().or_else(|| SPANS.get(SPANS.take(&SYSTEM)?))?;
        let has_begun = begin(span, class);
        if !has_begun {
            self.push_idle(span);
        }
        has_begun.then_some(span)
    }

    /// Gives the memory of an empty span, which is on no list, back.
    fn release(&mut self, class: Class, span: &'static Span) {
        let memory = ptr::with_exposed_provenance_mut(span.base());
        maps::remove_span(span, class);
        span.end();
        // SAFETY: every object is in, so nobody uses the memory; it came from `alloc_span`.
        unsafe { jemalloc::dealloc_span(memory) };
        self.push_idle(span);
    }

    // ---- links: the lock of the class is held throughout --------------------------------

    fn push_partial(&mut self, span: &'static Span) {
        let first = self.partial;
        with(span, |listed| {
            listed.next = first;
            listed.prev = ptr::null();
        });
        with_ptr(first, |listed| listed.prev = span);
        self.partial = span;
    }

    fn unlink_partial(&mut self, span: &'static Span) {
        let (next, prev) = with(span, |listed| (listed.next, listed.prev));
        if prev.is_null() {
            self.partial = next;
        }
        with_ptr(prev, |listed| listed.next = next);
        with_ptr(next, |listed| listed.prev = prev);
    }

    fn push_empty(&mut self, span: &'static Span) {
        let first = self.empty;
        with(span, |listed| {
            listed.emptied_ms = now_ms();
            listed.next = first;
            listed.prev = ptr::null();
        });
        with_ptr(first, |listed| listed.prev = span);
        if first.is_null() {
            self.empty_tail = span;
        }
        self.empty = span;
    }

    fn push_idle(&mut self, span: &'static Span) {
        with(span, |listed| listed.next = self.idle);
        self.idle = span;
    }

    fn pop_idle(&mut self) -> Option<&'static Span> {
        // SAFETY: list links lead to span records, which live for ever.
        let span = unsafe { self.idle.as_ref() }?;
        self.idle = with(span, |listed| listed.next);
        Some(span)
    }

    fn unlink_empty(&mut self, span: &'static Span) {
        let (next, prev) = with(span, |listed| (listed.next, listed.prev));
        if prev.is_null() {
            self.empty = next;
        }
        if next.is_null() {
            self.empty_tail = prev;
        }
        with_ptr(prev, |listed| listed.next = next);
        with_ptr(next, |listed| listed.prev = prev);
    }
}

/// Runs `f` on what the central list keeps in `span`. Called by methods of [`Lists`] alone, so
/// the lock that guards it is held.
fn with<R>(span: &Span, f: impl FnOnce(&mut Listed) -> R) -> R {
    // SAFETY: the lock of the class is held, and `f` does not reach another span.
    f(unsafe { &mut *span.central.get() })
}

fn with_ptr(span: *const Span, f: impl FnOnce(&mut Listed)) {
    // SAFETY: list links are null or lead to span records, which live for ever.
    if let Some(span) = unsafe { span.as_ref() } {
        with(span, f);
    }
}

/// Makes a record serve fresh memory. `false`: there is none, and it serves nothing.
fn begin(span: &'static Span, class: Class) -> bool {
    let bytes = class.span_bytes();
    let has_lists = with(span, |listed| {
        listed.nr_free = class.nr_objects();
        listed.free.begin(class)
    });
    if !has_lists || !ledger::begin(span, class) {
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
    place: Place::Spans,
    prepare: || CENTRALS.iter().for_each(|central| core::mem::forget(lock(&central.0))),
    release: |_| {
        for central in &CENTRALS {
            // SAFETY: `prepare` took the lock and forgot the guard.
            unsafe { central.0.force_unlock() };
        }
    },
    in_child: || (),
};
