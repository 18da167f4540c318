//! The head of one group's list in one `ListLru`, and where it leads when the group is gone.
//!
//! ```text
//!   node.home ─► head ──(live)──► the list that the node is in
//!                  └──(its group went)──► the parent's head ─► …
//! ```
//!
//! When a group goes, its nodes join the parent's list in one step, and nothing is written to
//! them: their `home` still names the old head, which now forwards. A head's record is free when
//! no node's `home` and no other head leads to it.
//!
//! # Invariants
//!
//! - `marks` of a head = nodes whose `home` it is + heads that forward to it.
//! - A forward, and the `marks` of all heads that lead to a live head, change under the lock of
//!   that live head. So which head a home leads to is certain once that head's lock is held.
//! - A live head's `list` and `group` say what it is the list of, and change under its lock.

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicU32, AtomicU64, AtomicUsize, Guard, Lock, Ordering, lock};
use memcg_accounting::table::{NONE, Record, Table};

use crate::list::List;

/// `forward` of a live head.
const LIVE: u32 = NONE;
/// `forward` of a record that is no head.
const FREE: u32 = NONE - 1;

/// A head's record: type-stable, alone on its pair of cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Head {
    list: Lock<List>,
    /// The list's length, for readers without the lock.
    len: AtomicUsize,
    /// Live, free, or the head that this one's nodes went to.
    forward: AtomicU32,
    /// As wide as `len`: there may be as many nodes.
    marks: AtomicUsize,
    owner: AtomicU32,
    group: AtomicU64,
    pub(crate) chains: Chains,
    next_free: AtomicU32,
}

/// The chains that a live head is in; all under the lock of `Shape`, but that the index's is
/// walked without it.
#[derive(Debug)]
pub(crate) struct Chains {
    /// The next head in the same bucket of the index.
    pub(crate) bucket: AtomicU32,
    /// The next head of the same group.
    pub(crate) group: AtomicU32,
    /// The heads before and after of the same `ListLru`.
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
}

impl Record for Head {
    fn new() -> Self {
        let none = || AtomicU32::new(NONE);
        Self {
            list: Lock::new(List::new()),
            len: AtomicUsize::new(0),
            forward: AtomicU32::new(FREE),
            marks: AtomicUsize::new(0),
            owner: none(),
            group: AtomicU64::new(0),
            chains: Chains { bucket: none(), group: none(), next: none(), prev: none() },
            next_free: none(),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        !self.is_live() && self.len() == 0 && self.marks() == 0
    }
}

impl Head {
    /// Makes a taken record the head of `group` in the list `owner`.
    pub(crate) fn bring_up(&self, owner: u32, group: GroupRef) {
        // Somebody who followed a stale home may hold the lock for a moment.
        let _list = lock(&self.list);
        self.owner.store(owner, Ordering::Relaxed);
        self.group.store(group.to_bits(), Ordering::Relaxed);
        self.marks.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `forward`: who finds it live sees whose it is.
        self.forward.store(LIVE, Ordering::Release);
    }

    /// Makes an empty head that nothing leads to a free record. Called with its lock held.
    fn retire(&self) {
        debug_assert_eq!(self.marks(), 0, "nothing leads to a head that is freed");
        self.forward.store(FREE, Ordering::Release);
    }

    /// The `ListLru` that it is a part of; certain under its lock.
    pub(crate) fn owner(&self) -> u32 {
        self.owner.load(Ordering::Relaxed)
    }

    /// The group whose list it is; certain under its lock.
    pub(crate) fn group(&self) -> GroupRef {
        GroupRef::from_bits(self.group.load(Ordering::Relaxed))
    }

    /// Makes it another group's, with all nodes. Called with its lock held.
    pub(crate) fn set_group(&self, group: GroupRef) {
        self.group.store(group.to_bits(), Ordering::Relaxed);
    }

    /// Whether it is the live head of `group` in `owner`; certain under its lock.
    pub(crate) fn is(&self, owner: u32, group: GroupRef) -> bool {
        self.forward() == LIVE && self.owner() == owner && self.group() == group
    }

    /// The nodes in the list. May change right after. Relaxed: a number orders nothing.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn lock(&self) -> Guard<'_, List> {
        lock(&self.list)
    }

    pub(crate) fn try_lock(&self) -> Option<Guard<'_, List>> {
        memcg_accounting::sync::try_lock(&self.list)
    }

    /// # Safety
    ///
    /// The lock is held and its guard was forgotten.
    #[cfg(not(loom))]
    pub(crate) unsafe fn force_unlock(&self) {
        // SAFETY: by contract.
        unsafe { self.list.force_unlock() };
    }

    /// Publishes the length. Called with the lock held.
    pub(crate) fn publish_len(&self, list: &List) {
        self.len.store(list.len(), Ordering::Relaxed);
    }

    fn forward(&self) -> u32 {
        self.forward.load(Ordering::Acquire)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.forward() == LIVE
    }

    pub(crate) fn is_free(&self) -> bool {
        self.forward() == FREE
    }

    pub(crate) fn marks(&self) -> usize {
        // Relaxed here and below: the lock of the live head orders it.
        self.marks.load(Ordering::Relaxed)
    }

    /// One thing more leads here. Called with the lock of the live head held.
    pub(crate) fn add_mark(&self) {
        self.marks.store(self.marks() + 1, Ordering::Relaxed);
    }

    fn sub_mark(&self) -> usize {
        debug_assert!(self.marks() > 0, "a mark is taken away once");
        let left = self.marks() - 1;
        self.marks.store(left, Ordering::Relaxed);
        left
    }
}

/// The head that `home` leads to, live when looked at; `None`: the home was stale.
///
/// The way is as long as groups above each other have gone: at most the depth of the tree.
pub(crate) fn follow(heads: &Table<Head>, home: u32) -> Option<(u32, &Head)> {
    let mut at = home;
    loop {
        let head = heads.get(at)?;
        match head.forward() {
            LIVE => return Some((at, head)),
            FREE => return None,
            next => at = next,
        }
    }
}

/// Takes the mark of an unlinked node off its home, and frees the heads of gone groups that
/// nothing leads to any more. Called with the lock of the live head held.
pub(crate) fn drop_mark(heads: &Table<Head>, home: u32) {
    let mut at = home;
    while let Some(head) = heads.get(at) {
        let forward = head.forward();
        if head.sub_mark() != 0 || forward == LIVE {
            return;
        }
        head.retire();
        heads.put(at);
        at = forward;
    }
}

/// Ends a head whose group goes: its nodes become `target`'s. Both locks are held, the list
/// `from` is `head`'s and `into` is `target`'s. Nobody finds `head` in the index. (`forwards` is true but in a model.)
pub(crate) fn merge(
    heads: &Table<Head>,
    (index, head, from): (u32, &Head, &mut List),
    (target, above, into): (u32, &Head, &mut List),
    forwards: bool,
) {
    into.absorb(from);
    above.publish_len(into);
    head.publish_len(from);
    if head.marks() == 0 {
        head.retire();
        heads.put(index);
        return;
    }
    // INVARIANT: the target is marked before anything leads to it.
    above.add_mark();
    if forwards {
        // Release pairs with the Acquire in `forward`.
        head.forward.store(target, Ordering::Release);
    }
}

/// Frees the empty head of a list that is destroyed. Called with its lock held, after nobody
/// finds it.
pub(crate) fn free(heads: &Table<Head>, index: u32, head: &Head) {
    head.retire();
    heads.put(index);
}
