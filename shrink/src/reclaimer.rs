//! A thread that reclaims: the call that it is in, the request that it has open, and what it
//! asks of the worker.
//!
//! ```text
//!   owner                          worker
//!   IDLE ──post──► POSTED ──take──► TAKEN ──finish──► DONE ──collect──► IDLE
//!                    │ withdraw       │ abandon
//!                    ▼                ▼
//!                  IDLE            ABANDONED ──finish──► the record is the worker's to give back
//! ```
//!
//! # Invariants
//!
//! - A record belongs to the thread that took it, and after `ABANDONED` to the worker.
//! - What is asked (`target` … `priority`) is written by the owner before `POSTED`, and by the
//!   worker between `TAKEN` and `POSTED` or `DONE`.
//! - `request` is set while the owner's request is open.

use memcg_accounting::table::{NONE, Record, Table};
use memcg_accounting::{GroupRef, Request, Source, now_ms};

use crate::raw::Cause;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Lock, Ordering, futex_wake, lock};

const IDLE: u32 = 0;
const POSTED: u32 = 1;
const TAKEN: u32 = 2;
const DONE: u32 = 3;
const ABANDONED: u32 = 4;

/// What is asked of the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) target: GroupRef,
    pub(crate) cause: Cause,
    /// Bytes that the request will have had freed when it is enough.
    pub(crate) goal: u64,
    /// Where the next pass begins, and where the last one is.
    pub(crate) priority: u32,
    pub(crate) last: u32,
    /// Groups under their `low` are asked too.
    pub(crate) breaks_low: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Some shrinker had objects that could go.
    pub(crate) candidates: bool,
    /// Some shrinker could do nothing at this moment: it said so, or another worker is in it.
    pub(crate) busy: bool,
    /// Something was left alone for its group's `low`.
    pub(crate) low: bool,
    /// Part of it is what others saw, maybe before this one began, or have yet to see.
    pub(crate) unsure: bool,
}

impl Answer {
    pub(crate) fn to_bits(self) -> u32 {
        [self.candidates, self.busy, self.low, self.unsure]
            .into_iter()
            .rev()
            .fold(0, |bits, is_so| bits << 1 | u32::from(is_so))
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        let is_so = |bit: u32| bits >> bit & 1 != 0;
        Self { candidates: is_so(0), busy: is_so(1), low: is_so(2), unsure: is_so(3) }
    }

    pub(crate) fn or(self, other: Answer) -> Answer {
        Answer {
            candidates: self.candidates || other.candidates,
            busy: self.busy || other.busy,
            low: self.low || other.low,
            unsure: self.unsure || other.unsure,
        }
    }

    /// Whether asking again may bring something.
    pub(crate) fn has_more(self) -> bool {
        self.candidates || self.busy || self.low || self.unsure
    }
}

/// A reclaiming thread's record.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    thread: AtomicUsize,
    request: AtomicPtr<Request>,
    // The call that it is in.
    shrinker: AtomicU32,
    since: AtomicU32,
    nr_calls: AtomicU32,
    group: AtomicU64,
    is_worker: AtomicU32,
    is_named: AtomicU32,
    // What it asks.
    pub(crate) state: AtomicU32,
    /// The record of the worker that took it last; `NONE`: none has yet.
    server: AtomicU32,
    asks_for: AtomicPtr<Request>,
    target: AtomicU64,
    goal: AtomicU64,
    cause: AtomicU32,
    priority: AtomicU32,
    last: AtomicU32,
    breaks_low: AtomicU32,
    answer: AtomicU32,
    next_free: AtomicU32,
}

impl Record for Reclaimer {
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            thread: AtomicUsize::new(0),
            request: AtomicPtr::new(core::ptr::null_mut()),
            shrinker: AtomicU32::new(NONE),
            since: zero(),
            nr_calls: zero(),
            group: AtomicU64::new(GroupRef::ROOT.to_bits()),
            is_worker: zero(),
            is_named: zero(),
            state: zero(),
            server: AtomicU32::new(NONE),
            asks_for: AtomicPtr::new(core::ptr::null_mut()),
            target: AtomicU64::new(0),
            goal: AtomicU64::new(0),
            cause: zero(),
            priority: zero(),
            last: zero(),
            breaks_low: zero(),
            answer: zero(),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        self.thread() == 0 && self.open_request().is_none() && self.call_number().is_none()
    }
}

fn as_ptr(request: Option<&'static Request>) -> *mut Request {
    request.map_or(core::ptr::null_mut(), |request| core::ptr::from_ref(request).cast_mut())
}

fn as_request(request: *mut Request) -> Option<&'static Request> {
    // SAFETY: the slots of a record hold null or what `as_ptr` made of a `&'static Request`.
    unsafe { request.as_ref() }
}

