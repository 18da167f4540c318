//! What a thread caches: magazines of free objects, stock of its payers, uncharges to come.
//!
//! A value that knows no threads: whoever has it has passed the record's gate or holds its
//! lock. Free does no accounting: an object in a magazine keeps its tag, and its charge, until
//! it goes to another payer (here, by moving bytes in the stock) or back to its span.
//!
//! # Invariants
//!
//! - Each object in a magazine is charged through its tag, if it has one.
//! - What was taken off a tag is in the stock or in the log until it is uncharged.
//! - Whose objects lie below floors is in the [sums](Sums), and who has an entry in the stock.

use memcg_accounting::sync::{AtomicU32, Ordering};
use memcg_accounting::{MAX_UNSPENT, NotHandedOver, Payer, Stock, Tag, UnchargeLog};

use crate::central;
use crate::class::Class;
use crate::ledger;
use crate::magazine::{Magazines, UNSEEN};
use crate::maps;
use crate::process::{self, TREE};
use crate::span::Span;
use crate::subtree::Subtree;
use crate::summary::{Notes, Sums};

/// Bytes that are charged ahead at a time, at most.
const BATCH: u64 = 32 << 10;

/// A thread's caches. Zeros are an empty one.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Cached {
    magazines: Magazines,
    stock: Stock,
    log: UnchargeLog,
    /// Where it is known whose these are; before it is placed there is nothing.
    sums: Option<&'static Sums>,
}

/// What [`Cached::alloc`] came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// An object of the current payer.
    Done(*mut u8),
    /// The stock has too little for the object on top, which is another's still.
    Charge,
    /// The system has no memory.
    NoMemory,
}

/// What is on top of a magazine.
#[derive(Debug)]
pub(crate) enum Top {
    /// It was the current payer's, and is taken.
    Own(*mut u8),
    /// It is another payer's, whose tag is here.
    Others(&'static AtomicU32),
    Nothing,
}

impl Cached {
    /// Where the magazines are in here.
    pub(crate) const MAGAZINES_AT: usize =
        core::mem::offset_of!(Cached, magazines) + Magazines::FIRST_AT;

    pub(crate) const fn new() -> Self {
        Self {
            magazines: Magazines::new(),
            stock: Stock::new(),
            log: UnchargeLog::new(),
            sums: None,
        }
    }

    /// See [`Magazines::place`]. `sums`, which are empty, are kept from now on.
    ///
    /// # Safety
    ///
    /// The same.
    pub(crate) unsafe fn place(&mut self, storage: *mut *mut u8, sums: &'static Sums) {
        self.sums = Some(sums);
        // SAFETY: by contract.
        unsafe { self.magazines.place(storage) };
    }

    // ---- straight-line work: the fast path ------------------------------------------------

    /// Takes the object on top, if it is `current`'s already, or if nobody looks at tags.
    #[inline(always)]
    pub(crate) fn take(
        &mut self,
        class: Class,
        current: impl FnOnce() -> Tag,
        tracks: bool,
    ) -> Top {
        let magazine = self.magazines.get(class);
        let Some(object) = magazine.peek() else { return Top::Nothing };
        if tracks {
            // SAFETY: the object is in our magazine of its class.
            let slot = unsafe { maps::tag_slot_by(object, magazine.reciprocal()) };
            if Tag::from_bits(slot.load(Ordering::Relaxed)) != current() {
                return Top::Others(slot);
            }
        }
        // SAFETY: `peek` found an object.
        unsafe { magazine.drop_top() };
        Top::Own(object)
    }

    /// Takes an object for `current`: one that is its already, or that the stock pays for.
    /// `None`: take the slow path; nothing changed.
    pub(crate) fn pop(&mut self, class: Class, current: Tag) -> Option<*mut u8> {
        match self.take(class, || current, process::is_tracking()) {
            Top::Own(object) => Some(object),
            Top::Others(slot) => self.take_others(class, current, slot),
            Top::Nothing => None,
        }
    }

