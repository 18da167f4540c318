//! A list of the engine's, bound to this process: tags come from the maps, marks go to the
//! engine.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memcg_accounting::GroupRef;
use memcg_shrink::{Added, Isolated, Links, ListLru, LruStatus, ShrinkerId, Wait, Walked};

use crate::maps;
use crate::objects::Counted;
use crate::process::{ENGINE, TREE};

/// Nodes that are taken out under one hold of a lock.
const BATCH: usize = 32;

/// A list that has a part for each group. It is empty when it is dropped.
#[derive(Debug)]
pub(crate) struct GroupList {
    list: ManuallyDrop<ListLru>,
    shrinker: OnceLock<ShrinkerId>,
    _counted: Counted,
}

impl GroupList {
    /// An empty list.
    ///
    /// # Panics
    ///
    /// Panics beyond [`set_max_objects`](crate::set_max_objects).
    pub(crate) fn new() -> Self {
        let counted = Counted::new();
        let Some(list) = ENGINE.lists().create(0) else {
            handle_alloc_error(Layout::new::<ListLru>())
        };
        Self { list: ManuallyDrop::new(list), shrinker: OnceLock::new(), _counted: counted }
    }

    /// Says which shrinker is marked where the list is not empty; the first time counts.
    pub(crate) fn set_shrinker(&self, id: ShrinkerId) {
        if self.shrinker.set(id).is_ok() {
            ENGINE.lists().set_cookie(&self.list, id.to_bits());
        }
    }

    /// Adds a node to the part of the group that pays for the memory at `address`, and marks the
    /// shrinker there if it has to be.
    ///
    /// # Safety
    ///
    /// - The node is valid, and stays valid and where it is until it is removed.
    /// - The memory at `address` stays allocated during the call.
    pub(crate) unsafe fn add(&self, node: NonNull<Links>, address: usize) -> Added {
        let tag = maps::tag_at(address);
        // SAFETY: the node's validity and the tag's are the caller's promise.
        let added = unsafe { ENGINE.lists().add(&TREE, &self.list, node, tag) };
        if let Some(group) = added.newly_nonempty_in()
            && let Some(&shrinker) = self.shrinker.get()
        {
            ENGINE.mark(group, shrinker);
        }
        added
    }

    /// Removes a node; `false`: it is not in this list.
    ///
    /// # Safety
    ///
    /// - The node is valid during the call.
    pub(crate) unsafe fn remove(&self, node: NonNull<Links>) -> bool {
        // SAFETY: by contract.
        unsafe { ENGINE.lists().remove(&self.list, node) }
    }

    /// Makes a node the newest; `false`: it is not in this list.
    ///
    /// # Safety
    ///
    /// - The node is valid during the call.
    pub(crate) unsafe fn touch(&self, node: NonNull<Links>) -> bool {
        // SAFETY: by contract.
        unsafe { ENGINE.lists().touch(&self.list, node) }
    }

    /// Nodes in the part of `group`.
    pub(crate) fn count(&self, group: GroupRef) -> usize {
        ENGINE.lists().count(&self.list, group)
    }

    /// See [`Lists::walk`](memcg_shrink::Lists::walk).
    pub(crate) fn walk(
        &self,
        group: GroupRef,
        nr: usize,
        wait: Wait,
        isolated: &mut Isolated,
        visit: impl FnMut(NonNull<Links>) -> LruStatus,
    ) -> Walked {
        ENGINE.lists().walk(&self.list, group, nr, wait, isolated, visit)
    }

    /// Takes out the newest node of `group`'s part; `false`: there is none.
    pub(crate) fn take_newest(&self, group: GroupRef, isolated: &mut Isolated) -> bool {
        ENGINE.lists().take_newest(&self.list, group, isolated)
    }

    /// A group whose part is not empty.
    pub(crate) fn some_group(&self) -> Option<GroupRef> {
        ENGINE.lists().some_group(&self.list)
    }

    /// Takes some nodes out, of whatever part; `false`: there are none.
    pub(crate) fn take_any(&self, isolated: &mut Isolated) -> bool {
        ENGINE.lists().take_any(&self.list, BATCH, isolated) != 0
    }
}

impl Drop for GroupList {
    fn drop(&mut self) {
        // SAFETY: the list is not used again: this is its drop.
        let list = unsafe { ManuallyDrop::take(&mut self.list) };
        let is_empty = ENGINE.lists().destroy(list);
        debug_assert!(is_empty, "a list that goes is empty");
    }
}
