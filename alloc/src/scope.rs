//! Who is current on a thread, and how its allocations are treated.
//!
//! These words live in thread-locals that are const and have no destructor: they can be read
//! at any moment of a thread's life, from inside the allocator too.

use core::cell::Cell;
use core::marker::PhantomData;

use memcg_accounting::{GroupRef, OverLimit as RawOverLimit, Payer, Request, Tag};

use crate::process::{ACCOUNTED, ENGINE, TREE};
use crate::record;

/// Who pays for what the thread allocates: a group, or nobody, or the root.
///
/// One word and no `enum`: a scope reads what the one before has just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current(Payer);

impl Current {
    /// Nobody, whatever the root is.
    pub(crate) const NOBODY: Current = Current(Payer::NOBODY);
    /// The root: nobody, or the root's context where it is accounted.
    pub(crate) const ROOT: Current = Current(Payer { tag: Tag::NOBODY, generation: 1 });

    /// A group.
    pub(crate) fn group(payer: Payer) -> Self {
        debug_assert!(!payer.tag.is_nobody(), "groups below the root pay");
        Self(payer)
    }

    /// The group's payer; `None`: it is nobody, or the root.
    pub(crate) fn as_group(self) -> Option<Payer> {
        (!self.0.tag.is_nobody()).then_some(self.0)
    }

    /// The payer that this stands for.
    #[inline]
    pub(crate) fn payer(self) -> Payer {
        if !ACCOUNTED {
            return Payer::NOBODY;
        }
        if self == Self::ROOT {
            return TREE.root_payer();
        }
        self.0
    }
}

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current::ROOT) };
    /// Nesting of `no_reclaim`, `fallible` and eager frees.
    static NO_RECLAIM: Cell<u32> = const { Cell::new(0) };
    static FALLIBLE: Cell<u32> = const { Cell::new(0) };
    static EAGER: Cell<Eager> = const { Cell::new(Eager { depth: 0, request: None }) };
    /// What the thread charged over some group's `high` since its last safe point.
    static OVER_HIGH: Cell<(GroupRef, u64)> = const { Cell::new((GroupRef::ROOT, 0)) };
    static REFUSAL: Cell<Option<Refused>> = const { Cell::new(None) };
}

/// Why the thread's last refused allocation was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refused {
    /// A limit.
    Limit(RawOverLimit),
    /// The system has no memory for this many bytes.
    System(u64),
}

/// Whether the thread's frees are uncharged at once, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eager {
    pub(crate) depth: u32,
    pub(crate) request: Option<&'static Request>,
}

pub(crate) fn current() -> Current {
    CURRENT.get()
}

/// Makes `current` current and answers what was.
#[inline]
pub(crate) fn switch(current: Current) -> Current {
    let before = CURRENT.replace(current);
    if before != current {
        record::current_changed(current.payer());
    }
    before
}

/// Makes the root current, because the payer that was is gone with all its charges.
pub(crate) fn payer_is_gone() {
    CURRENT.set(Current::ROOT);
}

pub(crate) fn eager() -> Eager {
    EAGER.get()
}

pub(crate) fn set_eager(eager: Eager) {
    EAGER.set(eager);
}

pub(crate) fn is_no_reclaim() -> bool {
    NO_RECLAIM.get() > 0
}

pub(crate) fn is_fallible() -> bool {
    FALLIBLE.get() > 0
}

pub(crate) fn set_refusal(refused: Refused) {
    REFUSAL.set(Some(refused));
}

/// Why the calling thread's last refused allocation was refused; asking forgets it.
pub(crate) fn take_refusal() -> Option<Refused> {
    REFUSAL.take()
}

/// Restores what was current when it was made. Not `Send`: it belongs to the thread.
#[derive(Debug)]
pub(crate) struct Restore {
    before: Current,
    thread: PhantomData<*mut ()>,
}

impl Restore {
    /// Makes `current` current until the guard is dropped.
    pub(crate) fn entering(current: Current) -> Self {
        Self { before: switch(current), thread: PhantomData }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        switch(self.before);
        at_safe_point();
    }
}

/// What waits for a moment at which no allocation is on the stack.
#[inline]
pub(crate) fn at_safe_point() {
    if EAGER.get().depth == 0 {
        ENGINE.run_deferred();
        if OVER_HIGH.get().1 != 0 {
            pause_over_high();
        }
    }
}

/// The thread charged `bytes` while `group`, or a level above it, was over its `high`. Of several
/// groups before one safe point, the last counts.
pub(crate) fn owe_over_high(group: GroupRef, bytes: u64) {
    let (before, owed) = OVER_HIGH.get();
    let owed = if before == group { owed } else { 0 };
    OVER_HIGH.set((group, owed.saturating_add(bytes)));
}

/// Pauses for what was charged over `high`, where that is on: not where locks may be held, and
/// not while a panic is on its way.
#[cold]
fn pause_over_high() {
    if is_no_reclaim() || std::thread::panicking() {
        return;
    }
    let (group, bytes) = OVER_HIGH.get();
    if ENGINE.throttle(group, bytes).is_some() {
        OVER_HIGH.set((GroupRef::ROOT, 0));
    }
}

/// Adds one to a nesting count until it is dropped.
struct Nested(&'static std::thread::LocalKey<Cell<u32>>);

impl Nested {
    fn new(count: &'static std::thread::LocalKey<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Runs `f` with allocations charged to nobody, also where the root is accounted.
///
/// Inside, [`Group::current`](crate::Group::current) is the root. A group entered inside pays
/// again. Source: the kernel's `__GFP_ACCOUNT`, left out (`__GFP_NOACCOUNT` of 2012).
///
/// # Examples
///
/// ```
/// let table = memcg::unaccounted(|| Vec::<u64>::with_capacity(1000));
/// assert_eq!(memcg::Group::of(table.as_ptr()), None);
/// ```
pub fn unaccounted<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore::entering(Current::NOBODY);
    f()
}

/// Runs `f` with allocations that may drain what threads cache, but never run a shrinker or
/// wait for one: for code that holds locks that shrinkers take.
///
/// A refusal inside counts as `max`, not as `oom`. Source: the kernel's `GFP_NOFS` and
/// `memalloc_nofs_save`.
///
/// # Examples
///
/// ```
/// let buffer = memcg::no_reclaim(|| vec![0u8; 4096]);
/// assert_eq!(buffer.len(), 4096);
/// ```
pub fn no_reclaim<R>(f: impl FnOnce() -> R) -> R {
    let _nested = Nested::new(&NO_RECLAIM);
    f()
}

/// Runs `f` with allocations that are refused at `max` whatever
/// [`OnLimit`](crate::OnLimit) says: for values that are reserved with `try_reserve`.
///
/// # Examples
///
/// ```
/// let mut value = Vec::<u8>::new();
/// memcg::fallible(|| value.try_reserve_exact(100)).expect("no limit is near");
/// ```
pub fn fallible<R>(f: impl FnOnce() -> R) -> R {
    let _nested = Nested::new(&FALLIBLE);
    f()
}
