//! `fork` with caches: at that moment no thread is inside a shard of any of them, so that the
//! child finds none locked by a thread that it does not have. Updates that other threads had
//! under way are over in the child.
//!
//! # Invariants
//!
//! - The list leads through the members of all caches that there are. Its lock guards the links.
//! - A member's cache stays where it is from `join` to `leave`.

use core::ptr;

use memcg_accounting::sync::{AtomicPtr, Lock, Ordering, lock};

use crate::fork::{self, AtFork, Place};

/// A cache, as a fork sees it.
pub(super) trait Held {
    /// Waits until nobody is inside a shard, and lets nobody in.
    fn hold(&self);
    /// Ends what [`hold`](Held::hold) began.
    ///
    /// # Safety
    ///
    /// The caller, or the thread that it is the copy of, called `hold`.
    unsafe fn release(&self);
    /// In the child, after `release`.
    fn after_fork(&self);
    /// The cache's place in the list.
    fn member(&self) -> &Member;
}

/// A cache's place in the list of all caches.
#[derive(Debug)]
pub(super) struct Member {
    cache: AtomicPtr<()>,
    hold: unsafe fn(*const ()),
    release: unsafe fn(*const ()),
    after: unsafe fn(*const ()),
    next: AtomicPtr<Member>,
    prev: AtomicPtr<Member>,
}

/// The first member; no allocation is made under the lock.
static FIRST: Lock<AtomicPtr<Member>> = Lock::new(AtomicPtr::new(ptr::null_mut()));

impl Member {
    /// Of a cache that is not in the list yet.
    pub(super) const fn new<T: Held>() -> Self {
        Self {
            cache: AtomicPtr::new(ptr::null_mut()),
            hold: hold::<T>,
            release: release::<T>,
            after: after::<T>,
            next: AtomicPtr::new(ptr::null_mut()),
            prev: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&Member> {
        // SAFETY: links are null or lead to members of caches that have not left.
        unsafe { self.next.load(Ordering::Relaxed).as_ref() }
    }
}

/// Puts a cache, which will not move, in the list. Relaxed: the lock orders the links.
pub(super) fn join<T: Held>(shared: &T) {
    fork::join(&AT_FORK);
    let member = shared.member();
    let first = lock(&FIRST);
    let old = first.load(Ordering::Relaxed);
    member.cache.store(ptr::from_ref(shared).cast_mut().cast(), Ordering::Relaxed);
    member.next.store(old, Ordering::Relaxed);
    // SAFETY: as for `next`.
    if let Some(old) = unsafe { old.as_ref() } {
        old.prev.store(ptr::from_ref(member).cast_mut(), Ordering::Relaxed);
    }
    first.store(ptr::from_ref(member).cast_mut(), Ordering::Relaxed);
}

/// Takes a cache, which ends, out of the list, if it is in.
pub(super) fn leave<T: Held>(shared: &T) {
    let member = shared.member();
    let first = lock(&FIRST);
    if member.cache.swap(ptr::null_mut(), Ordering::Relaxed).is_null() {
        return;
    }
    let next = member.next.load(Ordering::Relaxed);
    let prev = member.prev.load(Ordering::Relaxed);
    // SAFETY: as for `next`.
    if let Some(next) = unsafe { next.as_ref() } {
        next.prev.store(prev, Ordering::Relaxed);
    }
    // SAFETY: as for `next`.
    match unsafe { prev.as_ref() } {
        Some(prev) => prev.next.store(next, Ordering::Relaxed),
        None => first.store(next, Ordering::Relaxed),
    }
}

/// # Safety
///
/// `cache` is a `T` in the list.
unsafe fn hold<T: Held>(cache: *const ()) {
    // SAFETY: by contract.
    unsafe { &*cache.cast::<T>() }.hold();
}

/// # Safety
///
/// `cache` is a `T` in the list, which is held.
unsafe fn release<T: Held>(cache: *const ()) {
    // SAFETY: by contract.
    let shared = unsafe { &*cache.cast::<T>() };
    // SAFETY: by contract.
    unsafe { shared.release() };
}

/// # Safety
///
/// `cache` is a `T` in the list.
unsafe fn after<T: Held>(cache: *const ()) {
    // SAFETY: by contract.
    unsafe { &*cache.cast::<T>() }.after_fork();
}

/// Runs `f`, which is short and takes no lock, while no fork begins: for what a thread that the
/// child does not have must not be in the middle of.
pub(super) fn kept_out<R>(f: impl FnOnce() -> R) -> R {
    let _first = lock(&FIRST);
    f()
}

/// Calls `f` with every member. The lock is held.
fn each(first: &AtomicPtr<Member>, f: impl FnMut(&Member)) {
    // SAFETY: it is null or leads to the member of a cache that has not left.
    let first = unsafe { first.load(Ordering::Relaxed).as_ref() };
    core::iter::successors(first, |member| member.next()).for_each(f);
}

static AT_FORK: AtFork = AtFork {
    place: Place::Caches,
    prepare: hold_all,
    release: |_| release_all(),
    in_child: after_fork,
};

/// Waits until nobody is inside a shard, and lets nobody in: sections there are short.
fn hold_all() {
    let first = lock(&FIRST);
    each(&first, |member| {
        // SAFETY: the member is in the list, and so is its cache.
        unsafe { (member.hold)(member.cache.load(Ordering::Relaxed)) };
    });
    core::mem::forget(first);
}

/// Ends what [`hold_all`] began.
fn release_all() {
    // SAFETY: `hold_all` took the lock, on this thread or the one that it is the copy of.
    let first = unsafe { &*FIRST.as_mut_ptr() };
    each(first, |member| {
        // SAFETY: the member is in the list, and its cache is held.
        unsafe { (member.release)(member.cache.load(Ordering::Relaxed)) };
    });
    // SAFETY: `hold_all` forgot the guard.
    unsafe { FIRST.force_unlock() };
}

fn after_fork() {
    let first = lock(&FIRST);
    each(&first, |member| {
        // SAFETY: the member is in the list, and so is its cache.
        unsafe { (member.after)(member.cache.load(Ordering::Relaxed)) };
    });
}
