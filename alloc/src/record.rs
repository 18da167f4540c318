//! Thread records: what belongs to one thread, and how a thread comes by it.
//!
//! ```text
//!   thread-local pointer ─► EMPTY            before first use: its gate is always closed
//!                        ─► record           claimed: gate, current tag, caches, request
//!                        ─► EMPTY            after exit: allocations take the bypass
//! ```
//!
//! Records are mapped once, never unmapped, and claimed again: [roster](crate::roster).
//!
//! # Invariants
//!
//! - `cached` is touched only as [`Gate`] says.
//! - `current` is written by the owner alone. Where it is a tag, the record's stock has an
//!   entry for it, so the tag is not reused; `UNSETTLED` is no object's tag.
//! - `pending` is pinned: a payer that became current while somebody else had the record.
//! - A free record caches nothing and pins nothing.
//! - Once the process looks at tags every claimed record says so, before the first group is made.
//! - A record is claimed with its gate closed for [`Reason::DRAIN`]: in the middle of a cut its owner works
//!   without it.

use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::ptr;

use memcg_accounting::sync::{AtomicBool, AtomicU32, Ordering, fence};
use memcg_accounting::{BarrierKind, Gate, GroupRef, Payer, Reason, Request, SYSTEM, Tag};

use crate::cached::Cached;
use crate::drain::CUT;
use crate::jemalloc;
use crate::magazine;
use crate::os;
use crate::process::{self, BARRIER, ENGINE, TREE};
use crate::roster;
use crate::scope;
use crate::subtree::Subtree;
use crate::summary::Sums;

/// A current tag that no object has: the owner's next allocation settles who pays.
const UNSETTLED: u32 = u32::MAX;

/// A thread's record. Zeros are one that caches nothing, with an open gate.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Record {
    pub(crate) gate: Gate,
    current: AtomicU32,
    /// [`process::is_tracking`], here on the line that the fast path reads anyway.
    tracks: AtomicBool,
    cached: UnsafeCell<Cached>,
    /// Whose objects `cached` has, as far as is known.
    sums: Sums,
    pub(crate) request: Request,
    /// The number of the record's slot.
    slot: AtomicU32,
    /// The owner's alone: tag and generation.
    pending: [AtomicU32; 2],
    /// Moves on at each slow path of the owner: a record that stays behind is idle.
    passes: AtomicU32,
    seen_passes: AtomicU32,
    /// Whether a drain of idle threads left nothing here; the next slow path clears it.
    is_drained: AtomicBool,
    /// Whether the owner waits for memory.
    is_stalled: AtomicBool,
}

// A class is told by where its magazine is; they come first in `Cached`, and in `Magazines`.
const _: () = assert!(core::mem::offset_of!(Record, cached) == crate::class::FIRST);
const _: () = assert!(Cached::MAGAZINES_AT == 0);

// SAFETY: `cached` is reached only as `Gate` says, `current` by the owner alone (readers on
// other threads go through the lock and do not look at it); the rest is atomics.
unsafe impl Sync for Record {}

/// What a thread has before its first slow path and after its exit. Writable, for the fast path
/// writes `busy` before it looks.
static EMPTY: Record = Record::closed(Reason::EMPTY);

thread_local! {
    static RECORD: Cell<&'static Record> = const { Cell::new(&EMPTY) };
    /// Whether the exit hook has run.
    static EXITED: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread's record.
#[inline(always)]
pub(crate) fn record() -> &'static Record {
    RECORD.get()
}

impl Record {
    /// What [`EMPTY`] is.
    const fn closed(reason: Reason) -> Self {
        Self {
            gate: Gate::closed(reason),
            current: AtomicU32::new(UNSETTLED),
            tracks: AtomicBool::new(false),
            cached: UnsafeCell::new(Cached::new()),
            sums: Sums::new(),
            request: Request::new(),
            slot: AtomicU32::new(u32::MAX),
            pending: [const { AtomicU32::new(0) }; 2],
            passes: AtomicU32::new(0),
            seen_passes: AtomicU32::new(0),
            is_drained: AtomicBool::new(true),
            is_stalled: AtomicBool::new(false),
        }
    }

    /// The tag of who pays for the owner's allocations.
    #[inline(always)]
    pub(crate) fn current(&self) -> Tag {
        // Relaxed: only the owner writes it; a drain reads it with the record stopped, and who
        // looks who is busy takes what it finds.
        Tag::from_bits(self.current.load(Ordering::Relaxed))
    }

    /// Whether tags must be looked at. Relaxed: see [`process::is_tracking`].
    #[inline(always)]
    pub(crate) fn tracks(&self) -> bool {
        process::ACCOUNTED && self.tracks.load(Ordering::Relaxed)
    }

