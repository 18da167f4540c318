//! How much a group lost by waiting for memory.

use memcg_shrink::Stalled;

use crate::group::Group;
use crate::process::ENGINE;

/// Time that threads waited, as the kernel's pressure stall information has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stall {
    /// Share of the last 10 seconds, in per cent.
    pub avg10: f64,
    /// Share of the last 60 seconds, in per cent.
    pub avg60: f64,
    /// Share of the last 300 seconds, in per cent.
    pub avg300: f64,
    /// All of it since the group's first stall, in microseconds. Never runs backwards.
    pub total: u64,
}

/// A group's stalls, and those of everything below it: see [`Group::pressure`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// At least one thread waited.
    pub some: Stall,
    /// And every thread that was inside a scope of the subtree did.
    pub full: Stall,
}

impl Stall {
    fn from_raw(raw: Stalled) -> Self {
        let Stalled { avg10, avg60, avg300, total_us, .. } = raw;
        Self { avg10, avg60, avg300, total: total_us }
    }
}

impl Group {
    /// How long threads of the group and below waited for memory: in an allocation at the limit,
    /// from the first refusal until it is decided, and while they were throttled.
    ///
    /// `some` is time in which at least one thread waited; `full` is time in which every thread
    /// that was inside a scope of the subtree did ([`enter`](Group::enter), a future's poll). A
    /// thread that sleeps inside a scope counts as busy, one outside all groups does not count.
    /// Who is inside is looked at when a wait begins and every 10 ms while it lasts, so `full` may
    /// be wrong by that much each time somebody comes or goes.
    ///
    /// The averages move every 2 s, from the group's first stall on. `total` is exact up to now.
    /// One short lock; a group that never stalled costs nothing. What a program asks for by name
    /// ([`reclaim`](Group::reclaim), [`set_max`](Group::set_max)) is no pressure.
    ///
    /// Source: `memory.pressure` and `kernel/sched/psi.c`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// let tenant = memcg::Group::root().builder("pressed").max(4096).build()?;
    /// assert_eq!(tenant.pressure().some.total, 0);
    /// let refused = tenant.run(|| Vec::<u8>::new().try_reserve(10_000));
    /// assert!(refused.is_err());
    /// let pressure = tenant.pressure();
    /// assert!(pressure.full.total <= pressure.some.total);
    /// # Ok::<(), memcg::Error>(())
    /// ```
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let raw = ENGINE.pressure(self.as_ref());
        Pressure { some: Stall::from_raw(raw.some), full: Stall::from_raw(raw.full) }
    }
}
