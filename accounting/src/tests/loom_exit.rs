//! The end of a thread against a drain, and against the thread that has its record next.
//!
//! The gate and the fence are the real ones; around them stands the shape of `record.rs` and
//! `drain.rs` of the layer above: who ends takes the lock, empties the record, and makes it free; who
//! drains looks at claimed records; who begins claims a free one; the keeper looks at free ones. loom panics where two of them are
//! at one record's caches, and at the end nothing may be lost or there twice.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::gate::Weakened;
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock, try_lock};
use crate::{Barrier, Gate, Reason};

const FREE: u32 = 0;
const CLAIMED: u32 = 1;

/// What a model leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    /// A step of the gate.
    Gate(Weakened),
    /// The Release with which the record becomes free.
    FreeRelease,
    /// The Acquire with which it is found free.
    FreeAcquire,
    /// Emptying the record before it is free.
    Empty,
    /// The drain mutex of whoever claims.
    DrainMutex,
}

struct World {
    gate: Gate,
    barrier: Barrier,
    drain: Lock<()>,
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
        Arc::new(Self {
            gate: Gate::weakened(site),
            barrier: Barrier::new(),
            drain: Lock::new(()),
            state: AtomicU32::new(CLAIMED),
            cached: UnsafeCell::new(0),
            central: AtomicU64::new(0),
            left_out,
        })
    }

    fn unless(&self, site: LeftOut, order: Ordering) -> Ordering {
        if self.left_out == Some(site) { Ordering::Relaxed } else { order }
    }

    /// A free of the record's owner: fast, or past the record.
    fn free(&self) {
        if self.gate.enter() {
            // SAFETY: the gate is passed; loom checks it.
            self.cached.with_mut(|cached| unsafe { *cached += 1 });
            self.gate.leave();
        } else {
            self.central.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn empty(&self) {
        // SAFETY: the lock is held and the owner is not in the gate; loom checks it.
        let n = self.cached.with_mut(|cached| unsafe { core::mem::take(&mut *cached) });
        self.central.fetch_add(n, Ordering::Relaxed);
    }

    /// The thread ends: `record::on_thread_exit`.
    fn exit(&self) {
        self.gate.close(Reason::EXITING);
        assert!(self.gate.lock_within(u32::MAX));
        if self.left_out != Some(LeftOut::Empty) {
            self.empty();
        }
        self.gate.close(Reason::EMPTY);
        self.gate.unlock();
        self.state.store(FREE, self.unless(LeftOut::FreeRelease, Ordering::Release));
    }

    /// What the keeper does to a record that has no thread: `drain::idle_threads`.
    fn tidy_if_free(&self) {
        let drain = try_lock(&self.drain);
        if drain.is_none() && self.left_out != Some(LeftOut::DrainMutex) {
            return;
        }
        if self.state.load(self.unless(LeftOut::FreeAcquire, Ordering::Acquire)) == FREE {
            self.empty();
        }
    }

    /// A drain: `drain::with_stopped`.
    fn drain(&self) {
        let _drain = lock(&self.drain);
        if self.state.load(Ordering::Acquire) != CLAIMED {
            return;
        }
        assert!(self.gate.lock_within(u32::MAX));
        self.gate.revoke();
        self.gate.heavy_in_model(&self.barrier);
        assert!(self.gate.wait_idle(u32::MAX));
        self.empty();
        self.gate.restore();
        self.gate.unlock();
    }

    /// Another thread begins: `record::own`, and `open`. `false`: it goes past the record.
    fn claim(&self) -> bool {
        let drain = try_lock(&self.drain);
        if drain.is_none() && self.left_out != Some(LeftOut::DrainMutex) {
            return false;
        }
        if self.state.load(self.unless(LeftOut::FreeAcquire, Ordering::Acquire)) != FREE {
            return false;
        }
        self.gate.open(Reason::EMPTY.and(Reason::EXITING));
        self.state.store(CLAIMED, Ordering::Release);
        true
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

/// A thread frees and ends while another one drains.
fn exit_against_drain(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        let drainer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.drain())
        };
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
        let next = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                if world.claim() {
                    world.free();
                } else {
                    world.central.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let drainer = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.drain())
        };
        world.free();
        world.exit();
        next.join().expect("no panic");
        drainer.join().expect("no panic");
        assert_eq!(world.total(), 2, "nothing is lost, nothing is there twice");
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
#[should_panic(expected = "Causality violation")]
fn loom_exit_needs_the_lock() {
    exit_against_drain(Some(LeftOut::Gate(Weakened::Lock)));
}

#[test]
#[should_panic(expected = "keeps nothing")]
fn loom_exit_needs_to_empty_the_record() {
    exit_against_drain(Some(LeftOut::Empty));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_exit_needs_the_release_of_a_free_record() {
    exit_against_claim(Some(LeftOut::FreeRelease));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_exit_needs_the_acquire_of_a_free_record() {
    exit_against_claim(Some(LeftOut::FreeAcquire));
}

/// A thread ends, the keeper looks at its record, and another thread takes it over.
fn exit_against_keeper(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        let keeper = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.tidy_if_free())
        };
        world.free();
        world.exit();
        if world.claim() {
            world.free();
        } else {
            world.central.fetch_add(1, Ordering::Relaxed);
        }
        keeper.join().expect("no panic");
        assert_eq!(world.total(), 2, "nothing is lost, nothing is there twice");
    });
}

#[test]
fn loom_exit_the_keeper_has_a_free_record_for_itself() {
    exit_against_keeper(None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_exit_the_keeper_needs_the_acquire_of_a_free_record() {
    exit_against_keeper(Some(LeftOut::FreeAcquire));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_exit_the_keeper_needs_the_drain_mutex() {
    exit_against_keeper(Some(LeftOut::DrainMutex));
}

/// What a cut sees while it holds every thread: a record that is claimed in the middle of it, and open, is one that it has not
/// stopped.
fn claim_against_cut(left_out: Option<LeftOut>) {
    explore(move || {
        let world = World::new(left_out);
        world.exit();
        let next = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                if world.claim() {
                    world.free();
                }
            })
        };
        {
            let _drain = lock(&world.drain);
            let stopped = world.state.load(Ordering::Acquire) == CLAIMED;
            if stopped {
                assert!(world.gate.lock_within(u32::MAX));
                world.gate.revoke();
                world.gate.heavy_in_model(&world.barrier);
                assert!(world.gate.wait_idle(u32::MAX));
            }
            // The attempt to charge, which is right only while all claimed records are stopped.
            thread::yield_now();
            let claimed = world.state.load(Ordering::Acquire) == CLAIMED;
            assert_eq!(claimed, stopped, "a record that nobody stopped is in use during a cut");
            if stopped {
                world.gate.restore();
                world.gate.unlock();
            }
        }
        next.join().expect("no panic");
    });
}

#[test]
fn loom_exit_no_record_is_claimed_during_a_cut() {
    claim_against_cut(None);
}

#[test]
#[should_panic(expected = "in use during a cut")]
fn loom_exit_needs_the_drain_mutex_of_who_claims() {
    claim_against_cut(Some(LeftOut::DrainMutex));
}