    fn set_current(&self, bits: u32) {
        self.current.store(bits, Ordering::Relaxed);
    }

    /// What the record caches.
    ///
    /// # Safety
    ///
    /// - The caller is the owner inside the gate, or holds the lock as [`Gate`] says; or the record is free, and the
    ///   caller holds the drain mutex, so that it stays so.
    /// - No other reference to it exists.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the gate makes the access exclusive")]
    pub(crate) unsafe fn cached(&self) -> &mut Cached {
        // SAFETY: by contract.
        unsafe { &mut *self.cached.get() }
    }

    /// Leaves nothing in it, no pins either.
    ///
    /// # Safety
    ///
    /// As for [`cached`](Record::cached), and the owner is the caller or does not exist.
    unsafe fn empty(&self) {
        // SAFETY: by contract.
        unsafe { self.cached() }.empty();
        TREE.unpin(self.set_pending(Payer::NOBODY).tag);
    }

    /// The number of the record's slot.
    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Takes the lock for the owner, which is about to work on what the record caches. `false`: somebody else has
    /// it, or a cut is under way.
    pub(crate) fn try_own(&self) -> bool {
        if !self.gate.try_lock() {
            return false;
        }
        let is_open = self.gate.reopen(&CUT);
        if !is_open {
            self.gate.unlock();
        }
        is_open
    }

    /// Whether a cut for `subtree`, which has begun, must stop the record: for its gate is open, so that it may have
    /// anything, or something of the subtree is known to be there.
    pub(crate) fn concerns(&self, subtree: &Subtree) -> bool {
        !self.gate.reasons().has(Reason::DRAIN) || self.sums.may_have(subtree)
    }

    /// Notes a slow path of the owner. Relaxed: hints for who looks for idle threads.
    pub(crate) fn pass(&self) {
        self.passes.store(self.passes.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if self.is_drained() {
            self.is_drained.store(false, Ordering::Relaxed);
            if process::is_tracking() {
                // From now on there may be garbage that only time takes away.
                ENGINE.want_ticks();
            }
        }
    }

    /// Whether nothing has been cached since a drain of idle threads.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    pub(crate) fn set_drained(&self) {
        self.is_drained.store(true, Ordering::Relaxed);
    }

    /// Relaxed: it tells who is busy, and nothing else.
    pub(crate) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.is_stalled.store(stalled, Ordering::Relaxed);
    }

    /// Whether the owner has passed no slow path since the last call.
    pub(crate) fn is_idle(&self) -> bool {
        let passes = self.passes.load(Ordering::Relaxed);
        self.seen_passes.swap(passes, Ordering::Relaxed) == passes
    }

    /// Makes the record pay as the thread's scope says, pinning the payer. The owner holds the
    /// lock. Answers the payer.
    pub(crate) fn settle(&self) -> Payer {
        let payer = scope::current().payer();
        let pending = self.set_pending(Payer::NOBODY);
        // That the current tag is the payer's says nothing: it is its entry's, and the scope may be a leaked
        // one, of an earlier user of the tag. So the stock is asked for the payer (`Tree::settle`).
        // SAFETY: the owner holds the lock, and no reference is kept.
        if unsafe { self.cached() }.settle(payer, self.current()) {
            self.set_current(payer.tag.to_bits());
            TREE.unpin(pending.tag);
            return payer;
        }
        TREE.unpin(pending.tag);
        // Its group went, and everything that it was charged for.
        scope::payer_is_gone();
        let root = scope::current().payer();
        if root == payer {
            return Payer::NOBODY;
        }
        self.settle()
    }

    /// Notes who is pinned until the owner has its record; answers who was. The owner calls it.
    fn set_pending(&self, payer: Payer) -> Payer {
        let [tag, generation] = &self.pending;
        let before = Payer {
            tag: Tag::from_bits(tag.load(Ordering::Relaxed)),
            generation: generation.load(Ordering::Relaxed),
        };
        if before != payer {
            tag.store(payer.tag.to_bits(), Ordering::Relaxed);
            generation.store(payer.generation, Ordering::Relaxed);
        }
        before
    }

    /// Keeps `payer`, which has become current while somebody else has the record, until the owner
    /// [settles](Record::settle). One that is gone already is found to be then.
    fn keep_pending(&self, payer: Payer) {
        self.set_current(UNSETTLED);
        let kept = if TREE.pin(payer) { payer } else { Payer::NOBODY };
        let before = self.set_pending(kept);
        TREE.unpin(before.tag);
    }

    /// Gives all pages back to the system: what is there is zeros then.
    ///
    /// # Safety
    ///
    /// The record is free, and stays so until this is done: nobody has anything to do with it.
    pub(crate) unsafe fn give_pages_back(&self) {
        let pages = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: a record begins its mapping, which is as long, and by contract nobody reads what it holds.
        unsafe { os::give_back(pages, mapping_bytes()) };
    }
}

