//! `Lru`: parts by group, what a walk does, a shrinker on top, threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use memcg::{
    Count, Group, Lru, LruNode, LruStatus, Registration, Scan, ShrinkControl, Shrinker,
    ShrinkerBuilder,
};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn numbers(lru: &Lru<u32>, group: &Group) -> Vec<u32> {
    let mut seen = Vec::new();
    lru.walk(group, usize::MAX, |node| {
        seen.push(**node);
        LruStatus::Removed
    });
    seen
}

#[test]
fn a_node_is_in_the_part_of_the_group_that_it_is_charged_to() {
    let a = Group::root().create("lru-part-a").expect("made");
    let b = Group::root().create("lru-part-b").expect("made");
    let lru = Lru::new();
    let in_a = a.run(|| LruNode::new(1));
    let in_b = b.run(|| LruNode::new(2));
    let in_root = LruNode::new(3);
    // Who adds does not matter.
    assert!(b.run(|| lru.add(&in_a)));
    assert!(lru.add(&in_b));
    assert!(lru.add(&in_root));
    assert!(!lru.add(&in_a), "it is there already");
    assert_eq!([&a, &b, &Group::root()].map(|group| lru.count(group)), [1, 1, 1]);
    assert!(lru.remove(&in_a));
    assert!(!lru.remove(&in_a) && !in_a.is_linked());
    assert_eq!(numbers(&lru, &b), [2]);
    assert_eq!(numbers(&lru, &Group::root()), [3]);
    lru.check();
}

#[test]
fn a_walk_goes_on_where_the_last_one_ended_and_does_what_it_is_told() {
    let group = Group::root().create("lru-walk").expect("made");
    let lru = Lru::new();
    let nodes: Vec<_> = group.run(|| (0..6).map(LruNode::new).collect());
    nodes.iter().for_each(|node| assert!(lru.add(node)));
    let mut seen = Vec::new();
    let mut retried = false;
    let removed = lru.walk(&group, 6, |node| {
        seen.push(**node);
        match **node {
            0 => LruStatus::Removed,
            1 => LruStatus::Rotate,
            2 if !retried => {
                retried = true;
                LruStatus::Retry
            }
            2 | 3 => LruStatus::Skip,
            _ => LruStatus::Stop,
        }
    });
    assert_eq!((removed, &seen[..]), (1, &[0, 1, 2, 2, 3, 4][..]));
    assert!(lru.touch(&nodes[2]));
    assert!(!lru.touch(&nodes[0]), "it is not there");
    assert_eq!(lru.try_walk(&group, 1, |_| LruStatus::Removed), 1);
    assert!(!nodes[5].is_linked(), "the hand was at 5");
    assert_eq!(lru.count(&group), 4);
    lru.check();
}

#[test]
fn a_visitor_may_use_the_list_and_panic() {
    let lru = Lru::new();
    let nodes: Vec<_> = (0..4).map(LruNode::new).collect();
    nodes.iter().for_each(|node| assert!(lru.add(node)));
    let root = Group::root();
    lru.walk(&root, 2, |node| {
        assert!(lru.remove(node));
        assert!(lru.add(&LruNode::new(**node + 10)));
        LruStatus::Removed
    });
    let walk = || lru.walk(&root, 1, |_| panic!("told to"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(walk)).is_err());
    lru.check();
    let mut left = numbers(&lru, &root);
    left.sort_unstable();
    assert_eq!(left, [2, 3, 10, 11]);
}

#[test]
fn parts_go_to_the_parent_with_their_group() {
    let parent = Group::root().create("lru-parent").expect("made");
    let child = parent.create("child").expect("made");
    let lru = Lru::new();
    let nodes: Vec<_> = child.run(|| (0..100).map(LruNode::new).collect());
    nodes.iter().for_each(|node| assert!(lru.add(node)));
    drop(child);
    assert_eq!(lru.count(&parent), 100);
    assert!(nodes.iter().step_by(2).all(|node| lru.remove(node)));
    assert_eq!(numbers(&lru, &parent).len(), 50);
    assert!(lru.add(&nodes[0]), "a late one");
    assert_eq!(lru.count(&parent), 1);
    lru.check();
}

