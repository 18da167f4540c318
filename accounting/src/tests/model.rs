//! The tree against a small naive model: objects, each with who paid, and sums over all of them.

use proptest::collection::vec;
use proptest::prelude::*;
use std::format;
use std::vec;
use std::vec::Vec;

use super::support::{live_contexts, offline, tree};
use crate::tree::EXACT_BELOW;
use crate::{GroupRef, Limit, OverLimit, Payer, Root, Settings, Tag, Tree, Want};

/// One step. Numbers that choose something are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Op {
    Create { parent: usize, max: Option<u64> },
    Charge { of: usize, need: u64, ahead: u64, over: u64 },
    Force { of: usize, bytes: u64 },
    Uncharge { object: usize, part: u64 },
    UnchargeAll { every: usize },
    Pin { of: usize },
    Unpin { pin: usize },
    Put { group: usize },
    Get { group: usize },
    Offline { dying: usize },
    SetMax { group: usize, max: Option<u64> },
    Owner { of: usize },
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, 0..200_u64, 0..200_000_u64]
}

fn ops() -> impl Strategy<Value = Op> {
    let any = || any::<usize>();
    let limit = || proptest::option::of(bytes());
    prop_oneof![
        4 => (any(), limit()).prop_map(|(parent, max)| Op::Create { parent, max }),
        6 => (any(), bytes(), bytes(), 0..2_u64)
            .prop_map(|(of, need, ahead, over)| Op::Charge { of, need, ahead, over: over * 50 }),
        1 => (any(), bytes()).prop_map(|(of, bytes)| Op::Force { of, bytes }),
        3 => (any(), bytes()).prop_map(|(object, part)| Op::Uncharge { object, part }),
        1 => (1..5_usize).prop_map(|every| Op::UnchargeAll { every }),
        1 => any().prop_map(|of| Op::Pin { of }),
        1 => any().prop_map(|pin| Op::Unpin { pin }),
        4 => any().prop_map(|group| Op::Put { group }),
        1 => any().prop_map(|group| Op::Get { group }),
        3 => any().prop_map(|dying| Op::Offline { dying }),
        2 => (any(), limit()).prop_map(|(group, max)| Op::SetMax { group, max }),
        2 => any().prop_map(|of| Op::Owner { of }),
    ]
}

#[derive(Debug)]
struct ModelGroup {
    group: GroupRef,
    payer: Payer,
    parent: Option<usize>,
    handles: u32,
    offline: bool,
    max: u64,
    peak: u64,
    forced: u64,
}

/// Every group there ever was; the root, if it pays, is the first.
struct Model {
    tree: &'static Tree,
    groups: Vec<ModelGroup>,
    /// Whose context it was charged through, and how much is left.
    objects: Vec<(usize, u64)>,
    pins: Vec<usize>,
    dying: Vec<(usize, crate::Dying)>,
}

impl Model {
    fn new(root: Root) -> Self {
        let tree = tree(root);
        let mut model = Self {
            tree,
            groups: Vec::new(),
            objects: Vec::new(),
            pins: Vec::new(),
            dying: Vec::new(),
        };
        if root == Root::Accounted {
            model.note(GroupRef::ROOT, None, u64::MAX);
        }
        model
    }

    fn note(&mut self, group: GroupRef, parent: Option<usize>, max: u64) {
        let payer = self.tree.payer(group);
        let (handles, offline, peak, forced) = (1, false, 0, 0);
        self.groups.push(ModelGroup { group, payer, parent, handles, offline, max, peak, forced });
    }

    /// The group that pays for what was charged through `of`.
    fn owner(&self, of: usize) -> Option<usize> {
        let mut at = Some(of);
        while let Some(i) = at.filter(|&i| self.groups[i].offline) {
            at = self.groups[i].parent;
        }
        at
    }

    fn chain(&self, of: usize) -> Vec<usize> {
        core::iter::successors(self.owner(of), |&i| self.groups[i].parent).collect()
    }

    fn usage(&self, group: usize) -> u64 {
        let below = self.objects.iter().filter(|(of, _)| self.chain(*of).contains(&group));
        below.map(|(_, bytes)| bytes).sum()
    }

    /// Whether the tag that `of` had still has a user. A record between two others may live on
    /// until the way over it is compressed, so `None` is "perhaps".
    fn lives(&self, of: usize) -> Option<bool> {
        let held = self.objects.iter().any(|&(o, bytes)| o == of && bytes > 0)
            || self.pins.contains(&of)
            || !self.groups[of].offline;
        held.then_some(true)
    }

    fn raise_peaks(&mut self, of: usize) {
        for i in self.chain(of) {
            self.groups[i].peak = self.groups[i].peak.max(self.usage(i));
        }
    }

