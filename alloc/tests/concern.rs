//! A cut stops those who may have something of the group that it is for, and passes the others by.

mod support;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Barrier;
use std::thread;

use memcg::Group;
use support::{Watchdog, alone};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const OBJECT: Layout = Layout::new::<[u64; 32]>();

/// An object of `group`, if its limit lets it be.
fn take(group: &Group) -> Option<usize> {
    // SAFETY: the layout is not empty.
    let object = group.run(|| memcg::fallible(|| unsafe { ALLOC.alloc(OBJECT) }));
    (!object.is_null()).then(|| object.expose_provenance())
}

fn give(object: usize) {
    // SAFETY: `take` answered it, with this layout, and it is given once.
    unsafe { ALLOC.dealloc(std::ptr::with_exposed_provenance_mut(object), OBJECT) }
}

/// What may come between the last time that a thread ran and a cut: each leaves the thread alone for a while.
const BETWEEN: [fn(); 4] =
    [|| (), || assert_ne!(memcg::self_stat().cached, 0), memcg::drain, || memcg::check()];

#[test]
fn a_cut_finds_what_threads_cache_whatever_stopped_them_before() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a cut");
    const THREADS: usize = 8;
    // Whole objects for each thread, and no byte more.
    let full = Group::root().builder("full").max((THREADS * OBJECT.size()) as u64).build();
    let full = full.expect("a fresh name");
    let other = Group::root().create("other").expect("a fresh name");
    let (freed, seen) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..BETWEEN.len() {
                    give(take(&full).expect("there is room for one each"));
                    // On top of it lies more than a thread looks at between two looks.
                    let others: Vec<_> = (0..400).map(|_| take(&other)).collect();
                    others.into_iter().flatten().for_each(give);
                    freed.wait();
                    seen.wait();
                }
            });
        }
        for between in BETWEEN {
            freed.wait();
            between();
            let objects: Vec<_> = (0..THREADS).map(|_| take(&full)).collect();
            let refused = objects.iter().filter(|object| object.is_none()).count();
            assert_eq!(refused, 0, "of {THREADS} that fit");
            assert_eq!(take(&full), None, "the limit holds");
            objects.into_iter().flatten().for_each(give);
            seen.wait();
        }
    });
    assert_eq!(memcg::self_stat().given_up, 0);
}
