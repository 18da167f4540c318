//! Chargers that notice against whoever delivers.
//!
//! Each charger writes its word, relaxed, and then puts the one record or the other on the list.
//! Whoever delivers reads the words after taking it. When everybody is done and the list was taken
//! once more, every word must have been read: what was noted is never left on no list.

use std::sync::Arc;

use loom::thread;

use crate::sync::{AtomicU32, Ordering};
use crate::watch::{Link, Noticed, Weakened};

struct Model {
    noticed: Noticed,
    links: [Link; 2],
    /// What was noted for each record, by each of two chargers.
    words: [[AtomicU32; 2]; 2],
    rung: AtomicU32,
}

impl Model {
    fn new(left_out: Option<Weakened>) -> Arc<Self> {
        let word = || AtomicU32::new(0);
        let mut noticed = Noticed::new();
        noticed.weakened = left_out;
        Arc::new(Self {
            noticed,
            links: [Link::new(), Link::new()],
            words: [[word(), word()], [word(), word()]],
            rung: word(),
        })
    }

    fn note(&self, record: usize, charger: usize) {
        self.words[record][charger].store(1, Ordering::Relaxed);
        let index = u32::try_from(record).expect("small");
        if self.noticed.push(index, &self.links[record]) {
            self.rung.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(&self) -> [[u32; 2]; 2] {
        let mut seen = [[0; 2]; 2];
        self.noticed.take(
            |index| self.links.get(index as usize),
            |index| {
                for (seen, word) in seen[index as usize].iter_mut().zip(&self.words[index as usize])
                {
                    *seen = word.load(Ordering::Relaxed);
                }
            },
        );
        seen
    }
}

fn check(first: [usize; 2], second: [usize; 2], left_out: Option<Weakened>) {
    loom::model(move || {
        let model = Model::new(left_out);
        let other = model.clone();
        let charger = thread::spawn(move || {
            for record in first {
                other.note(record, 0);
            }
        });
        let other = model.clone();
        let another = thread::spawn(move || {
            for record in second {
                other.note(record, 1);
            }
        });
        let early = model.take();
        charger.join().expect("no panic");
        another.join().expect("no panic");
        let late = model.take();
        for record in 0..2 {
            for (charger, wrote) in [first, second].into_iter().enumerate() {
                let seen = early[record][charger] | late[record][charger];
                assert_eq!(
                    seen == 1,
                    wrote.contains(&record),
                    "record {record} of {charger} is left on no list"
                );
            }
        }
        assert!(model.rung.load(Ordering::Relaxed) >= 1, "the first of an empty list rings");
    });
}

#[test]
fn loom_notice_is_never_lost_on_one_record() {
    check([0, 0], [0, 0], None);
}

#[test]
fn loom_notice_is_never_lost_on_two_records() {
    check([0, 1], [1, 0], None);
}

#[test]
#[should_panic(expected = "is left on no list")]
fn loom_notice_that_comes_during_the_look_is_lost_if_queued_is_cleared_after_it() {
    check([0, 0], [0, 0], Some(Weakened::ClearFirst));
}

#[test]
#[should_panic(expected = "is left on no list")]
fn loom_notice_is_lost_without_the_order_of_queued() {
    check([0, 0], [0, 0], Some(Weakened::QueuedOrder));
}

#[test]
#[should_panic(expected = "is left on no list")]
fn loom_notice_is_lost_if_next_is_read_after_queued_is_cleared() {
    check([0, 1], [1, 0], Some(Weakened::NextFirst));
}
