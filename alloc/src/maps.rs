//! From an address to what is known of it, out of band: no header stands beside an object.
//!
//! ```text
//!   address ─► root[address / 16 GiB] ─► leaf[address / 64 KiB] ─► tags[object]
//!                                                              └─► span
//!   address ─► root[address / 1 GiB]  ─► leaf[address / 4 KiB]  ─► large object's word
//! ```
//!
//! Both maps are radix trees of two levels. Leaves are mapped when first written and never
//! unmapped, spans and tag vectors are type-stable: any address may be looked up.
//!
//! # Invariants
//!
//! - The entries of all chunks of a span lead to it from before its first object is handed out
//!   until after the last came back. What they say of its tags is what it has, or was before it got a
//!   vector; who writes a tag has seen the vector in the entry of the object's chunk.
//! - The word at the first page of a tagged large object says who pays, and how much; it is 0
//!   for every other page.

use core::cell::UnsafeCell;
use core::ptr;

use memcg_accounting::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use memcg_accounting::{SYSTEM, Tag};

use crate::class::{CHUNK, Class, Reciprocal};
use crate::span::Span;

/// Bits of an address in user space.
const ADDRESS_BITS: u32 = 48;
const CHUNK_SHIFT: u32 = CHUNK.trailing_zeros();
/// Large objects are looked up by the page that they begin in.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Entries of a leaf, as a power of two.
const LEAF_SHIFT: u32 = 18;

/// A two-level radix tree from `address >> SHIFT` to a `T`, all zero at first.
pub(crate) struct Radix<T, const SHIFT: u32, const ROOTS: usize> {
    root: [AtomicPtr<T>; ROOTS],
}

const fn roots(shift: u32) -> usize {
    1 << (ADDRESS_BITS - shift - LEAF_SHIFT)
}

impl<T, const SHIFT: u32, const ROOTS: usize> Radix<T, SHIFT, ROOTS> {
    pub(crate) const fn new() -> Self {
        const { assert!(ROOTS == roots(SHIFT)) };
        Self { root: [const { AtomicPtr::new(ptr::null_mut()) }; ROOTS] }
    }

    #[inline(always)]
    fn split(address: usize) -> (usize, usize) {
        let key = address >> SHIFT;
        (key >> LEAF_SHIFT, key & ((1 << LEAF_SHIFT) - 1))
    }

