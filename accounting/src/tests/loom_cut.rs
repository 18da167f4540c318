//! A cut that passes a record by, because its gate is closed, against the owner that opens it again.
//!
//! What the record holds has no protection here but the real [`Gate`] and [`Cut`]: a cut that passes the record
//! by looks at it without the lock, so loom panics where the owner works on it before the cut is over. Each step
//! and ordering of the protocol is left out once, and the model must see it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::gate::Weakened;
use crate::{Barrier, Cut, Gate, Reason};

struct World {
    gate: Gate,
    cut: Cut,
    barrier: Barrier,
    objects: UnsafeCell<u64>,
}

// SAFETY: `objects` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new(site: Option<Weakened>) -> Arc<Self> {
        let gate = Gate::weakened(site);
        // As an earlier cut left it.
        gate.close(Reason::DRAIN);
        let mut cut = Cut::new();
        cut.weakened = site;
        Arc::new(Self { gate, cut, barrier: Barrier::new(), objects: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: the caller is the owner inside its gate, or holds the lock; loom checks it.
        self.objects.with_mut(|objects| unsafe { *objects += 1 });
    }

    fn take(&self) -> u64 {
        // SAFETY: as in `add`.
        self.objects.with_mut(|objects| unsafe { core::mem::take(&mut *objects) })
    }

    /// The owner puts an object in, or goes past the record. Answers how many it put in.
    fn push(&self) -> u64 {
        if self.gate.enter() {
            self.add();
            self.gate.leave();
            return 1;
        }
        if !self.gate.try_lock() {
            return 0;
        }
        let is_open = self.gate.reopen(&self.cut);
        if is_open {
            self.add();
        }
        self.gate.unlock();
        u64::from(is_open)
    }

    /// A cut: passes the record by if it is closed, or stops it and takes what is there.
    fn cut(&self) -> u64 {
        self.cut.begin();
        let taken = if self.gate.reasons().has(Reason::DRAIN) {
            // SAFETY: nobody works on the record before the end of the cut; loom checks it.
            assert_eq!(self.objects.with(|objects| unsafe { *objects }), 0, "it was looked at");
            self.cut.end();
            return 0;
        } else {
            assert!(self.gate.lock_within(u32::MAX));
            self.gate.revoke();
            self.gate.heavy_in_model(&self.barrier);
            assert!(self.gate.wait_idle(u32::MAX));
            self.take()
        };
        self.cut.end();
        self.gate.unlock();
        taken
    }
}

/// The owner, and one who makes a cut after the other: nothing is lost or taken twice.
fn owner_and_cuts(site: Option<Weakened>) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(move || {
        let world = World::new(site);
        let other = Arc::clone(&world);
        let cuts = thread::spawn(move || other.cut() + other.cut());
        let put = world.push() + world.push();
        let taken = cuts.join().expect("no panic");
        assert_eq!(put, taken + world.take());
        assert!(!world.gate.enter() || !world.gate.reasons().has(Reason::DRAIN));
    });
}

#[test]
fn loom_a_cut_passes_by_what_is_closed() {
    owner_and_cuts(None);
}

#[test]
fn loom_each_step_of_it_is_needed() {
    for site in [
        Weakened::ReopenFence,
        Weakened::ReopenLook,
        Weakened::BeginFence,
        Weakened::EndRelease,
        Weakened::UnderWayAcquire,
    ] {
        let run = catch_unwind(AssertUnwindSafe(|| owner_and_cuts(Some(site))));
        assert!(run.is_err(), "the model passes without {site:?}");
    }
}
