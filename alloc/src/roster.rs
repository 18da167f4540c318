//! Who has a record: the list of claimed ones, which drains walk, and the free ones, which the next threads get.
//!
//! ```text
//!   CLAIMED ─(the thread ends: the record is empty)─► VACANT ─► FREE ─(another thread)─► CLAIMED
//!      '───────── listed ──────────────────────────────────────'  '─ unlisted once its pages went back
//! ```
//!
//! What is known of a record lies apart from it, in a few words: a record that nobody has gives all of its pages
//! back, and a peak of threads leaves its slots and address space alone.
//!
//! # Invariants
//!
//! - A slot has one record for ever, and a record one slot; neither is ever unmapped.
//! - Claimed records are listed. Slots are listed under the roster's lock, and unlisted with the drain mutex too:
//!   whoever walks the list with that mutex misses none that was claimed before.
//! - A record's pages go back with both held, where it is free: nobody is at it.
//!
//! Lock order: the drain mutex, a record's lock, the roster's.

use core::ptr;

use memcg_accounting::SYSTEM;
use memcg_accounting::sync::{AtomicBool, AtomicPtr, AtomicU32, Lock, Ordering, lock};
use memcg_accounting::table::{self, NONE, Table};

use crate::process::TREE;
use crate::record::Record;

/// What is known of a record by those who walk over all.
#[derive(Debug)]
pub(crate) struct Slot {
    record: AtomicPtr<Record>,
    state: AtomicU32,
    /// The next in the list. Of one that was unlisted it stays, for whoever walks without a lock.
    next: AtomicU32,
    /// The next that a drain has stopped. The drain mutex guards it, and `is_stopped`.
    next_stopped: AtomicU32,
    next_free: AtomicU32,
    is_listed: AtomicBool,
    is_stopped: AtomicBool,
    /// Whether a page of the record was touched since they went back.
    has_pages: AtomicBool,
}

impl table::Record for Slot {
    fn new() -> Self {
        Self {
            record: AtomicPtr::new(ptr::null_mut()),
            state: AtomicU32::new(VACANT),
            next: AtomicU32::new(NONE),
            next_stopped: AtomicU32::new(NONE),
            next_free: AtomicU32::new(NONE),
            is_listed: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            has_pages: AtomicBool::new(false),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    /// The record was emptied by whoever made it free.
    fn is_empty(&self) -> bool {
        self.is(FREE)
    }
}

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
/// Its thread has left nothing in it, and has yet to give it back.
const VACANT: u32 = 2;
/// Its owner did not survive a `fork` and left it in the middle of something.
const LOST: u32 = 3;

static SLOTS: Table<Slot> = Table::new();
static LISTED: AtomicU32 = AtomicU32::new(NONE);
static NR_CLAIMED: AtomicU32 = AtomicU32::new(0);
static NR_WITH_PAGES: AtomicU32 = AtomicU32::new(0);
static ROSTER: Lock<()> = Lock::new(());

impl Slot {
    pub(crate) fn record(&self) -> &'static Record {
        // SAFETY: a slot that is listed has a record (`claim`), which is never unmapped.
        unsafe { &*self.record.load(Ordering::Acquire) }
    }

    /// Acquire pairs with the Release in `claim`: who sees a claimed record sees it in order.
    pub(crate) fn is_claimed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLAIMED
    }

    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.is(FREE)
    }

    #[cfg(test)]
    pub(crate) fn is_lost(&self) -> bool {
        self.is(LOST)
    }

    fn is(&self, state: u32) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.is_stopped.store(stopped, Ordering::Relaxed);
    }

    /// Puts the slot before `first` in a list of those that a drain stopped.
    pub(crate) fn set_next_stopped(&self, first: Option<&'static Slot>) {
        let index = first.map_or(NONE, |slot| slot.record().slot());
        self.next_stopped.store(index, Ordering::Relaxed);
    }

    pub(crate) fn next_stopped(&self) -> Option<&'static Slot> {
        SLOTS.get(self.next_stopped.load(Ordering::Relaxed))
    }

    /// The thread has emptied the record, whose lock it holds.
    pub(crate) fn vacate(&self) {
        // Release pairs with the Acquire of whoever finds it vacant, or free.
        self.state.store(VACANT, Ordering::Release);
    }
}

/// Claimed records, and some that were: from the newest to the oldest.
pub(crate) fn listed() -> impl Iterator<Item = &'static Slot> {
    // Who walks without the drain mutex may be led to the beginning by one that is listed again: once round
    // is enough.
    let most = SLOTS.len() as usize;
    let first = SLOTS.get(LISTED.load(Ordering::Acquire));
    core::iter::successors(first, |slot| SLOTS.get(slot.next.load(Ordering::Acquire))).take(most)
}

/// Claimed records.
pub(crate) fn claimed() -> impl Iterator<Item = &'static Slot> {
    listed().filter(|slot| slot.is_claimed())
}

