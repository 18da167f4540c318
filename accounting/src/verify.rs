//! `check`: the invariants of the tree, tested as they are written down.

use crate::Tree;
use crate::context::{Link, Tag};
use crate::group::{Group, State};
use crate::sync::{Ordering, lock};
use crate::table::{NONE, Record, Table};
use crate::topology::Topology;

impl Tree {
    /// Tests every invariant of the tree under all its locks, for tests and debugging.
    ///
    /// `O(groups × depth + contexts × depth)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold, naming it.
    pub fn check(&self) {
        let topology = lock(&self.topology);
        // The stripes are taken in order, as `lock_all` does, and let go together.
        let mut guards = [const { None }; Tree::nr_stripes() as usize];
        for (stripe, guard) in (0..Tree::nr_stripes()).zip(guards.iter_mut()) {
            *guard = Some(self.lock_stripe(stripe));
        }
        self.check_usage();
        self.check_trees();
        self.check_shape(&topology);
        self.check_kept(&topology);
        self.check_pins();
        self.check_free();
    }

    fn used_groups(&self) -> impl Iterator<Item = (u32, &Group)> {
        (0..self.groups.len())
            .filter_map(|slot| self.groups.get(slot).map(|group| (slot, group)))
            .filter(|(_, group)| group.state() != State::Free)
    }

    /// The groups that are in the tree, and their slots.
    fn live_groups(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.used_groups().filter(|(_, group)| group.is_in_tree())
    }

    /// Usage is the sum of the bytes of the contexts that the subtree pays for, and
    /// `nr_contexts` the number of those that forward.
    fn check_usage(&self) {
        let words = self.groups.len() as usize;
        let sums = Scratch::new(self, words);
        let forwards = Scratch::new(self, words);
        let (of_min, of_low) = (Scratch::new(self, words), Scratch::new(self, words));
        for (_, group) in self.live_groups() {
            group.counter.check();
            let above =
                self.chain(group.parent()).next().map(|(_, above)| core::ptr::from_ref(above));
            assert_eq!(
                group.up().map(core::ptr::from_ref),
                above,
                "a charge goes on to the parent"
            );
            if let Some((parent, _)) = self.chain(group.parent()).next() {
                let usage = group.counter.usage();
                of_min.add(parent, usage.min(group.counter.min()));
                of_low.add(parent, usage.min(group.counter.low()));
            }
        }
        for tag in 1..self.contexts.len() {
            let Some(context) = self.contexts.get(tag).filter(|context| !context.is_idle()) else {
                continue;
            };
            let (last, slot) = match context.link() {
                Link::Group(slot) => (Tag::from_bits(tag), Some(slot)),
                Link::Forward(next) => self.follow(next),
            };
            let Some(slot) = slot else { continue };
            let last = self.context(last).expect("a way ends at a record");
            assert_eq!(context.stripe(), last.stripe(), "context {tag} has its payer's stripe");
            for (level, group) in self.chain(slot) {
                assert_eq!(group.stripe(), last.stripe(), "a tree has one stripe");
                sums.add(level, context.bytes());
            }
            if last.link() != context.link() {
                forwards.add(slot, 1);
            }
        }
        for (slot, group) in self.live_groups() {
            if self.chain(slot).next().is_none() {
                continue;
            }
            let usage = group.counter.usage();
            assert_eq!(
                usage,
                sums.get(slot),
                "usage of {slot} is what its subtree's contexts hold"
            );
            assert!(group.counter.peak() >= usage, "peak of group {slot} is at least its usage");
            let claims = (of_min.get(slot), of_low.get(slot));
            let known = group.children_claims();
            assert_eq!(known, claims, "what the children of group {slot} claim of min and low");
            let known = u64::from(group.inherited_contexts());
            assert_eq!(known, forwards.get(slot), "contexts that group {slot} has inherited");
        }
    }

