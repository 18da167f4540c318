//! Stock and the log of uncharges against maps.

use std::collections::HashMap;
use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{MAX_UNSPENT, Payer, Stock, Tag, UnchargeLog};

const SETS: u32 = 512;
/// The most that a charge takes ahead.
const MOST: u64 = 32 << 10;
const _: () = assert!(crate::stock::SETS == 512);

/// Tags that fall into two sets of the table, and enough of them to evict each other.
fn tags() -> impl Strategy<Value = Tag> {
    (0..2_u32, 0..4_u32).prop_map(|(set, n)| Tag::from_bits(1 + set + SETS * n))
}

#[derive(Clone, Debug)]
enum Op {
    Insert { tag: Tag, keep: Tag },
    Take { tag: Tag, bytes: u64 },
    Give { tag: Tag, bytes: u64 },
    Select { tag: Tag },
    HandOver { from: Tag, to: Tag, bytes: u32 },
    Charge { tag: Tag, need: u64 },
    Trim { keep: Tag },
    Drain { tag: Tag },
    Prune { tag: Tag },
}

fn ops() -> impl Strategy<Value = Op> {
    let nobody = || prop_oneof![4 => tags(), 1 => Just(Tag::NOBODY)];
    let bytes = || prop_oneof![0..3_u64, 0..70_000_u64];
    prop_oneof![
        3 => (tags(), nobody()).prop_map(|(tag, keep)| Op::Insert { tag, keep }),
        2 => (tags(), bytes()).prop_map(|(tag, bytes)| Op::Take { tag, bytes }),
        3 => (tags(), bytes()).prop_map(|(tag, bytes)| Op::Give { tag, bytes }),
        2 => tags().prop_map(|tag| Op::Select { tag }),
        4 => (nobody(), nobody(), prop_oneof![0..3_u32, 0..33_000_u32])
            .prop_map(|(from, to, bytes)| Op::HandOver { from, to, bytes }),
        2 => (tags(), 1..33_000_u64).prop_map(|(tag, need)| Op::Charge { tag, need }),
        1 => nobody().prop_map(|keep| Op::Trim { keep }),
        1 => tags().prop_map(|tag| Op::Drain { tag }),
        1 => tags().prop_map(|tag| Op::Prune { tag }),
    ]
}

/// The naive table: what each tag's entry holds, and for whom.
#[derive(Default)]
struct Model {
    entries: HashMap<Tag, (Payer, u64)>,
    selected: Option<Tag>,
    uses: u32,
}

impl Model {
    fn unspent(&self) -> u64 {
        self.entries.values().map(|(_, bytes)| bytes).sum()
    }

    fn insert(&mut self, stock: &mut Stock, tag: Tag, keep: Tag) {
        if self.entries.contains_key(&tag) {
            return;
        }
        self.uses += 1;
        let payer = Payer { tag, generation: self.uses };
        let in_set = |other: &Tag| other.to_bits() % SETS == tag.to_bits() % SETS;
        let full = self.entries.keys().filter(|other| in_set(other)).count() == 2;
        let evicted = stock.insert(payer, keep);
        assert_eq!(evicted.is_some(), full, "an entry goes exactly where there is no room");
        if let Some(old) = evicted {
            assert!(in_set(&old.payer.tag) && old.payer.tag != keep);
            assert_eq!(self.entries.remove(&old.payer.tag), Some((old.payer, old.bytes())));
        }
        self.entries.insert(tag, (payer, 0));
        self.selected = Some(tag);
        assert!(!stock.select(Payer { tag, generation: self.uses + 1 }));
    }

    fn take(&mut self, tag: Tag, bytes: u64) -> bool {
        match self.entries.get_mut(&tag) {
            Some((_, held)) if *held >= bytes => {
                *held -= bytes;
                true
            }
            _ => false,
        }
    }

    fn give(&mut self, tag: Tag, bytes: u64) -> bool {
        self.entries.get_mut(&tag).map(|(_, held)| *held += bytes).is_some()
    }

    fn hand_over(&mut self, from: Tag, to: Tag, bytes: u64) -> bool {
        let more = if to.is_nobody() { bytes } else { 0 };
        let has_place = self.unspent() + more < MAX_UNSPENT && self.entries.contains_key(&from);
        let takes = from.is_nobody() || has_place;
        let is_selected = self.selected == Some(to);
        if !takes || !(to.is_nobody() || is_selected && self.take(to, bytes)) {
            return false;
        }
        from.is_nobody() || self.give(from, bytes)
    }

