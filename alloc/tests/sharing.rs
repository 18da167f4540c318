//! Threads that free each other's neighbours: what they get next does not share a cache line.

mod support;

use std::alloc::{Layout, alloc, dealloc};
use std::sync::Barrier;
use std::thread;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const LINE: usize = 64;

/// What nothing else that a new thread does allocates.
type Small = [u64; 5];

/// A small object by its address, to be freed by whoever has it.
fn small() -> usize {
    // SAFETY: the layout is not empty.
    unsafe { alloc(Layout::new::<Small>()) }.expose_provenance()
}

fn give_back(object: usize) {
    // SAFETY: `small` made it, and whoever calls has it.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(object), Layout::new::<Small>()) };
}

/// Hoard's `cache-scratch`: each thread begins with an object that lies beside the others'.
#[test]
fn what_another_thread_made_is_not_the_next_object() {
    let _running = support::running();
    // Two neighbours, whatever was cached.
    let many: Vec<usize> = (0..1000).map(|_| small()).collect();
    let pair = many.windows(2).find(|two| two[0] / LINE == two[1] / LINE).expect("neighbours");
    let gifts = [pair[0], pair[1]];
    let barrier = Barrier::new(2);
    let own = thread::scope(|scope| {
        let threads = gifts.map(|gift| {
            let barrier = &barrier;
            scope.spawn(move || {
                give_back(gift);
                let own = small();
                barrier.wait();
                own
            })
        });
        threads.map(|thread| thread.join().expect("no panic"))
    });
    assert_ne!(own[0] / LINE, own[1] / LINE, "{own:x?} of {gifts:x?}");
    own.into_iter().for_each(give_back);
    many.into_iter().filter(|object| !gifts.contains(object)).for_each(give_back);
}
