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

use super::shared::Shared;

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
    pub(super) const fn new<K, V>() -> Self {
        Self {
            cache: AtomicPtr::new(ptr::null_mut()),
            hold: hold::<K, V>,
            release: release::<K, V>,
            after: after::<K, V>,
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
pub(super) fn join<K, V>(shared: &Shared<K, V>) {
    let member = &shared.member;
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
pub(super) fn leave<K, V>(shared: &Shared<K, V>) {
    let member = &shared.member;
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
/// `cache` is a `Shared<K, V>` in the list.
unsafe fn hold<K, V>(cache: *const ()) {
    // SAFETY: by contract.
    unsafe { &*cache.cast::<Shared<K, V>>() }.hold();
}

/// # Safety
///
/// `cache` is a `Shared<K, V>` in the list, which is held.
unsafe fn release<K, V>(cache: *const ()) {
    // SAFETY: by contract.
    let shared = unsafe { &*cache.cast::<Shared<K, V>>() };
    // SAFETY: by contract.
    unsafe { shared.release() };
}

/// # Safety
///
/// `cache` is a `Shared<K, V>` in the list.
unsafe fn after<K, V>(cache: *const ()) {
    // SAFETY: by contract.
    unsafe { &*cache.cast::<Shared<K, V>>() }.after_fork();
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

/// Waits until nobody is inside a shard, and lets nobody in: sections there are short.
pub(crate) fn lock_all() {
    let first = lock(&FIRST);
    each(&first, |member| {
        // SAFETY: the member is in the list, and so is its cache.
        unsafe { (member.hold)(member.cache.load(Ordering::Relaxed)) };
    });
    core::mem::forget(first);
}

/// Ends what [`lock_all`] began.
///
/// # Safety
///
/// The caller, or the thread that it is the copy of, called `lock_all`.
pub(crate) unsafe fn unlock_all() {
    // SAFETY: by contract the lock is held, so nobody else reaches the value.
    let first = unsafe { &*FIRST.as_mut_ptr() };
    each(first, |member| {
        // SAFETY: the member is in the list, and its cache was held by `lock_all`.
        unsafe { (member.release)(member.cache.load(Ordering::Relaxed)) };
    });
    // SAFETY: by contract the lock is held and its guard was forgotten.
    unsafe { FIRST.force_unlock() };
}

/// In the child of a fork, after [`unlock_all`].
pub(crate) fn after_fork() {
    let first = lock(&FIRST);
    each(&first, |member| {
        // SAFETY: the member is in the list, and so is its cache.
        unsafe { (member.after)(member.cache.load(Ordering::Relaxed)) };
    });
}
