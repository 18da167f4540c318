//! What this layer knows of each group: marks, how long to wait, when it was last drained.
//!
//! One record per slot of the tree's table of groups, made when something is first noted. The
//! next user of a slot finds a fresh record: offline leaves it so, and whoever held the slot's last user
//! beyond that has let go of it before the next one is made.

use memcg_accounting::table::{NONE, Record, Table};
use memcg_accounting::{GroupRef, Tree};

use crate::deferred::Deferred;
use crate::marked::MarkedLinks;
use crate::marks::{Bit, Bits, Marks};
use crate::patience::Deadline;
use crate::sharers::{Leaf, Sharers, bit_of_rank, ranks_up_to};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Lock, Ordering, lock};

/// A tidy drain of a group is worth trying again after this long, even if the last found nothing.
const TIDY_MS: u32 = 10;
/// What got nothing is not tried again for this long where nobody depends on it.
const HOPELESS_MS: u32 = 10;

/// Whether a time that was set at most [`HOPELESS_MS`] ahead is still to come. The clock wraps:
/// one of long ago may seem to lie ahead, but then it lies further ahead than that.
fn is_ahead(until: u32, now_ms: u32) -> bool {
    until != 0 && (1..=HOPELESS_MS).contains(&until.wrapping_sub(now_ms))
}

/// A drain that began longer ago than this is not under way any more: whoever made it may be
/// gone, in the child of a fork.
const LONGEST_TIDY_MS: u32 = 500;

fn is_under_way(since: u32, now_ms: u32) -> bool {
    since != 0 && now_ms.wrapping_sub(since) < LONGEST_TIDY_MS
}

/// Whether what threads cache of a group is worth a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tidiness {
    Due,
    UnderWay,
    /// A moment ago it was not.
    Done,
}

/// One group's record.
#[derive(Debug)]
pub(crate) struct GroupRecord {
    pub(crate) marks: Marks,
    pub(crate) marked: MarkedLinks,
    /// Where the group stands in the queue of background work.
    pub(crate) background: Background,
    deadline: AtomicU64,
    tidied_at: AtomicU32,
    tidy_paid: AtomicBool,
    /// When the drain that is under way began; 0: none is.
    tidying_since: AtomicU32,
    hopeless_until: AtomicU32,
    fruitless_turns: AtomicU32,
    /// What shrinkers owe here: see `deferred.rs`.
    pub(crate) owed: AtomicU32,
    /// Who has something here of those that share a bit: see `sharers.rs`.
    sharers: AtomicU32,
    /// The bit that is asked first, so that no shrinker always is.
    pub(crate) turn: AtomicU32,
    /// The same among those that share that bit.
    pub(crate) rank_turn: AtomicU32,
    /// The longest pause over `high`; 0: none. Milliseconds.
    pub(crate) throttle_ms: AtomicU32,
    scanned: AtomicU64,
    reclaimed: AtomicU64,
    /// The group's record of stalls (`stall.rs`).
    stalls: AtomicU32,
    next_free: AtomicU32,
}

/// A group's place in the background queue: guarded by the queue's lock, but for `queued` and
/// `not_before`, which are looked at without it.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) queued: AtomicBool,
    /// No kick is worth it before this time, if it is not 0.
    pub(crate) not_before: AtomicU32,
    /// The room below `max` that somebody needs.
    pub(crate) room: AtomicU64,
    /// The room that would be welcome, if caches can spare it.
    pub(crate) spare_room: AtomicU64,
    /// The group, as it was when it was queued.
    pub(crate) group: AtomicU64,
    pub(crate) next: AtomicU32,
}

impl Record for GroupRecord {
    fn new() -> Self {
        Self {
            marks: Marks::new(),
            marked: MarkedLinks::new(),
            background: Background {
                queued: AtomicBool::new(false),
                not_before: AtomicU32::new(0),
                room: AtomicU64::new(0),
                spare_room: AtomicU64::new(0),
                group: AtomicU64::new(0),
                next: AtomicU32::new(NONE),
            },
            deadline: AtomicU64::new(0),
            tidied_at: AtomicU32::new(0),
            tidy_paid: AtomicBool::new(true),
            tidying_since: AtomicU32::new(0),
            hopeless_until: AtomicU32::new(0),
            fruitless_turns: AtomicU32::new(0),
            owed: AtomicU32::new(NONE),
            sharers: AtomicU32::new(NONE),
            turn: AtomicU32::new(0),
            rank_turn: AtomicU32::new(0),
            throttle_ms: AtomicU32::new(0),
            scanned: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            stalls: AtomicU32::new(NONE),
            next_free: AtomicU32::new(NONE),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
    }

    fn is_empty(&self) -> bool {
        // It is never given back: a slot's record serves all groups that use the slot.
        true
    }
}

// Relaxed throughout: each word is a fact of its own, and a stale one costs a drain or a look.
impl GroupRecord {
    /// Whether a tidy drain is due: the last one paid, or is long ago.
    pub(crate) fn tidiness(&self, now_ms: u32) -> Tidiness {
        if is_under_way(self.tidying_since.load(Ordering::Relaxed), now_ms) {
            return Tidiness::UnderWay;
        }
        let since = now_ms.wrapping_sub(self.tidied_at.load(Ordering::Relaxed));
        let is_due = self.tidy_paid.load(Ordering::Relaxed) || since >= TIDY_MS;
        if is_due { Tidiness::Due } else { Tidiness::Done }
    }

