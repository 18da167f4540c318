//! A named cache of objects of one type: the opt-in form of a slab cache.

mod builder;
mod kept;
mod object;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, OnceLock};

use memcg_accounting::Name;
use memcg_accounting::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use memcg_shrink::ShrinkerId;

pub use self::builder::ObjectCacheBuilder;
pub use self::object::CacheBox;

use self::kept::{Evicts, Kept};
use self::object::Place;
use crate::error::OverLimit;
use crate::guarded::Thrown;
use crate::objects::Counted;
use crate::path::Shown;
use crate::process::ENGINE;
use crate::scope::{self, fallible, unaccounted};
use crate::shrinker::ShrinkerBuilder;

/// Makes objects of one type, and counts them by name.
///
/// The allocator serves every size class from spans of equal objects, so that a cache needs no
/// pages of its own: objects of all caches of a class lie together, and a thousand caches do
/// not mean a thousand half-empty spans. What a cache adds is what is otherwise not there: an
/// allocation that can be refused instead of ending the process, a count by name, and a say on
/// whether the objects are charged.
///
/// A cache that is [built](ObjectCache::builder) can also keep objects that come back, constructed, for
/// who [gets](ObjectCache::get) one next in the same group, and be shrunk.
///
/// | | new objects | objects that come back | when their group needs room |
/// |---|---|---|---|
/// | [`new`](ObjectCache::new), [`unaccounted`](ObjectCache::unaccounted) | from a value | go | - |
/// | with [`ctor`](ObjectCacheBuilder::ctor) or [`keep_idle`](ObjectCacheBuilder::keep_idle) | from the constructor, or a value | are idle, in their group's part of an LRU | idle ones go, the oldest first |
/// | with [`shrink`](ObjectCacheBuilder::shrink) | as above | as above | the shrink function lets go of live ones |
///
/// Clones are handles to the same cache; with the last one idle objects go. All methods may be called
/// from any thread: it is `Send` and `Sync` whatever `T` is, for only a built one takes objects back,
/// and that wants `T: Send`. It is invariant in `T`.
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
    shared: Arc<Shared<T>>,
}

// What a panic leaves behind in a cache is whole.
impl<T> UnwindSafe for ObjectCache<T> {}
impl<T> RefUnwindSafe for ObjectCache<T> {}

/// What the handles and the objects of a cache share.
///
/// # Invariants
///
/// - The objects that live are the counts of the `Arc` that are not handles, nor the shrinker's.
#[derive(Debug)]
struct Shared<T> {
    name: Box<str>,
    _counted: Counted,
    is_accounted: bool,
    /// Of a built cache.
    kept: Option<Kept<T>>,
    shrinker: OnceLock<ShrinkerId>,
    is_shrinker_there: AtomicBool,
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
    /// Objects that are idle now.
    pub idle: usize,
    /// Objects that were ever made.
    pub allocated: u64,
    /// How often an idle object was taken again.
    pub reused: u64,
    /// Idle objects that were evicted: for room, or because there were too many.
    pub evicted: u64,
    /// Allocations that were refused.
    pub refused: u64,
    /// Bytes of one object, as its type says; the size class may be larger.
    pub object_size: usize,
}

impl<T> Clone for ObjectCache<T> {
    fn clone(&self) -> Self {
        // Relaxed: a count that orders nothing.
        self.shared.handles.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for ObjectCache<T> {
    /// With the last handle idle objects go: all, whatever the drops of some panic with, of which the
    /// first goes on. It waits for an eviction in flight, a second at most.
    fn drop(&mut self) {
        // Relaxed: the fence orders it.
        let was_last = self.shared.handles.fetch_sub(1, Ordering::Relaxed) == 1;
        let Some(kept) = self.shared.kept().filter(|_| was_last) else { return };
        if let Some(&shrinker) = self.shared.shrinker.get()
            && ENGINE.unregister(shrinker)
        {
            self.shared.is_shrinker_there.store(false, Ordering::Relaxed);
        }
        // Partner: the fence in `Kept::give_back`.
        fence(Ordering::SeqCst);
        let mut thrown = Thrown::default();
        kept.drop_idle(&mut thrown);
        thrown.go_on();
    }
}

impl<T> Shared<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kept(&self) -> Option<&Kept<T>> {
        self.kept.as_ref()
    }

    /// Whether somebody can still ask for an object.
    fn has_handles(&self) -> bool {
        self.handles.load(Ordering::Relaxed) != 0
    }
}

impl<T> fmt::Debug for ObjectCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, stat) = (Shown(self.name()), self.stat());
        f.debug_struct("ObjectCache").field("name", &name).field("stat", &stat).finish()
    }
}

