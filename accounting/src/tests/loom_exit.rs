//! The end of a thread against a drain, against the thread that has its record next, and against the keeper, which gives
//! the pages of a free record back.
//!
//! The gate, the cut and the fence are the real ones; around them stands the shape of `record.rs`, `roster.rs` and
//! `drain.rs` of the layer above:
//!
//! ```text
//!   CLAIMED ─ empties it, its lock held ─► VACANT ─ the roster's lock ─► FREE ─ the roster's lock ─► CLAIMED
//!                                                                        pages go: the drain mutex and the roster's lock
//! ```
//!
//! Who begins never waits for a drain. loom panics where two are at one record's caches, and at the end nothing may be
//! lost or there twice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::gate::Weakened;
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock};
use crate::{Barrier, Cut, Gate, Reason};

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const VACANT: u32 = 2;

/// What a model leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    /// A step of the gate.
    Gate(Weakened),
    /// Emptying the record before it is vacant.
    Empty,
    /// That a record is claimed with its gate closed.
    ClaimClosed,
    /// The roster's lock of whoever claims.
    RosterOfClaim,
    /// The roster's lock of the keeper.
    RosterOfKeeper,
}

struct World {
    gate: Gate,
    cut: Cut,
    barrier: Barrier,
    drain: Lock<()>,
    roster: Lock<()>,
    state: AtomicU32,
    /// What the record caches: objects.
    cached: UnsafeCell<u64>,
    /// What came back to the central lists.
    central: AtomicU64,
    left_out: Option<LeftOut>,
}

// SAFETY: `cached` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new(left_out: Option<LeftOut>) -> Arc<Self> {
        let site = match left_out {
            Some(LeftOut::Gate(site)) => Some(site),
            _ => None,
        };
        let mut cut = Cut::new();
        cut.weakened = site;
        Arc::new(Self {
            gate: Gate::weakened(site),
            cut,
            barrier: Barrier::new(),
            drain: Lock::new(()),
            roster: Lock::new(()),
            state: AtomicU32::new(CLAIMED),
            cached: UnsafeCell::new(0),
            central: AtomicU64::new(0),
            left_out,
        })
    }

    fn has(&self, step: LeftOut) -> bool {
        self.left_out != Some(step)
    }

    fn is(&self, state: u32) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// A free of the record's owner: fast, on the slow path, or past the record.
    fn free(&self) {
        if self.gate.enter() {
            self.add();
            self.gate.leave();
            return;
        }
        if self.gate.try_lock() {
            let is_open = self.gate.reopen(&self.cut);
            if is_open {
                self.add();
            }
            self.gate.unlock();
            if is_open {
                return;
            }
        }
        self.central.fetch_add(1, Ordering::Relaxed);
    }

    fn add(&self) {
        // SAFETY: the caller is in the gate or holds the lock; loom checks it.
        self.cached.with_mut(|cached| unsafe { *cached += 1 });
    }

    fn empty(&self) {
        // SAFETY: the lock is held and the owner is not in the gate; loom checks it.
        let n = self.cached.with_mut(|cached| unsafe { core::mem::take(&mut *cached) });
        self.central.fetch_add(n, Ordering::Relaxed);
    }

    /// The thread leaves nothing in its record: `record::vacate`.
    fn vacate(&self) {
        self.gate.close(Reason::EXITING);
        assert!(self.gate.lock_within(u32::MAX));
        if self.has(LeftOut::Empty) {
            self.empty();
        }
        self.gate.close(Reason::EMPTY);
        self.state.store(VACANT, Ordering::Release);
        self.gate.unlock();
    }

    /// And gives it back: `roster::give_back`.
    fn give_back(&self) {
        let _roster = lock(&self.roster);
        self.state.store(FREE, Ordering::Release);
    }

    fn exit(&self) {
        self.vacate();
        self.give_back();
    }

    /// Another thread begins: `roster::claim`, and `record::open`. `false`: the record is not free.
    fn claim(&self) -> bool {
        let _roster = self.has(LeftOut::RosterOfClaim).then(|| lock(&self.roster));
        if !self.is(FREE) {
            return false;
        }
        if self.has(LeftOut::ClaimClosed) {
            self.gate.close(Reason::DRAIN);
        } else {
            self.gate.open(Reason::DRAIN);
        }
        self.gate.close(Reason::EMPTY);
        self.gate.open(Reason::EMPTY.and(Reason::EXITING));
        self.state.store(CLAIMED, Ordering::Release);
        true
    }

    /// What the keeper does to free records: `drain::sweep`.
    fn sweep(&self) {
        let _drain = lock(&self.drain);
        let _roster = self.has(LeftOut::RosterOfKeeper).then(|| lock(&self.roster));
        if self.is(FREE) {
            // What is there is zeros then, the gate too.
            // SAFETY: nobody has a free record; loom checks it.
            self.cached.with_mut(|cached| unsafe { *cached = 0 });
            let all = Reason::DRAIN.and(Reason::EMPTY).and(Reason::EXITING);
            self.gate.open(all);
            self.gate.unlock();
        }
    }

    /// Stops the record, if somebody has it and its gate is open: `drain::stop`. `is_picked`: that was so a moment ago.
    fn stop(&self, is_picked: bool) -> bool {
        self.cut.begin();
        if !is_picked && (!self.is(CLAIMED) || self.gate.reasons().has(Reason::DRAIN)) {
            return false;
        }
        assert!(self.gate.lock_within(u32::MAX));
        if !self.is(CLAIMED) {
            self.gate.unlock();
            return false;
        }
        self.gate.revoke();
        self.gate.heavy_in_model(&self.barrier);
        assert!(self.gate.wait_idle(u32::MAX));
        true
    }

    fn resume(&self, stopped: bool) {
        self.cut.end();
        if stopped {
            self.gate.unlock();
        }
    }

    /// A drain: `drain::take`.
    fn drain(&self, is_picked: bool) {
        let _drain = lock(&self.drain);
        let stopped = self.stop(is_picked);
        if stopped {
            self.empty();
        }
        self.resume(stopped);
    }

    fn total(&self) -> u64 {
        // SAFETY: every thread has ended.
        self.central.load(Ordering::Relaxed) + self.cached.with(|cached| unsafe { *cached })
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

fn spawn(world: &Arc<World>, work: fn(&World)) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || work(&world))
}

