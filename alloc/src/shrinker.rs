//! Shrinkers as users write them: a trait, over the raw functions of the layer below.
//!
//! What stands between the two: a panic is caught here, for nothing may unwind out of an
//! allocation; and the group of a call is shown as a [`Group`], backed by the record that the
//! engine holds for the length of the call. That keeps no group: see [`ShrinkControl::group`].

use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use memcg_shrink::{Control, Place, RawCount, RawScan, RawShrinker, ShrinkerId, ShrinkerName};

use crate::group::{Group, Pinned};
use crate::guarded::drop_payload;
use crate::objects::Counted;
use crate::path::Path;
use crate::process::ENGINE;
use crate::scope;

pub use memcg_shrink::Cause;

/// How many objects could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// About so many. 0 is as [`Empty`](Count::Empty), but that it never takes a mark away.
    Objects(usize),
    /// It can't be told now, because a lock is taken for instance: nothing is scanned, and the
    /// group is asked for again next time.
    Unknown,
    /// None now. It is asked again the next time that room is needed there; a shrinker that keeps
    /// [marks](ShrinkerBuilder::marked) only after the group was [marked](Registration::mark).
    Empty,
}

/// What came of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// So many objects went. Nothing is decided by it: progress is the bytes that were freed.
    Freed(usize),
    /// Nothing can go at this moment: a lock is taken. The pass over this group ends.
    Stop,
}

/// A call of a shrinker: for whom, how much, why. It does not outlive the call.
///
/// Source: `struct shrink_control` in the kernel's `include/linux/shrinker.h`.
pub struct ShrinkControl<'a> {
    group: &'a Group,
    raw: Control,
}

impl fmt::Debug for ShrinkControl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShrinkControl")
            .field("group", &Path(self.raw.group))
            .field("nr_to_scan", &self.raw.nr_to_scan)
            .field("nr_scanned", &self.raw.nr_scanned)
            .field("priority", &self.raw.priority)
            .field("cause", &self.raw.cause)
            .finish_non_exhaustive()
    }
}

impl ShrinkControl<'_> {
    /// Whose objects are meant. The root, for a shrinker that is not group-aware.
    ///
    /// The call does not keep the group. It may go offline meanwhile, if its users drop it: then its
    /// objects are its parent's, its name may be another's, and this is what is left of it, as
    /// [`Group`] says. Until then a clone is a handle like any other, which keeps the group.
    #[must_use]
    pub fn group(&self) -> &Group {
        self.group
    }

    /// How many objects to look at. 0 in [`Shrinker::count`].
    #[must_use]
    pub fn nr_to_scan(&self) -> usize {
        self.raw.nr_to_scan
    }

    /// Says how many objects were looked at, if not [`nr_to_scan`](ShrinkControl::nr_to_scan).
    /// 0 ends the pass over this group.
    pub fn set_nr_scanned(&mut self, n: usize) {
        self.raw.nr_scanned = n;
    }

    /// How hard it presses: from 12, a touch, to 0, everything.
    #[must_use]
    pub fn priority(&self) -> u32 {
        self.raw.priority
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.raw.cause
    }
}

