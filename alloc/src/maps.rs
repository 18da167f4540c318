//! From an address to what is known of it, out of band: no header stands beside an object.
//!
//! ```text
//!   address ─► root[address / 16 GiB] ─► leaf[address / 64 KiB] ─► tags[object]
//!                                                              └─► span
//!   address ─► root[address / 16 GiB] ─► leaf[address / 64 KiB] ─► large object's word
//!   address ─► root[address / 1 GiB]  ─► leaf[address / 4 KiB]  ─► aligned object's word
//! ```
//!
//! No two large objects begin in one chunk, for they are larger; but one that is aligned to more than a page
//! may be small. All maps are radix trees of two levels. Leaves are mapped when first written and never
//! unmapped, spans and tag vectors are type-stable: any address may be looked up.
//!
//! # Invariants
//!
//! - The entries of all chunks of a span lead to it from before its first object is handed out
//!   until after the last came back. What they say of its tags is what it has, or was before it got a
//!   vector; who writes a tag has seen the vector in the entry of the object's chunk.
//! - The word at the chunk that a tagged large object begins in says who pays, and how much, as does the word at the
//!   page of an aligned one; every other word is 0.

use core::cell::UnsafeCell;
use core::ptr;

use memcg_accounting::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use memcg_accounting::{SYSTEM, Tag};

use crate::class::{CHUNK, Class, MAX_ALIGN, Reciprocal};
use crate::span::Span;

