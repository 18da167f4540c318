//! Taking back what threads cache.
//!
//! A drain stops the fast paths of the threads that it visits, all with one fence, takes what
//! it wants and lets them go on. Meanwhile they use the bypass. The drain before a refusal is
//! *one cut*: it stops every thread that may have something of the group, and charges while all are
//! still stopped. Visiting them one by one would prove nothing: one thread frees after its visit what
//! another had reused before its own.
//!
//! A cut passes by whom an earlier one has left with a closed gate, if nothing of the group is known to be there
//! ([`Cut`]): of the others it looks at what nobody has looked at yet ([summary](crate::summary)).
//!
//! Lock order: the drain mutex, then records' locks, then the tree's, then central lists'.
//! Every wait has a bound: a thread that was stopped inside its straight-line work is given up
//! on after [`PATIENCE_MS`], and counted.

use core::ptr;

use memcg_accounting::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use memcg_accounting::{BarrierKind, Cut, GroupRef, Reason, Tag, Turns, cpu_us, now_ms, now_us};

use crate::cached::Cached;
use crate::fork::{AtFork, Place};
use crate::process::{BARRIER, TREE};
use crate::record::{self, Record};
use crate::roster::{self, Slot, Swept};
use crate::subtree::Subtree;
use crate::{budget, central, cooling, jemalloc};

/// One drain at a time, in the order in which they are wanted.
static DRAIN: Turns = Turns::new();

/// Whether one has threads stopped: see [`Cut`].
pub(crate) static CUT: Cut = Cut::new();
/// The first that it has stopped. The drain mutex guards the list.
static STOPPED: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

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
        core::mem::forget(DRAIN.wait());
        roster::lock_all();
        stop(&|_| true, FORK_PATIENCE_MS);
    },
    release: |in_child| {
        if in_child {
            record::take_over();
        }
        resume();
        // SAFETY: `prepare` took it.
        unsafe { roster::unlock_all() };
        if in_child {
            // SAFETY: `prepare` took the turn and forgot it; who waited is not here.
            unsafe { DRAIN.force_end_alone() };
        } else {
            // SAFETY: `prepare` took the turn and forgot it.
            unsafe { DRAIN.force_end() };
        }
    },
    in_child: || (),
};

/// Stops each claimed record that `pick` picks: its lock is held, its gate is closed and its
/// owner is out. The drain mutex is held, and stays so until [`resume`].
fn stop(pick: &dyn Fn(&Record) -> bool, patience_ms: u32) {
    NR_DRAINS.fetch_add(1, Ordering::Relaxed);
    let start = now_ms();
    let left = || patience_ms.saturating_sub(now_ms().wrapping_sub(start));
    CUT.begin();
    let (mut first, mut any_open) = (None, false);
    for slot in roster::claimed().filter(|slot| pick(slot.record())) {
        let gate = &slot.record().gate;
        if !gate.lock_within(left()) {
            NR_GIVEN_UP.fetch_add(1, Ordering::Relaxed);
        } else if slot.is_claimed() {
            any_open |= !gate.reasons().has(Reason::DRAIN);
            gate.revoke();
            slot.set_stopped(true);
            slot.set_next_stopped(first);
            first = Some(slot);
        } else {
            gate.unlock();
        }
    }
    STOPPED.store(
        first.map_or(ptr::null_mut(), |slot| ptr::from_ref(slot).cast_mut()),
        Ordering::Relaxed,
    );
    if any_open {
        fence_all();
    }
    for slot in stopped() {
        let gate = &slot.record().gate;
        if !gate.wait_idle(left()) {
            NR_GIVEN_UP.fetch_add(1, Ordering::Relaxed);
            slot.set_stopped(false);
            gate.restore();
            gate.unlock();
        }
    }
}

/// The records that are stopped.
fn stopped() -> impl Iterator<Item = &'static Slot> {
    // SAFETY: it is null or a slot, which lives for ever.
    let first = unsafe { STOPPED.load(Ordering::Relaxed).as_ref() };
    core::iter::successors(first, |slot| slot.next_stopped()).filter(|slot| slot.is_stopped())
}

/// Lets every stopped record go on.
fn resume() {
    resume_and(Gates::Opened);
}

/// How a drain leaves the gates of those that it had stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gates {
    Opened,
    /// For their owners to open. Only where whose all that is cached is has been looked at: see
    /// [`Record::concerns`].
    Closed,
}

fn resume_and(gates: Gates) {
    CUT.end();
    for slot in stopped() {
        slot.set_stopped(false);
        let gate = &slot.record().gate;
        if gates == Gates::Opened {
            gate.restore();
        }
        gate.unlock();
    }
    STOPPED.store(ptr::null_mut(), Ordering::Relaxed);
}

/// Runs `work` on each claimed record that `pick` picks, stopped, and then `finish` while all
/// of them still are. The drain mutex is held.
fn with_stopped(
    gates: Gates,
    pick: &dyn Fn(&Record) -> bool,
    work: &mut dyn FnMut(&Record, &mut Cached),
    finish: &mut dyn FnMut(),
) {
    stop(pick, PATIENCE_MS);
    // Also if a check panics in between: no record stays locked.
    let mut resume = Resume(Gates::Opened);
    for record in stopped().map(Slot::record) {
        // SAFETY: the record is stopped, and no other reference to its caches is made here.
        work(record, unsafe { record.cached() });
    }
    resume.0 = gates;
    finish();
}

