//! Bytes in hand against a fork.
//!
//! Two cells stand for what is charged and what the objects' tags say. loom panics where the fork
//! looks at them while an owner is at them; a child that found them unlike would keep a charge for
//! ever. Each step named in [`Weakened`] is left out once, and the model must see it.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::Hands;
use crate::hands::Weakened;

struct Books {
    hands: Hands,
    /// What each owner has charged, and what its objects are tagged with.
    charged: [UnsafeCell<u64>; 2],
    tagged: [UnsafeCell<u64>; 2],
}

// SAFETY: the cells are what the model tests: loom panics if an access is not ordered.
unsafe impl Send for Books {}
// SAFETY: as above.
unsafe impl Sync for Books {}

impl Books {
    fn new(left_out: Option<Weakened>) -> Arc<Self> {
        let mut hands = Hands::new();
        hands.weakened = left_out;
        let cells = || [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { hands, charged: cells(), tagged: cells() })
    }

    /// An owner: charges, and then tags; one of several goes without rather than wait, for loom has
    /// them wait for each other for ever.
    fn allocate(&self, owner: usize, alone: bool) {
        if alone {
            self.hands.take(owner);
        } else if !self.hands.try_take(owner) {
            return;
        }
        // SAFETY: the cell is this owner's, or a fork's that waited; loom checks it.
        self.charged[owner].with_mut(|charged| unsafe { *charged += 1 });
        // SAFETY: as above.
        self.tagged[owner].with_mut(|tagged| unsafe { *tagged += 1 });
        self.hands.put_down(owner);
    }

    /// The fork, with what the child would find.
    fn fork(&self) {
        self.hands.wait_for_none(u32::MAX);
        for owner in 0..2 {
            // SAFETY: nobody has anything in hand; loom checks it.
            let charged = self.charged[owner].with(|charged| unsafe { *charged });
            // SAFETY: as above.
            let tagged = self.tagged[owner].with(|tagged| unsafe { *tagged });
            assert_eq!(charged, tagged, "the child has a charge for no object");
        }
        self.hands.resume();
    }
}

fn model(left_out: Option<Weakened>, owners: usize, turns: usize) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.max_branches = 10_000;
    builder.check(move || {
        let books = Books::new(left_out);
        let threads: std::vec::Vec<_> = (0..owners)
            .map(|owner| {
                let books = Arc::clone(&books);
                thread::spawn(move || (0..turns).for_each(|_| books.allocate(owner, owners == 1)))
            })
            .collect();
        books.fork();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        // Nobody is kept waiting, and the books are right.
        books.fork();
    });
}

#[test]
fn loom_hands_one_owner() {
    model(None, 1, 2);
}

#[test]
fn loom_hands_two_owners() {
    model(None, 2, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_hands_need_the_order_of_the_count_and_the_look() {
    model(Some(Weakened::OwnerOrder), 1, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_hands_need_the_look() {
    model(Some(Weakened::Look), 1, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_hands_need_the_wait() {
    model(Some(Weakened::Wait), 1, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_hands_need_the_release_of_putting_down() {
    model(Some(Weakened::PutDownRelease), 1, 1);
}
