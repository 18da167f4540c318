//! What cuts cost others, by who was refused: a tenant that hammers its limit waits itself.
//!
//! A cut stops threads of other tenants, too. For the CPU time that it takes meanwhile, the tenant that it is for owes 19
//! times as much: while it owes, its next charge that meets a limit [waits](memcg_shrink::Host::debt_us). So in the long
//! run each tenant's cuts have the others' threads stopped for 5 % of the time at most, where nobody has to wait for
//! a CPU. What cuts take of the tenant's own threads is its own affair.
//!
//! A tenant is a top-level tree, by its number. Those whose numbers are 4,096 apart have one account.
//!
//! # Invariants
//!
//! - Accounts change with the drain mutex held: one cut at a time.

use memcg_accounting::sync::{AtomicU64, Ordering};

/// A tenant takes one part of others' time in so many.
const PARTS: u64 = 20;
/// What may be owed without a wait: cuts now and then cost nobody one.
const ALLOWANCE_US: u64 = 10_000;
/// The most that is owed: who was stopped in the middle of a cut owes no minutes for it.
const MOST_US: u64 = 1_000_000;

const NUMBERS: usize = 4096;

static ACCOUNTS: [Account; NUMBERS] = [const { Account::new() }; NUMBERS];
/// What all cuts took, ever.
static TAKEN_US: AtomicU64 = AtomicU64::new(0);

/// That of the tree with this number.
pub(crate) fn account(tree: u32) -> &'static Account {
    &ACCOUNTS[tree as usize % NUMBERS]
}

/// Microseconds of CPU for which cuts had threads of other tenants stopped.
pub(crate) fn taken_us() -> u64 {
    TAKEN_US.load(Ordering::Relaxed)
}

/// One tenant's: when nothing is owed any more.
#[derive(Debug)]
pub(crate) struct Account {
    even_at_us: AtomicU64,
}

// Relaxed: a fact of its own, and a stale one is a wait more or less.
impl Account {
    const fn new() -> Self {
        Self { even_at_us: AtomicU64::new(0) }
    }

    /// A cut that ends now had others stopped for so long. The drain mutex is held.
    pub(crate) fn add(&self, now_us: u64, took_us: u64) {
        TAKEN_US.fetch_add(took_us, Ordering::Relaxed);
        // From its beginning: what was owed then is not paid by the cut itself.
        let from = self.even_at_us.load(Ordering::Relaxed).max(now_us.saturating_sub(took_us));
        let even = from.saturating_add(took_us.saturating_mul(PARTS)).min(now_us + MOST_US);
        self.even_at_us.store(even, Ordering::Relaxed);
    }

    /// How long the next cut should wait.
    pub(crate) fn debt_us(&self, now_us: u64) -> u64 {
        self.even_at_us.load(Ordering::Relaxed).saturating_sub(now_us + ALLOWANCE_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn who_waits_for_what_it_owes_takes_a_twentieth(
            costs in proptest::collection::vec(1..50_000_u64, 1..200),
        ) {
            let account = Account::new();
            let (start, mut now, mut taken) = (1_000_000, 1_000_000, 0);
            for cost in costs {
                now += account.debt_us(now);
                // What was owed before this cut was a twentieth, but for the allowance.
                prop_assert!(taken * 20 <= (now - start) + ALLOWANCE_US);
                now += cost;
                taken += cost;
                account.add(now, cost);
            }
        }
    }

    #[test]
    fn a_cut_now_and_then_owes_nothing_and_a_long_one_no_minutes() {
        let account = Account::new();
        for second in 1..10_u64 {
            account.add(second * 1_000_000, 500);
            assert_eq!(account.debt_us(second * 1_000_000), 0);
        }
        account.add(20_000_000, 60_000_000);
        assert_eq!(account.debt_us(20_000_000), MOST_US - ALLOWANCE_US);
        assert_eq!(account.debt_us(21_000_000), 0);
    }
}
