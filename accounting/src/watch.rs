//! What somebody wants to hear of a group: usage that leaves a window, events, its end.
//!
//! A charge calls nobody. It notes what happened and puts the group on a list; whoever delivers
//! takes the whole list. Only the step from an empty list to one that is not rings the [`Bell`].
//!
//! ```text
//!   charger, under the stripe lock            whoever delivers
//!   usage leaves the window: note it          take the whole list
//!   queued?  no: queued = true, push          for each: read next, queued = false,
//!   the list was empty: ring                    and only then look what happened
//! ```
//!
//! A group that nobody watches pays one relaxed load per level of a charge.
//!
//! # Invariants
//!
//! - A record is on the list at most once: only whoever set `queued` pushes it.
//! - What was noted before `queued` was found set is seen by the look that follows its clearing.
//! - The window and what was seen change under the stripe lock of the group.
//! - A record stays with its slot for good, armed or not.
//!
//! Source: `mem_cgroup_threshold` and `memcg_memory_event` in `mm/memcontrol.c`.

use crate::Tree;
use crate::event::EventKind;
use crate::gate::step;
use crate::group::{Group, GroupRef};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, lock};
use crate::table::{NONE, Record, Table};

/// What is rung when there is something to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Bell {
    /// Called with the lock of a stripe held, inside allocations: it may set a flag and wake a
    /// thread.
    pub ring: fn(),
}

/// Usage from `below` on and under `above` is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Usage under this is news.
    pub below: u64,
    /// Usage that is this or more is news.
    pub above: u64,
}

impl Window {
    /// No usage is news.
    pub const ALL: Window = Window { below: 0, above: u64::MAX };

    fn holds(self, usage: u64) -> bool {
        self.below <= usage && usage < self.above
    }
}

/// What usage was since the window was set before: everything outside that window counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Now.
    pub usage: u64,
    /// The lowest; at most `usage`.
    pub lowest: u64,
    /// The highest; at least `usage`.
    pub highest: u64,
}

/// Why a group can't be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWatch {
    /// It is gone.
    Gone,
    /// The source has no memory.
    Memory,
}

/// The bit of an event in a set of them.
const fn bit(kind: EventKind) -> u32 {
    1 << kind as u32
}

/// Events that are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSet(u32);

impl EventSet {
    /// No event.
    pub const NONE: EventSet = EventSet(0);

    /// This set and `kind`.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        Self(self.0 | bit(kind))
    }

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: EventSet) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is watched of the group in one slot.
#[derive(Debug)]
pub(crate) struct Watched {
    slot: AtomicU32,
    below: AtomicU64,
    above: AtomicU64,
    lowest: AtomicU64,
    highest: AtomicU64,
    events: AtomicU32,
    pub(crate) link: Link,
    next_free: AtomicU32,
}

impl Record for Watched {
    fn new() -> Self {
        Self {
            slot: AtomicU32::new(NONE),
            below: AtomicU64::new(0),
            above: AtomicU64::new(u64::MAX),
            lowest: AtomicU64::new(u64::MAX),
            highest: AtomicU64::new(0),
            events: AtomicU32::new(0),
            link: Link::new(),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // It is never given back: a slot's record serves all groups that use the slot.
        true
    }
}

// Relaxed: the window and what was seen are guarded by the stripe lock; a set of events that is
// read late misses an event that happened while the watch was being made.
impl Watched {
    fn window(&self) -> Window {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Window { below: read(&self.below), above: read(&self.above) }
    }

    fn set(&self, window: Window, events: EventSet) {
        self.below.store(window.below, Ordering::Relaxed);
        self.above.store(window.above, Ordering::Relaxed);
        self.events.store(events.0, Ordering::Relaxed);
    }

    fn see(&self, usage: u64) {
        self.lowest.store(self.lowest.load(Ordering::Relaxed).min(usage), Ordering::Relaxed);
        self.highest.store(self.highest.load(Ordering::Relaxed).max(usage), Ordering::Relaxed);
    }

