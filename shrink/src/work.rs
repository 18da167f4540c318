//! What workers and their keeper do.

use memcg_accounting::now_ms;

use crate::Engine;
use crate::errand::NO_SHRINKER;
use crate::held::HELD_AFTER_MS;
use crate::host::Report;
use crate::pass::Run;
use crate::patience::{Deadline, Patience};
use crate::raw::Place;
use crate::reclaimer::Reclaimer;
use crate::sync::{Ordering, thread_id};

/// A shrinker that has been in one call for this long is named in a report.
const STUCK_AFTER_MS: u32 = 50;
/// The keeper looks this often while work waits and nobody is free.
const LOOK_MS: u32 = 5;
/// Ticks are this far apart.
const TICK_MS: u32 = 100;
/// After so many turns for waiters, background work has one.
const TURNS: u32 = 8;

impl Engine {
    /// Serves until another worker has taken this one's place; run on a thread of its own, which
    /// [`keep`](Engine::keep) asked for.
    pub fn work(&self) {
        let taken = self.reclaimers.take(self.tree.source(), thread_id(), true);
        let Some((index, me)) = taken else {
            self.crew.unhire();
            return;
        };
        self.crew.idle();
        loop {
            let seen = self.crew.signal();
            if !self.has_work() {
                self.crew.rest(seen);
                continue;
            }
            self.crew.busy();
            self.serve((index, me));
            self.crew.idle();
            if self.crew.retire() {
                break;
            }
        }
        self.reclaimers.put(index);
    }

    fn has_work(&self) -> bool {
        self.reclaimers.has_posted()
            || self.has_work_unposted()
            || (self.deferred.load(Ordering::Relaxed) && self.may_run_errands())
    }

    /// Whether there is work that nobody waits for inside an allocation.
    #[inline]
    pub(crate) fn has_work_unposted(&self) -> bool {
        !self.queue.is_empty() || self.errands.has_tasks() || self.has_deliverable()
    }

    /// Serves all that waits.
    fn serve(&self, (mine, me): (u32, &Reclaimer)) {
        let (mut next, mut turns) = (0, 0);
        loop {
            self.clear_deferred_on(me);
            self.deliver(me);
            if turns < TURNS && self.serve_waiter((mine, me), &mut next) {
                turns += 1;
                continue;
            }
            turns = 0;
            let has_served = self.serve_background(me) | self.serve_task(me);
            if !has_served && !self.reclaimers.has_posted() && !self.has_deliverable() {
                return;
            }
        }
    }

    /// Serves one waiter for a turn, from record `next` on; `false`: nobody waits.
    fn serve_waiter(&self, me: (u32, &Reclaimer), next: &mut u32) -> bool {
        if !self.reclaimers.has_posted() {
            return false;
        }
        let len = self.reclaimers.len();
        for _ in 0..len {
            let index = *next % len;
            *next = index + 1;
            if let Some(ticket) = self.reclaimers.get(index)
                && self.serve_ticket(me, index, ticket)
            {
                return true;
            }
        }
        false
    }

    /// What was deferred ends code of the program's: a drop that does not end is a call that does not.
    fn clear_deferred_on(&self, me: &Reclaimer) {
        if self.deferred.load(Ordering::Relaxed) && self.may_run_errands() {
            me.enter(NO_SHRINKER);
            self.clear_deferred();
            me.leave();
        }
    }

    fn serve_ticket(&self, (mine, me): (u32, &Reclaimer), index: u32, ticket: &Reclaimer) -> bool {
        let Some((request, mut ask)) = ticket.take(mine) else { return false };
        self.reclaimers.unposted();
        self.host().begin_eager(Some(request));
        // It is the waiter that loses patience: then it leaves, which ends the run.
        let mut patience = Patience::new(Deadline::PROACTIVE, now_ms());
        let mut run = Run::new(me, ask.target, ask.cause, request, ask.goal);
        run.place = Some(Place::Worker);
        run.breaks_low = ask.breaks_low;
        run.ticket = Some(ticket);
        run.is_turn = true;
        self.passes(&mut run, &mut patience, ask.priority, ask.last);
        self.host().end_eager();
        let is_still_there = match run.yielded_at {
            Some(priority) => {
                ask.priority = priority;
                self.reclaimers.posting();
                let back = ticket.put_back(ask);
                if !back {
                    self.reclaimers.unposted();
                }
                back
            }
            None => ticket.finish(run.answer),
        };
        if !is_still_there {
            self.reclaimers.put(index);
        }
        true
    }