    /// What is known of the trees of each stripe is what their tops have.
    fn check_trees(&self) {
        let tops = || self.live_groups().filter(|(slot, _)| self.counts(*slot));
        for stripe in 0..Tree::nr_stripes() {
            let usages = tops()
                .filter(|(_, group)| group.up().is_none() && Self::has_lock(group.stripe(), stripe))
                .map(|(_, group)| group.counter.usage());
            assert_eq!(self.usage_of_trees(stripe), usages.sum(), "usage of stripe {stripe}");
        }
    }

    /// Parents, children and names agree, and a group is online while it is kept.
    fn check_shape(&self, topology: &Topology) {
        let moment = self.walks.none_is_under_way();
        let words = self.groups.len() as usize;
        let children = Scratch::new(self, words);
        let online_children = Scratch::new(self, words);
        let descendants = Scratch::new(self, words);
        let objects = Scratch::new(self, words);
        let has_left = |group: &Group| group.state() == State::Held;
        for (slot, group) in self.used_groups().filter(|(slot, g)| *slot != 0 && !has_left(g)) {
            let parent = group.parent();
            let above = self.groups.get(parent).expect("a group has a parent");
            assert!(above.is_in_tree(), "a child keeps the parent of group {slot}");
            children.add(parent, 1);
            for (level, _) in self.ancestors(parent) {
                descendants.add(level, 1);
            }
            let online = group.state() == State::Online;
            online_children.add(parent, u64::from(online));
            objects.add(parent, if online { group.nr_objects().into() } else { 0 });
            let name = crate::topology::bytes_of(group);
            let hash = self.key.hash(parent, name);
            let found = topology.index.find(&self.groups, parent, name, hash);
            assert_eq!(found == Some(slot), online, "group {slot} is found while it is online");
            let context = self.contexts.get(group.context()).expect("a group has a context");
            let leads_here = context.link() == Link::Group(slot);
            assert_eq!(leads_here, group.is_in_tree(), "group {slot} and its context agree");
        }
        for (slot, group) in self.live_groups() {
            let linked = self.linked_children(slot, group);
            let online = online_children.get(slot);
            assert_eq!(linked, online, "the list of the online children of group {slot}");
            let nr = u64::from(group.nr_children());
            assert_eq!(nr, children.get(slot), "children of group {slot}");
            let nr = u64::from(group.nr_descendants());
            let is_right = nr == descendants.get(slot) || !self.walks.none_since(moment);
            assert!(is_right, "group {slot} counts {nr} descendants of {}", descendants.get(slot));
            let nr = u64::from(group.nr_objects());
            let is_online = group.state() == State::Online && slot != 0;
            let is_right = !is_online || nr >= objects.get(slot) || !self.walks.none_since(moment);
            assert!(is_right, "group {slot} counts {nr} objects, below are {}", objects.get(slot));
        }
    }

    /// A group is online exactly while it has handles, its online children's among them; what keeps its
    /// record is counted.
    fn check_kept(&self, topology: &Topology) {
        let words = self.groups.len() as usize;
        let (handles, holds) = (Scratch::new(self, words), Scratch::new(self, words));
        let mut nr_dying = 0;
        for (slot, group) in self.used_groups().filter(|(slot, _)| *slot != 0) {
            let online = group.state() == State::Online;
            handles.add(group.parent(), u64::from(online));
            holds.add(group.parent(), 1);
            // Of its own: in the tree, or by handles that were made of holds.
            holds.add(slot, u64::from(group.state() != State::Held));
            nr_dying += u32::from(!online);
        }
        for (slot, group) in self.used_groups().filter(|(slot, _)| *slot != 0) {
            let online = group.state() == State::Online;
            assert!(!online || group.handles() > 0, "group {slot} is online, so it has a handle");
            let known = handles.get(slot);
            assert!(u64::from(group.handles()) >= known, "online children of {slot} have handles");
            let (held, known) = (u64::from(group.holds()), holds.get(slot));
            assert!(held >= known, "group {slot} has {held} holds, {known} are known");
        }
        assert_eq!(topology.nr_dying, nr_dying, "groups whose record is kept, and no more");
    }

