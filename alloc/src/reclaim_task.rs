//! Reclaim that nobody waits for, unless they want to.
//!
//! ```text
//!   reclaim_async ─► TASKS ─► the worker: a turn of one task, a turn of the next, …
//!        │                        │
//!   ReclaimTask ◄── progress ─────┤
//!     .await, wait ◄── end ───────┘  word, then futex, then the waker
//! ```
//!
//! # Invariants
//!
//! - A task is in `TASKS` until it has come to its end: it waits for its turn, or is at it, and then is who claimed it the only one.
//! - `end` is set once, after `progress` has its last value; wakers are taken after that. A poller
//!   leaves its waker first and looks at `end` then, so one of the two sees the other.
//! - Each list has room for all tasks: a worker takes no memory.
//! - No lock of this file is held while code of the program runs.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};
use memcg_shrink::{Errand, ErrandEnd, futex_wait, futex_wake};

use crate::error::{Error, path_of};
use crate::fork::{self, AtFork, Place};
use crate::group::{self, Group};
use crate::guarded::guarded;
use crate::objects::Counted;
use crate::process::ENGINE;
use crate::scope;
use crate::wakers::{self, Wakers};

const RUNNING: u32 = 0;
const MET: u32 = 1;
const SHORT: u32 = 2;
const CANCELLED: u32 = 3;
const GONE: u32 = 4;

/// Where no worker can be started, a waiter does the work itself, looking this often.
const LOOK_MS: u32 = 10;

struct Task {
    group: GroupRef,
    path: String,
    wanted: u64,
    progress: AtomicU64,
    end: AtomicU32,
    is_cancelled: AtomicBool,
    errand: Lock<Errand>,
    waker: Wakers,
    /// None: it ended as it began.
    counted: Option<Counted>,
}

/// All tasks that have not ended.
struct Tasks {
    /// First come, first served.
    waiting: VecDeque<Arc<Task>>,
    /// At most one for each worker.
    at_their_turn: Vec<Arc<Task>>,
}

static TASKS: Lock<Tasks> =
    Lock::new(Tasks { waiting: VecDeque::new(), at_their_turn: Vec::new() });

impl Task {
    fn result(&self) -> Option<Result<u64, Error>> {
        // Acquire pairs with the Release in `finish`.
        let end = self.end.load(Ordering::Acquire);
        let got = self.progress.load(Ordering::Relaxed);
        let path = || self.path.clone();
        match end {
            RUNNING => None,
            MET => Some(Ok(got)),
            SHORT => Some(Err(Error::again_at(path(), self.group, self.wanted, got))),
            CANCELLED => Some(Err(Error::cancelled(path(), self.wanted, got))),
            _ => Some(Err(Error::gone(path(), self.wanted, got))),
        }
    }

    fn finish(&self, end: u32) {
        self.end.store(end, Ordering::Release);
        futex_wake(&self.end, i32::MAX);
        // Taken after the store: who comes later finds the end.
        wakers::wake_later(self.waker.take());
        ENGINE.ring();
    }

    /// One turn; answers the end, if it came to it.
    fn turn(&self, run: &mut dyn FnMut(&mut Errand)) -> Option<u32> {
        if self.is_cancelled.load(Ordering::Relaxed) {
            return Some(CANCELLED);
        }
        // Only who claimed the task is here. Not under the lock: shrinkers run.
        let mut errand = std::mem::replace(&mut *lock(&self.errand), Errand::new(self.group, 0));
        run(&mut errand);
        self.progress.store(errand.got(), Ordering::Relaxed);
        let end = errand.end().map(|end| match end {
            ErrandEnd::Met => MET,
            ErrandEnd::Short => SHORT,
            ErrandEnd::Gone => GONE,
        });
        *lock(&self.errand) = errand;
        end
    }
}

/// Has a task wait for its turn; `false`: there is no memory.
fn queue(task: &Arc<Task>) -> bool {
    scope::unaccounted(|| {
        let mut tasks = lock(&TASKS);
        let Tasks { waiting, at_their_turn } = &mut *tasks;
        let [nr_waiting, nr_at] = [waiting.len(), at_their_turn.len()];
        let has_room = waiting.try_reserve(nr_at + 1).is_ok()
            && at_their_turn.try_reserve(nr_waiting + 1).is_ok();
        if has_room {
            waiting.push_back(task.clone());
        }
        has_room
    })
}