/// Lets every stopped record go on when it is dropped.
struct Resume(Gates);

impl Drop for Resume {
    fn drop(&mut self) {
        resume_and(self.0);
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

/// What a drain of a subtree came to.
struct Took {
    bytes: u64,
    /// It stopped threads that pay for another tenant, or for none.
    has_others: bool,
}

/// Stops whoever may have something of `subtree`, takes it, then runs `finish`. `tenant` is the number of the tree that
/// it is for. The drain mutex is held.
fn take(subtree: &Subtree, tenant: u32, finish: &mut dyn FnMut()) -> Took {
    let mut took = Took { bytes: 0, has_others: false };
    let mut wanted = subtree.clone();
    let mut work = |record: &Record, cached: &mut Cached| {
        took.has_others |= TREE.number_of(record.current()) != tenant;
        took.bytes += cached.drain(&mut wanted);
    };
    with_stopped(Gates::Closed, &|record| record.concerns(subtree), &mut work, finish);
    took
}

/// Takes back what every thread has cached of the subtree of `top`; answers the bytes.
pub(crate) fn tidy(top: GroupRef) -> u64 {
    let _drain = DRAIN.wait();
    Subtree::of(top).map_or(0, |subtree| take(&subtree, 0, &mut || ()).bytes)
}

/// The one cut: see the [module](self). `attempt` is made once before, for another drain may
/// have paid, and once while all threads are stopped. Answers whether one succeeded. `payer` owes what others
/// lose meanwhile.
pub(crate) fn cut(top: GroupRef, payer: Tag, attempt: &mut dyn FnMut() -> bool) -> bool {
    let _drain = DRAIN.wait();
    if attempt() {
        return true;
    }
    let mut done = false;
    match Subtree::of(top) {
        Some(subtree) => {
            let tenant = TREE.number_of(payer);
            let start = cpu_us();
            let took = take(&subtree, tenant, &mut || done = attempt());
            if took.has_others {
                let took = cpu_us().saturating_sub(start).max(1);
                budget::account(tenant).add(now_us(), took);
            }
        }
        // The group is gone, and with it the limit.
        None => done = attempt(),
    }
    done
}

/// Drains everything of everybody, lets go of groups that are gone, then runs `f` while all
/// threads are stopped.
pub(crate) fn everything<R>(f: impl FnOnce() -> R) -> Option<R> {
    let _drain = DRAIN.wait();
    let mut f = Some(f);
    let mut answer = None;
    let mut work = |record: &Record, cached: &mut Cached| {
        cached.drain(&mut Subtree::all());
        cached.prune(record.current());
    };
    with_stopped(Gates::Closed, &|_| true, &mut work, &mut || answer = f.take().map(|f| f()));
    answer
}

/// Drains the threads that have passed no slow path since the last call: so garbage is bounded
/// in time. Answers whether any thread has something cached still.
pub(crate) fn idle_threads() -> bool {
    let _drain = DRAIN.wait();
    if roster::claimed().all(|slot| slot.record().is_drained()) {
        return false;
    }
    let pick = |record: &Record| record.is_idle() && !record.is_drained();
    let mut work = |record: &Record, cached: &mut Cached| {
        cached.retire();
        cached.give_pages_back();
        cached.prune(record.current());
        record.set_drained();
    };
    with_stopped(Gates::Closed, &pick, &mut work, &mut || ());
    true
}

/// Gives the pages of free records back that `picks` picks. Answers whether free records have pages still.
fn sweep(picks: impl Fn(&Record) -> bool) -> bool {
    loop {
        let _drain = DRAIN.wait();
        // SAFETY: the record is free, and stays so while the drain mutex and the roster's lock are held.
        let give_back = |record: &Record| unsafe { record.give_pages_back() };
        let Swept { is_cut_short, has_more } = roster::sweep(&picks, give_back);
        if !is_cut_short {
            return has_more;
        }
    }
}

/// Ticks that follow the last one that found something to do: jemalloc's pages decay meanwhile.
const LAST_TICKS: u32 = 15;

/// What the keeper does every 100 ms: drains idle threads, releases spans and pages that have
/// decayed. Answers whether it wants to be called again.
pub(crate) fn tick() -> bool {
    static LEFT: AtomicU32 = AtomicU32::new(0);
    let has_cached = idle_threads() | sweep(Record::is_idle);
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
    let _drain = DRAIN.wait();
    with_stopped(Gates::Opened, &|_| true, &mut |_, cached| look(cached), &mut finish);
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
        let _drain = DRAIN.wait();
        let mut work = |_: &Record, cached: &mut Cached| cached.flush_all();
        with_stopped(Gates::Opened, &|_| true, &mut work, &mut || ());
    }
    sweep(|_| true);
    central::release_empty(true);
    cooling::all();
    jemalloc::purge();
}
