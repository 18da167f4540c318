//! The operations of the tree of groups, against a list of charges: after each step every invariant is checked, and usage is
//! the sum of what was charged.
//!
//! Four bytes are a step: verb, group, two of a number.

#![no_main]

use libfuzzer_sys::fuzz_target;
use memcg_accounting::{
    Dying, GroupRef, Limit, Payer, Root, SYSTEM, Settings, Tag, Tree, Want,
};

static TREE: Tree = Tree::new();

/// Groups of one run.
const MAX_GROUPS: usize = 40;

struct Known {
    group: GroupRef,
    payer: Payer,
    parent: Option<usize>,
    handles: u32,
    online: bool,
}

#[derive(Default)]
struct Model {
    groups: Vec<Known>,
    /// Through which group's context, and how much.
    charges: Vec<(usize, u64)>,
    pins: Vec<usize>,
}

impl Model {
    /// Who pays for what was charged through `of`.
    fn owner(&self, of: usize) -> Option<usize> {
        let mut at = Some(of);
        while let Some(i) = at.filter(|&i| !self.groups[i].online) {
            at = self.groups[i].parent;
        }
        at
    }

    fn usage(&self, group: usize) -> u64 {
        let is_below = |of: usize| {
            std::iter::successors(self.owner(of), |&i| self.groups[i].parent).any(|i| i == group)
        };
        self.charges.iter().filter(|(of, _)| is_below(*of)).map(|(_, bytes)| bytes).sum()
    }

    /// Whether its context is still somebody's.
    fn is_held(&self, of: usize) -> bool {
        self.groups[of].online
            || self.pins.contains(&of)
            || self.charges.iter().any(|&(by, bytes)| by == of && bytes > 0)
    }

    fn create(&mut self, parent: usize, number: u64) {
        let parent = (parent < self.groups.len() && self.groups[parent].online).then_some(parent);
        let above = parent.map_or(GroupRef::ROOT, |i| self.groups[i].group);
        let max = if number % 4 == 0 { Limit::Max } else { Limit::Bytes(number * 16) };
        let name = self.groups.len().to_string();
        let settings = Settings { max, max_depth: Some(Limit::Max), ..Settings::default() };
        let group = TREE.create(above, &name, settings).expect("a fresh name");
        let payer = TREE.payer(group);
        self.groups.push(Known { group, payer, parent, handles: 1, online: true });
    }

    fn charge(&mut self, of: usize, bytes: u64, ahead: u64, force: bool) {
        let payer = self.groups[of].payer;
        let before = self.usage(of);
        let charged = if force {
            TREE.force(payer, bytes)
        } else {
            match TREE.charge(payer, Want { need: bytes, ahead, over: 0 }) {
                Ok(charged) => charged,
                Err(over) => {
                    assert!(over.usage + bytes > over.max, "{over:?}");
                    assert_eq!(self.usage(of), before);
                    return;
                }
            }
        };
        if charged.tag.is_nobody() {
            assert!(!self.is_held(of) || self.owner(of).is_none());
            return;
        }
        assert!(charged.bytes >= bytes && charged.bytes <= bytes + ahead);
        self.charges.push((of, charged.bytes));
    }

    fn uncharge(&mut self, nr: usize, part: u64) {
        if self.charges.is_empty() {
            return;
        }
        let nr = nr % self.charges.len();
        let (of, bytes) = self.charges[nr];
        let part = part.min(bytes);
        TREE.uncharge(self.groups[of].payer.tag, part);
        self.charges[nr].1 -= part;
        self.charges.retain(|(_, bytes)| *bytes > 0);
    }

    fn put(&mut self, i: usize) {
        if self.groups[i].handles == 0 {
            return;
        }
        self.groups[i].handles -= 1;
        let mut dying: Option<Dying> = TREE.put(self.groups[i].group);
        while let Some(group) = dying {
            let gone = self.groups.iter().position(|known| known.group == group.group());
            dying = TREE.offline(group);
            self.groups[gone.expect("it is one of ours")].online = false;
        }
    }

    fn step(&mut self, verb: u8, group: usize, number: u64) {
        let nr = self.groups.len();
        if nr == 0 || (verb % 12 == 0 && nr < MAX_GROUPS) {
            return self.create(group, number);
        }
        let of = group % nr;
        match verb % 12 {
            1 | 2 => self.charge(of, number, 0, false),
            3 => self.charge(of, number, 4096, false),
            4 => self.charge(of, number, 0, true),
            5 | 6 => self.uncharge(group, number),
            7 => self.put(of),
            8 => {
                let got = TREE.try_get(self.groups[of].group);
                assert_eq!(got, self.groups[of].online);
                self.groups[of].handles += u32::from(got);
            }
            9 => {
                if TREE.pin(self.groups[of].payer) {
                    self.pins.push(of);
                } else {
                    assert!(!self.is_held(of));
                }
            }
            10 => {
                if let Some(of) = self.pins.pop() {
                    TREE.unpin(self.groups[of].payer.tag);
                }
            }
            _ if self.groups[of].online => {
                let usage = TREE.set_max(self.groups[of].group, Limit::Bytes(number * 16));
                assert_eq!(usage, self.usage(of));
            }
            _ => {}
        }
    }

    fn compare(&self) {
        TREE.check();
        for (i, known) in self.groups.iter().enumerate().filter(|(_, known)| known.online) {
            assert_eq!(TREE.usage(known.group), self.usage(i));
        }
        for (of, known) in self.groups.iter().enumerate().filter(|&(of, _)| self.is_held(of)) {
            let owner = self.owner(of).map(|i| self.groups[i].group);
            assert_eq!(TREE.owner(known.payer.tag), owner);
        }
    }

    fn finish(mut self) {
        while !self.charges.is_empty() {
            self.uncharge(0, u64::MAX);
        }
        while let Some(of) = self.pins.pop() {
            TREE.unpin(self.groups[of].payer.tag);
        }
        for i in 0..self.groups.len() {
            while self.groups[i].handles > 0 {
                self.put(i);
            }
        }
        TREE.check();
        assert_eq!(TREE.nr_descendants(GroupRef::ROOT), 0);
        assert_eq!(TREE.usage(GroupRef::ROOT), 0);
        assert_eq!(TREE.owner(Tag::NOBODY), None);
    }
}

fuzz_target!(|data: &[u8]| {
    assert!(TREE.make(Root::Untracked, &SYSTEM));
    let mut model = Model::default();
    for &[verb, group, low, high] in data.as_chunks().0.iter().take(300) {
        model.step(verb, usize::from(group), u64::from(low) | u64::from(high) << 8);
        model.compare();
    }
    model.finish();
});