/// Does a turn of the task whose turn it is; `false`: none is free.
pub(crate) fn serve(run: &mut dyn FnMut(&mut Errand)) -> bool {
    let Some(task) = claim() else { return false };
    let end = task.turn(run);
    let kept = {
        let mut tasks = lock(&TASKS);
        let Tasks { waiting, at_their_turn } = &mut *tasks;
        let at = at_their_turn.iter().position(|other| Arc::ptr_eq(other, &task));
        let kept = at.map(|at| at_their_turn.swap_remove(at));
        if end.is_none() {
            waiting.extend(kept);
            None
        } else {
            kept
        }
    };
    if let Some(end) = end {
        ENGINE.end_task();
        task.finish(end);
    }
    // The last of a task that nobody waits for is dropped here, outside the lock.
    drop((kept, task));
    true
}

fn claim() -> Option<Arc<Task>> {
    let mut tasks = lock(&TASKS);
    let task = tasks.waiting.pop_front()?;
    tasks.at_their_turn.push(task.clone());
    Some(task)
}

/// Reclaim that goes on by itself: see [`Group::reclaim_async`].
///
/// A future of what [`Group::reclaim`] would have answered; awaiting it again answers the same.
/// Dropping it detaches it: the reclaim goes on. It holds no handle of the group.
#[must_use = "dropping it detaches it: the reclaim goes on, and nobody hears what came of it"]
pub struct ReclaimTask {
    task: Arc<Task>,
}

impl fmt::Debug for ReclaimTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReclaimTask")
            .field("path", &format_args!("{}", self.task.path))
            .field("wanted", &self.task.wanted)
            .field("progress", &self.progress())
            .field("is_done", &self.is_done())
            .finish()
    }
}

impl ReclaimTask {
    /// Bytes that came back so far. Moves after each turn of at most 4 MiB. One load.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.task.progress.load(Ordering::Relaxed)
    }

    /// Whether it has ended. One load.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.task.end.load(Ordering::Acquire) != RUNNING
    }

    /// Ends it before its next turn, soon: after what a shrinker is doing right now. It then
    /// answers an error that [`is_cancelled`](Error::is_cancelled), with what came back until
    /// then. Of a task that has ended it changes nothing.
    pub fn cancel(&self) {
        self.task.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Waits for its end, for at most about `timeout`; `None`: it goes on.
    ///
    /// A safe point: where no worker can be started the work is done here.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use std::time::Duration;
    /// let group = memcg::Group::root().create("waited-for")?;
    /// let task = group.reclaim_async(1 << 20);
    /// let result = task.wait(Duration::from_secs(60)).expect("it ends");
    /// assert!(result.is_err_and(|error| error.is_again()), "there is nothing to reclaim");
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn wait(&self, timeout: Duration) -> Option<Result<u64, Error>> {
        let start = Instant::now();
        loop {
            scope::at_safe_point();
            if let Some(result) = self.task.result() {
                return Some(result);
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())?;
            let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
            let longest = if ENGINE.summon() { u32::MAX / 2 } else { LOOK_MS };
            futex_wait(&self.task.end, RUNNING, Some(left_ms.min(longest)));
        }
    }
}

impl Future for ReclaimTask {
    type Output = Result<u64, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        scope::at_safe_point();
        if let Some(result) = self.task.result() {
            return Poll::Ready(result);
        }
        self.task.waker.leave_last(context.waker());
        match self.task.result() {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }
}

impl Drop for ReclaimTask {
    /// Nobody waits any more: the waker goes, the reclaim goes on.
    fn drop(&mut self) {
        // Of one that has ended it was taken; in the child of a fork that is all of them.
        if !self.is_done() {
            for waker in self.task.waker.take() {
                guarded(|| drop(waker));
            }
        }
    }
}