    fn take_seen(&self, usage: u64) -> Seen {
        let lowest = self.lowest.swap(u64::MAX, Ordering::Relaxed).min(usage);
        let highest = self.highest.swap(0, Ordering::Relaxed).max(usage);
        Seen { usage, lowest, highest }
    }
}

/// A record's place on the list.
#[derive(Debug)]
pub(crate) struct Link {
    queued: AtomicBool,
    next: AtomicU32,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self { queued: AtomicBool::new(false), next: AtomicU32::new(NONE) }
    }
}

/// The list of records to look at: pushed to one by one, taken as a whole.
#[derive(Debug)]
pub(crate) struct Noticed {
    head: AtomicU32,
    #[cfg(all(loom, test))]
    pub(crate) weakened: Option<Weakened>,
}

/// An ordering or step that a model leaves out, to show that it is needed.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// Clearing `queued` before the look, and not after it.
    ClearFirst,
    /// The order of what was noted before `queued` was found set, and the look after its clearing.
    QueuedOrder,
    /// Reading `next` before `queued` is cleared.
    NextFirst,
}

#[cfg(all(loom, test))]
impl Noticed {
    fn is_weakened(&self, step: Weakened) -> bool {
        self.weakened == Some(step)
    }
}

impl Noticed {
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                head: AtomicU32::new(NONE),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    /// Puts record `index` on the list, if it is not there; `true`: the list was empty before.
    pub(crate) fn push(&self, index: u32, link: &Link) -> bool {
        // AcqRel pairs with the swap in `take`: either that clears after this, and the taker sees
        // what was noted before this; or this finds it cleared, and pushes.
        let order = if step!(self, QueuedOrder) { Ordering::AcqRel } else { Ordering::Relaxed };
        if link.queued.swap(true, order) {
            return false;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link.next.store(head, Ordering::Relaxed);
            // Release pairs with the Acquire in `take`: `next` is seen by whoever takes the list.
            match self.head.compare_exchange_weak(head, index, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return head == NONE,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the list, and visits each record after it may be pushed again.
    pub(crate) fn take<'a>(
        &self,
        link_of: impl Fn(u32) -> Option<&'a Link>,
        mut visit: impl FnMut(u32),
    ) {
        let mut index = self.head.swap(NONE, Ordering::Acquire);
        while let Some(link) = link_of(index) {
            // Read first: once `queued` is cleared the next push writes it.
            let next = link.next.load(Ordering::Relaxed);
            if !step!(self, ClearFirst) {
                visit(index);
            }
            let order = if step!(self, QueuedOrder) { Ordering::AcqRel } else { Ordering::Relaxed };
            link.queued.swap(false, order);
            if step!(self, ClearFirst) {
                visit(index);
            }
            index = if step!(self, NextFirst) { next } else { link.next.load(Ordering::Relaxed) };
        }
    }
}

/// In a group's word: the record is there, but nothing of it is wanted.
const IDLE: u32 = 1 << 31;

/// Everything that the tree has of this.
#[derive(Debug)]
pub(crate) struct Watches {
    records: Table<Watched>,
    noticed: Noticed,
    bell: AtomicPtr<Bell>,
}

impl Watches {
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                records: Table::new(),
                noticed: Noticed::new(),
                bell: AtomicPtr::new(core::ptr::null_mut()),
            }
        }
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.records.mapped_bytes()
    }

    fn notice(&self, index: u32, record: &Watched) {
        if !self.noticed.push(index, &record.link) {
            return;
        }
        // SAFETY: the pointer is null or was made from a `&'static Bell` (`set_bell`).
        if let Some(bell) = unsafe { self.bell.load(Ordering::Acquire).as_ref() } {
            (bell.ring)();
        }
    }

    /// The record that is armed for `group`.
    fn armed(&self, group: &Group) -> Option<(u32, &Watched)> {
        let word = group.watch();
        if word & IDLE != 0 {
            return None;
        }
        self.records.get(word).map(|record| (word, record))
    }
}

impl Tree {
    /// Sets what is rung when there is something to take. It is called inside allocations.
    pub fn set_bell(&self, bell: &'static Bell) {
        // Release pairs with the Acquire in `notice`.
        self.watches.bell.store(core::ptr::from_ref(bell).cast_mut(), Ordering::Release);
    }

