//! The shape of the tree: names, links, handles, and the end of a group.
//!
//! Everything here happens under the topology lock, which charging never takes.
//!
//! # Invariants
//!
//! - A group is online while it has a handle or an online child; so an online group's ancestors
//!   are online.
//! - The step of `handles` to 0 happens under the lock, and with no child left it makes the
//!   group dying in the same step: nobody finds it by name or walk after that.
//! - A name is in the index exactly while its group is online; it is readable while its group is
//!   not free.

use core::fmt;

use crate::Tree;
use crate::below::Below;
use crate::context::Tag;
use crate::counter::OverLimit;
use crate::gate::step;
use crate::group::{Group, GroupRef, Settings, State};
use crate::limit::Limit;
use crate::name::{self, Kept, NameArena, NameError};
use crate::sync::{AtomicU32, Ordering, lock};
use crate::table::NONE;
use crate::tree::Root;
#[cfg(all(loom, test))]
use crate::tree::Weakened;

/// Why a group can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CreateError {
    /// The name is not one that a group can have.
    Name(NameError),
    /// A live sibling has the name.
    Exists,
    /// The parent is not online.
    Gone,
    /// An ancestor, named here, has as many descendants as it may.
    Descendants(OverLimit),
    /// The system has no memory for the records.
    NoMemory,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::Name(error) => error.fmt(f),
            CreateError::Exists => f.write_str("a sibling has this name"),
            CreateError::Gone => f.write_str("the parent is not online"),
            CreateError::Descendants(_) => f.write_str("an ancestor's limit on descendants is met"),
            CreateError::NoMemory => f.write_str("no memory for the group's record"),
        }
    }
}

/// A group that nobody can find any more and whose offline must now run: see
/// [`Tree::offline`]. Losing it leaks the group.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dying group must be taken offline"]
pub struct Dying(GroupRef);

impl Dying {
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupRef {
        self.0
    }
}

/// What the topology lock guards beside the groups' links.
#[derive(Debug)]
pub(crate) struct Topology {
    names: NameArena,
    index: NameIndex,
    next_stripe: u32,
    dying: u32,
    nr_dying: u32,
    nr_groups: u32,
}

/// Buckets of a fresh index.
const FIRST_BUCKETS: usize = if cfg!(loom) { 4 } else { 512 };

/// Groups by parent and name: chains through the groups.
#[derive(Debug)]
struct NameIndex {
    buckets: *mut AtomicU32,
    nr_buckets: usize,
}

// SAFETY: the buckets belong to the index alone and are tied to no thread.
unsafe impl Send for NameIndex {}

impl NameIndex {
    fn bucket(&self, parent: u32, name: &[u8]) -> Option<&AtomicU32> {
        if self.nr_buckets == 0 {
            return None;
        }
        let index = usize::try_from(hash(parent, name)).ok()? & (self.nr_buckets - 1);
        // SAFETY: `index` is below `nr_buckets`, a power of two.
        let bucket = unsafe { self.buckets.add(index) };
        // SAFETY: buckets are mapped and were initialised by `grow`; `&self` keeps them.
        Some(unsafe { &*bucket })
    }
}

