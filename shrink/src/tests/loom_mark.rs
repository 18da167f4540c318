//! Model: an object is added while the shrinker says `Empty`: the mark is not lost.
//!
//! Each test with `should_panic` leaves one step out and shows that the model notices.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::marks::{Bit, Marks, Unmarkings, Weakened};

/// Adders and one reclaimer; at the end there are objects, so the bit must be marked.
fn model(starts_marked: bool, adders: u32, site: Option<Weakened>) {
    loom::model(move || {
        let bit = Bit::new(0, starts_marked);
        let marks = Arc::new(Marks::weakened(site));
        // Of an earlier object, which is gone.
        marks.mark(bit);
        let objects = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..adders)
            .map(|_| {
                let (marks, objects) = (marks.clone(), objects.clone());
                thread::spawn(move || {
                    // Relaxed: the fences of the protocol are all that orders it.
                    objects.fetch_add(1, Ordering::Relaxed);
                    marks.mark(bit);
                })
            })
            .collect();
        marks.settle(bit, || objects.load(Ordering::Relaxed) == 0);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(marks.is_marked(bit), "{adders} objects, and no mark");
    });
}

#[test]
fn no_add_is_lost() {
    for starts_marked in [false, true] {
        model(starts_marked, 1, None);
        model(starts_marked, 2, None);
    }
}

/// One of several that share a bit has an object in the end: both its mark and the bit's are there.
fn shared(starts_marked: bool, adds_in_order: bool) {
    loom::model(move || {
        let bit = Bit::new(0, starts_marked);
        let levels = Arc::new((Marks::new(), Marks::new(), AtomicU32::new(0)));
        levels.0.mark(bit);
        let adder = thread::spawn({
            let levels = levels.clone();
            move || {
                let (all, own, objects) = &*levels;
                objects.fetch_add(1, Ordering::Relaxed);
                let (first, second) = if adds_in_order { (own, all) } else { (all, own) };
                first.mark(bit);
                second.mark(bit);
            }
        });
        let (all, own, objects) = &*levels;
        own.settle(bit, || objects.load(Ordering::Relaxed) == 0);
        if !own.is_marked(bit) {
            all.settle(bit, || !own.is_marked(bit));
        }
        adder.join().expect("no panic");
        assert!(own.is_marked(bit) && all.is_marked(bit), "an object, and no mark");
    });
}

#[test]
fn of_those_that_share_a_bit_none_is_lost() {
    shared(false, true);
    shared(true, true);
}

#[test]
#[should_panic(expected = "and no mark")]
fn without_marking_the_one_before_the_bit() {
    shared(false, false);
}

#[test]
#[should_panic(expected = "and no mark")]
fn without_the_adders_fence() {
    model(false, 1, Some(Weakened::MarkFence));
}

#[test]
#[should_panic(expected = "and no mark")]
fn without_the_clearers_fence() {
    model(false, 1, Some(Weakened::ClearFence));
}

#[test]
#[should_panic(expected = "and no mark")]
fn without_asking_again() {
    model(false, 1, Some(Weakened::AskAgain));
}

/// A charge that was told of an object finds its mark, or learns that it was overlooked.
fn overlooked(starts_marked: bool, tells: bool, site: Option<Weakened>) {
    loom::model(move || {
        let bit = Bit::new(0, starts_marked);
        let shared = Arc::new((
            Marks::weakened(site),
            Unmarkings::new(),
            AtomicU32::new(0),
            AtomicU32::new(0),
        ));
        shared.0.mark(bit);
        let adder = thread::spawn({
            let shared = shared.clone();
            move || {
                let (marks, _, objects, told) = &*shared;
                objects.fetch_add(1, Ordering::Relaxed);
                marks.mark(bit);
                told.store(1, Ordering::Release);
            }
        });
        let reclaimer = thread::spawn({
            let shared = shared.clone();
            move || {
                let (marks, unmarkings, objects, _) = &*shared;
                let settle = || marks.settle(bit, || objects.load(Ordering::Relaxed) == 0);
                if tells {
                    unmarkings.during(|| settle());
                } else {
                    settle();
                }
            }
        });
        let (marks, unmarkings, _, told) = &*shared;
        let mistaken = unmarkings.mistaken();
        if told.load(Ordering::Acquire) != 0 && !marks.is_marked(bit) && !unmarkings.any() {
            let learns = unmarkings.mistaken() != mistaken && marks.is_marked(bit);
            assert!(learns, "overlooked");
        }
        adder.join().expect("no panic");
        reclaimer.join().expect("no panic");
    });
}

#[test]
fn what_is_there_is_found_or_known_to_be_overlooked() {
    for starts_marked in [false, true] {
        overlooked(starts_marked, true, None);
    }
}

#[test]
#[should_panic(expected = "overlooked")]
fn without_telling_of_an_unmarking() {
    overlooked(false, false, None);
}

#[test]
#[should_panic(expected = "overlooked")]
fn without_the_release_of_the_clearing() {
    overlooked(false, true, Some(Weakened::ClearRelease));
}

/// A shrinker that starts marked is registered at a place that nobody had, which a visit unmarks.
fn registered(is_found_first: bool) {
    loom::model(move || {
        let bit = Bit::new(0, true);
        let shared = Arc::new((Marks::new(), AtomicU32::new(0)));
        let registering = thread::spawn({
            let shared = shared.clone();
            move || {
                let (marks, owner) = &*shared;
                if is_found_first {
                    owner.store(1, Ordering::Relaxed);
                }
                marks.mark(bit);
                owner.store(1, Ordering::Relaxed);
            }
        });
        let (marks, owner) = &*shared;
        // Whoever is found there has something.
        marks.settle(bit, || owner.load(Ordering::Relaxed) == 0);
        registering.join().expect("no panic");
        assert!(marks.is_marked(bit), "it is asked nowhere");
    });
}

#[test]
fn a_shrinker_that_is_registered_is_asked() {
    registered(true);
}

#[test]
#[should_panic(expected = "it is asked nowhere")]
fn without_an_owner_before_the_mark() {
    registered(false);
}
