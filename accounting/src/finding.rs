//! Groups by path, by tag, and in order.
//!
//! What is found may go right after: an answer with a handle keeps its group, one without is
//! for who holds something else that does.
//!
//! The topology lock is held for one step at a time, never for a walk: whoever makes or ends a group
//! needs it.
//!
//! Source: `mem_cgroup_iter` in `mm/memcontrol.c`, whose walks are pre-order too.

use crate::Tree;
use crate::context::Tag;
use crate::gate::step;
use crate::group::{Group, GroupRef, State};
use crate::name::Name;
use crate::sync::lock;
use crate::table::NONE;
use crate::topology::bytes_of;
use crate::tree::Root;
#[cfg(all(loom, test))]
use crate::tree::Weakened;

impl Tree {
    /// The online group at `path`, with a handle: `/` is the root, `/a/b` a grandchild.
    pub fn lookup(&self, path: &str) -> Option<GroupRef> {
        let path = path.strip_prefix('/').filter(|_| self.is_made())?;
        let mut at = GroupRef::ROOT;
        if path.is_empty() {
            return self.try_get(at).then_some(at);
        }
        let mut names = path.split('/').map(str::as_bytes).peekable();
        while let Some(name) = names.next() {
            let hash = self.key.hash(at.index, name);
            let topology = lock(&self.topology);
            // One that has gone since the last step has taken all below it with it.
            self.group(at).filter(|group| group.state() == State::Online)?;
            let slot = topology.index.find(&self.groups, at.index, name, hash)?;
            at = Tree::ref_to(slot, self.groups.get(slot)?);
            if names.peek().is_none() {
                return self.try_get_locked(at);
            }
        }
        None
    }

    /// The parent, with a handle; `None` for the root. Of a group that is gone: the nearest ancestor that is
    /// not, whose its objects are.
    pub fn parent(&self, group: GroupRef) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let parent = self.record(group)?.parent();
        let mut online = self.ancestors(parent).filter(|(_, level)| level.state() == State::Online);
        let (slot, level) = online.next()?;
        self.try_get_locked(Tree::ref_to(slot, level))
    }

    /// The parent without a handle, so it may be gone when the caller looks. `None`: the root, or
    /// the reference is stale.
    pub fn parent_ref(&self, group: GroupRef) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let parent = self.record(group)?.parent();
        self.groups.get(parent).map(|record| Tree::ref_to(parent, record))
    }

    /// Whether the group is in the tree. Without a lock, so it may be gone when the caller looks.
    pub fn exists(&self, group: GroupRef) -> bool {
        self.group(group).is_some()
    }

    /// Whether the reference is not stale: the group is in the tree, or its record is held.
    pub fn is_known(&self, group: GroupRef) -> bool {
        self.record(group).is_some_and(|record| record.state() != State::Free)
    }

    /// How many slots for groups there are, used or not: the root's is 0.
    pub fn nr_slots(&self) -> u32 {
        self.groups.len()
    }

    /// The online group in a slot, without a handle.
    pub fn online_in(&self, slot: u32) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let group = self.groups.get(slot).filter(|group| group.state() == State::Online)?;
        Some(Tree::ref_to(slot, group))
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
                _ if step!(self, AskAgain) => {}
                _ => return None,
            }
        }
    }

    /// The group's name, by value.
    pub fn name(&self, group: GroupRef) -> Name {
        let _topology = lock(&self.topology);
        self.record(group).map_or(Name::EMPTY, |record| Name::copy_of(bytes_of(record)))
    }

    /// The first online child of `group`, or the one after the child `after`, of which the caller has a
    /// handle; with a handle.
    pub fn next_child(&self, group: GroupRef, after: Option<GroupRef>) -> Option<GroupRef> {
        let _topology = lock(&self.topology);
        let slot = match after {
            None => self.group(group)?.first_child(),
            Some(after) => self.group(after)?.next_sibling(),
        };
        self.get_at(slot)
    }

    /// A handle to the group in `slot`, which is in a list of children: so it is online. Called with the
    /// topology locked.
    fn get_at(&self, slot: u32) -> Option<GroupRef> {
        self.try_get_locked(Tree::ref_to(slot, self.groups.get(slot)?))
    }

    /// The group after `after` in the pre-order of the subtree of `top`, with a handle; first
    /// `top` itself. The caller has a handle to `after`.
    pub fn next_in_subtree(&self, top: GroupRef, after: Option<GroupRef>) -> Option<GroupRef> {
        let Some(after) = after else {
            return self.try_get(top).then_some(top);
        };
        if let Some(child) = self.next_child(after, None) {
            return Some(child);
        }
        let mut slot = after.index;
        loop {
            slot = self.last_with_sibling(top.index, slot)?;
            let _topology = lock(&self.topology);
            let next = self.groups.get(slot)?.next_sibling();
            if let Some(found) = self.get_at(next) {
                return Some(found);
            }
            // The sibling went in between, and no other comes: new ones come first.
        }
    }

    /// Of the group in `slot` and its ancestors below `top` the lowest that has a next sibling. Without
    /// the lock, for it is a walk over depth: the caller's handle keeps all levels, and none has another
    /// parent ever.
    fn last_with_sibling(&self, top: u32, mut slot: u32) -> Option<u32> {
        while slot != top {
            let group = self.groups.get(slot)?;
            if group.next_sibling() != NONE {
                return Some(slot);
            }
            slot = group.parent();
        }
        None
    }

    /// Whether `group` is `top` or below it, or was before it ended. `O(depth)`, under the lock of its tree.
    pub fn is_in_subtree(&self, top: GroupRef, group: GroupRef) -> bool {
        let is_below =
            || self.ancestors(group.index).any(|(slot, level)| Tree::ref_to(slot, level) == top);
        // A group that has not ended keeps its ancestors, and it ends under this lock.
        if let Some(_guard) = self.lock_group(group) {
            return is_below();
        }
        // The record of one that has keeps theirs.
        let is_known = self.hold_known(group);
        let is = is_known && is_below();
        if is_known {
            self.let_go(group);
        }
        is
    }
}
