//! A named cache of objects of one type: the opt-in form of a slab cache.

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use memcg_accounting::sync::{AtomicU64, AtomicUsize, Ordering};

use crate::error::OverLimit;
use crate::scope::{self, fallible, unaccounted};

/// Makes objects of one type, and counts them by name.
///
/// The allocator serves every size class from spans of equal objects, so that a cache needs no
/// pages of its own: objects of all caches of a class lie together, and a thousand caches do
/// not mean a thousand half-empty spans. What a cache adds is what is otherwise not there: an
/// allocation that can be refused instead of ending the process, a count by name, and a say on
/// whether the objects are charged.
///
/// Clones are handles to the same cache. All methods may be called from any thread.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::{Group, ObjectCache};
///
/// struct Connection {
///     buffer: [u8; 900],
/// }
///
/// let connections = ObjectCache::<Connection>::new("connections");
/// let acme = Group::root().builder("acme-objects").max(8 << 10).build()?;
/// let mut open = Vec::with_capacity(100);
/// let refused = loop {
///     match acme.run(|| connections.alloc(Connection { buffer: [0; 900] })) {
///         Ok(connection) => open.push(connection),
///         Err(over) => break over,
///     }
/// };
/// assert_eq!(refused.group(), Some(acme));
/// assert_eq!(connections.stat().live, open.len());
/// assert_eq!(connections.stat().refused, 1);
/// # Ok::<(), memcg::Error>(())
/// ```
///
/// Source: `kmem_cache_create` with and without `SLAB_ACCOUNT`, and `memcg_register_cache` of
/// 2012.
pub struct ObjectCache<T> {
    shared: Arc<Shared>,
    objects: PhantomData<fn() -> T>,
}

/// What the handles and the objects of a cache share.
///
/// # Invariants
///
/// - The objects that live are the counts of the `Arc` that are not handles.
#[derive(Debug)]
struct Shared {
    name: Box<str>,
    is_accounted: bool,
    handles: AtomicUsize,
    allocated: AtomicU64,
    refused: AtomicU64,
}

/// What an [`ObjectCache`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectCacheStat {
    /// Objects that live now.
    pub live: usize,
    /// Objects that were ever made.
    pub allocated: u64,
    /// Allocations that were refused.
    pub refused: u64,
    /// Bytes of one object, as its type says; the size class may be larger.
    pub object_size: usize,
}

impl<T> Clone for ObjectCache<T> {
    fn clone(&self) -> Self {
        // Relaxed: a count that orders nothing.
        self.shared.handles.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared), objects: PhantomData }
    }
}

impl<T> Drop for ObjectCache<T> {
    fn drop(&mut self) {
        self.shared.handles.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> fmt::Debug for ObjectCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, stat) = (self.name(), self.stat());
        f.debug_struct("ObjectCache").field("name", &name).field("stat", &stat).finish()
    }
}