/// Something that can give memory back: a cache.
///
/// Each time that a group needs room it is asked for that group, and for those below it, one at a
/// time: first how much could go, then to let some go. What it answers counts for that time alone. One
/// that serves a single group says [`in_group`](ShrinkerBuilder::in_group), and is asked for no other.
/// With many groups and few that have something, [`marked`](ShrinkerBuilder::marked) saves the
/// questions, and then whoever fills the cache must [mark](Registration::mark). One that can't tell
/// groups apart, [`group_aware(false)`](ShrinkerBuilder::group_aware), is *never* asked for a group's
/// limit.
///
/// It is called from other threads than those that fill the cache, and a shrinker that was registered
/// with [`register_direct`](ShrinkerBuilder::register_direct) inside allocations. Inside a call:
///
/// - take locks by try-lock, and answer [`Unknown`](Count::Unknown) or [`Stop`](Scan::Stop) when
///   one is taken: its holder may be waiting for this very call;
/// - allocations are not refused, and reclaim nothing;
/// - groups, shrinkers and registrations may be made and dropped.
///
/// A shrinker that panics is never called again, and reported.
///
/// Source: `struct shrinker` in the kernel's `include/linux/shrinker.h`.
///
/// # Examples
///
/// A cache of one group. It ends its own registration, so that must not keep the cache: it has a
/// [`Weak`] of it, which is a shrinker too.
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use std::sync::{Arc, Mutex, OnceLock};
/// use memcg::{Count, Group, Registration, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
///
/// type Page = Box<[u8; 4096]>;
///
/// /// Pages of a tenant that can be had again.
/// struct Pages {
///     group: Group,
///     pages: Mutex<Vec<Page>>,
///     registration: OnceLock<Registration>,
/// }
///
/// impl Pages {
///     fn new(group: &Group) -> Arc<Self> {
///         let (pages, registration) = (Mutex::new(Vec::new()), OnceLock::new());
///         let cache = Arc::new(Self { group: group.clone(), pages, registration });
///         let weak = Arc::new(Arc::downgrade(&cache));
///         let registration = ShrinkerBuilder::new("pages").in_group(group).register(weak);
///         cache.registration.set(registration).expect("set once");
///         cache
///     }
///
///     fn add(&self) {
///         // First the page, at whose allocation the shrinker may be asked; then the lock, under
///         // which nothing is charged.
///         let page = self.group.run(|| Box::new([0; 4096]));
///         let mut pages = self.pages.lock().expect("not poisoned");
///         memcg::unaccounted(|| pages.push(page));
///     }
/// }
///
/// impl Shrinker for Pages {
///     fn count(&self, _: &ShrinkControl<'_>) -> Count {
///         self.pages.try_lock().map_or(Count::Unknown, |pages| Count::Objects(pages.len()))
///     }
///
///     fn scan(&self, control: &mut ShrinkControl<'_>) -> Scan {
///         let Ok(mut pages) = self.pages.try_lock() else { return Scan::Stop };
///         let nr = control.nr_to_scan().min(pages.len());
///         let oldest: Vec<Page> = memcg::unaccounted(|| pages.drain(..nr).collect());
///         // Dropped without the lock, so that others go on.
///         drop(pages);
///         Scan::Freed(oldest.len())
///     }
/// }
///
/// let tenant = Group::root().builder("reader").max(1 << 20).build()?;
/// let cache = Pages::new(&tenant);
/// for _ in 0..1000 {
///     cache.add();
/// }
/// assert!(tenant.usage() <= 1 << 20);
/// assert!(cache.pages.lock().expect("not poisoned").len() > 100);
/// tenant.force_empty()?;
/// assert!(cache.pages.lock().expect("not poisoned").is_empty());
/// # Ok::<(), memcg::Error>(())
/// ```
pub trait Shrinker: Send + Sync {
    /// How many objects of the group could go. Cheap: it is called more often than `scan`.
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count;

    /// Lets go of objects of the group, after looking at
    /// [`nr_to_scan`](ShrinkControl::nr_to_scan) of them.
    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan;
}

/// A cache that may be gone: then it has nothing. While it is asked it is kept, and so may be dropped
/// at the end of a call, on the thread of the call.
impl<S: Shrinker + ?Sized> Shrinker for Weak<S> {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        self.upgrade().map_or(Count::Empty, |shrinker| shrinker.count(ctl))
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        self.upgrade().map_or(Scan::Stop, |shrinker| shrinker.scan(ctl))
    }
}

