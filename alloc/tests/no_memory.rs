//! The end of the address space soon after the first group: the allocator's own threads do without what they do not
//! get.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{case, pass};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// What the process may take beyond what it has.
const ROOM: u64 = 64 << 20;

fn limit_address_space() {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').next().and_then(|word| word.parse::<u64>().ok());
    let most = pages.expect("a number") * 4096 + ROOM;
    let limits = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limits` is valid for reading.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limits) }, 0);
}

/// Asks for more than there is, again and again; answers how often it was refused.
fn fill(group: &Group, held: &mut [Vec<u8>]) -> usize {
    let empty = held.iter_mut().filter(|value| value.capacity() == 0);
    group.run(|| empty.filter_map(|value| value.try_reserve_exact(100_000).err()).count())
}

/// The keeper ticks, and a worker comes, while there is no memory.
fn own_threads() {
    let group = Group::root().builder("g").max(1_u64 << 40).build().expect("fresh");
    let mut held = [const { Vec::new() }; 1000];
    limit_address_space();
    assert!(fill(&group, &mut held) > 0, "there is an end");
    let small = Group::root().builder("small").max(1 << 20).build();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        fill(&group, &mut held);
        if let Ok(small) = &small {
            // Met at the limit: the worker is asked.
            let mut value = Vec::<u8>::new();
            assert!(small.run(|| value.try_reserve_exact(2 << 20)).is_err());
        }
        thread::sleep(Duration::from_millis(5));
    }
    memcg::drain();
    drop(held);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

const TEST: &str = "without_memory_the_allocators_own_threads_do_without";

#[test]
fn without_memory_the_allocators_own_threads_do_without() {
    match case() {
        None => pass(TEST, "soon"),
        Some(_) => own_threads(),
    }
}