/// Whether the calling thread has no record.
pub(crate) fn is_empty() -> bool {
    ptr::eq(record(), &raw const EMPTY)
}

/// Bytes of address space of records whose pages may be resident.
pub(crate) fn metadata_bytes() -> usize {
    roster::nr_with_pages() * mapping_bytes()
}

/// The calling thread's scope has changed, and `payer` pays: its record follows. A payer that the
/// stock has an entry for costs no atomic, another one a lock and a pin.
#[inline]
pub(crate) fn current_changed(payer: Payer) {
    let record = record();
    if record.gate.enter() {
        // SAFETY: the gate is passed, and the reference ends before `leave`.
        let holds = payer.tag.is_nobody() || unsafe { record.cached() }.select(payer);
        // INVARIANT: the tag becomes current before a drain can take its entry out.
        record.set_current(if holds { payer.tag.to_bits() } else { UNSETTLED });
        record.gate.leave();
        if holds {
            return;
        }
    }
    settle_now();
}

/// The rest of it, for a payer that the record has no entry of, or a gate that is closed.
#[cold]
fn settle_now() {
    // Before the first allocation there is no group to keep, and the allocator, which knows what
    // the root is to be, has not been heard of.
    if !process::has_begun() {
        return;
    }
    // The pin matters even if nothing is allocated: a scope that is leaked must not come to
    // mean a stranger.
    let Some(record) = own() else { return };
    if record.try_own() {
        // An entry pins its payer: a drain of idle threads lets go of it.
        record.pass();
        record.settle();
        record.gate.unlock();
    } else {
        record.keep_pending(scope::current().payer());
    }
}

/// The calling thread's record, claimed if it has none. `None`: it can't have one now; its
/// allocations take the bypass.
pub(crate) fn own() -> Option<&'static Record> {
    let record = record();
    if !ptr::eq(record, &raw const EMPTY) {
        return Some(record);
    }
    if EXITED.get() || !process::has_begun() {
        return None;
    }
    let record = roster::claim(map, prepare)?;
    open(record);
    // While it lives: after its exit hook it may need large objects, or spans, for the first time.
    jemalloc::meet();
    RECORD.set(record);
    Some(record)
}

/// Makes a record ready for the calling thread, which is about to claim it. It stays closed.
fn prepare(record: *mut Record, slot: u32, is_zero: bool) -> bool {
    // SAFETY: the mapping is large enough, page-aligned, never unmapped, and no thread has it; zeros are a record.
    let record = unsafe { &*record };
    if is_zero {
        begin(record);
    }
    // A cut may be under way.
    record.gate.close(Reason::DRAIN);
    record.slot.store(slot, Ordering::Relaxed);
    process::arm_exit_hook(ptr::from_ref(record).cast())
}

/// Makes a record that was just claimed one that its owner's first slow path opens.
fn open(record: &'static Record) {
    // Partner: the fence in `announce_fence`. Either that finds the record, which is listed by now, or this
    // finds what is announced.
    fence(Ordering::SeqCst);
    if BARRIER.kind() == BarrierKind::Fence {
        record.gate.close(Reason::FENCE);
    }
    if scope::eager().depth > 0 {
        record.gate.close(Reason::RECLAIM);
    } else {
        // The owner before may have been lost in a `fork` while it reclaimed.
        record.gate.open(Reason::RECLAIM);
    }
    record.set_current(UNSETTLED);
    record.set_stalled(false);
    // Whoever had it before may have ended in between: the new owner's first slow path asks for ticks.
    record.set_drained();
    // It was listed under the roster's lock: `track_everywhere` finds it there, or came before.
    if process::is_tracking() {
        record.tracks.store(true, Ordering::Relaxed);
    }
    record.gate.open(Reason::EMPTY.and(Reason::EXITING));
}

/// Bytes of a record and the storage of its magazines.
fn mapping_bytes() -> usize {
    (size_of::<Record>() + magazine::STORAGE_WORDS * size_of::<*mut u8>()).next_multiple_of(4096)
}

/// The pages of a record, or null: no memory.
fn map() -> *mut Record {
    (SYSTEM.map)(mapping_bytes()).cast()
}

