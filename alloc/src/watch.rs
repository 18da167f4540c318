//! Hearing of a group: usage thresholds, events, pressure, and its end.
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
//! Source: `mem_cgroup_usage_register_event` of cgroup v1, `memcg_memory_event`, and
//! `kernel/sched/psi.c` for triggers.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use memcg_accounting::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};
use memcg_accounting::{EventKind, EventSet, GroupRef, NoWatch, Root, Seen, Window, now_us};

use crate::error::Error;
use crate::group::{self, Group};
use crate::guarded::wake_all;
use crate::process::{ENGINE, TREE};
use crate::reclaim_task::leave_waker;
use crate::scope;
use crate::trigger::Trigger;

/// What a [`Watch`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Usage crosses this many bytes, up or down: it reaches the threshold, or falls below it.
    Usage(u64),
    /// The count of an event of the group or below it moves.
    Event(EventKind),
    /// Threads of the group or below it wait for memory for `stall` within `window`, as a trigger
    /// of the kernel's pressure stall information.
    Pressure {
        /// Only time in which all threads inside waited counts; `false`: any thread's.
        full: bool,
        /// How much waiting is news: more than nothing, at most `window`.
        stall: Duration,
        /// Within how long: 500 ms to 10 s. There is one notification per window at most.
        window: Duration,
    },
}

/// What is looked at to tell whether there is news. Changes under the registry's lock.
enum Look {
    Usage { threshold: u64, was_above: Option<bool> },
    Event { kind: EventKind, count: u64 },
    Pressure { full: bool, trigger: Trigger },
}

/// One watch, as the registry and its holder share it.
struct State {
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
    fn take(&self) -> bool {
        if self.is_closed() {
            return true;
        }
        let mut count = [0_u8; 8];
        // SAFETY: the descriptor is this value's and does not block, and the buffer has 8 bytes.
        let read =
            unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        read == 8 || self.is_closed()
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire) || !TREE.is_online(self.group)
    }

    fn wants(&self) -> EventSet {
        match self.threshold {
            Threshold::Event(kind) => EventSet::NONE.with(kind),
            _ => EventSet::NONE,
        }
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

// ---- what users hold ------------------------------------------------------------------------

/// Tells when something happens to a group: see [`Group::watch`].
///
/// One wake-up may stand for several things that happened; whoever wakes up looks at the group.
/// When the group goes offline there is news for good ([`is_closed`](Watch::is_closed)). Dropping
/// it ends it. It holds no handle of the group.
///
/// All ways of waiting take the same news: of two that wait on one value, one gets it.
pub struct Watch {
    state: Arc<State>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("threshold", &self.state.threshold)
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// What it waits for.
    #[must_use]
    pub fn threshold(&self) -> Threshold {
        self.state.threshold
    }

    /// Whether the group is offline, or this is the child of a fork: nothing more will happen, and
    /// every wait answers at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.is_closed()
    }

    /// Takes the news, if there is any; never waits. One system call.
    #[must_use]
    pub fn try_wait(&self) -> bool {
        scope::at_safe_point();
        self.state.take()
    }

    /// Waits for news and takes it, for at most about `timeout`; `false`: there was none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use std::time::Duration;
    /// use memcg::{Group, Threshold};
    ///
    /// let tenant = Group::root().create("watched")?;
    /// let watch = tenant.watch(Threshold::Usage(1 << 20))?;
    /// assert!(!watch.try_wait());
    /// let buffer = tenant.run(|| vec![0u8; 2 << 20]);
    /// assert!(watch.wait(Duration::from_secs(60)), "usage rose over it");
    /// drop(buffer);
    /// assert!(watch.wait(Duration::from_secs(60)), "and fell below");
    /// # Ok::<(), memcg::Error>(())
    /// ```
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.try_wait() {
                return true;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            // Where no worker can be started, this thread is who delivers.
            let longest = if ENGINE.summon() { LONGEST_POLL } else { LOOK };
            poll_one(self.state.fd.as_raw_fd(), left.min(longest));
        }
    }

    /// A future that is ready when there is news, which it takes.
    ///
    /// Wakers are woken by the worker, never inside an allocation. Works with every executor, and
    /// any number of futures may wait on one value.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use memcg::{EventKind, Group, Threshold};
    /// # let tenant = Group::root().create("awaited")?;
    /// let refusals = tenant.watch(Threshold::Event(EventKind::Oom))?;
    /// let task = async move {
    ///     refusals.changed().await;
    ///     // … shed load …
    /// };
    /// # drop(task);
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn changed(&self) -> Changed<'_> {
        Changed { watch: self }
    }

    /// Ready when there is news, which it takes: what [`changed`](Watch::changed) polls.
    pub fn poll_changed(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.try_wait() {
            return Poll::Ready(());
        }
        leave_waker(&self.state.wakers, context.waker());
        if self.state.take() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A wait of this length is begun anew; some systems take no longer ones.
const LONGEST_POLL: Duration = Duration::from_secs(3600);
/// How often a thread looks that has no worker to wait for.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `fd` is readable, or a signal comes, or the time is over.
fn poll_one(fd: RawFd, timeout: Duration) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: one entry is given, which is valid for reading and writing.
    unsafe { libc::poll(&raw mut entry, 1, ms) };
}

