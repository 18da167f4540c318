//! A global allocator for other people's test programs: memcg in a limited group, or the system's, as
//! `ECOSYSTEM_ALLOCATOR` says when the program starts. One build of a program serves both runs.
//!
//! With memcg the whole process is charged to the root, which has a limit. At the end a line goes to the file that
//! `ECOSYSTEM_LOG` names: the peak of the root, which is 0 only if memcg served nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};

use memcg::{Group, Memcg};

/// The root's limit: moka asks for 8 GiB at once, which it does not touch.
const MAX: u64 = 64 << 30;

struct Chosen;

#[global_allocator]
static ALLOC: Chosen = Chosen;
static MEMCG: Memcg = Memcg::accounting_root();

const UNKNOWN: u8 = 0;
const OWN: u8 = 1;
const SYSTEM: u8 = 2;
static CHOICE: AtomicU8 = AtomicU8::new(UNKNOWN);

fn is_own() -> bool {
    // Relaxed: every thread comes to the same answer, from an environment that nobody changes before.
    match CHOICE.load(Ordering::Relaxed) {
        UNKNOWN => {
            // SAFETY: the name ends with a NUL, and the answer is a string of the environment.
            let value = unsafe { libc::getenv(c"ECOSYSTEM_ALLOCATOR".as_ptr()) };
            // SAFETY: as above.
            let own = !value.is_null() && unsafe { CStr::from_ptr(value) } == c"memcg";
            CHOICE.store(if own { OWN } else { SYSTEM }, Ordering::Relaxed);
            own
        }
        choice => choice == OWN,
    }
}

// SAFETY: each call goes to the same one of two allocators, which keep the contract.
unsafe impl GlobalAlloc for Chosen {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by contract.
        if is_own() { unsafe { MEMCG.alloc(layout) } } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if is_own() {
            // SAFETY: by contract.
            unsafe { MEMCG.dealloc(object, layout) }
        } else {
            // SAFETY: by contract.
            unsafe { System.dealloc(object, layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_own() {
            // SAFETY: by contract.
            unsafe { MEMCG.alloc_zeroed(layout) }
        } else {
            // SAFETY: by contract.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn realloc(&self, object: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_own() {
            // SAFETY: by contract.
            unsafe { MEMCG.realloc(object, layout, size) }
        } else {
            // SAFETY: by contract.
            unsafe { System.realloc(object, layout, size) }
        }
    }
}

/// Runs before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    if is_own() {
        assert!(memcg::is_installed(), "the first allocation makes the root");
        Group::root().set_max(MAX).expect("the root is accounted, and nothing is there yet");
        // SAFETY: the function takes nothing.
        unsafe { libc::atexit(end) };
    }
}

extern "C" fn end() {
    let Ok(log) = std::env::var("ECOSYSTEM_LOG") else { return };
    let line = format!("{}\n", Group::root().peak());
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
    let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()));
}
