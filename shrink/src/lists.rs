//! Lists of objects, one per group, found from the object's own tag.
//!
//! A [`ListLru`] is a list with a part for every group that has objects in it. Whose part an
//! object joins is said by its tag, not by the thread that adds it: pressure in a group finds
//! what the group pays for. When a group goes, its parts join the parent's, and nothing is
//! written to the objects.
//!
//! ```text
//!   tag ─(tree)─► group ─(index)─► head ─► newest … oldest
//!                                   ▲ lock
//!   node.home ───(forwards)─────────┘
//! ```
//!
//! # Invariants
//!
//! - The root's part of a list is there from `create` to `destroy`: every way up ends at one.
//! - A group whose generation is below `gone` of its slot has no part and gets none.
//! - A node is under the head of the group that pays for it, or of an ancestor that it went to
//!   (the payer is going, or there was no memory for a head).
//!
//! # Lock order
//!
//! 1. `Shape`: which heads there are
//! 2. the list of a head; of two, the child's before the parent's (only under `Shape`)
//! 3. the free list of a table, the marks of shrinkers
//!
//! The tree's locks are taken before or after, never while one of these is held, and never the
//! other way round. Nothing here allocates; heads come from a [`Source`] of pages.
//!
//! Source: the kernel's `mm/list_lru.c`.

use core::ptr::NonNull;

use memcg_accounting::sync::{AtomicU32, AtomicU64, Guard, Lock, Ordering, lock};
use memcg_accounting::table::{NONE, Record, Table};
use memcg_accounting::{GroupRef, Source, Tag, Tree};

use crate::list::{CLAIMED, Links, List};
use crate::list_head::{self, Head};
use crate::list_index::Index;

/// What adding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// `false`: the node was in a list already, and nothing changed.
    pub linked: bool,
    /// The group in whose part the node is now. It may have gone since.
    pub group: GroupRef,
    /// That part had been empty: the caller marks its shrinker there.
    pub was_empty: bool,
}

impl Added {
    /// The group in which the caller now marks its shrinker: not always the one that the tag
    /// names, which may be going.
    #[must_use]
    pub fn newly_nonempty_in(&self) -> Option<GroupRef> {
        (self.linked && self.was_empty).then_some(self.group)
    }
}

/// Names a list. It counts nothing: whoever made it destroys it.
#[derive(Debug, PartialEq, Eq)]
pub struct ListLru {
    pub(crate) id: u32,
    pub(crate) root: u32,
}

/// A list's record.
#[derive(Debug)]
pub(crate) struct Lru {
    /// The root's head.
    pub(crate) root: AtomicU32,
    /// The chain of the other heads.
    pub(crate) first: AtomicU32,
    /// What `reparent` tells of the list: which shrinker serves it.
    pub(crate) cookie: AtomicU64,
    next_free: AtomicU32,
}

impl Record for Lru {
    fn new() -> Self {
        let none = || AtomicU32::new(NONE);
        Self { root: none(), first: none(), cookie: AtomicU64::new(0), next_free: none() }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed) == NONE
    }
}

/// The heads of the groups that use one slot, one after the other.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) first: AtomicU32,
    /// Groups of this slot with a lower generation (wrapping) have no heads.
    pub(crate) gone: AtomicU32,
    next_free: AtomicU32,
}

impl Record for Slot {
    fn new() -> Self {
        Self {
            first: AtomicU32::new(NONE),
            gone: AtomicU32::new(0),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed) == NONE
    }
}

impl Slot {
    pub(crate) fn is_gone(&self, generation: u32) -> bool {
        let after = self.gone.load(Ordering::Relaxed).wrapping_sub(generation);
        after != 0 && after < 1 << 31
    }
}

/// Guards which heads there are: index, chains, records.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) nr_heads: u32,
    nr_lists: u32,
    /// A group went whose slot could not be recorded, so no group gets a head any more.
    pub(crate) closed: bool,
}

/// Steps that models leave out, to show that they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A head whose group went forwards to the parent's.
    Forward,
    /// A group that goes is recorded as gone before its heads move.
    Gone,
    /// An adder looks again, under the lock, whose head it holds.
    Recheck,
    /// A remover follows the home again once it holds the lock.
    Refollow,
    /// An adder reports the group whose head it holds, not the one that the tag named.
    ReportHead,
    /// `reparent` reports the parent of each list that had nodes.
    ReportMoved,
}

