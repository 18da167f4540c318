//! Model: two reclaimers share one walk over marked groups: who is sure of its answer missed nothing.
//!
//! The test with `should_panic` leaves one step out and shows that the model notices.

use std::boxed::Box;
use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use memcg_accounting::{GroupRef, Root, SYSTEM, Settings, Tree};

use crate::groups::Groups;
use crate::marked::{Marked, Weakened};
use crate::marks::{Bit, Bits};
use crate::walks::{Purpose, Seen};

struct World {
    tree: Box<Tree>,
    groups: Groups,
    marked: Marked,
    target: GroupRef,
    children: [GroupRef; 2],
    /// What is cached in each child: it is there before any walk begins.
    objects: [AtomicU32; 2],
    bits: Bits,
}

impl World {
    fn new(left_out: Option<Weakened>) -> Arc<World> {
        let tree = Box::new(Tree::new());
        assert!(tree.make(Root::Untracked, &SYSTEM));
        let target = tree.create(GroupRef::ROOT, "t", Settings::default()).expect("made");
        let children =
            ["a", "b"].map(|name| tree.create(target, name, Settings::default()).expect("made"));
        let bit = Bit::new(0, false);
        let mut bits = Bits::NONE;
        bits.0[bit.word()] = bit.mask();
        let mut marked = Marked::new();
        marked.weakened = left_out;
        let groups = Groups::new();
        for child in children {
            groups.record(&tree, child).expect("memory").marks.mark(bit);
            groups.linked(&tree, &marked, child);
        }
        let objects = [AtomicU32::new(1), AtomicU32::new(1)];
        Arc::new(World { tree, groups, marked, target, children, objects, bits })
    }

    /// One reclaimer: joins the walk, takes what it finds, leaves. Answers whether it is sure that
    /// there is nothing more.
    fn walk(&self) -> bool {
        let purpose = Purpose { target: self.target, place: None, priority: 5, breaks_low: false };
        let walker = self.marked.join(&self.groups, &self.tree, purpose).expect("memory");
        let mut seen = Seen::default();
        let wanted = (self.bits, self.bits);
        let mut taken = 0;
        while let Some(group) =
            self.marked.draw(&self.groups, &self.tree, &walker, wanted, &mut seen)
        {
            let child = self.children.iter().position(|&child| child == group);
            // Taking it lasts: others draw meanwhile.
            thread::yield_now();
            taken += self.objects[child.expect("the target has no mark")].swap(0, Ordering::AcqRel);
        }
        self.marked.leave(&self.groups, &self.tree, &walker, seen);
        assert!(taken <= 2);
        walker.is_first && !seen.answer.unsure
    }

    fn left(&self) -> u32 {
        self.objects.iter().map(|object| object.load(Ordering::Acquire)).sum()
    }
}

fn model(left_out: Option<Weakened>) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound.get_or_insert(3);
    builder.check(move || {
        let world = World::new(left_out);
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let sure = world.walk();
                assert!(!sure || world.left() == 0, "who is sure has missed something");
            })
        };
        let sure = world.walk();
        assert!(!sure || world.left() == 0, "who is sure has missed something");
        other.join().expect("no panic");
        assert_eq!(world.left(), 0, "together they see everything");
    });
}

#[test]
fn who_is_sure_missed_nothing() {
    model(None);
}

#[test]
#[should_panic(expected = "who is sure has missed something")]
fn without_telling_that_others_are_still_at_it() {
    model(Some(Weakened::Unsure));
}
