//! What free pages of spans do that are partly used: they cool, and go back to the system.
//!
//! ```text
//!   an object comes or goes ──► cooling ──(a second without use)──► lent: pages go back ──► where it was
//!                                  ▲ '── used meanwhile ──'
//! ```
//!
//! A few objects that stay would otherwise keep their whole spans resident after a burst. A span that objects come to or
//! go from is put on a list, once, and looked at when it has been there for a while: if it was used meanwhile it
//! stays for another while, so that memory in steady use is left alone. Else its pages that lie wholly in free objects go back, and those
//! of the objects' tags. Nothing is taken from it meanwhile, for it is on no list then; what comes
//! back is noted. So no lock is held that others wait for.
//!
//! # Invariants
//!
//! - A span of which a page of free objects is resident, and that was touched by now, is on the list of its class, or lent.
//! - A span is lent with the lock of this file held: there is one at most, and none when a process forks.
//!
//! Lock order: that of this file, then a central list's.

use memcg_accounting::sync::{AtomicU32, AtomicUsize, Guard, Lock, Ordering, lock};

use crate::central::{self, with};
use crate::class::{self, Class};
use crate::fork::{self, AtFork};
use crate::links::{ByAge, List};
use crate::pages::{self, PAGE, Pages};
use crate::span::{Listed, Place, Span};
use crate::{edge, features, os};

/// Ticks, of 100 ms, that a span is left alone for after it was used.
const COOL_TICKS: u32 = 10;
/// What one tick does at most, in looks at spans: every giving back makes the cores of this process's threads
/// look up pages anew.
const TICK_WORK: usize = 16_384;
/// What it takes to give pages back, in looks at spans.
const WORK_OF_A_RUN: usize = 8;

static TICKS: AtomicU32 = AtomicU32::new(0);
/// One span is lent at a time.
static LENDING: Lock<()> = Lock::new(());

/// How many ticks there were.
pub(crate) fn ticks() -> u32 {
    // Relaxed: an age, nothing is read on the strength of it.
    TICKS.load(Ordering::Relaxed)
}

/// The spans of a class that cool. Its methods are called with the lock of the class held.
pub(crate) struct Cooling {
    spans: List<ByAge>,
    nr: usize,
    nr_returned: usize,
}

impl Cooling {
    pub(crate) const fn new() -> Self {
        Self { spans: List::new(), nr: 0, nr_returned: 0 }
    }

    /// An object comes to the span, or goes from it.
    #[inline(always)]
    pub(crate) fn touch(&mut self, span: &'static Span, now: u32) {
        let is_cooling = with(span, |listed| {
            listed.used = now;
            listed.is_cooling
        });
        if !is_cooling {
            self.queue(span, now);
        }
    }

    #[inline(never)]
    fn queue(&mut self, span: &'static Span, now: u32) {
        with(span, |listed| (listed.is_cooling, listed.queued) = (true, now));
        self.spans.push_last(span);
        self.nr += 1;
    }

    fn unqueue(&mut self, span: &'static Span) {
        with(span, |listed| listed.is_cooling = false);
        self.spans.unlink(span);
        self.nr -= 1;
    }

    /// Objects at these offsets go out: the pages that they lie on are the process's again.
    #[cold]
    pub(crate) fn warm(
        &mut self,
        listed: &mut Listed,
        class: Class,
        offsets: impl Iterator<Item = usize>,
    ) {
        let around = offsets.map(|offset| Pages::around(class, class.object_at(offset)));
        let left = listed.returned.without(around.fold(Pages::NONE, Pages::with));
        self.nr_returned -= listed.returned.len() - left.len();
        listed.returned = left;
    }

    /// The span serves nothing any more.
    pub(crate) fn forget(&mut self, span: &'static Span) {
        let returned = with(span, |listed| core::mem::replace(&mut listed.returned, Pages::NONE));
        self.nr_returned -= returned.len();
        if with(span, |listed| listed.is_cooling) {
            self.unqueue(span);
        }
    }
}

impl Cooling {
    /// Tests what it counts.
    pub(crate) fn check(&self, nr: usize, nr_returned: usize) {
        assert_eq!(
            (self.nr, self.nr_returned),
            (nr, nr_returned),
            "as many cool, and went back, as are counted"
        );
        assert_eq!(self.spans.iter().count(), nr, "those that cool are on the list");
    }
}

