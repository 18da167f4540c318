//! What is read and set of a group: usage, peaks, limits, events, large objects, payers.

use crate::Tree;
use crate::context::{Context, Payer, Tag};
use crate::counter::OverLimit;
use crate::event::Events;
use crate::group::{Group, GroupRef, OnLimit, State};
use crate::limit::Limit;
use crate::name::Name;
use crate::sync::lock;
use crate::table::NONE;
use crate::tree::Root;

/// Children that a walk looks at before it lets others have the topology lock.
const STEP: usize = 256;
/// Attempts at a walk over children, where some end in the middle of it.
const WALKS: usize = 4;

/// A child, as it was.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Its name.
    pub name: Name,
    /// Its usage.
    pub usage: u64,
}

impl Tree {
    /// Who pays in `group`: what its threads have current. The caller has a handle to it.
    pub fn payer(&self, group: GroupRef) -> Payer {
        if !self.counts(group.index) {
            return Payer::NOBODY;
        }
        let Some(record) = self.record(group) else { return Payer::NOBODY };
        let tag = Tag::from_bits(record.context());
        let generation = self.context(tag).map_or(0, Context::generation);
        Payer { tag, generation }
    }

    /// Who pays at the root.
    #[inline]
    pub fn root_payer(&self) -> Payer {
        match self.root_kind() {
            Root::Untracked => Payer::NOBODY,
            Root::Accounted => self.payer(GroupRef::ROOT),
        }
    }

    /// Bytes charged to `group` and below, as limits see them: one load. The untracked root
    /// has no counter; it answers the sum of what trees have charged, by a load for each lock.
    pub fn usage(&self, group: GroupRef) -> u64 {
        if group.is_root() && self.root_kind() == Root::Untracked {
            let usages = (0..Tree::nr_stripes()).map(|stripe| self.usage_of_trees(stripe));
            return usages.fold(0, u64::wrapping_add);
        }
        self.group(group).map_or(0, |record| record.counter.usage())
    }