impl<T> ObjectCache<T> {
    /// A cache whose objects are charged to the group that is current where they are made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::build(name, true)
    }

    /// A cache whose objects are charged to nobody.
    #[must_use]
    pub fn unaccounted(name: &str) -> Self {
        Self::build(name, false)
    }

    /// The cache's own record belongs to nobody.
    fn build(name: &str, is_accounted: bool) -> Self {
        let shared = unaccounted(|| {
            Arc::new(Shared {
                name: name.into(),
                is_accounted,
                handles: AtomicUsize::new(1),
                allocated: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            })
        });
        Self { shared, objects: PhantomData }
    }

    /// The name that the cache was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether objects are charged.
    #[must_use]
    pub fn is_accounted(&self) -> bool {
        self.shared.is_accounted
    }

    /// Makes an object. Costs what an allocation of its size costs, and two counts.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] where a group of the way up has no room, whatever
    /// [`OnLimit`](crate::OnLimit) says, or the system no memory. `value` is dropped then; see
    /// [`alloc_with`](ObjectCache::alloc_with) for values that are made only if there is room.
    pub fn alloc(&self, value: T) -> Result<CacheBox<T>, OverLimit> {
        self.alloc_with(|| value)
    }

    /// Makes an object from what `f` answers, which is called when there is room for it.
    ///
    /// # Errors
    ///
    /// As [`alloc`](ObjectCache::alloc); `f` is not called then.
    pub fn alloc_with(&self, f: impl FnOnce() -> T) -> Result<CacheBox<T>, OverLimit> {
        let memory = self.memory()?;
        // Frees the memory if `f` unwinds.
        let place = Place { memory };
        let value = f();
        // SAFETY: the memory is ours and has the layout of a `T`.
        unsafe { memory.write(value) };
        mem::forget(place);
        self.shared.allocated.fetch_add(1, Ordering::Relaxed);
        Ok(CacheBox { object: memory, cache: Arc::clone(&self.shared), owns: PhantomData })
    }

    fn memory(&self) -> Result<NonNull<T>, OverLimit> {
        let layout = Layout::new::<T>();
        if layout.size() == 0 {
            return Ok(NonNull::dangling());
        }
        let _ = scope::take_refusal();
        // SAFETY: the size is not 0.
        let take = || fallible(|| unsafe { alloc(layout) });
        let memory = if self.shared.is_accounted { take() } else { unaccounted(take) };
        NonNull::new(memory.cast()).ok_or_else(|| {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            OverLimit::of_last_refusal(layout.size() as u64)
        })
    }

    /// The cache's counts. Each may lag where other threads are at work.
    #[must_use]
    pub fn stat(&self) -> ObjectCacheStat {
        let handles = self.shared.handles.load(Ordering::Relaxed);
        ObjectCacheStat {
            live: Arc::strong_count(&self.shared).saturating_sub(handles),
            allocated: self.shared.allocated.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            object_size: size_of::<T>(),
        }
    }
}

/// Memory for a `T` that is freed when this is dropped.
struct Place<T> {
    memory: NonNull<T>,
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let layout = Layout::new::<T>();
        if layout.size() != 0 {
            // SAFETY: the memory came from `alloc` with this layout (`ObjectCache::memory`), and
            // nobody uses it: its owner is gone, or never was.
            unsafe { dealloc(self.memory.as_ptr().cast(), layout) };
        }
    }
}

/// An object of an [`ObjectCache`]: like a [`Box`], counted by the cache.
///
/// It is `Send` and `Sync` where `T` is, and may outlive the cache. What the object's drop panics with
/// goes to the caller; its place is freed all the same.
///
/// # Invariants
///
/// - `object` is initialised, came from [`ObjectCache::alloc_with`], and is this one's alone.
pub struct CacheBox<T> {
    object: NonNull<T>,
    cache: Arc<Shared>,
    owns: PhantomData<T>,
}

// SAFETY: it owns its object, as a `Box` does; the cache's record is `Send` and `Sync`.
unsafe impl<T: Send> Send for CacheBox<T> {}
// SAFETY: it gives shared access to its object, as a `Box` does.
unsafe impl<T: Sync> Sync for CacheBox<T> {}

impl<T> Unpin for CacheBox<T> {}

impl<T> CacheBox<T> {
    /// The name of the object's cache.
    pub fn cache_name(this: &Self) -> &str {
        &this.cache.name
    }

    /// Moves the object out, and frees its place.
    #[must_use]
    pub fn into_inner(this: Self) -> T {
        let this = mem::ManuallyDrop::new(this);
        let _place = Place { memory: this.object };
        // SAFETY: `this` is not dropped, so its count of the cache is taken out once.
        let _cache = unsafe { ptr::read(&raw const this.cache) };
        // SAFETY: the object is initialised, and not used again: its place is freed as memory.
        unsafe { this.object.read() }
    }
}

impl<T> Drop for CacheBox<T> {
    fn drop(&mut self) {
        // Frees the place also if the object's drop unwinds.
        let _place = Place { memory: self.object };
        // SAFETY: the object is ours, and dropped once.
        unsafe { ptr::drop_in_place(self.object.as_ptr()) };
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
