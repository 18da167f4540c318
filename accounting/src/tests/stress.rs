//! Threads that charge and uncharge while groups come and go.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::format;
use std::thread;
use std::vec::Vec;

use super::support::{charge, child, end, limited, live_contexts, max, tree};
use crate::{EventKind, GroupRef, Payer, Request, Root, Tag, Tree, Want};

const ROOT: GroupRef = GroupRef::ROOT;
const TURNS: usize = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
const THREADS: u64 = 4;

/// A small generator (xorshift), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let i = usize::try_from(self.below(of.len().max(1) as u64)).expect("small");
        of.get(i)
    }

    fn take<T>(&mut self, from: &mut Vec<T>) -> Option<T> {
        let i = usize::try_from(self.below(from.len().max(1) as u64)).expect("small");
        (i < from.len()).then(|| from.swap_remove(i))
    }
}

/// Groups that any thread may look at, each perhaps gone already.
type Board = [AtomicU64; 32];

/// One thread's groups, charges and pins.
struct Actor<'a> {
    tree: &'a Tree,
    tops: &'a [GroupRef],
    board: &'a Board,
    random: Random,
    groups: Vec<GroupRef>,
    payers: Vec<Payer>,
    charges: Vec<(Tag, u64)>,
    pins: Vec<Tag>,
    made: u64,
}

impl Actor<'_> {
    fn turn(&mut self) {
        match self.random.below(16) {
            0 => self.create(),
            1 => {
                if let Some(group) = self.random.take(&mut self.groups) {
                    end(self.tree, group);
                }
            }
            2 => self.borrow(),
            3 => self.pin(),
            4 => self.reclaim(),
            5 => self.uncharge_some(),
            6..=10 => self.charge(),
            _ => {
                if let Some((tag, bytes)) = self.random.take(&mut self.charges) {
                    let part = bytes / 2;
                    self.tree.uncharge(tag, part);
                    self.tree.uncharge(tag, bytes - part);
                }
            }
        }
    }

    fn create(&mut self) {
        let parents: Vec<_> = self.groups.iter().chain(self.tops).copied().collect();
        let parent = *self.random.pick(&parents).expect("tops");
        let settings = max(2_000 + self.random.below(4_000));
        self.made += 1;
        let name = format!("{:?} {}", thread::current().id(), self.made);
        let group = self.tree.create(parent, &name, settings).expect("created");
        self.payers.push(self.tree.payer(group));
        self.board[usize::try_from(self.random.below(32)).expect("small")]
            .store(group.to_bits(), Ordering::Relaxed);
        self.groups.push(group);
        if self.payers.len() > 32 {
            self.payers.swap_remove(0);
        }
    }

    /// Takes a handle to somebody's group, if it is still there, and uses it as one's own.
    fn borrow(&mut self) {
        let bits = self.random.pick(self.board).expect("slots").load(Ordering::Relaxed);
        let group = GroupRef::from_bits(bits);
        if bits != 0 && self.tree.try_get(group) {
            self.payers.push(self.tree.payer(group));
            assert!(self.tree.usage(group) <= self.tree.max(group).bytes().expect("limited"));
            self.groups.push(group);
        }
        if let Some(top) = self.random.pick(self.tops)
            && let Some(found) = self.tree.next_in_subtree(*top, None)
        {
            let next = self.tree.next_in_subtree(*top, Some(found));
            end(self.tree, found);
            next.into_iter().for_each(|group| end(self.tree, group));
        }
    }

    fn charge(&mut self) {
        let Some(&payer) = self.random.pick(&self.payers) else { return };
        let want = Want { need: self.random.below(500), ahead: 100, over: 0 };
        if let Ok(charged) = self.tree.charge(payer, want) {
            assert!(charged.tag == payer.tag || charged.tag.is_nobody());
            self.charges.push((charged.tag, charged.bytes));
        }
    }

    fn pin(&mut self) {
        if self.pins.len() > 8
            && let Some(tag) = self.random.take(&mut self.pins)
        {
            self.tree.unpin(tag);
        }
        if let Some(&payer) = self.random.pick(&self.payers)
            && self.tree.pin(payer)
        {
            self.pins.push(payer.tag);
            self.tree.owner(payer.tag);
        }
    }

    fn uncharge_some(&mut self) {
        let n = self.charges.len().min(6);
        let some: Vec<_> = self.charges.drain(..n).collect();
        self.tree.uncharge_all(&some);
    }

    /// Frees one's own charges on behalf of a request, and keeps the credit.
    fn reclaim(&mut self) {
        let Some(&payer) = self.random.pick(&self.payers) else { return };
        let top = *self.random.pick(self.tops).expect("tops");
        let request = Request::new();
        if !self.tree.open_request(&request, payer, top, 300) {
            return;
        }
        for _ in 0..4 {
            if let Some((tag, bytes)) = self.random.take(&mut self.charges) {
                self.tree.uncharge_for(tag, bytes, &request);
            }
        }
        let credit = self.tree.close_request(&request);
        assert!(credit <= 300);
    }

    fn finish(mut self) {
        self.tree.uncharge_all(&self.charges);
        self.pins.drain(..).for_each(|tag| self.tree.unpin(tag));
        self.groups.drain(..).for_each(|group| end(self.tree, group));
    }
}

