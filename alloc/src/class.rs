//! Size classes: which objects share a span.
//!
//! ```text
//!   8 16 24 32 40 48 56 64 │ 80 96 112 128 │ 160 192 224 256 │ … │ 40K 48K 56K 64K
//!        steps of 8        │          four steps for each doubling, so at most 25 %
//! ```
//!
//! Rust tells the alignment of every request, so steps of 8 bytes serve what is aligned to 8.
//! A size that is a multiple of its alignment falls into a class that is one too: where classes
//! are denser than the alignment they hold each of its multiples, elsewhere each class is a
//! multiple. So the class is found by rounding the size up to the alignment.

use core::alloc::Layout;

/// The largest slab-class object, in bytes.
pub(crate) const MAX_SIZE: usize = 64 << 10;
/// The largest alignment that classes serve: no two objects of jemalloc begin in one page.
pub(crate) const MAX_ALIGN: usize = 4 << 10;
/// How many classes there are.
pub(crate) const COUNT: usize = 48;
/// What spans are made of, and aligned to.
pub(crate) const CHUNK: usize = 64 << 10;

/// The step in which sizes are looked up: one table for all, of which a program touches little.
const STEP: usize = 8;

/// A size class, told by where its magazine is: so many bytes from the beginning of a thread's record. What an
/// allocation looks up needs no arithmetic.
///
/// # Invariants
///
/// - It is the place of one of [`COUNT`] classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(u16);

/// From one class's magazine to the next one's, in bytes, and where the first is; `magazine.rs` and `record.rs`
/// assert it.
pub(crate) const STRIDE: usize = 32;
pub(crate) const FIRST: usize = 24;

const SIZES: [u32; COUNT] = sizes();
static TABLE: [Class; MAX_SIZE / STEP + 1] = table();
const RECIPROCALS: [u64; COUNT] = reciprocals();
const SPANS: [u32; COUNT] = spans();
const USED: [u32; COUNT] = used();

#[expect(clippy::cast_possible_truncation, reason = "indices are below 48")]
const fn sizes() -> [u32; COUNT] {
    let mut sizes = [0; COUNT];
    let mut i = 0;
    while i < 8 {
        sizes[i] = 8 * (i as u32 + 1);
        i += 1;
    }
    while i < COUNT {
        let doubling = (i - 8) / 4;
        let step = (i - 8) as u32 % 4 + 1;
        sizes[i] = (64 + 16 * step) << doubling;
        i += 1;
    }
    sizes
}

/// `table[i]`: the smallest class of at least `i * STEP` bytes.
const fn table() -> [Class; MAX_SIZE / STEP + 1] {
    let mut table = [Class::nth(0); MAX_SIZE / STEP + 1];
    let mut class = 0;
    let mut i = 0;
    while i < table.len() {
        while (SIZES[class] as usize) < i * STEP {
            class += 1;
        }
        table[i] = Class::nth(class);
        i += 1;
    }
    table
}

/// `2^40 / size`, rounded up: exact for every offset in a span, for 2^19 x 2^16 < 2^40.
const fn reciprocals() -> [u64; COUNT] {
    let mut reciprocals = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        reciprocals[i] = (1_u64 << 40).div_ceil(SIZES[i] as u64);
        i += 1;
    }
    reciprocals
}

/// Objects that a span has at least. Of large ones fewer: a span goes back when all of them are in.
const fn fewest(size: usize) -> usize {
    if size > 32 << 10 { 4 } else { 8 }
}

/// The fewest chunks that hold [enough](fewest) objects and waste at most a 32nd, else the least waste.
#[expect(clippy::cast_possible_truncation, reason = "a span has at most 512 KiB")]
const fn spans() -> [u32; COUNT] {
    let mut spans = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        let size = SIZES[i] as usize;
        let (mut best, mut best_waste) = (0, usize::MAX);
        let mut chunks = 1;
        while chunks <= 8 {
            let bytes = chunks * CHUNK;
            let waste = bytes % size * 1024 / bytes;
            if bytes / size >= fewest(size) && waste < best_waste && best_waste > 32 {
                (best, best_waste) = (bytes, waste);
            }
            chunks += 1;
        }
        spans[i] = best as u32;
        i += 1;
    }
    spans
}

/// Bytes of a span that are objects'.
#[expect(clippy::cast_possible_truncation, reason = "a span has at most 512 KiB")]
const fn used() -> [u32; COUNT] {
    let mut used = [0; COUNT];
    let mut i = 0;
    while i < COUNT {
        let class = Class::nth(i);
        used[i] = (class.nr_objects() * class.size()) as u32;
        i += 1;
    }
    used
}

const _: () = assert!(SIZES[COUNT - 1] as usize == MAX_SIZE);

impl Class {
    #[expect(clippy::cast_possible_truncation, reason = "below FIRST + COUNT * STRIDE")]
    pub(crate) const fn nth(index: usize) -> Class {
        assert!(index < COUNT);
        Class((FIRST + index * STRIDE) as u16)
    }