impl<T> ObjectCache<T> {
    /// A cache whose objects are charged to the group that is current where they are made. Of `name` 255 bytes are
    /// kept, up to the end of a character.
    ///
    /// # Panics
    ///
    /// Panics where there are as many objects as [`set_max_objects`](crate::set_max_objects) has it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::make(name, true, None)
    }

    /// A cache whose objects are charged to nobody.
    #[must_use]
    pub fn unaccounted(name: &str) -> Self {
        Self::make(name, false, None)
    }

    /// Begins to make a cache that keeps idle objects, or that can be shrunk.
    pub fn builder(name: &str) -> ObjectCacheBuilder<T>
    where
        T: Send + 'static,
    {
        ObjectCacheBuilder::new(name)
    }

    /// The cache's own record belongs to nobody.
    #[track_caller]
    fn make(name: &str, is_accounted: bool, kept: Option<Kept<T>>) -> Self {
        let counted = Counted::new();
        let shared = unaccounted(|| {
            Arc::new(Shared {
                name: Name::cut(name).0.as_str().into(),
                _counted: counted,
                is_accounted,
                kept,
                shrinker: OnceLock::new(),
                is_shrinker_there: AtomicBool::new(false),
                handles: AtomicUsize::new(1),
                allocated: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            })
        });
        Self { shared }
    }

    /// Registers the shrinker of a built cache. Without memory for its record nothing is evicted.
    ///
    /// # Panics
    ///
    /// Panics if there are as many objects as may be.
    #[track_caller]
    fn register(&self)
    where
        T: Send + 'static,
    {
        let counted = Counted::new();
        let shrinker = unaccounted(|| Arc::new(Evicts(Arc::clone(&self.shared))));
        let builder = ShrinkerBuilder::new(self.name()).marked_by_lists();
        let Some(id) = builder.register_with(counted, shrinker).into_id() else { return };
        // Relaxed: the cache is nobody else's yet.
        self.shared.is_shrinker_there.store(true, Ordering::Relaxed);
        let _ = self.shared.shrinker.set(id);
        for list in self.shared.kept().into_iter().flat_map(Kept::lists) {
            list.set_shrinker(id);
        }
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
        // Frees the memory if `f` unwinds.
        let place = self.place()?;
        let value = f();
        // SAFETY: the memory is ours and has the layout of a `T`.
        unsafe { place.object().write(value) };
        self.shared.allocated.fetch_add(1, Ordering::Relaxed);
        let object = place.leave();
        if let Some(kept) = self.shared.kept() {
            // SAFETY: the object is new.
            unsafe { kept.note_live(object) };
        }
        // SAFETY: the object is initialised, this one's alone, and listed.
        Ok(unsafe { CacheBox::new(object, Arc::clone(&self.shared)) })
    }

    /// An idle object of the current group, or one that the [`ctor`](ObjectCacheBuilder::ctor) makes.
    ///
    /// The idle one is the one that was used last, as it was left or [reset](ObjectCacheBuilder::reset).
    /// It is charged to the group already: groups do not get each other's, but for a parent, which
    /// has those of a group that is gone. Those of an [unaccounted](ObjectCacheBuilder::unaccounted) cache
    /// are anybody's. `O(1)`, some short locks.
    ///
    /// # Errors
    ///
    /// As [`alloc`](ObjectCache::alloc), where none is idle.
    ///
    /// # Panics
    ///
    /// Panics if the cache was built without a `ctor`: see [`get_with`](ObjectCache::get_with).
    pub fn get(&self) -> Result<CacheBox<T>, OverLimit> {
        let Some(ctor) = self.shared.kept().and_then(Kept::ctor) else {
            panic!("the cache was built without a `ctor`")
        };
        self.get_with(ctor)
    }

    /// An idle object of the current group, or one made from what `f` answers: as
    /// [`get`](ObjectCache::get) and [`alloc_with`](ObjectCache::alloc_with).
    ///
    /// # Errors
    ///
    /// As [`alloc`](ObjectCache::alloc), where none is idle.
    pub fn get_with(&self, f: impl FnOnce() -> T) -> Result<CacheBox<T>, OverLimit> {
        let part = || kept::own_part(self.shared.is_accounted);
        if let Some(object) = self.shared.kept().and_then(|kept| kept.take(part())) {
            // SAFETY: the object was idle, is nobody else's now, and is listed.
            return Ok(unsafe { CacheBox::new(object, Arc::clone(&self.shared)) });
        }
        self.alloc_with(f)
    }

    /// Drops all idle objects, of all groups. `O(idle objects)`.
    ///
    /// Source: `kmem_cache_shrink`.
    ///
    /// # Panics
    ///
    /// With the first of what drops of objects panic with, after all are dropped.
    pub fn drop_idle(&self) {
        let mut thrown = Thrown::default();
        if let Some(kept) = self.shared.kept() {
            kept.drop_idle(&mut thrown);
        }
        thrown.go_on();
    }

    fn place(&self) -> Result<Place<T>, OverLimit> {
        let is_linked = self.shared.kept.is_some();
        let _ = scope::take_refusal();
        let take = || fallible(|| Place::new(is_linked));
        let place = if self.shared.is_accounted { take() } else { unaccounted(take) };
        place.ok_or_else(|| {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            OverLimit::of_last_refusal(Place::<T>::layout(is_linked).size() as u64)
        })
    }

    /// The cache's counts. Each may lag where other threads are at work.
    #[must_use]
    pub fn stat(&self) -> ObjectCacheStat {
        let others = self.shared.handles.load(Ordering::Relaxed)
            + usize::from(self.shared.is_shrinker_there.load(Ordering::Relaxed));
        let (idle, reused, evicted) = self.shared.kept().map_or((0, 0, 0), Kept::counts);
        ObjectCacheStat {
            live: Arc::strong_count(&self.shared).saturating_sub(others),
            idle,
            reused,
            evicted,
            allocated: self.shared.allocated.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            object_size: size_of::<T>(),
        }
    }
}