/// All lists of a process: a value, so that tests and models make their own.
pub struct Lists {
    pub(crate) heads: Table<Head>,
    pub(crate) lrus: Table<Lru>,
    pub(crate) slots: Table<Slot>,
    pub(crate) index: Index,
    pub(crate) shape: Lock<Shape>,
    source: &'static Source,
    #[cfg(loom)]
    pub(crate) left_out: Option<Step>,
}

impl core::fmt::Debug for Lists {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lists").field("heads", &self.heads).finish_non_exhaustive()
    }
}

impl Lists {
    memcg_accounting::const_new! {
        /// No lists yet; records will come from `source`.
        pub fn new(source: &'static Source) -> Self {
            Self {
                heads: Table::new(),
                lrus: Table::new(),
                slots: Table::new(),
                index: Index::new(),
                shape: Lock::new(Shape { nr_heads: 0, nr_lists: 0, closed: false }),
                source,
                #[cfg(loom)]
                left_out: None,
            }
        }
    }

    /// Whether `step` is taken: always, but where a model leaves it out.
    #[cfg(not(loom))]
    pub(crate) const fn takes(&self, _step: Step) -> bool {
        true
    }

    #[cfg(loom)]
    pub(crate) fn takes(&self, step: Step) -> bool {
        self.left_out != Some(step)
    }

    /// Bytes of address space that the lists' records have mapped.
    pub fn metadata_bytes(&self) -> usize {
        self.heads.mapped_bytes() + self.lrus.mapped_bytes() + self.slots.mapped_bytes()
    }

    // ---- lists --------------------------------------------------------------------------

    /// Makes a list. `cookie` is what [`reparent`](Lists::reparent) tells of it. `None`: the
    /// source has no memory.
    pub fn create(&self, cookie: u64) -> Option<ListLru> {
        let mut shape = lock(&self.shape);
        let id = self.lrus.take(self.source)?;
        let Some(root) = self.heads.take(self.source) else {
            self.lrus.put(id);
            return None;
        };
        let (lru, head) = (self.lrus.get(id)?, self.heads.get(root)?);
        head.bring_up(id, GroupRef::ROOT);
        lru.root.store(root, Ordering::Relaxed);
        lru.first.store(NONE, Ordering::Relaxed);
        lru.cookie.store(cookie, Ordering::Relaxed);
        shape.nr_lists += 1;
        Some(ListLru { id, root })
    }

    /// Changes what [`reparent`](Lists::reparent) tells of `list`.
    pub fn set_cookie(&self, list: &ListLru, cookie: u64) {
        let _shape = lock(&self.shape);
        if let Some(lru) = self.lrus.get(list.id) {
            lru.cookie.store(cookie, Ordering::Relaxed);
        }
    }

    /// Ends a list that is empty and that nobody uses any more. `false`: it is not empty, or
    /// something leads to it still. Then it is nobody's: neither it nor its heads will ever be
    /// another list's, whose nodes may be of another type.
    pub fn destroy(&self, list: ListLru) -> bool {
        let mut shape = lock(&self.shape);
        let (Some(lru), Some(root)) = (self.lrus.get(list.id), self.heads.get(list.root)) else {
            return false;
        };
        let mut at = lru.first.load(Ordering::Relaxed);
        while let Some(head) = self.heads.get(at) {
            let next = head.chains.next.load(Ordering::Relaxed);
            let guard = head.lock();
            if guard.is_empty() && head.marks() == 0 {
                self.withdraw(at, head);
                shape.nr_heads -= 1;
                list_head::free(&self.heads, at, head);
            }
            at = next;
        }
        let guard = root.lock();
        let is_empty =
            lru.first.load(Ordering::Relaxed) == NONE && guard.is_empty() && root.marks() == 0;
        if is_empty {
            list_head::free(&self.heads, list.root, root);
            shape.nr_lists -= 1;
            self.lrus.put(list.id);
        }
        is_empty
    }

    /// How many lists there are.
    pub fn nr_lists(&self) -> u32 {
        lock(&self.shape).nr_lists
    }

