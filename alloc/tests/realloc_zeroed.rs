//! `realloc` and `alloc_zeroed`: contents, payers and charges, across every class boundary.

mod support;

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use memcg::Group;
use proptest::prelude::*;
use proptest::test_runner::Config;
use support::{Random, alone, running};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// An object with known contents: byte `i` is a function of `seed` and `i`.
#[derive(Debug)]
struct Block {
    object: *mut u8,
    layout: Layout,
    seed: u8,
}

// SAFETY: the object is this value's alone.
unsafe impl Send for Block {}

fn byte(seed: u8, index: usize) -> u8 {
    let low = u8::try_from(index % 251).expect("below 251");
    seed.wrapping_add(low).wrapping_mul(31)
}

impl Block {
    fn new(group: &Group, size: usize, align: usize, zeroed: bool, seed: u8) -> Option<Self> {
        let layout = Layout::from_size_align(size, align).expect("a small layout");
        let object = group.run(|| {
            if zeroed {
                // SAFETY: the size is not 0.
                unsafe { alloc_zeroed(layout) }
            } else {
                // SAFETY: the size is not 0.
                unsafe { alloc(layout) }
            }
        });
        if object.is_null() {
            return None;
        }
        assert!(object.addr().is_multiple_of(align), "{layout:?}");
        let mut block = Self { object, layout, seed };
        if zeroed {
            assert!(block.bytes().iter().all(|&byte| byte == 0), "{layout:?}");
        }
        block.write(seed, 0);
        assert_eq!(Group::of(object), Some(group.clone()), "{layout:?}");
        Some(block)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the object has that many bytes, which are this value's alone.
        unsafe { std::slice::from_raw_parts_mut(self.object, self.layout.size()) }
    }

    /// Gives the bytes from `from` on their contents.
    fn write(&mut self, seed: u8, from: usize) {
        self.seed = seed;
        for (index, place) in self.bytes().iter_mut().enumerate().skip(from) {
            *place = byte(seed, index);
        }
    }

    fn check(&mut self) {
        let (seed, layout) = (self.seed, self.layout);
        let wrong = self.bytes().iter().enumerate().find(|&(i, &b)| b != byte(seed, i));
        assert_eq!(wrong, None, "{layout:?}");
    }

    /// Resizes it with `group` current; `false`: refused, and untouched.
    fn resize(&mut self, group: &Group, size: usize) -> bool {
        let (before, old) = (self.object, self.layout.size());
        let payer = Group::of(before);
        let (start, layout) = (self.object, self.layout);
        // SAFETY: the object has this layout, and the size is not 0 and small.
        let moved = group.run(|| unsafe { realloc(start, layout, size) });
        if moved.is_null() {
            self.check();
            assert_eq!(Group::of(before), payer, "a refusal changes nothing");
            return false;
        }
        self.object = moved;
        self.layout = Layout::from_size_align(size, self.layout.align()).expect("a small layout");
        assert!(moved.addr().is_multiple_of(self.layout.align()));
        let seed = self.seed;
        let kept = old.min(size);
        let wrong = self.bytes()[..kept].iter().enumerate().find(|&(i, &b)| b != byte(seed, i));
        assert_eq!(wrong, None, "{old} bytes became {size}");
        let expected = if moved == before { payer } else { Some(group.clone()) };
        assert_eq!(
            Group::of(moved),
            expected,
            "in place the old payer keeps it, moved the new one"
        );
        self.write(seed, kept);
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the object has this layout, and nobody uses it any more.
        unsafe { dealloc(self.object, self.layout) };
    }
}

// ---- the property --------------------------------------------------------------------------------

/// One step of a program.
#[derive(Clone, Debug)]
enum Step {
    Alloc { group: usize, size: usize, align: u32, zeroed: bool },
    Realloc { block: usize, group: usize, size: usize },
    Free { block: usize },
    Check { block: usize },
}