    /// The class that serves `layout`; `None`: jemalloc does.
    #[inline(always)]
    pub(crate) fn of(layout: Layout) -> Option<Class> {
        let (mut size, align) = (layout.size(), layout.align());
        if align > STEP {
            // Most layouts that a program does not know at compile time come this way rarely.
            core::hint::cold_path();
            if align > MAX_ALIGN {
                return None;
            }
            // A `Layout` rounded up to its alignment does not overflow `isize`.
            size = (size + align - 1) & !(align - 1);
        }
        Self::holding(size)
    }

    /// The same for most layouts, in fewer steps; `None`: ask [`of`](Class::of).
    #[inline(always)]
    pub(crate) fn of_common(layout: Layout) -> Option<Class> {
        if layout.align() > STEP { None } else { Self::holding(layout.size()) }
    }

    /// The smallest class of at least `size` bytes, which are at most `isize::MAX`.
    #[inline(always)]
    fn holding(size: usize) -> Option<Class> {
        #[expect(clippy::manual_div_ceil, reason = "no overflow is possible, and it is shorter")]
        TABLE.get((size + STEP - 1) / STEP).copied()
    }

    /// Every class.
    pub(crate) fn all() -> impl Iterator<Item = Class> {
        (0..COUNT).map(Class::nth)
    }

    /// The class with this index.
    pub(crate) fn from_index(index: u32) -> Class {
        Class::nth((index as usize).min(COUNT - 1))
    }

    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        const { assert!(FIRST < STRIDE) };
        let index = self.0 as usize / STRIDE;
        // SAFETY: a class is made by `nth`, which stays below `COUNT`: no table is looked up with a
        // bounds check on the fast path.
        unsafe { core::hint::assert_unchecked(index < COUNT) };
        index
    }

    /// Where its magazine is, from the beginning of a thread's record.
    #[inline(always)]
    pub(crate) const fn place(self) -> usize {
        self.0 as usize
    }

    /// Bytes of an object: what is charged for it.
    #[inline(always)]
    pub(crate) const fn size(self) -> usize {
        SIZES[self.index()] as usize
    }

    /// The same, as the stock counts.
    #[inline(always)]
    pub(crate) const fn charge(self) -> u32 {
        SIZES[self.index()]
    }

    /// Bytes of a span.
    pub(crate) const fn span_bytes(self) -> usize {
        SPANS[self.index()] as usize
    }

    /// Bytes of a span that are objects': the rest is nobody's.
    #[inline(always)]
    pub(crate) const fn used_bytes(self) -> usize {
        USED[self.index()] as usize
    }

    /// Objects in a span.
    pub(crate) const fn nr_objects(self) -> usize {
        self.span_bytes() / self.size()
    }

    /// The object that the byte at `offset` of a span belongs to.
    #[inline(always)]
    pub(crate) const fn object_at(self, offset: usize) -> usize {
        self.reciprocal().object_at(offset)
    }

    /// What divides by the size.
    #[inline(always)]
    pub(crate) const fn reciprocal(self) -> Reciprocal {
        Reciprocal(RECIPROCALS[self.index()])
    }
}

/// What divides by the size of a class's objects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reciprocal(u64);

impl Reciprocal {
    /// Of no class.
    pub(crate) const NONE: Reciprocal = Reciprocal(0);

    /// See [`Class::object_at`].
    #[inline(always)]
    pub(crate) const fn object_at(self, offset: usize) -> usize {
        ((offset as u64 * self.0) >> 40) as usize
    }
}

/// The most objects that a span of any class has.
pub(crate) const MAX_OBJECTS: usize = Class::nth(0).nr_objects();

#[cfg(test)]
mod tests {
    use super::*;

    fn class(size: usize, align: usize) -> Option<Class> {
        Class::of(Layout::from_size_align(size, align).expect("a valid layout"))
    }

    #[test]
    fn every_layout_falls_into_the_smallest_class_that_fits_and_aligns() {
        for align in (0..=12).map(|shift| 1 << shift) {
            for size in 1..=MAX_SIZE {
                let class = class(size, align).expect("up to 64 KiB and 4 KiB alignment");
                assert!(class.size() >= size && class.size().is_multiple_of(align));
                let better =
                    SIZES.iter().map(|&s| s as usize).find(|&s| s >= size && s % align == 0);
                assert_eq!(Some(class.size()), better, "{size} bytes aligned to {align}");
            }
        }
    }

    #[test]
    fn the_rest_is_jemallocs() {
        assert_eq!(class(MAX_SIZE + 1, 1), None);
        assert_eq!(class(16, 8192), None);
        assert_eq!(class(isize::MAX as usize, 1), None);
        assert_eq!(class(isize::MAX as usize - 4096, 4096), None);
    }

    #[test]
    fn steps_are_at_most_a_quarter_or_8_bytes() {
        for pair in SIZES.windows(2) {
            let step = pair[1] - pair[0];
            assert!(step <= 8 || step * 4 <= pair[0], "{pair:?}");
        }
    }

    #[test]
    fn spans_waste_little_and_objects_are_found_at_every_byte() {
        for class in Class::all() {
            assert!(
                class.nr_objects() >= fewest(class.size()) && class.nr_objects() <= MAX_OBJECTS
            );
            assert!(class.span_bytes() % class.size() * 16 <= class.span_bytes(), "{class:?}");
            for offset in 0..class.span_bytes() {
                assert_eq!(class.object_at(offset), offset / class.size());
            }
        }
    }
}