    fn charge(&mut self, of: usize, want: Want) {
        let payer = self.groups[of].payer;
        let answer = self.tree.charge(payer, want);
        if answer.is_ok_and(|charged| charged.tag.is_nobody()) {
            assert!(self.lives(of).is_none() || self.owner(of).is_none());
            return;
        }
        let chain = self.chain(of);
        let usages: Vec<_> = chain.iter().map(|&i| self.usage(i)).collect();
        let fits = |i: usize, usage: u64| {
            usage.saturating_add(want.need) <= self.groups[i].max.saturating_add(want.over)
        };
        if let Some(n) = (0..chain.len()).find(|&n| !fits(chain[n], usages[n])) {
            let ModelGroup { group, max, .. } = self.groups[chain[n]];
            let expected = OverLimit { group, requested: want.need, usage: usages[n], max };
            assert_eq!(answer, Err(expected));
            return;
        }
        let headroom =
            chain.iter().zip(&usages).map(|(&i, u)| self.groups[i].max.saturating_sub(*u));
        let left = headroom.min().expect("a level").saturating_sub(want.need);
        let ahead = if left < EXACT_BELOW { 0 } else { want.ahead.min(left / 4) };
        let charged = answer.expect("it fits");
        assert_eq!((charged.tag, charged.bytes), (payer.tag, want.need + ahead));
        self.objects.push((of, charged.bytes));
        self.raise_peaks(of);
        assert_eq!(charged.forced, self.over_max(of).is_some());
    }

    fn over_max(&self, of: usize) -> Option<usize> {
        self.chain(of).into_iter().find(|&i| self.usage(i) > self.groups[i].max)
    }

    fn force(&mut self, of: usize, bytes: u64) {
        let charged = self.tree.force(self.groups[of].payer, bytes);
        if charged.tag.is_nobody() {
            assert!(self.lives(of).is_none() || self.owner(of).is_none());
            return;
        }
        self.objects.push((of, bytes));
        self.raise_peaks(of);
        let over = self.over_max(of);
        assert_eq!(charged.forced, over.is_some());
        if let Some(over) = over {
            self.groups[over].forced += 1;
        }
    }

    fn uncharge(&mut self, object: usize, part: u64) {
        let (of, bytes) = self.objects[object];
        let part = part.min(bytes);
        self.tree.uncharge(self.groups[of].payer.tag, part);
        self.objects[object].1 -= part;
        self.objects.retain(|(_, bytes)| *bytes > 0);
    }

    fn uncharge_all(&mut self, every: usize) {
        let mut entries = Vec::new();
        let mut nr = 0;
        let groups = &self.groups;
        self.objects.retain(|&(of, bytes)| {
            nr += 1;
            let goes = nr % every == 0;
            if goes {
                entries.push((groups[of].payer.tag, bytes));
            }
            !goes
        });
        self.tree.uncharge_all(&entries);
    }

    fn create(&mut self, parent: usize, max: Option<u64>) {
        let settings =
            Settings { max: max.map_or(Limit::Max, Limit::Bytes), ..Settings::default() };
        let name = format!("{}", self.groups.len());
        // One more than there are stands for the root that does not pay.
        let parent = parent % (self.groups.len() + 1);
        let parent = (parent < self.groups.len()).then_some(parent);
        let above = parent.map_or(GroupRef::ROOT, |i| self.groups[i].group);
        let online = parent.is_none_or(|i| self.is_online(i));
        let made = self.tree.create(above, &name, settings);
        assert_eq!(made.is_ok(), online, "{made:?}");
        if let Ok(group) = made {
            let root = (self.tree.root_kind() == Root::Accounted).then_some(0);
            self.note(group, parent.or(root), max.unwrap_or(u64::MAX));
        }
    }

    fn has_children(&self, group: usize) -> bool {
        self.groups.iter().any(|g| g.parent == Some(group) && !g.offline)
    }

    fn is_online(&self, i: usize) -> bool {
        let group = &self.groups[i];
        let mut children = (0..self.groups.len()).filter(|&c| self.groups[c].parent == Some(i));
        group.group.is_root() || group.handles > 0 || children.any(|child| self.is_online(child))
    }

    /// Whether nothing but its own offline keeps the group in the tree.
    fn is_next(&self, i: usize) -> bool {
        !self.is_online(i) && !self.has_children(i)
    }

    fn put(&mut self, i: usize) {
        if self.groups[i].handles == 0 || self.groups[i].group.is_root() {
            return;
        }
        self.groups[i].handles -= 1;
        let dying = self.tree.put(self.groups[i].group);
        assert_eq!(dying.is_some(), self.is_next(i));
        self.dying.extend(dying.map(|dying| (i, dying)));
    }