/// Sizes around every boundary, small ones more often.
fn size() -> impl Strategy<Value = usize> {
    let near = |shifts: std::ops::Range<u32>| {
        (shifts, 0_usize..4, 0_usize..3).prop_map(|(shift, quarter, by)| {
            let class = (1_usize << shift) + quarter * (1 << shift) / 4;
            (class + by).saturating_sub(1).max(1)
        })
    };
    prop_oneof![4 => 1_usize..300, 4 => near(3..15), 2 => near(15..21)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..4, size(), 0_u32..14, any::<bool>())
            .prop_map(|(group, size, align, zeroed)| Step::Alloc { group, size, align, zeroed }),
        4 => (any::<usize>(), 0_usize..4, size())
            .prop_map(|(block, group, size)| Step::Realloc { block, group, size }),
        2 => any::<usize>().prop_map(|block| Step::Free { block }),
        1 => any::<usize>().prop_map(|block| Step::Check { block }),
    ]
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads that run one piece of work after the other.
struct Threads(Vec<(Sender<Work>, Receiver<bool>)>);

impl Threads {
    fn new(n: usize) -> Self {
        let start = || {
            let (work, receiver) = channel::<Work>();
            let (sender, done) = channel();
            thread::spawn(move || {
                for work in receiver {
                    let run = std::panic::AssertUnwindSafe(work);
                    let _ = sender.send(std::panic::catch_unwind(run).is_ok());
                }
            });
            (work, done)
        };
        Self((0..n).map(|_| start()).collect())
    }

    /// Runs `work` on a thread, and waits for it.
    fn run<R: Send + 'static>(&self, n: usize, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (answer, receiver) = channel();
        let (sender, done) = &self.0[n % self.0.len()];
        sender.send(Box::new(move || drop(answer.send(work())))).expect("it listens");
        assert!(done.recv().expect("it answers"), "a step failed");
        receiver.recv().expect("it answered")
    }
}

fn execute(threads: &Threads, groups: &[Group], steps: Vec<(usize, Step)>) {
    let mut blocks: Vec<Block> = Vec::new();
    for (turn, (on, step)) in steps.into_iter().enumerate() {
        let seed = u8::try_from(turn % 256).expect("below 256");
        let nr = blocks.len();
        match step {
            Step::Alloc { group, size, align, zeroed } => {
                let group = groups[group].clone();
                let made =
                    threads.run(on, move || Block::new(&group, size, 1 << align, zeroed, seed));
                blocks.extend(made);
            }
            _ if nr == 0 => {}
            Step::Realloc { block, group, size } => {
                let (mut block, group) = (blocks.swap_remove(block % nr), groups[group].clone());
                blocks.push(threads.run(on, move || {
                    block.check();
                    block.resize(&group, size);
                    block
                }));
            }
            Step::Free { block } => {
                let block = blocks.swap_remove(block % nr);
                threads.run(on, move || drop(block));
            }
            Step::Check { block } => {
                let mut block = blocks.swap_remove(block % nr);
                blocks.push(threads.run(on, move || {
                    block.check();
                    block
                }));
            }
        }
        for group in groups {
            let max = group.max().bytes().unwrap_or(u64::MAX);
            assert!(group.usage() <= max);
        }
    }
    for block in &mut blocks {
        block.check();
    }
    // What lives is charged, to somebody.
    let live: u64 = blocks.iter().map(|block| block.layout.size() as u64).sum();
    let usage: u64 = memcg::snapshot(groups).iter().map(|stat| stat.usage).sum();
    assert!(usage >= live, "{usage} bytes are charged for {live}");
    memcg::check();
    blocks.clear();
    memcg::drain();
    for group in groups {
        assert_eq!(group.usage(), 0, "{group:?}");
        assert_eq!(group.events().forced, 0);
    }
}

#[test]
fn any_program_keeps_contents_payers_and_charges() {
    let _alone = alone();
    let threads = Threads::new(3);
    let make = |name: &str, max: u64| Group::root().builder(name).max(max).build().expect("fresh");
    // Some of them meet their limits.
    let groups = [
        make("wide", 1 << 30),
        make("roomy", 8 << 20),
        make("tight", 1 << 20),
        make("tiny", 64 << 10),
    ];
    let program = proptest::collection::vec((0_usize..3, step()), 1..120);
    let cases = if cfg!(debug_assertions) { 24 } else { 200 };
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    proptest!(config, |(steps in program)| execute(&threads, &groups, steps));
    memcg::check();
}

