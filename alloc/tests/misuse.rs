//! Misuse that the features `debug-checks` and `hardened` find: each in a process of its own, which
//! says what it found, of what class and group, in one line, and aborts.

#![cfg(any(feature = "debug-checks", feature = "hardened"))]

mod support;

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::thread;

use memcg::Group;
use support::{case, pass, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a small layout")
}

fn new(size: usize) -> *mut u8 {
    // SAFETY: no case asks for 0 bytes.
    let object = unsafe { alloc(layout(size, 8)) };
    assert!(!object.is_null());
    object
}

/// Frees what need not be its to free: this is what is tested.
fn free(object: *mut u8, layout: Layout) {
    // SAFETY: none. The allocator is to find out before it believes it.
    unsafe { dealloc(black_box(object), layout) };
}

/// Writes where it may not. The byte is mapped: it is the object's own class's, or a free object's.
fn write(object: *mut u8, byte: usize) {
    // SAFETY: as above; nobody else has the byte.
    unsafe { black_box(object).wrapping_add(byte).write_volatile(0x5A) };
}

/// Has the kernel end the test, if nothing was found.
type Misuse = fn();

struct Case {
    name: &'static str,
    misuse: Misuse,
    /// What it is, after `memcg: `; the address follows.
    what: &'static str,
    /// What it is an object of, after the address.
    of: &'static str,
}

/// A large object's size.
const LARGE: usize = 100_000;

fn in_group(misuse: impl FnOnce()) {
    let top = Group::root().create("tenants").expect("fresh");
    let group = top.create("acme").expect("fresh");
    group.run(misuse);
}

/// What both features find.
const BOTH: &[Case] = &[
    Case {
        name: "double free",
        misuse: || {
            let object = new(60);
            free(object, layout(60, 8));
            free(object, layout(60, 8));
        },
        what: "double free",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "double free by another thread",
        misuse: || {
            // Of a class that a thread's start has no use for.
            let object = new(3000).expose_provenance();
            let free = move || free(std::ptr::with_exposed_provenance_mut(object), layout(3000, 8));
            free();
            thread::spawn(free).join().expect("it does not come back");
        },
        what: "double free",
        of: "class 3072, group /tenants/acme",
    },
    Case {
        name: "double free of what is back in its span",
        misuse: || {
            // Another one keeps the span.
            let (object, _other) = (new(1000), new(1000));
            free(object, layout(1000, 8));
            memcg::purge();
            free(object, layout(1000, 8));
        },
        what: "double free",
        of: if cfg!(feature = "debug-checks") {
            "class 1024, group /tenants/acme"
        } else {
            // The tag went when it came back to its span.
            "class 1024, no group"
        },
    },
    Case {
        name: "double free of a large object",
        misuse: || {
            let object = new(LARGE);
            free(object, layout(LARGE, 8));
            free(object, layout(LARGE, 8));
        },
        what: "double free",
        of: "large, no group",
    },
    Case {
        name: "another size of the same class",
        misuse: || free(new(60), layout(61, 8)),
        what: "wrong layout, 61 bytes aligned to 8 instead of 60 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "another class",
        misuse: || free(new(60), layout(200, 8)),
        what: "wrong layout, 200 bytes aligned to 8 instead of 60 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "another alignment",
        misuse: || free(new(60), layout(60, 4)),
        what: "wrong layout, 60 bytes aligned to 4 instead of 60 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "a large size for a small object",
        misuse: || free(new(60), layout(LARGE, 8)),
        what: "wrong layout, 100000 bytes aligned to 8 instead of 60 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "a small size for a large object",
        misuse: || free(new(LARGE), layout(60, 8)),
        what: "wrong layout, 60 bytes aligned to 8 instead of 100000 aligned to 8",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "another size of a large object",
        misuse: || free(new(LARGE), layout(LARGE - 1, 8)),
        what: "wrong layout, 99999 bytes aligned to 8 instead of 100000 aligned to 8",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "on the stack",
        misuse: || {
            let mut local = [0_u64; 8];
            free(local.as_mut_ptr().cast(), layout(60, 8));
        },
        what: "free of a pointer that is not this allocator's",
        of: "no class, no group",
    },
    Case {
        name: "a static, with a large layout",
        misuse: || free((&raw const ALLOC).cast::<u8>().cast_mut(), layout(LARGE, 8)),
        what: "free of a pointer that is not this allocator's",
        of: "no class, no group",
    },
    Case {
        name: "no address of user space",
        misuse: || free(std::ptr::without_provenance_mut(usize::MAX - 63), layout(60, 8)),
        what: "free of a pointer that is not this allocator's",
        of: "no class, no group",
    },
    Case {
        name: "into an object",
        misuse: || free(new(60).wrapping_add(8), layout(60, 8)),
        what: "free of a pointer into an object",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "into a large object",
        misuse: || free(new(LARGE).wrapping_add(16), layout(LARGE, 8)),
        what: "free of a pointer into an object",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "into a large object, a little",
        misuse: || free(new(LARGE).wrapping_add(8), layout(LARGE, 8)),
        what: "free of a pointer into an object",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "an object that was never handed out",
        misuse: || {
            // Of a class that nothing else here uses, the first span has others.
            let object = new(20_000);
            let others = [-20_480, 20_480].map(|by| object.wrapping_offset(by));
            let is_ours = |other: &&*mut u8| other.addr() >> 16 == object.addr() >> 16;
            free(*others.iter().find(is_ours).expect("a span has several"), layout(20_000, 8));
        },
        what: "free of an object that was never handed out",
        of: "class 20480, no group",
    },
    Case {
        name: "realloc of what is free",
        misuse: || {
            let object = new(60);
            free(object, layout(60, 8));
            // SAFETY: none, as in `free`.
            black_box(unsafe { realloc(object, layout(60, 8), 500) });
        },
        what: "double free",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "realloc with another layout",
        misuse: || {
            // SAFETY: none, as in `free`.
            black_box(unsafe { realloc(new(60), layout(64, 8), 63) });
        },
        what: "wrong layout, 64 bytes aligned to 8 instead of 60 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "realloc of a large object with another layout",
        misuse: || {
            // SAFETY: none, as in `free`.
            black_box(unsafe { realloc(new(LARGE), layout(2 * LARGE, 8), 3 * LARGE) });
        },
        what: "wrong layout, 200000 bytes aligned to 8 instead of 100000 aligned to 8",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "the old layout after a realloc in place",
        misuse: || {
            let object = new(60);
            // SAFETY: the object has this layout.
            let same = unsafe { realloc(object, layout(60, 8), 58) };
            assert_eq!(same, object);
            free(object, layout(60, 8));
        },
        what: "wrong layout, 60 bytes aligned to 8 instead of 58 aligned to 8",
        of: "class 64, group /tenants/acme",
    },
];