/// FNV-1a, which is enough for names of tenants; chains only cost time.
fn hash(parent: u32, name: &[u8]) -> u64 {
    let bytes = parent.to_le_bytes();
    bytes.iter().chain(name).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The bytes of a live group's name.
pub(crate) fn bytes_of(group: &Group) -> &[u8] {
    let Kept { bytes, len } = group.kept_name();
    if bytes.is_null() {
        return &[];
    }
    // SAFETY: a name is kept, unchanged, while its group is not free, and the caller holds the
    // topology lock, under which groups become free.
    unsafe { core::slice::from_raw_parts(bytes, usize::from(len)) }
}

impl Topology {
    pub(crate) const fn new() -> Self {
        Self {
            names: NameArena::new(),
            index: NameIndex { buckets: core::ptr::null_mut(), nr_buckets: 0 },
            next_stripe: 0,
            dying: NONE,
            nr_dying: 0,
            nr_groups: 0,
        }
    }

    /// Makes group 0, and what stands for "nobody" in the contexts' table.
    pub(crate) fn make_root(&mut self, tree: &Tree, root: Root) -> bool {
        let source = tree.source();
        let make = || {
            let slot = match tree.groups.len() {
                0 => tree.groups.take(source)?,
                _ => 0,
            };
            if tree.contexts.is_empty() {
                tree.contexts.take(source)?;
            }
            let tag = match root {
                Root::Untracked => 0,
                Root::Accounted => tree.contexts.take(source)?,
            };
            Some((slot, tag))
        };
        let Some((slot, tag)) = make() else { return false };
        debug_assert_eq!(slot, 0, "the root is the first record");
        let Some(group) = tree.groups.get(slot) else { return false };
        group.bring_online(NONE, None, tag, 0, Kept { bytes: core::ptr::null_mut(), len: 0 });
        if let Some(context) = tree.context(Tag::from_bits(tag)) {
            context.bring_online(slot);
        }
        true
    }

    /// The online child of `parent` with this name.
    pub(crate) fn find(&self, tree: &Tree, parent: u32, name: &[u8]) -> Option<u32> {
        let mut slot = self.index.bucket(parent, name)?.load(Ordering::Relaxed);
        while let Some(group) = tree.groups.get(slot) {
            if group.parent() == parent && bytes_of(group) == name {
                return Some(slot);
            }
            slot = group.links.same_bucket.load(Ordering::Relaxed);
        }
        None
    }

    fn index_add(&mut self, tree: &Tree, slot: u32, group: &Group) {
        if let Some(bucket) = self.index.bucket(group.parent(), bytes_of(group)) {
            group.links.same_bucket.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
            bucket.store(slot, Ordering::Relaxed);
        }
        debug_assert!(tree.groups.get(slot).is_some());
    }

    fn index_remove(&mut self, tree: &Tree, slot: u32, group: &Group) {
        let Some(mut link) = self.index.bucket(group.parent(), bytes_of(group)) else { return };
        loop {
            let at = link.load(Ordering::Relaxed);
            if at == slot {
                link.store(group.links.same_bucket.load(Ordering::Relaxed), Ordering::Relaxed);
                return;
            }
            let Some(next) = tree.groups.get(at) else { return };
            link = &next.links.same_bucket;
        }
    }

    /// Keeps the index at no more than one group per bucket. Failing to grow only costs time,
    /// but there must be a first one.
    fn grow_index(&mut self, tree: &Tree) -> bool {
        if (self.nr_groups as usize) < self.index.nr_buckets {
            return true;
        }
        let nr_buckets = (self.index.nr_buckets * 2).max(FIRST_BUCKETS);
        let bytes = nr_buckets * size_of::<AtomicU32>();
        let buckets = (tree.source().map)(bytes).cast::<AtomicU32>();
        if buckets.is_null() {
            return self.index.nr_buckets != 0;
        }
        for i in 0..nr_buckets {
            // SAFETY: the mapping holds `nr_buckets` words.
            let bucket = unsafe { buckets.add(i) };
            // SAFETY: the word is ours and not yet seen by anybody.
            unsafe { bucket.write(AtomicU32::new(NONE)) };
        }
        let old = core::mem::replace(&mut self.index, NameIndex { buckets, nr_buckets });
        for slot in 1..tree.groups.len() {
            if let Some(group) = tree.groups.get(slot)
                && group.state() == State::Online
            {
                self.index_add(tree, slot, group);
            }
        }
        if old.nr_buckets != 0 {
            // SAFETY: the old buckets came from `map` with this size, and nothing refers to
            // them: every chain was built anew.
            unsafe {
                (tree.source().unmap)(old.buckets.cast(), old.nr_buckets * size_of::<AtomicU32>());
            }
        }
        true
    }
}

impl Tree {
    /// Makes a child of `parent`, with one handle, which is the caller's.
    ///
    /// # Errors
    ///
    /// See [`CreateError`]; nothing changed then.
    pub fn create(
        &self,
        parent: GroupRef,
        name: &str,
        settings: Settings,
    ) -> Result<GroupRef, CreateError> {
        name::check(name).map_err(CreateError::Name)?;
        let mut topology = lock(&self.topology);
        let above = self.group(parent).filter(|g| g.state() == State::Online);
        let above = above.ok_or(CreateError::Gone)?;
        if topology.find(self, parent.index, name.as_bytes()).is_some() {
            return Err(CreateError::Exists);
        }
        self.check_descendants(parent.index)?;
        if !topology.grow_index(self) {
            return Err(CreateError::NoMemory);
        }
        let below = self.below_of(above)?;
        let (slot, tag, kept) = self.take_records(&mut topology, name)?;
        let (Some(group), Some(context)) = (self.groups.get(slot), self.contexts.get(tag)) else {
            return Err(CreateError::NoMemory);
        };
        let stripe = self.stripe_below(&mut topology, parent, above);
        {
            let _guard = step!(self, MoveLock).then(|| self.lock_stripe(context.stripe()));
            context.move_to(stripe);
        }
        {
            let _guard = self.lock_stripe(stripe);
            context.bring_online(slot);
            let up = self.counts(parent.index).then_some(above);
            group.bring_online(parent.index, up, tag, stripe, kept);
            group.counter.set_max(settings.max);
            group.counter.set_high(settings.high);
            group.counter.set_low(settings.low);
            group.counter.set_min(settings.min);
            group.set_on_limit(settings.on_limit.unwrap_or_else(|| above.on_limit()));
        }
        topology.index_add(self, slot, group);
        topology.nr_groups += 1;
        self.link(slot, group, below);
        Ok(Tree::ref_to(slot, group))
    }

    /// The record of what `above` knows of those below it, made before its first child is. Called with the
    /// topology locked.
    fn below_of<'a>(&'a self, above: &'a Group) -> Result<&'a Below, CreateError> {
        if let Some(below) = above.below() {
            return Ok(below);
        }
        let index = self.belows.take(self.source()).ok_or(CreateError::NoMemory)?;
        let below = self.belows.get(index).ok_or(CreateError::NoMemory)?;
        below.begin(index);
        above.set_below(Some(below));
        Ok(below)
    }

    /// The records of a group, all or none.
    fn take_records(
        &self,
        topology: &mut Topology,
        name: &str,
    ) -> Result<(u32, u32, Kept), CreateError> {
        let source = self.source();
        let slot = self.groups.take(source).ok_or(CreateError::NoMemory)?;
        let Some(tag) = self.contexts.take(source) else {
            self.groups.put(slot);
            return Err(CreateError::NoMemory);
        };
        let Some(kept) = topology.names.keep(name, source) else {
            self.contexts.put(tag);
            self.groups.put(slot);
            return Err(CreateError::NoMemory);
        };
        Ok((slot, tag, kept))
    }

    /// The lock of a new child: the parent's, or for a new top-level tree the next in turn.
    fn stripe_below(&self, topology: &mut Topology, parent: GroupRef, above: &Group) -> u32 {
        if !parent.is_root() || self.root_kind() == Root::Accounted {
            return above.stripe();
        }
        topology.next_stripe = (topology.next_stripe + 1) % Tree::nr_stripes();
        topology.next_stripe
    }

    fn check_descendants(&self, parent: u32) -> Result<(), CreateError> {
        for (slot, group) in self.ancestors(parent) {
            let nr = group.nr_descendants();
            let max = group.links.max_descendants.load(Ordering::Relaxed);
            if nr >= max {
                let group = Tree::ref_to(slot, group);
                return Err(CreateError::Descendants(OverLimit {
                    group,
                    requested: 1,
                    usage: nr.into(),
                    max: max.into(),
                }));
            }
        }
        Ok(())
    }

    /// The group in `slot` and all above it, the root too.
    pub(crate) fn ancestors(&self, slot: u32) -> impl Iterator<Item = (u32, &Group)> {
        let start = self.groups.get(slot).map(|group| (slot, group));
        core::iter::successors(start, |(_, group)| {
            let parent = group.parent();
            self.groups.get(parent).map(|group| (parent, group))
        })
    }

    fn link(&self, slot: u32, group: &Group, above: &Below) {
        let first = above.first_child.load(Ordering::Relaxed);
        group.links.next.store(first, Ordering::Relaxed);
        if let Some(first) = self.groups.get(first) {
            first.links.prev.store(slot, Ordering::Relaxed);
        }
        above.first_child.store(slot, Ordering::Relaxed);
        above.nr_children.fetch_add(1, Ordering::Relaxed);
        for below in self.belows_above(group) {
            below.nr_descendants.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What each ancestor of a group that is in the tree knows of those below it.
    fn belows_above(&self, group: &Group) -> impl Iterator<Item = &Below> {
        self.ancestors(group.parent()).filter_map(|(_, ancestor)| ancestor.below())
    }

    fn unlink(&self, group: &Group, above: &Below) {
        let next = group.links.next.load(Ordering::Relaxed);
        let prev = group.links.prev.load(Ordering::Relaxed);
        match self.groups.get(prev) {
            Some(prev) => prev.links.next.store(next, Ordering::Relaxed),
            None => above.first_child.store(next, Ordering::Relaxed),
        }
        if let Some(next) = self.groups.get(next) {
            next.links.prev.store(prev, Ordering::Relaxed);
        }
        above.nr_children.fetch_sub(1, Ordering::Relaxed);
        for below in self.belows_above(group) {
            below.nr_descendants.fetch_sub(1, Ordering::Relaxed);
        }
    }

    // ---- handles ------------------------------------------------------------------------

    /// Another handle to `group`, of which the caller has one. The root needs none.
    pub fn get(&self, group: GroupRef) {
        if let Some(record) = self.group(group)
            && !group.is_root()
        {
            record.get_handle();
        }
    }

    /// A handle to `group` if it is online.
    pub fn try_get(&self, group: GroupRef) -> bool {
        let _topology = lock(&self.topology);
        self.try_get_locked(group).is_some()
    }

    pub(crate) fn try_get_locked(&self, group: GroupRef) -> Option<GroupRef> {
        let record = self.group(group)?;
        if record.state() != State::Online {
            return None;
        }
        self.get(group);
        Some(group)
    }

    /// Gives a handle back. With the last one, and no child left, the group is dying, and the
    /// caller sees to it.
    #[must_use = "a dying group must be taken offline"]
    pub fn put(&self, group: GroupRef) -> Option<Dying> {
        if group.is_root() {
            return None;
        }
        let record = self.group(group)?;
        if record.put_handle_unless_last() {
            return None;
        }
        let mut topology = lock(&self.topology);
        record.put_handle();
        self.die_if_unused(&mut topology, group.index)
    }

    fn die_if_unused(&self, topology: &mut Topology, slot: u32) -> Option<Dying> {
        let group = self.groups.get(slot).filter(|_| slot != 0)?;
        let unused =
            group.state() == State::Online && group.handles() == 0 && group.nr_children() == 0;
        if !unused {
            return None;
        }
        topology.index_remove(self, slot, group);
        group.set_state(State::Dying);
        topology.nr_dying += 1;
        Some(Dying(Tree::ref_to(slot, group)))
    }

    /// Ends a dying group: its context forwards to the parent's, its record is released. The
    /// cost depends on nothing that is charged. Lists of the group have moved before this.
    ///
    /// Answers the parent, if this was the last that kept it.
    #[must_use = "a dying group must be taken offline"]
    pub fn offline(&self, dying: Dying) -> Option<Dying> {
        let slot = dying.0.index;
        let mut topology = lock(&self.topology);
        let group = self.group(dying.0)?;
        let parent = group.parent();
        let above = self.groups.get(parent)?;
        let below = above.below()?;
        self.forward(group, above);
        self.unlink(group, below);
        // SAFETY: the name was kept when the group was made, and nobody reads it once the group
        // is free, which it becomes under this same lock.
        unsafe { topology.names.give_back(group.kept_name()) };
        topology.nr_groups -= 1;
        topology.nr_dying -= 1;
        {
            // Events are counted under the stripe lock by whoever still has the reference.
            let _guard = self.lock_stripe(group.stripe());
            group.retire();
            self.note_end(group);
        }
        if let Some(below) = group.below() {
            group.set_below(None);
            self.belows.put(below.index());
        }
        self.groups.put(slot);
        self.die_if_unused(&mut topology, parent)
    }

    /// Makes the group's context lead to the parent's.
    fn forward(&self, group: &Group, above: &Group) {
        let _guard = self.lock_stripe(group.stripe());
        self.end_protection(group);
        let tag = Tag::from_bits(group.context());
        let target = Tag::from_bits(above.context());
        let Some(context) = self.context(tag) else { return };
        let usage = group.counter.usage();
        // Nothing that is charged, nothing to be found: a deep chain of empty groups ends fast.
        let levels = (usage != 0).then(|| self.chain(group.parent()));
        for (_, above) in levels.into_iter().flatten() {
            above.add_reclaimed(usage);
        }
        if !target.is_nobody() {
            above.add_inherited_contexts(group.inherited_contexts() + 1);
        }
        // INVARIANT: the target is pinned before anything leads to it.
        self.pin_target(target);
        context.forward_to(target);
        self.unpin_locked(tag);
    }

    /// Puts a dying group aside, for a moment at which its offline may run.
    pub fn defer(&self, dying: Dying) {
        let mut topology = lock(&self.topology);
        if let Some(group) = self.group(dying.0) {
            group.next_waiting.store(topology.dying, Ordering::Relaxed);
            topology.dying = dying.0.index;
            self.deferred.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a group may have been put aside: one load. Relaxed: a group that is missed here
    /// is found at a later safe point.
    #[inline]
    pub fn has_deferred(&self) -> bool {
        self.deferred.load(Ordering::Relaxed)
    }

    /// A group that was put aside.
    #[must_use = "a dying group must be taken offline"]
    pub fn take_deferred(&self) -> Option<Dying> {
        if !self.has_deferred() {
            return None;
        }
        let mut topology = lock(&self.topology);
        let slot = topology.dying;
        let group = self.groups.get(slot)?;
        topology.dying = group.next_waiting.swap(NONE, Ordering::Relaxed);
        self.deferred.store(topology.dying != NONE, Ordering::Relaxed);
        Some(Dying(Tree::ref_to(slot, group)))
    }

    // ---- descendants --------------------------------------------------------------------

    /// Online and dying groups below `group`.
    pub fn nr_descendants(&self, group: GroupRef) -> u32 {
        self.group(group).map_or(0, Group::nr_descendants)
    }

    /// Groups of the whole tree whose offline is put aside or under way.
    pub fn nr_dying(&self) -> u32 {
        lock(&self.topology).nr_dying
    }

    /// Bounds the number of groups below `group` (`cgroup.max.descendants`).
    pub fn set_max_descendants(&self, group: GroupRef, limit: Limit) {
        if let Some(record) = self.group(group) {
            let max = limit.bytes().and_then(|max| u32::try_from(max).ok()).unwrap_or(u32::MAX);
            record.links.max_descendants.store(max, Ordering::Relaxed);
        }
    }

    // ---- fork ---------------------------------------------------------------------------

    /// Runs `f` while every lock of the tree is held, in lock order: nothing is half done then.
    /// For `fork`, with [`unlock_all`](Tree::unlock_all) in parent and child.
    #[cfg(not(loom))]
    pub fn lock_all(&self) {
        core::mem::forget(lock(&self.topology));
        for stripe in 0..Tree::nr_stripes() {
            core::mem::forget(self.lock_stripe(stripe));
        }
    }

    /// Ends what [`lock_all`](Tree::lock_all) began.
    ///
    /// # Safety
    ///
    /// The caller, or the thread that it is the copy of, called `lock_all`.
    #[cfg(not(loom))]
    pub unsafe fn unlock_all(&self) {
        for stripe in 0..Tree::nr_stripes() {
            // SAFETY: by contract the lock is held and its guard was forgotten.
            unsafe { self.force_unlock_stripe(stripe) };
        }
        // SAFETY: as above.
        unsafe { self.topology.force_unlock() };
    }
}
