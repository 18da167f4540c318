//! Turns: one at a time, and each sees what those before it did.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::Turns;
use crate::turn::Weakened;

struct World {
    turns: Turns,
    count: UnsafeCell<u64>,
}

// SAFETY: `count` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn add(&self) {
        let _turn = self.turns.wait();
        // SAFETY: it is this thread's turn; loom checks it.
        self.count.with_mut(|count| unsafe { *count += 1 });
    }
}

fn four_turns(weakened: Option<Weakened>) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(move || {
        let mut turns = Turns::new();
        turns.weakened = weakened;
        let world = Arc::new(World { turns, count: UnsafeCell::new(0) });
        let other = Arc::clone(&world);
        let other = thread::spawn(move || {
            other.add();
            other.add();
        });
        world.add();
        world.add();
        other.join().expect("no panic");
        // SAFETY: every thread has ended.
        assert_eq!(world.count.with(|count| unsafe { *count }), 4);
    });
}

#[test]
fn loom_turns_come_one_at_a_time() {
    four_turns(None);
}

#[test]
fn loom_turns_need_each_step() {
    for site in [Weakened::Acquire, Weakened::Release, Weakened::Draw] {
        let run = catch_unwind(AssertUnwindSafe(|| four_turns(Some(site))));
        assert!(run.is_err(), "the model passes without {site:?}");
    }
}
