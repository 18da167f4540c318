//! Walks: what they look at, what they share, and where they go on.

extern crate std;

use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

use memcg_accounting::{GroupRef, Root};
use proptest::collection::vec;
use proptest::prelude::*;

use super::sim::{Moment, Recipe, Sim, Toy, locked};
use crate::scan::FIRST_PRIORITY;
use crate::walks::{Purpose, Seen, Walker};
use crate::{Cause, Place, RawScan, ShrinkerId};

const KIB: u64 = 1 << 10;

/// A cache that is asked only where it was marked.
fn lazy(sim: &'static Sim) -> (Arc<Toy>, ShrinkerId) {
    let toy = Toy::new(sim);
    let recipe = Recipe { starts_marked: false, ..toy.recipe("lazy", Place::Direct) };
    let (id, _) = sim.register(recipe);
    toy.serve(id);
    (toy, id)
}

fn check(sim: &Sim) {
    let in_use = sim.engine.registry.in_use();
    sim.engine.groups.check_marked(sim.tree, &sim.engine.marked, in_use);
}

fn looks(sim: &Sim) -> u64 {
    sim.engine.marked.lock().nr_looks
}

/// Looks that walks take to get all out of a tree of `groups`, of which ten have objects.
fn looks_for(groups: usize) -> u64 {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (toy, _) = lazy(sim);
    let children: Vec<_> = (0..groups).map(|n| sim.group(top, &format!("g{n}"), 1 << 40)).collect();
    for group in children.iter().step_by(groups / 10) {
        toy.fill(*group, 100, KIB);
    }
    check(sim);
    assert_eq!(sim.engine.reclaim(top, 1000 * KIB, Cause::Proactive), 1000 * KIB);
    // What was emptied is looked at once more, and not after that.
    sim.engine.reclaim(top, KIB, Cause::Proactive);
    let all = looks(sim);
    sim.engine.reclaim(top, KIB, Cause::Proactive);
    assert!(looks(sim) - all <= 100, "{} looks at nothing", looks(sim) - all);
    check(sim);
    all
}

#[test]
fn a_walk_costs_what_is_marked_and_not_what_there_is() {
    let (few, many) = (looks_for(10), looks_for(10_000));
    assert!(many <= 2 * few, "{many} looks in 10,000 groups, {few} in 10");
}

/// The same where every new group counts as marked until it was asked.
#[test]
fn groups_that_start_marked_are_found_whenever_they_were_made() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let before = sim.group(top, "before", 1 << 40);
    let toy = Toy::new(sim);
    sim.register(toy.recipe("eager", Place::Direct));
    let after = sim.group(top, "after", 1 << 40);
    let deep = sim.group(after, "deep", 1 << 40);
    check(sim);
    for group in [before, after, deep] {
        toy.insert(sim.alloc(group, KIB).expect("room"));
    }
    assert_eq!(sim.engine.reclaim(top, 3 * KIB, Cause::Proactive), 3 * KIB);
    sim.engine.reclaim(top, KIB, Cause::Proactive);
    let asked = toy.nr_counts.load(Ordering::Relaxed);
    sim.engine.reclaim(top, KIB, Cause::Proactive);
    assert_eq!(toy.nr_counts.load(Ordering::Relaxed), asked, "all said that they are empty");
    check(sim);
}

#[test]
fn the_next_reclaim_goes_on_where_the_last_one_ended() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (toy, _) = lazy(sim);
    let children: Vec<_> = (0..8).map(|n| sim.group(top, &format!("g{n}"), 1 << 40)).collect();
    for child in &children {
        toy.fill(*child, 100, KIB);
    }
    let left = || children.iter().map(|child| sim.tree.usage(*child) / KIB).collect::<Vec<_>>();
    for round in 1..=10 {
        for _ in 0..8 {
            assert!(sim.engine.reclaim(top, KIB, Cause::Proactive) >= KIB);
        }
        let left = left();
        let (most, least) = (left.iter().max(), left.iter().min());
        let apart = most.expect("eight") - least.expect("eight");
        assert!(apart <= 2 + round / 4, "{left:?} after {round} rounds");
    }
}

#[test]
fn reclaimers_split_a_walk_and_the_last_pass_is_each_ones_own() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (_toy, id) = lazy(sim);
    let groups: BTreeSet<_> = (0..1000)
        .map(|n| {
            let group = sim.group(top, &format!("g{n}"), 1 << 40);
            sim.engine.mark(group, id);
            group.index()
        })
        .collect();
    let shared = Purpose { target: top, place: None, priority: 5, breaks_low: false };
    let walkers: Vec<_> = (0..4).map(|_| join(sim, shared)).collect();
    assert_eq!(walkers.iter().filter(|walker| walker.is_first).count(), 1);
    let drawn = thread::scope(|scope| {
        let threads: Vec<_> =
            walkers.iter().map(|walker| scope.spawn(|| draw_all(sim, walker))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect::<Vec<_>>()
    });
    let once: BTreeSet<_> = drawn.iter().copied().collect();
    assert_eq!(once, groups);
    assert_eq!(drawn.len(), 1000, "each group once");
    walkers.iter().for_each(|walker| leave(sim, walker));
    let own = Purpose { priority: 0, ..shared };
    for _ in 0..2 {
        let others = join(sim, own);
        let walker = join(sim, own);
        assert!(others.is_first && walker.is_first);
        assert_eq!(draw_all(sim, &walker).into_iter().collect::<BTreeSet<_>>(), groups);
        leave(sim, &others);
        leave(sim, &walker);
    }
    let one_of_another_kind = join(sim, Purpose { place: Some(Place::Worker), ..shared });
    assert!(one_of_another_kind.is_first);
    leave(sim, &one_of_another_kind);
}

