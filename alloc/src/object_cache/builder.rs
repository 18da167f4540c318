//! Making a cache that keeps and shrinks its objects.

use std::fmt;

use memcg_accounting::Name;

use super::ObjectCache;
use super::kept::{Ctor, Kept, Reset, Shrink};
use crate::path::Shown;
use crate::scope::unaccounted;
use crate::shrinker::{Scan, ShrinkControl};

/// Idle objects of a group that are kept where there is a constructor and nobody says how many.
const DEFAULT_IDLE: usize = 64;

/// Makes a cache that keeps idle objects, or that can be shrunk: [`ObjectCache::builder`].
///
/// # Examples
///
/// Buffers that are made once and used again:
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::{Group, ObjectCache};
///
/// let buffers = ObjectCache::<Vec<u8>>::builder("buffers")
///     .ctor(|| Vec::with_capacity(4096))
///     .reset(Vec::clear)
///     .keep_idle(10)
///     .build();
///
/// let acme = Group::root().create("acme-buffers")?;
/// let mut buffer = acme.run(|| buffers.get()).expect("no limit");
/// buffer.extend_from_slice(b"a request");
/// drop(buffer);
/// assert_eq!(buffers.stat().idle, 1);
///
/// let again = acme.run(|| buffers.get()).expect("no limit");
/// assert!(again.is_empty() && again.capacity() >= 4096);
/// assert_eq!((buffers.stat().allocated, buffers.stat().reused), (1, 1));
///
/// drop(again);
/// acme.force_empty()?;
/// assert_eq!((buffers.stat().idle, acme.usage()), (0, 0));
/// # Ok::<(), memcg::Error>(())
/// ```
#[must_use = "`build` makes the cache"]
pub struct ObjectCacheBuilder<T> {
    name: String,
    is_accounted: bool,
    most_idle: Option<usize>,
    ctor: Option<Ctor<T>>,
    reset: Option<Reset<T>>,
    shrink: Option<Shrink>,
}

impl<T> fmt::Debug for ObjectCacheBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectCacheBuilder")
            .field("name", &Shown(&self.name))
            .field("is_accounted", &self.is_accounted)
            .field("most_idle", &self.most_idle)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static> ObjectCacheBuilder<T> {
    pub(super) fn new(name: &str) -> Self {
        // Charged to nobody, as the cache itself is.
        let name = unaccounted(|| Name::cut(name).0.as_str().to_owned());
        Self { name, is_accounted: true, most_idle: None, ctor: None, reset: None, shrink: None }
    }

    /// Charges the objects to nobody. Those that are idle are evicted when the root reclaims, and are
    /// anybody's: [`get`](ObjectCache::get) may answer what another group left, as it was left or
    /// [reset](ObjectCacheBuilder::reset).
    pub fn unaccounted(mut self) -> Self {
        self.is_accounted = false;
        self
    }

    /// Makes objects of [`ObjectCache::get`]. It is called when there is memory for the object and none
    /// is idle, and the object stays made while it is idle. What it allocates is charged to the
    /// group that is current, and, unlike the object, can abort at a limit.
    ///
    /// Source: the `ctor` of `kmem_cache_create`.
    pub fn ctor(mut self, f: impl Fn() -> T + Send + Sync + 'static) -> Self {
        self.ctor = Some(unaccounted(|| Box::new(f) as Ctor<T>));
        self
    }

    /// Makes an object that comes back as good as new, before it is idle. Default: it is kept as it
    /// was left. If it panics the object goes.
    pub fn reset(mut self, f: impl Fn(&mut T) + Send + Sync + 'static) -> Self {
        self.reset = Some(unaccounted(|| Box::new(f) as Reset<T>));
        self
    }

    /// How many idle objects are kept for each group, at most; beyond that the oldest goes. Default:
    /// 64 with a [`ctor`](ObjectCacheBuilder::ctor), else none.
    pub fn keep_idle(mut self, per_group: usize) -> Self {
        self.most_idle = Some(per_group);
        self
    }

    /// Has `f` let go of objects that the program holds, where their group needs room and no object of
    /// it is idle: so many as [`nr_to_scan`](ShrinkControl::nr_to_scan) says, of those that are
    /// charged to [`group`](ShrinkControl::group), by dropping them. It is asked for a group while
    /// that has live objects, on the worker, and keeps what [`Shrinker`](crate::Shrinker) says of
    /// calls. To list objects of a cache costs two short locks for each.
    ///
    /// Source: `shrink_fn` of `struct memcg_cache_struct`, 2012.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use std::sync::{Arc, Mutex};
    /// use memcg::{CacheBox, Group, ObjectCache, Scan};
    ///
    /// type Entries = Mutex<Vec<CacheBox<[u8; 1000]>>>;
    ///
    /// // Names that were looked up, which can be looked up again.
    /// let names = Arc::new(Entries::default());
    /// let shrunk = names.clone();
    /// let cache = ObjectCache::<[u8; 1000]>::builder("names")
    ///     .shrink(move |control| {
    ///         let Ok(mut names) = shrunk.try_lock() else { return Scan::Stop };
    ///         let nr = control.nr_to_scan().min(names.len());
    ///         Scan::Freed(names.drain(..nr).count())
    ///     })
    ///     .build();
    ///
    /// let acme = Group::root().builder("acme-names").max(64 << 10).build()?;
    /// for _ in 0..1000 {
    ///     let name = acme.run(|| cache.alloc([0; 1000])).expect("older names make room");
    ///     memcg::unaccounted(|| names.lock().expect("not poisoned").push(name));
    /// }
    /// assert!(acme.usage() <= 64 << 10);
    /// # names.lock().expect("not poisoned").clear();
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn shrink(
        mut self,
        f: impl Fn(&mut ShrinkControl<'_>) -> Scan + Send + Sync + 'static,
    ) -> Self {
        self.shrink = Some(unaccounted(|| Box::new(f) as Shrink));
        self
    }

    /// Makes the cache. It starts the worker, if there is none.
    ///
    /// # Panics
    ///
    /// Panics where there are as many objects as [`set_max_objects`](crate::set_max_objects) and
    /// [`Group::set_max_objects`](crate::Group::set_max_objects) have it. Aborts, as `Box::new` does, where
    /// the system has no memory for it.
    #[must_use]
    pub fn build(self) -> ObjectCache<T> {
        let Self { name, is_accounted, most_idle, ctor, reset, shrink } = self;
        let most_idle = most_idle.unwrap_or(if ctor.is_some() { DEFAULT_IDLE } else { 0 });
        let kept = Kept::new(most_idle, ctor, reset, shrink);
        let cache = ObjectCache::make(&name, is_accounted, Some(kept));
        cache.register();
        cache
    }
}
