//! The global allocator: the fast path, and where it leads.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use memcg_accounting::Root;

use crate::cached::Top;
use crate::class::Class;
use crate::{edge, features, large, record, slow};

/// The allocator: `#[global_allocator] static ALLOC: Memcg = Memcg::new();`.
///
/// Slab-class objects, up to 64 KiB, come from spans of equal objects by way of per-thread
/// magazines; larger ones from jemalloc. Each is tagged with the group that was current when it
/// was allocated, out of band. An allocation that takes an object of its own group's from the
/// magazine charges nothing; a free never does any accounting.
///
/// Nothing unwinds out of it, and no path of it calls the global allocator.
///
/// # Settings of jemalloc
///
/// Those that the application gives it count: the symbol `_rjem_malloc_conf`, `/etc/_rjem_malloc.conf`, the
/// environment's `_RJEM_MALLOC_CONF`. What none of them names is `dirty_decay_ms:1000,muzzy_decay_ms:0`, and, without a
/// symbol of the application's, `tcache:false`: nothing here uses jemalloc's thread caches, and
/// with them 5.3.1 does not survive a new thread where the system has no memory.
///
/// # Examples
///
/// ```
/// #[global_allocator]
/// static ALLOC: memcg::Memcg = memcg::Memcg::new();
///
/// assert!(memcg::is_installed());
/// ```
#[derive(Debug)]
pub struct Memcg {
    root: Root,
}

impl Memcg {
    /// An allocator whose root is untracked: what is in no group is charged to nobody, and a
    /// process without groups pays a predictable branch and no memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { root: Root::Untracked }
    }

    /// An allocator whose root is a group like any other: what is in no group is charged to
    /// it, and its limits hold for the whole process.
    ///
    /// The process is one tree then, with one lock for its charges.
    #[must_use]
    pub const fn accounting_root() -> Self {
        Self { root: Root::Accounted }
    }
}

impl Default for Memcg {
    fn default() -> Self {
        Self::new()
    }
}

/// The fast path of an allocation, or null.
#[inline(always)]
fn alloc_class(class: Class, root: Root) -> *mut u8 {
    let record = record::record();
    if record.gate.enter() {
        // SAFETY: the gate is passed, and the reference ends before `leave`.
        let top = unsafe { record.cached() }.take(class, || record.current(), record.tracks());
        match top {
            Top::Own(object) => {
                record.gate.leave();
                return object;
            }
            // A call in the last place, so that the way above spills nothing.
            // SAFETY: the gate is passed, and not left here.
            Top::Others(slot) => return unsafe { slow::alloc_others(record, class, slot, root) },
            Top::Nothing => record.gate.leave(),
        }
    }
    slow::alloc(class, root)
}

/// The fast path of a free; `false`: it is not for this, and nothing has been done.
///
/// # Safety
///
/// `object` is ours, with this layout, and nobody uses it any more.
#[inline(always)]
unsafe fn dealloc_fast(object: *mut u8, layout: Layout) -> bool {
    match Class::of_common(layout) {
        // SAFETY: by contract.
        Some(class) => unsafe { push(object, class) },
        None => false,
    }
}

/// The straight-line work of a free; `false`: there is no room, and nothing has been done.
///
/// # Safety
///
/// `object` is of `class`, ours, and nobody uses it any more.
#[inline(always)]
unsafe fn push(object: *mut u8, class: Class) -> bool {
    let record = record::record();
    // SAFETY: the gate is passed, and the reference ends before `leave`.
    let pushed = record.gate.enter() && unsafe { record.cached() }.push(class, object);
    record.gate.leave();
    pushed
}

/// Gives a slab-class object back.
///
/// # Safety
///
/// As for [`push`].
#[inline(always)]
unsafe fn dealloc_class(object: *mut u8, class: Class, root: Root) {
    // SAFETY: by contract.
    if !unsafe { push(object, class) } {
        // SAFETY: by contract, and nothing has been done.
        unsafe { slow::dealloc(object, class, root) }
    }
}

/// Every other free. Part of [`dealloc`](Memcg::dealloc), which so becomes too large for its callers: it is a
/// call for them, into the program itself, where a thread-local is found without one (`DESIGN.md`).
///
/// # Safety
///
/// As for [`dealloc_fast`].
#[inline(always)]
unsafe fn dealloc_slow(object: *mut u8, layout: Layout, root: Root) {
    match Class::of(layout) {
        Some(class) => {
            // SAFETY: by contract nobody uses the object any more.
            unsafe { edge::take_back(object, class, layout) };
            // SAFETY: the layout is the one that the object was allocated with.
            unsafe { dealloc_class(object, class, root) }
        }
        None => {
            // SAFETY: as above.
            unsafe { edge::take_back_large(object, layout) };
            // SAFETY: as above.
            unsafe { large::dealloc(object) }
        }
    }
}

// SAFETY: every object answered is at least as large and as aligned as its layout asks (see
// `Class::of`, and jemalloc for the rest), is handed to nobody else until it is given back, and
// a refused `realloc` leaves the old one untouched. Nothing unwinds: shrinkers run behind a
// catch, and nothing else is user code.
unsafe impl GlobalAlloc for Memcg {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout) {
            // SAFETY: what is answered is nobody's yet, and has the layout's class.
            Some(class) => unsafe { edge::hand_out(alloc_class(class, self.root), class, layout) },
            // SAFETY: what is answered is nobody's yet, and has the layout.
            None => unsafe { edge::hand_out_large(large::alloc(layout, false, self.root), layout) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: by contract.
        if features::ACTIVE || !unsafe { dealloc_fast(object, layout) } {
            // SAFETY: by contract, and nothing has been done.
            unsafe { dealloc_slow(object, layout, self.root) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Class::of(layout) else {
            // SAFETY: as in `alloc`.
            return unsafe { edge::hand_out_large(large::alloc(layout, true, self.root), layout) };
        };
        // SAFETY: as in `alloc`.
        let object = unsafe { edge::hand_out(alloc_class(class, self.root), class, layout) };
        if !object.is_null() {
            // SAFETY: the object has that many bytes.
            unsafe { ptr::write_bytes(object, 0, layout.size()) };
        }
        object
    }

    unsafe fn realloc(&self, object: *mut u8, old: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, old.align()) else { return ptr::null_mut() };
        let before = Class::of(old);
        // SAFETY: by the contract of `realloc`, the object is the caller's.
        let live = unsafe { edge::check_live(object, before, old) };
        match (before, Class::of(new)) {
            (Some(before), Some(after)) if before == after => {
                // SAFETY: checked above.
                unsafe { edge::resized(object, live, after, (old, new)) };
                return object;
            }
            (None, None) => {
                edge::resizing_large(object, old);
                // SAFETY: by the contract of `realloc`, and both layouts are large.
                let moved = unsafe { large::realloc(object, old, size, self.root) };
                // SAFETY: as `large::realloc` answered.
                return unsafe { edge::resized_large(object, old, moved, new) };
            }
            _ => {}
        }
        // SAFETY: the size is not 0, by the contract of `realloc`.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both hold that many bytes, and the new object overlaps nothing.
            unsafe { ptr::copy_nonoverlapping(object, moved, old.size().min(size)) };
            match before {
                Some(before) => {
                    // SAFETY: checked above; the caller will not use it any more.
                    unsafe { edge::take_back_later(object, live, before, old) };
                    // SAFETY: this is the class of the layout that it was allocated with.
                    unsafe { dealloc_class(object, before, self.root) };
                }
                // SAFETY: the object has the old layout, and the caller will not use it any more.
                None => unsafe { self.dealloc(object, old) },
            }
        }
        moved
    }
}