    /// Takes the object on top, which is another payer's and whose tag is in `slot`, if the stock
    /// pays for it. What it had cost goes into the stock, or into the log where its payer has no entry.
    #[inline(always)]
    pub(crate) fn take_others(
        &mut self,
        class: Class,
        current: Tag,
        slot: &AtomicU32,
    ) -> Option<*mut u8> {
        // The slot is asked, not its span, which another thread may have given a vector since.
        if Span::is_shared(slot) {
            return None;
        }
        let from = Tag::from_bits(slot.load(Ordering::Relaxed));
        match self.stock.hand_over(from, current, class.charge()) {
            Ok(()) => {}
            Err(NotHandedOver::TooLittle) => return None,
            Err(NotHandedOver::NoPlace) => self.hand_over_to_log(from, current, class)?,
        }
        slot.store(current.to_bits(), Ordering::Relaxed);
        let object = self.magazines.get(class).peek()?;
        // SAFETY: `peek` found an object.
        unsafe { self.magazines.get(class).drop_top() };
        Some(object)
    }

    #[cold]
    fn hand_over_to_log(&mut self, from: Tag, current: Tag, class: Class) -> Option<()> {
        let bytes = class.size() as u64;
        let more = if current.is_nobody() { bytes } else { 0 };
        let done = self.log.has_room_for(from)
            && self.limbo() + more < MAX_UNSPENT
            && (current.is_nobody() || self.stock.take(current, bytes))
            && self.log.push(from, bytes);
        done.then_some(())
    }

    /// Puts a free object in; `false`: there is no room.
    #[inline(always)]
    pub(crate) fn push(&mut self, class: Class, object: *mut u8) -> bool {
        self.magazines.get(class).push(object)
    }

    // ---- under the record's lock ----------------------------------------------------------

    /// Takes an object for `current`, refilling and handing over as need be. It charges nobody:
    /// [`Step::Charge`] asks the caller to, and to [finish](Cached::finish) it.
    pub(crate) fn alloc(&mut self, class: Class, current: Tag) -> Step {
        let Some(object) = self.refilled(class, current) else { return Step::NoMemory };
        // SAFETY: the object is in our magazine of its class.
        let slot = unsafe { maps::tag_slot(object, class) };
        if Tag::from_bits(slot.load(Ordering::Relaxed)) != current {
            // SAFETY: as above.
            if !unsafe { maps::make_taggable(object, class) } {
                return Step::NoMemory;
            }
            if !current.is_nobody() && !self.stock.take(current, class.size() as u64) {
                return Step::Charge;
            }
        }
        Step::Done(self.finish(class, current))
    }

    /// Sees to an object on top, whose tag may be written, for a payer that has paid for one.
    pub(crate) fn alloc_paid(&mut self, class: Class, payer: Tag) -> Option<()> {
        let object = self.refilled(class, Tag::NOBODY)?;
        // SAFETY: the object is in our magazine of its class.
        if !unsafe { maps::make_taggable(object, class) } {
            return None;
        }
        // SAFETY: as above.
        let slot = unsafe { maps::tag_slot(object, class) };
        if Tag::from_bits(slot.load(Ordering::Relaxed)) == payer {
            // It is charged already: what was paid now is for the next one.
            self.give(payer, class.size() as u64);
        }
        Some(())
    }

    /// Gives the object on top, whose tag may be written or is `current`, to `current`, which has
    /// paid for it.
    pub(crate) fn finish(&mut self, class: Class, current: Tag) -> *mut u8 {
        let Some(object) = self.magazines.get(class).peek() else { return core::ptr::null_mut() };
        // SAFETY: the object is in our magazine of its class.
        let slot = unsafe { maps::tag_slot(object, class) };
        let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
        if tag != current {
            debug_assert!(!Span::is_shared(slot), "the caller made a vector");
            slot.store(current.to_bits(), Ordering::Relaxed);
            credit(&mut self.stock, &mut self.log, tag, class.size() as u64);
        }
        // SAFETY: `peek` found an object.
        unsafe { self.magazines.get(class).drop_top() };
        object
    }

    /// The object on top, after a refill for `current` if need be.
    fn refilled(&mut self, class: Class, current: Tag) -> Option<*mut u8> {
        if self.magazines.get(class).peek().is_none()
            && !self.magazines.lower_floor(class)
            && self.refill(class)
        {
            self.tag_ahead(class, current);
        }
        self.magazines.get(class).peek()
    }

