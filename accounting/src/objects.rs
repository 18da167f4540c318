//! How many objects of the library's the threads of a group made: what each takes is charged to nobody, so that a group
//! has a bound, as it has for the groups below it.
//!
//! # Invariants
//!
//! - `nr_objects` of an online group is the number of those that count for it or for a group below it, but for walks that
//!   are under way, of which `walks` knows.
//! - It changes as one step at each level, without a lock, by a caller with a handle to the group that the object counts for:
//!   that keeps all levels. When a group ends its objects count for its parent, who counted them before: nothing
//!   moves, and what was counted at the group alone goes with it.

use crate::Tree;
use crate::counter::OverLimit;
use crate::gate::step;
use crate::group::{Group, GroupRef};
use crate::limit::Limit;
#[cfg(all(loom, test))]
use crate::tree::Weakened;

impl Tree {
    /// One object more counts for `group`, to which the caller has a handle, and all above it but the root, if each of
    /// them may have one. `share` is for those of whom [nothing was set](Tree::set_max_objects). `O(depth)`.
    ///
    /// # Errors
    ///
    /// Who has as many as it may. Nothing changed then.
    pub fn join_objects(&self, group: GroupRef, share: Limit) -> Result<(), OverLimit> {
        let Some(_) = self.group(group) else { return Ok(()) };
        let _walk = self.walks.begin();
        for (slot, level) in self.below_root(group.index) {
            let max = level.max_objects().unwrap_or(share).bytes().unwrap_or(u64::MAX);
            // One step: of two that come to the last place one has it.
            let is_checked = !step!(self, OneStep) && u64::from(level.nr_objects()) < max;
            let Err(usage) = level.join_objects(if is_checked { u64::MAX } else { max }) else {
                continue;
            };
            self.leave_up_to(group.index, slot);
            let over = Tree::ref_to(slot, level);
            return Err(OverLimit { group: over, requested: 1, usage, max });
        }
        Ok(())
    }

    /// One object less counts for `group`, to which the caller has a handle, and all above it.
    pub fn leave_objects(&self, group: GroupRef) {
        if self.group(group).is_some() {
            let _walk = self.walks.begin();
            self.leave_up_to(group.index, 0);
        }
    }

    fn leave_up_to(&self, slot: u32, end: u32) {
        let levels = self.below_root(slot).take_while(|(slot, _)| *slot != end);
        levels.for_each(|(_, level)| level.leave_objects());
    }

    fn below_root(&self, slot: u32) -> impl Iterator<Item = (u32, &Group)> {
        self.ancestors(slot).take_while(|(slot, _)| *slot != 0)
    }

    /// Objects that count for `group`; of the root none are counted.
    pub fn nr_objects(&self, group: GroupRef) -> u32 {
        self.group(group).map_or(0, Group::nr_objects)
    }

    /// How many there may be; `None`: nothing was set.
    pub fn max_objects(&self, group: GroupRef) -> Option<Limit> {
        self.group(group).and_then(Group::max_objects)
    }

    /// Bounds how many there may be. Those that there are stay.
    pub fn set_max_objects(&self, group: GroupRef, limit: Limit) {
        if let Some(record) = self.group(group) {
            record.set_max_objects(limit);
        }
    }
}
