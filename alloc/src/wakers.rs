//! Wakers that wait for one thing: a place for each waiter, which is its own to take back; and those that are due, which
//! workers wake one by one.
//!
//! ```text
//!   Wakers ── news: take ──► DUE ── wake_due: one at a time ──► the program's code
//! ```
//!
//! A waker that does not return keeps the worker that woke it, and none of the wakers behind it.
//!
//! Workers, and whoever has news, take no memory: wakers are due in what they were left in. A waiter for whose waker there
//! is no memory is woken at once, and so asks again.
//!
//! # Invariants
//!
//! - A place is its holder's from [`leave`](Wakers::leave) until [`forget`](Wakers::forget) or the next
//!   [`take`](Wakers::take), which begins a new round: a ticket of an earlier one has no place.
//! - `free` has the places of this round that nobody has, each once, and room for all places.
//! - A chain is empty, or has one link: it is a box that can be had where there may be no memory.
//! - Wakers are put into `DUE` before a worker is rung for; who takes one and leaves others rings for another worker.
//! - No waker is cloned, dropped or woken under the lock: that is code of the program.

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

/// What was left since the last [`take`](Wakers::take), and what is due after it.
#[derive(Default)]
struct Left {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Of whoever polls without a place of its own: the last one's.
    last: Option<Waker>,
    /// The first of `wakers` that was not woken.
    first: usize,
    behind: Chain,
}

type Chain = Vec<Left>;

impl Left {
    /// The one link of a chain, which is made if there is none; `None`: there is no memory.
    fn of(chain: &mut Chain) -> Option<&mut Self> {
        if chain.is_empty() {
            chain.try_reserve_exact(1).ok()?;
            chain.push(Self::default());
        }
        chain.first_mut()
    }

    /// A place that nobody has; `None`: there is no memory.
    fn place(&mut self) -> Option<usize> {
        if let Some(place) = self.free.pop() {
            return Some(place);
        }
        let place = self.wakers.len();
        self.free.try_reserve(place + 1).ok()?;
        self.wakers.try_reserve(1).ok()?;
        self.wakers.push(None);
        Some(place)
    }

    fn next(&mut self) -> Option<Waker> {
        if let Some(last) = self.last.take() {
            return Some(last);
        }
        while let Some(waker) = self.wakers.get_mut(self.first) {
            self.first += 1;
            if let Some(waker) = waker.take() {
                return Some(waker);
            }
        }
        None
    }

    /// Those that are left are wakers, and no empty places.
    fn is_empty(&self) -> bool {
        self.last.is_none() && self.first == self.wakers.len()
    }
}

/// The wakers that one [`take`](Wakers::take) took.
pub(crate) struct Taken(Chain);

impl Iterator for Taken {
    type Item = Waker;

    fn next(&mut self) -> Option<Waker> {
        self.0.first_mut()?.next()
    }
}

struct Places {
    round: u64,
    left: Chain,
}

/// The wakers of all that wait for one thing.
pub(crate) struct Wakers(Lock<Places>);

impl Wakers {
    pub(crate) fn new() -> Self {
        fork::join(&AT_FORK);
        Self(Lock::new(Places { round: 0, left: Chain::new() }))
    }

    /// Has `waker` woken by the next [`take`](Wakers::take), in the waiter's place, which it gets if it has none.
    pub(crate) fn leave(&self, ticket: &mut Option<Ticket>, waker: &Waker) {
        let mut copy = Some(waker.clone());
        let before = scope::unaccounted(|| {
            let mut places = lock(&self.0);
            let Places { round, left } = &mut *places;
            let left = Left::of(left)?;
            let place = match ticket.filter(|ticket| ticket.round == *round) {
                Some(Ticket { place, .. }) => place,
                None => left.place()?,
            };
            *ticket = Some(Ticket { round: *round, place });
            std::mem::replace(&mut left.wakers[place], copy.take())
        });
        guarded(|| drop(before));
        at_once(copy);
    }

