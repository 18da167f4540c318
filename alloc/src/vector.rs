//! Tag vectors: made on demand, type-stable, never unmapped.
//!
//! They are cut from chunks of metadata and belong to a span record for ever; what a released
//! span's vector holds is zero, so its pages may go back to the system meanwhile. A vector of a page or
//! more has its pages for itself. Smaller ones share pages, two of 2 KiB fill one: so how many of them are in use
//! is kept apart, on the first page of each block:
//!
//! ```text
//!   | live: –, 2, 1, … | vector | vector | vector | at rest | …        256 KiB
//!   '----- page -------'----- page ------'------ page ------'         a page goes back when it has 0
//! ```
//!
//! What else belongs to a span's record for ever is cut from an arena of its own.
//!
//! # Invariants
//!
//! - A vector is in use from when it is taken until it [rests](rest), and from when it [wakes](wake). At
//!   rest it holds zeros.
//! - `live` changes, and pages go back, with the arena's lock held.

use memcg_accounting::SYSTEM;
use memcg_accounting::sync::{AtomicU32, AtomicUsize, Lock, Ordering, lock};

use crate::features::HARDENED;
use crate::fork::{AtFork, Place};
use crate::os;

const PAGE: usize = 4096;
/// Address space that is mapped at a time, with its guard pages if there are any; only touched
/// pages are memory.
const ARENA: usize = (4 << 20) - if HARDENED { 2 * PAGE } else { 0 };
/// The same for what is no vector of tags: little, for every span needs some at once.
const ARENA_OF_OTHERS: usize = 1 << 20;
/// What vectors are aligned to: no two share a cache line.
const ALIGN: usize = 64;
/// Pages of vectors that have their counts together, with the page of the counts; aligned to its size. No vector is in two.
const BLOCK: usize = 256 << 10;

/// Where the next vector is cut.
struct Arena {
    next: *mut u8,
    left: usize,
    /// Where the block begins that vectors are cut of now; 0: none is begun.
    block: usize,
    /// Bytes that it maps at a time.
    maps: usize,
}

impl Arena {
    const fn new(maps: usize) -> Self {
        Self { next: core::ptr::null_mut(), left: 0, block: 0, maps }
    }
}

// SAFETY: the pointer leads to memory that nobody has been given; it is tied to no thread.
unsafe impl Send for Arena {}

static ARENA_NOW: Lock<Arena> = Lock::new(Arena::new(ARENA));
/// The same for what is no vector of tags: see [`take_other`].
static ARENA_OTHER: Lock<Arena> = Lock::new(Arena::new(ARENA_OF_OTHERS));
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Bytes of what is no vector of tags.
static OTHERS: AtomicUsize = AtomicUsize::new(0);

/// A vector of `len` zeros, or null.
pub(crate) fn take(len: usize) -> *mut AtomicU32 {
    take_from(&ARENA_NOW, &BYTES, len)
}

/// The same, of words that are no tags.
pub(crate) fn take_other(len: usize) -> *mut AtomicU32 {
    take_from(&ARENA_OTHER, &OTHERS, len)
}

fn take_from(arena: &Lock<Arena>, count: &AtomicUsize, len: usize) -> *mut AtomicU32 {
    let bytes = bytes_of(len);
    let mut arena = lock(arena);
    if arena.left < skip(&arena, bytes) + bytes {
        let maps = arena.maps;
        let fresh = (SYSTEM.map)(maps);
        if fresh.is_null() {
            return core::ptr::null_mut();
        }
        *arena = Arena { next: fresh, left: maps, block: 0, maps };
    }
    let skip = skip(&arena, bytes);
    let vector = cut(&mut arena, skip, bytes, count);
    if bytes < PAGE {
        live(vector).fetch_add(1, Ordering::Relaxed);
    }
    vector
}

/// What a vector takes: whole pages, or a part of one.
const fn bytes_of(len: usize) -> usize {
    let bytes = len * size_of::<AtomicU32>();
    bytes.next_multiple_of(if has_pages(len) { PAGE } else { ALIGN })
}

/// Whether a vector of so many words has its pages for itself.
pub(crate) const fn has_pages(len: usize) -> bool {
    len * size_of::<AtomicU32>() > PAGE - ALIGN
}

/// Bytes that are left out before a vector of `bytes`.
fn skip(arena: &Arena, bytes: usize) -> usize {
    let at = arena.next.addr();
    let mut to = at;
    if bytes >= PAGE || at % PAGE + bytes > PAGE {
        to = at.next_multiple_of(PAGE);
    }
    // An arena begins anywhere: what is before its first block is address space.
    let is_in_block = arena.block <= to && to + bytes <= arena.block + BLOCK;
    if is_in_block { to - at } else { at.next_multiple_of(BLOCK) + PAGE - at }
}

/// How many vectors of its page are in use, for one that shares it.
fn live(vector: *mut AtomicU32) -> &'static AtomicU32 {
    let at = vector.addr() % BLOCK;
    let word = vector.wrapping_byte_sub(at).wrapping_add(at / PAGE);
    // SAFETY: a vector's block is in the same mapping, which is zeroed at first and never unmapped; its first
    // page is nobody else's, and has a word for each page.
    unsafe { &*word }
}

fn cut(arena: &mut Arena, skip: usize, bytes: usize, count: &AtomicUsize) -> *mut AtomicU32 {
    // SAFETY: `skip + bytes <= left`, so both stay in the mapping.
    let vector = unsafe { arena.next.add(skip) };
    // SAFETY: as above.
    arena.next = unsafe { vector.add(bytes) };
    arena.left -= skip + bytes;
    arena.block = vector.addr() - vector.addr() % BLOCK;
    count.fetch_add(bytes, Ordering::Relaxed);
    vector.cast()
}

