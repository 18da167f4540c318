//! The owner's fast path against whoever revokes it.
//!
//! The models run [`Gate`] and [`Barrier`] themselves over one cell that has no protection but
//! theirs; loom panics when two accesses to it are not ordered. Each ordering and step that the
//! gate names in [`Weakened`] is left out once, and a model must see it. loom does not know
//! asymmetric fences, so both sides take full ones: what is shown is that the two fences are
//! enough and that all the rest is needed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;

use crate::gate::Weakened;
use crate::sync::{Lock, lock};
use crate::{Barrier, Gate, Reason};

/// What a record would hold: how many objects its owner put there and nobody took.
struct Record {
    gate: Gate,
    barrier: Barrier,
    drains: Lock<()>,
    objects: UnsafeCell<u64>,
}

// SAFETY: `objects` is what the models test: loom panics if an access to it is not ordered.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

/// How the owner enters its gate.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    Membarrier,
    Fence,
}

impl Record {
    fn new(site: Option<Weakened>, path: Path) -> Arc<Self> {
        let gate = Gate::weakened(site);
        if path == Path::Fence {
            gate.close(Reason::FENCE);
        }
        let (barrier, drains) = (Barrier::new(), Lock::new(()));
        Arc::new(Self { gate, barrier, drains, objects: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: the caller is the owner inside its gate, or holds the lock; loom checks it.
        self.objects.with_mut(|objects| unsafe { *objects += 1 });
    }

    fn take(&self) -> u64 {
        // SAFETY: as in `add`.
        self.objects.with_mut(|objects| unsafe { core::mem::take(&mut *objects) })
    }

    /// The fast path, else the slow one. Answers how many objects were put into the record.
    fn push(&self, path: Path) -> u64 {
        let entered = match path {
            Path::Membarrier => self.gate.enter(),
            Path::Fence => self.gate.enter_fenced(),
        };
        if entered {
            self.add();
            self.gate.leave();
            return 1;
        }
        self.push_slowly()
    }

    /// The slow path: under the lock, or not at all (the bypass).
    fn push_slowly(&self) -> u64 {
        if !self.gate.try_lock() {
            return 0;
        }
        self.add();
        self.gate.unlock();
        1
    }

    /// Takes all, as a drainer that must: drains like this wait for each other in a mutex.
    fn drain(&self) -> u64 {
        let _drains = lock(&self.drains);
        assert!(self.gate.lock_within(u32::MAX));
        self.drain_locked()
    }

    /// Takes all, as a drainer that only tidies: it passes over a record that is locked.
    fn tidy(&self) -> u64 {
        if self.gate.try_lock() { self.drain_locked() } else { 0 }
    }

    fn drain_locked(&self) -> u64 {
        self.gate.revoke();
        self.gate.heavy_in_model(&self.barrier);
        assert!(self.gate.wait_idle(u32::MAX));
        let taken = self.take();
        self.gate.restore();
        self.gate.unlock();
        taken
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

type Drain = fn(&Record) -> u64;
const ONE: &[Drain] = &[Record::drain];
const TWO_TIDY: &[Drain] = &[Record::tidy, Record::tidy];
const TWO: &[Drain] = &[Record::drain, Record::drain];

/// The owner of a record and its drainers: nothing is lost, nothing is taken twice.
fn owner_and_drainers(
    site: Option<Weakened>,
    path: Path,
    drainers: &'static [Drain],
    owner: fn(&Record, Path) -> u64,
) {
    explore(move || {
        let record = Record::new(site, path);
        let others: std::vec::Vec<_> = drainers
            .iter()
            .map(|drain| {
                let record = Arc::clone(&record);
                thread::spawn(move || drain(&record))
            })
            .collect();
        let put = owner(&record, path);
        let taken: u64 = others.into_iter().map(|other| other.join().expect("no panic")).sum();
        assert_eq!(put, taken + record.take());
        let reasons = if path == Path::Fence { Reason::FENCE } else { Reason::NONE };
        assert!(record.gate.reasons().is(reasons), "open again");
    });
}

fn fast_once(record: &Record, path: Path) -> u64 {
    record.push(path)
}

fn fast_twice(record: &Record, path: Path) -> u64 {
    record.push(path) + record.push(path)
}

fn slow(record: &Record, _: Path) -> u64 {
    record.push_slowly()
}

/// The owner closes its gate for a reason of its own, works on the slow path, and opens it.
fn eager_then_fast(record: &Record, path: Path) -> u64 {
    record.gate.close(Reason::RECLAIM);
    let slowly = record.push(path);
    record.gate.open(Reason::RECLAIM);
    slowly + record.push(path)
}

/// Says that the model sees the difference: it panics with `site` left out.
fn is_needed(
    site: Weakened,
    path: Path,
    drainers: &'static [Drain],
    owner: fn(&Record, Path) -> u64,
) {
    let run = AssertUnwindSafe(|| owner_and_drainers(Some(site), path, drainers, owner));
    let panic = catch_unwind(run).expect_err("the model passes without it");
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("");
    assert!(
        text.contains("Causality violation") || text.contains("assertion"),
        "it fails by what it checks, not by {text:?}"
    );
}

#[test]
fn loom_one_drainer() {
    owner_and_drainers(None, Path::Membarrier, ONE, fast_twice);
    owner_and_drainers(None, Path::Membarrier, ONE, slow);
    owner_and_drainers(None, Path::Membarrier, ONE, eager_then_fast);
}

#[test]
fn loom_two_drainers() {
    owner_and_drainers(None, Path::Membarrier, TWO, fast_once);
    owner_and_drainers(None, Path::Membarrier, TWO_TIDY, fast_twice);
}

#[test]
fn loom_one_drainer_fenced() {
    owner_and_drainers(None, Path::Fence, ONE, fast_twice);
    owner_and_drainers(None, Path::Fence, ONE, eager_then_fast);
}

#[test]
fn loom_two_drainers_fenced() {
    owner_and_drainers(None, Path::Fence, TWO, fast_once);
    owner_and_drainers(None, Path::Fence, TWO_TIDY, fast_twice);
}

/// One test per site, on both paths where the owner's part differs.
macro_rules! needed {
    ($($name:ident: $site:ident, $drainers:ident, $owner:ident;)*) => {$(
        #[test]
        fn $name() {
            is_needed(Weakened::$site, Path::Membarrier, $drainers, $owner);
            is_needed(Weakened::$site, Path::Fence, $drainers, $owner);
        }
    )*};
}

needed! {
    loom_needs_the_owners_fence: OwnerFence, ONE, fast_once;
    loom_needs_the_acquire_of_revoke: RevokeAcquire, ONE, fast_once;
    loom_needs_the_release_of_leave: LeaveRelease, ONE, fast_once;
    loom_needs_the_heavy_fence: HeavyFence, ONE, fast_once;
    loom_needs_the_wait: Wait, ONE, fast_once;
    loom_needs_the_acquire_of_busy: BusyAcquire, ONE, fast_once;
    loom_needs_the_release_of_restore: RestoreRelease, ONE, fast_once;
    loom_needs_the_revoke: Revoke, ONE, fast_once;
    loom_needs_the_lock: Lock, ONE, slow;
    loom_needs_the_lock_between_drainers: Lock, TWO_TIDY, fast_once;
    loom_needs_the_order_of_the_lock: LockOrder, ONE, slow;
}
