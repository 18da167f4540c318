//! The groups in which something is marked, as a tree of their own: what a walk looks at.
//!
//! ```text
//!   all groups                      marked ones (*), and what leads to them
//!   root ─ a ─ a1  a2* a3 … a999    root ─► a ─► a2
//!        ├ b ─ b1  b2  b3 …              └► c*
//!        └ c*
//! ```
//!
//! A group is linked under its parent from its first mark until a walk finds nothing marked in
//! it or below. So a walk costs what is marked, not what there is. Linking is the adder's: after
//! it has set a mark it looks whether the group is linked, and almost always it is.
//!
//! ```text
//!   adder                              walk, under the lock
//!   set the mark                       linked = false
//!   fence        ◄──── pairs with ────► fence
//!   linked? if not, link (lock)        anything marked? link again
//! ```
//!
//! # Invariants
//!
//! - The links of all records, `walks` and `resume` are guarded by one lock; `linked` is written
//!   under it.
//! - The parent of a linked group is linked, or is the root, which counts as linked.
//! - A group with a mark is linked, or an adder that set a mark is about to link it, or it is
//!   going. A group that is going is not linked from its retirement on.
//! - No cursor stays at a group that is unlinked: it goes on to the next.
//!
//! Source: the kernel's `mem_cgroup_iter` walks all groups; the marks are its `shrinker_info`.

use memcg_accounting::table::{NONE, Table};
use memcg_accounting::{GroupRef, Tree};

use crate::groups::{GroupRecord, Groups};
use crate::marks::Bits;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Guard, Lock, Ordering, fence, lock};
use crate::walks::Walk;

/// A group's place among the marked ones.
#[derive(Debug)]
pub(crate) struct MarkedLinks {
    linked: AtomicBool,
    /// The group, as it was when it was linked.
    group: AtomicU64,
    parent: AtomicU32,
    first: AtomicU32,
    next: AtomicU32,
    prev: AtomicU32,
    /// Where the next walk below this group begins; `NONE`: at the group itself.
    pub(crate) resume: AtomicU32,
}

impl MarkedLinks {
    pub(crate) fn new() -> Self {
        let none = || AtomicU32::new(NONE);
        Self {
            linked: AtomicBool::new(false),
            group: AtomicU64::new(0),
            parent: none(),
            first: none(),
            next: none(),
            prev: none(),
            resume: none(),
        }
    }
}

impl MarkedLinks {
    /// Whether walks find the group. Relaxed: who set a mark looks after a fence.
    pub(crate) fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Relaxed)
    }
}

/// A step that a model leaves out, to show that it is needed.
#[cfg(loom)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The fence of whoever set a mark.
    LinkFence,
    /// The fence of whoever unlinks.
    UnlinkFence,
    /// The second look at the marks of whoever unlinks.
    LookAgain,
    /// Telling whoever comes to the end of a walk that others are still on it.
    Unsure,
}

/// Levels that one look at a group unlinks: each is a walk over those above it, under the lock that all
/// reclaimers need.
const PRUNED: u32 = 64;

/// What the lock guards beside the links.
#[derive(Debug)]
pub(crate) struct State {
    /// Groups that walks have looked at.
    pub(crate) nr_looks: u64,
}

/// The marked groups of one engine.
#[derive(Debug)]
pub(crate) struct Marked {
    lock: Lock<State>,
    pub(crate) walks: Table<Walk>,
    #[cfg(loom)]
    pub(crate) weakened: Option<Weakened>,
}

/// Whether a step is taken: always, but where a model leaves it out.
macro_rules! step {
    ($marked:expr, $site:ident) => {{
        #[cfg(not(loom))]
        {
            true
        }
        #[cfg(loom)]
        {
            $marked.weakened != Some($crate::marked::Weakened::$site)
        }
    }};
}

pub(crate) use step;

impl Marked {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                lock: Lock::new(State { nr_looks: 0 }),
                walks: Table::new(),
                #[cfg(loom)]
                weakened: None,
            }
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, State> {
        lock(&self.lock)
    }

    #[cfg(not(loom))]
    pub(crate) fn raw_lock(&self) -> &Lock<State> {
        &self.lock
    }
}

/// The marked groups while they are locked.
pub(crate) struct Locked<'a> {
    pub(crate) marked: &'a Marked,
    pub(crate) groups: &'a Groups,
    pub(crate) state: Guard<'a, State>,
}

// Relaxed throughout: the lock orders the links, and fences what is said to.
impl<'a> Locked<'a> {
    pub(crate) fn new(marked: &'a Marked, groups: &'a Groups) -> Self {
        Self { marked, groups, state: marked.lock() }
    }

