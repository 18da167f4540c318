//! All registered shrinkers.
//!
//! # Invariants
//!
//! - A slot is taken from `register` until its data was dropped.
//! - `in_use` has the bits of all live, group-aware shrinkers; `by_place` splits them, and a bit
//!   that is shared may be in both.
//! - `users` counts the shrinkers of each bit; its lock guards registering, retiring and the list
//!   of orphans.
//! - A bit that shrinkers share has `SHARED` as its owner; who wants them looks at all slots.

use memcg_accounting::Source;
use memcg_accounting::table::{NONE, Table};

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

/// More than one shrinker has the bit.
const SHARED: u32 = NONE - 1;
const BITS: usize = 64 * WORDS;

/// The registry of one engine.
pub(crate) struct Registry {
    slots: Table<Slot>,
    owners: [AtomicU32; BITS],
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
                in_use: words!(AtomicU64::new(0), WORDS),
                direct: words!(AtomicU64::new(0), WORDS),
                worker: words!(AtomicU64::new(0), WORDS),
                nr_unaware: AtomicU32::new(0),
                users: Lock::new([0; BITS]),
                orphans: AtomicU32::new(NONE),
            }
        }
    }

    /// Takes a slot and a bit for `raw` and publishes it. `reset` is told the bit before that,
    /// if groups must forget what an earlier user of it said.
    pub(crate) fn register(
        &self,
        raw: RawShrinker,
        source: &Source,
        reset: impl FnOnce(Bit),
    ) -> Option<ShrinkerId> {
        let mut users = lock(&self.users);
        let index = self.slots.take(source)?;
        let slot = self.slots.get(index)?;
        let bit = raw.group_aware.then(|| Self::choose_bit(&users, raw.starts_marked));
        let id = ShrinkerId { slot: index, generation: slot.generation() };
        slot.publish(raw, bit);
        let Some(bit) = bit else {
            self.nr_unaware.fetch_add(1, Ordering::Relaxed);
            return Some(id);
        };
        if raw.starts_marked {
            reset(bit);
        }
        let n = &mut users[bit.0 as usize];
        *n += 1;
        let owner = if *n == 1 { index } else { SHARED };
        self.owners[bit.0 as usize].store(owner, Ordering::Relaxed);
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
        // One that is left is found as one of several: that bit costs a look at all slots.
        let owner = if left == 0 { NONE } else { SHARED };
        self.owners[bit.0 as usize].store(owner, Ordering::Relaxed);
        if left == 0 {
            for words in [&self.in_use, &self.direct, &self.worker] {
                words[bit.word()].fetch_and(!bit.mask(), Ordering::Relaxed);
            }
        }
        Some(slot)
    }

    /// Gives a slot back whose data was dropped.
    pub(crate) fn free(&self, index: u32) {
        let _users = lock(&self.users);
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

    /// The slots that have `bit`: usually one.
    pub(crate) fn with_bit(&self, bit: Bit) -> impl Iterator<Item = (u32, &Slot)> {
        let owner = self.owners[bit.0 as usize].load(Ordering::Relaxed);
        let range = match owner {
            NONE => 0..0,
            SHARED => 0..self.slots.len(),
            index => index..index + 1,
        };
        range
            .filter_map(|index| self.slots.get(index).map(|slot| (index, slot)))
            .filter(move |(_, slot)| slot.is_live() && slot.bit() == Some(bit))
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
        self.slots.mapped_bytes()
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
