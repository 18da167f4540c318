//! Objects between spans, threads that free what others allocated, and lookups.
//!
//! The shape of `central.rs`, `span.rs` and `maps.rs` of the layer above, with their orderings: the
//! list of a class under its lock, tags relaxed, vectors published once. An object's memory is a cell:
//! whoever has it writes it, and the lock is all that orders one user after the other.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use crate::sync::{AtomicU32, AtomicUsize, Lock, Ordering, lock};

/// What a model leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    /// The lock of the class.
    Lock,
    /// Clearing the tag before the object goes back, and not after it.
    ClearFirst,
    /// The Release of the vector that a span gets.
    VectorRelease,
    /// The Acquire of whoever looks an address up.
    VectorAcquire,
    /// The look at the slot itself, which may be one of the shared zeros.
    SharedSlot,
    /// The Release of the vector in the entry of a chunk.
    EntryRelease,
    /// The vector in the entry before a tag is in the vector, whoever made it.
    EntryFirst,
    /// That nothing is taken from a span while pages of it go back.
    Lending,
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

// ---- refill, remote free, release -----------------------------------------------------------------------

/// One object of a span, and the list that it is on while it is in.
struct Class {
    is_in: Lock<bool>,
    memory: UnsafeCell<u64>,
    tag: AtomicU32,
    /// What the object is charged: uncharged by whoever gives it back.
    charged: AtomicU32,
    left_out: Option<LeftOut>,
}

// SAFETY: `memory` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for Class {}
// SAFETY: as above.
unsafe impl Sync for Class {}

impl Class {
    fn new(left_out: Option<LeftOut>) -> Arc<Self> {
        Arc::new(Self {
            is_in: Lock::new(true),
            memory: UnsafeCell::new(0),
            tag: AtomicU32::new(0),
            charged: AtomicU32::new(0),
            left_out,
        })
    }

    /// Runs `f` on whether the object is in.
    fn with_list<R>(&self, f: impl FnOnce(&mut bool) -> R) -> R {
        if self.left_out == Some(LeftOut::Lock) {
            let mut copy = *lock(&self.is_in);
            let answer = f(&mut copy);
            *lock(&self.is_in) = copy;
            return answer;
        }
        f(&mut lock(&self.is_in))
    }

    /// `central::take` of one object, and its tag: `bypass::take_paid`.
    fn allocate(&self, tag: u32) -> bool {
        let taken = self.with_list(|is_in| core::mem::replace(is_in, false));
        if taken {
            let old = self.tag.load(Ordering::Relaxed);
            assert_eq!(old, 0, "an object that was in has no tag");
            self.charged.fetch_add(1, Ordering::Relaxed);
            self.tag.store(tag, Ordering::Relaxed);
            // SAFETY: the object is this thread's; loom checks it.
            self.memory.with_mut(|memory| unsafe { *memory = u64::from(tag) });
        }
        taken
    }