    /// Makes fresh objects `current`'s, as far as what it has unspent goes: all at once here, they
    /// cost half of what each by itself would on its way out.
    fn tag_ahead(&mut self, class: Class, current: Tag) {
        let unseen = self.magazines.len(class).min(UNSEEN / 2);
        if current.is_nobody() {
            return self.magazines.leave_unseen(class, unseen);
        }
        if unseen < self.magazines.len(class) {
            self.note_seen(current);
        }
        self.magazines.leave_unseen(class, unseen);
        let mut bytes = 0;
        let left = self.stock.bytes_of(current);
        for &object in self.magazines.objects(class).iter().rev() {
            // SAFETY: the object is in our magazine of its class.
            let slot = unsafe { maps::tag_slot(object, class) };
            if bytes + class.size() as u64 > left || Span::is_shared(slot) {
                break;
            }
            slot.store(current.to_bits(), Ordering::Relaxed);
            bytes += class.size() as u64;
        }
        let taken = bytes == 0 || self.stock.take(current, bytes);
        debug_assert!(taken, "the stock has {left} bytes, of which {bytes} were spent");
    }

    /// Puts a free object in, making room as need be.
    pub(crate) fn free(&mut self, class: Class, object: *mut u8) {
        if self.push(class, object) {
            return;
        }
        if self.magazines.raise_ceiling(class) {
            if self.magazines.is_due() {
                self.look();
            }
            let pushed = self.push(class, object);
            debug_assert!(pushed, "there is room");
            return;
        }
        // A thread's first free of a class is of another thread's object, which lies beside others of that
        // thread: kept, it would be this one's next, in a cache line that both write to.
        if self.magazines.is_first_use(class) {
            return self.give_back(class, object);
        }
        if !self.grow(class) {
            let half = self.magazines.len(class).div_ceil(2);
            self.flush(class, half);
        }
        self.magazines.raise_ceiling(class);
        if !self.push(class, object) {
            // The budget has no room for even one object of this class.
            self.give_back(class, object);
        }
    }

    fn note_seen(&self, tag: Tag) {
        if let Some(sums) = self.sums {
            sums.seen.add(TREE.number_of(tag));
        }
    }

    /// Looks whose the objects above the floors are: they lie below them then.
    fn look(&mut self) {
        let Some(Sums { seen, .. }) = self.sums else { return };
        let mut notes = Notes::new();
        for class in self.magazines.open() {
            for &object in self.magazines.unseen(class) {
                // SAFETY: the object is in our magazine of its class.
                let slot = unsafe { maps::tag_slot(object, class) };
                let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
                if !notes.has(tag) {
                    notes.add(seen, tag, TREE.number_of(tag));
                }
            }
            self.magazines.leave_unseen(class, 0);
        }
    }

    /// Gives a free object, which is in no magazine, to its span.
    fn give_back(&mut self, class: Class, object: *mut u8) {
        untag_all(&mut self.stock, &mut self.log, &[object], class);
        // SAFETY: the object is free, and has no tag any more.
        unsafe { central::give(class, &[object]) };
    }

    fn grow(&mut self, class: Class) -> bool {
        let Self { magazines, stock, log, .. } = self;
        magazines.grow(class, |magazines, victim, keep| {
            flush(magazines, stock, log, victim, keep);
        })
    }

    fn refill(&mut self, class: Class) -> bool {
        // A class that comes here again and again earns a larger magazine.
        self.grow(class);
        let half = self.magazines.capacity(class).div_ceil(2).max(1);
        let filled = self.magazines.fill(class, half, |out| central::take(class, out));
        if filled > 0 {
            return true;
        }
        // The budget has no room for even one object: make some.
        self.make_room_for(class);
        self.magazines.fill(class, 1, |out| central::take(class, out)) > 0
    }

    /// Empties everything, so that any class can be granted room.
    fn make_room_for(&mut self, class: Class) {
        if self.magazines.capacity(class) == 0 {
            for other in Class::all() {
                self.flush(other, usize::MAX);
            }
            self.grow(class);
        }
    }

    /// Gives the `n` oldest objects of a class back to their spans.
    fn flush(&mut self, class: Class, n: usize) {
        let Self { magazines, stock, log, .. } = self;
        let keep = magazines.len(class).saturating_sub(n);
        flush(magazines, stock, log, class, keep);
    }

    // ---- stock ------------------------------------------------------------------------------

    /// Makes `payer` the one whose allocations the stock pays for, if it has an entry, which keeps
    /// its tag from being reused.
    #[inline]
    pub(crate) fn select(&mut self, payer: Payer) -> bool {
        self.stock.select(payer)
    }