    /// The length of the list of children, each of which leads back to the one before.
    fn linked_children(&self, slot: u32, group: &Group) -> u64 {
        let (mut nr, mut before) = (0, NONE);
        let mut next = group.first_child();
        while let Some(child) = self.groups.get(next) {
            assert_eq!(child.parent(), slot, "child {next} of group {slot} knows its parent");
            let prev = child.links.prev.load(Ordering::Relaxed);
            assert_eq!(prev, before, "child {next} of group {slot} knows the one before");
            before = next;
            next = child.links.next.load(Ordering::Relaxed);
            nr += 1;
        }
        nr
    }

    /// A context is pinned by each one that forwards to it, and by its group's record.
    fn check_pins(&self) {
        let scratch = Scratch::new(self, self.contexts.len() as usize);
        for tag in 1..self.contexts.len() {
            let Some(context) = self.contexts.get(tag) else { continue };
            if context.is_idle() {
                continue;
            }
            match context.link() {
                Link::Group(_) => scratch.add(tag, 1),
                Link::Forward(target) => scratch.add(target.to_bits(), 1),
            }
        }
        for tag in 1..self.contexts.len() {
            let Some(context) = self.contexts.get(tag) else { continue };
            let known = scratch.get(tag);
            let pins = u64::from(context.pins());
            assert!(pins >= known, "context {tag} has {pins} pins, {known} are known");
        }
    }

    /// A record is on its free list, once, exactly while nobody uses it: nothing is released
    /// twice, and nothing is lost.
    fn check_free(&self) {
        let groups = self.times_free(&self.groups);
        for slot in 0..self.groups.len() {
            let Some(group) = self.groups.get(slot) else { continue };
            let is_free = group.state() == State::Free && !group.is_worn_out();
            let expected = u64::from(slot != 0 && is_free);
            assert_eq!(groups.get(slot), expected, "times that group {slot} is on the free list");
        }
        let belows = self.times_free(&self.belows);
        for (slot, group) in self.live_groups() {
            if let Some(below) = group.below() {
                // As if it were free, for it must be one of both.
                belows.add(below.index(), 1);
            } else {
                assert_eq!(group.inherited_contexts(), 0, "group {slot} never had a child");
            }
        }
        for index in 0..self.belows.len() {
            assert_eq!(belows.get(index), 1, "record {index} is one group's, or free");
        }
        let contexts = self.times_free(&self.contexts);
        for tag in 0..self.contexts.len() {
            let Some(context) = self.contexts.get(tag) else { continue };
            let expected = u64::from(tag != 0 && context.is_idle() && !context.is_worn_out());
            assert_eq!(contexts.get(tag), expected, "times that context {tag} is on the free list");
        }
    }

    fn times_free<T: Record>(&self, table: &Table<T>) -> Scratch<'_> {
        let scratch = Scratch::new(self, table.len() as usize);
        table.each_free(|index| scratch.add(index, 1));
        scratch
    }
}

/// One number per record, in memory of the tree's source.
struct Scratch<'a> {
    tree: &'a Tree,
    words: *mut u64,
    len: usize,
}

impl<'a> Scratch<'a> {
    fn new(tree: &'a Tree, len: usize) -> Self {
        let len = len.max(1);
        let words = (tree.source().map)(len * size_of::<u64>()).cast::<u64>();
        assert!(!words.is_null(), "no memory to check with");
        Self { tree, words, len }
    }

    fn at(&self, index: u32) -> *mut u64 {
        assert!((index as usize) < self.len, "record {index} of {}", self.len);
        // SAFETY: `index < len`, the length of the mapping in words.
        unsafe { self.words.add(index as usize) }
    }

    fn add(&self, index: u32, n: u64) {
        let word = self.at(index);
        // SAFETY: the mapping is zeroed, aligned and this value's alone.
        unsafe { *word += n };
    }

    fn get(&self, index: u32) -> u64 {
        // SAFETY: as in `add`.
        unsafe { *self.at(index) }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and used by nobody else.
        unsafe { (self.tree.source().unmap)(self.words.cast(), self.len * size_of::<u64>()) };
    }
}
