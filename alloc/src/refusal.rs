//! Explaining refusals to the program: the hook, and what it is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicBool, Lock, Ordering, lock};
use memcg_shrink::Refusal as RawRefusal;

use crate::error::OverLimit;
use crate::fork::{self, AtFork, Place};
use crate::group::{self, Group};
use crate::guarded::guarded;
use crate::path::{Path, Shown, try_to_string};
use crate::process::{ENGINE, TREE};
use crate::scope;

type Hook = dyn Fn(&Refusal) + Send + Sync;

static HOOK: Lock<Option<Arc<Hook>>> = Lock::new(None);
/// Somebody is telling: one call of the hook at a time, so one that hangs costs one thread.
static TELLING: AtomicBool = AtomicBool::new(false);
/// There was no memory to tell one: the keeper's next tick has it tried again.
static IS_PUT_OFF: AtomicBool = AtomicBool::new(false);

/// An allocation that was refused, and what was tried before: see [`on_refusal`].
///
/// The figures are those of the moment of the refusal. Bytes unless named otherwise.
#[derive(Clone)]
pub struct Refusal {
    path: String,
    over: OverLimit,
    payer: Option<GroupRef>,
    children: Vec<(String, u64)>,
    tried: memcg_shrink::Tried,
    suppressed: u64,
}

impl Refusal {
    /// `None`: there is no memory for it.
    fn from_raw(raw: &RawRefusal) -> Option<Self> {
        let over = OverLimit::from_raw(raw.over);
        let group = raw.over.group;
        let path = if TREE.exists(group) {
            try_to_string(Path(group))?
        } else {
            try_to_string(format_args!("…/{}", Shown(raw.name.as_str())))?
        };
        let mut children = Vec::new();
        children.try_reserve_exact(raw.children.len()).ok()?;
        for child in raw.children.iter().flatten() {
            children.push((try_to_string(child.name.as_str())?, child.usage));
        }
        let RawRefusal { payer, tried, suppressed, .. } = *raw;
        Some(Self { path, over, payer, children, tried, suppressed })
    }

    /// The group whose limit refused; `None` once it is offline.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.over.group()
    }

    /// Its path, of which the last 16 names; of a group that has gone offline meanwhile, `…/` and its
    /// name. Control characters are shown as `?`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The group that would have paid: the one that refused, or one below it. `None` once it is
    /// offline.
    #[must_use]
    pub fn payer(&self) -> Option<Group> {
        self.payer.filter(|&group| TREE.try_get(group)).map(Group::from_handle)
    }

    /// Bytes that were asked for.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.over.requested()
    }

    /// Usage of the group that refused.
    #[must_use]
    pub fn usage(&self) -> u64 {
        self.over.usage()
    }

    /// Its `max`.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.over.max()
    }

    /// The names and usages of its five largest children, largest first.
    #[must_use]
    pub fn children(&self) -> &[(String, u64)] {
        &self.children
    }

    /// Objects that shrinkers looked at for the request.
    #[must_use]
    pub fn scanned(&self) -> u64 {
        self.tried.scanned
    }

    /// Bytes that shrinkers gave back for the request: too few.
    #[must_use]
    pub fn reclaimed(&self) -> u64 {
        self.tried.reclaimed
    }

    /// Rounds of reclaim. 0 where shrinkers were not asked: see
    /// [`is_unasked`](Refusal::is_unasked).
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.tried.rounds
    }

    /// How long the allocation took to be refused.
    #[must_use]
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.tried.took_us)
    }

    /// Whether the wait for a worker ended at the deadline, or half of it was over inside one call: a shrinker there was too slow.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.tried.gave_up != 0
    }

    /// Whether no shrinker was asked: the request is larger than the limit, or was made inside
    /// [`no_reclaim`](crate::no_reclaim).
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.tried.only_drained
    }

    /// Refusals of the same group since the one that was told before: they were not told.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("path", &format_args!("{}", self.path))
            .field("payer", &self.payer.map(Path))
            .field("requested", &self.requested())
            .field("usage", &self.usage())
            .field("max", &self.max())
            .field("children", &self.children)
            .field("tried", &self.tried)
            .field("suppressed", &self.suppressed)
            .finish()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requested, usage, max) = (self.requested(), self.usage(), self.max());
        write!(f, "{} refused {requested} bytes: usage {usage}, max {max}; ", self.path)?;
        if self.is_unasked() {
            write!(f, "no shrinker was asked")?;
        } else {
            let (rounds, scanned, reclaimed) = (self.rounds(), self.scanned(), self.reclaimed());
            write!(f, "{rounds} rounds scanned {scanned} objects for {reclaimed} bytes")?;
        }
        write!(f, " in {:?}", self.took())?;
        if self.is_timed_out() {
            write!(f, ", the worker timed out")?;
        }
        for (nr, (name, usage)) in self.children.iter().enumerate() {
            let before = if nr == 0 { "; largest children: " } else { ", " };
            write!(f, "{before}{} {usage}", Shown(name))?;
        }
        if self.suppressed != 0 {
            write!(f, "; {} more since the last report", self.suppressed)?;
        }
        Ok(())
    }
}