    /// The same, with an entry that is made if need be, under the tree's lock; `false`: the payer is gone.
    pub(crate) fn settle(&mut self, payer: Payer, keep: Tag) -> bool {
        if payer.tag.is_nobody() || self.stock.select(payer) {
            return true;
        }
        self.note_payer(payer.tag);
        TREE.settle(&mut self.stock, payer, keep)
    }

    fn note_payer(&self, tag: Tag) {
        if let Some(sums) = self.sums {
            sums.payers.add(TREE.number_of(tag));
        }
    }

    /// What a charge for `tag`, which has an entry, should take ahead.
    pub(crate) fn ahead_for(&self, tag: Tag, need: u64) -> u64 {
        self.stock.ahead_for(tag, need, BATCH)
    }

    /// Puts what a charge took beyond `need` into `tag`'s entry.
    pub(crate) fn give_ahead(&mut self, tag: Tag, need: u64, ahead: u64) {
        if !tag.is_nobody() && !self.stock.give_ahead(tag, need, ahead, BATCH) {
            self.give(tag, ahead);
        }
    }

    /// Puts bytes that were charged into `tag`'s entry, or uncharges them if it has none.
    pub(crate) fn give(&mut self, tag: Tag, bytes: u64) {
        // Nobody has no entry; the empty ones are not to be taken for it.
        if bytes > 0 && !tag.is_nobody() && !self.stock.give(tag, bytes) {
            TREE.uncharge(tag, bytes);
        }
    }

    /// Bytes that are charged and no object's.
    fn limbo(&self) -> u64 {
        self.stock.unspent() + self.log.bytes()
    }

    /// Uncharges what is unspent beyond the bound, but not `keep`'s.
    pub(crate) fn trim_stock(&mut self, keep: Tag) {
        if self.limbo() >= MAX_UNSPENT {
            self.apply_log();
        }
        if self.stock.unspent() >= MAX_UNSPENT {
            let log = &mut self.log;
            self.stock.trim(keep, |tag, bytes| note(log, tag, bytes));
            self.apply_log();
        }
    }

    fn drain_stock(&mut self, wanted: impl FnMut(Tag) -> bool) {
        let log = &mut self.log;
        self.stock.drain(wanted, |tag, bytes| note(log, tag, bytes));
        self.apply_log();
    }

    fn apply_log(&mut self) {
        TREE.uncharge_all(self.log.take());
    }

    // ---- drains -----------------------------------------------------------------------------

    /// Uncharges everything cached of `subtree`: tags are cleared, objects stay where they are. Answers the
    /// bytes. Whose all others are has been looked at then.
    pub(crate) fn drain(&mut self, subtree: &mut Subtree) -> u64 {
        let noted = self.log.peek().iter().filter(|(tag, _)| subtree.has_tag(*tag));
        let mut bytes: u64 = noted.map(|(_, bytes)| bytes).sum();
        bytes += self.drain_objects(subtree);
        if self.sums.is_none_or(|sums| subtree.may_be_in(&sums.payers)) {
            let log = &mut self.log;
            self.stock.drain(
                |tag| subtree.has_tag(tag),
                |tag, unspent| {
                    note(log, tag, unspent);
                    bytes += unspent;
                },
            );
        }
        // Others' too: a record that is left closed has nothing that is nowhere summed up.
        self.apply_log();
        bytes
    }

    /// The objects among it: those above the floors, and where the subtree may be below them all.
    fn drain_objects(&mut self, subtree: &mut Subtree) -> u64 {
        let Self { magazines, log, sums, .. } = self;
        let Some(Sums { seen, .. }) = sums.filter(|_| process::is_tracking()) else { return 0 };
        let looks_at_all = subtree.may_be_in(seen);
        if looks_at_all {
            seen.clear();
        }
        let (mut bytes, mut notes) = (0, Notes::new());
        for class in magazines.open() {
            let size = class.size() as u64;
            let objects = match looks_at_all {
                true => magazines.objects(class),
                false => magazines.unseen(class),
            };
            for &object in objects {
                // SAFETY: the object is in our magazine of its class.
                let slot = unsafe { maps::tag_slot(object, class) };
                let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
                if notes.has(tag) {
                    continue;
                }
                let tree = TREE.number_of(tag);
                if subtree.has(tag, tree) {
                    slot.store(0, Ordering::Relaxed);
                    note(log, tag, size);
                    bytes += size;
                } else {
                    notes.add(seen, tag, tree);
                }
            }
            magazines.leave_unseen(class, 0);
        }
        bytes
    }