/// What `debug-checks` finds.
const CHECKS: &[Case] = &[
    Case {
        name: "a byte past the end, found by free",
        misuse: || {
            let object = new(60);
            write(object, 60);
            free(object, layout(60, 8));
        },
        what: "write past the end, to byte 60",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "the last byte of the class, found by realloc",
        misuse: || {
            let object = new(1000);
            write(object, 1023);
            // SAFETY: the object has this layout.
            black_box(unsafe { realloc(object, layout(1000, 8), 2000) });
        },
        what: "write past the end, to byte 1023",
        of: "class 1024, group /tenants/acme",
    },
    Case {
        name: "a byte past the end after a realloc in place",
        misuse: || {
            // SAFETY: the object has this layout.
            let object = unsafe { realloc(new(60), layout(60, 8), 58) };
            write(object, 58);
            free(object, layout(58, 8));
        },
        what: "write past the end, to byte 58",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "a byte past the end of a large object",
        misuse: || {
            let object = new(LARGE);
            write(object, LARGE);
            free(object, layout(LARGE, 8));
        },
        what: "write past the end, to byte 100000",
        of: "large, group /tenants/acme",
    },
    Case {
        name: "a write after free",
        misuse: || {
            let object = new(60);
            free(object, layout(60, 8));
            write(object, 24);
            let again: Vec<*mut u8> = (0..5000).map(|_| new(60)).collect();
            drop(again);
        },
        what: "write after free, to byte 24",
        of: "class 64, group /tenants/acme",
    },
    Case {
        name: "a write after free to what is back in its span",
        misuse: || {
            let (object, _other) = (new(1000), new(1000));
            free(object, layout(1000, 8));
            memcg::purge();
            write(object, 0);
            let again: Vec<*mut u8> = (0..5000).map(|_| new(1000)).collect();
            drop(again);
        },
        what: "write after free, to byte 0",
        of: "class 1024, group /tenants/acme",
    },
];

fn cases() -> impl Iterator<Item = &'static Case> {
    let checks = if cfg!(feature = "debug-checks") { CHECKS } else { &[] };
    BOTH.iter().chain(checks)
}