    fn links(&self, slot: u32) -> Option<&'a MarkedLinks> {
        self.groups.at(slot).map(|record| &record.marked)
    }

    pub(crate) fn resume(&self, target: GroupRef) -> Option<&'a AtomicU32> {
        self.links(target.index()).map(|links| &links.resume)
    }

    /// The group in `slot`, which is linked, or is `target`.
    pub(crate) fn group_at(&self, target: GroupRef, slot: u32) -> Option<GroupRef> {
        if slot == target.index() {
            return Some(target);
        }
        self.links(slot).map(|links| GroupRef::from_bits(links.group.load(Ordering::Relaxed)))
    }

    /// The slot after `slot` in the pre-order of what is linked below `top`.
    pub(crate) fn after(&self, top: u32, slot: u32) -> u32 {
        match self.links(slot).map(|links| links.first.load(Ordering::Relaxed)) {
            Some(child) if child != NONE => child,
            _ => self.after_subtree(top, slot),
        }
    }

    /// The slot after `slot` and all below it.
    fn after_subtree(&self, top: u32, mut slot: u32) -> u32 {
        while slot != top
            && let Some(links) = self.links(slot)
        {
            let next = links.next.load(Ordering::Relaxed);
            if next != NONE {
                return next;
            }
            slot = links.parent.load(Ordering::Relaxed);
        }
        NONE
    }

    /// Links `group`, and what leads to it.
    fn link(&mut self, tree: &Tree, group: GroupRef) {
        let mut at = group;
        loop {
            let Some(record) = self.groups.record(tree, at) else {
                return self.groups.mark_everything();
            };
            let links = &record.marked;
            if links.linked.load(Ordering::Relaxed) {
                return;
            }
            if at.is_root() {
                links.linked.store(true, Ordering::Relaxed);
                return;
            }
            let Some(parent) = tree.online_parent(at) else { return };
            let Some(above) = self.groups.record(tree, parent) else {
                return self.groups.mark_everything();
            };
            links.group.store(at.to_bits(), Ordering::Relaxed);
            links.parent.store(parent.index(), Ordering::Relaxed);
            self.push(at.index(), links, &above.marked);
            at = parent;
        }
    }

    /// Makes a record the first child of its parent's.
    fn push(&self, slot: u32, links: &MarkedLinks, above: &MarkedLinks) {
        let first = above.first.load(Ordering::Relaxed);
        links.next.store(first, Ordering::Relaxed);
        links.prev.store(NONE, Ordering::Relaxed);
        if let Some(first) = self.links(first) {
            first.prev.store(slot, Ordering::Relaxed);
        }
        above.first.store(slot, Ordering::Relaxed);
        links.linked.store(true, Ordering::Relaxed);
    }

    /// Unlinks the group in `slot`, if nothing is marked in it or below it; and then those above
    /// it of which that becomes true, [`PRUNED`] in all: the rest is a later walk's.
    pub(crate) fn prune(&mut self, slot: u32, in_use: Bits) {
        let mut at = slot;
        for _ in 0..PRUNED {
            let Some(record) = self.groups.at(at).filter(|_| at != 0) else { return };
            let links = &record.marked;
            let is_leaf = links.first.load(Ordering::Relaxed) == NONE;
            if !is_leaf || !self.is_linked(at) || !record.marks.read(in_use).is_empty() {
                return;
            }
            let parent = self.unlink(at, links);
            if step!(self.marked, UnlinkFence) {
                // Partner: the fence in `Groups::linked`. Without it the look below could come
                // before the unlinking, and miss a mark whose setter still saw the group linked.
                fence(Ordering::SeqCst);
            }
            if step!(self.marked, LookAgain) && !record.marks.read(in_use).is_empty() {
                if let Some(above) = self.links(parent) {
                    self.push(at, links, above);
                }
                return;
            }
            at = parent;
        }
    }

    fn is_linked(&self, slot: u32) -> bool {
        self.links(slot).is_some_and(|links| links.linked.load(Ordering::Relaxed))
    }

    /// Takes a linked record, which has no child, out; answers the slot of its parent.
    fn unlink(&mut self, slot: u32, links: &MarkedLinks) -> u32 {
        self.move_cursors_from(slot);
        let (next, prev) = (links.next.load(Ordering::Relaxed), links.prev.load(Ordering::Relaxed));
        let parent = links.parent.load(Ordering::Relaxed);
        if let Some(next) = self.links(next) {
            next.prev.store(prev, Ordering::Relaxed);
        }
        match (self.links(prev), self.links(parent)) {
            (Some(prev), _) => prev.next.store(next, Ordering::Relaxed),
            (None, Some(above)) => above.first.store(next, Ordering::Relaxed),
            (None, None) => {}
        }
        links.linked.store(false, Ordering::Relaxed);
        parent
    }

    /// Sends every cursor that is at `slot` on to what comes after it.
    fn move_cursors_from(&self, slot: u32) {
        let walks = &self.marked.walks;
        for walk in (0..walks.len()).filter_map(|index| walks.get(index)) {
            let top = walk.target().index();
            if walk.is_used() && top != slot {
                walk.move_from(slot, || self.after_subtree(top, slot));
            }
        }
        let mut at = slot;
        while let Some(links) = self.links(at)
            && at != 0
        {
            at = links.parent.load(Ordering::Relaxed);
            let Some(above) = self.links(at) else { return };
            if above.resume.load(Ordering::Relaxed) == slot {
                above.resume.store(self.after_subtree(at, slot), Ordering::Relaxed);
            }
        }
    }

    /// A group ends: nothing leads to its record any more.
    fn retire(&mut self, record: &GroupRecord, slot: u32) {
        let links = &record.marked;
        debug_assert_eq!(links.first.load(Ordering::Relaxed), NONE, "its children have gone");
        if links.linked.load(Ordering::Relaxed) {
            self.unlink(slot, links);
        }
        links.resume.store(NONE, Ordering::Relaxed);
    }
}

