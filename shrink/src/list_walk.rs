//! Going through one group's part of a list, from the hand on.
//!
//! A walk holds one lock, that of the part, and no longer than its caller lets it: what it
//! removes it hands out as [`Isolated`], to be dropped when the lock is gone.
//!
//! Source: `__list_lru_walk_one` in the kernel's `mm/list_lru.c`. As there, a node that is shown
//! is counted before it is shown, so that [`LruStatus::Retry`] can't go on for ever.

use core::ptr::NonNull;

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{Guard, Ordering, lock, yield_now};

use crate::list::{CLAIMED, Isolated, Links, List};
use crate::list_head::{self, Head};
use crate::lists::{ListLru, Lists};

/// What a walk does with the node that it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LruStatus {
    /// It is taken out of the list and handed to the caller.
    Removed,
    /// It becomes the newest: it was used.
    Rotate,
    /// It stays where it is; the walk goes on.
    Skip,
    /// The lock is let go, others run, and the node is shown again if it is still there.
    Retry,
    /// It stays where it is, and the walk ends before it.
    Stop,
}

/// Whether a walk waits for the list's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It does, for the length of a step of another walk.
    Yes,
    /// It does not: for callers inside an allocation.
    No,
}

/// What a walk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Nodes that were shown, each time counted.
    pub shown: usize,
    /// Nodes that were removed.
    pub removed: usize,
    /// Whether the lock was not free (with [`Wait::No`]).
    pub was_busy: bool,
}

impl Lists {
    /// Shows nodes of `group`'s part to `visit`, from the hand on, oldest first, `nr` at most,
    /// each time counted; a node is shown twice only for [`LruStatus::Retry`] or after a whole
    /// round. What is removed is appended to `isolated`.
    ///
    /// `visit` runs under the list's lock: it must not call anything of these lists, allocate,
    /// free, or wait. An unwinding `visit` leaves the list as it was.
    pub fn walk(
        &self,
        list: &ListLru,
        group: GroupRef,
        nr: usize,
        wait: Wait,
        isolated: &mut Isolated,
        mut visit: impl FnMut(NonNull<Links>) -> LruStatus,
    ) -> Walked {
        let mut walked = Walked::default();
        let Some(head) = self.find_head(list, group, wait) else {
            return walked;
        };
        let Some(mut guard) = self.enter(head, list.id, group, wait, &mut walked) else {
            return walked;
        };
        while walked.shown < nr {
            let Some(node) = guard.at_hand() else { break };
            walked.shown += 1;
            match visit(node) {
                LruStatus::Removed => {
                    self.isolate(head, &mut guard, node, isolated);
                    walked.removed += 1;
                }
                LruStatus::Rotate => {
                    // SAFETY: the node is in this list.
                    unsafe { guard.unlink(node) };
                    // SAFETY: it is in no list now, and stays valid: it was in one.
                    unsafe { guard.push(node) };
                }
                LruStatus::Skip => guard.pass(),
                LruStatus::Retry => {
                    drop(guard);
                    yield_now();
                    let Some(again) = self.enter(head, list.id, group, wait, &mut walked) else {
                        return walked;
                    };
                    guard = again;
                }
                LruStatus::Stop => break,
            }
        }
        walked
    }

    /// Takes out the newest node of `group`'s part. `false`: there is none.
    ///
    /// `O(1)`; one short lock, and none where the group has no part.
    pub fn take_newest(&self, list: &ListLru, group: GroupRef, isolated: &mut Isolated) -> bool {
        let Some(head) = self.find_head(list, group, Wait::No) else { return false };
        let mut walked = Walked::default();
        let Some(mut guard) = self.enter(head, list.id, group, Wait::Yes, &mut walked) else {
            return false;
        };
        let Some(node) = guard.newest() else { return false };
        self.isolate(head, &mut guard, node, isolated);
        true
    }

    fn find_head(&self, list: &ListLru, group: GroupRef, wait: Wait) -> Option<&Head> {
        if group.is_root() {
            return self.heads.get(list.root);
        }
        let found = self.index.find(&self.heads, list.id, group);
        let found = found.or_else(|| match wait {
            Wait::No => None,
            Wait::Yes => {
                let _shape = lock(&self.shape);
                self.index.find_locked(&self.heads, list.id, group)
            }
        });
        found.map(|(_, head)| head)
    }

    /// Locks `head` if it is still `group`'s.
    fn enter<'a>(
        &'a self,
        head: &'a Head,
        id: u32,
        group: GroupRef,
        wait: Wait,
        walked: &mut Walked,
    ) -> Option<Guard<'a, List>> {
        let guard = match wait {
            Wait::Yes => head.lock(),
            Wait::No => {
                let guard = head.try_lock();
                walked.was_busy |= guard.is_none();
                guard?
            }
        };
        head.is(id, group).then_some(guard)
    }

    /// Moves a node from a locked list to the caller's own chain.
    fn isolate(&self, head: &Head, list: &mut List, node: NonNull<Links>, isolated: &mut Isolated) {
        // SAFETY: nodes of a list are valid.
        let links = unsafe { node.as_ref() };
        let home = links.home();
        // SAFETY: the node is in this list, whose lock the caller holds.
        unsafe { list.unlink(node) };
        head.publish_len(list);
        links.settle(CLAIMED);
        // SAFETY: the node is in no list, is claimed, and stays valid until it is taken, as its
        // adder promised.
        unsafe { isolated.push(node) };
        list_head::drop_mark(&self.heads, home);
    }

    /// A group whose part of `list` is not empty: the root if there is a choice. `O(groups)`.
    pub fn some_group(&self, list: &ListLru) -> Option<GroupRef> {
        let _shape = lock(&self.shape);
        let first = self.lrus.get(list.id)?.first.load(Ordering::Relaxed);
        let mut at = list.root;
        while let Some(head) = self.heads.get(at) {
            if head.len() != 0 {
                return Some(head.group());
            }
            at = if at == list.root { first } else { head.chains.next.load(Ordering::Relaxed) };
        }
        None
    }

    /// Takes up to `nr` nodes out of `list`, of whatever group. None: the list is empty.
    pub fn take_any(&self, list: &ListLru, nr: usize, isolated: &mut Isolated) -> usize {
        let _shape = lock(&self.shape);
        let Some(lru) = self.lrus.get(list.id) else {
            return 0;
        };
        let (mut taken, mut at) = (0, list.root);
        while let Some(head) = self.heads.get(at) {
            let mut guard = head.lock();
            while taken < nr
                && let Some(node) = guard.at_hand()
            {
                self.isolate(head, &mut guard, node, isolated);
                taken += 1;
            }
            at = if at == list.root {
                lru.first.load(Ordering::Relaxed)
            } else {
                head.chains.next.load(Ordering::Relaxed)
            };
        }
        taken
    }
}
