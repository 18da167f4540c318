//! After a burst the memory goes back, also from between the objects that stay: at once by `purge`, and with time.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{Bare, PATIENCE, Sets, alone, fork_and};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const PAGE: usize = 4096;
const BURST: usize = 12 << 20;
/// Sizes of objects: many on a page, across pages, of many pages.
const SIZES: [usize; 8] = [16, 128, 1000, 3500, 8192, 14_000, 32_768, 65_536];

static ONES: [u8; 65_536] = [1; 65_536];
static ZEROS: [u8; 65_536] = [0; 65_536];

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with("Rss:")).expect("the kernel names it");
    let kib: usize = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib << 10
}

/// What is left of a burst: an object in each so many.
struct Burst {
    before: usize,
    size: usize,
    kept: Vec<Box<[u8]>>,
}

impl Burst {
    fn of(size: usize, every: usize) -> Self {
        let nr = BURST / size;
        let mut kept = Vec::with_capacity(nr / every + 1);
        let mut objects = Vec::with_capacity(nr);
        // The table is no part of it.
        objects.spare_capacity_mut().iter_mut().for_each(|slot| {
            slot.write(Box::default());
        });
        // Of what was before nothing is left to be used again.
        memcg::purge();
        let before = resident();
        objects.extend((0..nr).map(|_| vec![1_u8; size].into_boxed_slice()));
        assert!(resident() > before + BURST / 4 * 3, "the burst was there");
        for (index, object) in objects.drain(..).enumerate() {
            if index % every == every / 2 {
                kept.push(object);
            }
        }
        Self { before, size, kept }
    }

    /// What may be resident of it: the pages that the objects that stay are on, with their tags', and a little.
    fn most(&self) -> usize {
        let pages = self.size.div_ceil(PAGE) + usize::from(!PAGE.is_multiple_of(self.size)) + 1;
        self.before + self.kept.len() * pages * PAGE + (3 << 20)
    }

    fn is_whole(&self) -> bool {
        self.kept.iter().all(|object| **object == ONES[..self.size])
    }
}

/// Nobody else allocates meanwhile, and a checked build has more to keep of each object.
fn looks_at_memory() -> bool {
    !cfg!(feature = "debug-checks") && !cfg!(feature = "hardened")
}

#[test]
fn purge_gives_the_pages_between_objects_back() {
    let _alone = alone();
    for in_group in [false, true] {
        let group = Group::root().create("purged");
        let group = if in_group { group.expect("fresh") } else { Group::root() };
        for size in SIZES {
            group.run(|| {
                let burst = Burst::of(size, ((64 << 10) / size).max(2));
                let returned = memcg::self_stat().returned;
                memcg::purge();
                let (now, most) = (resident(), burst.most());
                assert!(memcg::self_stat().returned > returned + BURST as u64 / 4);
                assert!(now < most || !looks_at_memory(), "{size} bytes: {now} of {most}");
                assert!(burst.is_whole(), "{size} bytes");
                memcg::check();
                // What went back is served again, also where it must be zeros.
                let again = Burst::of(size, 3);
                let zeros: Vec<_> = (0..BURST / size / 2).map(|_| vec![0_u8; size]).collect();
                assert!(zeros.iter().all(|object| *object == ZEROS[..size]), "{size} bytes");
                assert!(burst.is_whole() && again.is_whole(), "{size} bytes");
                memcg::check();
            });
        }
        memcg::purge();
        let returned = memcg::self_stat().returned;
        assert!(returned < BURST as u64 / 4, "what is empty went back whole: {returned}");
    }
}

#[test]
fn with_time_they_go_back_by_themselves() {
    let _alone = alone();
    let group = Group::root().create("with time").expect("fresh");
    for size in [128, 3500, 32_768] {
        let burst = group.run(|| Burst::of(size, ((64 << 10) / size).max(2)));
        let start = Instant::now();
        while looks_at_memory() && resident() > burst.most() {
            assert!(start.elapsed() < PATIENCE, "{size} bytes: {} of {}", resident(), burst.most());
            thread::sleep(Duration::from_millis(50));
        }
        assert!(burst.is_whole());
    }
    memcg::check();
}

#[test]
fn a_fork_meanwhile_leaves_the_child_all_spans() {
    let _alone = alone();
    let ends = AtomicBool::new(false);
    let purges = || {
        while !ends.load(Ordering::SeqCst) {
            let burst = Burst::of(3500, 20);
            memcg::purge();
            assert!(burst.is_whole());
        }
    };
    let _thread = Bare::new(&purges);
    let _ends = Sets(&ends);
    for _ in 0..10 {
        fork_and(|| {
            memcg::check();
            let kept: Vec<_> = (0..1000).map(|_| vec![1_u8; 3500]).collect();
            memcg::purge();
            assert!(kept.iter().all(|object| *object == ONES[..3500]));
            memcg::check();
        });
    }
}