    /// How many heads of live groups there are, roots' not counted.
    pub fn nr_heads(&self) -> u32 {
        lock(&self.shape).nr_heads
    }

    // ---- nodes --------------------------------------------------------------------------

    /// Links `node` as the newest of the group that pays for `tag`. A node that is in a list
    /// already is left there.
    ///
    /// `O(1)`; takes the tree's lock for a moment, then the head's. Never allocates: where no
    /// head can be made the nearest ancestor's is used.
    ///
    /// # Safety
    ///
    /// - The node is valid, and stays valid and where it is until it was removed: by
    ///   [`remove`](Lists::remove), or by being taken from an
    ///   [`Isolated`](crate::Isolated).
    /// - `tag` is the tag of memory that stays allocated during the call.
    pub unsafe fn add(&self, tree: &Tree, list: &ListLru, node: NonNull<Links>, tag: Tag) -> Added {
        // SAFETY: the node is valid by contract.
        let links = unsafe { node.as_ref() };
        if !links.claim() {
            return Added { linked: false, group: GroupRef::ROOT, was_empty: false };
        }
        let (index, head, mut guard, asked) = self.lock_for(tree, list, tag);
        let was_empty = guard.is_empty();
        // SAFETY: the node is in no list, for its claim is ours; it stays valid by contract.
        unsafe { guard.push(node) };
        head.add_mark();
        head.publish_len(&guard);
        let group = if self.takes(Step::ReportHead) { head.group() } else { asked };
        links.settle(index);
        Added { linked: true, group, was_empty }
    }

    /// The head where objects of `tag` go, locked, and the group that the tag named first.
    fn lock_for(
        &self,
        tree: &Tree,
        list: &ListLru,
        tag: Tag,
    ) -> (u32, &Head, Guard<'_, List>, GroupRef) {
        // A turn is repeated only if a group went in between.
        loop {
            let first = tree.owner(tag).unwrap_or(GroupRef::ROOT);
            let mut at = Some(first);
            while let Some(group) = at {
                if let Some((index, head)) = self.head(list, group) {
                    let guard = head.lock();
                    if head.is(list.id, group) || !self.takes(Step::Recheck) {
                        return (index, head, guard, first);
                    }
                    break;
                }
                // Going, or without memory for a head: the parent has its objects, or gets them.
                at = tree.parent_ref(group);
            }
        }
    }

    /// The head of `group`, made if there is none. `None`: the group is going, or there is no
    /// memory.
    fn head(&self, list: &ListLru, group: GroupRef) -> Option<(u32, &Head)> {
        if group.is_root() {
            return self.heads.get(list.root).map(|head| (list.root, head));
        }
        self.index.find(&self.heads, list.id, group).or_else(|| self.make_head(list.id, group))
    }

    fn make_head(&self, id: u32, group: GroupRef) -> Option<(u32, &Head)> {
        let mut shape = lock(&self.shape);
        let slot = self.slot(group.index())?;
        if slot.is_gone(group.generation()) || shape.closed {
            return None;
        }
        if let Some(found) = self.index.find_locked(&self.heads, id, group) {
            return Some(found);
        }
        if !self.index.grow(&self.heads, shape.nr_heads, self.source) {
            return None;
        }
        let index = self.heads.take(self.source)?;
        let head = self.heads.get(index)?;
        head.bring_up(id, group);
        self.introduce(index, head, slot);
        shape.nr_heads += 1;
        Some((index, head))
    }