/// How a shrinker is to be asked.
///
/// Source: `shrinker_alloc` and `shrinker_register` in the kernel's `mm/shrinker.c`.
#[derive(Clone, Debug)]
#[must_use = "nothing is registered yet"]
pub struct ShrinkerBuilder {
    name: ShrinkerName,
    seeks: u32,
    batch: u32,
    group_aware: bool,
    is_marked: bool,
    starts_marked: bool,
    only: Option<Group>,
}

/// What an object costs where nobody says: the kernel's `DEFAULT_SEEKS`.
const DEFAULT_SEEKS: u32 = 2;

impl ShrinkerBuilder {
    /// A shrinker with this name, for reports; 47 bytes of it are kept.
    pub fn new(name: &str) -> Self {
        Self {
            name: ShrinkerName::new(name),
            seeks: DEFAULT_SEEKS,
            batch: 0,
            group_aware: true,
            is_marked: false,
            starts_marked: true,
            only: None,
        }
    }

    /// What an object costs to make again, relative to 2, the default: the dearer, the fewer are
    /// scanned. 0: nothing at all.
    pub fn seeks(mut self, seeks: u32) -> Self {
        self.seeks = seeks;
        self
    }

    /// How many objects one call of [`Shrinker::scan`] looks at, at most. Default: 128.
    pub fn batch(mut self, objects: usize) -> Self {
        self.batch = u32::try_from(objects).unwrap_or(u32::MAX);
        self
    }

    /// Asks it for this group alone; when the group goes offline, for the parent, whose its objects
    /// are then.
    ///
    /// For a cache of one tenant: others that need room do not ask it, however many there are. The
    /// registration holds no handle of the group.
    pub fn in_group(mut self, group: &Group) -> Self {
        self.only = Some(group.clone());
        self
    }

    /// Has [`Count::Empty`] last: the group is not asked for again until it is
    /// [marked](Registration::mark). It begins marked in every group, new ones too, or in that of
    /// [`in_group`](ShrinkerBuilder::in_group).
    ///
    /// For a cache that has something in few of very many groups: a walk over all of them then looks
    /// at those alone. **Whoever adds the first object must mark**, or it is never asked for: that it
    /// is found missing may take a while. An [`Lru`](crate::Lru) that is
    /// [served by](crate::Lru::served_by) the shrinker does it by itself. By default every group is
    /// asked for each time: a call of [`count`](Shrinker::count) for each.
    ///
    /// Source: `SHRINK_EMPTY` and `set_shrinker_bit` in the kernel's `mm/shrinker.c`, where it is always
    /// so.
    pub fn marked(mut self) -> Self {
        self.is_marked = true;
        self
    }

    /// As [`marked`](ShrinkerBuilder::marked), and no group begins marked: lists mark.
    pub(crate) fn marked_by_lists(mut self) -> Self {
        (self.is_marked, self.starts_marked) = (true, false);
        self
    }

    /// Whether it is asked for each group by itself, which is the default. If not, it is asked **only
    /// when the root reclaims**: by [`reclaim`](Group::reclaim) and the like of
    /// [`Group::root`], and at the root's own limit where that is accounted. A group that meets its
    /// limit never asks it, for what it gives may be anybody's.
    pub fn group_aware(mut self, yes: bool) -> Self {
        self.group_aware = yes;
        self
    }

    /// Registers a shrinker that runs on a worker thread: its code may do what threads do.
    ///
    /// An allocation that needs it waits 50 ms, longer while bytes arrive, 200 ms at most (see
    /// [`Group::set_deadline`](crate::Group::set_deadline)). Starts the worker, if none runs.
    pub fn register(self, shrinker: Arc<dyn Shrinker>) -> Registration {
        // SAFETY: the place is the worker's.
        unsafe { self.register_at(shrinker, Place::Worker) }
    }