/// Makes zeros a record that is closed.
fn begin(record: &'static Record) {
    let memory = ptr::from_ref(record).cast_mut().cast::<u8>();
    // INVARIANT: nothing behind the gate is the first to touch a page: the stock and the log are
    // as large as some pages, and most of them stay zeros.
    for page in (0..size_of::<Record>()).step_by(4096) {
        // SAFETY: the mapping is large enough.
        let byte = unsafe { memory.add(page) };
        // SAFETY: as above; it is ours, and holds zeros already.
        unsafe { byte.write_volatile(0) };
    }
    record.gate.close(Reason::EMPTY);
    record.set_current(UNSETTLED);
    record.set_drained();
    // SAFETY: `Record` takes the first bytes of the mapping, the storage the rest; a record's
    // size is a multiple of its alignment, which words divide.
    let storage = unsafe { memory.add(size_of::<Record>()) };
    // SAFETY: nobody else has the record yet.
    let cached = unsafe { record.cached() };
    // SAFETY: the storage is zeroed and this record's alone.
    unsafe { cached.place(storage.cast(), &record.sums) };
}

/// Ends the calling thread's use of its record: the destructor of the exit key.
pub(crate) extern "C" fn on_thread_exit(value: *mut c_void) {
    let record = RECORD.get();
    debug_assert!(ptr::eq(record, value.cast::<Record>()), "the thread's own record");
    EXITED.set(true);
    RECORD.set(&EMPTY);
    vacate(record);
    roster::give_back(record.slot());
    if process::is_tracking() {
        // Its pages go back after a while.
        ENGINE.want_ticks();
    }
}

/// Leaves nothing in the calling thread's record.
fn vacate(record: &Record) {
    record.gate.close(Reason::EXITING);
    // The lock is held for bounded work only, or by a cut that waits for somebody else with a
    // bound of its own.
    while !record.gate.lock_within(1000) {}
    // SAFETY: the lock is held, and the owner, which this is, is not in the gate.
    unsafe { record.empty() };
    record.gate.close(Reason::EMPTY);
    if let Some(slot) = roster::slot(record.slot()) {
        // With the lock held: who waits for it to stop the record looks again whether anybody has it.
        slot.vacate();
    }
    record.gate.unlock();
}

/// Takes over the records of threads that do not exist in this process: for the child of a
/// `fork`, whose only thread calls it, with all records stopped. One that could not be stopped
/// is lost, with what it caches: no drain waits for it.
pub(crate) fn take_over() {
    roster::take_over(record(), |slot| {
        let record = slot.record();
        if !slot.is_claimed() {
            // Its thread may have been about to.
            record.gate.unlock();
            return true;
        }
        // Its owner may have been reclaiming, for a charge or in the background; the next owner
        // finds it closed. Everything is below the root, so this gives all of its credit back.
        TREE.surrender_credit(&record.request, GroupRef::ROOT);
        TREE.close_request(&record.request);
        if slot.is_stopped() {
            // SAFETY: the record is stopped and its owner does not exist.
            unsafe { record.empty() };
            record.gate.close(Reason::EMPTY);
        }
        slot.is_stopped()
    });
}

/// Has every owner look at tags from now on.
pub(crate) fn start_tracking() {
    static EVERYWHERE: AtomicBool = AtomicBool::new(false);
    // Acquire pairs with the Release below: no group is made before every record tracks.
    if EVERYWHERE.load(Ordering::Acquire) {
        return;
    }
    track_everywhere();
    EVERYWHERE.store(true, Ordering::Release);
}

fn track_everywhere() {
    process::set_tracking();
    // A record that is not found there is claimed afterwards, and finds that tags are looked at.
    roster::for_each_claimed(|record| record.tracks.store(true, Ordering::Relaxed));
}

