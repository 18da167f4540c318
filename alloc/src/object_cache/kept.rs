//! What a cache keeps of its objects: idle ones, by the group that pays for them, for who takes
//! one next in that group; and, where they can be shrunk, the live ones.
//!
//! ```text
//!   get ◄── newest ─ idle objects of the group ─ oldest ──► evicted, when the group needs room
//!    │         ▲
//!    └► live ──┘ dropped
//! ```
//!
//! # Invariants
//!
//! - What the lists hold are objects of this cache, in linked places, initialised and nobody's else:
//!   an idle one is the list's, a live one its [`CacheBox`](super::CacheBox)'s.
//! - No code of the program runs under a list's lock.
//!
//! Source: `kmem_cache_create` with a `ctor`; `struct memcg_cache_struct` of 2012, with its
//! `shrink_fn`.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicU64, AtomicUsize, Ordering, fence};
use memcg_shrink::{Isolated, LruStatus, Wait, Walked};

use super::Shared;
use super::object::{OrDestroy, Place, links_of, object_of};
use crate::group::Group;
use crate::guarded::Thrown;
use crate::lru::group_list::GroupList;
use crate::scope;
use crate::shrinker::{Count, Scan, ShrinkControl, Shrinker};

/// Objects that go at most when one comes back.
const MOST_EVICTED: usize = 8;

/// Makes an object.
pub(super) type Ctor<T> = Box<dyn Fn() -> T + Send + Sync>;
/// Makes an object that was used as good as new.
pub(super) type Reset<T> = Box<dyn Fn(&mut T) + Send + Sync>;
/// Has the program let go of live objects.
pub(super) type Shrink = Box<dyn Fn(&mut ShrinkControl<'_>) -> Scan + Send + Sync>;

/// See the [module](self).
pub(super) struct Kept<T> {
    idle: GroupList,
    /// Where there is a shrink function: which groups have live objects.
    live: Option<GroupList>,
    most_idle: usize,
    ctor: Option<Ctor<T>>,
    reset: Option<Reset<T>>,
    shrink: Option<Shrink>,
    nr_idle: AtomicUsize,
    reused: AtomicU64,
    evicted: AtomicU64,
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("most_idle", &self.most_idle).finish_non_exhaustive()
    }
}

