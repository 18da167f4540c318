//! Shrinkers as users write them: a trait, over the raw functions of the layer below.
//!
//! What stands between the two: a panic is caught here, for nothing may unwind out of an
//! allocation; and the group of a call is shown as a [`Group`], backed by the handle that the
//! engine holds for the length of the call.

use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use memcg_shrink::{Control, Place, RawCount, RawScan, RawShrinker, ShrinkerId, ShrinkerName};

use crate::group::Group;
use crate::guarded::drop_payload;
use crate::path::Path;
use crate::process::ENGINE;
use crate::scope;

pub use memcg_shrink::Cause;

/// How many objects could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// About so many. 0 is as [`Unknown`](Count::Unknown).
    Objects(usize),
    /// It can't be told now, because a lock is taken for instance: nothing is scanned, and the
    /// group is asked for again next time.
    Unknown,
    /// None: the group is not asked for again until it is [marked](Registration::mark).
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
    /// Whose objects are meant. Online for the length of the call; a clone is a handle like any
    /// other. The root, for a shrinker that is not group-aware.
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
/// It is asked first how much could go, then to let some go, for one group at a time. Both are
/// called from other threads than those that fill the cache, and a shrinker that was registered
/// with [`register_direct`](ShrinkerBuilder::register_direct) inside allocations.
///
/// Inside a call:
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
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use std::sync::{Arc, Mutex};
/// use memcg::{Count, Group, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
///
/// /// Pages that can be had again, of one group.
/// struct Pages {
///     group: Group,
///     pages: Mutex<Vec<Box<[u8; 4096]>>>,
/// }
///
/// impl Shrinker for Pages {
///     fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
///         if *ctl.group() != self.group {
///             return Count::Empty;
///         }
///         self.pages.try_lock().map_or(Count::Unknown, |pages| Count::Objects(pages.len()))
///     }
///     fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
///         let Ok(mut pages) = self.pages.try_lock() else { return Scan::Stop };
///         let keep = pages.len().saturating_sub(ctl.nr_to_scan());
///         Scan::Freed(pages.drain(keep..).count())
///     }
/// }
///
/// let group = Group::root().create("reader")?;
/// let pages = Arc::new(Pages { group: group.clone(), pages: Mutex::new(Vec::new()) });
/// let registration = ShrinkerBuilder::new("pages").register(pages.clone());
///
/// let page = group.run(|| Box::new([0; 4096]));
/// pages.pages.lock().expect("not poisoned").push(page);
/// group.force_empty()?;
/// assert!(pages.pages.lock().expect("not poisoned").is_empty());
/// # drop(registration);
/// # Ok::<(), memcg::Error>(())
/// ```
pub trait Shrinker: Send + Sync {
    /// How many objects of the group could go. Cheap: it is called more often than `scan`.
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count;

    /// Lets go of objects of the group, after looking at
    /// [`nr_to_scan`](ShrinkControl::nr_to_scan) of them.
    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan;
}

/// How a shrinker is to be asked.
///
/// Source: `shrinker_alloc` and `shrinker_register` in the kernel's `mm/shrinker.c`.
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is registered yet"]
pub struct ShrinkerBuilder {
    name: ShrinkerName,
    seeks: u32,
    batch: u32,
    group_aware: bool,
}

/// What an object costs where nobody says: the kernel's `DEFAULT_SEEKS`.
const DEFAULT_SEEKS: u32 = 2;

impl ShrinkerBuilder {
    /// A shrinker with this name, for reports; 47 bytes of it are kept.
    pub fn new(name: &str) -> Self {
        Self { name: ShrinkerName::new(name), seeks: DEFAULT_SEEKS, batch: 0, group_aware: true }
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

    /// Whether it is asked for each group by itself, which is the default. If not, it is asked
    /// only when the root reclaims.
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
        // The box is the allocator's own, so it is charged to nobody.
        let data = scope::unaccounted(|| Box::into_raw(Box::new(shrinker)));
        let raw = RawShrinker {
            data: data.cast_const().cast(),
            count: count_raw,
            scan: scan_raw,
            drop: drop_raw,
            name: self.name,
            place,
            group_aware: self.group_aware,
            starts_marked: true,
            seeks: self.seeks,
            batch: self.batch,
        };
        // SAFETY: the functions take what `data` is, a boxed `Arc` of a `Send + Sync` shrinker,
        // until `drop_raw`; they catch what unwinds; what a direct place asks for is the caller's
        // contract.
        let id = unsafe { ENGINE.register(raw) };
        if id.is_none() {
            // SAFETY: nothing was registered, so the box is still this function's alone.
            unsafe { drop_raw(raw.data) };
        }
        Registration { name: self.name, id }
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
    /// None: the system had no memory for the record, so the shrinker is never asked.
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
    /// [`Empty`](Count::Empty) for it.
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
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            ENGINE.unregister(id);
        }
    }
}

// ---- the raw functions ----------------------------------------------------------------------

/// Runs `call` with the control as users see it. `None`: it panicked.
///
/// # Safety
///
/// - `data` is what `register_at` made, and was not dropped.
/// - The control's group has a handle for the length of the call.
unsafe fn guarded<R>(
    data: *const (),
    raw: &mut Control,
    call: impl FnOnce(&dyn Shrinker, &mut ShrinkControl<'_>) -> R,
) -> Option<R> {
    // SAFETY: `data` is a boxed `Arc<dyn Shrinker>` that lives, by contract.
    let shrinker = unsafe { &*data.cast::<Arc<dyn Shrinker>>() };
    // The handle is the engine's: this value borrows it, and gives nothing back.
    let group = ManuallyDrop::new(Group::from_handle(raw.group));
    let mut control = ShrinkControl { group: &group, raw: *raw };
    // What a panic left behind in the shrinker is not looked at again: it is never called.
    let answer = catch_unwind(AssertUnwindSafe(|| call(&**shrinker, &mut control)));
    raw.nr_scanned = control.raw.nr_scanned;
    answer.map_err(drop_payload).ok()
}

/// # Safety
///
/// See [`guarded`].
unsafe fn count_raw(data: *const (), control: &Control) -> RawCount {
    let mut control = *control;
    // SAFETY: by contract.
    let answer = unsafe { guarded(data, &mut control, |shrinker, ctl| shrinker.count(ctl)) };
    match answer {
        Some(Count::Objects(n)) => RawCount::Objects(n),
        Some(Count::Unknown) => RawCount::Unknown,
        Some(Count::Empty) => RawCount::Empty,
        None => RawCount::Panicked,
    }
}

/// # Safety
///
/// See [`guarded`].
unsafe fn scan_raw(data: *const (), control: &mut Control) -> RawScan {
    // SAFETY: by contract.
    match unsafe { guarded(data, control, |shrinker, ctl| shrinker.scan(ctl)) } {
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
    let shrinker = unsafe { Box::from_raw(data.cast_mut().cast::<Arc<dyn Shrinker>>()) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(shrinker))) {
        drop_payload(payload);
    }
}