    // ---- without a worker ---------------------------------------------------------------

    /// Has a keeper started if there is none. `false`: none can be. Outside allocations only.
    pub fn summon(&self) -> bool {
        if self.crew.is_there() {
            return true;
        }
        // A shrinker may be inside somebody's allocation, where no thread is started.
        let started = !self.caller().reclaiming && self.host().start_worker();
        if started {
            self.crew.set_keeper(true);
        }
        started
    }

    /// Does the work of the worker for one turn each, on this thread, at a safe point.
    pub(crate) fn serve_here(&self) {
        let caller = self.caller();
        if caller.no_reclaim || caller.request.is_none() {
            return;
        }
        let taken = self.reclaimers.take(self.tree.source(), thread_id(), false);
        if let Some((index, me)) = taken {
            self.deliver(me);
            self.serve_background(me);
            self.serve_task(me);
            self.reclaimers.put(index);
        }
    }

    // ---- the keeper ---------------------------------------------------------------------

    /// Has `tick` called every 100 ms from when [`want_ticks`](Engine::want_ticks) was called
    /// until `tick` answers that nothing is left to do.
    pub fn want_ticks(&self) {
        self.crew.want_ticks();
    }

    /// Keeps the workers: never returns, and runs no shrinker. `start` starts a thread that runs
    /// [`work`](Engine::work), and answers whether it could. `tick` answers whether it wants to
    /// be called again.
    ///
    /// Sleeps without waking up while there is nothing to do.
    pub fn keep(&self, tick: &mut dyn FnMut() -> bool, start: &mut dyn FnMut() -> bool) -> ! {
        self.crew.set_keeper(true);
        // One is there before it is needed, for who needs it has little time.
        self.start_worker(start);
        let (mut ticking, mut ticked_at) = (false, now_ms());
        loop {
            let seen = self.crew.keeper_signal();
            if !ticking && self.crew.is_tick_wanted() {
                (ticking, ticked_at) = (true, now_ms());
            }
            if ticking && now_ms().wrapping_sub(ticked_at) >= TICK_MS {
                self.crew.begin_tick();
                ticking = tick();
                ticked_at = now_ms();
            }
            let watching = self.look_after(start);
            let to_tick = TICK_MS.saturating_sub(now_ms().wrapping_sub(ticked_at)).max(1);
            let timeout = match (watching, ticking) {
                (true, _) => Some(LOOK_MS),
                (false, true) => Some(to_tick),
                (false, false) => None,
            };
            self.crew.keeper_rest(seen, timeout);
        }
    }

    /// Starts a worker if work waits that nobody takes up; answers whether to look again soon.
    fn look_after(&self, start: &mut dyn FnMut() -> bool) -> bool {
        let (nr_slow, unnamed) = self.slow_workers();
        let is_behind = self.has_work() && self.crew.nr_idle() == 0;
        if is_behind && nr_slow >= self.crew.nr_workers() {
            if nr_slow > 0 {
                self.counters.replaced.fetch_add(1, Ordering::Relaxed);
            }
            self.start_worker(start);
        }
        is_behind || unnamed
    }

    fn start_worker(&self, start: &mut dyn FnMut() -> bool) {
        if self.crew.hire() && !start() {
            self.crew.unhire();
        }
    }

    /// How many workers have been inside one call for too long, and whether one of them has yet
    /// to be named in a report.
    fn slow_workers(&self) -> (u32, bool) {
        let now = now_ms();
        let (mut nr_slow, mut unnamed) = (0, false);
        for (_, worker) in self.reclaimers.iter().filter(|(_, record)| record.is_worker()) {
            let Some((slot, age)) = worker.call(now).filter(|(_, age)| *age >= HELD_AFTER_MS)
            else {
                continue;
            };
            nr_slow += 1;
            unnamed |= !worker.is_named();
            if age >= STUCK_AFTER_MS
                && worker.name_once()
                && let Some(name) = self.name_in(slot)
            {
                self.host().report(Report::Stuck(name));
            }
        }
        (nr_slow, unnamed)
    }
}