    /// `bypass::dealloc`: by any thread that was handed the object.
    fn free(&self, expected: u32) {
        let tag = self.tag.load(Ordering::Relaxed);
        assert_eq!(tag, expected, "the tag says who paid, whoever frees");
        let clear = || self.tag.store(0, Ordering::Relaxed);
        if self.left_out != Some(LeftOut::ClearFirst) {
            clear();
        }
        // SAFETY: the object is this thread's still; loom checks it.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
        self.with_list(|is_in| *is_in = true);
        if self.left_out == Some(LeftOut::ClearFirst) {
            clear();
        }
        self.charged.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread allocates, another frees, and the first allocates again as somebody else.
fn remote_free(left_out: Option<LeftOut>) {
    explore(move || {
        let class = Class::new(left_out);
        let handed = Arc::new(AtomicBool::new(false));
        assert!(class.allocate(1));
        let other = {
            let (class, handed) = (Arc::clone(&class), Arc::clone(&handed));
            thread::spawn(move || {
                // The program's own hand-over.
                while !handed.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                class.free(1);
            })
        };
        handed.store(true, Ordering::Release);
        if class.allocate(2) {
            let tag = class.tag.load(Ordering::Relaxed);
            assert_eq!(tag, 2, "an object keeps its tag while it is out");
            class.free(2);
        }
        other.join().expect("no panic");
        assert!(*lock(&class.is_in));
        assert_eq!(class.tag.load(Ordering::Relaxed), 0);
        assert_eq!(class.charged.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn loom_span_remote_free_against_refill() {
    remote_free(None);
}

#[test]
#[should_panic(expected = "has no tag")]
fn loom_span_needs_the_tag_cleared_before_the_object_is_back() {
    remote_free(Some(LeftOut::ClearFirst));
}

/// Two threads refill at once: one gets the object.
fn two_refill(left_out: Option<LeftOut>) {
    explore(move || {
        let class = Class::new(left_out);
        let other = {
            let class = Arc::clone(&class);
            thread::spawn(move || class.allocate(2))
        };
        let got = [class.allocate(1), other.join().expect("no panic")];
        assert!(got[0] ^ got[1], "an object is handed out once: {got:?}");
    });
}

#[test]
fn loom_span_two_refill() {
    two_refill(None);
}

#[test]
#[should_panic]
fn loom_span_needs_the_lock() {
    two_refill(Some(LeftOut::Lock));
}

// ---- giving pages back ----------------------------------------------------------------------------------

/// A span of two objects that share a page; one stays out for ever, and the page of the other goes back.
struct Lender {
    span: Lock<Lent>,
    memory: UnsafeCell<u64>,
    left_out: Option<LeftOut>,
}

struct Lent {
    is_in: bool,
    is_lent: bool,
}

// SAFETY: `memory` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for Lender {}
// SAFETY: as above.
unsafe impl Sync for Lender {}

impl Lender {
    /// `cooling::cool`: the pages of what is in, while none of it can be taken.
    fn give_back(&self) -> bool {
        {
            let mut span = lock(&self.span);
            if !span.is_in {
                return false;
            }
            span.is_lent = self.left_out != Some(LeftOut::Lending);
        }
        // SAFETY: `madvise`: nobody uses the page; loom checks it.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
        lock(&self.span).is_lent = false;
        true
    }

    /// `central::take`: a span that is lent is on no list.
    fn take(&self) -> bool {
        let taken = {
            let mut span = lock(&self.span);
            !span.is_lent && core::mem::replace(&mut span.is_in, false)
        };
        if taken {
            // SAFETY: the object is this thread's; loom checks it.
            self.memory.with_mut(|memory| unsafe { *memory = 7 });
        }
        taken
    }

    /// `central::give`, also of a span that is lent.
    fn give(&self) {
        lock(&self.span).is_in = true;
    }
}

/// Pages go back while a thread takes an object, or brings one.
fn give_back_against_take(left_out: Option<LeftOut>) {
    explore(move || {
        let span = Lock::new(Lent { is_in: true, is_lent: false });
        let lender = Arc::new(Lender { span, memory: UnsafeCell::new(7), left_out });
        let other = {
            let lender = Arc::clone(&lender);
            thread::spawn(move || {
                let taken = lender.take();
                if taken {
                    lender.give();
                }
                taken
            })
        };
        let went = lender.give_back();
        let taken = other.join().expect("no panic");
        assert!(went || taken, "one of them was first");
        assert!(!lock(&lender.span).is_lent && lender.take(), "the span is served from again");
    });
}

#[test]
fn loom_span_give_back_against_take() {
    give_back_against_take(None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_span_needs_lending() {
    give_back_against_take(Some(LeftOut::Lending));
}

// ---- vectors --------------------------------------------------------------------------------------------

/// A span that gets a vector of its own: until then its tags are the zeros that all spans share.
struct Span {
    /// 0: the shared zeros; else which vector.
    tags: AtomicUsize,
    /// What the entry of its chunk says of them: what the fast path reads.
    entry: AtomicUsize,
    /// The shared word, and that of each vector.
    words: [AtomicU32; 3],
    /// Whether the words of a vector were made zero.
    is_zeroed: [UnsafeCell<bool>; 3],
    left_out: Option<LeftOut>,
}

// SAFETY: `is_zeroed` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    fn new(left_out: Option<LeftOut>) -> Arc<Self> {
        let cell = |zeroed| UnsafeCell::new(zeroed);
        Arc::new(Self {
            tags: AtomicUsize::new(0),
            entry: AtomicUsize::new(0),
            words: [AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)],
            is_zeroed: [cell(true), cell(false), cell(false)],
            left_out,
        })
    }

    fn unless(&self, site: LeftOut, order: Ordering) -> Ordering {
        if self.left_out == Some(site) { Ordering::Relaxed } else { order }
    }

    /// `Span::make_vector`, for a span that has none: vector `own` is this thread's, until it is
    /// published. (Not a look first: loom goes back to the last access before a store, which would
    /// be that one.)
    fn make_vector(&self, own: usize) {
        // SAFETY: nobody else knows the vector; loom checks it.
        self.is_zeroed[own].with_mut(|zeroed| unsafe { *zeroed = true });
        let order = self.unless(LeftOut::VectorRelease, Ordering::AcqRel);
        let _ = self.tags.compare_exchange(0, own, order, Ordering::Acquire);
    }

    /// `maps::make_taggable`: vector `own` is this thread's, until it is published.
    fn make_taggable(&self, own: usize) {
        let known =
            if self.left_out == Some(LeftOut::EntryFirst) { &self.tags } else { &self.entry };
        if known.load(Ordering::Acquire) != 0 {
            return;
        }
        self.make_entry(own);
    }

    /// The same for a chunk that had none.
    fn make_entry(&self, own: usize) {
        self.make_vector(own);
        let order = self.unless(LeftOut::EntryRelease, Ordering::Release);
        self.entry.store(self.tags.load(Ordering::Acquire), order);
    }

    /// `maps::tag_slot`, of an object that the caller has.
    fn slot(&self) -> usize {
        let slot = self.entry.load(Ordering::Acquire);
        // SAFETY: what is published was made zero; loom checks it.
        assert!(self.is_zeroed[slot].with(|zeroed| unsafe { *zeroed }), "a vector begins as zeros");
        slot
    }

    /// `Span::tag_at`, for any address, by any thread.
    fn look_up(&self) -> u32 {
        let tags = self.tags.load(self.unless(LeftOut::VectorAcquire, Ordering::Acquire));
        // SAFETY: what is published was made zero; loom checks it.
        assert!(self.is_zeroed[tags].with(|zeroed| unsafe { *zeroed }), "a vector begins as zeros");
        self.words[tags].load(Ordering::Relaxed)
    }

    /// `Cached::take_others` of an object in the magazine: `false`: the slow path looks again.
    fn hand_over(&self, slot: usize, tag: u32) -> bool {
        let is_shared = if self.left_out == Some(LeftOut::SharedSlot) {
            self.entry.load(Ordering::Relaxed) == 0
        } else {
            slot == 0
        };
        if is_shared {
            return false;
        }
        self.words[slot].store(tag, Ordering::Relaxed);
        true
    }
}

/// One thread makes a vector and tags, another looks an address up.
fn look_up_against_a_new_vector(left_out: Option<LeftOut>) {
    explore(move || {
        let span = Span::new(left_out);
        let other = {
            let span = Arc::clone(&span);
            thread::spawn(move || {
                span.make_vector(1);
                let own = span.tags.load(Ordering::Relaxed);
                span.words[own].store(7, Ordering::Relaxed);
            })
        };
        let found = span.look_up();
        assert!(found == 0 || found == 7);
        other.join().expect("no panic");
        assert_eq!(span.look_up(), 7);
        assert_eq!(span.words[0].load(Ordering::Relaxed), 0, "the shared zeros are never written");
    });
}

#[test]
fn loom_span_look_up_against_a_new_vector() {
    look_up_against_a_new_vector(None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_span_needs_the_release_of_a_vector() {
    look_up_against_a_new_vector(Some(LeftOut::VectorRelease));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_span_needs_the_acquire_of_a_vector() {
    look_up_against_a_new_vector(Some(LeftOut::VectorAcquire));
}

/// Two make a vector: one of the two is the span's, and a hand-over in between does not write the
/// zeros that all spans share.
fn hand_over_against_a_new_vector(left_out: Option<LeftOut>) {
    explore(move || {
        let span = Span::new(left_out);
        let others = [1, 2].map(|own| {
            let span = Arc::clone(&span);
            thread::spawn(move || span.make_entry(own))
        });
        // The slot is looked up first, as the fast path does.
        let slot = span.slot();
        let handed = span.hand_over(slot, 7);
        for other in others {
            other.join().expect("no panic");
        }
        assert_eq!(span.words[0].load(Ordering::Relaxed), 0, "the shared zeros are never written");
        assert_eq!(span.look_up(), if handed { 7 } else { 0 });
    });
}

#[test]
fn loom_span_hand_over_against_a_new_vector() {
    hand_over_against_a_new_vector(None);
}

#[test]
#[should_panic(expected = "never written")]
fn loom_span_needs_the_look_at_the_slot_itself() {
    hand_over_against_a_new_vector(Some(LeftOut::SharedSlot));
}

/// A thread tags its object and hands it over, while another makes tags of the same chunk writable: whoever
/// has the object then finds its tag.
fn tag_against_a_new_vector(left_out: Option<LeftOut>) {
    explore(move || {
        let span = Span::new(left_out);
        let handed = Arc::new(AtomicBool::new(false));
        let maker = {
            let span = Arc::clone(&span);
            thread::spawn(move || span.make_taggable(1))
        };
        let giver = {
            let (span, handed) = (Arc::clone(&span), Arc::clone(&handed));
            thread::spawn(move || {
                span.make_taggable(2);
                let own = span.tags.load(Ordering::Acquire);
                span.words[own].store(7, Ordering::Relaxed);
                // The program's own hand-over.
                handed.store(true, Ordering::Release);
            })
        };
        let is_mine = handed.load(Ordering::Acquire);
        let tag = span.words[span.slot()].load(Ordering::Relaxed);
        assert!(!is_mine || tag == 7, "a tag is found by who has the object");
        maker.join().expect("no panic");
        giver.join().expect("no panic");
        assert_eq!(span.words[span.slot()].load(Ordering::Relaxed), 7);
    });
}

#[test]
fn loom_span_tag_against_a_new_vector() {
    tag_against_a_new_vector(None);
}

#[test]
#[should_panic(expected = "found by who has the object")]
fn loom_span_needs_the_entry_before_the_tag() {
    tag_against_a_new_vector(Some(LeftOut::EntryFirst));
}

/// A thread looks at the tag of its object, which is fresh, while another makes tags of the chunk writable.
fn slot_against_a_new_vector(left_out: Option<LeftOut>) {
    explore(move || {
        let span = Span::new(left_out);
        let maker = {
            let span = Arc::clone(&span);
            thread::spawn(move || span.make_entry(1))
        };
        assert_eq!(span.words[span.slot()].load(Ordering::Relaxed), 0);
        maker.join().expect("no panic");
    });
}

#[test]
fn loom_span_slot_against_a_new_vector() {
    slot_against_a_new_vector(None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_span_needs_the_release_of_an_entry() {
    slot_against_a_new_vector(Some(LeftOut::EntryRelease));
}