    /// Has `waker` woken by the next [`take`](Wakers::take), instead of the last one that was left so.
    pub(crate) fn leave_last(&self, waker: &Waker) {
        let mut copy = Some(waker.clone());
        let before = scope::unaccounted(|| {
            let mut places = lock(&self.0);
            std::mem::replace(&mut Left::of(&mut places.left)?.last, copy.take())
        });
        guarded(|| drop(before));
        at_once(copy);
    }

    /// The waiter does not wait any more.
    pub(crate) fn forget(&self, ticket: Option<Ticket>) {
        let Some(Ticket { round, place }) = ticket else { return };
        let before = {
            let mut places = lock(&self.0);
            let is_of_round = places.round == round;
            let left = places.left.first_mut().filter(|_| is_of_round);
            left.and_then(|left| {
                // There is room: nothing is allocated.
                left.free.push(place);
                left.wakers[place].take()
            })
        };
        guarded(|| drop(before));
    }

    /// Takes all, and begins a new round.
    pub(crate) fn take(&self) -> Taken {
        let mut places = lock(&self.0);
        places.round += 1;
        Taken(std::mem::take(&mut places.left))
    }

    #[cfg(test)]
    fn nr_places(&self) -> usize {
        lock(&self.0).left.first().map_or(0, |left| left.wakers.len())
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

/// First come, first served, without memory: who comes is put before who came, and when nobody is left the order of those
/// is turned round.
struct Due {
    came: Chain,
    go: Chain,
}

static DUE: Lock<Due> = Lock::new(Due { came: Chain::new(), go: Chain::new() });

impl Due {
    fn is_empty(&self) -> bool {
        self.came.is_empty() && self.go.is_empty()
    }

    fn push(&mut self, Taken(mut chain): Taken) {
        if let Some(left) = chain.first_mut() {
            left.behind = std::mem::take(&mut self.came);
            self.came = chain;
        }
    }

    fn turn_round(&mut self) {
        while let Some(left) = self.came.first_mut() {
            let behind = std::mem::take(&mut left.behind);
            left.behind = std::mem::take(&mut self.go);
            self.go = std::mem::replace(&mut self.came, behind);
        }
    }

    fn next(&mut self) -> Option<Waker> {
        if self.go.is_empty() {
            self.turn_round();
        }
        let left = self.go.first_mut()?;
        let waker = left.next();
        if left.is_empty() {
            self.go = std::mem::take(&mut left.behind);
        }
        waker
    }
}

/// Has a worker wake `wakers`, after whom there [`are_due`] some. Takes no memory.
pub(crate) fn wake_later(mut wakers: Taken) {
    let Some(left) = wakers.0.first_mut() else { return };
    left.wakers.retain(Option::is_some);
    if !left.is_empty() {
        lock(&DUE).push(wakers);
    }
}

/// There was no memory to have it wait.
fn at_once(waker: Option<Waker>) {
    if let Some(waker) = waker {
        guarded(|| waker.wake());
    }
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
            (due.next(), !due.is_empty())
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
    in_child: || {
        let mut due = lock(&DUE);
        std::mem::forget((std::mem::take(&mut due.came), std::mem::take(&mut due.go)));
    },
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

    #[test]
    fn those_that_are_due_are_woken_in_the_order_in_which_they_came() {
        let mut due = Due { came: Chain::new(), go: Chain::new() };
        let all: Vec<_> = (0..5).map(|_| waker()).collect();
        let mut seen = Vec::new();
        let mut woken = |due: &mut Due| {
            let next = due.next().expect("one is due");
            seen.push(all.iter().position(|(_, waker)| waker.will_wake(&next)));
        };
        for pair in [[0, 1], [2, 3]] {
            let wakers = Wakers::new();
            for nr in pair {
                wakers.leave(&mut None, &all[nr].1);
            }
            due.push(wakers.take());
        }
        woken(&mut due);
        let wakers = Wakers::new();
        wakers.leave_last(&all[4].1);
        due.push(wakers.take());
        (0..4).for_each(|_| woken(&mut due));
        assert!(due.is_empty() && due.next().is_none());
        assert_eq!(seen, [0, 1, 2, 3, 4].map(Some));
    }
}
