//! What the environment tells jemalloc counts; what it does not say is as memcg has it.

mod support;

use std::ffi::CStr;

use support::{case, rerun, run};
use tikv_jemalloc_sys as jemalloc;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// A setting of jemalloc's, which is of the type `T`.
fn read<T: Default>(name: &CStr) -> T {
    let (mut value, mut size) = (T::default(), size_of::<T>());
    let place = (&raw mut value).cast();
    let null = std::ptr::null_mut();
    // SAFETY: the place is as large as it is said to be; nothing is written.
    let answer = unsafe { jemalloc::mallctl(name.as_ptr(), place, &raw mut size, null, 0) };
    assert_eq!((answer, size), (0, size_of::<T>()), "{name:?}");
    value
}

/// Of new arenas and the first one: dirty, muzzy; and whether there are thread caches.
type Settings = ([isize; 2], [isize; 2], bool);

fn settings() -> Settings {
    (
        [read(c"arenas.dirty_decay_ms"), read(c"arena.0.dirty_decay_ms")],
        [read(c"arenas.muzzy_decay_ms"), read(c"arena.0.muzzy_decay_ms")],
        read(c"opt.tcache"),
    )
}

const CASES: [(&str, Settings); 6] = [
    ("", ([1000; 2], [0; 2], false)),
    ("dirty_decay_ms:5000", ([5000; 2], [0; 2], false)),
    ("muzzy_decay_ms:70", ([1000; 2], [70; 2], false)),
    // As jemalloc itself has it; nobody else would have said so.
    ("narenas:2,dirty_decay_ms:10000,muzzy_decay_ms:0", ([10_000; 2], [0; 2], false)),
    ("dirty_decay_ms:-1,tcache:true", ([-1; 2], [0; 2], true)),
    // Named by another option only.
    ("stats_print_opts:dirty_decay_ms", ([1000; 2], [0; 2], false)),
];

const TEST: &str = "what_the_environment_sets_stays";

#[test]
fn what_the_environment_sets_stays() {
    if let Some(case) = case() {
        let (_, expected) = CASES.iter().find(|(text, _)| *text == case).expect("a case");
        return assert_eq!(settings(), *expected, "{case:?}");
    }
    for (text, _) in CASES {
        let ended = run(rerun(TEST, text).env("_RJEM_MALLOC_CONF", text));
        assert!(ended.status.success(), "{text:?}: {ended:#?}");
    }
}