    /// Registers a shrinker that runs inside allocations, on the thread that allocates: no wait,
    /// microseconds.
    ///
    /// # Safety
    ///
    /// `count` and `scan` run in the middle of other people's code, wherever it allocates, while
    /// it holds locks and has values half made. They
    ///
    /// - wait for nothing: locks are taken by try-lock, and no thread is waited for;
    /// - touch nothing that an allocation anywhere may happen in the middle of changing, but
    ///   under such a lock;
    /// - run no foreign code: what they drop frees memory and does nothing else (see
    ///   [`PlainDrop`](crate::PlainDrop)).
    pub unsafe fn register_direct(self, shrinker: Arc<dyn Shrinker>) -> Registration {
        // SAFETY: by contract.
        unsafe { self.register_at(shrinker, Place::Direct) }
    }

    /// # Safety
    ///
    /// See [`register_direct`](ShrinkerBuilder::register_direct), if `place` is direct.
    unsafe fn register_at(self, shrinker: Arc<dyn Shrinker>, place: Place) -> Registration {
        let Ok(counted) = Counted::try_new() else {
            return Registration { name: self.name, id: None };
        };
        // SAFETY: by contract.
        unsafe { self.register_counted(shrinker, place, counted) }
    }

    /// Registers a shrinker that runs on a worker thread, and that was counted.
    pub(crate) fn register_with(
        self,
        counted: Counted,
        shrinker: Arc<dyn Shrinker>,
    ) -> Registration {
        // SAFETY: the place is the worker's.
        unsafe { self.register_counted(shrinker, Place::Worker, counted) }
    }

    /// # Safety
    ///
    /// See [`register_direct`](ShrinkerBuilder::register_direct), if `place` is direct.
    unsafe fn register_counted(
        self,
        shrinker: Arc<dyn Shrinker>,
        place: Place,
        counted: Counted,
    ) -> Registration {
        let Self { name, seeks, batch, group_aware, is_marked, starts_marked, only } = self;
        let place_in_tree = only.as_ref().map(Group::pinned);
        // The box is the allocator's own, so it is charged to nobody.
        let registered = Registered { shrinker, is_marked, only: place_in_tree, _counted: counted };
        let Some(data) = scope::unaccounted(|| try_box(registered)) else {
            return Registration { name, id: None };
        };
        let raw = RawShrinker {
            data: data.cast_const().cast(),
            count: count_raw,
            scan: scan_raw,
            drop: drop_raw,
            name,
            place,
            group_aware: group_aware || only.is_some(),
            starts_marked: starts_marked && only.is_none(),
            seeks,
            batch,
        };
        // SAFETY: the functions take what `data` is, a box of a `Send + Sync` shrinker,
        // until `drop_raw`; they catch what unwinds; what a direct place asks for is the caller's
        // contract.
        let id = unsafe { ENGINE.register(raw) };
        if id.is_none() {
            // SAFETY: nothing was registered, so the box is still this function's alone.
            unsafe { drop_raw(raw.data) };
        }
        if let (Some(group), Some(id)) = (&only, id) {
            ENGINE.mark(group.as_ref(), id);
        }
        Registration { name, id }
    }
}

/// A registered shrinker; dropping it ends the registration.
///
/// Dropping waits for a call in flight, but not from within its own call. For a shrinker of the
/// worker it waits a second at most: then the call keeps the [`Arc`] until it returns, and is
/// reported. What the shrinker's own drop panics with is caught.
#[must_use = "dropping it unregisters the shrinker"]
pub struct Registration {
    name: ShrinkerName,
    /// None: the system had no memory for the record, or there are too many objects, so the
    /// shrinker is never asked.
    id: Option<ShrinkerId>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("name", &self.name)
            .field("is_registered", &self.id.is_some())
            .finish()
    }
}

impl Registration {
    /// Says that the shrinker has something in `group`, after it had answered
    /// [`Empty`](Count::Empty) for it: needed with [`marked`](ShrinkerBuilder::marked) alone.
    ///
    /// Objects that were added before this are found by the next reclaim. Allocates nothing;
    /// a fence and a load if it is marked already.
    pub fn mark(&self, group: &Group) {
        if let Some(id) = self.id {
            ENGINE.mark(group.as_ref(), id);
        }
    }

