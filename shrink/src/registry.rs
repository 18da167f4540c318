//! All registered shrinkers.
//!
//! # Invariants
//!
//! - A slot is taken from `register` until its data was dropped.
//! - `in_use` has the bits of all live, group-aware shrinkers; `by_place` splits them, and a bit
//!   that is shared may be in both.
//! - `users` counts the shrinkers of each bit; its lock guards registering, retiring and the list
//!   of orphans.
//! - Of those that have a bit, each has a rank of its own; `owners` has the first's, and `ranks` the others', rank by rank.

use memcg_accounting::Source;
use memcg_accounting::table::{NONE, Record, Table};

use crate::marks::{BITS_OF_A_KIND, Bit, Bits, WORDS};
use crate::raw::{Place, RawShrinker};
use crate::slot::Slot;
#[cfg(not(loom))]
use crate::sync::Guard;
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock};

/// Names a registered shrinker. A stale one is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShrinkerId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

const BITS: usize = 64 * WORDS;

/// The owners of all bits at one rank but the first.
#[derive(Debug)]
pub(crate) struct Rank {
    owners: [AtomicU32; BITS],
    next_free: AtomicU32,
}

impl Record for Rank {
    fn new() -> Self {
        Self {
            owners: core::array::from_fn(|_| AtomicU32::new(NONE)),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // It is never given back.
        true
    }
}

/// The registry of one engine.
pub(crate) struct Registry {
    slots: Table<Slot>,
    owners: [AtomicU32; BITS],
    ranks: Table<Rank>,
    in_use: [AtomicU64; WORDS],
    direct: [AtomicU64; WORDS],
    worker: [AtomicU64; WORDS],
    nr_unaware: AtomicU32,
    users: Lock<[u32; BITS]>,
    /// Slots whose data waits to be dropped by somebody who may run its code.
    orphans: AtomicU32,
}

impl core::fmt::Debug for Registry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Registry").field("slots", &self.slots).finish_non_exhaustive()
    }
}

macro_rules! words {
    ($make:expr, $n:expr) => {{
        #[cfg(not(loom))]
        {
            [const { $make }; $n]
        }
        #[cfg(loom)]
        {
            core::array::from_fn(|_| $make)
        }
    }};
}

