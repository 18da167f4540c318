//! The charge loop: what stands between a charge that meets a limit and its refusal.
//!
//! ```text
//!   charge ─fits─► done
//!     │ over a limit: event `max`
//!     ├─ reclaiming already: forced, within a reserve; beyond it refused
//!     ├─ panicking: forced, within an allowance; beyond it the policy's, no shrinker is asked
//!     ├─ a wait, if its tenant's cuts have cost others too much
//!     ├─ tidy drain, if the last one paid or is long ago      ─► retry, with all threads stopped
//!     ├─ rounds, while bytes come back, else 16 at most:
//!     │    gentle passes: this thread's shrinkers, the worker's ─► retry
//!     │    the one cut, once                                  ─► retry, with all threads stopped
//!     │    the last quarter of each cache, then groups under `low` ─► retry
//!     │  until others have put down what they were evicting
//!     ├─ the one cut                                          ─► retry, with all threads stopped
//!     │  and all again, until a look after it finds that no byte came back, or the deadline
//!     ├─ what the policy allows over the limit; where that is too little, all of it again for
//!     │  the group that refuses it
//!     └─ refused: event `oom`
//! ```
//!
//! # Invariants
//!
//! - It allocates nothing, nothing unwinds out of it, and every wait has a bound: the deadline
//!   of the group that pays bounds all rounds together.
//! - A refusal comes after a cut in which the charge did not fit although no other thread's
//!   unfinished request held credit in the subtree, and a look at every marked shrinker after
//!   it that found nothing; or the deadline is over. A thread that reclaims is refused without: beyond
//!   its reserve.
//!
//! Source: `try_charge_memcg` in `mm/memcontrol.c`; the drain comes before reclaim here.

use core::cell::OnceCell;

use memcg_accounting::{Charged, EventKind, GroupRef, OnLimit, OverLimit, Payer, Want, now_ms};

use crate::Engine;
use crate::groups::Tidiness;
use crate::host::{Caller, Panic};
use crate::pass::{FRUITLESS_ROUNDS, pause};
use crate::patience::{Deadline, Patience};
use crate::raw::Cause;
use crate::reclaimer::Reclaimer;
use crate::refusal::Tried;
use crate::scan::{FIRST_PRIORITY, GENTLE_PRIORITY};
use crate::session::{Phase, Session};
use crate::stall::Stall;
use crate::sync::{AtomicU32, Ordering, futex_wait, thread_id};

/// The most that reclaim asks for beyond a request, so that a tenant at its limit pays once in
/// many allocations.
const MOST_AHEAD: u64 = 64 << 10;
/// How far over a limit a thread that reclaims can bring a group. It is refused beyond: it never reclaims for itself.
pub const RECLAIM_RESERVE: u64 = 16 << 20;
/// How far over a limit a thread that unwinds can bring a group, for what its drops need. Beyond, the policy
/// of the group decides, as ever.
pub const PANIC_ALLOWANCE: u64 = 16 << 20;
/// The same for a thread that may be in a panic hook which is not known to run for nobody: a backtrace takes some 40
/// MiB, and std holds a lock while it makes one and takes it again when an allocation fails.
pub const REPORT_ALLOWANCE: u64 = 64 << 20;

/// Bytes that a request of `need` against a limit of `max` asks for.
fn batch(need: u64, max: u64) -> u64 {
    need.max(MOST_AHEAD.min(max / 16))
}

/// The most that the worker keeps free ahead of charges.
const MOST_MARGIN: u64 = 256 << 10;

/// Bytes below a limit of `max` that the worker keeps free of a group whose charges waited for
/// it: a wait takes as long as evicting some hundred objects.
pub(crate) fn margin(max: u64) -> u64 {
    MOST_MARGIN.min(max / 16)
}

/// A charge that waits for its tenant's budget is tried again so often.
const BUDGET_NAP_MS: u32 = 10;

/// A charge that has met a limit.
struct Attempt<'a, 'e> {
    engine: &'e Engine,
    payer: Payer,
    need: u64,
    ahead: u64,
    /// How far over the limits it may go.
    margin: u64,
    /// The last refusal.
    over: OverLimit,
    session: Option<Session<'a>>,
    /// Of all rounds together.
    patience: Option<Patience>,
    charged: Option<Charged>,
    /// The group that pays.
    owner: Option<GroupRef>,
    /// The wait, for whoever counts it.
    stall: &'a OnceCell<Option<Stall<'e>>>,
    tried: Tried,
    /// Whether it waited for the worker.
    asked_worker: bool,
}

