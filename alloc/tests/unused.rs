//! A process that uses no groups pays no memory for them, and has no thread of ours.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{Random, thread_names};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[test]
fn without_groups_there_are_no_tags_and_no_threads() {
    thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut held: Vec<Vec<u8>> = Vec::new();
                for _ in 0..5_000 {
                    let most = if random.below(50) == 0 { 300_000 } else { 3000 };
                    held.push(vec![1; random.below(most)]);
                    if held.len() > 100 {
                        held.swap_remove(random.below(held.len()));
                    }
                }
            });
        }
    });
    // What one may call without a group.
    memcg::drain();
    memcg::purge();
    memcg::check();
    memcg::unaccounted(|| drop(vec![1_u8; 1000]));
    assert_eq!(Group::current(), Group::root());
    assert_eq!(Group::root().stat().usage, 0);
    let value = Box::new(1);
    assert_eq!(Group::of(&raw const *value), None);
    assert!(Group::lookup("/nobody").is_none());

    let stat = memcg::self_stat();
    assert_eq!(stat.tags, 0, "{stat:?}");
    let names = thread_names();
    assert!(names.iter().all(|name| !name.starts_with("memcg")), "{names:?}");

    // The first group starts them.
    let group = Group::root().create("first").expect("fresh");
    let object = group.run(|| Box::new([0_u8; 100]));
    assert_eq!(Group::of(&raw const *object), Some(group));
    assert!(memcg::self_stat().tags > 0);
    // A thread takes its name itself, when it runs.
    let start = Instant::now();
    while !thread_names().iter().any(|name| name == "memcg-keeper") {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", thread_names());
        thread::sleep(Duration::from_millis(1));
    }
}
