//! A tenant that hammers its limit waits for what its cuts take of other tenants.

mod support;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{Watchdog, alone};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn refuse(full: &Group) {
    let mut buffer = Vec::<u8>::new();
    full.run(|| memcg::fallible(|| buffer.try_reserve_exact(2 << 10)))
        .expect_err("the group is full");
}

/// What is not owed: see `budget.rs` of the library. The longest wait there is one of a second.
const ALLOWANCE_US: u64 = 10_000;
const LONGEST_US: u64 = 900_000;

#[test]
fn a_tenant_that_hammers_its_limit_waits_19_times_what_it_takes_of_others() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a budget");
    let full = Group::root().builder("full").max(4 << 10).build().expect("a fresh name");
    full.set_deadline(Duration::from_secs(1), Duration::from_secs(10));
    let held = full.run(|| vec![0_u8; 3 << 10]);
    let other = Group::root().create("other").expect("a fresh name");
    let stop = AtomicBool::new(false);
    let taken = thread::scope(|scope| {
        scope.spawn(|| {
            other.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    black_box(Box::new([0_u64; 8]));
                }
            });
        });
        let (start, mut owed, mut taken) = (Instant::now(), 0, 0);
        let mut before = memcg::self_stat().stopped_us;
        for _ in 0..20 {
            refuse(&full);
            let elapsed = start.elapsed() + Duration::from_micros(ALLOWANCE_US);
            assert!(elapsed >= Duration::from_micros(owed));
            let now = memcg::self_stat().stopped_us;
            owed += ((now - before) * 19).min(LONGEST_US);
            taken += now - before;
            before = now;
        }
        stop.store(true, Ordering::Relaxed);
        taken
    });
    assert!(taken > 0, "the other tenant's thread is stopped by each");
    assert_eq!(full.events().oom, 20, "each refusal comes after a cut");
    drop(held);
}
