//! Noticing what somebody watches, and delivering the news of it.
//!
//! ```text
//!   charge, count, offline           keeper's tick                 the worker
//!   tree: note it, ring ───────┐     root's usage, stalls: ring ─► deliver: look what happened
//!                              └─────────────────────────────────►   │ eventfds, then wakers
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
//! - A look at a group costs what there is news for, and `O(log watches)`: thresholds are in order, and a crossing is
//!   told of by where usage was at the last look (`usage`); of events, those of a kind that happened are told.
//! - The eventfd is written before the wakers are taken; a poller leaves its waker before it reads
//!   the eventfd. So one of the two sees the other.
//! - Where there is no memory for a list of those that have news, they are told one by one under the registry's lock:
//!   that runs no code of the program, and takes none.
//! - No lock of this file is held while code of the program runs. The registry's comes before the
//!   drain mutex; what happens under it is charged to nobody, so it reclaims nothing.
//!
//! Source: `mem_cgroup_usage_register_event` of cgroup v1, `memcg_memory_event`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use memcg_accounting::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};
use memcg_accounting::{
    EventKind, EventSet, Events, GroupRef, NoWatch, Root, Seen, Window, now_us,
};

use crate::fork::{self, AtFork, Place};
use crate::objects::{Counted, TooMany};
use crate::process::{ENGINE, TREE};
use crate::scope;
use crate::threshold::Threshold;
use crate::trigger::Trigger;
use crate::wakers::{self, Wakers};

/// One watch, as the registry and its holder share it.
pub(crate) struct State {
    group: GroupRef,
    threshold: Threshold,
    fd: OwnedFd,
    /// The group is gone, or this is the child of a fork: it is news for good.
    is_closed: AtomicBool,
    /// Of a watch of pressure. Changes under the registry's lock.
    trigger: Option<Lock<Trigger>>,
    wakers: Wakers,
    counted: Counted,
}

/// A watch among others: unique while it lives.
type Id = usize;

fn id(state: &Arc<State>) -> Id {
    Arc::as_ptr(state).addr()
}

/// The watches of one group.
#[derive(Default)]
struct Watches {
    /// By threshold.
    usage: BTreeMap<(u64, Id), Arc<State>>,
    /// By kind; see [`KINDS`].
    events: [BTreeMap<Id, Arc<State>>; KINDS.len()],
    triggers: BTreeMap<Id, Arc<State>>,
    /// Usage and events at the last look.
    last_usage: u64,
    last_events: Events,
}

const KINDS: [EventKind; 5] =
    [EventKind::Low, EventKind::High, EventKind::Max, EventKind::Oom, EventKind::Forced];

/// The watches of all groups, by slot and group: one group for a slot, but for the moment between
/// the end of one and the notice of it.
struct Registry {
    groups: BTreeMap<(u32, u64), Watches>,
    /// Groups of which pressure is watched.
    pressed: BTreeSet<(u32, u64)>,
}

fn key(group: GroupRef) -> (u32, u64) {
    (group.index(), group.to_bits())
}

