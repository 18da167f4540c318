//! The pages of a span: which of them hold nothing but free objects, and which the system has back.
//!
//! ```text
//!   memory:  | object | object |   in   |   in   |   in   | object |
//!            |     page     |     page     |     page     |               only the middle one is free
//!   tags:    | tag | tag | 0 | 0 | 0 | tag |                              1,024 of them have a page
//! ```
//!
//! Pages are counted through: those of the memory first, then those of the tags, where a span's tags have pages for
//! themselves.

use core::ops::Range;

use crate::class::{self, Class};
use crate::vector;

pub(crate) const PAGE: usize = 4096;
/// Tags on a page.
const TAGS: usize = PAGE / size_of::<u32>();

/// A set of pages of one span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages(u128);

const _: () = {
    let mut i = 0;
    while i < class::COUNT {
        assert!(all_pages(Class::nth(i)) <= u128::BITS as usize, "a bit for each page");
        i += 1;
    }
};

/// Pages of a span's memory.
pub(crate) const fn memory_pages(class: Class) -> usize {
    class.span_bytes() / PAGE
}

/// Pages of memory and tags.
const fn all_pages(class: Class) -> usize {
    memory_pages(class) + tag_pages(class)
}

/// Pages that a span's tags have for themselves.
const fn tag_pages(class: Class) -> usize {
    if vector::has_pages(class.nr_objects()) { class.nr_objects().div_ceil(TAGS) } else { 0 }
}

impl Pages {
    pub(crate) const NONE: Pages = Pages(0);

    /// Those with these numbers.
    pub(crate) const fn of(range: Range<usize>) -> Pages {
        if range.start >= range.end {
            return Pages::NONE;
        }
        Pages((u128::MAX >> (u128::BITS as usize - (range.end - range.start))) << range.start)
    }

    /// The pages of memory and tags that an object has a part of. What is left at the end of a span goes with the last one.
    pub(crate) fn around(class: Class, object: usize) -> Pages {
        let is_last = object + 1 == class.nr_objects();
        let from = object * class.size();
        let end = if is_last { class.span_bytes() } else { from + class.size() };
        let memory = from / PAGE..end.div_ceil(PAGE);
        let pages = Pages::of(memory);
        if tag_pages(class) == 0 {
            return pages;
        }
        let tags = memory_pages(class) + object / TAGS;
        pages.with(Pages::of(tags..tags + 1))
    }

    /// The pages of memory and tags that these objects, a run of them, have for themselves; the last one has what is left
    /// at the end.
    pub(crate) fn inside(class: Class, objects: Range<usize>) -> Pages {
        let is_last = objects.end == class.nr_objects();
        let end = if is_last { class.span_bytes() } else { objects.end * class.size() };
        let memory = Pages::of((objects.start * class.size()).div_ceil(PAGE)..end / PAGE);
        if tag_pages(class) == 0 {
            return memory;
        }
        let first = memory_pages(class);
        let end = if is_last { tag_pages(class) } else { objects.end / TAGS };
        memory.with(Pages::of(first + objects.start.div_ceil(TAGS)..first + end))
    }

    /// Those of the memory alone.
    pub(crate) fn of_memory(self, class: Class) -> Pages {
        Pages(self.0 & Pages::of(0..memory_pages(class)).0)
    }

    #[must_use]
    pub(crate) const fn with(self, others: Pages) -> Pages {
        Pages(self.0 | others.0)
    }

    #[must_use]
    pub(crate) const fn without(self, others: Pages) -> Pages {
        Pages(self.0 & !others.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn overlaps(self, others: Pages) -> bool {
        self.0 & others.0 != 0
    }

    pub(crate) const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Runs of pages that follow each other, none of which is in part memory and in part tags.
    pub(crate) fn runs(self, class: Class) -> impl Iterator<Item = Range<usize>> {
        let memory = self.of_memory(class);
        memory.all_runs().chain(self.without(memory).all_runs())
    }

    fn all_runs(mut self) -> impl Iterator<Item = Range<usize>> {
        core::iter::from_fn(move || {
            if self.is_empty() {
                return None;
            }
            let start = self.0.trailing_zeros() as usize;
            let run = start..start + (self.0 >> start).trailing_ones() as usize;
            self = self.without(Pages::of(run.clone()));
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages that lie in none but these objects, one object at a time.
    fn by_objects(class: Class, is_in: impl Fn(usize) -> bool) -> Pages {
        let mut pages = Pages::of(0..all_pages(class));
        let (last, memory) = (class.nr_objects() - 1, memory_pages(class));
        for object in (0..=last).filter(|&object| !is_in(object)) {
            // What is left at the end goes with the last one.
            let end = if object == last { class.span_bytes() } else { (object + 1) * class.size() };
            pages = pages.without(Pages::of(object * class.size() / PAGE..(end - 1) / PAGE + 1));
            let tags = memory + object / TAGS..memory + object / TAGS + 1;
            pages = pages.without(Pages::of(if tag_pages(class) > 0 { tags } else { 0..0 }));
        }
        pages
    }

    #[test]
    fn a_page_is_free_if_all_objects_on_it_are() {
        for class in Class::all() {
            let nr = class.nr_objects();
            let ranges = [0..nr, 0..nr / 2, nr / 3..nr, 1..nr - 1, nr / 2..nr / 2 + 1, nr - 1..nr];
            for run in ranges {
                let found = Pages::inside(class, run.clone());
                assert_eq!(
                    found,
                    by_objects(class, |object| run.contains(&object)),
                    "{class:?} {run:?}"
                );
                let runs: usize = found.runs(class).map(|run| run.len()).sum();
                assert_eq!(runs, found.len());
                for object in [run.start, run.end - 1] {
                    let around = Pages::around(class, object);
                    assert!(found.without(around).len() + around.len() >= found.len());
                    assert!(!by_objects(class, |other| other != object).overlaps(around));
                }
            }
        }
    }

    #[test]
    fn a_run_is_of_memory_or_of_tags() {
        let class = Class::nth(0);
        let all = Pages::inside(class, 0..class.nr_objects());
        let memory = memory_pages(class);
        let runs: Vec<_> = all.runs(class).collect();
        assert_eq!(runs, [0..memory, memory..memory + tag_pages(class)]);
        let two = all.without(Pages::of(1..3));
        assert_eq!(two.runs(class).next(), Some(0..1));
        assert_eq!(two.runs(class).nth(1), Some(3..memory));
    }

    #[test]
    fn what_one_object_has_a_part_of_is_free_no_more_once_it_is_out() {
        for class in Class::all() {
            let nr = class.nr_objects();
            for object in [0, nr / 2, nr - 1] {
                let all = Pages::inside(class, 0..nr);
                let runs = [0..object, object + 1..nr].into_iter().filter(|run| !run.is_empty());
                let left = runs.map(|run| Pages::inside(class, run)).fold(Pages::NONE, Pages::with);
                assert_eq!(all.without(Pages::around(class, object)), left, "{class:?} {object}");
            }
        }
    }
}
