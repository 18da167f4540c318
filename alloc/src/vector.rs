//! Tag vectors: made on demand, type-stable, never unmapped.
//!
//! They are cut from chunks of metadata and belong to a span record for ever; what a released
//! span's vector holds is zero, so whole pages of it may go back to the system meanwhile.
//!
//! What else belongs to a span's record for ever is cut from an arena of its own.

use memcg_accounting::SYSTEM;
use memcg_accounting::sync::{AtomicU32, AtomicUsize, Lock, Ordering, lock};

use crate::edge::HARDENED;

const PAGE: usize = 4096;
/// Address space that is mapped at a time, with its guard pages if there are any; only touched
/// pages are memory.
const ARENA: usize = (4 << 20) - if HARDENED { 2 * PAGE } else { 0 };
/// The same for what is no vector of tags: little, for every span needs some at once.
const ARENA_OF_OTHERS: usize = 1 << 20;
/// What vectors are aligned to: no two share a cache line.
const ALIGN: usize = 64;

/// Where the next vector is cut.
struct Arena {
    next: *mut u8,
    left: usize,
    /// Bytes that it maps at a time.
    maps: usize,
}

impl Arena {
    const fn new(maps: usize) -> Self {
        Self { next: core::ptr::null_mut(), left: 0, maps }
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
    let bytes = (len * size_of::<AtomicU32>()).next_multiple_of(ALIGN);
    let mut arena = lock(arena);
    // Vectors of a page or more begin on a page, so that theirs may go back alone.
    let align = if bytes >= PAGE { PAGE } else { ALIGN };
    let skip = arena.next.addr().next_multiple_of(align) - arena.next.addr();
    if arena.left < skip + bytes {
        let maps = arena.maps;
        let fresh = (SYSTEM.map)(maps);
        if fresh.is_null() {
            return core::ptr::null_mut();
        }
        *arena = Arena { next: fresh, left: maps, maps };
        return cut(&mut arena, 0, bytes, count);
    }
    cut(&mut arena, skip, bytes, count)
}

fn cut(arena: &mut Arena, skip: usize, bytes: usize, count: &AtomicUsize) -> *mut AtomicU32 {
    // SAFETY: `skip + bytes <= left`, so both stay in the mapping.
    let vector = unsafe { arena.next.add(skip) };
    // SAFETY: as above.
    arena.next = unsafe { vector.add(bytes) };
    arena.left -= skip + bytes;
    count.fetch_add(bytes, Ordering::Relaxed);
    vector.cast()
}

/// Gives the pages of a vector that holds only zeros back to the system; it stays mapped and
/// reads as zeros.
pub(crate) fn give_pages_back(vector: *mut AtomicU32, len: usize) {
    let bytes = len * size_of::<AtomicU32>();
    if bytes >= PAGE && vector.addr().is_multiple_of(PAGE) {
        let whole = bytes - bytes % PAGE;
        // SAFETY: the pages are a private anonymous mapping of ours and hold zeros, which is
        // what they read as afterwards.
        unsafe { libc::madvise(vector.cast(), whole, libc::MADV_DONTNEED) };
    }
}

/// Takes the locks, for `fork`: whoever is on the bypass may have one at that moment.
pub(crate) fn lock_all() {
    core::mem::forget(lock(&ARENA_OTHER));
    core::mem::forget(lock(&ARENA_NOW));
}

/// Ends what [`lock_all`] began.
///
/// # Safety
///
/// The caller, or the thread that it is the copy of, called `lock_all`.
pub(crate) unsafe fn unlock_all() {
    // SAFETY: by contract the lock is held and its guard was forgotten.
    unsafe { ARENA_NOW.force_unlock() };
    // SAFETY: as above.
    unsafe { ARENA_OTHER.force_unlock() };
}

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

    #[test]
    fn a_fork_while_a_vector_is_cut_leaves_the_child_able_to_cut_one() {
        assert!(crate::process::begin(Root::Untracked));
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