impl<'a, 'e> Attempt<'a, 'e> {
    /// Tries again; `true`: it is charged.
    fn retry(&mut self) -> bool {
        let engine = self.engine;
        let (ahead, over) = (self.ahead, self.margin);
        let answer = engine.take(|| match &mut self.session {
            Some(session) => session.settle(ahead, over),
            None => {
                let want = Want { need: self.need, ahead, over };
                engine.tree.charge(self.payer, want)
            }
        });
        match answer {
            Ok(charged) => self.charged = Some(charged),
            Err(over) => self.over = over,
        }
        self.charged.is_some()
    }

    /// Closes the request, which gives back what it had, and sums up what was tried.
    fn close(&mut self) {
        if let Some(session) = self.session.take() {
            self.tried.scanned += session.request.scanned();
            self.tried.reclaimed += session.request.freed();
            self.tried.gave_up += session.gave_up;
            self.asked_worker |= session.asked_worker;
        }
        self.tried.took_us = self.stall().map_or(0, Stall::length_us);
    }

    /// The wait, which begins here if it has not.
    fn stall(&self) -> Option<&'a Stall<'e>> {
        let engine = self.engine;
        let begin = || self.owner.and_then(|group| engine.stall(group));
        self.stall.get_or_init(begin).as_ref()
    }

    /// The one cut. What other requests hold as credit does not decide this one.
    fn cut(&mut self) -> bool {
        let host = self.engine.host();
        host.cut(self.over.group, self.payer.tag, &mut || {
            if self.charged.is_none() {
                let own = self.session.as_ref().map(|session| session.request);
                self.engine.surrender_credits(self.over.group, own);
                self.retry();
            }
            self.charged.is_some()
        })
    }

    /// Waits while cuts of the tenant that pays have cost others more than its share, at most `longest_ms`; the charge is
    /// tried again meanwhile. Answers how long it was, in milliseconds.
    fn await_budget(&mut self, longest_ms: u32) -> u32 {
        let (engine, start) = (self.engine, now_ms());
        loop {
            let waited = now_ms().wrapping_sub(start).min(longest_ms);
            let debt = engine.host().debt_us(self.payer.tag).div_ceil(1000);
            let nap = debt.min(u64::from((longest_ms - waited).min(BUDGET_NAP_MS)));
            if nap == 0 {
                return waited;
            }
            futex_wait(&AtomicU32::new(0), 0, u32::try_from(nap).ok());
            if let Some(stall) = self.stall() {
                stall.look();
            }
            if self.retry() {
                return waited;
            }
        }
    }

    /// Rounds and the cut, until a cut did not help and a look at all shrinkers after it finds
    /// that nothing has come back since. Whatever could have been evicted at the moment of the
    /// cut is still there to be found, or has come back by then, or is in the hands of others,
    /// for whom it waits.
    fn try_everything(&mut self, deadline: Deadline) {
        let patience = self.patience.take();
        let mut patience = patience.unwrap_or_else(|| Patience::new(deadline, now_ms()));
        self.try_within(&mut patience);
        self.patience = Some(patience);
    }

    fn try_within(&mut self, patience: &mut Patience) {
        let mut has_cut = false;
        let mut at_cut = None;
        while !self.rounds(patience, &mut has_cut) {
            self.await_others(patience);
            self.await_unmarkings(patience);
            let now = self.progress();
            let is_over = patience.is_over(now_ms(), self.freed());
            if at_cut == Some(now) || (is_over && at_cut.is_some()) {
                self.retry();
                return;
            }
            at_cut = Some(now);
            if self.cut() {
                return;
            }
        }
    }

    /// What changes when bytes come back from the subtree of the group that refuses, on behalf
    /// of whomever, and when a shrinker was overlooked.
    fn progress(&self) -> (GroupRef, u64, u32) {
        let Engine { tree, unmarkings, .. } = self.engine;
        (self.over.group, tree.reclaimed(self.over.group), unmarkings.mistaken())
    }

