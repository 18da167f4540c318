//! What the layer above supplies: facts about the calling thread, and how its caches are
//! emptied.

use core::fmt;

use memcg_accounting::{GroupRef, Request, Tag};

use crate::errand::Errand;
use crate::raw::ShrinkerName;
use crate::sync::{AtomicU32, Cell, Ordering};

/// Facts about the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// The thread's own request record. `None`: it has none, because it exits; then nothing is
    /// reclaimed on its behalf, only drained.
    pub request: Option<&'static Request>,
    /// It reclaims already (a shrinker, a worker): its charges are forced and never reclaim.
    pub reclaiming: bool,
    /// It is inside `no_reclaim`: it may drain and wake the worker, but never runs a shrinker
    /// and never waits for one.
    pub no_reclaim: bool,
    /// The policy at the limit is ignored: an allocation over it is refused.
    pub fallible: bool,
    /// It panics: it is let over limits, within a bound, and no shrinker is asked for it.
    pub panic: Option<Panic>,
}

/// What a thread that panics may be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panic {
    /// Drops as the stack unwinds: [`PANIC_ALLOWANCE`](crate::PANIC_ALLOWANCE).
    Unwinds,
    /// Perhaps still in the panic hook: [`REPORT_ALLOWANCE`](crate::REPORT_ALLOWANCE).
    MayReport,
}

/// Something that a person should hear about a shrinker. None is an error of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// It panicked, and is never called again.
    Panicked(ShrinkerName),
    /// It has been inside one call for longer than a worker may be; another worker serves the
    /// others, and it is not called until it returns.
    Stuck(ShrinkerName),
    /// It was unregistered while it was inside a call that did not end in time; the call keeps
    /// its data, which is dropped when it returns.
    Left(ShrinkerName),
}

/// The layer above. No method allocates from the allocator that is accounted.
pub trait Host: Sync {
    /// Facts about the calling thread.
    fn caller(&self) -> Caller;

    /// Takes back, thread by thread, what all threads cache of the subtree of `target`; answers
    /// the bytes that were uncharged.
    fn drain(&self, target: GroupRef) -> u64;

    /// The one cut. With the drain mutex held: asks `attempt` once, for another drain may have
    /// paid; stops every thread's fast path; takes what the subtree has cached; asks `attempt`
    /// again while all are still stopped. Answers whether an attempt succeeded; after one that
    /// did, `attempt` is not asked again. What others lose meanwhile is owed by the tenant that `payer` belongs to.
    fn cut(&self, target: GroupRef, payer: Tag, attempt: &mut dyn FnMut() -> bool) -> bool;

    /// Microseconds that the tenant which `payer` belongs to should wait before its next cut, for what its cuts have
    /// cost others.
    fn debt_us(&self, payer: Tag) -> u64 {
        let _ = payer;
        0
    }

    /// From now on the calling thread's frees are uncharged at once, for `request` if one is
    /// given ([`Tree::uncharge_for`](memcg_accounting::Tree::uncharge_for)), and it counts as
    /// [reclaiming](Caller::reclaiming).
    fn begin_eager(&self, request: Option<&'static Request>);

    /// Ends what [`begin_eager`](Host::begin_eager) began.
    fn end_eager(&self);

    /// From now on the calling thread has bytes in hand: charged, and recorded nowhere but on its
    /// stack. A fork waits for [`put_down`](Host::put_down). Nests.
    fn take_in_hand(&self) {}

    /// Ends what [`take_in_hand`](Host::take_in_hand) began.
    fn put_down(&self) {}

    /// Whether the calling thread waits for memory: then it is not busy.
    fn set_stalled(&self, stalled: bool) {
        let _ = stalled;
    }

    /// Shows `look` with which tag each thread pays that does not wait for memory. May lag.
    fn each_busy(&self, look: &mut dyn FnMut(Tag)) {
        let _ = look;
    }

    /// Looks at what was [rung](crate::Engine::ring) for, and tells whoever waits for it without code of the
    /// program's: so nothing that hangs there keeps news back. Called outside allocations only.
    fn look_at_news(&self) {}

    /// Runs the program's code that news calls for, after [`look_at_news`](Host::look_at_news). Called outside
    /// allocations only.
    fn deliver(&self) {}

    /// Does one turn of one task, if one waits ([`Engine::add_task`](crate::Engine::add_task)):
    /// has `turn` reclaim for it. `false`: none waits.
    fn serve_task(&self, turn: &mut dyn FnMut(&mut Errand)) -> bool {
        let _ = turn;
        false
    }

    /// The calling thread charged `bytes` while `group`, or a level above it, was over its `high`:
    /// at its next safe point it [pauses](crate::Engine::throttle). May be inside an allocation.
    fn charged_over_high(&self, group: GroupRef, bytes: u64) {
        let _ = (group, bytes);
    }

    /// Sees to it that a thread runs [`Engine::keep`](crate::Engine::keep). Called outside
    /// allocations only. `false`: none can be started; then shrinkers run at safe points.
    fn start_worker(&self) -> bool;

    /// Hears about a shrinker that misbehaves. Called outside allocations only.
    fn report(&self, report: Report) {
        let _ = report;
    }
}

/// Before a host is set, nothing is cached and nobody reclaims.
struct NoHost;

impl Host for NoHost {
    fn caller(&self) -> Caller {
        Caller::default()
    }
    fn drain(&self, _: GroupRef) -> u64 {
        0
    }
    fn cut(&self, _: GroupRef, _: Tag, attempt: &mut dyn FnMut() -> bool) -> bool {
        attempt()
    }
    fn begin_eager(&self, _: Option<&'static Request>) {}
    fn end_eager(&self) {}
    fn start_worker(&self) -> bool {
        false
    }
}

const UNSET: u32 = 0;
const SETTING: u32 = 1;
const SET: u32 = 2;

/// The place of the host, written once.
///
/// # Invariants
///
/// - `host` is written by whoever moved `state` from `UNSET` to `SETTING`, and never after it is
///   `SET`.
pub(crate) struct HostPlace {
    state: AtomicU32,
    host: Cell<&'static dyn Host>,
}

impl fmt::Debug for HostPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPlace").field("state", &self.state).finish_non_exhaustive()
    }
}

// SAFETY: hosts are `Sync`, and the place is written once, before any read of it (invariants).
unsafe impl Sync for HostPlace {}

// SAFETY: a `&'static` to a `Sync` host may go to another thread.
unsafe impl Send for HostPlace {}

impl HostPlace {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { state: AtomicU32::new(UNSET), host: Cell::new(&NoHost) }
        }
    }

    /// Sets the host; `false`: there is one already.
    pub(crate) fn set(&self, host: &'static dyn Host) -> bool {
        // Relaxed: the claim orders nothing; the store of SET does.
        let claim =
            self.state.compare_exchange(UNSET, SETTING, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return false;
        }
        // SAFETY: this thread alone went from UNSET to SETTING, and readers wait for SET.
        self.host.write(|place| unsafe { *place = host });
        // Release pairs with the Acquire in `get`.
        self.state.store(SET, Ordering::Release);
        true
    }

    pub(crate) fn get(&self) -> &'static dyn Host {
        if self.state.load(Ordering::Acquire) != SET {
            return &NoHost;
        }
        // SAFETY: SET was seen with Acquire, so the write is over, and it was the last one.
        self.host.read(|place| unsafe { *place })
    }
}
