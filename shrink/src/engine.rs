//! The engine as one value: a tree, who can give, and who runs them.

use core::fmt;

use memcg_accounting::{CreateError, GroupRef, Request, SYSTEM, Settings, Tree};

use crate::background::Queue;
use crate::crew::Crew;
use crate::deferred::Deferred;
use crate::errand::Errands;
use crate::groups::{GroupRecord, Groups};
use crate::host::{Caller, Host, HostPlace, Report};
use crate::lists::Lists;
use crate::marked::Marked;
use crate::marks::{Bit, Bits, Marks, Unmarkings};
use crate::patience::Deadline;
use crate::raw::{Place, RawShrinker, ShrinkerName};
use crate::reclaimer::Reclaimers;
use crate::refusal::Refusals;
use crate::registry::{Registry, ShrinkerId};
use crate::reports::Reports;
use crate::sharers::bit_of_rank;
use crate::slot::{Slot, Waited};
use crate::stall::StallTable;
#[cfg(not(loom))]
use crate::sync::lock;
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence, thread_id};

/// How long ending a shrinker waits for a call of it on a worker.
const UNREGISTER_MS: u32 = 1000;

/// Charges, reclaim and shrinkers of one tree: a value, so that tests and models make their own.
pub struct Engine {
    pub(crate) tree: &'static Tree,
    host: HostPlace,
    pub(crate) registry: Registry,
    pub(crate) groups: Groups,
    pub(crate) marked: Marked,
    pub(crate) deferred_work: Deferred,
    lists: Lists,
    pub(crate) reclaimers: Reclaimers,
    pub(crate) crew: Crew,
    pub(crate) queue: Queue,
    pub(crate) errands: Errands,
    pub(crate) stalls: StallTable,
    pub(crate) refusals: Refusals,
    pub(crate) unmarkings: Unmarkings,
    pub(crate) counters: Counters,
    pub(crate) reports: Reports,
    /// Something waits for a safe point: a group to go offline, data to drop, a report.
    pub(crate) deferred: AtomicBool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("tree", &self.tree)
            .field("crew", &self.crew)
            .finish_non_exhaustive()
    }
}

/// What happened to the engine's shrinkers and waiters.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) panicked: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) gave_up: AtomicU64,
    pub(crate) let_over: AtomicU64,
}

/// A copy of the engine's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStat {
    /// Shrinkers that panicked.
    pub panicked: u64,
    /// Shrinkers that were unregistered while a call of theirs did not end.
    pub left: u64,
    /// Workers that were started because others were inside one call for too long.
    pub replaced: u64,
    /// Waits for the worker that ended at the deadline.
    pub gave_up: u64,
    /// Bytes that were charged over limits because a thread reclaimed or panicked.
    pub let_over: u64,
    /// Bytes of address space that the engine's own records have mapped.
    pub metadata_bytes: usize,
    /// Threads that run shrinkers for others, idle ones too.
    pub workers: u32,
    /// Those of them that are inside one call for longer than they should be: at most
    /// [`MOST_HELD`](crate::MOST_HELD).
    pub held: u32,
}

impl Engine {
    memcg_accounting::const_new! {
        /// The engine of `tree`. Until a [host](Engine::set_host) is set, nothing is reclaimed.
        pub fn new(tree: &'static Tree) -> Self {
            Self {
                tree,
                host: HostPlace::new(),
                registry: Registry::new(),
                groups: Groups::new(),
                marked: Marked::new(),
                deferred_work: Deferred::new(),
                lists: Lists::new(&SYSTEM),
                reclaimers: Reclaimers::new(),
                crew: Crew::new(),
                queue: Queue::new(),
                errands: Errands::new(),
                stalls: StallTable::new(),
                refusals: Refusals::new(),
                reports: Reports::new(),
                deferred: AtomicBool::new(false),
                unmarkings: Unmarkings::new(),
                counters: Counters {
                    panicked: AtomicU64::new(0),
                    left: AtomicU64::new(0),
                    replaced: AtomicU64::new(0),
                    gave_up: AtomicU64::new(0),
                    let_over: AtomicU64::new(0),
                },
            }
        }
    }

    /// Sets the layer above, once; `false`: there is one already.
    pub fn set_host(&self, host: &'static dyn Host) -> bool {
        self.host.set(host)
    }

