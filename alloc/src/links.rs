//! Lists of spans, threaded through their records.
//!
//! A record has two links: one for the list that says what is in of it, one for the list of those that
//! [cool](crate::cooling). Whoever calls holds the lock of the class, which guards both.

use core::marker::PhantomData;
use core::ptr;

use crate::span::{Listed, Span};

/// Where a record is on a list.
#[derive(Debug)]
pub(crate) struct Link {
    next: *const Span,
    prev: *const Span,
}

impl Link {
    pub(crate) const fn new() -> Self {
        Self { next: ptr::null(), prev: ptr::null() }
    }
}

/// Which of its links a list uses.
pub(crate) trait Through {
    fn link(listed: &mut Listed) -> &mut Link;
}

/// By what is in.
pub(crate) struct ByPlace;
/// By when it was last used.
pub(crate) struct ByAge;

impl Through for ByPlace {
    fn link(listed: &mut Listed) -> &mut Link {
        &mut listed.by_place
    }
}

impl Through for ByAge {
    fn link(listed: &mut Listed) -> &mut Link {
        &mut listed.by_age
    }
}

/// A list of spans.
///
/// # Invariants
///
/// - `first` and `last` are null, or the ends of one chain of links of `L`.
pub(crate) struct List<L> {
    first: *const Span,
    last: *const Span,
    through: PhantomData<L>,
}

impl<L: Through> List<L> {
    pub(crate) const fn new() -> Self {
        Self { first: ptr::null(), last: ptr::null(), through: PhantomData }
    }

    pub(crate) fn first(&self) -> Option<&'static Span> {
        // SAFETY: links lead to span records, which live for ever.
        unsafe { self.first.as_ref() }
    }

    pub(crate) fn last(&self) -> Option<&'static Span> {
        // SAFETY: as above.
        unsafe { self.last.as_ref() }
    }

    pub(crate) fn push_first(&mut self, span: &'static Span) {
        let next = core::mem::replace(&mut self.first, span);
        with::<L, _>(span, |link| *link = Link { next, prev: ptr::null() });
        match Self::at(next) {
            Some(next) => with::<L, _>(next, |link| link.prev = span),
            None => self.last = span,
        }
    }

    pub(crate) fn push_last(&mut self, span: &'static Span) {
        let prev = core::mem::replace(&mut self.last, span);
        with::<L, _>(span, |link| *link = Link { next: ptr::null(), prev });
        match Self::at(prev) {
            Some(prev) => with::<L, _>(prev, |link| link.next = span),
            None => self.first = span,
        }
    }

    /// Takes a span off, which is on this list.
    pub(crate) fn unlink(&mut self, span: &'static Span) {
        let (next, prev) = with::<L, _>(span, |link| (link.next, link.prev));
        match Self::at(prev) {
            Some(prev) => with::<L, _>(prev, |link| link.next = next),
            None => self.first = next,
        }
        match Self::at(next) {
            Some(next) => with::<L, _>(next, |link| link.prev = prev),
            None => self.last = prev,
        }
    }

    pub(crate) fn pop_first(&mut self) -> Option<&'static Span> {
        let span = self.first()?;
        self.unlink(span);
        Some(span)
    }

    /// The spans, first to last; they stay on the list meanwhile.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static Span> {
        core::iter::successors(self.first(), |span| Self::at(with::<L, _>(span, |link| link.next)))
    }

    fn at(span: *const Span) -> Option<&'static Span> {
        // SAFETY: links are null or lead to span records, which live for ever.
        unsafe { span.as_ref() }
    }
}

/// Runs `f` on a link of `span`.
fn with<L: Through, R>(span: &Span, f: impl FnOnce(&mut Link) -> R) -> R {
    // SAFETY: the lock of the class is held by who calls a list's methods, and `f` does not reach another span.
    f(L::link(unsafe { &mut *span.central.get() }))
}