    /// The entry for `address`, if its leaf exists.
    #[inline(always)]
    pub(crate) fn get(&self, address: usize) -> Option<&T> {
        let (root, index) = Self::split(address);
        let leaf = self.root.get(root)?.load(Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a leaf has `1 << LEAF_SHIFT` entries, and `split` masks the index to that.
        let entry = unsafe { leaf.add(index) };
        // SAFETY: leaves are zeroed, which is a valid `T` (atomics), and never unmapped.
        Some(unsafe { &*entry })
    }

    /// The entry for the address of an object of ours, whose leaf exists.
    ///
    /// # Safety
    ///
    /// [`get_or_make`](Self::get_or_make) has answered an entry for `address`, and the caller
    /// was told of it by something that happened after.
    #[inline(always)]
    unsafe fn get_known(&self, address: usize) -> &T {
        let (root, index) = Self::split(address);
        // SAFETY: `get_or_make` found `root` in bounds.
        let slot = unsafe { self.root.get_unchecked(root) };
        // Relaxed: the leaf was published before the caller could know of the address.
        let leaf = slot.load(Ordering::Relaxed);
        // Spelled out: so it is one shift of the address.
        // SAFETY: the leaf exists, by contract, and the index is in bounds.
        let entry = unsafe { leaf.byte_add(index * size_of::<T>()) };
        // SAFETY: as in `get`.
        unsafe { &*entry }
    }

    /// The entry for `address`; `None`: no memory for its leaf, or no such address.
    pub(crate) fn get_or_make(&self, address: usize) -> Option<&T> {
        if let Some(entry) = self.get(address) {
            return Some(entry);
        }
        let (root, _) = Self::split(address);
        let slot = self.root.get(root)?;
        let bytes = size_of::<T>() << LEAF_SHIFT;
        let leaf = (SYSTEM.map)(bytes);
        if leaf.is_null() {
            return None;
        }
        // Release pairs with the Acquire in `get`: who sees the leaf sees its zeros.
        let set = slot.compare_exchange(
            ptr::null_mut(),
            leaf.cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if set.is_err() {
            // SAFETY: mapped above with this size, and shown to nobody.
            unsafe { (SYSTEM.unmap)(leaf, bytes) };
        }
        self.get(address)
    }

    /// Bytes that the leaves take at most.
    fn mapped_bytes(&self) -> usize {
        let leaves = self.root.iter().filter(|leaf| !leaf.load(Ordering::Relaxed).is_null());
        leaves.count() * (size_of::<T>() << LEAF_SHIFT)
    }
}

/// What is known of a chunk. The fast path reads the first two words: finding a tag takes one line here
/// and not the span's too.
#[repr(C, align(32))]
#[derive(Debug)]
struct Chunk {
    /// Where its span begins. Written while no object of the chunk is out, read by who has one.
    base: UnsafeCell<usize>,
    /// The span's tags.
    tags: AtomicPtr<AtomicU32>,
    /// Null: it is no span's.
    span: AtomicPtr<Span>,
}

// SAFETY: `base` is reached as it says; the rest is atomics.
unsafe impl Sync for Chunk {}

type SpanMap = Radix<Chunk, CHUNK_SHIFT, { roots(CHUNK_SHIFT) }>;
/// From the page that a large object begins in to a word.
pub(crate) type LargeMap = Radix<AtomicU64, PAGE_SHIFT, { roots(PAGE_SHIFT) }>;

static SPANS: SpanMap = SpanMap::new();
static LARGE: LargeMap = LargeMap::new();

// ---- spans ------------------------------------------------------------------------------

/// Makes every chunk of a span, which serves `class` and is nobody's yet, lead to it. `false`: no
/// memory for a leaf, and no chunk leads there.
pub(crate) fn add_span(span: &'static Span, class: Class) -> bool {
    if chunks(span, class).any(|address| SPANS.get_or_make(address).is_none()) {
        return false;
    }
    for chunk in chunks(span, class).filter_map(|address| SPANS.get(address)) {
        // Relaxed: whoever has an object of the span is told of it afterwards, and whoever has none
        // reads the span's own words.
        // SAFETY: nobody has an object of the chunk, so nobody reads it.
        unsafe { chunk.base.get().write(span.base()) };
        chunk.tags.store(span.tags(), Ordering::Relaxed);
        // Release pairs with the Acquire in `span_of`.
        chunk.span.store(ptr::from_ref(span).cast_mut(), Ordering::Release);
    }
    true
}

/// Makes the chunks lead nowhere.
pub(crate) fn remove_span(span: &Span, class: Class) {
    for chunk in chunks(span, class).filter_map(|address| SPANS.get(address)) {
        chunk.span.store(ptr::null_mut(), Ordering::Release);
    }
}

/// An address in each chunk of a span.
fn chunks(span: &Span, class: Class) -> impl Iterator<Item = usize> {
    (span.base()..span.base() + class.span_bytes()).step_by(CHUNK)
}

/// The span of any address.
#[inline]
pub(crate) fn span_of(address: usize) -> Option<&'static Span> {
    let span = SPANS.get(address)?.span.load(Ordering::Acquire);
    // SAFETY: entries are null or lead to a span's record, which is never unmapped.
    unsafe { span.as_ref() }
}

/// The span of an object.
///
/// # Safety
///
/// `object` is a slab-class object of ours that is live or cached by the caller.
#[inline(always)]
pub(crate) unsafe fn span_of_object(object: *mut u8) -> &'static Span {
    // SAFETY: the span was added before the object was handed out.
    let chunk = unsafe { SPANS.get_known(object.addr()) };
    // Relaxed: as in `get_known`.
    let span = chunk.span.load(Ordering::Relaxed);
    // SAFETY: it leads to the object's span, which is there while an object of it is out.
    unsafe { &*span }
}

/// Where the tag of an object is.
///
/// # Safety
///
/// `object` is of `class`, ours, and live or cached by the caller.
#[inline(always)]
pub(crate) unsafe fn tag_slot(object: *mut u8, class: Class) -> &'static AtomicU32 {
    // SAFETY: by contract.
    unsafe { tag_slot_by(object, class.reciprocal()) }
}

/// The same for who has the class's reciprocal.
///
/// # Safety
///
/// As for [`tag_slot`].
#[inline(always)]
pub(crate) unsafe fn tag_slot_by(object: *mut u8, reciprocal: Reciprocal) -> &'static AtomicU32 {
    // SAFETY: the span was added before the object was handed out.
    let chunk = unsafe { SPANS.get_known(object.addr()) };
    // SAFETY: it was written before the object was handed out, and is not until it is back.
    let base = unsafe { chunk.base.get().read() };
    let index = reciprocal.object_at(object.addr() - base);
    // Acquire pairs with the Release in `make_taggable`: a vector that another thread made begins as
    // zeros. A thread that has the object was told of every tag that it ever had, and so of the vector.
    let tags = chunk.tags.load(Ordering::Acquire);
    // SAFETY: the shared zeros and every vector have a word for each object of the class.
    let slot = unsafe { tags.add(index) };
    // SAFETY: neither is ever unmapped.
    unsafe { &*slot }
}