    /// What the engine calls it. `None`: it is never asked.
    pub(crate) fn id(&self) -> Option<ShrinkerId> {
        self.id
    }

    /// Leaves it registered: whoever has the id ends it.
    pub(crate) fn into_id(self) -> Option<ShrinkerId> {
        ManuallyDrop::new(self).id
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            ENGINE.unregister(id);
        }
    }
}

// ---- the raw functions ----------------------------------------------------------------------

/// A shrinker with what it said of itself.
struct Registered {
    shrinker: Arc<dyn Shrinker>,
    /// Whether `Empty` takes the mark away.
    is_marked: bool,
    /// The one group that it is asked for.
    only: Option<Pinned>,
    _counted: Counted,
}

/// `value` in a box of its own, for [`Box::from_raw`]. `None`: the system has no memory.
fn try_box<T>(value: T) -> Option<*mut T> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).ok()?;
    one.push(value);
    // A slice of one lies as one does, and has its layout.
    Some(Box::into_raw(one.into_boxed_slice()).cast())
}

/// Runs `call` with the control as users see it. `None`: it panicked.
///
/// # Safety
///
/// - `data` is what `register_at` made, and was not dropped.
/// - The control's group is held for the length of the call.
unsafe fn guarded<R>(
    data: *const (),
    raw: &mut Control,
    call: impl FnOnce(&Registered, &mut ShrinkControl<'_>) -> R,
) -> Option<R> {
    // SAFETY: `data` is a boxed `Registered` that lives, by contract.
    let registered = unsafe { &*data.cast::<Registered>() };
    // What is held is the engine's: this value borrows it, and gives nothing back.
    let group = ManuallyDrop::new(Group::from_handle(raw.group));
    let mut control = ShrinkControl { group: &group, raw: *raw };
    // What a panic left behind in the shrinker is not looked at again: it is never called.
    let answer = catch_unwind(AssertUnwindSafe(|| call(registered, &mut control)));
    raw.nr_scanned = control.raw.nr_scanned;
    answer.map_err(drop_payload).ok()
}

/// # Safety
///
/// See [`guarded`].
unsafe fn count_raw(data: *const (), control: &Control) -> RawCount {
    let mut control = *control;
    let count = |registered: &Registered, control: &mut ShrinkControl<'_>| {
        // Where many shrinkers share a mark, one is asked for groups of others too.
        let is_elsewhere = |only: &Pinned| only.group() != control.raw.group;
        if registered.only.as_ref().is_some_and(is_elsewhere) {
            return RawCount::Empty;
        }
        match registered.shrinker.count(control) {
            Count::Objects(n) => RawCount::Objects(n),
            Count::Unknown => RawCount::Unknown,
            Count::Empty if registered.is_marked => RawCount::Empty,
            // The mark stays, and nothing is scanned.
            Count::Empty => RawCount::Objects(0),
        }
    };
    // SAFETY: by contract.
    unsafe { guarded(data, &mut control, count) }.unwrap_or(RawCount::Panicked)
}

/// # Safety
///
/// See [`guarded`].
unsafe fn scan_raw(data: *const (), control: &mut Control) -> RawScan {
    // SAFETY: by contract.
    match unsafe { guarded(data, control, |registered, ctl| registered.shrinker.scan(ctl)) } {
        Some(Scan::Freed(n)) => RawScan::Freed(n),
        Some(Scan::Stop) => RawScan::Stop,
        None => RawScan::Panicked,
    }
}

/// # Safety
///
/// `data` is what `register_at` made; it is not used any more.
unsafe fn drop_raw(data: *const ()) {
    // SAFETY: by contract `data` came from `Box::into_raw`, and this is its one end.
    let registered = unsafe { Box::from_raw(data.cast_mut().cast::<Registered>()) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(registered))) {
        drop_payload(payload);
    }
}
