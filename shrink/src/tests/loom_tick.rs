//! Model: something is left for the keeper while a tick begins: it is seen, or another tick is wanted.
//!
//! The shape of `Crew::want_ticks` and `Crew::begin_tick`, with their orderings. Each test with
//! `should_panic` leaves one fence out and shows that the model notices.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

/// What a model leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    WantersFence,
    KeepersFence,
}

struct Keeper {
    wants_tick: AtomicBool,
    /// What ticks are for.
    garbage: AtomicU32,
    woken: AtomicU32,
    left_out: Option<LeftOut>,
}

impl Keeper {
    fn fence_unless(&self, site: LeftOut) {
        if self.left_out != Some(site) {
            fence(Ordering::SeqCst);
        }
    }

    fn want_ticks(&self) {
        self.fence_unless(LeftOut::WantersFence);
        if !self.wants_tick.load(Ordering::Relaxed) {
            self.wants_tick.store(true, Ordering::Relaxed);
            self.woken.fetch_add(1, Ordering::Release);
        }
    }

    /// A tick that was wanted; answers what it found.
    fn tick(&self) -> u32 {
        self.wants_tick.store(false, Ordering::Relaxed);
        self.fence_unless(LeftOut::KeepersFence);
        self.garbage.load(Ordering::Relaxed)
    }
}

fn model(left_out: Option<LeftOut>) {
    loom::model(move || {
        let keeper = Arc::new(Keeper {
            wants_tick: AtomicBool::new(true),
            garbage: AtomicU32::new(0),
            woken: AtomicU32::new(0),
            left_out,
        });
        let thread = {
            let keeper = keeper.clone();
            thread::spawn(move || {
                // Relaxed: the fences are all that orders it.
                keeper.garbage.store(1, Ordering::Relaxed);
                keeper.want_ticks();
            })
        };
        let found = keeper.tick();
        thread.join().expect("no panic");
        let wanted = keeper.wants_tick.load(Ordering::Relaxed);
        assert!(found == 1 || wanted, "garbage that no tick will see");
        assert_eq!(keeper.woken.load(Ordering::Acquire) == 1, wanted, "who wants a tick wakes");
    });
}

#[test]
fn loom_tick_nothing_is_left_without_a_tick() {
    model(None);
}

#[test]
#[should_panic(expected = "no tick will see")]
fn loom_tick_needs_the_wanters_fence() {
    model(Some(LeftOut::WantersFence));
}

#[test]
#[should_panic(expected = "no tick will see")]
fn loom_tick_needs_the_keepers_fence() {
    model(Some(LeftOut::KeepersFence));
}