// ---- boundaries ----------------------------------------------------------------------------------

#[test]
fn growing_and_shrinking_by_each_class_keeps_contents() {
    let _running = running();
    let make = |name: &str| Group::root().create(name).expect("fresh");
    let (first, second) = (make("grows"), make("shrinks"));
    let sizes = || {
        (3..22_u32).flat_map(|shift| {
            let base = 1_usize << shift;
            (0..4).flat_map(move |quarter| {
                let class = base + quarter * base / 4;
                [class - 1, class, class + 1]
            })
        })
    };
    let mut block = Block::new(&first, 1, 8, false, 3).expect("no limit");
    for (turn, size) in sizes().enumerate() {
        assert!(block.resize(if turn % 2 == 0 { &first } else { &second }, size));
    }
    let down: Vec<usize> = sizes().collect();
    for (turn, &size) in down.iter().rev().enumerate() {
        assert!(block.resize(if turn % 2 == 0 { &second } else { &first }, size));
    }
    drop(block);
    memcg::drain();
    assert_eq!((first.usage(), second.usage()), (0, 0));
}

#[test]
fn a_large_object_that_grows_in_place_is_its_old_payers() {
    let _alone = alone();
    let make = |name: &str| Group::root().create(name).expect("fresh");
    let (owner, other) = (make("in place"), make("another"));
    let mut grown_in_place = 0;
    for turn in 0..50 {
        // Shrunk, it leaves its own tail behind it to grow into.
        let mut block = Block::new(&owner, 8 << 20, 8, false, turn).expect("no limit");
        assert!(block.resize(&other, 1 << 20));
        let before = block.object;
        if Group::of(before) == Some(owner.clone()) {
            assert_eq!((owner.stat().large, other.stat().large), (1 << 20, 0));
        }
        assert!(block.resize(&other, 4 << 20));
        if block.object == before && Group::of(before) == Some(owner.clone()) {
            grown_in_place += 1;
            assert_eq!((owner.stat().large, other.stat().large), (4 << 20, 0));
        } else {
            assert_eq!((owner.stat().usage, other.stat().large), (0, 4 << 20));
        }
        drop(block);
        assert_eq!((owner.stat().usage, other.stat().usage), (0, 0));
    }
    assert!(grown_in_place > 0, "none of 50 grew where it was");
    memcg::check();
}

#[test]
fn a_growth_in_place_that_its_payer_has_no_room_for_moves_or_is_refused() {
    let _running = running();
    let owner = Group::root().builder("no room").max(4 << 20).build().expect("fresh");
    let other = Group::root().builder("some room").max(16 << 20).build().expect("fresh");
    let mut block = Block::new(&owner, 3 << 20, 8, false, 5).expect("fits");
    assert!(!block.resize(&owner, 6 << 20), "over the limit");
    assert!(block.resize(&other, 6 << 20), "the current group has room");
    assert_eq!(Group::of(block.object), Some(other.clone()));
    assert_eq!((owner.stat().usage, other.stat().usage), (0, 6 << 20));
    assert!(!block.resize(&other, 20 << 20));
    assert_eq!(other.stat().usage, 6 << 20);
    drop(block);
    assert_eq!(other.stat().usage, 0);
}

#[test]
fn zeroed_memory_is_zero_after_any_use() {
    let _running = running();
    let group = Group::root().create("dirty").expect("fresh");
    let mut random = Random::new(5);
    let mut held: Vec<Block> = Vec::new();
    for turn in 0..6000_u32 {
        let most = if turn % 40 == 0 { 300_000 } else { 3000 };
        let (size, zeroed) = (1 + random.below(most), random.below(2) == 0);
        let align = 1 << random.below(8);
        let seed = u8::try_from(turn % 256).expect("below 256");
        held.extend(Block::new(&group, size, align, zeroed, seed));
        if held.len() > 60 {
            held.swap_remove(random.below(held.len()));
        }
        if turn % 1000 == 999 {
            memcg::purge();
        }
    }
    held.iter_mut().for_each(Block::check);
    held.clear();
    memcg::drain();
    assert_eq!(group.usage(), 0);
}