impl Registry {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                slots: Table::new(),
                owners: words!(AtomicU32::new(NONE), BITS),
                ranks: Table::new(),
                in_use: words!(AtomicU64::new(0), WORDS),
                direct: words!(AtomicU64::new(0), WORDS),
                worker: words!(AtomicU64::new(0), WORDS),
                nr_unaware: AtomicU32::new(0),
                users: Lock::new([0; BITS]),
                orphans: AtomicU32::new(NONE),
            }
        }
    }

    /// Takes a slot and a bit for `raw` and publishes it. `reset` is told the bit and the rank
    /// if groups must forget what an earlier user of them said.
    pub(crate) fn register(
        &self,
        raw: RawShrinker,
        source: &Source,
        reset: impl FnOnce(Bit, u32),
    ) -> Option<ShrinkerId> {
        let mut users = lock(&self.users);
        let bit = raw.group_aware.then(|| Self::choose_bit(&users, raw.starts_marked));
        let place = match bit {
            Some(bit) => Some(self.free_rank(bit, source)?),
            None => None,
        };
        let rank = place.map_or(0, |(rank, _)| rank);
        let index = self.slots.take(source)?;
        let slot = self.slots.get(index)?;
        let id = ShrinkerId { slot: index, generation: slot.generation() };
        slot.publish(raw, bit, rank);
        let Some((bit, (_, owner))) = bit.zip(place) else {
            self.nr_unaware.fetch_add(1, Ordering::Relaxed);
            return Some(id);
        };
        users[bit.0 as usize] += 1;
        // INVARIANT: it is found before it is marked. Who unmarks a place that nobody had asks it then, or
        // is found out by the fence of the marking.
        owner.store(index, Ordering::Relaxed);
        if raw.starts_marked {
            reset(bit, rank);
        }
        let place = if raw.place == Place::Direct { &self.direct } else { &self.worker };
        for words in [&self.in_use, place] {
            // Release: who sees the bit sees the owner. A reader that misses both asks later.
            words[bit.word()].fetch_or(bit.mask(), Ordering::Release);
        }
        Some(id)
    }

    /// The bit of its kind with the fewest users.
    fn choose_bit(users: &[u32; BITS], starts_marked: bool) -> Bit {
        let bits = (0..BITS_OF_A_KIND).map(|n| Bit::new(n, starts_marked));
        bits.min_by_key(|bit| users[bit.0 as usize]).unwrap_or(Bit::new(0, starts_marked))
    }

    /// The lowest rank of `bit` that nobody has, and its place. `None`: no memory for it.
    fn free_rank(&self, bit: Bit, source: &Source) -> Option<(u32, &AtomicU32)> {
        let mut rank = 0;
        loop {
            if self.owner(bit, rank).is_none() {
                self.ranks.take(source)?;
            }
            let owner = self.owner(bit, rank)?;
            if owner.load(Ordering::Relaxed) == NONE {
                return Some((rank, owner));
            }
            rank += 1;
        }
    }

    /// Who has `bit` at `rank`; `None`: there is no such rank yet.
    fn owner(&self, bit: Bit, rank: u32) -> Option<&AtomicU32> {
        match rank.checked_sub(1) {
            None => self.owners.get(bit.0 as usize),
            Some(at) => self.ranks.get(at)?.owners.get(bit.0 as usize),
        }
    }

    /// The highest rank that anybody has had; 0: no bit is shared.
    pub(crate) fn highest_rank(&self) -> u32 {
        self.ranks.len()
    }

    /// Ends the registration of `id`: no call begins after this, and the id is stale. `None`: it
    /// was stale before.
    pub(crate) fn retire(&self, id: ShrinkerId) -> Option<&Slot> {
        let mut users = lock(&self.users);
        let slot = self.find(id)?;
        slot.next_generation();
        slot.retire();
        let Some(bit) = slot.bit() else {
            self.nr_unaware.fetch_sub(1, Ordering::Relaxed);
            return Some(slot);
        };
        let n = &mut users[bit.0 as usize];
        *n -= 1;
        let left = *n;
        if let Some(owner) = self.owner(bit, slot.rank()) {
            owner.store(NONE, Ordering::Relaxed);
        }
        if left == 0 {
            for words in [&self.in_use, &self.direct, &self.worker] {
                words[bit.word()].fetch_and(!bit.mask(), Ordering::Relaxed);
            }
        }
        Some(slot)
    }

    /// Gives a slot back whose data was dropped. One whose generations are used up is not used again: an
    /// id of 2^32 registrations ago names nobody.
    pub(crate) fn free(&self, index: u32) {
        let _users = lock(&self.users);
        if self.slot(index).is_none_or(Slot::is_worn_out) {
            return;
        }
        self.slots.put(index);
    }

    pub(crate) fn find(&self, id: ShrinkerId) -> Option<&Slot> {
        self.slots.get(id.slot).filter(|slot| slot.generation() == id.generation)
    }

    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index)
    }

    // ---- looking ------------------------------------------------------------------------

    /// The bits of all shrinkers.
    pub(crate) fn in_use(&self) -> Bits {
        Self::load(&self.in_use)
    }

    /// The bits of the shrinkers that run at `place`; `None`: at any.
    pub(crate) fn at(&self, place: Option<Place>) -> Bits {
        Self::load(match place {
            None => &self.in_use,
            Some(Place::Direct) => &self.direct,
            Some(Place::Worker) => &self.worker,
        })
    }

    // Acquire pairs with the Release in `register`.
    fn load(words: &[AtomicU64; WORDS]) -> Bits {
        Bits(core::array::from_fn(|i| words[i].load(Ordering::Acquire)))
    }

    /// The first that has `bit`: often the only one.
    pub(crate) fn first_with(&self, bit: Bit) -> Option<(u32, &Slot)> {
        self.at_rank(bit, 0)
    }

    fn at_rank(&self, bit: Bit, rank: u32) -> Option<(u32, &Slot)> {
        let index = self.owner(bit, rank)?.load(Ordering::Relaxed);
        let slot = self.slots.get(index)?;
        (slot.is_live() && slot.bit() == Some(bit)).then_some((index, slot))
    }

    /// Those that have `bit` for which `mark` of a leaf stands: one, but of thousands of shrinkers.
    pub(crate) fn sharing(&self, bit: Bit, mark: Bit) -> impl Iterator<Item = (u32, &Slot)> {
        let first = mark.0 % BITS_OF_A_KIND + 1;
        let ranks = (first..=self.highest_rank()).step_by(BITS_OF_A_KIND as usize);
        ranks.filter_map(move |rank| self.at_rank(bit, rank))
    }

    /// The shrinkers that are asked only when the root reclaims.
    pub(crate) fn unaware(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let none = self.nr_unaware.load(Ordering::Relaxed) == 0;
        let range = if none { 0..0 } else { 0..self.slots.len() };
        range
            .filter_map(|index| self.slots.get(index).map(|slot| (index, slot)))
            .filter(|(_, slot)| slot.is_live() && slot.is_unaware())
    }

    // ---- orphans ------------------------------------------------------------------------

    /// Notes that the data of slot `index` waits to be dropped.
    pub(crate) fn leave_orphan(&self, index: u32) {
        let _users = lock(&self.users);
        let Some(slot) = self.slots.get(index) else { return };
        let next = self.orphans.load(Ordering::Relaxed);
        memcg_accounting::table::Record::next_free(slot).store(next, Ordering::Relaxed);
        // Release pairs with the Acquire in `take_orphan`'s look.
        self.orphans.store(index, Ordering::Release);
    }

    /// A slot whose data is the caller's to drop.
    pub(crate) fn take_orphan(&self) -> Option<u32> {
        if self.orphans.load(Ordering::Acquire) == NONE {
            return None;
        }
        let _users = lock(&self.users);
        let index = self.orphans.load(Ordering::Relaxed);
        let slot = self.slots.get(index)?;
        let next = memcg_accounting::table::Record::next_free(slot).load(Ordering::Relaxed);
        self.orphans.store(next, Ordering::Relaxed);
        Some(index)
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.slots.mapped_bytes() + self.ranks.mapped_bytes()
    }

    // ---- fork ---------------------------------------------------------------------------

    #[cfg(not(loom))]
    pub(crate) fn lock(&self) -> Guard<'_, [u32; BITS]> {
        lock(&self.users)
    }

    /// # Safety
    ///
    /// The registry is locked and its guard was forgotten.
    #[cfg(not(loom))]
    pub(crate) unsafe fn force_unlock(&self) {
        // SAFETY: by contract.
        unsafe { self.users.force_unlock() };
    }
}