impl AsFd for Watch {
    /// An eventfd, which is readable while there is news: for `epoll` and the like. It does not
    /// block. News is taken by [`try_wait`](Watch::try_wait), or by reading it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.fd.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.state.fd.as_raw_fd()
    }
}

/// Waits for news of a [`Watch`]: see [`Watch::changed`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Changed<'a> {
    watch: &'a Watch,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.watch.poll_changed(context)
    }
}

/// Ends when the group goes offline.
#[cfg(feature = "stream")]
impl futures_core::Stream for Watch {
    type Item = ();

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<()>> {
        self.poll_changed(context).map(|()| (!self.is_closed()).then_some(()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let state = &self.state;
        let mut news = Vec::new();
        scope::unaccounted(|| {
            let mut registry = lock(&REGISTRY);
            let slot = state.group.index();
            let Some(all) = registry.slots.get_mut(&slot) else { return };
            let Some(at) = all.iter().position(|other| Arc::ptr_eq(other, state)) else { return };
            // This handle keeps the state: nothing of the program's is dropped here.
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

impl Group {
    /// Watches the group: usage that crosses a threshold, an event, pressure, and its end.
    ///
    /// Any number of watches may be on one group, the root too. Each takes a file descriptor and
    /// about 300 bytes, charged to nobody. News is delivered by the worker, never inside an
    /// allocation: a charge that makes some sets a flag and wakes the worker. A charge of a group
    /// that nobody watches pays one load.
    ///
    /// - [`Threshold::Usage`] is edge-triggered, and a crossing there and back is not missed. It
    ///   sees usage as limits do: threads charge up to 32 KiB ahead and keep what is freed for a
    ///   while (see [`usage`](Group::usage)), so a rise shows that much early and a fall late. On
    ///   an untracked root it is looked at every 100 ms, and a shorter excursion is missed; the
    ///   keeper wakes up for it while such a watch lives.
    /// - [`Threshold::Event`] counts the subtree, as [`events`](Group::events); on an untracked
    ///   root, the whole process.
    /// - [`Threshold::Pressure`] is looked at every 100 ms while there are stalls.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): a usage of 0, or a pressure whose `window` is not 500 ms
    /// to 10 s or whose `stall` is nothing or longer than it.
    /// [`is_unsupported`](Error::is_unsupported): memcg is not the global allocator.
    /// [`is_system`](Error::is_system): no file descriptor or no memory is left.
    ///
    /// Source: `cgroup.event_control` of cgroup v1 for usage, modified `memory.events` of v2 for
    /// events, triggers in `memory.pressure` for pressure.
    pub fn watch(&self, threshold: Threshold) -> Result<Watch, Error> {
        check(threshold).map_err(|what| Error::invalid(self, what))?;
        group::prepare(|| self.path())?;
        let no_fd = |error: io::Error| Error::system_at(self, format!("no eventfd: {error}"));
        let fd = new_eventfd(0).map_err(no_fd)?;
        let state = scope::unaccounted(|| {
            Arc::new(State {
                group: self.as_ref(),
                threshold,
                fd,
                is_closed: AtomicBool::new(false),
                look: Lock::new(Look::new(self.as_ref(), threshold)),
                wakers: Lock::new(Vec::new()),
            })
        });
        match threshold {
            Threshold::Usage(_) if is_sum(self.as_ref()) => {
                ROOT_WATCHES.fetch_add(1, Ordering::Relaxed);
            }
            Threshold::Pressure { .. } => ENGINE.watch_stalls(true),
            _ => {}
        }
        // From here on the drop takes everything back.
        let watch = Watch { state };
        let mut news = Vec::new();
        let added = scope::unaccounted(|| {
            let slot = self.as_ref().index();
            let mut registry = lock(&REGISTRY);
            registry.slots.entry(slot).or_default().push(watch.state.clone());
            registry.look(slot, &mut news)
        });
        for state in news {
            state.signal();
        }
        ENGINE.summon();
        crate::worker::want_ticks();
        match added {
            Ok(()) => Ok(watch),
            Err(_) => Err(Error::system_at(self, "no memory to note a watch".into())),
        }
    }
}

/// What is wrong with `threshold`.
fn check(threshold: Threshold) -> Result<(), &'static str> {
    const SHORTEST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(10);
    match threshold {
        Threshold::Usage(0) => Err("usage never crosses 0 bytes"),
        Threshold::Pressure { window, .. } if !(SHORTEST..=LONGEST).contains(&window) => {
            Err("a window of pressure is 500 ms to 10 s")
        }
        Threshold::Pressure { stall, window, .. } if stall > window || stall.as_micros() == 0 => {
            Err("a stall is longer than nothing and at most its window")
        }
        _ => Ok(()),
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

/// Takes the lock: for `fork`, before any other of the allocator's.
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
        TREE.unwatch(state.group);
        if let Ok(own) = new_eventfd(1) {
            // SAFETY: both are open descriptors, and the second is this state's.
            unsafe { libc::dup3(own.as_raw_fd(), state.fd.as_raw_fd(), libc::O_CLOEXEC) };
        }
    }
    ROOT_WATCHES.store(0, Ordering::Relaxed);
    // What they hold is kept: the locks inside may have been taken by threads that are gone.
    std::mem::forget(slots);
}
