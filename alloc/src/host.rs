//! What the allocator does for the engine: see [`Host`].

use memcg_accounting::{GroupRef, Reason, Request, Tag, now_us};
use memcg_shrink::{Caller, Errand, Host};

use crate::process::{ENGINE, TREE};
use crate::roster::{self, Slot};
use crate::scope::{self, Eager};
use crate::{budget, drain, hand, notice, panics, reclaim_task, record, refusal, wakers, worker};

/// The host of this process's engine.
pub(crate) struct Allocator;

pub(crate) static HOST: Allocator = Allocator;

impl Host for Allocator {
    fn caller(&self) -> Caller {
        let record = record::own();
        Caller {
            request: record.map(|record| &record.request),
            reclaiming: scope::eager().depth > 0,
            no_reclaim: scope::is_no_reclaim(),
            fallible: scope::is_fallible(),
            panic: panics::current(),
        }
    }

    fn drain(&self, target: GroupRef) -> u64 {
        drain::tidy(target)
    }

    fn cut(&self, target: GroupRef, payer: Tag, attempt: &mut dyn FnMut() -> bool) -> bool {
        drain::cut(target, payer, attempt)
    }

    fn debt_us(&self, payer: Tag) -> u64 {
        budget::account(TREE.number_of(payer)).debt_us(now_us())
    }

    fn begin_eager(&self, request: Option<&'static Request>) {
        let before = scope::eager();
        let request = if before.depth > 0 { before.request } else { request };
        scope::set_eager(Eager { depth: before.depth + 1, request });
        if before.depth == 0 && !record::is_empty() {
            record::record().gate.close(Reason::RECLAIM);
        }
    }

    fn end_eager(&self) {
        let before = scope::eager();
        let depth = before.depth.saturating_sub(1);
        let request = if depth > 0 { before.request } else { None };
        scope::set_eager(Eager { depth, request });
        if depth == 0 && !record::is_empty() {
            record::record().gate.open(Reason::RECLAIM);
        }
    }

    fn take_in_hand(&self) {
        hand::take();
    }

    fn put_down(&self) {
        hand::put_down();
    }

    fn set_stalled(&self, stalled: bool) {
        if !record::is_empty() {
            record::record().set_stalled(stalled);
        }
    }

    fn each_busy(&self, look: &mut dyn FnMut(Tag)) {
        let records = roster::claimed().map(Slot::record);
        for record in records.filter(|record| !record.is_stalled()) {
            look(record.current());
        }
    }

    fn look_at_news(&self) {
        notice::deliver();
    }

    fn deliver(&self) {
        if wakers::are_due() && ENGINE.has_refusals() {
            // A waker that does not return keeps no refusal from being told.
            ENGINE.ring();
        }
        wakers::wake_due();
        refusal::tell();
    }

    fn serve_task(&self, turn: &mut dyn FnMut(&mut Errand)) -> bool {
        reclaim_task::serve(turn)
    }

    fn charged_over_high(&self, group: GroupRef, bytes: u64) {
        scope::owe_over_high(group, bytes);
    }

    fn start_worker(&self) -> bool {
        worker::start()
    }
}