    /// The highest usage that there was.
    pub fn peak(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.counter.peak())
    }

    /// Bytes of the subtree that were given back on behalf of [requests](crate::Request), or
    /// became a parent's when their group ended, since the group was made. Wraps. What changes it
    /// may have let something fit, or let something be found.
    pub fn reclaimed(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.reclaimed())
    }

    /// Whether `group` is online: neither gone nor dying. May lag.
    pub fn is_online(&self, group: GroupRef) -> bool {
        self.group(group).is_some_and(|record| record.state() == State::Online)
    }

    /// The `N` largest children of `group`, largest first, each with its usage: names by value,
    /// for the groups may be gone when they are told of.
    ///
    /// `O(children)`, some at a time under the topology lock. Where children end just as the walk
    /// comes to them, time after time, it answers what it found until then.
    pub fn largest_children<const N: usize>(&self, group: GroupRef) -> [Option<Child>; N] {
        let mut largest = [const { None::<(GroupRef, u64)> }; N];
        for _ in 0..WALKS {
            largest = [const { None }; N];
            if self.find_largest(group, &mut largest) {
                break;
            }
        }
        largest.map(|found| {
            let (child, usage) = found?;
            let name = self.name(child);
            (!name.as_str().is_empty()).then_some(Child { name, usage })
        })
    }

    /// `false`: the child where the walk was to go on ended.
    fn find_largest(&self, group: GroupRef, largest: &mut [Option<(GroupRef, u64)>]) -> bool {
        let mut at = None;
        loop {
            let _topology = lock(&self.topology);
            let mut slot = match at {
                None => self.group(group).map_or(NONE, Group::first_child),
                Some(next) if self.is_online(next) => next.index,
                Some(_) => return false,
            };
            for _ in 0..STEP {
                let Some(child) = self.groups.get(slot) else { return true };
                let mut next = Some((Tree::ref_to(slot, child), child.counter.usage()));
                for place in &mut *largest {
                    if place.is_none_or(|(_, usage)| next.is_some_and(|(_, new)| new > usage)) {
                        core::mem::swap(place, &mut next);
                    }
                }
                slot = child.next_sibling();
            }
            let Some(next) = self.groups.get(slot) else { return true };
            at = Some(Tree::ref_to(slot, next));
        }
    }

    /// The hard limit.
    pub fn max(&self, group: GroupRef) -> Limit {
        self.group(group).map_or(Limit::Max, |record| record.counter.max())
    }

    /// Sets the hard limit at once, also below usage; answers the usage at that moment.
    pub fn set_max(&self, group: GroupRef, limit: Limit) -> u64 {
        let Some((_guard, record)) = self.lock_group(group) else { return 0 };
        record.counter.set_max(limit);
        record.counter.usage()
    }

    /// Has charges [tell](crate::Charged::near_max) when usage of `group` comes within `margin`
    /// bytes of its `max`, until `max` is set anew; 0: not any more.
    pub fn set_margin(&self, group: GroupRef, margin: u64) {
        if let Some((_guard, record)) = self.lock_group(group) {
            record.counter.set_margin(margin);
        }
    }

    /// Where background reclaim begins.
    pub fn high(&self, group: GroupRef) -> Limit {
        self.group(group).map_or(Limit::Max, |record| record.counter.high())
    }

    /// Sets `high`; answers the usage at that moment.
    pub fn set_high(&self, group: GroupRef, limit: Limit) -> u64 {
        let Some((_guard, record)) = self.lock_group(group) else { return 0 };
        record.counter.set_high(limit);
        record.counter.usage()
    }

    /// The policy at the limit.
    pub fn on_limit(&self, group: GroupRef) -> OnLimit {
        self.group(group).map_or(OnLimit::Fail, Group::on_limit)
    }

    /// Sets the policy at the limit.
    pub fn set_on_limit(&self, group: GroupRef, policy: OnLimit) {
        if let Some((_guard, record)) = self.lock_group(group) {
            record.set_on_limit(policy);
        }
    }

    /// The policy of whoever pays for `payer` now.
    pub fn policy_of(&self, payer: Payer) -> OnLimit {
        let Some((_guard, context)) = self.lock_payer(payer) else { return OnLimit::Fail };
        self.resolve(context)
            .and_then(|slot| self.groups.get(slot))
            .map_or(OnLimit::Fail, Group::on_limit)
    }

    /// The first level from `group` up that is over its `max`, as an [`OverLimit`] of 0 bytes.
    pub fn over_max(&self, group: GroupRef) -> Option<OverLimit> {
        let (_guard, _) = self.lock_group(group)?;
        let (slot, level) = self.first_over_max(group.index)?;
        Some(OverLimit {
            group: Self::ref_to(slot, level),
            requested: 0,
            usage: level.counter.usage(),
            max: level.counter.max().bytes().unwrap_or(u64::MAX),
        })
    }

    pub(crate) fn first_over_max(&self, slot: u32) -> Option<(u32, &Group)> {
        self.chain(slot).find(|(_, group)| group.counter.is_over_max())
    }

    /// Counts of the group and everything below it since it was made.
    pub fn events(&self, group: GroupRef) -> Events {
        self.group(group).map_or_else(Events::default, |record| record.events.read())
    }

    /// Counts of the group alone. One short lock: nothing happens below it meanwhile.
    pub fn events_local(&self, group: GroupRef) -> Events {
        self.lock_group(group)
            .map_or_else(Events::default, |(_guard, record)| record.local_events())
    }

    /// Contexts of gone groups that `group` pays for.
    pub fn nr_contexts(&self, group: GroupRef) -> u32 {
        self.group(group).map_or(0, Group::inherited_contexts)
    }

    /// Counts `bytes`, charged already, as those of a large object.
    pub fn add_large(&self, tag: Tag, bytes: u64) {
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        if let Some(slot) = self.resolve(context) {
            self.change_large(slot, |large| large + bytes);
        }
    }

    /// Counts `bytes`, not yet uncharged, as no large object's any more.
    pub fn sub_large(&self, tag: Tag, bytes: u64) {
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        if let Some(slot) = self.resolve(context) {
            self.change_large(slot, |large| large.saturating_sub(bytes));
        }
    }

    /// Bytes of large objects charged to `group` and below.
    pub fn large_bytes(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.counter.large())
    }

    /// The highest usage since [`reset_local_peak`](Tree::reset_local_peak).
    pub fn local_peak(&self, group: GroupRef) -> u64 {
        self.group(group).map_or(0, |record| record.counter.local_peak())
    }

    /// Begins the local peak anew; answers what it was, and the usage that it begins at.
    pub fn reset_local_peak(&self, group: GroupRef) -> (u64, u64) {
        let Some((_guard, record)) = self.lock_group(group) else { return (0, 0) };
        let old = record.counter.local_peak();
        record.counter.reset_local_peak();
        (old, record.counter.local_peak())
    }

    /// Bytes that are charged through `tag`.
    pub fn context_bytes(&self, tag: Tag) -> u64 {
        self.lock_tag(tag).map_or(0, |(_guard, context)| context.bytes())
    }

    /// Who pays for what carries `tag`, which the caller keeps from being reused.
    pub fn payer_of(&self, tag: Tag) -> Payer {
        let generation = self.context(tag).map_or(0, Context::generation);
        Payer { tag, generation }
    }
}
