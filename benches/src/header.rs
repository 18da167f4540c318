//! The strawman: a header with the group and one relaxed atomic for each operation.
//!
//! What most programs write first when they want to count memory by tenant. It costs 16 bytes
//! an object, and two threads fight for the counter.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// Groups that the strawman has.
pub const GROUPS: usize = 64;

/// Bytes that live, of each group.
static USAGE: [AtomicI64; GROUPS] = [const { AtomicI64::new(0) }; GROUPS];

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(1) };
}

/// Bytes that live, of all groups.
#[must_use]
pub fn usage() -> i64 {
    // Relaxed: a sum for reading.
    USAGE.iter().map(|usage| usage.load(Ordering::Relaxed)).sum()
}

/// `inner` with a header before each object.
#[derive(Debug)]
pub struct Header<A>(pub A);

/// Where the object begins in its block.
fn offset(layout: Layout) -> usize {
    layout.align().max(16)
}

fn whole(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(offset(layout))?;
    Layout::from_size_align(size, offset(layout)).ok()
}

fn add(group: usize, bytes: usize) {
    // Relaxed: nothing else is told by it.
    USAGE[group].fetch_add(i64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

fn sub(group: usize, bytes: usize) {
    // Relaxed: as in `add`.
    USAGE[group].fetch_sub(i64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
}

// SAFETY: an object begins `offset` into a block of `whole`, a multiple of its alignment, and has
// all of the layout's bytes; the header lies before it and is written before it is answered.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Header<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = whole(layout) else { return std::ptr::null_mut() };
        // SAFETY: it is larger than the header, so not empty.
        let block = unsafe { self.0.alloc(whole) };
        if block.is_null() {
            return block;
        }
        let group = CURRENT.get();
        add(group, layout.size());
        // SAFETY: within the block.
        let object = unsafe { block.add(offset(layout)) };
        // SAFETY: the offset is at least 16.
        let header = unsafe { object.sub(16) };
        // SAFETY: 16 bytes before the object are the block's, and aligned to 16.
        unsafe { header.cast::<usize>().write(group) };
        object
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: every object has its header there.
        let header = unsafe { object.sub(16) };
        // SAFETY: `alloc` wrote it.
        let group = unsafe { header.cast::<usize>().read() };
        sub(group, layout.size());
        // SAFETY: where the block begins.
        let block = unsafe { object.sub(offset(layout)) };
        if let Some(whole) = whole(layout) {
            // SAFETY: what `alloc` asked for.
            unsafe { self.0.dealloc(block, whole) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    #[test]
    fn objects_are_aligned_and_counted() {
        let heap = Header(System);
        for align in [1, 8, 64, 4096] {
            let layout = Layout::from_size_align(100, align).expect("a valid layout");
            // SAFETY: the layout is not empty.
            let object = unsafe { heap.alloc(layout) };
            assert!(object.addr().is_multiple_of(align));
            assert_eq!(usage(), 100);
            // SAFETY: allocated above.
            unsafe { heap.dealloc(object, layout) };
            assert_eq!(usage(), 0);
        }
    }
}
