//! What a program tells jemalloc by the symbol counts.

use std::ffi::{CStr, c_char};

use tikv_jemalloc_sys as jemalloc;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// The first byte of the settings: a pointer, for jemalloc.
// SAFETY: what jemalloc takes by this name, a pointer to a string that ends with a NUL; there is no other.
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &u8 = &b"lg_tcache_max:16,dirty_decay_ms:3000\0"[0];

fn decay_ms(name: &CStr) -> isize {
    let mut value: isize = 0;
    let (place, mut size) = ((&raw mut value).cast(), size_of::<isize>());
    let null = std::ptr::null_mut();
    let name: *const c_char = name.as_ptr();
    // SAFETY: the leaves are `ssize_t`; nothing is written.
    assert_eq!(unsafe { jemalloc::mallctl(name, place, &raw mut size, null, 0) }, 0);
    value
}

#[test]
fn what_the_program_sets_stays() {
    drop(std::hint::black_box(vec![1_u8; 1 << 20]));
    assert_eq!(decay_ms(c"arenas.dirty_decay_ms"), 3000);
    assert_eq!(decay_ms(c"arena.0.dirty_decay_ms"), 3000);
    // Not said: as memcg has it.
    assert_eq!(decay_ms(c"arenas.muzzy_decay_ms"), 0);
    assert_eq!(decay_ms(c"arena.0.muzzy_decay_ms"), 0);
}
