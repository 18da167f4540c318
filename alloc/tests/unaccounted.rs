//! What is left of groups in a build without accounting: only in such a build, by `ci/measuring.sh`.

#![cfg(memcg_unaccounted)]

use memcg::{Group, drain, self_stat};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

#[test]
fn groups_are_entered_and_nothing_is_theirs() {
    let group = Group::root().builder("nobody's").max(1 << 10).build().expect("a fresh name");
    let tags = self_stat().tags;
    let mut kept: Vec<Vec<u8>> = Vec::new();
    group.run(|| {
        assert_eq!(Group::current(), group);
        // Far over the limit, small and large, grown and shrunk.
        kept.extend((1..1000).map(|size| vec![1; size]));
        kept.extend((1..100).map(|pages| vec![1; pages * 4096]));
        kept.iter_mut().for_each(|bytes| bytes.reserve_exact(100_000));
        kept.iter_mut().for_each(Vec::shrink_to_fit);
    });
    assert!(kept.iter().all(|bytes| Group::of(bytes.as_ptr()).is_none()));
    drop(kept);
    drain();
    assert_eq!((group.usage(), group.peak(), group.events().max), (0, 0, 0));
    assert_eq!(self_stat().tags, tags, "no span has a vector of tags");
    memcg::check();
}

#[test]
#[cfg(memcg_counting)]
fn pairs_and_scopes_share_nothing() {
    let group = Group::root().create("alone").expect("a fresh name");
    let mut least = u64::MAX;
    // The worker and the other test count too, now and then.
    for _ in 0..100 {
        let before = memcg::counts().read_modify_writes;
        for _ in 0..100 {
            let _entered = group.enter();
            drop(std::hint::black_box(Box::new([0_u64; 8])));
        }
        least = least.min(memcg::counts().read_modify_writes - before);
    }
    assert_eq!(least, 0);
}