fn join(sim: &Sim, purpose: Purpose) -> Walker {
    sim.engine.marked.join(&sim.engine.groups, sim.tree, purpose).expect("memory")
}

fn leave(sim: &Sim, walker: &Walker) {
    sim.engine.marked.leave(&sim.engine.groups, sim.tree, walker, Seen::default());
}

fn draw(sim: &Sim, walker: &Walker) -> Option<GroupRef> {
    let in_use = sim.engine.registry.in_use();
    let engine = &sim.engine;
    engine.marked.draw(&engine.groups, sim.tree, walker, (in_use, in_use), &mut Seen::default())
}

fn draw_all(sim: &Sim, walker: &Walker) -> Vec<u32> {
    core::iter::from_fn(|| draw(sim, walker)).map(GroupRef::index).collect()
}

/// A step of a random history.
#[derive(Clone, Copy, Debug)]
enum Op {
    Create(usize),
    Put(usize),
    Mark(usize),
    Empty(usize),
    Begin(usize, u32),
    Draw(usize),
    Finish(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let any = || any::<usize>();
    prop_oneof![
        3 => any().prop_map(Op::Create),
        2 => any().prop_map(Op::Put),
        4 => any().prop_map(Op::Mark),
        3 => any().prop_map(Op::Empty),
        1 => (any(), 0..3_u32).prop_map(|(group, priority)| Op::Begin(group, priority)),
        6 => any().prop_map(Op::Draw),
        1 => any().prop_map(Op::Finish),
    ]
}

/// A walk of the model, with the groups that must be drawn of it: marked below the target ever
/// since it began.
struct ModelWalk {
    walker: Walker,
    purpose: Purpose,
    must: BTreeSet<u32>,
    drawn: BTreeMap<u32, usize>,
    is_over: bool,
}

proptest! {
    /// Whatever is made, marked, emptied and dropped meanwhile: a walk draws each group that is
    /// marked all the while, and none twice that was not unlinked in between.
    #[test]
    fn a_walk_draws_all_that_stays(ops in vec(op(), 1..200)) {
        let sim = Sim::new(Root::Untracked);
        let (_toy, id) = lazy(sim);
        let bit = sim.engine.registry.find(id).and_then(crate::slot::Slot::bit).expect("aware");
        let mut names = 0;
        // Handles; a group that has children and no handle is not touched any more.
        let mut groups = std::vec![GroupRef::ROOT];
        let mut walks: Vec<ModelWalk> = Vec::new();
        for op in ops {
            let nr_walks = walks.len();
            match op {
                Op::Create(parent) if groups.len() < 30 => {
                    names += 1;
                    let parent = groups[parent % groups.len()];
                    groups.push(sim.group(parent, &format!("g{names}"), 1 << 40));
                }
                Op::Put(at) if groups.len() > 1 => {
                    let at = 1 + at % (groups.len() - 1);
                    let group = groups[at];
                    // A target is kept by whoever reclaims in it.
                    if walks.iter().all(|walk| walk.purpose.target != group) {
                        groups.swap_remove(at);
                        sim.engine.put(group);
                        for walk in &mut walks {
                            walk.must.remove(&group.index());
                        }
                    }
                }
                Op::Mark(group) => sim.engine.mark(groups[group % groups.len()], id),
                Op::Empty(group) => {
                    let group = groups[group % groups.len()];
                    if let Some(record) = sim.engine.groups.find(group) {
                        record.marks.settle(bit, || true);
                    }
                    for walk in &mut walks {
                        walk.must.remove(&group.index());
                    }
                }
                Op::Begin(target, priority) if nr_walks < 4 => {
                    let target = groups[target % groups.len()];
                    let purpose =
                        Purpose { target, place: None, priority: 2 * priority, breaks_low: false };
                    let walker = join(sim, purpose);
                    let mut must = BTreeSet::new();
                    for group in groups.iter().filter(|_| walker.is_first) {
                        let marked = sim.engine.is_marked(*group, id);
                        if marked && sim.tree.is_in_subtree(target, *group) {
                            must.insert(group.index());
                        }
                    }
                    let drawn = BTreeMap::new();
                    walks.push(ModelWalk { walker, purpose, must, drawn, is_over: false });
                }
                Op::Draw(walk) if nr_walks > 0 => {
                    let at = walk % nr_walks;
                    let drawn = draw(sim, &walks[at].walker);
                    walks[at].is_over |= drawn.is_none();
                    if let Some(group) = drawn {
                        prop_assert!(sim.tree.is_in_subtree(walks[at].purpose.target, group));
                        *walks[at].drawn.entry(group.index()).or_insert(0) += 1;
                        // Those who share the walk need not draw it.
                        let purpose = walks[at].purpose;
                        let shared = purpose.priority != 0;
                        for (i, walk) in walks.iter_mut().enumerate() {
                            if i == at || (shared && walk.purpose == purpose) {
                                walk.must.remove(&group.index());
                            }
                        }
                    } else {
                        let missed = &walks[at].must;
                        prop_assert!(missed.is_empty(), "{missed:?} were not drawn");
                    }
                }
                Op::Finish(walk) if nr_walks > 0 => {
                    let walk = walks.swap_remove(walk % nr_walks);
                    leave(sim, &walk.walker);
                }
                _ => {}
            }
            check(sim);
        }
        for walk in walks {
            // To the end: every walk has one.
            prop_assert!(walk.is_over || core::iter::from_fn(|| draw(sim, &walk.walker)).count() <= 31);
            leave(sim, &walk.walker);
        }
        check(sim);
    }
}

/// What others drew before is not what is there now: nobody is refused by their looks.
#[test]
fn who_joins_a_walk_looks_at_everything_before_it_is_refused() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1024 * KIB);
    let group = sim.group(top, "a", 1024 * KIB);
    sim.be_patient_in(top);
    let (toy, _) = lazy(sim);
    let mut objects = [KIB, 900 * KIB].map(|bytes| Some(sim.alloc(group, bytes).expect("room")));
    let (filled, mut walkers) = (toy.clone(), Vec::new());
    // Others look at the cache just before the object gets there.
    *locked(&sim.around_cut) = Some(std::boxed::Box::new(move |moment| {
        let is_first = sim.nr_cuts.load(Ordering::Relaxed) < 2;
        if moment == Moment::BeforeCut || is_first || !walkers.is_empty() {
            return;
        }
        let [small, large] = objects.each_mut().map(Option::take);
        small.into_iter().for_each(|object| filled.insert(object));
        for priority in 1..=FIRST_PRIORITY {
            let place = Some(Place::Direct);
            let purpose = Purpose { target: top, place, priority, breaks_low: false };
            let walker = join(sim, purpose);
            assert_eq!(draw(sim, &walker), Some(group));
            walkers.push(walker);
        }
        filled.take().into_iter().for_each(|object| sim.free(object));
        large.into_iter().for_each(|object| filled.insert(object));
    }));
    let object = sim.alloc(top, 600 * KIB).expect("the cache gives");
    sim.free(object);
    check(sim);
}

