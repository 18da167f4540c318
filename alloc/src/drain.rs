//! Taking back what threads cache.
//!
//! A drain stops the fast paths of the threads that it visits, all with one fence, takes what
//! it wants and lets them go on. Meanwhile they use the bypass. The drain before a refusal is
//! *one cut*: it visits every thread, and charges while all are still stopped. Visiting them
//! one by one would prove nothing: one thread frees after its visit what another had reused
//! before its own.
//!
//! Lock order: the drain mutex, then records' locks, then the tree's, then central lists'.
//! Every wait has a bound: a thread that was stopped inside its straight-line work is given up
//! on after [`PATIENCE_MS`], and counted.

use core::ptr;

use memcg_accounting::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock};
use memcg_accounting::{BarrierKind, GroupRef, Tag, now_ms};

use crate::cached::Cached;
use crate::fork::{AtFork, Place};
use crate::process::{BARRIER, TREE};
use crate::record::{self, Record};
use crate::{central, cooling, jemalloc};

/// One drain at a time.
pub(crate) static DRAIN: Lock<()> = Lock::new(());

/// How long a drain waits for all threads together.
const PATIENCE_MS: u32 = 100;
/// How long a fork does: what a thread has that it gave up on is lost to the child for good.
const FORK_PATIENCE_MS: u32 = 1000;

static NR_DRAINS: AtomicU64 = AtomicU64::new(0);
static NR_GIVEN_UP: AtomicU64 = AtomicU64::new(0);

/// How many drains there were, and how often a thread was given up on.
pub(crate) fn counts() -> (u64, u64) {
    (NR_DRAINS.load(Ordering::Relaxed), NR_GIVEN_UP.load(Ordering::Relaxed))
}

/// A full cut: every claimed record is stopped. The child takes over those of other threads.
pub(crate) static AT_FORK: AtFork = AtFork {
    place: Place::Threads,
    prepare: || {
        core::mem::forget(lock(&DRAIN));
        stop(&|_| true, FORK_PATIENCE_MS);
    },
    release: |in_child| {
        if in_child {
            record::take_over();
        }
        resume();
        // SAFETY: `prepare` took the mutex and forgot the guard.
        unsafe { DRAIN.force_unlock() };
    },
    in_child: || (),
};

/// Stops each claimed record that `pick` picks: its lock is held, its gate is closed and its
/// owner is out. The drain mutex is held, and stays so until [`resume`].
fn stop(pick: &dyn Fn(&Record) -> bool, patience_ms: u32) {
    NR_DRAINS.fetch_add(1, Ordering::Relaxed);
    let start = now_ms();
    let left = || patience_ms.saturating_sub(now_ms().wrapping_sub(start));
    for record in record::all() {
        let picked = record.is_claimed() && pick(record);
        let locked = picked && record.gate.lock_within(left());
        record.set_stopped(locked);
        if locked {
            record.gate.revoke();
        } else if picked {
            NR_GIVEN_UP.fetch_add(1, Ordering::Relaxed);
        }
    }
    fence_all();
    for record in record::all().filter(|record| record.is_stopped()) {
        if !record.gate.wait_idle(left()) {
            NR_GIVEN_UP.fetch_add(1, Ordering::Relaxed);
            record.set_stopped(false);
            record.gate.restore();
            record.gate.unlock();
        }
    }
}

/// Lets every stopped record go on.
fn resume() {
    for record in record::all().filter(|record| record.is_stopped()) {
        record.set_stopped(false);
        record.gate.restore();
        record.gate.unlock();
    }
}

/// Runs `work` on each claimed record that `pick` picks, stopped, and then `finish` while all
/// of them still are. The drain mutex is held.
fn with_stopped(
    pick: &dyn Fn(&Record) -> bool,
    work: &mut dyn FnMut(&Record, &mut Cached),
    finish: &mut dyn FnMut(),
) {
    stop(pick, PATIENCE_MS);
    // Also if a check panics in between: no record stays locked.
    let _resume = Resume;
    for record in record::all().filter(|record| record.is_stopped()) {
        // SAFETY: the record is stopped, and no other reference to its caches is made here.
        work(record, unsafe { record.cached() });
    }
    finish();
}

/// Lets every stopped record go on when it is dropped.
struct Resume;

impl Drop for Resume {
    fn drop(&mut self) {
        resume();
    }
}

/// The heavy fence. If `membarrier` has just begun to fail, owners are told to use full fences
/// and given time: a running one leaves its straight-line work in far less, and a preempted
/// one has passed a full barrier in the kernel.
fn fence_all() {
    if !BARRIER.heavy() {
        debug_assert_eq!(BARRIER.kind(), BarrierKind::Fence);
        record::announce_fence();
        pause_ms(10);
    }
}

fn pause_ms(ms: i64) {
    let pause = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
    // SAFETY: `pause` is valid for reading; no remainder is asked for.
    unsafe { libc::nanosleep(&raw const pause, ptr::null_mut()) };
}

/// Which tags a drain wants: those of a subtree. Remembers what it asked last, for objects of
/// one payer come in runs.
struct Subtree {
    top: GroupRef,
    last: Option<(Tag, bool)>,
}

impl Subtree {
    const fn new(top: GroupRef) -> Self {
        Self { top, last: None }
    }