/// Sees to it that the tag of an object may be written: the slots that are looked up from now on.
/// `false`: no memory for a vector.
///
/// # Safety
///
/// `object` is of `class`, ours, and live or cached by the caller.
pub(crate) unsafe fn make_taggable(object: *mut u8, class: Class) -> bool {
    // SAFETY: by contract.
    if !Span::is_shared(unsafe { tag_slot(object, class) }) {
        return true;
    }
    // SAFETY: by contract.
    let span = unsafe { span_of_object(object) };
    if !span.make_vector() {
        return false;
    }
    // Another thread may be at it: it stores the same.
    for chunk in chunks(span, class).filter_map(|address| SPANS.get(address)) {
        // Release pairs with the Acquire in `tag_slot`.
        chunk.tags.store(span.tags(), Ordering::Release);
    }
    true
}

// ---- large objects ----------------------------------------------------------------------

/// A tagged large object's word: 32 bits of tag, 8 of its offset in its page (in 16 bytes),
/// 24 of its size as 8 bits of exponent and 16 of mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LargeWord {
    pub(crate) tag: Tag,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Bits of the mantissa: jemalloc's sizes have three.
const MANTISSA_BITS: u32 = 16;

impl LargeWord {
    fn encode(self) -> u64 {
        let exponent = (usize::BITS - self.bytes.leading_zeros()).saturating_sub(MANTISSA_BITS);
        let mantissa = self.bytes >> exponent;
        debug_assert_eq!(mantissa << exponent, self.bytes, "a size that the word can hold");
        u64::from(self.tag.to_bits())
            | (self.offset as u64 / 16) << 32
            | u64::from(exponent) << 40
            | (mantissa as u64) << 48
    }

    fn decode(word: u64) -> Self {
        let [t0, t1, t2, t3, offset, exponent, m0, m1] = word.to_le_bytes();
        Self {
            tag: Tag::from_bits(u32::from_le_bytes([t0, t1, t2, t3])),
            offset: usize::from(offset) * 16,
            bytes: usize::from(u16::from_le_bytes([m0, m1])) << exponent,
        }
    }
}

/// Writes who pays for the large object at `address`. `false`: no memory for the leaf.
pub(crate) fn tag_large(address: usize, tag: Tag, bytes: usize) -> bool {
    let Some(entry) = LARGE.get_or_make(address) else { return false };
    let word = LargeWord { tag, offset: address % (1 << PAGE_SHIFT), bytes };
    // Release: who looks the object up sees what was done before it was tagged.
    entry.store(word.encode(), Ordering::Release);
    true
}

/// Who pays for the large object at `address`; `None`: it has no tag.
pub(crate) fn large(address: usize) -> Option<LargeWord> {
    // Acquire pairs with the Release in `tag_large`.
    let word = LARGE.get(address)?.load(Ordering::Acquire);
    (word != 0).then(|| LargeWord::decode(word))
}

/// Takes the tag off the large object at `address`.
pub(crate) fn untag_large(address: usize) -> Option<LargeWord> {
    let word = LARGE.get(address)?.swap(0, Ordering::AcqRel);
    (word != 0).then(|| LargeWord::decode(word))
}

/// Calls `f` with each tagged large object's word. Reads every leaf: for checks.
pub(crate) fn for_each_large(mut f: impl FnMut(LargeWord)) {
    for leaf in &LARGE.root {
        let leaf = leaf.load(Ordering::Acquire);
        if leaf.is_null() {
            continue;
        }
        for index in 0..1 << LEAF_SHIFT {
            // SAFETY: a leaf has this many entries.
            let entry = unsafe { leaf.add(index) };
            // SAFETY: leaves are initialised and never unmapped.
            let word = unsafe { &*entry }.load(Ordering::Acquire);
            if word != 0 {
                f(LargeWord::decode(word));
            }
        }
    }
}

// ---- any address ------------------------------------------------------------------------

/// Who pays for what is at `address`, which may be anything: nothing is dereferenced but the
/// maps. A pointer to freed memory gives a stale answer.
pub(crate) fn tag_at(address: usize) -> Tag {
    if let Some(span) = span_of(address) {
        return span.tag_at(address);
    }
    match large(address) {
        Some(word) if address % (1 << PAGE_SHIFT) >= word.offset => word.tag,
        _ => Tag::NOBODY,
    }
}

/// Whether `address` lies in an object that this allocator's classes serve.
pub(crate) fn is_slab(address: usize) -> bool {
    span_of(address).is_some()
}

/// Bytes that the maps' leaves take at most, by how many exist.
pub(crate) fn leaf_bytes() -> usize {
    SPANS.mapped_bytes() + LARGE.mapped_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_words_round_trip_for_every_size_of_jemalloc() {
        for exponent in 0..40 {
            for mantissa in 4..8 {
                let bytes = (mantissa << exponent) * 4096;
                let word = LargeWord { tag: Tag::from_bits(77), offset: 4032, bytes };
                assert_eq!(LargeWord::decode(word.encode()), word);
            }
        }
    }

    #[test]
    fn any_address_may_be_looked_up() {
        for address in [0, 1, 4096, usize::MAX, 1 << 47, 1 << 48, usize::MAX / 2] {
            assert_eq!(tag_at(address), Tag::NOBODY, "{address:#x}");
        }
    }
}
