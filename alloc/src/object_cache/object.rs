//! An object of a cache, and its place in memory.

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::mem::{self, ManuallyDrop, offset_of};
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use memcg_shrink::Links;

use super::Shared;

/// What an object is in memory, in a cache that lists its objects. Else it is alone.
#[repr(C)]
struct Linked<T> {
    links: Links,
    object: T,
}

/// Memory for an object, which is freed when this is dropped; and how it is laid out.
///
/// # Invariants
///
/// - The memory came from `alloc` with [`layout`](Place::layout), or that has no size. If it is
///   linked, its links are initialised, and the pointer may be used for the whole `Linked`.
pub(super) struct Place<T> {
    object: NonNull<T>,
    is_linked: bool,
}

impl<T> Place<T> {
    /// Of an object of a cache.
    ///
    /// # Safety
    ///
    /// - `object` and `is_linked` are those of a place that was [left](Place::leave), which is this
    ///   one's from now on.
    pub(super) unsafe fn of(object: NonNull<T>, is_linked: bool) -> Self {
        // INVARIANT: by contract.
        Self { object, is_linked }
    }

    pub(super) const fn layout(is_linked: bool) -> Layout {
        if is_linked { Layout::new::<Linked<T>>() } else { Layout::new::<T>() }
    }

    /// Allocates a place; `None`: refused.
    pub(super) fn new(is_linked: bool) -> Option<Self> {
        let layout = Self::layout(is_linked);
        if layout.size() == 0 {
            return Some(Self { object: NonNull::dangling(), is_linked });
        }
        // SAFETY: the size is not 0.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        if !is_linked {
            return Some(Self { object: memory.cast(), is_linked });
        }
        let links = memory.cast::<Links>();
        // SAFETY: the memory is ours and has the layout of a `Linked`, of which links are the first
        // part.
        unsafe { links.write(Links::new()) };
        // INVARIANT: the links are initialised, and the pointer is made from that to the whole.
        Some(Self { object: object_of(links), is_linked })
    }

    pub(super) fn object(&self) -> NonNull<T> {
        self.object
    }

    /// Keeps the memory; answers where the object is.
    pub(super) fn leave(self) -> NonNull<T> {
        ManuallyDrop::new(self).object
    }

    /// Drops the object that is there, and frees the memory also if that unwinds.
    ///
    /// # Safety
    ///
    /// - There is an object, which nobody else uses.
    pub(super) unsafe fn destroy(self) {
        // SAFETY: by contract.
        unsafe { ptr::drop_in_place(self.object.as_ptr()) };
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.is_linked);
        if layout.size() == 0 {
            return;
        }
        let memory = if self.is_linked { links_of(self.object).cast() } else { self.object.cast() };
        // SAFETY: the memory came from `alloc` with this layout (type invariant), and nobody uses
        // it: its owner is gone, or never was.
        unsafe { dealloc(memory.as_ptr(), layout) };
    }
}

/// The links of an object, which are the first part of its `Linked`.
pub(super) fn links_of<T>(object: NonNull<T>) -> NonNull<Links> {
    // Wrapping: an object whose memory has no links is not asked for them.
    let links = object.as_ptr().wrapping_byte_sub(offset_of!(Linked<T>, object));
    // SAFETY: an object lies behind its links, so these are not at null.
    unsafe { NonNull::new_unchecked(links.cast()) }
}

/// The object of links that [`links_of`] answered.
pub(super) fn object_of<T>(links: NonNull<Links>) -> NonNull<T> {
    let object = links.as_ptr().wrapping_byte_add(offset_of!(Linked<T>, object));
    // SAFETY: it lies in the same memory as the links, behind them.
    unsafe { NonNull::new_unchecked(object.cast()) }
}

/// An object of an [`ObjectCache`](super::ObjectCache): like a [`Box`], counted by the cache.
///
/// It is `Send` and `Sync` where `T` is, may outlive the cache, and is invariant in `T`, for a cache
/// that keeps idle objects has it back. What the object's drop panics with goes to the caller; its
/// place is freed all the same.
///
/// # Invariants
///
/// - `object` is initialised, came from a place of `cache`, and is this one's alone. It is in
///   the cache's list of live objects, if there is one.
pub struct CacheBox<T> {
    object: NonNull<T>,
    cache: Arc<Shared<T>>,
    owns: std::marker::PhantomData<T>,
}

// SAFETY: it owns its object, as a `Box` does; the cache's record is `Send` and `Sync`.
unsafe impl<T: Send> Send for CacheBox<T> {}
// SAFETY: it gives shared access to its object, as a `Box` does.
unsafe impl<T: Sync> Sync for CacheBox<T> {}

impl<T> Unpin for CacheBox<T> {}

// What a panic leaves behind in a cache is whole.
impl<T: UnwindSafe> UnwindSafe for CacheBox<T> {}
impl<T: RefUnwindSafe> RefUnwindSafe for CacheBox<T> {}

impl<T> CacheBox<T> {
    /// # Safety
    ///
    /// - What the type's invariants say.
    pub(super) unsafe fn new(object: NonNull<T>, cache: Arc<Shared<T>>) -> Self {
        // INVARIANT: by contract.
        Self { object, cache, owns: std::marker::PhantomData }
    }

    /// The name of the object's cache.
    pub fn cache_name(this: &Self) -> &str {
        this.cache.name()
    }

    /// Moves the object out, and frees its place.
    #[must_use]
    pub fn into_inner(this: Self) -> T {
        let this = ManuallyDrop::new(this);
        // SAFETY: `this` is not dropped, so its count of the cache is taken out once.
        let cache = unsafe { ptr::read(&raw const this.cache) };
        let kept = cache.kept();
        if let Some(kept) = kept {
            // SAFETY: the object is live, of this cache, and this one's alone.
            unsafe { kept.forget_live(this.object) };
        }
        // SAFETY: `this` is not dropped, so the place is this function's.
        let _place = unsafe { Place::of(this.object, kept.is_some()) };
        // SAFETY: the object is initialised, and not used again: its place is freed as memory.
        unsafe { this.object.read() }
    }
}

impl<T> Drop for CacheBox<T> {
    fn drop(&mut self) {
        match self.cache.kept() {
            // SAFETY: the object is live, of this cache, and not used after this.
            Some(kept) => unsafe { kept.give_back(self.object, &self.cache) },
            None => {
                // SAFETY: the object and its place are this one's, and gone after this.
                let place = unsafe { Place::of(self.object, false) };
                // SAFETY: as above.
                unsafe { place.destroy() };
            }
        }
    }
}

/// Destroys an object whose code panics while it is at work on it.
pub(super) struct OrDestroy<T>(Option<Place<T>>);

impl<T> OrDestroy<T> {
    /// # Safety
    ///
    /// - There is an object in `place`, which nobody else uses.
    pub(super) unsafe fn new(place: Place<T>) -> Self {
        Self(Some(place))
    }

    pub(super) fn done(mut self) -> Option<Place<T>> {
        self.0.take()
    }
}

impl<T> Drop for OrDestroy<T> {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            // SAFETY: by the contract of `new`.
            unsafe { place.destroy() };
        }
    }
}

impl<T> Deref for CacheBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the object is initialised, and shared with `self` (type invariant).
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for CacheBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the object is initialised, and exclusive with `self` (type invariant).
        unsafe { self.object.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for CacheBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for CacheBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> AsRef<T> for CacheBox<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

const _: () = assert!(mem::offset_of!(Linked<u8>, links) == 0, "links are the first part");