impl ShrinkerId {
    /// The id as a number.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.slot as u64
    }

    /// The id with this number.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
        Self {
            slot: u32::from_le_bytes([a, b, c, d]),
            generation: u32::from_le_bytes([e, f, g, h]),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use memcg_accounting::SYSTEM;

    use super::*;
    use crate::raw::{Control, RawCount, RawScan, ShrinkerName};

    unsafe fn count(_: *const (), _: &Control) -> RawCount {
        RawCount::Empty
    }

    unsafe fn scan(_: *const (), _: &mut Control) -> RawScan {
        RawScan::Stop
    }

    unsafe fn end(_: *const ()) {}

    #[test]
    fn who_starts_marked_is_found_before_it_is_marked() {
        let registry = Registry::new();
        let raw = RawShrinker {
            data: core::ptr::null(),
            count,
            scan,
            drop: end,
            name: ShrinkerName::new("found"),
            place: Place::Direct,
            group_aware: true,
            starts_marked: true,
            seeks: 2,
            batch: 0,
        };
        for _ in 0..2 * BITS_OF_A_KIND {
            let mut is_found = false;
            // Here a visit may find the place empty, and unmark it.
            let mark = |bit, rank| is_found = registry.at_rank(bit, rank).is_some();
            assert!(registry.register(raw, &SYSTEM, mark).is_some());
            assert!(is_found, "whoever unmarks it now does not ask it again");
        }
    }
}