/// Has `f` told of refused allocations, and why they were refused. It replaces the one before.
///
/// `f` runs on the worker, soon after the refusal, never inside the allocation: it may take
/// locks, allocate and enter groups. Where no worker can be started it runs at the next safe
/// point (scope exit, between polls, [`check`](Group::check)). It is called once at a time; what
/// it throws is caught, and it is called again. One refusal of a group is told a second, at most
/// 8 wait to be told, which they also do while there is no memory to say them; [`suppressed`](Refusal::suppressed)
/// counts the others. An infallible
/// allocation that is refused ends the process, most likely before `f` hears of it.
///
/// What is noted inside the allocation goes to a place of fixed size: no allocation, one walk over
/// the children of the group that refused. Without a hook a refusal pays one load.
///
/// # Errors
///
/// None; where memcg is not the global allocator nothing is ever refused.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use std::sync::mpsc;
///
/// let (told, hear) = mpsc::channel();
/// memcg::on_refusal(move |refusal| drop(told.send(refusal.clone())));
///
/// let small = memcg::Group::root().builder("small").max(4096).build()?;
/// let refused = small.run(|| Vec::<u8>::new().try_reserve(10_000));
/// assert!(refused.is_err());
///
/// let refusal = hear.recv().expect("it is told");
/// assert_eq!((refusal.path(), refusal.max()), ("/small", 4096));
/// assert!(refusal.requested() >= 10_000, "{refusal}");
/// # Ok::<(), memcg::Error>(())
/// ```
pub fn on_refusal(f: impl Fn(&Refusal) + Send + Sync + 'static) {
    let hook: Arc<Hook> = scope::unaccounted(|| Arc::new(f));
    fork::join(&AT_FORK);
    let before = lock(&HOOK).replace(hook);
    ENGINE.want_refusals();
    if group::is_installed() {
        ENGINE.summon();
    }
    // User code, so not under the lock.
    drop(before);
}

/// Tells the hook what waits.
pub(crate) fn tell() {
    // Acquire and Release: one teller sees what the one before took.
    if TELLING.swap(true, Ordering::Acquire) {
        return;
    }
    let mut is_put_off = false;
    while !is_put_off && let Some(raw) = ENGINE.take_refusal() {
        // For each anew: a hook that was replaced is not called any more.
        let hook = lock(&HOOK).clone();
        if let Some(hook) = hook {
            match scope::unaccounted(|| Refusal::from_raw(&raw)) {
                Some(refusal) => {
                    guarded(|| hook(&refusal));
                }
                None => {
                    ENGINE.put_refusal_back(raw);
                    is_put_off = true;
                }
            }
            // It may be the last of it, and what it holds is the program's.
            guarded(|| drop(hook));
        }
    }
    TELLING.store(false, Ordering::Release);
    if is_put_off {
        IS_PUT_OFF.store(true, Ordering::Relaxed);
        ENGINE.want_ticks();
        return;
    }
    // What came between the last look and the store found a teller.
    if ENGINE.has_refusals() {
        ENGINE.ring();
    }
}

/// What the keeper does at each tick: takes no memory. Answers whether it wants to be called again.
pub(crate) fn tick() -> bool {
    let is_put_off = IS_PUT_OFF.swap(false, Ordering::Relaxed);
    if is_put_off {
        ENGINE.ring();
    }
    is_put_off
}

/// Before the drain mutex, as all that allocates under a lock. In the child nobody is telling.
static AT_FORK: AtFork = AtFork {
    place: Place::Refusals,
    prepare: || std::mem::forget(lock(&HOOK)),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { HOOK.force_unlock() },
    in_child: || TELLING.store(false, Ordering::Relaxed),
};
