//! The kernel's own tests of memory cgroups, in one process: those of `test_memcontrol.c` and
//! `test_kmem.c` in `tools/testing/selftests/cgroup` that can apply, by their names, with their
//! numbers, and with their tolerances or tighter ones.
//!
//! | there | here |
//! |---|---|
//! | a cgroup | a group |
//! | a task | a thread |
//! | page cache, dentries | objects in a [`Cache`](memcg::Cache) |
//! | anonymous memory without swap | pinned objects |
//! | the OOM killer | a refused allocation |
//!
//! Which tests of the kernel's cannot apply, and why, is in `docs/cgroup-v2.md`.

mod kmem;
mod memcontrol;
mod protection;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cache, Group, GroupBuilder, OverLimit};
use support::{Raw, Sets};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 4096;

/// A group at the top. Its allocations wait for as long as a loaded machine may need: none of these
/// tests is about time.
pub(crate) fn group(name: &str) -> Group {
    patient(Group::root().builder(name))
}

pub(crate) fn patient(builder: GroupBuilder) -> Group {
    let group = builder.build().expect("a fresh name");
    group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    group
}

/// Whether `value` is within `percent` of `expected`. The kernel's `values_close` takes the per cent
/// of the sum of both, which is twice as much.
#[track_caller]
pub(crate) fn assert_close(what: &str, value: u64, expected: u64, percent: u64) {
    let off = value.abs_diff(expected);
    assert!(off * 100 <= expected * percent, "{what}: {value} bytes, not about {expected}");
}

/// Waits for something that a loaded machine may take its time for.
#[track_caller]
pub(crate) fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `work` in a thread of its own, which is gone afterwards: what it cached is, too.
pub(crate) fn task<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(answer) => answer,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

// ---- anonymous memory ---------------------------------------------------------------------------

/// Pinned memory of a group: pages that nothing can take away.
#[derive(Debug)]
pub(crate) struct Pinned {
    pages: Vec<Raw>,
    /// Whether all of it was served.
    pub(crate) complete: bool,
}

impl Pinned {
    /// Allocates `bytes`, page by page, until a page is refused.
    pub(crate) fn new(group: &Group, bytes: u64) -> Self {
        let [nr, page] = [bytes / PAGE, PAGE].map(|n| usize::try_from(n).expect("64-bit"));
        let mut pages = Vec::with_capacity(nr);
        while pages.len() < nr {
            let Some(page) = Raw::in_group(group, page) else { break };
            pages.push(page);
        }
        let complete = pages.len() == nr;
        Self { pages, complete }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Whether every page is charged to `group`.
    pub(crate) fn is_charged_to(&self, group: &Group) -> bool {
        self.pages.iter().all(|page| Group::of(page.as_ptr()).as_ref() == Some(group))
    }
}

// ---- page cache ---------------------------------------------------------------------------------

/// Page cache: an entry takes one page.
pub(crate) struct PageCache {
    pub(crate) cache: Cache<u64, [u8; 4000]>,
    next: AtomicU64,
}

impl PageCache {
    pub(crate) fn new(name: &str) -> Self {
        Self { cache: Cache::direct(name), next: AtomicU64::new(0) }
    }

    /// Reads `bytes` of a file that nobody has read, page by page.
    pub(crate) fn read(&self, group: &Group, bytes: u64) -> Result<(), OverLimit> {
        for _ in 0..bytes / PAGE {
            let key = self.next.fetch_add(1, Ordering::Relaxed);
            group.run(|| self.cache.insert(key, [1; 4000])).map(drop)?;
        }
        Ok(())
    }

    /// What is there of exactly `group`.
    pub(crate) fn bytes_in(&self, group: &Group) -> u64 {
        self.cache.len_in(group) as u64 * PAGE
    }
}

// ---- looking on ---------------------------------------------------------------------------------

/// Runs `work` while another thread samples the usage of `group`; answers the highest sample.
pub(crate) fn sampled<R>(group: &Group, work: impl FnOnce() -> R) -> (R, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut highest = 0;
            while !over.load(Ordering::Relaxed) {
                highest = group.usage().max(highest);
                thread::sleep(Duration::from_micros(100));
            }
            highest
        });
        let answer = {
            let _over = Sets(&over);
            work()
        };
        (answer, sampler.join().expect("it only looks"))
    })
}