    /// Bytes that have come back on behalf of this request.
    fn freed(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.request.freed())
    }

    /// Waits until nobody is about to mark again what rounds did not find marked.
    fn await_unmarkings(&self, patience: &mut Patience) {
        let mut looks = 0;
        while self.engine.unmarkings.any() && !patience.is_over(now_ms(), self.freed()) {
            looks += 1;
            pause(looks / LOOKS);
        }
    }

    /// Waits until the calls that other threads are in are over: what they took out of a cache
    /// is charged until they have freed it, and cannot be found any more. `false`: none was.
    fn await_others(&self, patience: &mut Patience) -> bool {
        let reclaimers = &self.engine.reclaimers;
        let mut calls = [(0, 0); OTHERS];
        let mut nr = 0;
        let this = thread_id();
        for (index, other) in reclaimers.iter().filter(|(_, other)| other.thread() != this) {
            let young = other.call(now_ms()).is_some_and(|(_, age)| patience.is_young(age));
            if let Some(number) = other.call_number().filter(|_| young)
                && self.engine.tree.is_in_subtree(self.over.group, other.visited())
                && let Some(call) = calls.get_mut(nr)
            {
                *call = (index, number);
                nr += 1;
            }
        }
        let longest = patience.left(now_ms(), self.freed());
        let (start, mut looks) = (now_ms(), 0);
        for &(index, number) in &calls[..nr] {
            let is_in = || reclaimers.get(index).and_then(Reclaimer::call_number) == Some(number);
            while is_in() && now_ms().wrapping_sub(start) < longest {
                looks += 1;
                pause(looks / LOOKS);
            }
        }
        nr != 0
    }

    /// Rounds of reclaim until the charge fits, nothing comes back, or the time is over.
    fn rounds(&mut self, patience: &mut Patience, has_cut: &mut bool) -> bool {
        let engine = self.engine;
        let (mut fruitless, mut waits) = (0, 0);
        while fruitless < FRUITLESS_ROUNDS {
            let Some(session) = &mut self.session else { return false };
            let request = session.request;
            let target = self.over.group;
            self.tried.rounds += 1;
            engine.end_deferred();
            engine.tree.aim_request(request, target);
            let before = request.freed();
            let mut phase = Phase {
                target,
                goal: before.saturating_add(batch(self.need, self.over.max)),
                causes: (Cause::Direct, Cause::Worker),
                priorities: (FIRST_PRIORITY, GENTLE_PRIORITY),
                breaks_low: false,
                all_here: false,
            };
            let mut answer = session.ask(&phase, patience);
            if self.retry() {
                return true;
            }
            if answer.has_more() && request.freed() < phase.goal {
                if !*has_cut && self.cut() {
                    return true;
                }
                *has_cut = true;
                phase.priorities = (GENTLE_PRIORITY - 1, 0);
                if let Some(session) = &mut self.session {
                    // It ends with a look of its own at everything.
                    answer = session.ask(&phase, patience);
                    if request.freed() == before {
                        answer = session.ask_low(&phase, answer, patience);
                    }
                }
                if self.retry() {
                    return true;
                }
            }
            let freed = request.freed();
            if patience.is_over(now_ms(), freed) {
                return false;
            }
            let had_others = freed == before && self.await_others(patience);
            if had_others && self.retry() {
                return true;
            }
            if !answer.has_more() && !had_others {
                return false;
            }
            if freed > before {
                (fruitless, waits) = (0, 0);
            } else if answer.busy {
                // Whoever holds the lock that a shrinker wants may have lost its CPU: the deadline
                // bounds this, not a number of rounds.
                waits += 1;
                pause(waits);
            } else {
                fruitless += 1;
            }
        }
        false
    }
}

/// How many calls of other threads in the subtree a charge waits for at a time.
const OTHERS: usize = 32;
/// Looks at such a call before pauses get longer: most end within microseconds.
const LOOKS: u32 = 16;

impl Engine {
    /// Charges `need` bytes to `payer`, and up to `ahead` more where there is room; reclaims and
    /// drains before it refuses.
    ///
    /// Allocates nothing, never unwinds, waits no longer than the deadline of the payer's group.
    /// What it charged is [in hand](crate::Host::take_in_hand) until the caller puts it down.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] names the group that refused. Nothing is charged then.
    #[inline]
    pub fn charge(&self, payer: Payer, need: u64, ahead: u64) -> Result<Charged, OverLimit> {
        match self.take(|| self.tree.charge(payer, Want { need, ahead, over: 0 })) {
            Ok(charged) => {
                self.after_charge(&charged);
                Ok(charged)
            }
            Err(over) => self.charge_at_limit(payer, need, ahead, over),
        }
    }

