//! The shape of the tree: names, links, handles, and the end of a group.
//!
//! Everything here happens under the topology lock, which charging never takes, but for walks over
//! depth: those are made before it, so that a deep tree is nobody else's affair.
//!
//! ```text
//!   Online ──(last handle)──► Dying ──(end, children first)──► Ended ──(offline)──► Held ──(last hold)──► Free
//!   found by name             its name is free                 nothing is its       out of the tree       used again
//! ```
//!
//! Two numbers keep a group. *Handles* keep it online: its users', and one for each online child. *Holds*
//! keep its record from becoming another group's: one for as long as it is in the tree, or has handles; one
//! for each child's record; and those of the library, which holds the group of a shrinker's call and nothing
//! else. So what the library does never keeps a name, a group or what is charged to it; and whoever has a
//! reference under a hold has it of that group and no other, whatever becomes of the group.
//!
//! A handle that is made of a hold after the last one went (a clone of a call's group) is one to a group that
//! is gone: it keeps the record, by a hold of its own, and brings nothing back.
//!
//! # Invariants
//!
//! - A group is online while it has a handle; so an online group's ancestors are online.
//! - The step of `handles` to 0 happens under the lock, and makes an online group dying in the same
//!   step: nobody finds it by name or walk after that. So may its ancestors be then, each by the handle
//!   that the one below had.
//! - A group with a child that has not left it is in the tree: offline goes from the leaves up.
//! - Who makes the first of some handles adds a hold, and who gives back the last of them takes it
//!   away; a [`Dying`] has the one of the handles that kept the group online.
//! - A record whose holds are 0 is out of the tree, and nobody can hold it any more. Its parent's record is
//!   there at least as long.
//! - A name is in the index, and a group in the list of its parent's children, exactly while the
//!   group is online; the name is readable while its group is not free.
//! - `nr_descendants` of a group is the number of records below it, but for groups that are just
//!   being made or ended, of which `walks` knows.

use core::fmt;

use crate::Tree;
use crate::below::Below;
use crate::context::Tag;
use crate::counter::OverLimit;
use crate::gate::step;
use crate::group::{Group, GroupRef, Settings, State};
use crate::index::NameIndex;
use crate::limit::Limit;
use crate::name::{self, Kept, NameArena, NameError};
use crate::sync::{Guard, Ordering, lock};
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
    /// An ancestor, named here, has as many levels below it as it may.
    Depth(OverLimit),
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
            CreateError::Depth(_) => f.write_str("an ancestor's limit on depth is met"),
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

/// Levels below the top of a tree, if nothing else was said: as many as a charge may look at while it
/// holds a lock that other trees need too.
pub const DEPTH: u64 = 64;

/// What the topology lock guards beside the groups' links.
#[derive(Debug)]
pub(crate) struct Topology {
    names: NameArena,
    pub(crate) index: NameIndex,
    next_stripe: [u32; 2],
    dying: u32,
    /// Groups that are no longer online and whose record is not free.
    pub(crate) nr_dying: u32,
    nr_groups: u32,
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
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                names: NameArena::new(),
                index: NameIndex::new(),
                next_stripe: [0; 2],
                dying: NONE,
                nr_dying: 0,
                nr_groups: 0,
            }
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
            // All that there is will be one tree.
            group.set_max_depth(Limit::Bytes(DEPTH));
        }
        true
    }
}