/// Groups come and go, and caches fill, while several threads reclaim: nothing is lost.
#[test]
fn nothing_is_lost_while_groups_come_and_go() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let (toy, _) = lazy(sim);
    thread::scope(|scope| {
        for thread in 0..2 {
            let toy = &toy;
            scope.spawn(move || {
                for n in 0..300 {
                    let group = sim.group(top, &format!("{thread}-{n}"), 1 << 40);
                    let child = sim.group(group, "child", 1 << 40);
                    toy.fill(if n % 2 == 0 { group } else { child }, 2, KIB);
                    sim.engine.put(child);
                    sim.engine.put(group);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..300 {
                    sim.engine.reclaim(top, 3 * KIB, Cause::Proactive);
                }
            });
        }
    });
    while sim.engine.reclaim(top, 1 << 30, Cause::Proactive) != 0 {}
    assert_eq!((toy.len(), sim.tree.usage(top)), (0, 0));
    assert_eq!(sim.tree.nr_dying(), 0);
    check(sim);
    sim.tree.check();
}

/// What a shrinker did not get to is asked of it on top of its share the next time, and goes to
/// the parent with its group.
#[test]
fn what_a_shrinker_owes_is_asked_for_later_and_moves_to_the_parent() {
    let sim = Sim::new(Root::Untracked);
    let top = sim.group(GroupRef::ROOT, "top", 1 << 40);
    let child = sim.group(top, "child", 1 << 40);
    let recipe =
        Recipe::new("busy", Place::Direct, |_| crate::RawCount::Objects(4096), |_| RawScan::Stop);
    let (id, _) = sim.register(recipe);
    assert_eq!(sim.engine.reclaim(child, KIB, Cause::Proactive), 0);
    let owed = |group| {
        let record = sim.engine.groups.find(group).expect("noted");
        let owed = sim.engine.deferred_work.take(&record.owed, id);
        sim.engine.deferred_work.add(sim.tree.source(), &record.owed, id, owed);
        owed
    };
    let of_child = owed(child);
    assert!((4096..=8192).contains(&of_child), "{of_child}");
    assert_eq!(owed(top), 0);
    sim.engine.put(child);
    assert_eq!(owed(top), of_child);
}
