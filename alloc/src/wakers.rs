//! Wakers that wait for one thing: a place for each waiter, which is its own to take back; and those that are due, which
//! workers wake one by one.
//!
//! ```text
//!   Wakers ── news: take ──► DUE ── wake_due: one at a time ──► the program's code
//! ```
//!
//! A waker that does not return keeps the worker that woke it, and none of the wakers behind it.
//!
//! # Invariants
//!
//! - A place is its holder's from [`leave`](Wakers::leave) until [`forget`](Wakers::forget) or the next
//!   [`take`](Wakers::take), which begins a new round: a ticket of an earlier one has no place.
//! - `free` has the places of this round that nobody has, each once.
//! - Wakers are put into `DUE` before a worker is rung for; who takes one and leaves others rings for another worker.
//! - No waker is cloned, dropped or woken under the lock: that is code of the program.

use std::collections::VecDeque;
use std::task::Waker;

use memcg_accounting::sync::{Lock, lock};

use crate::fork::{self, AtFork, Place};
use crate::guarded::guarded;
use crate::process::ENGINE;
use crate::scope;

/// A waiter's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    round: u64,
    place: usize,
}

struct Places {
    round: u64,
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Of whoever polls without a place of its own: the last one's.
    last: Option<Waker>,
}

/// The wakers of all that wait for one thing.
pub(crate) struct Wakers(Lock<Places>);

impl Wakers {
    pub(crate) fn new() -> Self {
        fork::join(&AT_FORK);
        Self(Lock::new(Places { round: 0, wakers: Vec::new(), free: Vec::new(), last: None }))
    }

    /// Has `waker` woken by the next [`take`](Wakers::take), in the waiter's place, which it gets if it has none.
    pub(crate) fn leave(&self, ticket: &mut Option<Ticket>, waker: &Waker) {
        let copy = waker.clone();
        let before = scope::unaccounted(|| {
            let mut places = lock(&self.0);
            let Places { round, wakers, free, .. } = &mut *places;
            match ticket.filter(|ticket| ticket.round == *round) {
                Some(Ticket { place, .. }) => wakers[place].replace(copy),
                None => {
                    let place = free.pop().unwrap_or_else(|| {
                        wakers.push(None);
                        wakers.len() - 1
                    });
                    *ticket = Some(Ticket { round: *round, place });
                    wakers[place].replace(copy)
                }
            }
        });
        guarded(|| drop(before));
    }

    /// Has `waker` woken by the next [`take`](Wakers::take), instead of the last one that was left so.
    pub(crate) fn leave_last(&self, waker: &Waker) {
        let copy = waker.clone();
        let before = lock(&self.0).last.replace(copy);
        guarded(|| drop(before));
    }

    /// The waiter does not wait any more.
    pub(crate) fn forget(&self, ticket: Option<Ticket>) {
        let Some(Ticket { round, place }) = ticket else { return };
        let before = scope::unaccounted(|| {
            let mut places = lock(&self.0);
            if places.round != round {
                return None;
            }
            places.free.push(place);
            places.wakers[place].take()
        });
        guarded(|| drop(before));
    }

    /// Takes all, and begins a new round.
    pub(crate) fn take(&self) -> impl Iterator<Item = Waker> + use<> {
        let (last, wakers) = scope::unaccounted(|| {
            let mut places = lock(&self.0);
            places.round += 1;
            places.free = Vec::new();
            (places.last.take(), std::mem::take(&mut places.wakers))
        });
        last.into_iter().chain(wakers.into_iter().flatten())
    }

    #[cfg(test)]
    fn nr_places(&self) -> usize {
        lock(&self.0).wakers.len()
    }
}

impl Drop for Wakers {
    /// Nobody woke them: each is dropped, of several tasks, on the thread of one, or on ours.
    fn drop(&mut self) {
        for waker in self.take() {
            guarded(|| drop(waker));
        }
    }
}

// ---- those that are due -------------------------------------------------------------------------

static DUE: Lock<VecDeque<Waker>> = Lock::new(VecDeque::new());

/// Has a worker wake `wakers`, after whom there [`are_due`] some.
pub(crate) fn wake_later(wakers: impl Iterator<Item = Waker>) {
    scope::unaccounted(|| lock(&DUE).extend(wakers));
}

pub(crate) fn are_due() -> bool {
    !lock(&DUE).is_empty()
}

/// Wakes all that are due: on a worker, or at a safe point where there is none.
pub(crate) fn wake_due() {
    let mut has_rung = false;
    loop {
        let (waker, has_more) = {
            let mut due = lock(&DUE);
            let waker = due.pop_front();
            if due.is_empty() {
                scope::unaccounted(|| *due = VecDeque::new());
            }
            (waker, !due.is_empty())
        };
        let Some(waker) = waker else { return };
        if has_more && !has_rung {
            // This one may not return.
            ENGINE.ring();
            has_rung = true;
        }
        guarded(|| waker.wake());
    }
}

/// In the child those that are due are the parent's, and are kept, for what they hold may be locked by threads that
/// are gone.
static AT_FORK: AtFork = AtFork {
    place: Place::Wakers,
    prepare: || std::mem::forget(lock(&DUE)),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { DUE.force_unlock() },
    in_child: || std::mem::forget(std::mem::take(&mut *lock(&DUE))),
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (count.clone(), count.into())
    }

    #[test]
    fn whoever_goes_takes_its_waker_along() {
        let wakers = Wakers::new();
        let (count, waker) = waker();
        for _ in 0..1000 {
            let mut ticket = None;
            wakers.leave(&mut ticket, &waker);
            wakers.leave(&mut ticket, &waker);
            assert_eq!(Arc::strong_count(&count), 3);
            wakers.forget(ticket);
        }
        wakers.leave_last(&waker);
        wakers.leave_last(&waker);
        assert_eq!((Arc::strong_count(&count), wakers.nr_places()), (3, 1));
    }

    #[test]
    fn each_waiter_is_woken_once_and_an_old_ticket_takes_nobody_elses_place() {
        let wakers = Wakers::new();
        let (mut old, mut new) = (None, None);
        let (first, second) = (waker(), waker());
        wakers.leave(&mut old, &first.1);
        wakers.leave_last(&first.1);
        wakers.take().for_each(Waker::wake);
        assert_eq!(first.0.0.load(Ordering::Relaxed), 2);
        wakers.leave(&mut new, &second.1);
        assert_ne!(old, new);
        wakers.forget(old);
        wakers.take().for_each(Waker::wake);
        wakers.take().for_each(Waker::wake);
        assert_eq!(second.0.0.load(Ordering::Relaxed), 1);
    }
}