    fn step(&mut self, stock: &mut Stock, op: Op) {
        match op {
            Op::Insert { tag, keep } => self.insert(stock, tag, keep),
            Op::Take { tag, bytes } => assert_eq!(stock.take(tag, bytes), self.take(tag, bytes)),
            Op::Give { tag, bytes } => assert_eq!(stock.give(tag, bytes), self.give(tag, bytes)),
            Op::Select { tag } => {
                let payer = self.entries.get(&tag).map_or(Payer::NOBODY, |(payer, _)| *payer);
                let found = stock.select(payer);
                assert_eq!(found, self.entries.contains_key(&tag));
                self.selected = if found { Some(tag) } else { self.selected };
            }
            Op::HandOver { from, to, bytes } => {
                let expected = self.hand_over(from, to, u64::from(bytes));
                assert_eq!(stock.hand_over(from, to, bytes).is_ok(), expected);
            }
            Op::Charge { tag, need } => {
                let ahead = stock.ahead_for(tag, need, MOST);
                assert!(ahead <= MOST);
                let given = stock.give_ahead(tag, need, ahead, MOST);
                assert_eq!(given, self.give(tag, ahead));
            }
            Op::Trim { keep } => {
                let before = self.unspent();
                let mut taken = 0;
                let entries = &mut self.entries;
                stock.trim(keep, |tag, bytes| {
                    taken += bytes;
                    let (_, held) = entries.get_mut(&tag).expect("an entry");
                    assert_eq!(core::mem::take(held), bytes, "an entry goes whole");
                });
                assert_eq!(self.unspent() + taken, before);
                assert!(self.unspent() < MAX_UNSPENT);
            }
            Op::Drain { tag } => {
                let mut taken = Vec::new();
                stock.drain(|other| other == tag, |tag, bytes| taken.push((tag, bytes)));
                let held = self.entries.get_mut(&tag).map(|(_, held)| core::mem::take(held));
                let expected = held.filter(|held| *held != 0).map(|held| (tag, held));
                assert_eq!(taken, expected.into_iter().collect::<Vec<_>>());
            }
            Op::Prune { tag } => {
                let mut unpinned = Vec::new();
                stock.prune(|other| other == tag, |tag| unpinned.push(tag));
                let goes = self.entries.get(&tag).is_some_and(|(_, held)| *held == 0);
                assert_eq!(unpinned, if goes { std::vec![tag] } else { Vec::new() });
                if goes {
                    self.entries.remove(&tag);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn stock_is_a_map_of_bounded_size(ops in vec(ops(), 0..200)) {
        let (mut stock, mut model) = (Stock::new(), Model::default());
        for op in ops {
            model.step(&mut stock, op);
            stock.check();
            assert_eq!(stock.unspent(), model.unspent());
            let held = |e: &crate::Entry| (e.payer.tag, (e.payer, e.bytes()));
            assert_eq!(stock.entries().map(held).collect::<HashMap<_, _>>(), model.entries);
        }
    }

    #[test]
    fn the_log_keeps_every_byte(pushes in vec((0..4_u32, 1..9_u64), 0..300)) {
        let mut log = UnchargeLog::new();
        let mut expected = HashMap::<Tag, u64>::new();
        let mut applied = HashMap::<Tag, u64>::new();
        for (tag, bytes) in pushes {
            let tag = Tag::from_bits(tag + 1);
            *expected.entry(tag).or_default() += bytes;
            if log.push(tag, bytes) {
                continue;
            }
            assert_eq!(log.peek().len(), 64, "refused only when full");
            for &(tag, bytes) in log.take() {
                *applied.entry(tag).or_default() += bytes;
            }
            assert!(log.peek().is_empty() && log.push(tag, bytes));
        }
        for &(tag, bytes) in log.take() {
            *applied.entry(tag).or_default() += bytes;
        }
        assert_eq!(applied, expected);
    }
}

/// A charge for `need` bytes, which are spent at once; answers what it took ahead.
fn charged(stock: &mut Stock, tag: Tag, need: u64) -> u64 {
    let ahead = stock.ahead_for(tag, need, MOST);
    assert!(stock.give_ahead(tag, need, ahead, MOST));
    ahead
}

#[test]
fn who_allocates_much_charges_as_much_again_as_all_before() {
    let mut stock = Stock::new();
    let tag = Tag::from_bits(1);
    assert!(stock.insert(Payer { tag, generation: 1 }, Tag::NOBODY).is_none());
    let mut all = 0;
    for expected in [1, 1, 2, 4, 8, 16, 32, 32] {
        let ahead = charged(&mut stock, tag, 64);
        assert_eq!(ahead + 64, expected << 10);
        assert!(stock.take(tag, ahead));
        all += ahead + 64;
    }
    assert_eq!(all, 96 << 10);
}

#[test]
fn after_a_trim_a_charge_takes_what_was_used_before_it() {
    let mut stock = Stock::new();
    let tag = Tag::from_bits(1);
    assert!(stock.insert(Payer { tag, generation: 1 }, Tag::NOBODY).is_none());
    // One object, and nothing of the KiB.
    let ahead = charged(&mut stock, tag, 64);
    assert!(stock.give(tag, 64), "it comes back");
    stock.drain(|_| true, |_, bytes| assert_eq!(bytes, ahead + 64));
    for _ in 0..3 {
        assert_eq!(charged(&mut stock, tag, 64), 0, "one object is all that it uses");
        assert!(stock.give(tag, 64));
        stock.drain(|_| true, |_, bytes| assert_eq!(bytes, 64));
    }
    // Then it uses 16 of 100 bytes at a time.
    for round in 0..5 {
        let mut charges = 0;
        for _ in 0..16 {
            if !stock.take(tag, 100) {
                charged(&mut stock, tag, 100);
                charges += 1;
            }
        }
        assert!(charges == 1 || round == 0, "round {round}: {charges} charges");
        assert!(stock.give(tag, 1600));
        stock.drain(|_| true, |_, _| ());
    }
}

#[test]
fn nobody_has_no_entry() {
    let mut stock = Stock::new();
    assert!(!stock.select(Payer::NOBODY));
    assert_eq!(stock.hand_over(Tag::NOBODY, Tag::NOBODY, 5), Ok(()));
    assert_eq!((stock.unspent(), stock.entries().count()), (0, 0));
    stock.check();
}
