//! Charges, uncharges and refusals on a shared ancestor: usage never passes `max`, nothing is lost,
//! and nobody is refused because of another's attempt.

use std::alloc::{Layout, alloc_zeroed};
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::Arc;

use loom::model::Builder;
use loom::thread;

use crate::tree::Weakened;
use crate::{Charged, GroupRef, Limit, OverLimit, Payer, Root, Settings, Source, Tag, Tree, Want};

/// What a run maps is leaked: it is little, and the models are small.
static HEAP: Source = Source { map: leak, unmap: |_, _| () };

fn leak(size: usize) -> *mut u8 {
    let layout = Layout::from_size_align(size, 4096).expect("a small size");
    // SAFETY: no size that the tree asks for is 0.
    unsafe { alloc_zeroed(layout) }
}

impl Tree {
    /// What a charge would be if it looked at all levels under one lock, and added under the next.
    pub(crate) fn charge_with_two_locks(
        &self,
        payer: Payer,
        want: Want,
    ) -> Result<Charged, OverLimit> {
        let nobody = Charged { tag: Tag::NOBODY, bytes: want.need, ..Charged::default() };
        {
            let Some((_guard, context)) = self.lock_payer(payer) else { return Ok(nobody) };
            let Some(slot) = self.resolve(context) else { return Ok(nobody) };
            for (slot, group) in self.chain(slot) {
                if !group.counter.fits(want.need, want.over) {
                    let (usage, max) = (group.counter.usage(), group.counter.max().bytes());
                    return Err(OverLimit {
                        group: Self::ref_to(slot, group),
                        requested: want.need,
                        usage,
                        max: max.unwrap_or(u64::MAX),
                    });
                }
            }
        }
        let Some((_guard, context)) = self.lock_payer(payer) else { return Ok(nobody) };
        let Some(slot) = self.resolve(context) else { return Ok(nobody) };
        Ok(self.add_locked(payer.tag, context, slot, want.need))
    }
}

const MAX: u64 = 10;

struct World {
    tree: Box<Tree>,
    parent: GroupRef,
    payers: [Payer; 2],
}

impl World {
    /// By itself, so that what it takes of loom's small stacks goes back before a model begins.
    #[inline(never)]
    fn new(left_out: Option<Weakened>) -> Arc<Self> {
        let tree = Box::new(Tree::weakened(left_out));
        assert!(tree.make(Root::Untracked, &HEAP));
        let limited = Settings { max: Limit::Bytes(MAX), ..Settings::default() };
        let parent = tree.create(GroupRef::ROOT, "p", limited).expect("created");
        let child = |name| tree.create(parent, name, Settings::default()).expect("created");
        let payers = [child("a"), child("b")].map(|group| tree.payer(group));
        Arc::new(Self { tree, parent, payers })
    }

    fn charge(&self, child: usize, bytes: u64) -> bool {
        let charged = self.tree.charge(self.payers[child], Want::exactly(bytes)).is_ok();
        assert!(self.tree.usage(self.parent) <= MAX, "usage is over max");
        charged
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound.get_or_insert(4);
    builder.check(model);
}

/// Two charge 6 of 10: one gets them, whoever is first.
fn of_two_that_do_not_fit_one_is_granted(left_out: Option<Weakened>) {
    explore(move || {
        let world = World::new(left_out);
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.charge(1, 6))
        };
        let granted = [world.charge(0, 6), other.join().expect("no panic")];
        assert!(granted[0] ^ granted[1], "one of two is granted: {granted:?}");
        assert_eq!((world.tree.usage(world.parent), world.tree.peak(world.parent)), (6, 6));
        world.tree.uncharge(world.payers[usize::from(granted[1])].tag, 6);
        assert_eq!(world.tree.usage(world.parent), 0);
        world.tree.check();
    });
}

#[test]
fn loom_limit_of_two_that_do_not_fit_one_is_granted() {
    of_two_that_do_not_fit_one_is_granted(None);
}

#[test]
fn loom_limit_needs_one_lock_for_the_check_and_the_charge() {
    let run = AssertUnwindSafe(|| of_two_that_do_not_fit_one_is_granted(Some(Weakened::OneLock)));
    let panic = catch_unwind(run).expect_err("the model passes without it");
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("");
    assert!(text.contains("over max") || text.contains("one of two"), "{text:?}");
}

/// 4 and 6 of 10 fit together, whatever a third that does not fit tries meanwhile.
#[test]
fn loom_limit_what_fits_is_not_refused_because_of_an_attempt() {
    explore(|| {
        let world = World::new(None);
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                assert!(!world.charge(1, 11), "more than there ever is");
                assert!(world.charge(1, 6), "it fits");
            })
        };
        assert!(world.charge(0, 4), "it fits");
        other.join().expect("no panic");
        assert_eq!(world.tree.usage(world.parent), MAX);
        world.tree.uncharge_all(&[(world.payers[0].tag, 4), (world.payers[1].tag, 6)]);
        assert_eq!(world.tree.usage(world.parent), 0);
        world.tree.check();
    });
}

/// What one gives back is there for the other, at the latest when it has come back.
#[test]
fn loom_limit_uncharge_against_a_charge_that_needs_it() {
    explore(|| {
        let world = World::new(None);
        assert!(world.charge(0, 8));
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.tree.uncharge(world.payers[0].tag, 8))
        };
        let early = world.charge(1, 5);
        other.join().expect("no panic");
        assert!(early || world.charge(1, 5), "there is room");
        assert_eq!(world.tree.usage(world.parent), 5);
        world.tree.uncharge(world.payers[1].tag, 5);
        world.tree.check();
    });
}

/// Somebody asks whose an object is, and gets a handle, while its group goes: a live group answers.
fn whose_against_offline(left_out: Option<Weakened>) {
    explore(move || {
        let world = World::new(left_out);
        let tree = &world.tree;
        let group = tree.lookup("/p/a").expect("online");
        assert_eq!(tree.put(group), None, "the handle that made it is left");
        let tag = tree.charge(world.payers[0], Want::exactly(5)).expect("it fits").tag;
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let owner = world.tree.owner_handle(tag);
                let owner = owner.expect("an object of a live tree is somebody's");
                assert!(owner == group || owner == world.parent);
                assert!(world.tree.is_online(owner), "a handle keeps a group online");
                let mut dying = world.tree.put(owner);
                while let Some(group) = dying {
                    dying = world.tree.offline(group);
                }
            })
        };
        let mut dying = tree.put(group);
        while let Some(group) = dying {
            dying = tree.offline(group);
        }
        other.join().expect("no panic");
        assert_eq!(tree.usage(world.parent), 5);
        tree.uncharge(tag, 5);
        tree.check();
    });
}

#[test]
fn loom_limit_whose_an_object_is_against_the_end_of_the_group() {
    whose_against_offline(None);
}

#[test]
#[should_panic(expected = "is somebody's")]
fn loom_limit_whose_an_object_is_needs_to_be_asked_again() {
    whose_against_offline(Some(Weakened::AskAgain));
}