/// The next thread that would have the record.
fn next(world: &World) {
    if world.claim() {
        world.free();
    } else {
        world.central.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread frees and ends while another one drains.
fn exit_against_drain(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        let drainer = spawn(&world, |world| world.drain(false));
        world.free();
        world.exit();
        drainer.join().expect("no panic");
        // SAFETY: every thread has ended.
        let cached = world.cached.with(|cached| unsafe { *cached });
        assert_eq!(cached, 0, "a thread that is gone keeps nothing");
        assert_eq!(world.total(), 1, "nothing is lost, nothing is there twice");
    });
}

/// A thread ends, another one takes its record over, and a third drains.
fn exit_against_claim(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        let others = [spawn(&world, next), spawn(&world, |world| world.drain(false))];
        world.free();
        world.exit();
        others.into_iter().for_each(|other| other.join().expect("no panic"));
        assert_eq!(world.total(), 2, "nothing is lost, nothing is there twice");
    });
}

/// A thread ends, the keeper gives the record's pages back, and another thread takes it over.
fn exit_against_keeper(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        let keeper = spawn(&world, World::sweep);
        world.free();
        world.exit();
        next(&world);
        keeper.join().expect("no panic");
        assert_eq!(world.total(), 2, "nothing is lost, nothing is there twice");
    });
}

/// A thread has ended when a drain comes to stop its record; the keeper would give the pages back, and another thread
/// takes the record over, and ends.
fn keeper_against_drain() {
    explore(move || {
        let world = World::new(None);
        world.exit();
        let next = |world: &World| {
            if world.claim() {
                world.free();
                world.exit();
            }
        };
        let others = [
            spawn(&world, |world| world.drain(true)),
            spawn(&world, World::sweep),
            spawn(&world, next),
        ];
        others.into_iter().for_each(|other| other.join().expect("no panic"));
        assert_eq!(world.total(), 1, "nothing is lost, nothing is there twice");
    });
}

/// A record that is claimed in the middle of a cut is not worked on before its end.
fn claim_against_cut(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        world.exit();
        let claimer = spawn(&world, next);
        {
            let _drain = lock(&world.drain);
            let stopped = world.stop(false);
            // The attempt to charge: right only while nobody caches anything.
            // SAFETY: whoever has the record is stopped, or finds the cut under way; loom checks it.
            world.cached.with(|cached| unsafe { *cached });
            world.resume(stopped);
        }
        claimer.join().expect("no panic");
        assert_eq!(world.total(), 1, "nothing is lost, nothing is there twice");
    });
}

#[test]
fn loom_exit_of_a_thread_against_a_drain() {
    exit_against_drain(None);
}

#[test]
fn loom_exit_of_a_thread_against_the_next_of_its_record() {
    exit_against_claim(None);
}

#[test]
fn loom_exit_the_keeper_has_a_free_record_for_itself() {
    exit_against_keeper(None);
    keeper_against_drain();
}

#[test]
fn loom_exit_a_record_that_is_claimed_during_a_cut_waits_for_its_end() {
    claim_against_cut(None);
}

#[test]
fn loom_exit_needs_each_step() {
    let needs = |left_out: LeftOut, model: &dyn Fn(Option<LeftOut>)| {
        let run = catch_unwind(AssertUnwindSafe(|| model(Some(left_out))));
        assert!(run.is_err(), "the model passes without {left_out:?}");
    };
    needs(LeftOut::Gate(Weakened::Lock), &exit_against_drain);
    needs(LeftOut::Empty, &exit_against_drain);
    needs(LeftOut::ClaimClosed, &claim_against_cut);
    needs(LeftOut::Gate(Weakened::ReopenLook), &claim_against_cut);
    needs(LeftOut::RosterOfClaim, &exit_against_keeper);
    needs(LeftOut::RosterOfKeeper, &exit_against_keeper);
}
