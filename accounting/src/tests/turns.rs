//! Turns come in the order in which they were asked for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::vec::Vec;

use crate::Turns;

#[test]
fn who_waits_is_served_in_the_order_of_coming() {
    const THREADS: u32 = 40;
    let turns = Turns::new();
    let served = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let first = turns.wait();
        for number in 0..THREADS {
            let (turns, served) = (&turns, &served);
            scope.spawn(move || {
                let _turn = turns.wait();
                served.lock().expect("no panic").push(number);
            });
            while turns.len() != number + 2 {
                thread::yield_now();
            }
        }
        // Whoever takes it again comes after all of them.
        drop(first);
        let _last = turns.wait();
        assert_eq!(served.lock().expect("no panic").len(), THREADS as usize);
    });
    let served = served.into_inner().expect("no panic");
    assert!(served.is_sorted(), "{served:?}");
    assert!(turns.is_empty());
}

#[test]
fn one_at_a_time_has_its_turn() {
    let turns = Turns::new();
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let _turn = turns.wait();
                    // Two steps: what comes in between is lost.
                    let before = count.load(Ordering::Relaxed);
                    count.store(before + 1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 16_000);
}

#[test]
fn a_child_of_a_fork_is_not_behind_those_who_waited_in_its_parent() {
    let turns = Turns::new();
    core::mem::forget(turns.wait());
    // As the copy of one who waited.
    turns.draw();
    // SAFETY: the turn is ours, and was forgotten; nobody else is there.
    unsafe { turns.force_end_alone() };
    assert!(turns.is_empty());
    drop(turns.wait());
}
