//! Groups by path, by tag, and in order.
//!
//! What is found may go right after: an answer with a handle keeps its group, one without is
//! for who holds something else that does.
//!
//! Source: `mem_cgroup_iter` in `mm/memcontrol.c`, whose walks are pre-order too.

use crate::Tree;
use crate::context::Tag;
use crate::gate::step;
use crate::group::{Group, GroupRef, State};
use crate::name::Name;
use crate::sync::{Ordering, lock};
use crate::table::NONE;
use crate::topology::bytes_of;
use crate::tree::Root;
#[cfg(all(loom, test))]
use crate::tree::Weakened;

impl Tree {
    /// The online group at `path`, with a handle: `/` is the root, `/a/b` a grandchild.
    pub fn lookup(&self, path: &str) -> Option<GroupRef> {
        let path = path.strip_prefix('/')?;
        let topology = lock(&self.topology);
        let mut slot = 0;
        for name in path.split('/').filter(|_| !path.is_empty()) {
            slot = topology.find(self, slot, name.as_bytes())?;
        }
        let group = self.groups.get(slot)?;
        self.try_get_locked(Tree::ref_to(slot, group))
    }

    /// The parent, with a handle; `None` for the root.
    pub fn parent(&self, group: GroupRef) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let parent = self.group(group)?.parent();
        self.try_get_locked(Tree::ref_to(parent, self.groups.get(parent)?))
    }

    /// The parent without a handle, so it may be gone when the caller looks. `None`: the root, or
    /// `group` is gone.
    pub fn parent_ref(&self, group: GroupRef) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let parent = self.group(group)?.parent();
        self.groups.get(parent).map(|record| Tree::ref_to(parent, record))
    }

    /// Whether the reference is not stale. Without a lock, so it may be when the caller looks.
    pub fn exists(&self, group: GroupRef) -> bool {
        self.group(group).is_some_and(|record| record.state() != State::Free)
    }

    /// The parent of an online group, without handle or lock. `None`: the root, or `group` is not
    /// online. A group's parent never changes, and is there for as long as the group.
    pub fn online_parent(&self, group: GroupRef) -> Option<GroupRef> {
        let record = self.group(group).filter(|record| record.state() == State::Online)?;
        let parent = record.parent();
        self.groups.get(parent).map(|above| Tree::ref_to(parent, above))
    }

    /// The group that pays for `tag` now, with a handle; `None`: nobody.
    pub fn owner_handle(&self, tag: Tag) -> Option<GroupRef> {
        loop {
            let owner = self.owner(tag)?;
            let _topology = lock(&self.topology);
            match self.group(owner).map(Group::state) {
                Some(State::Online) => return self.try_get_locked(owner),
                // Its objects are about to be the parent's.
                Some(State::Dying) => {
                    let mut slot = owner.index;
                    while let Some(group) = self.groups.get(slot) {
                        if group.state() == State::Online {
                            let untracked = slot == 0 && self.root_kind() == Root::Untracked;
                            return if untracked {
                                None
                            } else {
                                self.try_get_locked(Tree::ref_to(slot, group))
                            };
                        }
                        slot = group.parent();
                    }
                    return None;
                }
                // It went in between: ask again.
                Some(State::Free) | None if step!(self, AskAgain) => {}
                Some(State::Free) | None => return None,
            }
        }
    }

    /// The group's name, by value.
    pub fn name(&self, group: GroupRef) -> Name {
        let _topology = lock(&self.topology);
        self.group(group).map_or(Name::EMPTY, |record| Name::copy_of(bytes_of(record)))
    }

    /// The first online child of `group`, or the one after the child `after`; with a handle.
    pub fn next_child(&self, group: GroupRef, after: Option<GroupRef>) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let mut slot = match after {
            None => self.group(group)?.first_child(),
            Some(after) => self.group(after)?.next_sibling(),
        };
        while let Some(child) = self.groups.get(slot) {
            if let Some(found) = self.try_get_locked(Tree::ref_to(slot, child)) {
                return Some(found);
            }
            slot = child.links.next.load(Ordering::Relaxed);
        }
        None
    }

    /// The group after `after` in the pre-order of the subtree of `top`, with a handle; first
    /// `top` itself. The caller has a handle to `after`.
    pub fn next_in_subtree(&self, top: GroupRef, after: Option<GroupRef>) -> Option<GroupRef> {
        self.next_in_subtree_where(top, after, |_| true)
    }

    /// The same, passing over groups that `wanted` does not want. `wanted` runs under the
    /// topology lock: it only looks.
    pub fn next_in_subtree_where(
        &self,
        top: GroupRef,
        after: Option<GroupRef>,
        wanted: impl Fn(GroupRef) -> bool,
    ) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let mut slot = match after {
            None => {
                self.group(top)?;
                top.index
            }
            Some(after) => {
                self.group(after)?;
                self.step(top.index, after.index)?
            }
        };
        loop {
            let group = Tree::ref_to(slot, self.groups.get(slot)?);
            if wanted(group)
                && let Some(found) = self.try_get_locked(group)
            {
                return Some(found);
            }
            slot = self.step(top.index, slot)?;
        }
    }

    /// The slot after `slot` in pre-order below `top`.
    fn step(&self, top: u32, mut slot: u32) -> Option<u32> {
        let child = self.groups.get(slot)?.first_child();
        if child != NONE {
            return Some(child);
        }
        while slot != top {
            let group = self.groups.get(slot)?;
            let next = group.links.next.load(Ordering::Relaxed);
            if next != NONE {
                return Some(next);
            }
            slot = group.parent();
        }
        None
    }

    /// Whether `group` is `top` or below it.
    pub fn is_in_subtree(&self, top: GroupRef, group: GroupRef) -> bool {
        let _topology = lock(&self.topology);
        self.group(group).is_some()
            && self.ancestors(group.index).any(|(slot, level)| Tree::ref_to(slot, level) == top)
    }

    pub(crate) fn usage_of_children(&self) -> u64 {
        let _topology = lock(&self.topology);
        let first = self.groups.get(0).map(Group::first_child);
        let children =
            core::iter::successors(first.and_then(|slot| self.groups.get(slot)), |child| {
                self.groups.get(child.links.next.load(Ordering::Relaxed))
            });
        children.map(|child| child.counter.usage()).sum()
    }
}