    /// [`charge`](Engine::charge) of exactly `bytes` for a large object, which is counted as one.
    ///
    /// # Errors
    ///
    /// As for `charge`.
    pub fn charge_large(&self, payer: Payer, bytes: u64) -> Result<Charged, OverLimit> {
        match self.take(|| self.tree.charge_large(payer, bytes)) {
            Ok(charged) => {
                self.after_charge(&charged);
                Ok(charged)
            }
            Err(over) => {
                let charged = self.charge_at_limit(payer, bytes, 0, over)?;
                self.tree.add_large(charged.tag, bytes);
                Ok(charged)
            }
        }
    }

    /// Makes a charge; what it comes to is in hand.
    #[inline]
    fn take(
        &self,
        charge: impl FnOnce() -> Result<Charged, OverLimit>,
    ) -> Result<Charged, OverLimit> {
        let host = self.host();
        host.take_in_hand();
        let answer = charge();
        if answer.is_err() {
            host.put_down();
        }
        answer
    }

    /// What a charge that was made sets off: background reclaim, where a group is over its
    /// `high`. For those who charge the tree itself.
    #[inline]
    pub fn after_charge(&self, charged: &Charged) {
        if let Some(group) = charged.over_high {
            self.kick_high(group);
            self.host().charged_over_high(group, charged.bytes);
        }
        if let Some(group) = charged.near_max {
            self.keep_room(group);
        }
    }

    #[cold]
    fn charge_at_limit(
        &self,
        payer: Payer,
        need: u64,
        ahead: u64,
        over: OverLimit,
    ) -> Result<Charged, OverLimit> {
        let caller = self.caller();
        let allowance = self.allowance(payer, &caller);
        if caller.reclaiming {
            return self.charge_in_reclaim(payer, need, allowance);
        }
        self.tree.count(over.group, EventKind::Max);
        // Who is let over the limit anyway spares the caches what makes no room under it. On a thread that
        // panics no user code runs: a shrinker's own panic could end the process.
        let panics = caller.panic.is_some();
        let spares = allowance > 0 && (panics || need > over.max || self.is_hopeless(over.group));
        let stall = OnceCell::new();
        let mut attempt = Attempt {
            engine: self,
            payer,
            need,
            ahead,
            margin: 0,
            over,
            session: None,
            patience: None,
            charged: None,
            owner: self.tree.owner(payer.tag),
            stall: &stall,
            tried: Tried::default(),
            asked_worker: false,
        };
        if !spares {
            self.make_room(&mut attempt, &caller);
        }
        if attempt.charged.is_none() && allowance > 0 {
            let within_max = attempt.over;
            match self.charge_over(payer, need, allowance) {
                Ok(charged) => {
                    if panics {
                        self.note_let_over(&charged);
                    } else if need <= within_max.max {
                        self.note_hopeless(within_max.group);
                    }
                    return Ok(charged);
                }
                // It fits over the limit only if what is there makes room: of this group, now.
                Err(over) => {
                    attempt = Attempt { margin: allowance, ahead: 0, over, ..attempt };
                    self.make_room(&mut attempt, &caller);
                    if let Some(charged) = &attempt.charged {
                        self.count_forced(payer, charged);
                    }
                }
            }
        }
        if let Some(charged) = attempt.charged {
            if attempt.asked_worker {
                self.tree.set_margin(over.group, margin(over.max));
                self.keep_room(over.group);
            }
            self.after_charge(&charged);
            return Ok(charged);
        }
        // A refusal where reclaim was not allowed is no sign that there was no memory.
        if !caller.no_reclaim {
            self.tree.refuse(attempt.over.group);
        }
        self.note_refusal(attempt.over, attempt.owner, attempt.tried);
        Err(attempt.over)
    }

