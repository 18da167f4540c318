//! Noticing what somebody watches, and delivering the news of it.
//!
//! ```text
//!   charge, count, offline           keeper's tick                 the worker
//!   tree: note it, ring ───────┐     root's usage, stalls: ring ─► deliver: look what happened
//!                              └─────────────────────────────────►   │ eventfd, then wakers
//!   Watch: try_wait, wait, changed, AsFd ◄───────────────────────────┘
//! ```
//!
//! The counter of the eventfd is the one truth of whether there is news: whoever waits takes it
//! from there, by whichever way.
//!
//! # Invariants
//!
//! - A watch is in the registry until it is dropped or its group is gone; the tree is armed for
//!   exactly the groups in the registry, for what their watches want.
//! - The eventfd is written before the wakers are taken; a poller leaves its waker before it reads
//!   the eventfd. So one of the two sees the other.
//! - No lock of this file is held while code of the program runs. The registry's comes before the
//!   drain mutex; what happens under it is charged to nobody, so it reclaims nothing.
//!
//! Source: `mem_cgroup_usage_register_event` of cgroup v1, `memcg_memory_event`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use memcg_accounting::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};
use memcg_accounting::{EventKind, EventSet, GroupRef, NoWatch, Root, Seen, Window, now_us};

use crate::guarded::{drop_all, wake_all};
use crate::process::{ENGINE, TREE};
use crate::reclaim_task;
use crate::scope;
use crate::trigger::Trigger;
use crate::watch::Threshold;

/// What is looked at to tell whether there is news. Changes under the registry's lock.
enum Look {
    Usage { threshold: u64, was_above: Option<bool> },
    Event { kind: EventKind, count: u64 },
    Pressure { full: bool, trigger: Trigger },
}

/// One watch, as the registry and its holder share it.
pub(crate) struct State {
    group: GroupRef,
    threshold: Threshold,
    fd: OwnedFd,
    /// The group is gone, or this is the child of a fork: it is news for good.
    is_closed: AtomicBool,
    look: Lock<Look>,
    wakers: Lock<Vec<Waker>>,
}

/// The watches of each slot of the tree.
struct Registry {
    slots: BTreeMap<u32, Vec<Arc<State>>>,
}

static REGISTRY: Lock<Registry> = Lock::new(Registry { slots: BTreeMap::new() });

/// The untracked root has no counter that could notice: the keeper's tick compares its usage with
/// this window while somebody watches it.
static ROOT_WATCHES: AtomicU32 = AtomicU32::new(0);
static ROOT_BELOW: AtomicU64 = AtomicU64::new(0);
static ROOT_ABOVE: AtomicU64 = AtomicU64::new(u64::MAX);
static ROOT_IS_DUE: AtomicBool = AtomicBool::new(false);
/// There were stalls, so triggers are looked at.
static TRIGGERS_ARE_DUE: AtomicBool = AtomicBool::new(false);

fn is_sum(group: GroupRef) -> bool {
    group.is_root() && TREE.root_kind() == Root::Untracked
}

impl State {
    /// A watch that is in no registry yet.
    ///
    /// # Errors
    ///
    /// The system has no descriptor for it.
    pub(crate) fn new(group: GroupRef, threshold: Threshold) -> io::Result<Arc<Self>> {
        let fd = new_eventfd(0)?;
        Ok(scope::unaccounted(|| {
            Arc::new(Self {
                group,
                threshold,
                fd,
                is_closed: AtomicBool::new(false),
                look: Lock::new(Look::new(group, threshold)),
                wakers: Lock::new(Vec::new()),
            })
        }))
    }

    /// Of which nobody has a handle: it may be gone.
    pub(crate) fn group(&self) -> GroupRef {
        self.group
    }

    pub(crate) fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// Readable while there is news.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Has `waker` woken at the next news. The caller looks for some after it.
    pub(crate) fn leave_waker(&self, waker: &Waker) {
        reclaim_task::leave_waker(&self.wakers, waker);
    }

    /// There is news: the descriptor first, then the wakers.
    fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // A counter that is full is signalled already.
        // SAFETY: the descriptor is this value's, and the buffer has 8 bytes.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wake_all(wakers);
    }

    /// Takes the news, if there is any.
    pub(crate) fn take(&self) -> bool {
        if self.is_closed() {
            return true;
        }
        let mut count = [0_u8; 8];
        // SAFETY: the descriptor is this value's and does not block, and the buffer has 8 bytes.
        let read =
            unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read == 8 || self.is_closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire) || !TREE.is_online(self.group)
    }

    fn wants(&self) -> EventSet {
        match self.threshold {
            Threshold::Event(kind) => EventSet::NONE.with(kind),
            _ => EventSet::NONE,
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        drop_all(&self.wakers);
    }
}

