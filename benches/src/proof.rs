//! Whether an allocator serves this process.
//!
//! An allocator that is declared and not linked, or linked and not declared, measures as the
//! one that serves instead of it. So each binary asks its own.

use std::hint::black_box;

/// How many bytes the question takes: above what thread caches hold, below what glibc maps.
const PROBE: usize = 100_000;

fn probe() -> Vec<u8> {
    black_box(Vec::with_capacity(PROBE))
}

/// glibc's malloc: it has more bytes in use than before.
#[must_use]
pub fn system() -> bool {
    // Another thread may free while this one asks.
    (0..3).any(|_| grew())
}

fn grew() -> bool {
    // SAFETY: no precondition.
    let before = unsafe { libc::mallinfo2() };
    let probe = probe();
    // SAFETY: no precondition.
    let after = unsafe { libc::mallinfo2() };
    drop(probe);
    let used = |info: &libc::mallinfo2| info.uordblks + info.hblkhd;
    used(&after) >= used(&before) + PROBE
}

/// A counter that an allocator keeps grows by what is allocated.
#[must_use]
pub fn counted(read: impl Fn() -> u64) -> bool {
    let before = read();
    let probe = probe();
    let after = read();
    drop(probe);
    after >= before + PROBE as u64
}

/// jemalloc: it knows which of its arenas an address is in.
#[cfg(feature = "peers")]
#[must_use]
pub fn jemalloc() -> bool {
    let probe = probe();
    let mut address = probe.as_ptr();
    let mut arena = 0_u32;
    let mut size = size_of::<u32>();
    // SAFETY: the name ends with 0; the old value has room for an unsigned int and the new one is a
    // pointer, as `arenas.lookup` has it.
    let answer = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"arenas.lookup".as_ptr(),
            (&raw mut arena).cast(),
            &raw mut size,
            (&raw mut address).cast(),
            size_of::<*const u8>(),
        )
    };
    answer == 0
}

/// mimalloc: it knows whether an address is in its heap.
#[cfg(feature = "peers")]
#[must_use]
pub fn mimalloc() -> bool {
    let probe = probe();
    // SAFETY: it looks at the address only.
    unsafe { libmimalloc_sys::mi_is_in_heap_region(probe.as_ptr().cast()) }
}

/// snmalloc: it knows the size of a block of its own.
#[cfg(feature = "peers-cxx")]
#[must_use]
pub fn snmalloc() -> bool {
    let probe = probe();
    snmalloc_rs::SnMalloc
        .usable_size(probe.as_ptr())
        .is_some_and(|size| (PROBE..2 * PROBE).contains(&size))
}

/// memcg, in a build without accounting. No group is asked, for the workload is to find none.
#[cfg(feature = "ours")]
#[must_use]
pub fn unaccounted() -> bool {
    memcg::is_installed() && cfg!(memcg_unaccounted)
}

/// memcg: it says so, and it knows the group of an object.
#[cfg(feature = "ours")]
#[must_use]
pub fn memcg() -> bool {
    let Ok(group) = memcg::Group::root().create("proof") else { return false };
    let probe = group.run(probe);
    memcg::is_installed() && memcg::Group::of(probe.as_ptr()) == Some(group)
}