impl Groups {
    /// Sees to it that walks find `group`, in which something was marked before this.
    pub(crate) fn linked(&self, tree: &Tree, marked: &Marked, group: GroupRef) {
        if step!(marked, LinkFence) {
            // Partner: the fence in `prune`. Either whoever unlinks the group sees the mark, or
            // this sees it unlinked.
            fence(Ordering::SeqCst);
        }
        if self.find(group).is_none_or(|record| !record.marked.linked.load(Ordering::Relaxed)) {
            Locked::new(marked, self).link(tree, group);
        }
    }

    /// Has walks find `group` no more, whose marks were taken: it ends.
    pub(crate) fn unlinked(&self, marked: &Marked, group: GroupRef) {
        if let Some(record) = self.find(group) {
            Locked::new(marked, self).retire(record, group.index());
        }
    }

    /// Whether one of `bits` is marked in the subtree of `target`. `O(marked groups)`, one look
    /// where the target itself is marked.
    pub(crate) fn has_marked(&self, marked: &Marked, target: GroupRef, bits: Bits) -> bool {
        if bits.is_empty() {
            return false;
        }
        if self.is_unrecorded() || !self.marks(target, bits).is_empty() {
            return true;
        }
        let locked = Locked::new(marked, self);
        let mut at = target.index();
        loop {
            at = locked.after(target.index(), at);
            let Some(record) = self.at(at) else { return false };
            if !record.marks.read(bits).is_empty() {
                return true;
            }
        }
    }

    /// Tests every invariant of the links.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold, naming it.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn check_marked(&self, tree: &Tree, marked: &Marked, in_use: Bits) {
        let locked = Locked::new(marked, self);
        let mut nr_linked = 0;
        let mut at = 0;
        while let Some(links) = locked.links(at) {
            if at != 0 {
                nr_linked += 1;
                assert!(
                    links.linked.load(Ordering::Relaxed),
                    "group {at} is found, so it is linked"
                );
                let group = GroupRef::from_bits(links.group.load(Ordering::Relaxed));
                let parent = tree.online_parent(group).map(GroupRef::index);
                assert_eq!(parent, Some(links.parent.load(Ordering::Relaxed)), "of {at}");
            }
            at = locked.after(0, at);
        }
        for slot in 1..self.len() {
            let Some(record) = self.at(slot) else { continue };
            nr_linked -= u32::from(locked.is_linked(slot));
            let resume = record.marked.resume.load(Ordering::Relaxed);
            assert!(resume == NONE || resume == slot || locked.is_linked(resume), "{slot}");
        }
        assert_eq!(nr_linked, 0, "what is linked is found from the root");
        drop(locked);
        let mut at = tree.next_in_subtree(GroupRef::ROOT, None);
        while let Some(group) = at {
            let locked = Locked::new(marked, self);
            let is_linked = group.is_root() || locked.is_linked(group.index());
            let is_marked = !self.marks(group, in_use).is_empty();
            assert!(is_linked || !is_marked, "{group:?} is marked, so it is found");
            drop(locked);
            at = tree.next_in_subtree(GroupRef::ROOT, Some(group));
            assert!(tree.put(group).is_none(), "its owner has a handle too");
        }
    }
}