impl Look {
    fn new(group: GroupRef, threshold: Threshold) -> Self {
        match threshold {
            Threshold::Usage(threshold) => Look::Usage { threshold, was_above: None },
            Threshold::Event(kind) => Look::Event { kind, count: count(group, kind) },
            Threshold::Pressure { full, stall, window } => {
                let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                let total = stalled_us(group, full);
                Look::Pressure {
                    full,
                    trigger: Trigger::new(us(stall), us(window), now_us(), total),
                }
            }
        }
    }

    /// Whether there is news, given what usage was since the last look.
    fn is_news(&mut self, group: GroupRef, seen: Seen) -> bool {
        match self {
            Look::Usage { threshold, was_above } => {
                let is_above = seen.usage >= *threshold;
                match was_above.replace(is_above) {
                    None => false,
                    Some(true) => !is_above || seen.lowest < *threshold,
                    Some(false) => is_above || seen.highest >= *threshold,
                }
            }
            Look::Event { kind, count: last } => {
                let now = count(group, *kind);
                std::mem::replace(last, now) != now
            }
            // Triggers are looked at by themselves.
            Look::Pressure { .. } => false,
        }
    }
}

fn count(group: GroupRef, kind: EventKind) -> u64 {
    TREE.events(group).of(kind)
}

fn stalled_us(group: GroupRef, full: bool) -> u64 {
    let pressure = ENGINE.pressure(group);
    if full { pressure.full.total_us } else { pressure.some.total_us }
}

// ---- coming and going -----------------------------------------------------------------------

/// Begins to notice what a new watch wants.
///
/// # Errors
///
/// There is no memory to note it: it is in the registry all the same, until [`remove`].
pub(crate) fn add(state: &Arc<State>) -> Result<(), NoWatch> {
    match state.threshold {
        Threshold::Usage(_) if is_sum(state.group) => {
            ROOT_WATCHES.fetch_add(1, Ordering::Relaxed);
        }
        Threshold::Pressure { .. } => ENGINE.watch_stalls(true),
        _ => {}
    }
    let mut news = Vec::new();
    let added = scope::unaccounted(|| {
        let slot = state.group.index();
        let mut registry = lock(&REGISTRY);
        registry.slots.entry(slot).or_default().push(state.clone());
        registry.look(slot, &mut news)
    });
    for state in news {
        state.signal();
    }
    ENGINE.summon();
    crate::worker::want_ticks();
    added
}

/// A watch ends, unless it has left the registry with its group.
pub(crate) fn remove(state: &Arc<State>) {
    let mut news = Vec::new();
    scope::unaccounted(|| {
        let mut registry = lock(&REGISTRY);
        let slot = state.group.index();
        let Some(all) = registry.slots.get_mut(&slot) else { return };
        let Some(at) = all.iter().position(|other| Arc::ptr_eq(other, state)) else { return };
        // The caller's handle keeps the state: nothing of the program's is dropped here.
        all.swap_remove(at);
        retired(state);
        if all.is_empty() {
            registry.slots.remove(&slot);
            TREE.unwatch(state.group);
        } else {
            // The group is watched already, so this needs no memory.
            let _ = registry.look(slot, &mut news);
        }
    });
    for state in news {
        state.signal();
    }
}

/// A watch has left the registry.
fn retired(state: &State) {
    match state.threshold {
        Threshold::Usage(_) if is_sum(state.group) => {
            ROOT_WATCHES.fetch_sub(1, Ordering::Relaxed);
        }
        Threshold::Pressure { .. } => ENGINE.watch_stalls(false),
        _ => {}
    }
}

// ---- looking --------------------------------------------------------------------------------

impl Registry {
    /// Looks at each watch of `slot`, arms the tree anew, and adds those with news to `news`.
    /// Those whose group is gone leave the registry.
    fn look(&mut self, slot: u32, news: &mut Vec<Arc<State>>) -> Result<(), NoWatch> {
        let Some(all) = self.slots.get_mut(&slot) else { return Ok(()) };
        // One group, but for the moment between the end of one and the notice of it.
        all.retain(|state| {
            let is_there = TREE.is_online(state.group);
            if !is_there {
                state.is_closed.store(true, Ordering::Release);
                retired(state);
                news.push(state.clone());
            }
            is_there
        });
        let Some(group) = all.first().map(|state| state.group) else {
            self.slots.remove(&slot);
            return Ok(());
        };
        let seen = arm(group, all)?;
        news.extend(all.iter().filter(|s| lock(&s.look).is_news(group, seen)).cloned());
        Ok(())
    }
}