#[test]
fn each_misuse_ends_the_process_with_a_line_that_names_it() {
    if let Some(name) = case() {
        let case = cases().find(|case| case.name == name).expect("a case");
        return in_group(case.misuse);
    }
    for case in cases() {
        let test = "each_misuse_ends_the_process_with_a_line_that_names_it";
        let ended = run(&mut rerun(test, case.name));
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}: {ended:#?}", case.name);
        let said: Vec<&str> = ended.stderr.lines().collect();
        let [line] = said[..] else { panic!("{}: one line: {ended:#?}", case.name) };
        let rest = line.strip_prefix("memcg: ").and_then(|line| line.strip_prefix(case.what));
        let rest = rest.and_then(|rest| rest.strip_prefix(": 0x"));
        let of = rest.and_then(|rest| rest.split_once(", ")).map(|(address, of)| {
            assert!(usize::from_str_radix(address, 16).is_ok(), "{}: {line}", case.name);
            of
        });
        assert_eq!(of, Some(case.of), "{}: {line}", case.name);
    }
}

/// What a correct program does near the edges finds nothing.
#[test]
fn correct_use_of_every_size_and_alignment_finds_nothing() {
    if support::is_case("correct") {
        return in_group(|| {
            for align in (0..14).map(|shift| 1 << shift) {
                for size in (1..300).chain((9..18).flat_map(|s| (1 << s) - 2..(1 << s) + 3)) {
                    let old = layout(size, align);
                    // SAFETY: the size is not 0.
                    let object = unsafe { alloc(old) };
                    // SAFETY: the object has that many bytes.
                    unsafe { object.write_bytes(0xA5, size) };
                    let size = size * 3 / 2 + 1;
                    // SAFETY: the object has this layout.
                    let object = unsafe { realloc(object, old, size) };
                    // SAFETY: the object has that many bytes.
                    unsafe { object.write_bytes(0xA6, size) };
                    let small = size / 5 + 1;
                    // SAFETY: the object has this layout.
                    let object = unsafe { realloc(object, layout(size, align), small) };
                    // SAFETY: the object has this layout, and nobody uses it any more.
                    unsafe { dealloc(object, layout(small, align)) };
                }
            }
            memcg::drain();
            memcg::purge();
            memcg::check();
        });
    }
    pass("correct_use_of_every_size_and_alignment_finds_nothing", "correct");
}

#[cfg(feature = "hardened")]
mod hardened {
    use super::*;

    /// Whether the bytes hold nothing but `byte`. Reads what may not be read: that is what is
    /// tested. Allocates nothing, for that might be the same memory.
    fn holds(object: *mut u8, mut bytes: std::ops::Range<usize>, byte: u8) -> bool {
        // SAFETY: the bytes are mapped still, and nobody else has them.
        bytes.all(|at| unsafe { object.wrapping_add(at).read_volatile() } == byte)
    }

    #[test]
    fn freed_memory_holds_nothing() {
        if support::is_case("secrets") {
            return in_group(|| {
                for size in [8, 60, 1000, 20_000, LARGE, 1 << 20] {
                    let object = new(size);
                    // SAFETY: the object has that many bytes.
                    unsafe { object.write_bytes(0x5E, size) };
                    free(object, layout(size, 8));
                    assert!(holds(object, 0..size, 0), "{size}");
                }
                // What a smaller size in place leaves, and what moving leaves.
                for (size, then) in [(64, 57), (1 << 20, 80_000), (80_000, 4 << 20)] {
                    let object = new(size);
                    // SAFETY: the object has that many bytes.
                    unsafe { object.write_bytes(0x5E, size) };
                    // SAFETY: the object has this layout.
                    let moved = unsafe { realloc(object, layout(size, 8), then) };
                    assert!(holds(moved, 0..size.min(then), 0x5E), "{size} to {then}");
                    // A redzone follows what is left.
                    let redzone = if cfg!(feature = "debug-checks") { 64 } else { 0 };
                    let left = if moved == object { (then + redzone).min(size) } else { 0 };
                    // What is left of an object within its class goes with it.
                    let gone = moved != object || size > LARGE;
                    assert!(!gone || holds(object, left..size, 0), "{size} to {then}");
                    free(moved, layout(then, 8));
                    assert!(holds(moved, 0..size.max(then), 0), "{size} to {then}");
                }
            });
        }
        pass("hardened::freed_memory_holds_nothing", "secrets");
    }

    #[test]
    fn objects_of_a_fresh_span_come_in_no_order() {
        if support::is_case("order") {
            // A class that nothing else here uses.
            let objects: Vec<usize> = (0..64).map(|_| new(700).addr()).collect();
            let upwards = objects.windows(2).filter(|pair| pair[1] > pair[0]).count();
            // Of 63 fair coins fewer than 8 fall on one side once in 10^10 runs.
            assert!((8..=55).contains(&upwards), "{upwards} of 63: {objects:x?}");
            return;
        }
        pass("hardened::objects_of_a_fresh_span_come_in_no_order", "order");
    }
}