/// Looks at the tops without a pause: usage is never over the limit, not for a moment.
fn sample(tree: &Tree, tops: &[GroupRef], limits: &[u64], done: &AtomicBool) {
    let mut samples = 0_u64;
    while !done.load(Ordering::Relaxed) {
        for (&top, &limit) in tops.iter().zip(limits) {
            let usage = tree.usage(top);
            assert!(usage <= limit, "usage {usage} of {limit}");
        }
        samples += 1;
        if samples.is_multiple_of(1000) {
            tree.check();
        }
        thread::yield_now();
    }
    assert!(samples > 0);
}

fn run(root: Root) {
    let tree = tree(root);
    let limits = [20_000, 30_000, 1_000];
    let tops: Vec<_> =
        (0..3).map(|i| limited(tree, ROOT, &format!("top {i}"), limits[i])).collect();
    let contexts = live_contexts(tree);
    let board: Board = core::array::from_fn(|_| AtomicU64::new(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(tree, &tops, &limits, &done));
        let actors: Vec<_> = (1..=THREADS)
            .map(|seed| {
                let (tops, board) = (&tops[..], &board);
                scope.spawn(move || {
                    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let payers = tops.iter().map(|&top| tree.payer(top)).collect();
                    let (groups, charges, pins) = (Vec::new(), Vec::new(), Vec::new());
                    let mut actor =
                        Actor { tree, tops, board, random, groups, payers, charges, pins, made: 0 };
                    for _ in 0..TURNS {
                        actor.turn();
                    }
                    actor.finish();
                })
            })
            .collect();
        let results: Vec<_> = actors.into_iter().map(|actor| actor.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok) & sampler.join().is_ok());
    });
    tree.check();
    for &top in &tops {
        assert!(tree.peak(top) > 0);
        assert_eq!((tree.usage(top), tree.nr_contexts(top), tree.nr_descendants(top)), (0, 0, 0));
    }
    assert_eq!((tree.usage(ROOT), live_contexts(tree), tree.nr_dying()), (0, contexts, 0));
}

#[test]
fn threads_charge_exactly_below_an_untracked_root() {
    run(Root::Untracked);
}

#[test]
fn threads_charge_exactly_below_an_accounted_root() {
    run(Root::Accounted);
}

#[test]
fn the_last_handle_is_given_back_once_whoever_holds_it() {
    let tree = tree(Root::Untracked);
    let rounds = TURNS / 20;
    let board = AtomicU64::new(ROOT.to_bits());
    let ended = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let finder = || {
        while !done.load(Ordering::Relaxed) {
            let group = GroupRef::from_bits(board.load(Ordering::Relaxed));
            if !group.is_root() && tree.try_get(group) {
                let tag = charge(tree, group, 3);
                if let Some(dying) = tree.put(group) {
                    ended.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(tree.offline(dying), None);
                }
                tree.uncharge(tag, 3);
            }
        }
    };
    thread::scope(|scope| {
        let finders = [scope.spawn(finder), scope.spawn(finder)];
        for _ in 0..rounds {
            let group = child(tree, ROOT, "g");
            board.store(group.to_bits(), Ordering::Relaxed);
            thread::yield_now();
            if let Some(dying) = tree.put(group) {
                ended.fetch_add(1, Ordering::Relaxed);
                assert_eq!(tree.offline(dying), None);
            } else {
                while tree.try_get(group) {
                    end_counted(tree, group, &ended);
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        finders.into_iter().for_each(|finder| finder.join().expect("no panic"));
    });
    assert_eq!(ended.load(Ordering::Relaxed), rounds as u64, "each group ended once");
    assert_eq!((tree.nr_descendants(ROOT), live_contexts(tree)), (0, 0));
    tree.check();
}

fn end_counted(tree: &Tree, group: GroupRef, ended: &AtomicU64) {
    if let Some(dying) = tree.put(group) {
        ended.fetch_add(1, Ordering::Relaxed);
        assert_eq!(tree.offline(dying), None);
    }
}

#[test]
fn events_of_the_group_alone_are_exact_while_others_happen_below_it() {
    let tree = tree(Root::Untracked);
    let above = child(tree, ROOT, "above");
    let below = child(tree, above, "below");
    (0..3).for_each(|_| tree.count(above, EventKind::Max));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                tree.count(below, EventKind::Max);
            }
        });
        let seen: Vec<u64> = (0..4 * TURNS).map(|_| tree.events_local(above).max).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(seen.iter().all(|&max| max == 3), "{:?}", seen.iter().min());
    });
    assert!(tree.events(above).max > 3);
}
