//! A counted object that can be in an [`Lru`](super::Lru).

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use memcg_accounting::sync::{AtomicBool, Ordering};
use memcg_shrink::Links;

/// What a node is in memory.
#[repr(C)]
struct Inner<T> {
    links: Links,
    used: AtomicBool,
    value: T,
}

/// A counted pointer to an object that can be in an [`Lru`](super::Lru): like [`Arc`], with room
/// for the list's links, so that adding never allocates.
///
/// The memory is charged to the group that is current where the node is made, and that group's
/// part of a list is where it is added.
///
/// As an [`Arc`] it is `Send` and `Sync` where `T` is both, and covariant in `T`. Whoever drops the
/// last of its counts drops the value: a list may, in [`Lru::walk`](super::Lru::walk) or when it is
/// dropped itself.
pub struct LruNode<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for LruNode<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T: fmt::Debug> fmt::Debug for LruNode<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LruNode").field(&**self).finish()
    }
}

impl<T> Deref for LruNode<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner.value
    }
}

impl<T> LruNode<T> {
    /// Allocates a node, in the current group.
    #[must_use]
    pub fn new(value: T) -> Self {
        let (links, used) = (Links::new(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { links, used, value }) }
    }

    /// Notes that the object was used, for the next walk. One store, no lock.
    pub fn mark_used(&self) {
        // Relaxed: a hint. The load keeps the line shared where the mark is there already.
        if !self.inner.used.load(Ordering::Relaxed) {
            self.inner.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the object was used since the last time that this was asked.
    #[must_use]
    pub fn take_used(&self) -> bool {
        self.inner.used.swap(false, Ordering::Relaxed)
    }

    /// Whether the node is in a list. May change right after.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.inner.links.is_linked()
    }

    /// Whether the two are the same node.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The links: a pointer to the whole node, of which they are the first part.
    pub(super) fn links(&self) -> NonNull<Links> {
        let inner: *const Inner<T> = Arc::as_ptr(&self.inner);
        // SAFETY: an `Arc`'s pointer is not null.
        unsafe { NonNull::new_unchecked(inner.cast_mut().cast()) }
    }

    /// An address in the node's memory.
    pub(super) fn address(&self) -> usize {
        self.links().addr().get()
    }

    /// Leaves this count to a list.
    pub(super) fn leak(self) {
        let _ = Arc::into_raw(self.inner);
    }

    /// Takes back a count that [`leak`](LruNode::leak) left.
    ///
    /// # Safety
    ///
    /// - `links` came from [`links`](LruNode::links) of a node of this type.
    /// - A leaked count of it is taken back once.
    pub(super) unsafe fn from_links(links: NonNull<Links>) -> Self {
        // SAFETY: the links are the first part of what the `Arc` holds, and the count is ours by
        // contract.
        Self { inner: unsafe { Arc::from_raw(links.as_ptr().cast::<Inner<T>>()) } }
    }

    /// Another count of a node that a list holds.
    ///
    /// # Safety
    ///
    /// - `links` came from [`links`](LruNode::links) of a node of this type.
    /// - Somebody has a count of it throughout the call.
    pub(super) unsafe fn count_from_links(links: NonNull<Links>) -> Self {
        let inner = links.as_ptr().cast::<Inner<T>>();
        // SAFETY: by contract there is a count, so the content is alive.
        unsafe { Arc::increment_strong_count(inner) };
        // SAFETY: the count was made above, and is ours.
        Self { inner: unsafe { Arc::from_raw(inner) } }
    }
}