    /// From now on `group` is noticed when its usage leaves the window that `window` makes of it,
    /// when one of `events` is counted, and when it ends. Replaces what was wanted before.
    ///
    /// `window` runs under the stripe lock: it only looks. If the window does not hold the usage
    /// that it was made of, the group is noticed at once.
    ///
    /// # Errors
    ///
    /// See [`NoWatch`].
    pub fn watch(
        &self,
        group: GroupRef,
        events: EventSet,
        window: impl FnOnce(Seen) -> Window,
    ) -> Result<Seen, NoWatch> {
        self.reserve_watch(group)?;
        let (_guard, record) = self.lock_group(group).ok_or(NoWatch::Gone)?;
        let index = record.watch() & !IDLE;
        let watched = self.watches.records.get(index).ok_or(NoWatch::Gone)?;
        let seen = watched.take_seen(record.counter.usage());
        let window = window(seen);
        watched.set(window, events);
        record.set_watch(index);
        if !window.holds(seen.usage) {
            watched.see(seen.usage);
            self.watches.notice(index, watched);
        }
        Ok(seen)
    }

    /// Nothing of `group` is wanted any more.
    pub fn unwatch(&self, group: GroupRef) {
        let Some((_guard, record)) = self.lock_group(group) else { return };
        if let Some((index, _)) = self.watches.armed(record) {
            record.set_watch(index | IDLE);
        }
    }

    /// Shows `look` the slot of each group that was noticed since the last call. What happened to
    /// a slot while it is looked at makes it noticed again.
    pub fn take_noticed(&self, mut look: impl FnMut(u32)) {
        let watches = &self.watches;
        let link_of = |index| watches.records.get(index).map(|record| &record.link);
        watches.noticed.take(link_of, |index| {
            if let Some(record) = watches.records.get(index) {
                look(record.slot.load(Ordering::Relaxed));
            }
        });
    }

    /// In the child of a fork, whose one thread calls it: what was noticed is forgotten, also what
    /// another thread had taken and not looked at.
    pub fn forget_noticed(&self) {
        self.watches.noticed.head.store(NONE, Ordering::Relaxed);
        for index in 0..self.watches.records.len() {
            if let Some(record) = self.watches.records.get(index) {
                record.link.queued.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Sees to it that the slot of `group` has a record.
    fn reserve_watch(&self, group: GroupRef) -> Result<(), NoWatch> {
        let record = self.group(group).ok_or(NoWatch::Gone)?;
        if record.watch() != NONE {
            return Ok(());
        }
        let _topology = lock(&self.topology);
        if record.watch() == NONE {
            let index = self.watches.records.take(self.source()).ok_or(NoWatch::Memory)?;
            if let Some(watched) = self.watches.records.get(index) {
                watched.slot.store(group.index(), Ordering::Relaxed);
            }
            record.set_watch(index | IDLE);
        }
        Ok(())
    }

    /// After the usage of `group` changed, with its stripe locked: a load if nobody watches it.
    #[inline]
    pub(crate) fn usage_changed(&self, group: &Group) {
        if group.watch() & IDLE == 0 {
            self.note_usage(group);
        }
    }

    fn note_usage(&self, group: &Group) {
        let Some((index, watched)) = self.watches.armed(group) else { return };
        let usage = group.counter.usage();
        if !watched.window().holds(usage) {
            watched.see(usage);
            self.watches.notice(index, watched);
        }
    }

    /// After an event was counted on `group`.
    pub(crate) fn note_event(&self, group: &Group, kind: EventKind) {
        if let Some((index, watched)) = self.watches.armed(group)
            && watched.events.load(Ordering::Relaxed) & bit(kind) != 0
        {
            self.watches.notice(index, watched);
        }
    }

    /// `group` has ended, with its stripe locked: whoever watched it finds it gone.
    pub(crate) fn note_end(&self, group: &Group) {
        if let Some((index, watched)) = self.watches.armed(group) {
            group.set_watch(index | IDLE);
            self.watches.notice(index, watched);
        }
    }
}
