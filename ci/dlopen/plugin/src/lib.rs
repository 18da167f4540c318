//! A library that brings memcg along as its own allocator.

use std::sync::Mutex;
use std::thread;

use memcg::{Cache, Group};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

static KEPT: Mutex<Vec<(Group, Vec<u8>)>> = Mutex::new(Vec::new());

/// Does everything in a limited group, on `threads` threads of its own; 0 if all of it came out right.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_run(seed: u32, threads: u32) -> i32 {
    let run = || {
        assert!(memcg::is_installed());
        let group =
            Group::root().builder(&format!("plugin {seed}")).max(1 << 20).build().expect("fresh");
        let cache = Cache::<u64, [u8; 500]>::direct("plugin");
        thread::scope(|scope| {
            for thread in 0..threads {
                let (group, cache) = (&group, &cache);
                scope.spawn(move || {
                    let _scope = group.enter();
                    for key in 0..3000_u64 {
                        let _ = cache.insert(key << 8 | u64::from(thread), [1; 500]);
                        assert!(group.usage() <= 1 << 20);
                    }
                });
            }
        });
        assert!(cache.stat().evictions > 0);
        assert!(group.run(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err(), "the limit holds");
        drop(cache);
        memcg::drain();
        assert_eq!(group.usage(), 0);
        memcg::check();
    };
    i32::from(std::panic::catch_unwind(run).is_err())
}

/// Keeps some memory in a group of the calling thread's.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_keep(seed: u32) -> i32 {
    let run = || {
        let group = Group::root().create(&format!("kept {seed}")).expect("fresh");
        let value = group.run(|| vec![1; 10_000]);
        assert!(group.usage() >= 10_000);
        memcg::unaccounted(|| KEPT.lock().expect("not poisoned").push((group, value)));
    };
    i32::from(std::panic::catch_unwind(run).is_err())
}

/// Gives back what was kept, on whichever thread.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_give_back() -> i32 {
    let run = || {
        for (group, value) in KEPT.lock().expect("not poisoned").drain(..) {
            drop(value);
            memcg::drain();
            assert_eq!(group.usage(), 0);
        }
        memcg::check();
    };
    i32::from(std::panic::catch_unwind(run).is_err())
}