    fn has(&mut self, tag: Tag) -> bool {
        if self.top.is_root() {
            return true;
        }
        match self.last {
            Some((last, is)) if last == tag => is,
            _ => {
                let is = TREE.contains(self.top, tag);
                self.last = Some((tag, is));
                is
            }
        }
    }
}

/// Takes back what every thread has cached of the subtree of `top`; answers the bytes.
pub(crate) fn tidy(top: GroupRef) -> u64 {
    let _drain = lock(&DRAIN);
    let mut bytes = 0;
    let mut subtree = Subtree::new(top);
    let mut work = |_: &Record, cached: &mut Cached| bytes += cached.drain(|tag| subtree.has(tag));
    with_stopped(&|_| true, &mut work, &mut || ());
    bytes
}

/// The one cut: see the [module](self). `attempt` is made once before, for another drain may
/// have paid, and once while all threads are stopped. Answers whether one succeeded.
pub(crate) fn cut(top: GroupRef, attempt: &mut dyn FnMut() -> bool) -> bool {
    let _drain = lock(&DRAIN);
    if attempt() {
        return true;
    }
    let mut done = false;
    let mut subtree = Subtree::new(top);
    let mut work = |_: &Record, cached: &mut Cached| {
        cached.drain(|tag| subtree.has(tag));
    };
    with_stopped(&|_| true, &mut work, &mut || done = attempt());
    done
}

/// Drains everything of everybody, lets go of groups that are gone, then runs `f` while all
/// threads are stopped.
pub(crate) fn everything<R>(f: impl FnOnce() -> R) -> Option<R> {
    let _drain = lock(&DRAIN);
    let mut f = Some(f);
    let mut answer = None;
    let mut work = |record: &Record, cached: &mut Cached| {
        cached.drain(|_| true);
        cached.prune(record.current());
    };
    with_stopped(&|_| true, &mut work, &mut || answer = f.take().map(|f| f()));
    answer
}

/// Drains the threads that have passed no slow path since the last call: so garbage is bounded
/// in time. Records that had no thread as long give their pages back. Answers whether any thread has something
/// cached still.
pub(crate) fn idle_threads() -> bool {
    let _drain = lock(&DRAIN);
    for record in record::all().filter(|record| record.is_free() && record.is_idle()) {
        // SAFETY: it has no owner, and gets none while the drain mutex is held.
        unsafe { record.cached() }.give_pages_back();
    }
    let busy = |record: &Record| record.is_claimed() && !record.is_drained();
    if !record::all().any(busy) {
        return false;
    }
    let pick = |record: &Record| record.is_idle() && !record.is_drained();
    let mut work = |record: &Record, cached: &mut Cached| {
        cached.retire();
        cached.give_pages_back();
        cached.prune(record.current());
        record.set_drained();
    };
    with_stopped(&pick, &mut work, &mut || ());
    true
}

/// Ticks that follow the last one that found something to do: jemalloc's pages decay meanwhile.
const LAST_TICKS: u32 = 15;

/// What the keeper does every 100 ms: drains idle threads, releases spans and pages that have
/// decayed. Answers whether it wants to be called again.
pub(crate) fn tick() -> bool {
    static LEFT: AtomicU32 = AtomicU32::new(0);
    let has_cached = idle_threads();
    let has_empty = central::release_empty(false);
    let has_warm = cooling::tick();
    jemalloc::decay();
    // Relaxed: only the keeper is here.
    let left = if has_cached || has_empty || has_warm {
        LAST_TICKS
    } else {
        LEFT.load(Ordering::Relaxed).saturating_sub(1)
    };
    LEFT.store(left, Ordering::Relaxed);
    left > 0
}

/// Shows `look` what each thread caches, then runs `finish`, with all threads stopped.
pub(crate) fn inspect(mut look: impl FnMut(&mut Cached), mut finish: impl FnMut()) {
    let _drain = lock(&DRAIN);
    with_stopped(&|_| true, &mut |_, cached| look(cached), &mut finish);
}

/// Bytes of objects that all threads cache.
pub(crate) fn cached_bytes() -> u64 {
    let mut bytes = 0;
    inspect(|cached| bytes += cached.bytes() as u64, || ());
    bytes
}

/// Takes back every cached charge of every thread: afterwards `usage()` is exact.
///
/// Stops the fast paths of all threads for the length of one membarrier and a walk over what
/// they cache: microseconds to a few milliseconds. Allocates nothing.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// let group = memcg::Group::root().create("drained")?;
/// drop(group.run(|| vec![0u8; 100]));
/// memcg::drain();
/// assert_eq!(group.usage(), 0);
/// # Ok::<(), memcg::Error>(())
/// ```
pub fn drain() {
    everything(|| ());
}

/// Gives free memory back to the system now: every thread's free objects go back to their
/// spans, empty spans to jemalloc, unused pages to the system, those too that lie between objects
/// that live.
///
/// Milliseconds, by how much there is to give back.
///
/// # Examples
///
/// ```
/// drop(vec![1u8; 10 << 20]);
/// memcg::purge();
/// ```
pub fn purge() {
    {
        let _drain = lock(&DRAIN);
        let mut work = |_: &Record, cached: &mut Cached| cached.flush_all();
        with_stopped(&|_| true, &mut work, &mut || ());
    }
    central::release_empty(true);
    cooling::all();
    jemalloc::purge();
}
