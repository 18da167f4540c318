//! What becomes of a group's parts when the group goes, and the invariants of the whole.
//!
//! ```text
//!   before                 the parent has no part      the parent has one
//!   child  ─► head ─► ○○   parent ─► head ─► ○○        parent ─► head ─► ○○○○○
//!   parent ─► head ─► ○○○                              (child's) ─forward─┘
//! ```
//!
//! Source: `memcg_reparent_list_lru` in the kernel's `mm/list_lru.c`. There the parent's part is
//! made ahead with the child's; here the child's becomes the parent's, so that nothing needs
//! memory when a group goes.

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{Ordering, lock};

use crate::list_head::{self, Head};
use crate::lists::{Lists, Shape, Step};

impl Lists {
    /// Moves all parts of `group` to `parent`: the first step of an offline. From then on
    /// nothing is added to a part of `group`. `moved` is called for each list of which nodes
    /// moved, with its cookie and the group that has them now; it runs under a lock, and marks
    /// the list's shrinker there.
    ///
    /// `O(lists with a part of the group)`; nodes are not touched. Allocates nothing.
    pub fn reparent(
        &self,
        group: GroupRef,
        parent: GroupRef,
        mut moved: impl FnMut(u64, GroupRef),
    ) {
        let mut shape = lock(&self.shape);
        let Some(slot) = self.slot(group.index()) else {
            // INVARIANT: the slot has no record, so the group has no head; it must get none.
            shape.closed = true;
            return;
        };
        if self.takes(Step::Gone) {
            // Relaxed: read under the lock that is held.
            slot.gone.store(group.generation().wrapping_add(1), Ordering::Relaxed);
        }
        let mut at = slot.first.load(Ordering::Relaxed);
        while let Some(head) = self.heads.get(at) {
            let next = head.chains.group.load(Ordering::Relaxed);
            if head.group() == group {
                self.withdraw(at, head);
                self.move_up(&mut shape, at, head, parent, &mut moved);
            }
            at = next;
        }
    }

    /// Gives a head, which nobody finds any more, to `parent`: as its own where it has none,
    /// else its nodes.
    fn move_up(
        &self,
        shape: &mut Shape,
        index: u32,
        head: &Head,
        parent: GroupRef,
        moved: &mut impl FnMut(u64, GroupRef),
    ) {
        let Some(lru) = self.lrus.get(head.owner()) else {
            return;
        };
        let root = lru.root.load(Ordering::Relaxed);
        let existing = if parent.is_root() {
            None
        } else {
            self.index.find_locked(&self.heads, head.owner(), parent)
        };
        let mut guard = head.lock();
        let nr = guard.len();
        let heir = match (existing, self.slot(parent.index())) {
            (None, Some(slot)) if !parent.is_root() => {
                head.set_group(parent);
                self.introduce(index, head, slot);
                parent
            }
            (existing, _) => {
                let Some((target, above)) =
                    existing.or_else(|| self.heads.get(root).map(|head| (root, head)))
                else {
                    return;
                };
                let mut into = above.lock();
                let forwards = self.takes(Step::Forward);
                list_head::merge(
                    &self.heads,
                    (index, head, &mut guard),
                    (target, above, &mut into),
                    forwards,
                );
                shape.nr_heads -= 1;
                above.group()
            }
        };
        drop(guard);
        if nr != 0 && self.takes(Step::ReportMoved) {
            moved(lru.cookie.load(Ordering::Relaxed), heir);
        }
    }

    /// Tests every invariant of `list` and its heads under all locks. `O(nodes)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold, naming it.
    pub fn check(&self) {
        let shape = lock(&self.shape);
        let mut nr_heads = 0;
        for index in 0..self.heads.len() {
            let Some(head) = self.heads.get(index) else {
                continue;
            };
            let guard = head.lock();
            guard.check();
            assert_eq!(guard.len(), head.len(), "the published length is the list's");
            assert!(head.is_live() || guard.is_empty(), "nodes are under live heads");
            if head.is_live() && !head.group().is_root() {
                nr_heads += 1;
                let found = self.index.find_locked(&self.heads, head.owner(), head.group());
                assert_eq!(found.map(|(index, _)| index), Some(index), "the index finds a head");
                let slot = self.slots.get(head.group().index()).expect("a head's slot is recorded");
                assert!(!slot.is_gone(head.group().generation()), "groups that went have no head");
            }
        }
        assert_eq!(nr_heads, shape.nr_heads, "live heads are counted");
        let nr_kept = self.heads.nr_kept() + self.lrus.nr_kept();
        assert_eq!(nr_kept, 0, "what is given back is empty");
    }

    /// Heads that are not free: live ones, roots' included, and those that forward. For tests
    /// that nothing is left behind.
    pub fn nr_records(&self) -> usize {
        let _shape = lock(&self.shape);
        let heads = (0..self.heads.len()).filter_map(|index| self.heads.get(index));
        heads.filter(|head| !head.is_free()).count()
    }

    // ---- fork ---------------------------------------------------------------------------

    /// Takes every lock of the lists, in lock order: for `fork`, with
    /// [`unlock_all`](Lists::unlock_all) in parent and child.
    #[cfg(not(loom))]
    pub fn lock_all(&self) {
        core::mem::forget(lock(&self.shape));
        // Only `reparent` holds two heads, and it holds `Shape` first.
        for head in (0..self.heads.len()).filter_map(|index| self.heads.get(index)) {
            core::mem::forget(head.lock());
        }
    }

    /// Ends what [`lock_all`](Lists::lock_all) began.
    ///
    /// # Safety
    ///
    /// The caller, or the thread that it is the copy of, called `lock_all`.
    #[cfg(not(loom))]
    pub unsafe fn unlock_all(&self) {
        for head in (0..self.heads.len()).filter_map(|index| self.heads.get(index)) {
            // SAFETY: by contract the lock is held and its guard was forgotten; heads are made
            // under `Shape` only, so these are the ones that were locked.
            unsafe { head.force_unlock() };
        }
        // SAFETY: as above.
        unsafe { self.shape.force_unlock() };
    }
}