    /// Everything that may let the charge fit.
    fn make_room<'a>(&'a self, attempt: &mut Attempt<'a, '_>, caller: &Caller) {
        let target = attempt.over.group;
        let stall = attempt.stall();
        let mut deadline = self.deadline_of(attempt.payer);
        // Half of it: what comes then may need time, too.
        let may_wait = !caller.no_reclaim && caller.panic.is_none();
        let waited = if may_wait { attempt.await_budget(deadline.total_ms / 2) } else { 0 };
        if attempt.charged.is_some() {
            return;
        }
        deadline.total_ms -= waited;
        let payer = attempt.payer.tag;
        if self.tidy_for(target, payer, deadline.total_ms, &mut || attempt.retry()) {
            return;
        }
        // What is larger than the limit, and what may be over it, fits by no reclaim: nothing is
        // evicted for it.
        if attempt.need <= attempt.over.max.saturating_add(attempt.margin) {
            match caller.request {
                Some(request) if !caller.no_reclaim && caller.panic.is_none() => {
                    let over = attempt.over.group;
                    attempt.session =
                        Session::for_charge(self, request, attempt.payer, over, attempt.need);
                    if let Some(session) = &mut attempt.session {
                        session.stall = stall;
                    }
                    attempt.try_everything(deadline);
                    attempt.close();
                    return;
                }
                _ => {
                    attempt.tried.only_drained = true;
                    self.enqueue(target, batch(attempt.need, attempt.over.max));
                }
            }
        } else {
            attempt.tried.only_drained = true;
        }
        attempt.cut();
    }

    /// How long an allocation that `payer` pays for waits.
    fn deadline_of(&self, payer: Payer) -> Deadline {
        self.tree.owner(payer.tag).map_or_else(Deadline::default, |group| self.deadline(group))
    }

    /// A drain of what threads cache of `group`, if one is due; answers the bytes it gave back.
    pub(crate) fn tidy(&self, group: GroupRef) -> u64 {
        let record = self.groups.record(self.tree, group);
        let now = now_ms();
        if record.is_some_and(|record| record.tidiness(now) != Tidiness::Due) {
            return 0;
        }
        if let Some(record) = record {
            // Others find one under way, and do not repeat it.
            record.tidy_begins(now);
        }
        let bytes = self.host().drain(group);
        if let Some(record) = record {
            record.tidied(now_ms(), bytes);
        }
        bytes
    }

    // ---- over the limit -----------------------------------------------------------------

    /// How far over a limit the charge may go in the end.
    fn allowance(&self, payer: Payer, caller: &Caller) -> u64 {
        let policy = if caller.fallible { OnLimit::Fail } else { self.tree.policy_of(payer) };
        let reclaims = if caller.reclaiming { RECLAIM_RESERVE } else { 0 };
        // A shrinker may panic, too.
        let panics = match caller.panic {
            Some(Panic::Unwinds) => PANIC_ALLOWANCE,
            Some(Panic::MayReport) => REPORT_ALLOWANCE,
            None => 0,
        };
        policy.allowance().max(reclaims).max(panics)
    }

    /// Charges up to `over` bytes over the limits, and counts it.
    fn charge_over(&self, payer: Payer, need: u64, over: u64) -> Result<Charged, OverLimit> {
        let charged = self.take(|| self.tree.charge(payer, Want { need, ahead: 0, over }))?;
        self.count_forced(payer, &charged);
        Ok(charged)
    }

    fn count_forced(&self, payer: Payer, charged: &Charged) {
        if charged.forced
            && let Some(owner) = self.tree.owner(payer.tag)
            && let Some(level) = self.tree.over_max(owner)
        {
            self.tree.count(level.group, EventKind::Forced);
        }
    }

    /// A thread that reclaims never reclaims again: what it may not be let over the limit for is refused at once.
    fn charge_in_reclaim(
        &self,
        payer: Payer,
        need: u64,
        allowance: u64,
    ) -> Result<Charged, OverLimit> {
        let answer = self.charge_over(payer, need, allowance);
        match &answer {
            Ok(charged) => self.note_let_over(charged),
            Err(over) => self.tree.refuse(over.group),
        }
        answer
    }

    /// Counts what a thread that reclaims or panics was let over a limit.
    fn note_let_over(&self, charged: &Charged) {
        if charged.forced {
            self.counters.let_over.fetch_add(charged.bytes, Ordering::Relaxed);
        }
    }

    /// Whether nothing could be got out of `group` a moment ago. It only spares those who are
    /// let over the limit anyway; a refusal is never decided by it.
    fn is_hopeless(&self, group: GroupRef) -> bool {
        self.groups.find(group).is_some_and(|record| record.is_hopeless(now_ms()))
    }

    fn note_hopeless(&self, group: GroupRef) {
        if let Some(record) = self.groups.record(self.tree, group) {
            record.note_hopeless(now_ms());
        }
    }
}
