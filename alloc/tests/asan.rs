//! What AddressSanitizer sees of the allocator's objects: only in a build for it, by `ci/asan.sh`.

#![cfg(memcg_asan)]

mod support;

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;

use memcg::Group;
use support::{case, pass, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const LARGE: usize = 100_000;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a small layout")
}

fn new(size: usize) -> *mut u8 {
    // SAFETY: no case asks for 0 bytes.
    unsafe { alloc(layout(size)) }
}

fn free(object: *mut u8, size: usize) {
    // SAFETY: the object has this layout; what it is used for afterwards is what is tested.
    unsafe { dealloc(object, layout(size)) };
}

/// Reads a byte that the case may not read.
fn read(object: *mut u8, byte: usize) {
    // SAFETY: none: the sanitizer is to find it.
    black_box(unsafe { black_box(object).wrapping_add(byte).read_volatile() });
}

const CASES: [(&str, fn()); 9] = [
    ("a read after free, in a magazine", || {
        let object = new(60);
        free(object, 60);
        read(object, 10);
    }),
    ("a read after free, in a span", || {
        let (object, _other) = (new(1000), new(1000));
        free(object, 1000);
        memcg::purge();
        read(object, 0);
    }),
    ("a read after free of a large object", || {
        let object = new(LARGE);
        free(object, LARGE);
        read(object, LARGE / 2);
    }),
    ("a read past the end, in a span", || read(new(60), 60)),
    ("a read past the end of a class, into what was never handed out", || {
        // The first of its span, whose others nobody has.
        read(new(20_480), 20_480);
    }),
    ("a read past the end of a large object", || read(new(LARGE), LARGE)),
    ("a read past the end after a smaller size in place", || {
        // SAFETY: the object has this layout.
        read(unsafe { realloc(new(60), layout(60), 58) }, 58);
    }),
    ("a read past the end of a large object after a smaller size in place", || {
        // SAFETY: the object has this layout.
        read(unsafe { realloc(new(2 * LARGE), layout(2 * LARGE), LARGE) }, LARGE);
    }),
    ("a read of where a large object was before it moved", || {
        let object = new(LARGE);
        // SAFETY: the object has this layout.
        let moved = unsafe { realloc(object, layout(LARGE), 100 * LARGE) };
        assert_ne!(moved, object, "there is no room for it beside others");
        read(object, 0);
    }),
];

#[test]
fn the_sanitizer_reports_uses_after_free_and_overflows_inside_spans() {
    let in_group = |misuse: fn()| Group::root().create("asan").expect("fresh").run(misuse);
    if let Some(name) = case() {
        let case = CASES.iter().find(|case| case.0 == name).expect("a case");
        return in_group(case.1);
    }
    for (name, _) in CASES {
        let test = "the_sanitizer_reports_uses_after_free_and_overflows_inside_spans";
        let ended = run(&mut rerun(test, name));
        assert!(!ended.status.success(), "{name}: {ended:#?}");
        let found = "AddressSanitizer: use-after-poison";
        assert!(ended.stderr.contains(found), "{name}: {ended:#?}");
    }
}

#[test]
fn what_is_live_may_be_used_to_its_last_byte() {
    if support::is_case("live") {
        return Group::root().create("live").expect("fresh").run(|| {
            for size in (1..200).chain([1000, 4095, 20_000, 60_000, 80_000, LARGE, 1 << 20]) {
                let object = new(size);
                // SAFETY: the object has that many bytes.
                unsafe { object.write_bytes(1, size) };
                // SAFETY: the object has this layout.
                let object = unsafe { realloc(object, layout(size), size * 2) };
                read(object, size * 2 - 1);
                // SAFETY: the object has this layout.
                let object = unsafe { realloc(object, layout(size * 2), size / 2 + 1) };
                read(object, size / 2);
                free(object, size / 2 + 1);
            }
            memcg::check();
        });
    }
    pass("what_is_live_may_be_used_to_its_last_byte", "live");
}