    /// The record of a group's slot. Called with `Shape` locked.
    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        while self.slots.len() <= index {
            self.slots.take(self.source)?;
        }
        self.slots.get(index)
    }

    /// Puts a live head into index and chains. Called with `Shape` locked.
    pub(crate) fn introduce(&self, index: u32, head: &Head, slot: &Slot) {
        head.chains.group.store(slot.first.load(Ordering::Relaxed), Ordering::Relaxed);
        slot.first.store(index, Ordering::Relaxed);
        if let Some(lru) = self.lrus.get(head.owner()) {
            let first = lru.first.load(Ordering::Relaxed);
            head.chains.next.store(first, Ordering::Relaxed);
            head.chains.prev.store(NONE, Ordering::Relaxed);
            if let Some(first) = self.heads.get(first) {
                first.chains.prev.store(index, Ordering::Relaxed);
            }
            lru.first.store(index, Ordering::Relaxed);
        }
        self.index.add(index, head);
    }

    /// Takes a live head out of index and chains. Called with `Shape` locked.
    pub(crate) fn withdraw(&self, index: u32, head: &Head) {
        self.index.remove(&self.heads, index, head);
        let next = head.chains.next.load(Ordering::Relaxed);
        let prev = head.chains.prev.load(Ordering::Relaxed);
        if let Some(next) = self.heads.get(next) {
            next.chains.prev.store(prev, Ordering::Relaxed);
        }
        if let Some(prev) = self.heads.get(prev) {
            prev.chains.next.store(next, Ordering::Relaxed);
        } else if let Some(lru) = self.lrus.get(head.owner()) {
            lru.first.store(next, Ordering::Relaxed);
        }
        let Some(slot) = self.slots.get(head.group().index()) else {
            return;
        };
        let mut link = &slot.first;
        loop {
            let at = link.load(Ordering::Relaxed);
            if at == index {
                link.store(head.chains.group.load(Ordering::Relaxed), Ordering::Relaxed);
                return;
            }
            let Some(next) = self.heads.get(at) else {
                return;
            };
            link = &next.chains.group;
        }
    }

    /// Locks the head that `node` is under. `None`: it is in no list, or not in `list`.
    fn lock_home(&self, list: &ListLru, node: &Links) -> Option<(u32, &Head, Guard<'_, List>)> {
        loop {
            let home = node.home();
            if home == NONE || home == CLAIMED {
                return None;
            }
            let Some((index, head)) = list_head::follow(&self.heads, home) else {
                continue;
            };
            let guard = head.lock();
            // What leads to a live head changes under that head's lock, which is held now: if
            // the way from the home still ends here, it ends here until the lock is let go.
            let again = list_head::follow(&self.heads, home).map(|(index, _)| index);
            let certain = again == Some(index) && node.home() == home;
            if certain || !self.takes(Step::Refollow) {
                return (head.owner() == list.id).then_some((home, head, guard));
            }
        }
    }

    /// Unlinks `node`, from the part that it is in by now. `false`: it was in no part of `list`,
    /// or another thread removes it.
    ///
    /// `O(1)`, and the depth of the tree at most where groups have gone.
    ///
    /// # Safety
    ///
    /// - The node is valid during the call.
    pub unsafe fn remove(&self, list: &ListLru, node: NonNull<Links>) -> bool {
        // SAFETY: the node is valid by contract.
        let links = unsafe { node.as_ref() };
        let Some((home, head, mut guard)) = self.lock_home(list, links) else {
            return false;
        };
        // SAFETY: the node is under this head, whose lock is held.
        unsafe { guard.unlink(node) };
        head.publish_len(&guard);
        links.settle(NONE);
        list_head::drop_mark(&self.heads, home);
        true
    }

    /// Makes `node` the newest of the part that it is in. `false`: it is in no part of `list`.
    ///
    /// # Safety
    ///
    /// - The node is valid during the call.
    pub unsafe fn touch(&self, list: &ListLru, node: NonNull<Links>) -> bool {
        // SAFETY: the node is valid by contract.
        let links = unsafe { node.as_ref() };
        let Some((_, _head, mut guard)) = self.lock_home(list, links) else {
            return false;
        };
        // SAFETY: the node is under this head, whose lock is held.
        unsafe { guard.unlink(node) };
        // SAFETY: it is in no list now, and stays valid: it was in one.
        unsafe { guard.push(node) };
        true
    }

    /// Nodes in the part of `group`: charged to exactly it. One load; may change right after.
    pub fn count(&self, list: &ListLru, group: GroupRef) -> usize {
        if group.is_root() {
            return self.heads.get(list.root).map_or(0, Head::len);
        }
        let found = self.index.find(&self.heads, list.id, group);
        found.map_or_else(|| self.count_locked(list.id, group), |(_, head)| head.len())
    }

    /// A group without a head has no nodes; being sure of that takes the lock.
    fn count_locked(&self, id: u32, group: GroupRef) -> usize {
        let _shape = lock(&self.shape);
        let found = self.index.find_locked(&self.heads, id, group);
        found.map_or(0, |(_, head)| head.len())
    }
}