    fn get(&mut self, i: usize) {
        let got = self.tree.try_get(self.groups[i].group);
        assert_eq!(got, self.is_online(i));
        self.groups[i].handles += u32::from(got);
    }

    fn offline(&mut self, dying: usize) {
        let (i, dying) = self.dying.swap_remove(dying);
        self.groups[i].offline = true;
        let above = self.tree.offline(dying);
        let parent = self.groups[i].parent.filter(|&parent| self.is_next(parent));
        assert_eq!(above.as_ref().map(|d| d.group()), parent.map(|p| self.groups[p].group));
        self.dying.extend(parent.zip(above));
    }

    fn step(&mut self, op: Op) {
        let nr = self.groups.len();
        match op {
            Op::Create { parent, max } => self.create(parent, max),
            _ if nr == 0 => {}
            Op::Charge { of, need, ahead, over } => {
                self.charge(of % nr, Want { need, ahead, over })
            }
            Op::Force { of, bytes } => self.force(of % nr, bytes),
            Op::Uncharge { object, part } if !self.objects.is_empty() => {
                self.uncharge(object % self.objects.len(), part);
            }
            Op::UnchargeAll { every } => self.uncharge_all(every),
            Op::Pin { of } => {
                let pinned = self.tree.pin(self.groups[of % nr].payer);
                assert!(pinned || self.lives(of % nr).is_none());
                self.pins.extend(pinned.then_some(of % nr));
            }
            Op::Unpin { pin } if !self.pins.is_empty() => {
                let of = self.pins.swap_remove(pin % self.pins.len());
                self.tree.unpin(self.groups[of].payer.tag);
            }
            Op::Put { group } => self.put(group % nr),
            Op::Get { group } => self.get(group % nr),
            Op::Offline { dying } if !self.dying.is_empty() => {
                self.offline(dying % self.dying.len());
            }
            Op::SetMax { group, max } if !self.groups[group % nr].offline => {
                let limit = max.map_or(Limit::Max, Limit::Bytes);
                let usage = self.tree.set_max(self.groups[group % nr].group, limit);
                assert_eq!(usage, self.usage(group % nr));
                self.groups[group % nr].max = max.unwrap_or(u64::MAX);
            }
            Op::Owner { of } if self.lives(of % nr).is_some() => {
                let tag = self.groups[of % nr].payer.tag;
                let owner = self.owner(of % nr).map(|i| self.groups[i].group);
                assert_eq!(self.tree.owner(tag), owner);
                let below = self.groups.iter().filter(|g| !g.offline).find(|g| {
                    let contains = self.tree.contains(g.group, tag);
                    contains != owner.is_some_and(|o| self.tree.is_in_subtree(g.group, o))
                        && !g.group.is_root()
                });
                assert!(below.is_none(), "{below:?}");
            }
            _ => {}
        }
    }

    fn compare(&self) {
        self.tree.check();
        for (i, group) in self.groups.iter().enumerate().filter(|(_, group)| !group.offline) {
            let seen = group.group;
            assert_eq!(self.tree.usage(seen), self.usage(i), "usage of {group:?}");
            assert_eq!(self.tree.peak(seen), group.peak, "peak of {group:?}");
            assert_eq!(self.tree.events_local(seen).forced, group.forced, "forced of {group:?}");
        }
        let held = (0..self.groups.len()).filter(|&of| self.lives(of).is_some()).count();
        assert!(live_contexts(self.tree) >= held, "a tag that is held is not free");
    }

    /// Ends everything; nothing may be left then.
    fn finish(mut self) {
        self.uncharge_all(1);
        for of in core::mem::take(&mut self.pins) {
            self.tree.unpin(self.groups[of].payer.tag);
        }
        for (_, dying) in core::mem::take(&mut self.dying) {
            offline(self.tree, Some(dying));
        }
        for group in &self.groups {
            for _ in 0..group.handles {
                offline(self.tree, self.tree.put(group.group));
            }
        }
        self.tree.check();
        let root = usize::from(self.tree.root_kind() == Root::Accounted);
        assert_eq!(live_contexts(self.tree), root, "each context was released");
        assert_eq!(self.tree.nr_descendants(GroupRef::ROOT), 0);
        assert_eq!(self.tree.usage(GroupRef::ROOT), 0);
        assert_eq!(self.tree.owner(Tag::from_bits(1)), (root == 1).then_some(GroupRef::ROOT));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_tree_is_the_sum_of_its_objects(accounted: bool, ops in vec(ops(), 1..120)) {
        let root = if accounted { Root::Accounted } else { Root::Untracked };
        let mut model = Model::new(root);
        for op in ops {
            model.step(op);
            model.compare();
        }
        model.finish();
    }
}
