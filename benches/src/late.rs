//! `stats_alloc` over jemalloc, made at the first call: its constructor is `const` on nightly only.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::OnceLock;

use stats_alloc::StatsAlloc;
use tikv_jemallocator::Jemalloc;

/// See the module. The test whether it is made costs a load and a branch, beside two or more atomics.
#[derive(Debug, Default)]
pub struct LateStats(OnceLock<StatsAlloc<Jemalloc>>);

impl LateStats {
    /// Not made yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// What it counts with; making it allocates nothing.
    #[inline(always)]
    pub fn get(&self) -> &StatsAlloc<Jemalloc> {
        self.0.get_or_init(|| StatsAlloc::new(Jemalloc))
    }
}

// SAFETY: all calls go to the one inner allocator, unchanged.
unsafe impl GlobalAlloc for LateStats {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by contract.
        unsafe { self.get().alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: by contract.
        unsafe { self.get().dealloc(object, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by contract.
        unsafe { self.get().alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, object: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: by contract.
        unsafe { self.get().realloc(object, layout, size) }
    }
}
