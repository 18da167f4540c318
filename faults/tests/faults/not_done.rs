//! A barrier that says that it was done, and was not: the protocol of drains fails, which shows that the tests of drains would
//! notice if it were wrong.
//!
//! Only where the compiler has optimised: else so much lies between the owner's store and its load that the one is always
//! done before the other.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;

use crate::seam;
use crate::support::{Random, Raw, Sets, case, pass, rerun};

/// Owners whose stores are late, for they come after others that miss the cache; a drainer that never stops.
fn drain_hard(barriers: bool) {
    const WORDS: usize = 4 << 20;
    let group = Group::root().create("drained").expect("memory");
    if !barriers {
        seam::pretend_barriers();
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        let (group, stop) = (&group, &stop);
        scope.spawn(move || {
            let mut far = vec![0_u64; WORDS];
            let _scope = group.enter();
            let mut random = Random::new(1);
            let mut held: [Option<Raw>; 8] = [const { None }; 8];
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..4 {
                    far[random.below(WORDS)] = 1;
                }
                // What is live is its payer's: a drain that takes it for a free one takes its tag.
                let object = Raw::new(64);
                let before = std::mem::replace(&mut held[random.below(8)], object);
                if let Some(before) = before {
                    assert_eq!(Group::of(before.as_ptr()).as_ref(), Some(group));
                }
            }
        });
        let start = Instant::now();
        let mut random = Random::new(2);
        while start.elapsed() < Duration::from_secs(1) {
            memcg::drain();
            // The owner's first operation after a drain fences, so that it is the later ones that are to be met.
            for _ in 0..random.below(2000) {
                std::hint::spin_loop();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    memcg::drain();
    assert_eq!(group.usage(), 0, "everything is freed");
    memcg::check();
}

/// How often the protocol without its barrier may pass before that says something.
const TRIES: u32 = 12;

#[test]
fn without_its_barrier_the_protocol_fails() {
    const TEST: &str = "not_done::without_its_barrier_the_protocol_fails";
    match case().as_deref() {
        Some("done") => return drain_hard(true),
        Some("not done") => return drain_hard(false),
        _ => {}
    }
    // The same with the barrier does not.
    pass(TEST, "done");
    if thread::available_parallelism().map_or(1, |n| n.get()) < 2 {
        // One CPU sees its own stores.
        return;
    }
    for attempt in 1..=TRIES {
        let mut command = rerun(TEST, "not done");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a child");
        // It panics, crashes or hangs: all three are failures.
        let start = Instant::now();
        let status = loop {
            match child.try_wait().expect("our own child") {
                Some(status) => break Some(status),
                None if start.elapsed() > Duration::from_secs(20) => break None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
        if status.is_none_or(|status| !status.success()) {
            println!("failed at attempt {attempt}: {status:?}");
            return;
        }
    }
    panic!("{TRIES} runs without the barrier, and nothing was noticed");
}