/// Calls `f` with each claimed record; none is claimed, or missed, meanwhile.
pub(crate) fn for_each_claimed(f: impl FnMut(&'static Record)) {
    let _roster = lock(&ROSTER);
    claimed().map(Slot::record).for_each(f);
}

/// How many threads have a record.
pub(crate) fn nr_claimed() -> u32 {
    NR_CLAIMED.load(Ordering::Relaxed)
}

/// How many records have pages.
pub(crate) fn nr_with_pages() -> usize {
    NR_WITH_PAGES.load(Ordering::Relaxed) as usize
}

/// A record for a thread: a free one, or one that `make` maps. `prepare` is told its slot's number, and whether
/// its pages are zeros, and makes it ready before anybody sees it. `None`: no memory, or `prepare` failed.
pub(crate) fn claim(
    make: impl FnOnce() -> *mut Record,
    prepare: impl FnOnce(*mut Record, u32, bool) -> bool,
) -> Option<&'static Record> {
    let _roster = lock(&ROSTER);
    let index = SLOTS.take(&SYSTEM)?;
    let slot = SLOTS.get(index)?;
    let mut record = slot.record.load(Ordering::Relaxed);
    if record.is_null() {
        record = make();
        slot.record.store(record, Ordering::Release);
    }
    let is_zero = !slot.has_pages.load(Ordering::Relaxed);
    if record.is_null() || !prepare(record, index, is_zero) {
        slot.state.store(FREE, Ordering::Release);
        SLOTS.put(index);
        return None;
    }
    if is_zero {
        slot.has_pages.store(true, Ordering::Relaxed);
        NR_WITH_PAGES.fetch_add(1, Ordering::Relaxed);
    }
    slot.state.store(CLAIMED, Ordering::Release);
    if !slot.is_listed.swap(true, Ordering::Relaxed) {
        slot.next.store(LISTED.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release pairs with the Acquire in `listed`.
        LISTED.store(index, Ordering::Release);
    }
    TREE.set_nr_threads(NR_CLAIMED.fetch_add(1, Ordering::Relaxed) + 1);
    Some(slot.record())
}

/// The slot of a number that `claim` told.
pub(crate) fn slot(index: u32) -> Option<&'static Slot> {
    SLOTS.get(index)
}

/// Makes a record free that is vacant.
pub(crate) fn give_back(index: u32) {
    let _roster = lock(&ROSTER);
    let Some(slot) = SLOTS.get(index) else { return };
    slot.state.store(FREE, Ordering::Release);
    SLOTS.put(index);
    TREE.set_nr_threads(NR_CLAIMED.fetch_sub(1, Ordering::Relaxed) - 1);
}

/// Most records that a sweep sees to under one lock.
const BATCH: u32 = 16;

/// Has the pages of free records go back that `picks` picks, and unlists those: some of them at a time, for a
/// cut may wait. The drain mutex is held. Answers whether there are more; `true`, too, where some were not picked.
pub(crate) fn sweep(picks: impl Fn(&Record) -> bool, give_pages_back: impl Fn(&Record)) -> Swept {
    let (mut swept, mut left) = (Swept { is_cut_short: false, has_more: false }, BATCH);
    let mut before: Option<&Slot> = None;
    let mut index = LISTED.load(Ordering::Acquire);
    while let Some(slot) = SLOTS.get(index) {
        let next = slot.next.load(Ordering::Relaxed);
        if slot.is(FREE) || slot.is(LOST) {
            if left == 0 {
                swept.is_cut_short = true;
                return swept;
            }
            let _roster = lock(&ROSTER);
            let is_free = slot.is(FREE);
            if is_free && picks(slot.record()) {
                left -= 1;
                give_pages_back(slot.record());
                if slot.has_pages.swap(false, Ordering::Relaxed) {
                    NR_WITH_PAGES.fetch_sub(1, Ordering::Relaxed);
                }
            }
            swept.has_more |= is_free && slot.has_pages.load(Ordering::Relaxed);
            if slot.is(LOST) || (is_free && !slot.has_pages.load(Ordering::Relaxed)) {
                // Another may have been listed meanwhile: then this is not the first any more.
                let link = before.or_else(|| slot_before(index)).map_or(&LISTED, |it| &it.next);
                link.store(next, Ordering::Release);
                slot.is_listed.store(false, Ordering::Relaxed);
                index = next;
                continue;
            }
        }
        before = Some(slot);
        index = next;
    }
    swept
}

/// What a [`sweep`] left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swept {
    /// There may be more that would be picked.
    pub(crate) is_cut_short: bool,
    /// Free records that have their pages.
    pub(crate) has_more: bool,
}

/// The slot that leads to `index`, if it is not the first.
fn slot_before(index: u32) -> Option<&'static Slot> {
    listed().find(|slot| slot.next.load(Ordering::Relaxed) == index)
}

// ---- fork ---------------------------------------------------------------------------------------------

/// Takes the lock, for `fork`.
pub(crate) fn lock_all() {
    core::mem::forget(lock(&ROSTER));
}

/// Ends what [`lock_all`] began.
///
/// # Safety
///
/// The caller, or the thread that it is the copy of, called `lock_all`.
pub(crate) unsafe fn unlock_all() {
    // SAFETY: by contract the lock is held and its guard was forgotten.
    unsafe { ROSTER.force_unlock() };
}

/// Lets the child of a `fork` claim the records of threads that it does not have: all but `own`. `empty` sees to one
/// that is claimed or vacant, and says whether it left nothing.
pub(crate) fn take_over(own: &Record, mut empty: impl FnMut(&'static Slot) -> bool) {
    let others = listed().filter(|slot| !ptr::eq(slot.record(), own));
    for slot in others.filter(|slot| slot.is(CLAIMED) || slot.is(VACANT)) {
        if empty(slot) {
            slot.state.store(FREE, Ordering::Relaxed);
            SLOTS.put(slot.record().slot());
        } else {
            slot.state.store(LOST, Ordering::Relaxed);
        }
    }
    // A thread that began or ended may not have counted itself.
    let nr = claimed().fold(0, |n, _| n + 1);
    NR_CLAIMED.store(nr, Ordering::Relaxed);
    TREE.set_nr_threads(nr);
}
