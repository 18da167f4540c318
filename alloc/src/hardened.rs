//! Hardening, the feature `hardened`: what a production build can afford against misuse.
//!
//! - Every free and `realloc` is checked against the [ledger](crate::ledger): a double free, a
//!   pointer that is not an object's, or another layout ends the process.
//! - Objects leave a span in random order. (Free lists are out of band in every build: magazines are
//!   arrays in the threads' records, and the [free](crate::free) objects of a span are bits.)
//! - Freed memory is zeroed: that of large objects too, before jemalloc has it.
//! - Metadata lies between guard pages (`guard-pages` of `memcg-accounting`).
//!
//! Two threads that free one object in the same instant may both be believed: the ledger is
//! read and written, not exchanged, for that costs more than the rest. `debug-checks` does.

use core::ffi::c_void;
use core::ptr;

use memcg_accounting::now_us;

use crate::os;

/// From this size on, the pages of a freed large object are given back rather than written:
/// they read as zeros, and those that were never touched stay so.
const GIVE_BACK: usize = 128 << 10;
const PAGE: usize = 4096;

/// Zeroes memory that is free.
///
/// # Safety
///
/// It is the caller's, and nobody else uses it.
#[inline(always)]
pub(crate) unsafe fn zero(memory: *mut u8, bytes: usize) {
    // SAFETY: by contract.
    unsafe { ptr::write_bytes(memory, 0, bytes) };
}

/// The same for much of it.
///
/// # Safety
///
/// The same; it lies in a private anonymous mapping.
pub(crate) unsafe fn zero_pages(memory: *mut u8, bytes: usize) {
    if bytes < GIVE_BACK || !os::pages_are_small() {
        // SAFETY: by contract.
        return unsafe { zero(memory, bytes) };
    }
    let before = memory.addr().next_multiple_of(PAGE) - memory.addr();
    let whole = (bytes - before) / PAGE * PAGE;
    let pages = memory.wrapping_add(before);
    // SAFETY: by contract, and `before <= bytes`.
    unsafe { zero(memory, before) };
    // SAFETY: whole pages of the range: by contract nobody needs what they hold.
    let given = unsafe { libc::madvise(pages.cast(), whole, libc::MADV_DONTNEED) };
    if given != 0 {
        // Locked pages stay. SAFETY: by contract.
        unsafe { zero(pages, whole) };
    }
    // SAFETY: by contract; this is the rest.
    unsafe { zero(pages.wrapping_add(whole), bytes - before - whole) };
}

/// Where a sequence of [`below`] begins: unknown outside the process, if the system has it.
pub(crate) fn seed(before: u64) -> u64 {
    let mut seed = 0_u64;
    let place: *mut c_void = (&raw mut seed).cast();
    // SAFETY: the place has that many bytes. It does not wait for the system's pool.
    let got = unsafe { libc::getrandom(place, size_of::<u64>(), libc::GRND_NONBLOCK) };
    if got != 8 {
        seed = before ^ now_us() ^ ptr::from_ref(&seed).addr() as u64;
    }
    seed | 1
}

/// A number below `n`, which is not 0. Chance for layouts, not for keys: xorshift.
#[inline]
pub(crate) fn below(chance: &mut u64, n: usize) -> usize {
    *chance ^= *chance << 13;
    *chance ^= *chance >> 7;
    *chance ^= *chance << 17;
    let high = chance.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
    // At most 2^13 objects are in a span.
    ((high * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_all_bytes_and_no_others() {
        for bytes in [1, 100, GIVE_BACK - 1, GIVE_BACK, GIVE_BACK + 12_345] {
            let len = (bytes + 2 * PAGE).next_multiple_of(PAGE);
            let map = memcg_accounting::SYSTEM.map;
            let memory = map(len);
            assert!(!memory.is_null());
            // SAFETY: mapped above, and this test's alone.
            let all = unsafe { core::slice::from_raw_parts_mut(memory, len) };
            all.fill(7);
            // SAFETY: as above; 100 + `bytes` lies in it.
            unsafe { zero_pages(memory.wrapping_add(100), bytes) };
            let all = all.to_vec();
            // SAFETY: mapped above with this size, and not used any more.
            unsafe { (memcg_accounting::SYSTEM.unmap)(memory, len) };
            assert!(all[..100].iter().all(|&byte| byte == 7), "{bytes}");
            assert!(all[100..100 + bytes].iter().all(|&byte| byte == 0), "{bytes}");
            assert!(all[100 + bytes..].iter().all(|&byte| byte == 7), "{bytes}");
        }
    }

    #[test]
    fn numbers_are_below_the_bound_and_reach_all_below_it() {
        let mut chance = seed(0);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[below(&mut chance, 10)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 500), "{seen:?}");
    }
}