/// Tells every owner that fences are full ones from now on. The drain mutex is held: the walk misses none.
pub(crate) fn announce_fence() {
    // Partner: the fence in `open`.
    fence(Ordering::SeqCst);
    for slot in roster::claimed() {
        slot.record().gate.close(Reason::FENCE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::roster::Slot;

    /// The calling thread's record.
    fn own_now() -> &'static Record {
        assert!(crate::start::begin(memcg_accounting::Root::Untracked));
        loop {
            // None: another test drains.
            if let Some(record) = own() {
                return record;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn a_scope_that_was_leaked_does_not_pay_as_the_next_user_of_its_tag() {
        assert!(crate::start::begin(memcg_accounting::Root::Untracked));
        start_tracking();
        let record = own_now();
        let create = |name: &str| {
            let settings = memcg_accounting::Settings::default();
            TREE.create(GroupRef::ROOT, name, settings).expect("fresh")
        };
        let first = create("leaked");
        let leaked = TREE.payer(first);
        let outside = scope::switch(scope::Current::group(leaked));
        scope::switch(scope::Current::NOBODY);
        ENGINE.put(first);
        // Until the thread keeps nothing of it: another test may drain, too.
        while TREE.pin(leaked) {
            TREE.unpin(leaked.tag);
            crate::drain::drain();
        }
        // Others make groups: at last the tag is one of these.
        let second = (0..1000).find_map(|n| {
            let group = create(&format!("reused-{n}"));
            (TREE.payer(group).tag == leaked.tag).then_some(group)
        });
        let stranger = TREE.payer(second.expect("the tag is free"));
        assert_ne!(stranger, leaked, "another generation");

        // As during a drain, or where the system has no membarrier: the gate is closed.
        record.gate.close(Reason::RECLAIM);
        scope::switch(scope::Current::group(stranger));
        assert_eq!(record.current(), stranger.tag);
        scope::switch(scope::Current::group(leaked));
        record.gate.open(Reason::RECLAIM);
        assert_ne!(record.current(), stranger.tag, "a stranger pays for what is left of the scope");
        scope::switch(outside);
    }

    #[test]
    fn a_record_that_is_claimed_while_the_first_group_is_made_looks_at_tags() {
        assert!(crate::start::begin(memcg_accounting::Root::Untracked));
        let (claiming, is_claiming) = mpsc::channel();
        let tracker = thread::spawn(move || {
            is_claiming.recv().expect("the test claims");
            track_everywhere();
        });
        let prepare = |record: *mut Record, slot: u32, is_zero: bool| {
            let is_ready = super::prepare(record, slot, is_zero);
            claiming.send(()).expect("the other waits");
            // More than enough for who does not wait for this.
            thread::sleep(std::time::Duration::from_millis(50));
            is_ready
        };
        let record = roster::claim(map, prepare).expect("memory");
        open(record);
        RECORD.set(record);
        tracker.join().expect("no panic");
        assert!(record.tracks(), "what its thread allocates is nobody's");
    }

    #[test]
    fn a_fork_waits_for_a_thread_that_is_slow() {
        let (sender, receiver) = mpsc::channel();
        let slow = thread::spawn(move || {
            let record = own_now();
            // As if the system did not run it for a while in the middle of its slow path.
            while !record.gate.try_lock() {
                thread::yield_now();
            }
            sender.send(record).expect("the test waits");
            thread::sleep(std::time::Duration::from_millis(300));
            record.gate.unlock();
        });
        let record = receiver.recv().expect("the thread lives");
        // SAFETY: the child looks at a record, and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            let is_lost = roster::slot(record.slot()).is_some_and(Slot::is_lost);
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(i32::from(is_lost)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place is valid.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "what the thread had is lost to the child");
        slow.join().expect("no panic");
    }

    #[test]
    fn a_fork_while_a_thread_ends_leaves_the_child_its_record_free_and_unlocked() {
        let (sender, receiver) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let ends = thread::spawn(move || {
            let record = own_now();
            // As `on_thread_exit`, preempted before its last step.
            vacate(record);
            sender.send(record).expect("the test waits");
            ended.recv().expect("the test ends it");
            record.gate.open(Reason::EMPTY.and(Reason::EXITING));
        });
        let record = receiver.recv().expect("the thread lives");
        // SAFETY: the child looks at a record, and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // The child's thread may have taken it already.
            let is_usable = roster::slot(record.slot()).is_some_and(Slot::is_free)
                || ptr::eq(record, super::record());
            let is_usable = is_usable && record.gate.try_lock();
            let counts = roster::claimed().count() == roster::nr_claimed() as usize;
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(i32::from(!is_usable) + 2 * i32::from(!counts)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place is valid.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "1: the record is of no use to the child; 2: threads are miscounted");
        end.send(()).expect("the thread waits");
        ends.join().expect("no panic");
    }

    #[test]
    fn no_drain_of_a_child_waits_for_a_record_that_is_lost() {
        let (sender, receiver) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let stopped = thread::spawn(move || {
            let record = own_now();
            // As if it had been preempted in its slow path.
            assert!(record.gate.try_lock());
            sender.send(()).expect("the test waits");
            ended.recv().expect("the test ends it");
            record.gate.unlock();
        });
        receiver.recv().expect("the thread lives");
        // SAFETY: the child drains, which allocates nothing, and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            let (_, before) = crate::drain::counts();
            crate::drain::drain();
            let (_, after) = crate::drain::counts();
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(i32::from(after != before)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place is valid.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the child waits for a thread that it does not have");
        end.send(()).expect("the thread waits");
        stopped.join().expect("no panic");
    }
}