impl<T> Kept<T> {
    pub(super) fn new(
        most_idle: usize,
        ctor: Option<Ctor<T>>,
        reset: Option<Reset<T>>,
        shrink: Option<Shrink>,
    ) -> Self {
        Self {
            idle: GroupList::new(),
            live: shrink.is_some().then(GroupList::new),
            most_idle,
            ctor,
            reset,
            shrink,
            nr_idle: AtomicUsize::new(0),
            reused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// The lists that mark the cache's shrinker.
    pub(super) fn lists(&self) -> impl Iterator<Item = &GroupList> {
        [&self.idle].into_iter().chain(&self.live)
    }

    pub(super) fn ctor(&self) -> Option<&Ctor<T>> {
        self.ctor.as_ref()
    }

    /// Idle objects now; objects that were taken again, and that were evicted, ever.
    pub(super) fn counts(&self) -> (usize, u64, u64) {
        // Relaxed here and below: counters order nothing.
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (self.nr_idle.load(Ordering::Relaxed), read(&self.reused), read(&self.evicted))
    }

    // ---- live objects -------------------------------------------------------------------

    /// An object is live from now on.
    ///
    /// # Safety
    ///
    /// - It is a new object of this cache, or one that was idle.
    pub(super) unsafe fn note_live(&self, object: NonNull<T>) {
        if let Some(live) = &self.live {
            let links = links_of(object);
            // SAFETY: the links are an object's, and are removed before its memory goes.
            let added = unsafe { live.add(links, links.addr().get()) };
            debug_assert!(added.linked, "it was in no list");
        }
    }

    /// An object is not live any more.
    ///
    /// # Safety
    ///
    /// - It is a live object of this cache.
    pub(super) unsafe fn forget_live(&self, object: NonNull<T>) {
        if let Some(live) = &self.live {
            // SAFETY: the object is there.
            let removed = unsafe { live.remove(links_of(object)) };
            debug_assert!(removed, "a live object is listed");
        }
    }

    // ---- idle objects -------------------------------------------------------------------

    /// An idle object of `group`: the one that was used last.
    pub(super) fn take(&self, group: GroupRef) -> Option<NonNull<T>> {
        let mut isolated = Isolated::new();
        if !self.idle.take_newest(group, &mut isolated) {
            return None;
        }
        let object = object_of(isolated.take()?);
        self.nr_idle.fetch_sub(1, Ordering::Relaxed);
        self.reused.fetch_add(1, Ordering::Relaxed);
        // SAFETY: it was idle, and is this caller's now.
        unsafe { self.note_live(object) };
        Some(object)
    }

    /// Takes a live object back: it is idle, or goes if there are enough, if nobody is there to take
    /// it again, or where room is needed right now.
    ///
    /// # Safety
    ///
    /// - It is a live object of this cache, `shared`, and not used after this.
    pub(super) unsafe fn give_back(&self, object: NonNull<T>, shared: &Shared<T>) {
        // SAFETY: by contract.
        unsafe { self.forget_live(object) };
        // SAFETY: the object's place is this function's from now on.
        let place = unsafe { Place::of(object, true) };
        // SAFETY: there is an object, and nobody else uses it.
        let used = unsafe { OrDestroy::new(place) };
        let is_kept = self.most_idle != 0 && shared.has_handles() && scope::eager().depth == 0;
        if !is_kept {
            return;
        }
        if let Some(reset) = &self.reset {
            // SAFETY: nobody else uses the object.
            reset(unsafe { &mut *object.as_ptr() });
        }
        let Some(place) = used.done() else { return };
        let links = links_of(place.leave());
        self.nr_idle.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the links are an object's, which is the list's from now on.
        let added = unsafe { self.idle.add(links, links.addr().get()) };
        debug_assert!(added.linked, "it was in no list");
        // More than one where a group has gone, whose idle objects are this one's since.
        let excess = self.idle.count(added.group).saturating_sub(self.most_idle);
        if excess != 0 {
            self.evict(added.group, excess.min(MOST_EVICTED), Wait::Yes);
        }
        // Partner: the fence in `ObjectCache::drop`. Either whoever drops the last handle finds the
        // object, or this finds that there is none.
        fence(Ordering::SeqCst);
        if !shared.has_handles() {
            let mut thrown = Thrown::default();
            self.drop_idle(&mut thrown);
            thrown.end();
        }
    }

    /// Drops up to `nr` idle objects of `group`, the oldest first. What their drops throw ends here.
    fn evict(&self, group: GroupRef, nr: usize, wait: Wait) -> Walked {
        let mut isolated = Isolated::new();
        let walked = self.idle.walk(group, nr, wait, &mut isolated, |_| LruStatus::Removed);
        self.evicted.fetch_add(walked.removed as u64, Ordering::Relaxed);
        let mut thrown = Thrown::default();
        self.destroy_all(&mut isolated, &mut thrown);
        thrown.end();
        walked
    }

    /// Drops all idle objects; `thrown` has what their drops throw.
    pub(super) fn drop_idle(&self, thrown: &mut Thrown) {
        let mut isolated = Isolated::new();
        while self.idle.take_any(&mut isolated) {
            self.destroy_all(&mut isolated, thrown);
        }
    }

    fn destroy_all(&self, isolated: &mut Isolated, thrown: &mut Thrown) {
        while !thrown.catch(|| {
            while let Some(links) = isolated.take() {
                self.nr_idle.fetch_sub(1, Ordering::Relaxed);
                // SAFETY: it is an idle object, which was taken out of the list, so that it and its
                // place are this caller's.
                let place = unsafe { Place::<T>::of(object_of(links), true) };
                // SAFETY: as above.
                unsafe { place.destroy() };
            }
        }) {}
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        // Whoever has the last count has nothing to do with what is thrown.
        let mut thrown = Thrown::default();
        self.drop_idle(&mut thrown);
        thrown.end();
    }
}

/// The shrinker of a cache.
pub(super) struct Evicts<T>(pub(super) Arc<Shared<T>>);

impl<T: Send + 'static> Shrinker for Evicts<T> {
    fn count(&self, control: &ShrinkControl<'_>) -> Count {
        let Some(kept) = self.0.kept() else { return Count::Empty };
        let group = control.group().as_ref();
        match kept.lists().map(|list| list.count(group)).sum() {
            0 => Count::Empty,
            objects => Count::Objects(objects),
        }
    }

    fn scan(&self, control: &mut ShrinkControl<'_>) -> Scan {
        let Some(kept) = self.0.kept() else { return Scan::Stop };
        let walked = kept.evict(control.group().as_ref(), control.nr_to_scan(), Wait::No);
        match &kept.shrink {
            Some(shrink) if walked.removed == 0 => shrink(control),
            _ if walked.was_busy && walked.removed == 0 => Scan::Stop,
            _ => {
                control.set_nr_scanned(walked.shown);
                Scan::Freed(walked.removed)
            }
        }
    }
}

/// The part of the list from which the calling thread takes idle objects: of what it would pay for.
pub(super) fn own_part(is_accounted: bool) -> GroupRef {
    if is_accounted { Group::current_ref() } else { GroupRef::ROOT }
}
