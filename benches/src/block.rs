//! Blocks of an allocator under test, called through `GlobalAlloc` and nothing else.

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::hint::black_box;
use std::ptr::NonNull;

/// A layout that is not empty, aligned as most Rust types are.
///
/// # Invariants
///
/// The size is not 0.
#[derive(Clone, Copy, Debug)]
pub struct Shape(Layout);

impl Shape {
    /// `size` bytes aligned to 8.
    ///
    /// # Panics
    ///
    /// If `size` is 0 or beyond what a layout holds.
    #[must_use]
    #[inline(always)]
    pub fn of(size: usize) -> Self {
        assert!(size > 0);
        // INVARIANT: the size is not 0, by the assertion.
        Self(Layout::from_size_align(size, 8).expect("a size within isize"))
    }
}

/// One allocation. It leaks unless it is given back.
#[derive(Debug)]
#[must_use = "give it back"]
pub struct Block {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its bytes, and an allocator takes them back from any thread.
unsafe impl Send for Block {}

impl Block {
    /// Its size in bytes.
    #[must_use]
    #[inline(always)]
    pub fn size(&self) -> usize {
        self.layout.size()
    }

    /// Writes the first byte.
    #[inline(always)]
    pub fn touch(&mut self) {
        // SAFETY: a block has at least one byte, and it is exclusively ours.
        unsafe { black_box(self.at).write(1) };
    }

    /// Writes one byte in each `step`, and the last one.
    pub fn touch_each(&mut self, step: usize) {
        for offset in (0..self.size()).step_by(step) {
            // SAFETY: the offset is below the size.
            let byte = unsafe { self.at.add(offset) };
            // SAFETY: it is a byte of the block, which is exclusively ours.
            unsafe { byte.write(1) };
        }
        black_box(self.at);
    }

    /// Adds one to the first byte.
    #[inline(always)]
    pub fn bump(&mut self) {
        // SAFETY: a block has at least one byte, initialised by `touch` at the first.
        let value = unsafe { self.at.read_volatile() };
        // SAFETY: as above.
        unsafe { self.at.write_volatile(value.wrapping_add(1)) };
    }
}

/// An allocator that may be measured.
pub trait Allocator: GlobalAlloc + Sync + 'static {}
impl<A: GlobalAlloc + Sync + 'static> Allocator for A {}

/// Where blocks come from and go to.
#[derive(Debug)]
pub struct Heap<A: 'static>(pub &'static A);

impl<A> Clone for Heap<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Heap<A> {}

impl<A: Allocator> Heap<A> {
    /// Allocates; ends the process where there is no memory.
    #[inline(always)]
    pub fn take(self, shape: Shape) -> Block {
        let layout = black_box(shape.0);
        // SAFETY: a shape is not empty.
        let at = unsafe { self.0.alloc(layout) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
        Block { at, layout }
    }

    /// Allocates and writes the first byte.
    #[inline(always)]
    pub fn take_touched(self, shape: Shape) -> Block {
        let mut block = self.take(shape);
        block.touch();
        block
    }

    /// Frees.
    #[inline(always)]
    pub fn give(self, block: Block) {
        // SAFETY: a block comes from `take` or `resize` with this layout, and is moved in here.
        // Each process measures one instance of an allocator type, so it is this one.
        unsafe { self.0.dealloc(black_box(block.at.as_ptr()), black_box(block.layout)) };
    }

    /// Reallocates.
    #[inline(always)]
    pub fn resize(self, block: Block, size: usize) -> Block {
        let shape = Shape::of(black_box(size));
        // SAFETY: as in `give`; a shape is not empty and within `isize`.
        let at = unsafe { self.0.realloc(block.at.as_ptr(), block.layout, shape.0.size()) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(shape.0) };
        Block { at, layout: shape.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    #[test]
    fn a_block_keeps_its_bytes_when_it_is_resized() {
        let heap = Heap(&System);
        let mut block = heap.take_touched(Shape::of(10));
        block.bump();
        let block = heap.resize(block, 10_000);
        assert_eq!(block.size(), 10_000);
        // SAFETY: the first byte was written.
        assert_eq!(unsafe { block.at.read() }, 2);
        heap.give(block);
    }
}