/// What became of the span that has been on the list longest.
enum Step {
    /// It is not its time, or there is none.
    Wait,
    /// Nothing of it goes back now.
    Looked,
    /// These pages do.
    Lent(&'static Span, Pages),
}

fn step(class: Class, age: u32) -> Step {
    let now = ticks();
    let mut lists = central::lists(class);
    let Some(span) = lists.cooling.spans.first() else { return Step::Wait };
    let is_old = |since: u32| now.wrapping_sub(since) >= age;
    let (queued, used, place) = with(span, |listed| (listed.queued, listed.used, listed.place));
    if !is_old(queued) {
        return Step::Wait;
    }
    lists.cooling.unqueue(span);
    // One that is full has nothing, and comes again with its next free object; one that is empty goes back whole.
    if matches!(place, Place::Off | Place::Empty) {
        return Step::Looked;
    }
    if !is_old(used) {
        lists.cooling.queue(span, now);
        return Step::Looked;
    }
    let pages = with(span, |listed| free_pages(listed, class).without(listed.returned));
    if pages.is_empty() {
        return Step::Looked;
    }
    lists.lend(span);
    Step::Lent(span, pages)
}

/// The pages that free objects have for themselves.
pub(crate) fn free_pages(listed: &mut Listed, class: Class) -> Pages {
    let runs = listed.free.runs();
    runs.fold(Pages::NONE, |pages, run| pages.with(Pages::inside(class, run)))
}

/// Gives pages of a lent span back; answers which of them the system took, and in how many runs they were.
fn give_back(span: &Span, class: Class, pages: Pages) -> (Pages, usize) {
    blank(span, class, pages);
    let memory: *mut u32 = core::ptr::with_exposed_provenance_mut(span.base());
    let (tags, nr_memory) = (span.own_tags(), pages::memory_pages(class));
    let (mut given, mut runs) = (Pages::NONE, 0);
    for run in pages.runs(class) {
        let place = if run.start < nr_memory {
            memory.cast::<u8>().wrapping_add(run.start * PAGE)
        } else if let Some(tags) = tags {
            tags.cast::<u8>().wrapping_add((run.start - nr_memory) * PAGE)
        } else {
            continue;
        };
        runs += 1;
        // SAFETY: the pages lie in objects that are in, and stay in while the span is lent: nobody uses their memory, and
        // their tags are zeros, which nobody writes. Both lie in private anonymous mappings.
        if unsafe { os::give_back(place.cast(), run.len() * PAGE) } {
            given = given.with(Pages::of(run));
        }
    }
    (given, runs)
}

/// What these pages hold is about to be lost.
fn blank(span: &Span, class: Class, pages: Pages) {
    if !features::BLANKS {
        return;
    }
    // Nobody else gives pages back, and what comes meanwhile is no part of these.
    for object in
        (0..class.nr_objects()).filter(|&object| pages.overlaps(Pages::around(class, object)))
    {
        let object = core::ptr::with_exposed_provenance_mut(span.base() + object * class.size());
        // SAFETY: it is in, for all of its pages' objects are, and stays in while the span is lent.
        unsafe { edge::blank(object, class) };
    }
}

/// Looks at the spans of a class that have cooled for so many ticks, as far as `work` goes.
fn cool(class: Class, age: u32, work: &mut usize) {
    // Those that come to the list from now on are for the next time.
    let nr = central::lists(class).cooling.nr;
    for _ in 0..nr {
        if *work == 0 {
            return;
        }
        let _one = lock(&LENDING);
        match step(class, age) {
            Step::Wait => return,
            Step::Looked => *work -= 1,
            Step::Lent(span, pages) => {
                let (given, runs) = give_back(span, class, pages);
                *work = work.saturating_sub(WORK_OF_A_RUN * runs);
                let mut lists = central::lists(class);
                lists.cooling.nr_returned += given.len();
                with(span, |listed| listed.returned = listed.returned.with(given));
                lists.place(span);
            }
        }
    }
}

/// What a tick does. Answers whether spans are left that cool.
pub(crate) fn tick() -> bool {
    /// Where the next tick begins, so that each class has its turn.
    static HAND: AtomicUsize = AtomicUsize::new(0);
    TICKS.fetch_add(1, Ordering::Relaxed);
    let mut work = TICK_WORK;
    let first = HAND.load(Ordering::Relaxed);
    let next = in_turn(first, &mut work, |class, work| cool(class, COOL_TICKS, work));
    if let Some(next) = next {
        HAND.store(next, Ordering::Relaxed);
        return true;
    }
    Class::all().any(|class| central::lists(class).cooling.nr > 0)
}

/// Sees to each class, from the number `first` on, as far as `work` goes. Answers where the next one begins, if that was
/// not far enough: behind the class that it ended with, which may have as much to do each time.
fn in_turn(
    first: usize,
    work: &mut usize,
    mut cool: impl FnMut(Class, &mut usize),
) -> Option<usize> {
    for step in 0..class::COUNT {
        let at = (first + step) % class::COUNT;
        cool(Class::nth(at), work);
        if *work == 0 {
            return Some((at + 1) % class::COUNT);
        }
    }
    None
}

/// Gives back what can be, however lately it was used.
pub(crate) fn all() {
    let mut work = usize::MAX;
    for class in Class::all() {
        cool(class, 0, &mut work);
    }
}

/// Bytes that the system has of spans that are in use.
pub(crate) fn returned_bytes() -> usize {
    let of = |class| central::lists(class).cooling.nr_returned * PAGE;
    Class::all().map(of).sum()
}

/// No span is lent as long as the answer lives.
pub(crate) fn hold() -> Guard<'static, ()> {
    lock(&LENDING)
}

/// No span is lent, and none will be.
pub(crate) static AT_FORK: AtFork = AtFork {
    place: fork::Place::Cooling,
    prepare: || core::mem::forget(hold()),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { LENDING.force_unlock() },
    in_child: || (),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_never_ends_leaves_the_others_their_turns() {
        let (mut seen, mut first) = ([0; class::COUNT], 3);
        for _ in 0..10 {
            let next = in_turn(first, &mut 100, |class, work| {
                seen[class.index()] += 1;
                *work -= if class.index() == 3 { *work } else { 1 };
            });
            first = next.expect("one has more than that");
        }
        assert!(seen.iter().all(|&turns| turns >= 9), "{seen:?}");
        assert_eq!(in_turn(first, &mut 100, |_, work| *work -= 1), None);
    }
}