    pub(crate) fn tidied(&self, now_ms: u32, bytes: u64) {
        self.tidied_at.store(now_ms, Ordering::Relaxed);
        self.tidy_paid.store(bytes != 0, Ordering::Relaxed);
        self.tidying_since.store(0, Ordering::Relaxed);
    }

    /// A tidy drain begins; `false`: another was quicker.
    pub(crate) fn tidy_begins(&self, now_ms: u32) -> bool {
        let seen = self.tidying_since.load(Ordering::Relaxed);
        if is_under_way(seen, now_ms) {
            return false;
        }
        let mine = now_ms.max(1);
        let swap = Ordering::Relaxed;
        self.tidying_since.compare_exchange(seen, mine, swap, swap).is_ok()
    }

    /// Whether all that can be done got nothing, a moment ago.
    pub(crate) fn is_hopeless(&self, now_ms: u32) -> bool {
        is_ahead(self.hopeless_until.load(Ordering::Relaxed), now_ms)
    }

    pub(crate) fn note_hopeless(&self, now_ms: u32) {
        self.hopeless_until.store(now_ms.wrapping_add(HOPELESS_MS).max(1), Ordering::Relaxed);
    }

    /// Whether background work got nothing, a moment ago.
    pub(crate) fn is_kick_too_soon(&self, now_ms: u32) -> bool {
        is_ahead(self.background.not_before.load(Ordering::Relaxed), now_ms)
    }

    /// Notes what a turn of background work got; answers how many in a row got nothing.
    pub(crate) fn worked(&self, now_ms: u32, freed: u64) -> u32 {
        let before = self.fruitless_turns.load(Ordering::Relaxed);
        let tries = if freed == 0 { before.wrapping_add(1) } else { 0 };
        self.fruitless_turns.store(tries, Ordering::Relaxed);
        let until = if freed == 0 { now_ms.wrapping_add(HOPELESS_MS).max(1) } else { 0 };
        self.background.not_before.store(until, Ordering::Relaxed);
        tries
    }

    pub(crate) fn stalls(&self) -> u32 {
        self.stalls.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stalls(&self, index: u32) {
        self.stalls.store(index, Ordering::Relaxed);
    }

    pub(crate) fn count_scanned(&self, objects: u64) {
        self.scanned.fetch_add(objects, Ordering::Relaxed);
    }

    pub(crate) fn count_reclaimed(&self, bytes: u64) {
        self.reclaimed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Objects looked at and bytes got back, ever.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.scanned.load(Ordering::Relaxed), self.reclaimed.load(Ordering::Relaxed))
    }