impl Group {
    /// Reclaims at least `bytes` from the group's subtree, on the worker, while the caller goes
    /// on: the asynchronous form of [`reclaim`](Group::reclaim).
    ///
    /// What comes of it is a future; it can be waited for, cancelled, or dropped, which detaches
    /// it. Tasks take turns with each other, with background reclaim and with allocations that
    /// wait: none keeps another waiting for longer than 4 MiB or one call of a shrinker take. It
    /// is no pressure, and counts no event. It holds no handle: when the group goes offline it
    /// ends early. Where no worker can be started it goes on at safe points (scope exit, polls,
    /// [`check`](Group::check), [`ReclaimTask::wait`]).
    ///
    /// Allocates the task, which is charged to nobody, and counts for
    /// [`Group::set_max_objects`] of the current group: beyond it, and where there is no memory to
    /// note it, the task ends at once.
    ///
    /// # Errors
    ///
    /// The future answers an error that [`is_again`](Error::is_again) if there was less to get,
    /// [`is_cancelled`](Error::is_cancelled) after [`cancel`](ReclaimTask::cancel) and in the
    /// child of a fork, [`is_gone`](Error::is_gone) if the group went offline before. All say
    /// what was [`reclaimed`](Error::reclaimed) all the same.
    ///
    /// Source: the asynchronous mode that `memory.shrink_in_bytes` of 2008 wished for;
    /// `memory.reclaim`, which ends early for a dying group since 2026.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use std::{future::Future, pin::pin, sync::Arc, task::{Context, Poll, Wake, Waker}};
    /// # struct Unpark(std::thread::Thread);
    /// # impl Wake for Unpark { fn wake(self: Arc<Self>) { self.0.unpark() } }
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    /// #     let mut future = pin!(future);
    /// #     loop {
    /// #         match future.as_mut().poll(&mut Context::from_waker(&waker)) {
    /// #             Poll::Ready(output) => return output,
    /// #             Poll::Pending => std::thread::park(),
    /// #         }
    /// #     }
    /// # }
    /// use memcg::{Cache, Group};
    ///
    /// let tenant = Group::root().create("cached")?;
    /// let cache = Cache::<u64, Vec<u8>>::new("pages");
    /// for key in 0..1000 {
    ///     tenant.run(|| cache.insert(key, vec![0; 1000])).expect("no limit");
    /// }
    /// let reclaimed = block_on(tenant.reclaim_async(100_000))?;
    /// assert!(reclaimed >= 100_000);
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn reclaim_async(&self, bytes: u64) -> ReclaimTask {
        // Where nothing is charged there is nothing to reclaim, and nobody who would.
        let counted = Counted::try_new().ok().filter(|_| group::is_installed());
        let is_begun = counted.is_some();
        let task = scope::unaccounted(|| {
            Arc::new(Task {
                group: self.as_ref(),
                path: path_of(self.as_ref()),
                wanted: bytes,
                progress: AtomicU64::new(0),
                end: AtomicU32::new(if is_begun { RUNNING } else { SHORT }),
                is_cancelled: AtomicBool::new(false),
                errand: Lock::new(Errand::new(self.as_ref(), bytes)),
                waker: Wakers::new(),
                counted,
            })
        });
        if is_begun {
            fork::join(&AT_FORK);
            if queue(&task) {
                ENGINE.add_task();
                ENGINE.summon();
            } else {
                task.end.store(SHORT, Ordering::Relaxed);
            }
        }
        ReclaimTask { task }
    }
}

// ---- fork -----------------------------------------------------------------------------------

/// Before the drain mutex, as all that allocates under a lock.
static AT_FORK: AtFork = AtFork {
    place: Place::Tasks,
    prepare: || std::mem::forget(lock(&TASKS)),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { TASKS.force_unlock() },
    in_child: after_fork,
};

/// In the child of a fork, whose worker has yet to be made: tasks are the parent's, and end here.
fn after_fork() {
    ENGINE.forget_tasks();
    let mut tasks = lock(&TASKS);
    let Tasks { waiting, at_their_turn } = &mut *tasks;
    for task in waiting.iter().chain(&*at_their_turn) {
        task.end.store(CANCELLED, Ordering::Release);
        if let Some(counted) = &task.counted {
            counted.give_back();
        }
    }
    // What they hold is kept: the locks inside may have been taken by threads that are gone.
    let ended = (std::mem::take(waiting), std::mem::take(at_their_turn));
    drop(tasks);
    std::mem::forget(ended);
}