/// The span of a vector that holds only zeros serves nothing any more: the vector stays, and its memory
/// goes back to the system, as soon as that of all others on the page may.
pub(crate) fn rest(vector: *mut AtomicU32, len: usize) {
    let bytes = bytes_of(len);
    if bytes >= PAGE {
        // SAFETY: whole pages, zeros by contract.
        unsafe { os::give_back(vector.cast(), bytes) };
        return;
    }
    let _arena = lock(&ARENA_NOW);
    let before = live(vector).fetch_sub(1, Ordering::Relaxed);
    debug_assert!(before > 0, "a vector rests once");
    if before == 1 {
        // SAFETY: a page of vectors that all hold zeros, and nobody else's.
        unsafe { os::give_back(vector.wrapping_byte_sub(vector.addr() % PAGE).cast(), PAGE) };
    }
}

/// The span of a vector at rest is about to serve something again.
pub(crate) fn wake(vector: *mut AtomicU32, len: usize) {
    if bytes_of(len) < PAGE {
        let _arena = lock(&ARENA_NOW);
        live(vector).fetch_add(1, Ordering::Relaxed);
    }
}

/// Whoever is on the bypass may have one of the locks at that moment.
pub(crate) static AT_FORK: AtFork = AtFork {
    place: Place::Vectors,
    prepare: || {
        core::mem::forget(lock(&ARENA_OTHER));
        core::mem::forget(lock(&ARENA_NOW));
    },
    release: |_| {
        // SAFETY: `prepare` took the lock and forgot the guard.
        unsafe { ARENA_NOW.force_unlock() };
        // SAFETY: as above.
        unsafe { ARENA_OTHER.force_unlock() };
    },
    in_child: || (),
};

/// Bytes that all vectors have together.
pub(crate) fn bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// Bytes of what [`take_other`] answered.
pub(crate) fn other_bytes() -> usize {
    OTHERS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use memcg_accounting::Root;
    use memcg_accounting::sync::try_lock;

    use super::*;

    /// Whether the page of a vector is resident.
    fn is_resident(vector: *mut AtomicU32) -> bool {
        let page = vector.wrapping_byte_sub(vector.addr() % PAGE);
        let mut answer = 0_u8;
        // SAFETY: the page is mapped, and the answer has a byte for it.
        assert_eq!(unsafe { libc::mincore(page.cast(), PAGE, &raw mut answer) }, 0);
        answer & 1 != 0
    }

    #[test]
    fn a_page_goes_back_when_all_of_its_vectors_rest() {
        // Four fill a page: no other test has a part of it.
        const LEN: usize = 256;
        let page_of = |vector: *mut AtomicU32| vector.addr() / PAGE;
        let mut page = vec![take(LEN)];
        while page.len() < 4 {
            let next = take(LEN);
            if page_of(next) != page_of(page[0]) {
                page.clear();
            }
            page.push(next);
        }
        let word = |vector: *mut AtomicU32| {
            // SAFETY: the vector has words, and is never unmapped.
            unsafe { &*vector }
        };
        for &vector in &page {
            word(vector).store(7, Ordering::Relaxed);
        }
        for &vector in &page {
            assert!(is_resident(vector), "one of them is in use");
            assert_eq!(word(vector).load(Ordering::Relaxed), 7);
            word(vector).store(0, Ordering::Relaxed);
            rest(vector, LEN);
        }
        assert!(!is_resident(page[0]), "all of them rest");
        wake(page[1], LEN);
        assert_eq!(word(page[1]).load(Ordering::Relaxed), 0);
        word(page[1]).store(8, Ordering::Relaxed);
        wake(page[2], LEN);
        rest(page[2], LEN);
        assert_eq!(word(page[1]).load(Ordering::Relaxed), 8, "the other is in use");
        word(page[1]).store(0, Ordering::Relaxed);
        rest(page[1], LEN);
        assert!(!is_resident(page[1]));
    }

    #[test]
    fn vectors_that_fill_a_page_lie_on_it() {
        let mut pages: Vec<_> = (0..20).map(|_| take(512).addr() / PAGE).collect();
        pages.dedup();
        // Ten, but for what other tests take meanwhile.
        assert!(pages.len() < 15, "{pages:x?}");
    }

    #[test]
    fn vectors_of_a_page_or_more_have_their_pages_alone() {
        for len in [1008, 1009, 1024, 1365, 4096] {
            let (first, second) = (take(len), take(len));
            let pages = |vector: *mut AtomicU32| {
                vector.addr() / PAGE..=(vector.addr() + len * size_of::<AtomicU32>() - 1) / PAGE
            };
            assert!(len <= 1008 || first.addr() % PAGE == 0, "{len} words");
            assert!(pages(first).all(|page| !pages(second).contains(&page)), "{len} words");
            rest(first, len);
            rest(second, len);
        }
    }

    #[test]
    fn a_fork_while_a_vector_is_cut_leaves_the_child_able_to_cut_one() {
        assert!(crate::start::begin(Root::Untracked));
        let (sender, receiver) = mpsc::channel();
        let cutter = thread::spawn(move || {
            let _arena = lock(&ARENA_NOW);
            sender.send(()).expect("the test waits");
            thread::sleep(Duration::from_millis(300));
        });
        receiver.recv().expect("the thread lives");
        // SAFETY: the child takes a lock at most, and ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            let is_free = try_lock(&ARENA_NOW).is_some();
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(i32::from(!is_free)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and the place is valid.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the child would wait for a thread that it does not have");
        cutter.join().expect("no panic");
    }
}
