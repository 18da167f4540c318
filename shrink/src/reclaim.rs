//! Reclaim that a program asks for by name.

use memcg_accounting::{GroupRef, now_ms};

use crate::Engine;
use crate::pass::{FRUITLESS_ROUNDS, pause};
use crate::patience::{Deadline, Patience};
use crate::raw::{Cause, Place};
use crate::scan::{FIRST_PRIORITY, GENTLE_PRIORITY};
use crate::session::{Phase, Session};

impl Engine {
    /// Gets `bytes` out of the subtree of `target`, of which the caller has a handle: first what
    /// threads cache, then what shrinkers give. Answers the bytes that came back, which may be
    /// fewer, or some more.
    ///
    /// Shrinkers of the worker run there while this thread waits: for as long as bytes arrive,
    /// and a second beyond. Where no worker can be started they run here. Inside a shrinker
    /// nothing is done, inside `no_reclaim` only the drain. Never inside an allocation.
    pub fn reclaim(&self, target: GroupRef, bytes: u64, cause: Cause) -> u64 {
        let caller = self.caller();
        if caller.reclaiming {
            return 0;
        }
        let mut drained = self.host().drain(target);
        let request = caller.request.filter(|_| !caller.no_reclaim && drained < bytes);
        let Some(request) = request else { return drained };
        let needs_worker = !self.registry.at(Some(Place::Worker)).is_empty();
        let all_here = !needs_worker || !self.summon();
        let Some(mut session) = Session::for_reclaim(self, request, target) else {
            return drained;
        };
        let mut patience = Patience::new(Deadline::PROACTIVE, now_ms());
        let mut fruitless = 0;
        while fruitless < FRUITLESS_ROUNDS {
            self.end_deferred();
            let before = request.freed();
            let mut phase = Phase {
                target,
                goal: bytes - drained,
                causes: (cause, cause),
                priorities: (FIRST_PRIORITY, GENTLE_PRIORITY),
                breaks_low: false,
                all_here,
            };
            let mut answer = session.ask(&phase, &mut patience);
            if request.freed() < phase.goal {
                // Garbage before the last quarter of each cache.
                drained += self.host().drain(target);
                phase.goal = bytes.saturating_sub(drained);
                phase.priorities = (GENTLE_PRIORITY - 1, 0);
                if request.freed() < phase.goal {
                    answer = session.ask(&phase, &mut patience);
                    if request.freed() == before {
                        answer = session.ask_low(&phase, answer, &mut patience);
                    }
                }
            }
            let freed = request.freed();
            let is_done = freed >= phase.goal || !answer.has_more();
            if is_done || patience.is_over(now_ms(), freed) {
                break;
            }
            fruitless = if freed > before { 0 } else { fruitless + 1 };
            if fruitless != 0 && answer.busy {
                pause(fruitless);
            }
        }
        drained + request.freed()
    }
}