    /// Lets go of entries of groups that are gone, but not of `keep`'s.
    pub(crate) fn prune(&mut self, keep: Tag) {
        self.stock.prune(|tag| tag != keep && TREE.is_forwarded(tag), |tag| TREE.unpin(tag));
        if let Some(sums) = self.sums {
            sums.payers.clear();
        }
        for entry in self.stock.entries() {
            self.note_payer(entry.payer.tag);
        }
    }

    /// Gives everything back, and all room: the owner's next push or pop is on its slow path.
    pub(crate) fn retire(&mut self) {
        self.flush_all();
        self.drain_stock(|_| true);
        self.magazines.close();
    }

    /// Gives the pages back that magazines had, if they have no room: for a thread that is idle.
    pub(crate) fn give_pages_back(&mut self) {
        self.magazines.give_pages_back();
    }

    /// Gives everything back, pins too: for a thread that ends.
    pub(crate) fn empty(&mut self) {
        self.retire();
        self.stock.prune(|_| true, |tag| TREE.unpin(tag));
        if let Some(sums) = self.sums {
            sums.payers.clear();
        }
    }

    /// Gives the objects back to their spans, for `purge`.
    pub(crate) fn flush_all(&mut self) {
        for class in self.magazines.open() {
            self.flush(class, usize::MAX);
        }
        if let Some(sums) = self.sums {
            sums.seen.clear();
        }
    }

    /// Bytes of objects in the magazines.
    pub(crate) fn bytes(&self) -> usize {
        self.magazines.bytes()
    }

    /// Bytes that are charged for what is cached: by tags of objects, stock and log.
    pub(crate) fn for_each_charge(&mut self, mut f: impl FnMut(Tag, u64)) {
        for entry in self.stock.entries() {
            f(entry.payer.tag, entry.bytes());
        }
        for &(tag, bytes) in self.log.peek() {
            f(tag, bytes);
        }
    }

    /// Tests the invariants that can be seen from here.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub(crate) fn check(&mut self) {
        self.magazines.check();
        self.stock.check();
        for class in Class::all() {
            for &object in self.magazines.objects(class) {
                let span = maps::span_of(object.addr()).expect("a cached object has a span");
                assert_eq!(span.class(), class, "a cached object is in its class's magazine");
                let offset = object.addr() - span.base();
                assert_eq!(offset % class.size(), 0, "a cached object is a whole object");
                // SAFETY: the object is in our magazine.
                let is_out = unsafe { ledger::is_out(object, class) };
                assert!(!is_out, "a cached object is not the program's");
            }
        }
    }
}

/// Objects that go back to the central list under one lock.
const FLUSH_BATCH: usize = 128;

fn flush(
    magazines: &mut Magazines,
    stock: &mut Stock,
    log: &mut UnchargeLog,
    class: Class,
    keep: usize,
) {
    loop {
        let n = magazines.len(class).saturating_sub(keep).min(FLUSH_BATCH);
        if n == 0 {
            return;
        }
        let batch = &magazines.objects(class)[..n];
        untag_all(stock, log, batch, class);
        // SAFETY: the objects were cached, so they are free; their tags are cleared; they are
        // forgotten here in the next line.
        unsafe { central::give(class, batch) };
        magazines.forget_oldest(class, n);
    }
}

/// Takes the tags off objects that are free: a step for each run of one payer's.
fn untag_all(stock: &mut Stock, log: &mut UnchargeLog, objects: &[*mut u8], class: Class) {
    if !process::is_tracking() {
        return;
    }
    let (mut payer, mut bytes) = (Tag::NOBODY, 0);
    for &object in objects {
        // SAFETY: the object is ours and free, and of the class.
        let slot = unsafe { maps::tag_slot(object, class) };
        let tag = Tag::from_bits(slot.load(Ordering::Relaxed));
        if tag.is_nobody() {
            continue;
        }
        slot.store(0, Ordering::Relaxed);
        if tag != payer {
            credit(stock, log, payer, bytes);
            (payer, bytes) = (tag, 0);
        }
        bytes += class.size() as u64;
    }
    credit(stock, log, payer, bytes);
}

