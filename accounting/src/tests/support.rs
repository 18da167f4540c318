//! What the tests share: small trees, and a source of memory that counts and runs out.

use core::cell::Cell;
use std::boxed::Box;
use std::ptr;

use crate::{Dying, GroupRef, Limit, Payer, Root, SYSTEM, Settings, Source, Tag, Tree, Want};

/// A tree for a test, never freed.
pub(super) fn tree(root: Root) -> &'static Tree {
    let tree: &'static Tree = Box::leak(Box::new(Tree::new()));
    assert!(tree.make(root, &SYSTEM));
    tree
}

/// Settings with this hard limit.
pub(super) fn max(bytes: u64) -> Settings {
    Settings { max: Limit::Bytes(bytes), ..Settings::default() }
}

/// A child without limits.
pub(super) fn child(tree: &Tree, parent: GroupRef, name: &str) -> GroupRef {
    tree.create(parent, name, Settings::default()).expect("created")
}

/// A child that is held to `bytes`.
pub(super) fn limited(tree: &Tree, parent: GroupRef, name: &str, bytes: u64) -> GroupRef {
    tree.create(parent, name, max(bytes)).expect("created")
}

/// Takes a dying group, and what it kept alone, offline.
pub(super) fn offline(tree: &Tree, dying: Option<Dying>) {
    let mut dying = dying;
    while let Some(group) = dying {
        dying = tree.offline(group);
    }
}

/// Gives a handle back, with what follows from it.
pub(super) fn end(tree: &Tree, group: GroupRef) {
    offline(tree, tree.put(group));
}

/// Charges exactly `bytes` to `group`, which must fit.
pub(super) fn charge(tree: &Tree, group: GroupRef, bytes: u64) -> Tag {
    charge_as(tree, tree.payer(group), bytes)
}

/// Charges exactly `bytes` to `payer`, which must fit.
pub(super) fn charge_as(tree: &Tree, payer: Payer, bytes: u64) -> Tag {
    let charged = tree.charge(payer, Want::exactly(bytes)).expect("fits");
    assert_eq!(charged.bytes, bytes);
    charged.tag
}

/// Contexts that somebody uses, the accounted root's too.
pub(super) fn live_contexts(tree: &Tree) -> usize {
    (1..tree.contexts.len())
        .filter(|&tag| tree.contexts.get(tag).is_some_and(|context| !context.is_idle()))
        .count()
}

std::thread_local! {
    static MAPPED: Cell<usize> = const { Cell::new(0) };
    static MAPS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The system's pages, counted per thread, and refused after [`allow_maps`] of them.
pub(super) static METERED: Source = Source { map: metered_map, unmap: metered_unmap };

/// Lets this thread map `n` times more.
pub(super) fn allow_maps(n: usize) {
    MAPS_LEFT.set(n);
}

/// Bytes that this thread has mapped from [`METERED`] and not given back.
pub(super) fn mapped() -> usize {
    MAPPED.get()
}

fn metered_map(size: usize) -> *mut u8 {
    let left = MAPS_LEFT.get();
    if left == 0 {
        return ptr::null_mut();
    }
    MAPS_LEFT.set(left - 1);
    MAPPED.set(MAPPED.get() + size);
    (SYSTEM.map)(size)
}

/// # Safety
///
/// See [`Source::unmap`].
unsafe fn metered_unmap(memory: *mut u8, size: usize) {
    MAPPED.set(MAPPED.get() - size);
    // SAFETY: by contract of `unmap`, for `metered_map` only passes on.
    unsafe { (SYSTEM.unmap)(memory, size) };
}