    /// Makes the record that of a fresh group, but for its marks and its place in the queue;
    /// answers the counts.
    fn reset(&self) -> (u64, u64) {
        self.deadline.store(0, Ordering::Relaxed);
        self.throttle_ms.store(0, Ordering::Relaxed);
        self.tidied_at.store(0, Ordering::Relaxed);
        self.tidy_paid.store(true, Ordering::Relaxed);
        self.tidying_since.store(0, Ordering::Relaxed);
        self.background.not_before.store(0, Ordering::Relaxed);
        self.hopeless_until.store(0, Ordering::Relaxed);
        self.fruitless_turns.store(0, Ordering::Relaxed);
        (self.scanned.swap(0, Ordering::Relaxed), self.reclaimed.swap(0, Ordering::Relaxed))
    }
}

/// The records of all groups.
#[derive(Debug)]
pub(crate) struct Groups {
    records: Table<GroupRecord>,
    sharers: Sharers,
    growing: Lock<()>,
    /// A mark found no memory for its record: from then on every group counts as marked.
    unrecorded: AtomicBool,
}

impl Groups {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self {
                records: Table::new(),
                sharers: Sharers::new(),
                growing: Lock::new(()),
                unrecorded: AtomicBool::new(false),
            }
        }
    }

    /// The record of `group`, if anything was noted yet.
    pub(crate) fn find(&self, group: GroupRef) -> Option<&GroupRecord> {
        self.at(group.index())
    }

    /// The record of a slot.
    pub(crate) fn at(&self, slot: u32) -> Option<&GroupRecord> {
        self.records.get(slot)
    }

    /// The record of `group`, made if need be; `None`: no memory.
    pub(crate) fn record(&self, tree: &Tree, group: GroupRef) -> Option<&GroupRecord> {
        if let Some(record) = self.find(group) {
            return Some(record);
        }
        let _growing = lock(&self.growing);
        // Records are never given back, so they are taken in the order of their numbers.
        while self.records.len() <= group.index() {
            self.records.take(tree.source())?;
        }
        self.find(group)
    }

    /// How many slots have a record.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> u32 {
        self.records.len()
    }

    /// Whether marks were lost, so that every group counts as marked.
    pub(crate) fn is_unrecorded(&self) -> bool {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// The marked bits of `group` among `in_use`.
    pub(crate) fn marks(&self, group: GroupRef, in_use: Bits) -> Bits {
        if self.unrecorded.load(Ordering::Relaxed) {
            return in_use;
        }
        self.find(group).map_or_else(|| Marks::fresh(in_use), |record| record.marks.read(in_use))
    }

    /// Marks could not be noted: all groups are to be asked from now on.
    pub(crate) fn mark_everything(&self) {
        self.unrecorded.store(true, Ordering::SeqCst);
    }

    /// Marks the shrinker that has `bit` at `rank` in each group that has a record, for it starts marked.
    pub(crate) fn mark_in_all(&self, bit: Bit, rank: u32) {
        for slot in 0..self.records.len() {
            if let Some(record) = self.records.get(slot) {
                if rank != 0
                    && let Some(leaf) = self.leaf(record, bit)
                {
                    leaf.marks.mark(bit_of_rank(bit, rank));
                }
                record.marks.mark(bit);
            }
        }
    }

    /// The leaf for `bit` of a group's sharers.
    pub(crate) fn leaf(&self, record: &GroupRecord, bit: Bit) -> Option<&Leaf> {
        self.sharers.leaf(&record.sharers, bit)
    }

    pub(crate) fn make_leaf(&self, tree: &Tree, record: &GroupRecord, bit: Bit) -> Option<&Leaf> {
        self.sharers.make(tree.source(), &record.sharers, bit)
    }

    /// Marks in `group` whoever is marked among the sharers of `from`, which ends, for each of `bits`; answers those of
    /// which somebody is. `takes`: `from` has none from then on, as a fresh group.
    pub(crate) fn add_sharers(
        &self,
        tree: &Tree,
        (from, group): (GroupRef, GroupRef),
        bits: Bits,
        highest_rank: u32,
        takes: bool,
    ) -> Bits {
        if highest_rank == 0 {
            return Bits::NONE;
        }
        // Of a group without a record all are marked that start so.
        let none = AtomicU32::new(NONE);
        let below = self.find(from).map_or(&none, |record| &record.sharers);
        let ranks = ranks_up_to(highest_rank);
        let Some(record) = self.record(tree, group) else {
            self.mark_everything();
            return Bits::NONE;
        };
        let roots = (below, &record.sharers);
        let added = self.sharers.add_up(tree.source(), roots, bits, ranks, takes);
        if added.is_none() {
            self.mark_everything();
        }
        added.unwrap_or(Bits::NONE)
    }

    #[cfg(not(loom))]
    pub(crate) fn sharers_lock(&self) -> &Lock<()> {
        self.sharers.raw_lock()
    }

    /// Takes the marks of a group that goes or is gone, and adds its counts and what is owed in it to its
    /// parent's.
    pub(crate) fn retire(
        &self,
        tree: &Tree,
        group: GroupRef,
        parent: GroupRef,
        in_use: Bits,
        deferred: &Deferred,
    ) -> Bits {
        let Some(record) = self.find(group) else { return Marks::fresh(in_use) };
        let (scanned, reclaimed) = record.reset();
        let above = self.record(tree, parent);
        if let Some(above) = above {
            above.count_scanned(scanned);
            above.count_reclaimed(reclaimed);
        }
        deferred.move_up(&record.owed, above.map(|above| &above.owed));
        record.marks.take(in_use)
    }

    /// `group` was made: forgets what was noted of the last user of its slot after that had ended.
    pub(crate) fn begin(&self, group: GroupRef, deferred: &Deferred) {
        if let Some(record) = self.find(group) {
            record.scanned.store(0, Ordering::Relaxed);
            record.reclaimed.store(0, Ordering::Relaxed);
            deferred.move_up(&record.owed, None);
        }
    }

    /// Marks each of `bits` in `group`.
    pub(crate) fn add_marks(&self, tree: &Tree, group: GroupRef, bits: Bits) {
        if bits.is_empty() {
            return;
        }
        match self.record(tree, group) {
            Some(record) => record.marks.add(bits),
            None => self.mark_everything(),
        }
    }

    // ---- deadlines ----------------------------------------------------------------------

    /// How long an allocation of `group` waits.
    pub(crate) fn deadline(&self, group: GroupRef) -> Deadline {
        let word = self.find(group).map_or(0, |record| record.deadline.load(Ordering::Relaxed));
        Deadline::from_bits(word)
    }

    pub(crate) fn set_deadline(&self, tree: &Tree, group: GroupRef, deadline: Deadline) -> bool {
        let record = self.record(tree, group);
        if let Some(record) = record {
            record.deadline.store(deadline.to_bits(), Ordering::Relaxed);
        }
        record.is_some()
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.records.mapped_bytes() + self.sharers.mapped_bytes()
    }

    #[cfg(not(loom))]
    pub(crate) fn growing(&self) -> &Lock<()> {
        &self.growing
    }
}