impl Reclaimer {
    // ---- the open request ---------------------------------------------------------------

    /// Tells that the owner's request is open (or none is): its credit can be surrendered.
    pub(crate) fn set_open(&self, request: Option<&'static Request>) {
        // Release pairs with the Acquire in `open_request`: who finds it finds it open.
        self.request.store(as_ptr(request), Ordering::Release);
    }

    pub(crate) fn open_request(&self) -> Option<&'static Request> {
        as_request(self.request.load(Ordering::Acquire))
    }

    // ---- the call -----------------------------------------------------------------------
    // Relaxed: read by watchers that act on a call's age, and by the thread itself.

    /// The owner enters a call of the shrinker in `slot`.
    pub(crate) fn enter(&self, slot: u32) {
        self.since.store(now_ms(), Ordering::Relaxed);
        self.is_named.store(0, Ordering::Relaxed);
        self.nr_calls.fetch_add(1, Ordering::Relaxed);
        self.shrinker.store(slot, Ordering::Relaxed);
    }

    /// Release pairs with the Acquire in `call_number`: what the call freed is uncharged for
    /// whoever waited for its end.
    pub(crate) fn leave(&self) {
        self.shrinker.store(NONE, Ordering::Release);
    }

    /// Which call the owner is in, if it is in one.
    pub(crate) fn call_number(&self) -> Option<u32> {
        let number = self.nr_calls.load(Ordering::Relaxed);
        (self.shrinker.load(Ordering::Acquire) != NONE).then_some(number)
    }

    /// The group that the owner holds a handle of while it visits it.
    pub(crate) fn set_visited(&self, group: GroupRef) {
        self.group.store(group.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn visited(&self) -> GroupRef {
        GroupRef::from_bits(self.group.load(Ordering::Relaxed))
    }

    /// The shrinker that it is in a call of, and for how long.
    pub(crate) fn call(&self, now_ms: u32) -> Option<(u32, u32)> {
        let slot = self.shrinker.load(Ordering::Relaxed);
        let age = now_ms.wrapping_sub(self.since.load(Ordering::Relaxed));
        (slot != NONE).then_some((slot, age))
    }

    /// Whether the call was named in a report.
    pub(crate) fn is_named(&self) -> bool {
        self.is_named.load(Ordering::Relaxed) != 0
    }

    /// Notes that it is; `false`: it was before.
    pub(crate) fn name_once(&self) -> bool {
        self.is_named.swap(1, Ordering::Relaxed) == 0
    }

    pub(crate) fn thread(&self) -> usize {
        self.thread.load(Ordering::Relaxed)
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.is_worker.load(Ordering::Relaxed) != 0
    }

    // ---- asking -------------------------------------------------------------------------

    /// Asks the worker on behalf of `request`, which is open.
    pub(crate) fn post(&self, request: &'static Request, ask: Ask) {
        self.asks_for.store(as_ptr(Some(request)), Ordering::Relaxed);
        self.server.store(NONE, Ordering::Relaxed);
        self.write(ask);
        // Release pairs with the Acquire in `take`.
        self.state.store(POSTED, Ordering::Release);
    }

    fn write(&self, ask: Ask) {
        self.target.store(ask.target.to_bits(), Ordering::Relaxed);
        self.goal.store(ask.goal, Ordering::Relaxed);
        self.cause.store(ask.cause as u32, Ordering::Relaxed);
        self.priority.store(ask.priority, Ordering::Relaxed);
        self.last.store(ask.last, Ordering::Relaxed);
        self.breaks_low.store(u32::from(ask.breaks_low), Ordering::Relaxed);
    }

    fn read(&self) -> Ask {
        let cause = match self.cause.load(Ordering::Relaxed) {
            0 => Cause::Direct,
            1 => Cause::Worker,
            2 => Cause::Background,
            _ => Cause::Proactive,
        };
        Ask {
            target: GroupRef::from_bits(self.target.load(Ordering::Relaxed)),
            cause,
            goal: self.goal.load(Ordering::Relaxed),
            priority: self.priority.load(Ordering::Relaxed),
            last: self.last.load(Ordering::Relaxed),
            breaks_low: self.breaks_low.load(Ordering::Relaxed) != 0,
        }
    }

    /// The answer, once there is one.
    pub(crate) fn collect(&self) -> Option<Answer> {
        // Acquire pairs with the Release in `finish`.
        if self.state.load(Ordering::Acquire) != DONE {
            return None;
        }
        self.state.store(IDLE, Ordering::Relaxed);
        Some(Answer::from_bits(self.answer.load(Ordering::Relaxed)))
    }

    /// The record of the worker that took it last; `None`: none has. Relaxed: a waiter acts on how long that worker
    /// has been in a call, and any answer is safe.
    pub(crate) fn server(&self) -> Option<u32> {
        let server = self.server.load(Ordering::Relaxed);
        (server != NONE).then_some(server)
    }

    /// Takes back what was asked. `false`: a worker is at it, or done.
    pub(crate) fn withdraw(&self) -> bool {
        self.step(POSTED, IDLE)
    }

    /// Leaves the record to the worker. `false`: it is done, and the record is still the owner's.
    pub(crate) fn abandon(&self) -> bool {
        self.step(TAKEN, ABANDONED)
    }

    fn step(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    // ---- answering ----------------------------------------------------------------------

    /// Whether there is something to take. Relaxed: `take` decides.
    pub(crate) fn is_posted(&self) -> bool {
        self.state.load(Ordering::Relaxed) == POSTED
    }

    /// The worker whose record is `worker` takes what is asked.
    pub(crate) fn take(&self, worker: u32) -> Option<(&'static Request, Ask)> {
        if !self.is_posted() || !self.step(POSTED, TAKEN) {
            return None;
        }
        self.server.store(worker, Ordering::Relaxed);
        let request = as_request(self.asks_for.load(Ordering::Relaxed))?;
        Some((request, self.read()))
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ABANDONED
    }

    /// Puts it back for another turn. `false`: the owner has left, and the record is the caller's.
    #[must_use]
    pub(crate) fn put_back(&self, ask: Ask) -> bool {
        self.write(ask);
        self.step(TAKEN, POSTED)
    }

    /// Answers. `false`: the owner has left, and the record is the caller's.
    #[must_use]
    pub(crate) fn finish(&self, answer: Answer) -> bool {
        self.answer.store(answer.to_bits(), Ordering::Relaxed);
        if !self.step(TAKEN, DONE) {
            return false;
        }
        futex_wake(&self.state, 1);
        true
    }
}

/// The records of all reclaiming threads.
#[derive(Debug)]
pub(crate) struct Reclaimers {
    records: Table<Reclaimer>,
    taking: Lock<()>,
    /// At least the records that are posted.
    nr_posted: AtomicU32,
}

impl Reclaimers {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { records: Table::new(), taking: Lock::new(()), nr_posted: AtomicU32::new(0) }
        }
    }

    /// A record for the thread `thread`; `None`: no memory.
    pub(crate) fn take(
        &self,
        source: &Source,
        thread: usize,
        is_worker: bool,
    ) -> Option<(u32, &Reclaimer)> {
        let _taking = lock(&self.taking);
        let index = self.records.take(source)?;
        let record = self.records.get(index)?;
        record.leave();
        record.set_open(None);
        record.set_visited(GroupRef::ROOT);
        record.is_worker.store(u32::from(is_worker), Ordering::Relaxed);
        record.state.store(IDLE, Ordering::Relaxed);
        record.thread.store(thread, Ordering::Relaxed);
        Some((index, record))
    }

    /// Gives a record back that is the caller's.
    pub(crate) fn put(&self, index: u32) {
        let _taking = lock(&self.taking);
        if let Some(record) = self.records.get(index) {
            record.thread.store(0, Ordering::Relaxed);
            record.set_open(None);
            record.leave();
            record.state.store(IDLE, Ordering::Relaxed);
            self.records.put(index);
        }
    }

    /// One more is about to be posted.
    pub(crate) fn posting(&self) {
        self.nr_posted.fetch_add(1, Ordering::Relaxed);
    }

    /// One is not posted any more.
    pub(crate) fn unposted(&self) {
        self.nr_posted.fetch_sub(1, Ordering::Relaxed);
    }

    /// Nobody asks any more: in the child of a fork, whose one thread does not wait.
    pub(crate) fn forget_posted(&self) {
        self.nr_posted.store(0, Ordering::Relaxed);
    }

    /// Whether somebody asks. Relaxed: whoever posts wakes afterwards.
    pub(crate) fn has_posted(&self) -> bool {
        self.nr_posted.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Reclaimer> {
        self.records.get(index)
    }

    pub(crate) fn len(&self) -> u32 {
        self.records.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Reclaimer)> {
        (0..self.records.len()).filter_map(|index| self.records.get(index).map(|r| (index, r)))
    }

    /// Calls of the shrinker in `slot` that `thread` is in.
    pub(crate) fn own_calls(&self, thread: usize, slot: u32) -> u32 {
        let own = self.iter().filter(|(_, r)| {
            r.thread() == thread && r.call(0).is_some_and(|(called, _)| called == slot)
        });
        u32::try_from(own.count()).unwrap_or(u32::MAX)
    }

    #[cfg(not(loom))]
    pub(crate) fn taking(&self) -> &Lock<()> {
        &self.taking
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.records.mapped_bytes()
    }
}