/// Sees to what `tag` was charged for objects that carry it no longer.
fn credit(stock: &mut Stock, log: &mut UnchargeLog, tag: Tag, bytes: u64) {
    if tag.is_nobody() {
        return;
    }
    // A run of objects may be more than the bound leaves room for.
    let room = bytes.min(MAX_UNSPENT.saturating_sub(stock.unspent()));
    let left = if room > 0 && stock.give(tag, room) { bytes - room } else { bytes };
    if left > 0 {
        note(log, tag, left);
        // Whoever only frees would charge its payers for ever otherwise.
        if stock.unspent() + log.bytes() >= MAX_UNSPENT {
            TREE.uncharge_all(log.take());
        }
    }
}

/// Notes an uncharge, applying the log when it is full.
fn note(log: &mut UnchargeLog, tag: Tag, bytes: u64) {
    if !log.push(tag, bytes) {
        TREE.uncharge_all(log.take());
        let pushed = log.push(tag, bytes);
        debug_assert!(pushed, "an empty log has room");
    }
}

#[cfg(test)]
mod tests {
    use core::alloc::Layout;
    use core::ptr;

    use memcg_accounting::{Root, Settings};

    use super::*;

    #[test]
    fn a_vector_that_another_thread_makes_during_a_hand_over_leaves_the_shared_zeros_alone() {
        assert!(crate::start::begin(Root::Untracked));
        crate::record::start_tracking();
        let class = Class::of(Layout::new::<[u64; 3000]>()).expect("a slab class");
        let group = TREE.create(memcg_accounting::GroupRef::ROOT, "zeros", Settings::default());
        let payer = TREE.payer(group.expect("fresh"));
        let mut cached = Cached::new();
        assert!(cached.settle(payer, Tag::NOBODY));
        let want = memcg_accounting::Want::exactly(class.size() as u64);
        TREE.charge(payer, want).expect("no limit");
        cached.give(payer.tag, class.size() as u64);

        let mut object = [core::ptr::null_mut()];
        assert_eq!(central::take(class, &mut object), 1);
        // SAFETY: the object is out.
        let slot = unsafe { maps::tag_slot(object[0], class) };
        assert!(Span::is_shared(slot), "no other test uses the class");
        // What another thread does here:
        // SAFETY: the object is out.
        assert!(unsafe { maps::make_taggable(object[0], class) });
        let taken = cached.take_others(class, payer.tag, slot);
        assert!(taken.is_none(), "the slow path looks again");
        assert_eq!(slot.load(Ordering::Relaxed), 0);
        // SAFETY: the object is out.
        let slot = unsafe { maps::tag_slot(object[0], class) };
        assert!(!Span::is_shared(slot), "now it is found");
    }

    #[test]
    fn a_flush_of_many_objects_of_one_payer_stays_within_the_bound() {
        assert!(crate::start::begin(Root::Untracked));
        crate::record::start_tracking();
        let class = Class::of(Layout::new::<[u64; 256]>()).expect("a slab class");
        let group = TREE.create(memcg_accounting::GroupRef::ROOT, "flushed", Settings::default());
        let payer = TREE.payer(group.expect("fresh"));
        let storage = vec![ptr::null_mut::<u8>(); crate::magazine::STORAGE_WORDS].leak();
        let mut cached = Cached::new();
        // SAFETY: the words are zeroed, and nobody else's for ever.
        unsafe { cached.place(storage.as_mut_ptr(), Box::leak(Box::new(Sums::new()))) };
        assert!(cached.settle(payer, Tag::NOBODY));
        let mut objects = [ptr::null_mut(); 128];
        assert_eq!(central::take(class, &mut objects), objects.len());
        for object in objects {
            // SAFETY: the object is out.
            assert!(unsafe { maps::make_taggable(object, class) });
            // SAFETY: as above.
            let slot = unsafe { maps::tag_slot(object, class) };
            slot.store(payer.tag.to_bits(), Ordering::Relaxed);
            let want = memcg_accounting::Want::exactly(class.size() as u64);
            TREE.charge(payer, want).expect("no limit");
            cached.free(class, object);
        }
        // The first of them went back at once.
        let more = MAX_UNSPENT - 8 - cached.limbo();
        TREE.charge(payer, memcg_accounting::Want::exactly(more)).expect("no limit");
        cached.give(payer.tag, more);
        cached.flush(class, usize::MAX);
        assert!(cached.limbo() <= MAX_UNSPENT, "{} bytes are nobody's", cached.limbo());
        cached.empty();
    }
}