    pub(crate) fn host(&self) -> &'static dyn Host {
        self.host.get()
    }

    /// The tree.
    pub const fn tree(&self) -> &'static Tree {
        self.tree
    }

    /// The lists of objects, which move to the parent when a group goes. The cookie of a list is
    /// [`ShrinkerId::to_bits`] of the shrinker that serves it.
    pub const fn lists(&self) -> &Lists {
        &self.lists
    }

    // ---- shrinkers ----------------------------------------------------------------------

    /// Registers a shrinker. `None`: no memory for its record; nothing was called.
    ///
    /// A worker is started if `raw` runs on one. Never inside an allocation.
    ///
    /// # Safety
    ///
    /// - `count` and `scan` may be called with `data` from any thread, at any time, several at
    ///   once, until `drop` is; then `drop` may be called once, from any thread.
    /// - None of them unwinds.
    /// - If `place` is [`Place::Direct`], `count` and `scan` run inside any allocation of any
    ///   thread: they wait for nothing, and run no code that can't run there.
    pub unsafe fn register(&self, raw: RawShrinker) -> Option<ShrinkerId> {
        let reset = |bit, rank| self.groups.mark_in_all(bit, rank);
        let id = self.registry.register(raw, self.tree.source(), reset)?;
        if raw.starts_marked && raw.group_aware {
            self.link_all();
        }
        if raw.place == Place::Worker {
            self.summon();
        }
        Some(id)
    }

    /// Ends a shrinker: waits for calls in flight, then drops it.
    ///
    /// It does not wait for a call that it is made from; of a shrinker of the worker, or inside
    /// another shrinker, it waits at most a second. The call then keeps the data, which is
    /// dropped when it returns. `false`: so it is, or the id is stale.
    ///
    /// Never inside an allocation.
    pub fn unregister(&self, id: ShrinkerId) -> bool {
        let Some(slot) = self.registry.retire(id) else { return false };
        let caller = self.host().caller();
        let own = self.reclaimers.own_calls(thread_id(), id.slot);
        let bounded = slot.place() == Place::Worker || caller.reclaiming;
        match slot.wait(own, bounded.then_some(UNREGISTER_MS)) {
            Waited::Over => {
                self.drop_slot(id.slot, slot);
                true
            }
            Waited::Orphaned => {
                if own == 0 {
                    self.counters.left.fetch_add(1, Ordering::Relaxed);
                    // The calls still count, so the name is still there to be read.
                    if let Some(name) = self.name_in(id.slot) {
                        self.report_later(Report::Left(name));
                    }
                }
                false
            }
        }
    }

    /// Drops the data of a slot whose calls are over, and frees the slot.
    fn drop_slot(&self, index: u32, slot: &Slot) {
        if let Some(raw) = slot.take() {
            // SAFETY: the shrinker was retired and its calls are over (`slot.rs`), so nobody uses
            // the data; the slot is emptied, so this is the only drop.
            unsafe { (raw.drop)(raw.data) };
        }
        self.registry.free(index);
    }

    /// Drops what shrinkers left behind that were unregistered during a call.
    pub(crate) fn drop_orphans(&self) {
        while let Some(index) = self.registry.take_orphan() {
            if let Some(slot) = self.registry.slot(index) {
                self.drop_slot(index, slot);
            }
        }
    }

    /// Marks the shrinker in `group`, of which the caller has a handle: it has something there
    /// now. What was linked before this is found by a later count, or the mark stays.
    ///
    /// Allocates nothing; no lock but at a group's first mark.
    pub fn mark(&self, group: GroupRef, id: ShrinkerId) {
        let Some(slot) = self.registry.find(id) else { return };
        let Some(bit) = slot.bit() else { return };
        match self.groups.record(self.tree, group) {
            Some(record) => {
                let rank = slot.rank();
                if rank != 0 && !self.mark_sharer(record, bit, rank) {
                    self.groups.mark_everything();
                }
                if record.marks.mark(bit) || !record.marked.is_linked() {
                    self.groups.linked(self.tree, &self.marked, group);
                }
            }
            None => self.groups.mark_everything(),
        }
    }

    /// Marks one of several that share `bit`; `false`: no memory.
    fn mark_sharer(&self, record: &GroupRecord, bit: Bit, rank: u32) -> bool {
        // Partner: the fence in `Marks::settle`. Either whoever makes the leaf and unmarks this one in it counts again
        // after the caller linked its object, or this finds the leaf.
        fence(Ordering::SeqCst);
        // A leaf that is not there says that those that start marked are.
        let leaf = match self.groups.leaf(record, bit) {
            None if bit.is_inverted() => return true,
            None => self.groups.make_leaf(self.tree, record, bit),
            leaf => leaf,
        };
        leaf.map(|leaf| leaf.marks.mark(bit_of_rank(bit, rank))).is_some()
    }

    /// Makes a group: [`Tree::create`]. Reclaim finds it, where shrinkers are to be asked for every
    /// new group.
    ///
    /// # Errors
    ///
    /// Those of [`Tree::create`].
    pub fn create(
        &self,
        parent: GroupRef,
        name: &str,
        settings: Settings,
    ) -> Result<GroupRef, CreateError> {
        // A call of a shrinker has no handle to its group, whose ancestors are to stay meanwhile.
        if !self.tree.try_get(parent) {
            return Err(CreateError::Gone);
        }
        let mut made = self.create_below(parent, name, settings);
        if matches!(made, Err(CreateError::Descendants(_))) && !self.caller().reclaiming {
            // Groups whose end was put off count, too.
            self.end_deferred();
            made = self.create_below(parent, name, settings);
        }
        self.put(parent);
        let group = made?;
        self.groups.begin(group, &self.deferred_work);
        // The tree's lock orders this look after every registration whose `link_all` did not find
        // the group.
        if !Marks::fresh(self.registry.in_use()).is_empty() {
            self.groups.linked(self.tree, &self.marked, group);
        }
        Ok(group)
    }

    fn create_below(
        &self,
        parent: GroupRef,
        name: &str,
        settings: Settings,
    ) -> Result<GroupRef, CreateError> {
        let host = self.host();
        // A fork in the middle would leave the child ancestors that expect one group more.
        host.take_in_hand();
        let made = self.tree.create(parent, name, settings);
        host.put_down();
        made
    }

    /// Has walks find every group there is.
    fn link_all(&self) {
        for slot in 0..self.tree.nr_slots() {
            if let Some(group) = self.tree.online_in(slot)
                && self.tree.hold(group)
            {
                self.groups.linked(self.tree, &self.marked, group);
                self.tree.let_go(group);
            }
        }
    }

    /// Whether the shrinker is marked in `group`. May lag.
    pub fn is_marked(&self, group: GroupRef, id: ShrinkerId) -> bool {
        let Some(slot) = self.registry.find(id) else { return false };
        let Some(bit) = slot.bit() else { return false };
        if slot.rank() != 0
            && let Some(record) = self.groups.find(group)
        {
            let leaf = self.groups.leaf(record, bit);
            let mark = bit_of_rank(bit, slot.rank());
            if !leaf.map_or(bit.is_inverted(), |leaf| leaf.marks.is_marked(mark)) {
                return false;
            }
        }
        let mut wanted = Bits::NONE;
        wanted.0[bit.word()] = bit.mask();
        !self.groups.marks(group, wanted).is_empty()
    }

    /// The name of the shrinker in a slot, while somebody is in a call of it.
    pub(crate) fn name_in(&self, index: u32) -> Option<ShrinkerName> {
        let slot = self.registry.slot(index)?;
        if !slot.begin_beside() {
            return None;
        }
        let name = slot.raw().map(|raw| raw.name);
        self.end_call(index);
        name
    }

    // ---- settings and facts -------------------------------------------------------------

    /// Sets how long an allocation of `group` waits for reclaim. `false`: no memory to note it, or the
    /// group is gone.
    pub fn set_deadline(&self, group: GroupRef, deadline: Deadline) -> bool {
        self.tree.is_online(group) && self.groups.set_deadline(self.tree, group, deadline)
    }

    /// How long an allocation of `group` waits for reclaim.
    pub fn deadline(&self, group: GroupRef) -> Deadline {
        self.groups.deadline(group)
    }

    /// Objects looked at and bytes got back in `group` itself, and in groups below it that are
    /// gone.
    pub fn scan_counts(&self, group: GroupRef) -> (u64, u64) {
        self.groups.find(group).map_or((0, 0), |record| record.counts())
    }

    /// The engine's counters.
    pub fn stat(&self) -> EngineStat {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStat {
            panicked: read(&self.counters.panicked),
            left: read(&self.counters.left),
            replaced: read(&self.counters.replaced),
            gave_up: read(&self.counters.gave_up),
            let_over: read(&self.counters.let_over),
            metadata_bytes: self.registry.mapped_bytes()
                + self.groups.mapped_bytes()
                + self.marked.walks.mapped_bytes()
                + self.deferred_work.mapped_bytes()
                + self.reclaimers.mapped_bytes()
                + self.stalls.mapped_bytes()
                + self.lists.metadata_bytes(),
            workers: self.crew.nr_workers(),
            held: self.nr_held(),
        }
    }

    /// Facts about the calling thread.
    pub(crate) fn caller(&self) -> Caller {
        self.host().caller()
    }

    // ---- fork ---------------------------------------------------------------------------

    /// Takes every lock of the engine, in lock order: for `fork`, after
    /// [`Tree::lock_all`](memcg_accounting::Tree::lock_all), with
    /// [`unlock_all`](Engine::unlock_all) in parent and child.
    #[cfg(not(loom))]
    pub fn lock_all(&self) {
        self.lists.lock_all();
        core::mem::forget(lock(self.marked.raw_lock()));
        core::mem::forget(self.registry.lock());
        core::mem::forget(lock(self.reclaimers.taking()));
        core::mem::forget(lock(self.queue.lock()));
        core::mem::forget(lock(self.stalls.changing()));
        core::mem::forget(lock(self.groups.growing()));
        core::mem::forget(lock(self.groups.sharers_lock()));
        core::mem::forget(lock(self.deferred_work.raw_lock()));
        core::mem::forget(lock(self.reports.lock()));
        core::mem::forget(lock(self.refusals.lock()));
    }

    /// Ends what [`lock_all`](Engine::lock_all) began.
    ///
    /// # Safety
    ///
    /// The caller, or the thread that it is the copy of, called `lock_all`.
    #[cfg(not(loom))]
    pub unsafe fn unlock_all(&self) {
        // SAFETY: by contract the lock is held and its guard was forgotten.
        unsafe { self.refusals.lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.reports.lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.deferred_work.raw_lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.groups.sharers_lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.groups.growing().force_unlock() };
        // SAFETY: as above.
        unsafe { self.stalls.changing().force_unlock() };
        // SAFETY: as above.
        unsafe { self.queue.lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.reclaimers.taking().force_unlock() };
        // SAFETY: as above.
        unsafe { self.registry.force_unlock() };
        // SAFETY: as above.
        unsafe { self.marked.raw_lock().force_unlock() };
        // SAFETY: as above.
        unsafe { self.lists.unlock_all() };
    }

    /// In the child of a fork: forgets the threads that are not there any more. Their calls are
    /// over, the groups that they visited are given back at the next safe point, and workers
    /// are started anew when they are next needed.
    pub fn after_fork_child(&self) {
        let this = thread_id();
        for index in 0..self.reclaimers.len() {
            let Some(reclaimer) = self.reclaimers.get(index) else { continue };
            if reclaimer.thread() == 0 || reclaimer.thread() == this {
                continue;
            }
            if let Some((shrinker, _)) = reclaimer.call(0) {
                self.end_call(shrinker);
            }
            if let Some(request) = reclaimer.open_request() {
                self.tree.close_request(request);
            }
            self.tree.let_go(reclaimer.visited());
            self.reclaimers.put(index);
        }
        if !self.caller().reclaiming {
            self.marked.forget_walks();
        }
        self.reclaimers.forget_posted();
        self.forget_stalls();
        self.refusals.forget();
        self.crew.forget();
    }

    /// Ends a call of the shrinker in slot `index`.
    pub(crate) fn end_call(&self, index: u32) {
        if self.registry.slot(index).is_some_and(Slot::end) {
            self.registry.leave_orphan(index);
            self.defer_work();
        }
    }

    /// A request whose credit could decide another's charge: takes it back.
    pub(crate) fn surrender_credits(&self, top: GroupRef, own: Option<&Request>) {
        for (_, reclaimer) in self.reclaimers.iter() {
            if let Some(request) = reclaimer.open_request()
                && own.is_none_or(|own| !core::ptr::eq(own, request))
            {
                self.tree.surrender_credit(request, top);
            }
        }
    }
}