/// Has the tree notice what the watches `all` of `group` want.
fn arm(group: GroupRef, all: &[Arc<State>]) -> Result<Seen, NoWatch> {
    let events = all.iter().fold(EventSet::NONE, |set, state| set.and(state.wants()));
    let window = |usage: u64| {
        all.iter().fold(Window::ALL, |window, state| match state.threshold {
            Threshold::Usage(at) if at <= usage => Window { below: window.below.max(at), ..window },
            Threshold::Usage(at) => Window { above: window.above.min(at), ..window },
            _ => window,
        })
    };
    if !is_sum(group) {
        return TREE.watch(group, events, |seen| window(seen.usage));
    }
    TREE.watch(group, events, |_| Window::ALL)?;
    let usage = TREE.usage(group);
    let Window { below, above } = window(usage);
    // Relaxed: the tick compares again and again.
    ROOT_BELOW.store(below, Ordering::Relaxed);
    ROOT_ABOVE.store(above, Ordering::Relaxed);
    Ok(Seen { usage, lowest: usage, highest: usage })
}

/// What the keeper does at each tick: runs no code of the program, allocates nothing. Answers
/// whether it wants to be called again.
pub(crate) fn tick() -> bool {
    let watches_root = ROOT_WATCHES.load(Ordering::Relaxed) != 0;
    if watches_root {
        let usage = TREE.usage(GroupRef::ROOT);
        let below = ROOT_BELOW.load(Ordering::Relaxed);
        if usage < below || usage >= ROOT_ABOVE.load(Ordering::Relaxed) {
            ROOT_IS_DUE.store(true, Ordering::Relaxed);
            ENGINE.ring();
        }
    }
    let has_stalls = ENGINE.take_stall_news();
    if has_stalls {
        TRIGGERS_ARE_DUE.store(true, Ordering::Relaxed);
        ENGINE.ring();
    }
    watches_root || has_stalls
}

/// Delivers what was noticed: looks at it, and signals those who wait. On the worker, or at a safe
/// point where there is none.
pub(crate) fn deliver() {
    let news = scope::unaccounted(|| {
        let mut news = Vec::new();
        TREE.take_noticed(|slot| {
            // What does not fit into memory is looked at when it is next noticed.
            let _ = lock(&REGISTRY).look(slot, &mut news);
        });
        if ROOT_IS_DUE.swap(false, Ordering::Relaxed) {
            let _ = lock(&REGISTRY).look(GroupRef::ROOT.index(), &mut news);
        }
        if TRIGGERS_ARE_DUE.swap(false, Ordering::Relaxed) {
            look_at_triggers(&mut news);
        }
        news
    });
    for state in news {
        state.signal();
    }
}

fn look_at_triggers(news: &mut Vec<Arc<State>>) {
    let registry = lock(&REGISTRY);
    for state in registry.slots.values().flatten() {
        if let Look::Pressure { full, trigger } = &mut *lock(&state.look)
            && trigger.look(now_us(), stalled_us(state.group, *full))
        {
            news.push(state.clone());
        }
    }
}

fn new_eventfd(count: u32) -> io::Result<OwnedFd> {
    // SAFETY: it takes two numbers.
    let fd = unsafe { libc::eventfd(count, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// ---- fork -----------------------------------------------------------------------------------

/// Takes the lock: for `fork`, before the drain mutex.
pub(crate) fn lock_all() {
    std::mem::forget(lock(&REGISTRY));
}

/// # Safety
///
/// The caller, or the thread that it is the copy of, called `lock_all`.
pub(crate) unsafe fn unlock_all() {
    // SAFETY: by contract the lock is held and its guard was forgotten.
    unsafe { REGISTRY.force_unlock() };
}

/// In the child of a fork: watches are the parent's, and are closed here. A descriptor of theirs
/// is the parent's eventfd: here its number gets one of the child's own, which is readable for
/// good, so that nothing done here is seen there.
pub(crate) fn after_fork() {
    TREE.forget_noticed();
    let slots = std::mem::take(&mut lock(&REGISTRY).slots);
    for state in slots.values().flatten() {
        state.is_closed.store(true, Ordering::Release);
        retired(state);
        TREE.unwatch(state.group);
        if let Ok(own) = new_eventfd(1) {
            // SAFETY: both are open descriptors, and the second is this state's.
            unsafe { libc::dup3(own.as_raw_fd(), state.fd.as_raw_fd(), libc::O_CLOEXEC) };
        }
    }
    // Another thread may have counted a watch that it did not get to add.
    ROOT_WATCHES.store(0, Ordering::Relaxed);
    // What they hold is kept: the locks inside may have been taken by threads that are gone.
    std::mem::forget(slots);
}
