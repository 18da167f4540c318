//! A peak of threads is not paid for ever: their records' pages go back.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Enough that what each leaves would show.
const THREADS: usize = 200;

#[test]
fn the_records_of_threads_that_ended_give_their_pages_back() {
    let group = Group::root().create("peak").expect("a fresh name");
    let before = memcg::self_stat();
    let (up, down) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let peak = thread::scope(|scope| {
        for _ in 0..THREADS {
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, || {
                    let object = group.run(|| Box::new([0_u8; 64]));
                    up.wait();
                    drop(object);
                    down.wait();
                })
                .expect("a thread");
        }
        up.wait();
        let peak = memcg::self_stat();
        assert!(peak.threads >= THREADS as u64);
        assert!(peak.metadata > before.metadata + THREADS as u64 * 64 * 1024, "a record each");
        down.wait();
        peak.metadata
    });
    // By the keeper alone, in its own time. Spans, and what checks keep beside them, have a part of it, and stay.
    let start = Instant::now();
    let few = |metadata| metadata < u64::midpoint(before.metadata, peak);
    while !few(memcg::self_stat().metadata) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", memcg::self_stat());
        thread::sleep(Duration::from_millis(20));
    }
    // They are as good as new.
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| drop(group.run(|| vec![1_u8; 100])));
        }
    });
    memcg::check();
    memcg::drain();
    assert_eq!(group.usage(), 0);
}
