//! The end of a group, in order.
//!
//! 1. Its lists move to the parent, and the parent is marked for each that had objects. A late
//!    adder finds the group gone and adds to the parent's.
//! 2. Its marks are taken and set in the parent; walks do not find it any more.
//! 3. The tree forwards the context.
//! 4. The marks are set in the parent once more: whoever asked the parent between 2 and 3 did
//!    not find the objects there yet, and may have taken the marks away.
//! 5. The group leaves the tree, and its record is released when nobody holds it. The parent stays in the tree
//!    until here; it may be dying, and is next then.
//!
//! Nothing is walked but the lists that the group has: the cost does not depend on objects.
//!
//! Source: `mem_cgroup_css_offline` in `mm/memcontrol.c`.

use memcg_accounting::{Dying, GroupRef};

use crate::Engine;
use crate::host::Report;
use crate::marks::Bits;
use crate::registry::ShrinkerId;
use crate::sync::Ordering;

impl Engine {
    /// Gives a handle back. If it was what kept the group, the group ends: at once, or at the
    /// next safe point where this thread is inside a shrinker.
    pub fn put(&self, group: GroupRef) {
        if let Some(dying) = self.tree.put(group) {
            if self.caller().reclaiming {
                self.defer(dying);
            } else {
                self.offline(dying);
            }
        }
    }

    fn defer(&self, dying: Dying) {
        self.tree.defer(dying);
        self.defer_work();
    }

    /// Something waits for a safe point; the worker's is as good as any.
    pub(crate) fn defer_work(&self) {
        // Release pairs with the Acquire in `run_deferred`.
        self.deferred.store(true, Ordering::Release);
        self.crew.wake();
    }

    /// Keeps a report for a safe point.
    pub(crate) fn report_later(&self, report: Report) {
        self.reports.push(report);
        self.defer_work();
    }

    /// Ends the groups that were put aside. Runs no user code and waits for nothing, so a charge
    /// may do it too: the objects of such a group can't be reclaimed before they are its
    /// parent's.
    pub(crate) fn end_deferred(&self) {
        // Acquire pairs with the Release in `defer_work`.
        if self.deferred.load(Ordering::Acquire) {
            while let Some(dying) = self.tree.take_deferred() {
                self.offline(dying);
            }
        }
    }

    fn offline(&self, dying: Dying) {
        let host = self.host();
        // A fork in the middle would leave the child a group that nobody ends.
        host.take_in_hand();
        self.offline_upwards(dying);
        host.put_down();
    }

    fn offline_upwards(&self, dying: Dying) {
        let mut next = Some(dying);
        while let Some(dying) = next.take() {
            // Who does not find anything marked waits for this to be over (`await_unmarkings`), and
            // hears by `Tree::reclaimed` that there is something to be found.
            self.unmarkings.during(|| {
                next = self.offline_one(dying);
                true
            });
        }
    }

    /// Ends one group; answers the parent, if that is next.
    fn offline_one(&self, dying: Dying) -> Option<Dying> {
        let group = dying.group();
        // The parent is in the tree until its children are not. It may be dying itself.
        let Some(parent) = self.tree.parent_ref(group) else {
            debug_assert!(false, "the root does not end");
            return None;
        };
        self.lists().reparent(group, parent, |cookie, heir| {
            self.mark(heir, ShrinkerId::from_bits(cookie));
        });
        let in_use = self.registry.in_use();
        let marks = self.groups.retire(self.tree, group, parent, in_use, &self.deferred_work);
        self.groups.unlinked(&self.marked, group);
        self.add_sharers((group, parent), marks, false);
        self.add_marks(parent, marks);
        self.retire_stalls(group);
        self.tree.end(&dying);
        // The parent has yet to end, and to hand its marks up, if it goes too.
        self.add_sharers((group, parent), marks, true);
        self.add_marks(parent, marks);
        self.tree.offline(dying)
    }

    /// What a visit noted of a group that ended meanwhile, whose record it holds, is whose the objects are.
    pub(crate) fn hand_up(&self, group: GroupRef) {
        let mut above = core::iter::successors(self.tree.parent_ref(group), |&level| {
            self.tree.parent_ref(level)
        });
        if let Some(heir) = above.find(|&level| self.tree.exists(level)) {
            let in_use = self.registry.in_use();
            let marks = self.groups.retire(self.tree, group, heir, in_use, &self.deferred_work);
            // Who was marked again after the group had handed its marks up is known by the leaf alone.
            let shared = self.add_sharers((group, heir), in_use, true);
            self.add_marks(heir, marks.or(shared));
        }
    }

    fn add_sharers(&self, groups: (GroupRef, GroupRef), marks: Bits, takes: bool) -> Bits {
        let highest_rank = self.registry.highest_rank();
        self.groups.add_sharers(self.tree, groups, marks, highest_rank, takes)
    }

    fn add_marks(&self, group: GroupRef, marks: Bits) {
        self.groups.add_marks(self.tree, group, marks);
        if !marks.is_empty() {
            self.groups.linked(self.tree, &self.marked, group);
        }
    }

    /// Does what waits for a safe point: ends groups, drops what ended shrinkers left, tells
    /// reports; and where no worker can be started, does the work that waits for one. A load
    /// where nothing waits.
    ///
    /// Never inside an allocation or under a lock.
    #[inline]
    pub fn run_deferred(&self) {
        // Relaxed: whoever defers something for this thread is this thread, or wakes the worker.
        let is_idle = !self.deferred.load(Ordering::Relaxed)
            && (self.crew.is_there() || !self.has_work_unposted());
        if !is_idle {
            self.run_deferred_now();
        }
    }

    #[cold]
    fn run_deferred_now(&self) {
        let caller = self.caller();
        if caller.reclaiming {
            return;
        }
        self.clear_deferred();
        // On a thread that panics no user code runs: a panic of its own would end the process.
        if self.has_work_unposted() && !self.summon() && caller.panic.is_none() {
            self.serve_here();
        }
    }

    /// The part of it that needs no shrinker.
    pub(crate) fn clear_deferred(&self) {
        // Acquire pairs with the Release in `defer_work`. Cleared first: what is deferred from
        // here on sets it again.
        if !self.deferred.swap(false, Ordering::Acquire) {
            return;
        }
        while let Some(dying) = self.tree.take_deferred() {
            self.offline(dying);
        }
        self.drop_orphans();
        while let Some(report) = self.reports.pop() {
            self.host().report(report);
        }
    }
}