#[test]
fn a_list_has_counts_and_drops_them() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            LIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let group = Group::root().create("lru-drop").expect("made");
    let lru = Lru::new();
    for _ in 0..100 {
        LIVE.fetch_add(1, Ordering::Relaxed);
        assert!(lru.add(&group.run(|| LruNode::new(Counted))));
    }
    assert_eq!(lru.walk(&group, 10, |_| LruStatus::Removed), 10);
    assert_eq!(LIVE.load(Ordering::Relaxed), 90);
    drop(lru);
    assert_eq!(LIVE.load(Ordering::Relaxed), 0);
}

/// A cache of pages as a user would write it: a list, and a shrinker that walks it.
struct Pages {
    lru: Lru<[u8; 2000]>,
    registration: OnceLock<Registration>,
}

impl Shrinker for Pages {
    fn count(&self, control: &ShrinkControl<'_>) -> Count {
        match self.lru.count(control.group()) {
            0 => Count::Empty,
            nr => Count::Objects(nr),
        }
    }

    fn scan(&self, control: &mut ShrinkControl<'_>) -> Scan {
        let nr = control.nr_to_scan();
        let second_chance = |node: &LruNode<[u8; 2000]>| {
            if node.take_used() { LruStatus::Rotate } else { LruStatus::Removed }
        };
        Scan::Freed(self.lru.try_walk(control.group(), nr, second_chance))
    }
}

#[test]
fn a_shrinker_on_a_list_makes_room() {
    const MAX: u64 = 1 << 20;
    let pages = Arc::new(Pages { lru: Lru::new(), registration: OnceLock::new() });
    let registration = ShrinkerBuilder::new("pages").register(pages.clone());
    pages.lru.served_by(&registration);
    assert!(pages.registration.set(registration).is_ok());
    let tenant = Group::root().builder("lru-tenant").max(MAX).build().expect("made");
    let hot = tenant.run(|| LruNode::new([1; 2000]));
    assert!(pages.lru.add(&hot));
    for _ in 0..2_000 {
        hot.mark_used();
        // The worker makes room; where it is late the allocation is refused, not the process.
        let fits = tenant
            .run(|| memcg::fallible(|| Vec::<[u8; 2000]>::new().try_reserve_exact(2)).is_ok());
        if fits {
            assert!(pages.lru.add(&tenant.run(|| LruNode::new([0; 2000]))));
        }
        assert!(tenant.usage() <= MAX);
    }
    assert!(hot.is_linked(), "what is used stays");
    assert!(pages.lru.count(&tenant) > 50);
}

#[test]
fn threads_add_remove_touch_and_walk_while_groups_come_and_go() {
    let rounds = if cfg!(debug_assertions) { 300 } else { 2_000 };
    let top = Group::root().create("lru-threads").expect("made");
    let lru = Lru::<usize>::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lru, top, stop) = (&lru, &top, &stop);
        let changers: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let name = format!("g{thread}-{round}");
                        let group = top.create(&name).expect("made");
                        let nodes: Vec<_> = group.run(|| (0..16).map(LruNode::new).collect());
                        for node in &nodes {
                            assert!(lru.add(node));
                        }
                        lru.touch(&nodes[round % 16]);
                        drop(group);
                        for node in nodes.iter().skip(round % 3) {
                            lru.remove(node);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                lru.walk(top, 20, |node| {
                    if **node % 2 == 0 { LruStatus::Removed } else { LruStatus::Rotate }
                });
                lru.check();
            }
        });
        let failed = changers.into_iter().filter_map(|changer| changer.join().err()).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
    lru.walk(&top, usize::MAX, |_| LruStatus::Removed);
    assert_eq!(lru.count(&top), 0);
    lru.check();
    memcg::drain();
    assert_eq!(top.usage(), 0);
}