static REGISTRY: Lock<Registry> =
    Lock::new(Registry { groups: BTreeMap::new(), pressed: BTreeSet::new() });

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
    /// The system has no descriptor for it, or there are too many objects.
    pub(crate) fn new(group: GroupRef, threshold: Threshold) -> io::Result<Arc<Self>> {
        let too_many = |too_many: TooMany| io::Error::other(too_many.to_string());
        let counted = Counted::try_new().map_err(too_many)?;
        let fd = new_eventfd(0)?;
        Ok(scope::unaccounted(|| {
            Arc::new(Self {
                group,
                threshold,
                fd,
                is_closed: AtomicBool::new(false),
                trigger: trigger(group, threshold).map(Lock::new),
                wakers: Wakers::new(),
                counted,
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

    /// Wakers of the next news. Who leaves one there looks for news after it.
    pub(crate) fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// There is news: the descriptor first, then the wakers, which a worker is to wake.
    fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // A counter that is full is signalled already.
        // SAFETY: the descriptor is this value's, and the buffer has 8 bytes.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        wakers::wake_later(self.wakers.take());
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
}

fn trigger(group: GroupRef, threshold: Threshold) -> Option<Trigger> {
    let Threshold::Pressure { full, stall, window } = threshold else { return None };
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Some(Trigger::new(us(stall), us(window), now_us(), stalled_us(group, full)))
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
    fork::join(&AT_FORK);
    match state.threshold {
        Threshold::Usage(_) if is_sum(state.group) => {
            ROOT_WATCHES.fetch_add(1, Ordering::Relaxed);
        }
        Threshold::Pressure { .. } => ENGINE.watch_stalls(true),
        _ => {}
    }
    let mut news = News::default();
    let added = scope::unaccounted(|| {
        let mut registry = lock(&REGISTRY);
        let key = key(state.group);
        // What happened before is news for those that are there, and none for this one.
        let _ = registry.look(key, &mut news);
        if let Threshold::Pressure { .. } = state.threshold {
            registry.pressed.insert(key);
        }
        let watches = registry.groups.entry(key).or_insert_with(|| Watches::new(state.group));
        watches.insert(state);
        registry.look(key, &mut news)
    });
    news.tell();
    ENGINE.summon();
    ENGINE.want_ticks();
    added
}

/// A watch ends, unless it has left the registry with its group.
pub(crate) fn remove(state: &Arc<State>) {
    let mut news = News::default();
    scope::unaccounted(|| {
        let mut registry = lock(&REGISTRY);
        let key = key(state.group);
        let Some(watches) = registry.groups.get_mut(&key) else { return };
        // The caller's handle keeps the state: nothing of the program's is dropped here.
        if !watches.remove(state) {
            return;
        }
        retired(state);
        let has_triggers = !watches.triggers.is_empty();
        if watches.is_empty() {
            registry.groups.remove(&key);
            TREE.unwatch(state.group);
        } else {
            // The group is watched already, so this needs no memory.
            let _ = registry.look(key, &mut news);
        }
        if !has_triggers {
            registry.pressed.remove(&key);
        }
    });
    news.tell();
}

/// Those that have news, to be told without the registry's lock, which others wait for.
#[derive(Default)]
struct News(Vec<Arc<State>>);

impl News {
    /// `state` has some. The registry has it too, so nothing of the program's is dropped here.
    fn add(&mut self, state: &Arc<State>) {
        if self.0.try_reserve(1).is_ok() {
            self.0.push(state.clone());
        } else {
            state.signal();
        }
    }

    fn signal(self) {
        self.0.into_iter().for_each(|state| state.signal());
    }

    /// Signals them, and has their wakers woken.
    fn tell(self) {
        self.signal();
        if wakers::are_due() {
            ENGINE.ring();
        }
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

impl Watches {
    /// None of them, of a group that nobody watched: what was seen before is nobody's news.
    fn new(group: GroupRef) -> Self {
        let none = Self::default();
        let last_usage = none.arm(group).map_or_else(|_| TREE.usage(group), |seen| seen.usage);
        Self { last_usage, ..none }
    }

    fn insert(&mut self, state: &Arc<State>) {
        if self.wants() == EventSet::NONE {
            self.last_events = TREE.events(state.group);
        }
        let before = match state.threshold {
            Threshold::Usage(at) => self.usage.insert((at, id(state)), state.clone()),
            Threshold::Event(kind) => self.events[kind as usize].insert(id(state), state.clone()),
            Threshold::Pressure { .. } => self.triggers.insert(id(state), state.clone()),
        };
        debug_assert!(before.is_none(), "a watch is added once");
    }

    /// Answers whether it was there.
    fn remove(&mut self, state: &Arc<State>) -> bool {
        let found = match state.threshold {
            Threshold::Usage(at) => self.usage.remove(&(at, id(state))),
            Threshold::Event(kind) => self.events[kind as usize].remove(&id(state)),
            Threshold::Pressure { .. } => self.triggers.remove(&id(state)),
        };
        found.is_some()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<State>> {
        let events = self.events.iter().flat_map(BTreeMap::values);
        self.usage.values().chain(events).chain(self.triggers.values())
    }

    fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// What the tree is to notice: usage that reaches the next threshold, or falls below the one that it has reached.
    fn window(&self, usage: u64) -> Window {
        let up_to = self.usage.range(..=(usage, Id::MAX)).next_back();
        let above = self.usage.range((Bound::Excluded((usage, Id::MAX)), Bound::Unbounded)).next();
        let below = up_to.map_or(Window::ALL.below, |((at, _), _)| *at);
        Window { below, above: above.map_or(Window::ALL.above, |((at, _), _)| *at) }
    }

    fn wants(&self) -> EventSet {
        let watched = KINDS.into_iter().filter(|kind| !self.events[*kind as usize].is_empty());
        watched.fold(EventSet::NONE, EventSet::with)
    }

    /// Has the tree notice what is wanted of `group`.
    fn arm(&self, group: GroupRef) -> Result<Seen, NoWatch> {
        if !is_sum(group) {
            return TREE.watch(group, self.wants(), |seen| self.window(seen.usage));
        }
        TREE.watch(group, self.wants(), |_| Window::ALL)?;
        let usage = TREE.usage(group);
        let Window { below, above } = self.window(usage);
        // Relaxed: the tick compares again and again.
        ROOT_BELOW.store(below, Ordering::Relaxed);
        ROOT_ABOVE.store(above, Ordering::Relaxed);
        Ok(Seen { usage, lowest: usage, highest: usage })
    }

    /// Adds those to `news` whose thresholds lie between the extremes that were seen since the last look, and those of
    /// events that happened.
    fn look(&mut self, group: GroupRef, seen: Seen, news: &mut News) {
        let last = std::mem::replace(&mut self.last_usage, seen.usage);
        let lowest = seen.lowest.min(seen.usage).min(last);
        let highest = seen.highest.max(seen.usage).max(last);
        let crossed = (Bound::Excluded((lowest, Id::MAX)), Bound::Included((highest, Id::MAX)));
        if lowest < highest {
            self.usage.range(crossed).for_each(|(_, state)| news.add(state));
        }
        if self.wants() == EventSet::NONE {
            return;
        }
        let events = TREE.events(group);
        let before = std::mem::replace(&mut self.last_events, events);
        for kind in KINDS.into_iter().filter(|kind| events.of(*kind) != before.of(*kind)) {
            self.events[kind as usize].values().for_each(|state| news.add(state));
        }
    }
}

impl Registry {
    /// Looks at the watches of one group, arms the tree anew, and adds those with news to `news`. If the group is gone,
    /// they all have, and leave the registry.
    fn look(&mut self, key: (u32, u64), news: &mut News) -> Result<(), NoWatch> {
        let Some(watches) = self.groups.get_mut(&key) else { return Ok(()) };
        let group = GroupRef::from_bits(key.1);
        if TREE.is_online(group) {
            let seen = watches.arm(group)?;
            watches.look(group, seen, news);
            return Ok(());
        }
        for state in watches.all() {
            state.is_closed.store(true, Ordering::Release);
            retired(state);
            news.add(state);
        }
        self.groups.remove(&key);
        self.pressed.remove(&key);
        Ok(())
    }

    /// [`look`](Registry::look) at each group that is, or was, in `slot`. What does not fit into memory is looked at when
    /// it is next noticed.
    fn look_at_slot(&mut self, slot: u32, news: &mut News) {
        let mut from = (slot, 0);
        while let Some((&key, _)) = self.groups.range(from..=(slot, u64::MAX)).next() {
            let _ = self.look(key, news);
            let Some(next) = key.1.checked_add(1) else { return };
            from = (slot, next);
        }
    }
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
        let mut news = News::default();
        TREE.take_noticed(|slot| lock(&REGISTRY).look_at_slot(slot, &mut news));
        if ROOT_IS_DUE.swap(false, Ordering::Relaxed) {
            lock(&REGISTRY).look_at_slot(GroupRef::ROOT.index(), &mut news);
        }
        if TRIGGERS_ARE_DUE.swap(false, Ordering::Relaxed) {
            look_at_triggers(&mut news);
        }
        news
    });
    news.signal();
}

fn look_at_triggers(news: &mut News) {
    let registry = lock(&REGISTRY);
    let pressed = registry.pressed.iter().filter_map(|key| registry.groups.get(key));
    for state in pressed.flat_map(|watches| watches.triggers.values()) {
        if let Threshold::Pressure { full, .. } = state.threshold
            && let Some(trigger) = &state.trigger
            && lock(trigger).look(now_us(), stalled_us(state.group, full))
        {
            news.add(state);
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

/// Before the drain mutex: what happens under the lock may be charged.
static AT_FORK: AtFork = AtFork {
    place: Place::Watches,
    prepare: || std::mem::forget(lock(&REGISTRY)),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { REGISTRY.force_unlock() },
    in_child: after_fork,
};

/// In the child of a fork: watches are the parent's, and are closed here. A descriptor of theirs
/// is the parent's eventfd: here its number gets one of the child's own, which is readable for
/// good, so that nothing done here is seen there.
fn after_fork() {
    TREE.forget_noticed();
    let groups = {
        let mut registry = lock(&REGISTRY);
        registry.pressed = BTreeSet::new();
        std::mem::take(&mut registry.groups)
    };
    for state in groups.values().flat_map(Watches::all) {
        state.is_closed.store(true, Ordering::Release);
        state.counted.give_back();
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
    std::mem::forget(groups);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever usage does, those are told whose threshold was crossed, as if each were looked at by itself.
        #[test]
        fn crossings_are_those_of_each_threshold_by_itself(
            thresholds in proptest::collection::vec(1u64..40, 0..20),
            start in 0u64..40,
            looks in proptest::collection::vec((0u64..40, 0u64..40, 0u64..40), 1..20),
        ) {
            let mut watches = Watches { last_usage: start, ..Watches::default() };
            let states: Vec<_> = thresholds
                .iter()
                .map(|at| State::new(GroupRef::ROOT, Threshold::Usage(*at)).expect("a descriptor"))
                .collect();
            states.iter().for_each(|state| watches.insert(state));
            let mut before = start;
            for (a, b, c) in looks {
                let (lowest, highest) = (a.min(b).min(c), a.max(b).max(c));
                let mut news = News::default();
                watches.look(GroupRef::ROOT, Seen { usage: b, lowest, highest }, &mut news);
                for (state, at) in states.iter().zip(&thresholds) {
                    let is_told = news.0.iter().filter(|told| Arc::ptr_eq(told, state)).count();
                    let was_above = before >= *at;
                    let expected = if was_above { lowest < *at } else { highest >= *at };
                    prop_assert_eq!(is_told, usize::from(expected), "{} {}..={}", at, lowest, highest);
                }
                before = b;
                let window = watches.window(b);
                prop_assert_eq!(window.below, thresholds.iter().copied().filter(|at| *at <= b).max().unwrap_or(0));
                prop_assert_eq!(window.above, thresholds.iter().copied().filter(|at| *at > b).min().unwrap_or(u64::MAX));
            }
            for state in &states {
                prop_assert!(watches.remove(state) && !watches.remove(state));
            }
            prop_assert!(watches.is_empty());
        }
    }
}