impl Tree {
    /// Makes a child of `parent`, with one handle, which is the caller's. The caller has a handle to
    /// `parent`.
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
        if !self.is_made() {
            return Err(CreateError::Gone);
        }
        let hash = self.key.hash(parent.index, name.as_bytes());
        let above = self.group(parent).filter(|group| group.state() == State::Online);
        let above = above.ok_or(CreateError::Gone)?;
        let _walk = self.walks.begin();
        self.join(parent.index, above)?;
        let made = self.create_joined(parent, above, name, hash, settings);
        if made.is_err() {
            self.leave(above.parent(), None);
        }
        made
    }

    /// The rest of [`create`](Tree::create), with the ancestors of `parent` expecting one more.
    fn create_joined(
        &self,
        parent: GroupRef,
        above: &Group,
        name: &str,
        hash: u64,
        settings: Settings,
    ) -> Result<GroupRef, CreateError> {
        let mut topology = lock(&self.topology);
        if above.state() != State::Online || above.generation() != parent.generation {
            return Err(CreateError::Gone);
        }
        let index = &topology.index;
        if index.find(&self.groups, parent.index, name.as_bytes(), hash).is_some() {
            return Err(CreateError::Exists);
        }
        if !index.grow(&self.groups, &self.key, topology.nr_groups, self.source()) {
            return Err(CreateError::NoMemory);
        }
        let below = self.below_of(above)?;
        let (slot, tag, kept) = self.take_records(&mut topology, name)?;
        let (Some(group), Some(context)) = (self.groups.get(slot), self.contexts.get(tag)) else {
            return Err(CreateError::NoMemory);
        };
        if !below.join(above.max_descendants()) {
            // SAFETY: kept above, and shown to nobody.
            unsafe { topology.names.give_back(kept) };
            self.contexts.put(tag);
            self.groups.put(slot);
            return Err(CreateError::Descendants(Self::too_many(parent.index, above)));
        }
        let max_depth = settings.max_depth.unwrap_or_else(|| self.depth_below(parent));
        let stripe = self.stripe_below(&mut topology, parent, above, max_depth);
        {
            let _guard = step!(self, MoveLock).then(|| self.lock_stripe(context.stripe()));
            context.move_to(stripe);
        }
        {
            let _guard = self.lock_stripe(stripe);
            context.bring_online(slot);
            let up = self.counts(parent.index).then_some(above);
            group.bring_online(parent.index, up, tag, stripe, kept);
            group.set_max_depth(max_depth);
            if !parent.is_root() {
                // It is online, so neither is its first.
                above.get_handle();
                above.hold();
            }
            group.counter.set_max(settings.max);
            group.counter.set_high(settings.high);
            group.counter.set_low(settings.low);
            group.counter.set_min(settings.min);
            group.set_on_limit(settings.on_limit.unwrap_or_else(|| above.on_limit()));
        }
        topology.index.add(slot, group, hash);
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

    /// The lock of a new child: the parent's, or for a new top-level tree the next in turn, of those
    /// for deep trees where it may become one.
    fn stripe_below(
        &self,
        topology: &mut Topology,
        parent: GroupRef,
        above: &Group,
        max_depth: Limit,
    ) -> u32 {
        if !self.is_top_of_trees(parent) {
            return above.stripe();
        }
        let is_deep = max_depth > Limit::Bytes(DEPTH);
        let next = &mut topology.next_stripe[usize::from(is_deep)];
        *next = next.wrapping_add(1);
        Tree::stripe_of(is_deep, *next)
    }

    /// As if there had been that many top-level trees of either kind.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn skip_trees(&self, nth: u32) {
        lock(&self.topology).next_stripe = [nth; 2];
    }

    /// Whether children of `group` are trees of their own, each with its lock.
    fn is_top_of_trees(&self, group: GroupRef) -> bool {
        group.is_root() && self.root_kind() == Root::Untracked
    }

    /// How many levels a new child of `parent` may have below it, if nothing was said.
    fn depth_below(&self, parent: GroupRef) -> Limit {
        if self.is_top_of_trees(parent) { Limit::Bytes(DEPTH) } else { Limit::Max }
    }

    /// Has the ancestors of the group `parent`, which is `above`, expect one group more, if each of
    /// them may have one. What `parent` itself may have is decided with the topology locked.
    ///
    /// A walk over depth, without a lock: the caller's handle keeps all levels.
    fn join(&self, parent: u32, above: &Group) -> Result<(), CreateError> {
        if above.max_depth_word() == 0 {
            return Err(CreateError::Depth(Self::too_deep(parent, above, 0)));
        }
        if above.nr_descendants() >= above.max_descendants() {
            return Err(CreateError::Descendants(Self::too_many(parent, above)));
        }
        for (levels, (slot, group)) in (1..).zip(self.ancestors(above.parent())) {
            let refused = if levels >= group.max_depth_word() {
                CreateError::Depth(Self::too_deep(slot, group, levels))
            } else if group.below().is_none_or(|below| below.join(group.max_descendants())) {
                continue;
            } else {
                CreateError::Descendants(Self::too_many(slot, group))
            };
            self.leave(above.parent(), Some(slot));
            return Err(refused);
        }
        Ok(())
    }

    /// Has the group in `slot` and its ancestors, up to that in `end`, expect one group less.
    fn leave(&self, slot: u32, end: Option<u32>) {
        for (_, group) in self.ancestors(slot).take_while(|(slot, _)| Some(*slot) != end) {
            if let Some(below) = group.below() {
                below.leave();
            }
        }
    }

    fn too_deep(slot: u32, group: &Group, levels: u32) -> OverLimit {
        OverLimit {
            group: Tree::ref_to(slot, group),
            requested: 1,
            usage: levels.into(),
            max: group.max_depth_word().into(),
        }
    }

    fn too_many(slot: u32, group: &Group) -> OverLimit {
        OverLimit {
            group: Tree::ref_to(slot, group),
            requested: 1,
            usage: group.nr_descendants().into(),
            max: group.max_descendants().into(),
        }
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
        for link in [&group.links.next, &group.links.prev] {
            link.store(NONE, Ordering::Relaxed);
        }
    }

    // ---- handles ------------------------------------------------------------------------

    /// Another handle to `group`, of which the caller has one, or a [hold](Tree::hold). The root needs none.
    ///
    /// The process ends where there are 2^31 of one group.
    pub fn get(&self, group: GroupRef) {
        if let Some(record) = self.record(group)
            && !group.is_root()
            && record.get_handle()
            && step!(self, FirstHandle)
        {
            // The group is gone, or just going; the caller's hold keeps the record until here.
            record.hold();
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

    /// Gives a handle back. With the last one the group is dying, and so may groups above be that it
    /// kept; the caller sees to it, unless a child has yet to go.
    #[must_use = "a dying group must be taken offline"]
    pub fn put(&self, group: GroupRef) -> Option<Dying> {
        if group.is_root() {
            return None;
        }
        let record = self.record(group)?;
        if record.put_handle_unless_last() {
            return None;
        }
        let topology = lock(&self.topology);
        // A handle may have been made in between, of another one or of a hold.
        if record.put_handle() != 0 && step!(self, LastAgain) {
            return None;
        }
        if record.state() == State::Online {
            return self.die(topology, group.index);
        }
        drop(topology);
        self.let_go(group);
        None
    }

    /// The last handle of the online group in `slot` is gone: its name is free, and its parent has a handle
    /// less, which may be its last. Level by level, for the lock is others' too.
    ///
    /// Answers the one of them that has no child which keeps its offline from running.
    fn die<'a>(&'a self, mut topology: Guard<'a, Topology>, mut slot: u32) -> Option<Dying> {
        let mut next = None;
        while let Some(group) = self.groups.get(slot) {
            // Looked at as it becomes dying, in one step: of a last child that goes from here on the offline
            // answers it. One at most, and not only the first: the offline of that may be over by now, another's.
            if group.nr_children() == 0 {
                next = Some(Dying(Tree::ref_to(slot, group)));
            }
            topology.index.remove(&self.groups, &self.key, slot, group);
            slot = group.parent();
            let above = self.groups.get(slot)?;
            if let Some(below) = above.below() {
                self.unlink(group, below);
            }
            group.set_state(State::Dying);
            topology.nr_dying += 1;
            if slot == 0 || above.put_handle_unless_last() {
                break;
            }
            drop(topology);
            topology = lock(&self.topology);
            if above.put_handle() != 0 {
                break;
            }
        }
        next
    }

    /// Holds the record of `group`, if it is online: until [`let_go`](Tree::let_go) the reference is not
    /// stale, and [`get`](Tree::get) may be called. The group itself is not kept.
    pub fn hold(&self, group: GroupRef) -> bool {
        let _topology = lock(&self.topology);
        let online = self.group(group).filter(|record| record.state() == State::Online);
        if let Some(record) = online.filter(|_| !group.is_root()) {
            record.hold();
        }
        online.is_some()
    }

    /// The same of a group that may have ended, if the reference is not stale.
    pub(crate) fn hold_known(&self, group: GroupRef) -> bool {
        let _topology = lock(&self.topology);
        self.record(group).is_some_and(|record| group.is_root() || record.try_hold())
    }

    /// Ends a hold. Takes a lock only where it was the last that kept the record; it is free then, and so may
    /// records above be that it alone held.
    pub fn let_go(&self, group: GroupRef) {
        let Some(mut record) = self.record(group).filter(|_| !group.is_root()) else { return };
        let mut slot = group.index;
        while record.let_go() {
            debug_assert_eq!(record.state(), State::Held, "what is in the tree is held");
            let parent = record.parent();
            self.unpin(Tag::from_bits(record.context()));
            {
                let mut topology = lock(&self.topology);
                // SAFETY: the name was kept when the group was made, and nobody reads it once the group
                // is free, which it becomes under this same lock.
                unsafe { topology.names.give_back(record.kept_name()) };
                topology.nr_dying -= 1;
                if record.retire() {
                    self.groups.put(slot);
                }
            }
            match self.groups.get(parent) {
                Some(above) if parent != 0 => (record, slot) = (above, parent),
                _ => return,
            }
        }
    }

    /// Ends a dying group: its context forwards to the parent's. The parent stays in the tree until
    /// [`offline`](Tree::offline). The cost depends on nothing that is charged. Lists of the group have moved
    /// before this.
    pub fn end(&self, dying: &Dying) {
        // Nobody else ends it, and until it has left it keeps its ancestors.
        let Some(group) = self.group(dying.0) else { return };
        let parent = group.parent();
        let Some(above) = self.groups.get(parent) else { return };
        debug_assert_eq!(group.nr_children(), 0, "children go first");
        let usage = {
            let _topology = lock(&self.topology);
            let _guard = self.lock_stripe(group.stripe());
            let usage = self.forward_locked(group, above);
            // Events are counted under the stripe lock by whoever still has the reference.
            group.set_state(State::Ended);
            self.note_end(group);
            usage
        };
        self.note_inherited(Tree::ref_to(parent, above), usage);
    }

    /// Takes a dying group out of the tree, which [ends](Tree::end) it if it has not. Its record is
    /// released once nobody holds it.
    ///
    /// Answers the parent, if this was the last that kept it.
    #[must_use = "a dying group must be taken offline"]
    pub fn offline(&self, dying: Dying) -> Option<Dying> {
        self.end(&dying);
        let group = self.record(dying.0)?;
        let parent = group.parent();
        let above = self.groups.get(parent)?;
        let _walk = self.walks.begin();
        self.leave(parent, None);
        let mut topology = lock(&self.topology);
        above.below()?.nr_children.fetch_sub(1, Ordering::Relaxed);
        topology.nr_groups -= 1;
        group.set_state(State::Held);
        if let Some(below) = group.below() {
            group.set_below(None);
            self.belows.put(below.index());
        }
        let is_next = above.state() == State::Dying && above.nr_children() == 0;
        let next = is_next.then(|| Dying(Tree::ref_to(parent, above)));
        drop(topology);
        self.let_go(dying.0);
        next
    }

    /// Makes the group's context lead to the parent's; answers what is charged to it. Called with the
    /// stripe locked.
    fn forward_locked(&self, group: &Group, above: &Group) -> u64 {
        self.end_protection(group);
        let tag = Tag::from_bits(group.context());
        let target = Tag::from_bits(above.context());
        let usage = group.counter.usage();
        let Some(context) = self.context(tag) else { return usage };
        if target.is_nobody() {
            self.sub_from_trees(group.stripe(), usage);
        } else {
            above.add_inherited_contexts(group.inherited_contexts() + 1);
        }
        // INVARIANT: the target is pinned before anything leads to it.
        self.pin_target(target);
        context.forward_to(target);
        // The pin of the record goes with that: who enters a group that is gone pays as its heir.
        usage
    }

    /// `usage` bytes have become `heir`'s: there may be something to be found. If it is gone itself by
    /// now, they are among those that its own heir was told of.
    fn note_inherited(&self, heir: GroupRef, usage: u64) {
        if usage == 0 || !self.counts(heir.index) {
            return;
        }
        if let Some((_guard, _)) = self.lock_group(heir) {
            for (_, level) in self.chain(heir.index) {
                level.add_reclaimed(usage);
            }
        }
    }

    /// Puts a dying group aside, for a moment at which its offline may run.
    pub fn defer(&self, dying: Dying) {
        let mut topology = lock(&self.topology);
        if let Some(group) = self.group(dying.0) {
            group.links.chain.store(topology.dying, Ordering::Relaxed);
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
        topology.dying = group.links.chain.swap(NONE, Ordering::Relaxed);
        self.deferred.store(topology.dying != NONE, Ordering::Relaxed);
        Some(Dying(Tree::ref_to(slot, group)))
    }

    // ---- descendants --------------------------------------------------------------------

    /// Online and dying groups below `group`.
    pub fn nr_descendants(&self, group: GroupRef) -> u32 {
        self.group(group).map_or(0, Group::nr_descendants)
    }

    /// Groups of the whole tree whose offline is put aside or under way, or whose record is held.
    pub fn nr_dying(&self) -> u32 {
        lock(&self.topology).nr_dying
    }

    /// Bounds the number of groups below `group` (`cgroup.max.descendants`).
    pub fn set_max_descendants(&self, group: GroupRef, limit: Limit) {
        if let Some(record) = self.group(group) {
            record.set_max_descendants(limit);
        }
    }

    /// How many levels there may be below `group`.
    pub fn max_depth(&self, group: GroupRef) -> Limit {
        self.group(group).map_or(Limit::Max, Group::max_depth)
    }

    /// Bounds the number of levels below `group` (`cgroup.max.depth`). `false`, and nothing changed: it
    /// is the top of a tree that shares its lock with others, so that it can't be more than [`DEPTH`];
    /// what [`create`](Tree::create) makes with more has a lock for deep trees.
    pub fn set_max_depth(&self, group: GroupRef, limit: Limit) -> bool {
        let Some(record) = self.group(group) else { return true };
        let is_shared = record.parent() == 0
            && self.root_kind() == Root::Untracked
            && !Tree::is_deep(record.stripe());
        if is_shared && limit > Limit::Bytes(DEPTH) {
            return false;
        }
        record.set_max_depth(limit);
        true
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
