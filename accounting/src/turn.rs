//! A lock that serves those who wait in the order in which they came.
//!
//! For what takes long and is wanted by many: a lock that whoever is quickest gets lets one thread take it
//! again and again while another waits for ever.
//!
//! ```text
//!   who comes                               who leaves
//!   ticket = next++                         serving++
//!   serving == ticket ?  (Acquire)  ◄────── (Release)
//!     no: sleeps on its bit of `serving`    next != serving ?  wakes the bit of that ticket
//! ```
//!
//! Only the next one is woken, and those 32 tickets further on.
//!
//! # Invariants
//!
//! - `serving` is written by the holder alone, and `next - serving` threads hold it or wait for it.
//! - Of the two stores before the looks (`next` before `serving`, `serving` before `next`), at least one is seen by
//!   the other side: nobody sleeps whose turn has come. If the system refuses a wake, a sleep ends by itself.
//!
//! Source: `spinlock_t` with tickets (Linux 2.6.25), and `FUTEX_WAIT_BITSET`.

use crate::sync::{self, AtomicU32, Ordering, lock_tried};

/// The lock: see the module.
#[derive(Debug)]
pub struct Turns {
    next: AtomicU32,
    serving: AtomicU32,
    #[cfg(all(loom, test))]
    pub(crate) weakened: Option<Weakened>,
}

/// What a model leaves out, to show that it is needed.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The order with which a turn begins.
    Acquire,
    /// The order with which one ends.
    Release,
    /// That tickets are drawn, not only read.
    Draw,
}

/// A turn, which ends when this is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct Turn<'a>(&'a Turns);

/// Looks of the next in the queue before it sleeps, and pauses before each: cuts that stop nobody are over by then.
const LOOKS: u32 = 32;
const PAUSES: u32 = 64;
/// The ordering at a site, or a relaxed one where a model weakens it.
macro_rules! seq_cst {
    ($turns:expr, $site:ident) => {{
        #[cfg(not(all(loom, test)))]
        {
            Ordering::SeqCst
        }
        #[cfg(all(loom, test))]
        if $turns.weakened == Some(Weakened::$site) { Ordering::Relaxed } else { Ordering::SeqCst }
    }};
}

/// How long a sleep lasts that nobody ends.
const NAP_MS: i64 = 10;

fn bit_of(ticket: u32) -> u32 {
    1 << (ticket % u32::BITS)
}

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl Turns {
    crate::const_new! {
        /// Nobody is there.
        pub fn new() -> Self {
            Self {
                next: AtomicU32::new(0),
                serving: AtomicU32::new(0),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    /// Waits for its turn, after all who came before: for as long as each of them takes. Not for a thread that has its
    /// turn already.
    pub fn wait(&self) -> Turn<'_> {
        let ticket = self.draw();
        let mut looks = 0;
        loop {
            // SeqCst: partner, `end`. As an Acquire it pairs with the Release there.
            let serving = self.serving.load(seq_cst!(self, Acquire));
            let ahead = ticket.wrapping_sub(serving);
            lock_tried(ahead == 0);
            if ahead == 0 {
                return Turn(self);
            }
            looks += 1;
            if ahead == 1 && looks <= LOOKS {
                for _ in 0..PAUSES {
                    core::hint::spin_loop();
                }
            } else {
                sync::sleep_on(&self.serving, serving, bit_of(ticket), NAP_MS);
            }
            // If the system refuses to let it sleep, others run all the same.
            sync::yield_now();
        }
    }

    pub(crate) fn draw(&self) -> u32 {
        #[cfg(all(loom, test))]
        if self.weakened == Some(Weakened::Draw) {
            let ticket = self.next.load(Ordering::SeqCst);
            self.next.store(ticket + 1, Ordering::SeqCst);
            return ticket;
        }
        // SeqCst: partner, `end`.
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// Ends a turn.
    fn end(&self) {
        // Relaxed: only the holder writes it.
        let serving = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        // SeqCst, both: partners, `draw` and the look in `wait`. As a Release the first pairs with the Acquire there.
        self.serving.store(serving, seq_cst!(self, Release));
        if self.next.load(Ordering::SeqCst) != serving {
            sync::wake_on(&self.serving, bit_of(serving));
        }
    }

    /// How many have their turn or wait for it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.next.load(Ordering::Relaxed).wrapping_sub(self.serving.load(Ordering::Relaxed))
    }

    /// Whether nobody has a turn or waits for one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends a turn whose [`Turn`] was forgotten.
    ///
    /// # Safety
    ///
    /// The caller has the turn.
    pub unsafe fn force_end(&self) {
        self.end();
    }

    /// The same in the child of a fork, which does not have those who waited.
    ///
    /// # Safety
    ///
    /// The caller is the copy of the thread that has the turn, and nobody else is there.
    pub unsafe fn force_end_alone(&self) {
        // Relaxed: there is one thread.
        self.serving.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