/// Bits of an address in user space.
const ADDRESS_BITS: u32 = 48;
const CHUNK_SHIFT: u32 = CHUNK.trailing_zeros();
/// No two objects of jemalloc begin in one page, however they are aligned.
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

    /// Calls `f` with each entry that there is.
    fn for_each(&self, mut f: impl FnMut(&T)) {
        let leaves = self.root.iter().map(|leaf| leaf.load(Ordering::Acquire));
        for leaf in leaves.filter(|leaf| !leaf.is_null()) {
            for index in 0..1 << LEAF_SHIFT {
                // SAFETY: a leaf has this many entries.
                let entry = unsafe { leaf.add(index) };
                // SAFETY: leaves are initialised and never unmapped.
                f(unsafe { &*entry });
            }
        }
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
/// From the page that an object begins in to a word.
pub(crate) type PageMap = Radix<AtomicU64, PAGE_SHIFT, { roots(PAGE_SHIFT) }>;
/// The same from its chunk.
type ChunkMap = Radix<AtomicU64, CHUNK_SHIFT, { roots(CHUNK_SHIFT) }>;

static SPANS: SpanMap = SpanMap::new();
/// By chunks, for the pages that words are on stay: a sixteenth of them.
static LARGE: ChunkMap = ChunkMap::new();
static ALIGNED: PageMap = PageMap::new();

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

/// A tagged large object's word: 32 bits of tag, 12 of its offset in its chunk (in 16 bytes), and 20 of its
/// size as 6 bits of exponent and 14 of mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LargeWord {
    pub(crate) tag: Tag,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Bits of the mantissa: jemalloc's sizes have three.
const MANTISSA_BITS: u32 = 14;

impl LargeWord {
    fn encode(self) -> u64 {
        let exponent = (usize::BITS - self.bytes.leading_zeros()).saturating_sub(MANTISSA_BITS);
        let mantissa = self.bytes >> exponent;
        debug_assert_eq!(mantissa << exponent, self.bytes, "a size that the word can hold");
        u64::from(self.tag.to_bits())
            | (self.offset as u64 / 16) << 32
            | u64::from(exponent) << 44
            | (mantissa as u64) << 50
    }

    fn decode(word: u64) -> Self {
        let [t0, t1, t2, t3, ..] = word.to_le_bytes();
        let bits = |from: u32, to: u32| {
            usize::try_from(word >> from & ((1 << (to - from)) - 1)).unwrap_or(0)
        };
        Self {
            tag: Tag::from_bits(u32::from_le_bytes([t0, t1, t2, t3])),
            offset: bits(32, 44) * 16,
            bytes: bits(50, 64) << bits(44, 50),
        }
    }

    /// What a map has at `address`, if it is of an object that `begins` there.
    fn read(entry: Option<&AtomicU64>, begins: impl FnOnce(&Self) -> bool) -> Option<Self> {
        // Acquire pairs with the Release in `tag_large`.
        let word = entry?.load(Ordering::Acquire);
        (word != 0).then(|| Self::decode(word)).filter(begins)
    }
}

/// Writes who pays for the large object at `address`, aligned to `align`. `false`: no memory for the leaf.
pub(crate) fn tag_large(address: usize, align: usize, tag: Tag, bytes: usize) -> bool {
    let entry = if align > MAX_ALIGN {
        ALIGNED.get_or_make(address)
    } else {
        debug_assert!(bytes > CHUNK, "no two of them begin in one chunk");
        LARGE.get_or_make(address)
    };
    let Some(entry) = entry else { return false };
    let word = LargeWord { tag, offset: address % CHUNK, bytes };
    // Release: who looks the object up sees what was done before it was tagged.
    entry.store(word.encode(), Ordering::Release);
    true
}

/// Where the word of the large object that begins at `address` is, and what it says.
fn find_large(address: usize) -> Option<(&'static AtomicU64, LargeWord)> {
    let begins = |word: &LargeWord| word.offset == address % CHUNK;
    let in_map =
        |entry: Option<&'static AtomicU64>| Some((entry?, LargeWord::read(entry, begins)?));
    in_map(LARGE.get(address)).or_else(|| in_map(ALIGNED.get(address)))
}

/// Who pays for the large object that begins at `address`; `None`: it has no tag.
pub(crate) fn large(address: usize) -> Option<LargeWord> {
    find_large(address).map(|(_, word)| word)
}

/// Takes the tag off the large object that begins at `address`.
pub(crate) fn untag_large(address: usize) -> Option<LargeWord> {
    let (entry, _) = find_large(address)?;
    let word = entry.swap(0, Ordering::AcqRel);
    (word != 0).then(|| LargeWord::decode(word))
}

/// Calls `f` with each tagged large object's word. Reads every leaf: for checks.
pub(crate) fn for_each_large(mut f: impl FnMut(LargeWord)) {
    let mut each = |entry: &AtomicU64| {
        if let Some(word) = LargeWord::read(Some(entry), |_| true) {
            f(word);
        }
    };
    LARGE.for_each(&mut each);
    ALIGNED.for_each(&mut each);
}

// ---- any address ------------------------------------------------------------------------

/// Who pays for what is at `address`, which may be anything: nothing is dereferenced but the
/// maps. A pointer to freed memory gives a stale answer.
pub(crate) fn tag_at(address: usize) -> Tag {
    if let Some(span) = span_of(address) {
        return span.tag_at(address);
    }
    // A large object has the rest of its chunk, an aligned one that of its page.
    let begins = |word: &LargeWord| word.offset <= address % CHUNK;
    let word = LargeWord::read(LARGE.get(address), begins);
    let word = word.or_else(|| LargeWord::read(ALIGNED.get(address), begins));
    word.map_or(Tag::NOBODY, |word| word.tag)
}

/// Whether `address` lies in an object that this allocator's classes serve.
pub(crate) fn is_slab(address: usize) -> bool {
    span_of(address).is_some()
}

/// Bytes that the maps' leaves take at most, by how many exist.
pub(crate) fn leaf_bytes() -> usize {
    SPANS.mapped_bytes() + LARGE.mapped_bytes() + ALIGNED.mapped_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_words_round_trip_for_every_size_of_jemalloc() {
        for exponent in 0..40 {
            for mantissa in 4..8 {
                let bytes = (mantissa << exponent) * 4096;
                let word = LargeWord { tag: Tag::from_bits(u32::MAX), offset: 65_520, bytes };
                assert_eq!(LargeWord::decode(word.encode()), word);
            }
        }
    }

    #[test]
    fn a_large_object_is_found_in_its_chunk_and_an_aligned_one_on_its_page() {
        // Nobody maps these.
        let (large, aligned) = (0x1_0003_2040, 0x1_0002_e000);
        assert!(tag_large(large, 16, Tag::from_bits(7), 80 << 10));
        assert!(tag_large(aligned, 8192, Tag::from_bits(9), 8192));
        let bits = |address| tag_at(address).to_bits();
        assert_eq!(
            [bits(large - 1), bits(large), bits(0x1_0003_ffff), bits(0x1_0004_0000)],
            [0, 7, 7, 0]
        );
        assert_eq!([bits(aligned - 1), bits(aligned), bits(aligned + 4095)], [0, 9, 9]);
        assert_eq!(super::large(large + 16), None);
        assert_eq!(untag_large(aligned + 4080), None);
        let tags = |word: Option<LargeWord>| word.map(|word| (word.tag.to_bits(), word.bytes));
        assert_eq!(tags(super::large(large)), Some((7, 80 << 10)));
        assert_eq!(tags(untag_large(aligned)), Some((9, 8192)));
        assert_eq!(tags(untag_large(large)), Some((7, 80 << 10)));
        assert_eq!([bits(large), bits(aligned)], [0, 0]);
    }

    #[test]
    fn any_address_may_be_looked_up() {
        for address in [0, 1, 4096, usize::MAX, 1 << 47, 1 << 48, usize::MAX / 2] {
            assert_eq!(tag_at(address), Tag::NOBODY, "{address:#x}");
        }
    }
}
