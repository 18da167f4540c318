//! Has the linker lead calls of these functions, from the allocator and from jemalloc, to the seam of the tests
//! (`tests/faults/seam.rs`).

/// What the seam stands before.
const WRAPPED: [&str; 16] = [
    "mmap",
    "sbrk",
    "madvise",
    "syscall",
    "eventfd",
    "pthread_create",
    "pthread_attr_init",
    "pthread_key_create",
    "pthread_setspecific",
    "pthread_atfork",
    "_rjem_mallocx",
    "_rjem_rallocx",
    "_rjem_xallocx",
    "_rjem_dallocx",
    "_rjem_nallocx",
    "_rjem_mallctl",
];

fn main() {
    for name in WRAPPED {
        println!("cargo::rustc-link-arg-tests=-Wl,--wrap={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
