//! The tree as one value, and what happens under the lock of a stripe: charging.
//!
//! One short lock per top-level tree guards counters and contexts. A charge checks every level
//! and then adds to every level, all under that lock: nothing is speculative, so nothing is
//! rolled back, usage never passes `max`, no request is refused because of another's attempt,
//! and peaks are exact. The stock makes it one lock per batch of allocations.
//!
//! Source: `mm/page_counter.c`, whose charges are speculative, and say so.

use crate::below::Below;
use crate::context::{Context, Link, Payer, Tag};
use crate::counter::{Charged, OverLimit, Want};
use crate::event::EventKind;
use crate::gate::step;
use crate::group::{Group, GroupRef};
use crate::hash::Key;
use crate::protection::Claims;
use crate::source::{SYSTEM, Source};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Guard, Lock, Ordering, lock};
use crate::table::Table;
use crate::topology::Topology;
use crate::walks::Walks;
use crate::watch::Watches;

/// Whether the root is a payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// What is in no group is charged to nobody (Costa's proposal of 2012).
    Untracked,
    /// The root is a group like any other (Souhlal's).
    Accounted,
}

/// Locks that trees share. What records call their stripe is the number of their top-level tree, which it
/// keeps for life; the lock is that of the number modulo [`STRIPES`].
const SHALLOW: u32 = if cfg!(loom) { 2 } else { 64 };
/// Locks of trees that may have more levels than [`DEPTH`](crate::DEPTH), which hold them for longer.
const DEEP: u32 = if cfg!(loom) { 1 } else { 16 };
const STRIPES: u32 = SHALLOW + DEEP;
/// Uncharges that are made under one lock at a time: each is a walk over depth.
const RUN: usize = 32;
/// Below this headroom a charge takes nothing ahead.
pub(crate) const EXACT_BELOW: u64 = 64 << 10;

/// A stripe lock, alone on its pair of cache lines.
#[repr(align(128))]
#[derive(Debug)]
struct Stripe {
    lock: Lock<()>,
    /// Usage of the top-level groups of this stripe, where the root is untracked: what it answers is the
    /// sum, without a look at each. It changes under the lock.
    usage: AtomicU64,
}

impl Stripe {
    crate::const_new! {
        fn new() -> Self {
            Self { lock: Lock::new(()), usage: AtomicU64::new(0) }
        }
    }
}

/// The tree of groups: a value, so that tests and models make their own.
pub struct Tree {
    pub(crate) groups: Table<Group>,
    /// Of the groups that have had children.
    pub(crate) belows: Table<Below>,
    pub(crate) contexts: Table<Context>,
    stripes: [Stripe; STRIPES as usize],
    pub(crate) topology: Lock<Topology>,
    /// What names are hashed with.
    pub(crate) key: Key,
    pub(crate) walks: Walks,
    pub(crate) watches: Watches,
    root: AtomicU32,
    source: AtomicPtr<Source>,
    nr_threads: AtomicU32,
    /// Whether a dying group may be put aside: what safe points look at.
    pub(crate) deferred: AtomicBool,
    #[cfg(all(loom, test))]
    weakened: Option<Weakened>,
}

/// A step that a model leaves out, to show that it is needed.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weakened {
    /// The pin of a context that another one is made to lead to.
    PinTarget,
    /// The test of a payer's generation.
    Generation,
    /// The second look at a context's stripe, under the lock.
    StripeAgain,
    /// The lock of the stripe that a context leaves for another.
    MoveLock,
    /// One lock for the check of all levels and the adding to them.
    OneLock,
    /// The look at the generation of a payer whose tag a stock has an entry of.
    WholePayer,
    /// The hold of the first handle that is made of a hold.
    FirstHandle,
    /// The second look, under the lock, whether it is the last handle.
    LastAgain,
    /// Asking again who pays, where the one who did went in between.
    AskAgain,
    /// One step for the look at how many objects there are and for one more.
    OneStep,
}

impl core::fmt::Debug for Tree {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tree")
            .field("root", &self.root_kind())
            .field("groups", &self.groups)
            .field("contexts", &self.contexts)
            .finish_non_exhaustive()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// The root has not been made yet.
const UNMADE: u32 = 0;
const UNTRACKED: u32 = 1;
const ACCOUNTED: u32 = 2;

impl Tree {
    crate::const_new! {
        /// A tree that has yet to be [made](Tree::make).
        pub fn new() -> Self {
            #[cfg(not(loom))]
            let stripes = [const { Stripe::new() }; STRIPES as usize];
            #[cfg(loom)]
            let stripes = core::array::from_fn(|_| Stripe::new());
            Self {
                groups: Table::new(),
                belows: Table::new(),
                contexts: Table::new(),
                stripes,
                topology: Lock::new(Topology::new()),
                key: Key::new(),
                walks: Walks::new(),
                watches: Watches::new(),
                root: AtomicU32::new(UNMADE),
                source: AtomicPtr::new((&raw const SYSTEM).cast_mut()),
                nr_threads: AtomicU32::new(1),
                deferred: AtomicBool::new(false),
                #[cfg(all(loom, test))]
                weakened: None,
            }
        }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn weakened(step: Option<Weakened>) -> Self {
        Self { weakened: step, ..Self::new() }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn is_weakened(&self, step: Weakened) -> bool {
        self.weakened == Some(step)
    }

    /// Makes the root, once; later calls change nothing. Answers whether there is a root now:
    /// `false` means that `source` has no memory.
    pub fn make(&self, root: Root, source: &'static Source) -> bool {
        if self.root.load(Ordering::Acquire) != UNMADE {
            return true;
        }
        let mut topology = lock(&self.topology);
        if self.root.load(Ordering::Acquire) != UNMADE {
            return true;
        }
        self.source.store(core::ptr::from_ref(source).cast_mut(), Ordering::Relaxed);
        if !topology.make_root(self, root) {
            return false;
        }
        self.key.draw();
        let kind = match root {
            Root::Untracked => UNTRACKED,
            Root::Accounted => ACCOUNTED,
        };
        // Release pairs with the Acquire loads of `root`: who sees the kind sees the records.
        self.root.store(kind, Ordering::Release);
        true
    }

    /// Whether there is a root. Acquire pairs with the Release in `make`: who sees one sees the key too.
    pub(crate) fn is_made(&self) -> bool {
        self.root.load(Ordering::Acquire) != UNMADE
    }

    /// Whether the root is a payer.
    #[inline]
    pub fn root_kind(&self) -> Root {
        match self.root.load(Ordering::Acquire) {
            ACCOUNTED => Root::Accounted,
            _ => Root::Untracked,
        }
    }

    /// Where the tree's records come from.
    pub fn source(&self) -> &'static Source {
        // SAFETY: the pointer was made from a `&'static Source` (`new`, `make`).
        unsafe { &*self.source.load(Ordering::Relaxed) }
    }

    /// Tells how many threads charge, which bounds what each may take ahead.
    pub fn set_nr_threads(&self, n: u32) {
        // Relaxed: only sizes batches.
        self.nr_threads.store(n.max(1), Ordering::Relaxed);
    }

    /// Bytes of address space that groups, contexts and the index of names have mapped.
    pub fn metadata_bytes(&self) -> usize {
        self.groups.mapped_bytes()
            + self.belows.mapped_bytes()
            + self.contexts.mapped_bytes()
            + self.watches.mapped_bytes()
            + lock(&self.topology).index.mapped_bytes()
    }

    // ---- locks and walks ----------------------------------------------------------------

    pub(crate) fn lock_stripe(&self, stripe: u32) -> Guard<'_, ()> {
        lock(&self.stripe(stripe).lock)
    }

    fn stripe(&self, stripe: u32) -> &Stripe {
        &self.stripes[(stripe % STRIPES) as usize]
    }

    /// The number of the `nth` tree of those that may be deep, or of the others: each has one of its own, until
    /// there were some 2^31 of them, and the locks come round.
    pub(crate) fn stripe_of(is_deep: bool, nth: u32) -> u32 {
        let (first, locks) = if is_deep { (SHALLOW, DEEP) } else { (0, SHALLOW) };
        nth / locks % (u32::MAX / STRIPES) * STRIPES + first + nth % locks
    }

    /// Whether the lock of a tree of this number is the `nth` of all.
    pub(crate) fn has_lock(stripe: u32, nth: u32) -> bool {
        stripe % STRIPES == nth
    }

    /// Whether a lock is one for deep trees.
    pub(crate) fn is_deep(stripe: u32) -> bool {
        stripe % STRIPES >= SHALLOW
    }

    /// What is charged to top-level groups with this lock.
    pub(crate) fn usage_of_trees(&self, stripe: u32) -> u64 {
        self.stripe(stripe).usage.load(Ordering::Relaxed)
    }

    /// Called with the stripe locked.
    fn add_to_trees(&self, stripe: u32, bytes: u64) {
        let usage = self.usage_of_trees(stripe).wrapping_add(bytes);
        self.stripe(stripe).usage.store(usage, Ordering::Relaxed);
    }

    /// Called with the stripe locked.
    pub(crate) fn sub_from_trees(&self, stripe: u32, bytes: u64) {
        self.add_to_trees(stripe, bytes.wrapping_neg());
    }

    /// How many stripes there are: `0 .. nr_stripes()` are all locks of trees, in lock order.
    pub(crate) const fn nr_stripes() -> u32 {
        STRIPES
    }

    /// The record of `tag`, with its stripe locked. `None`: nobody, or no such context.
    ///
    /// A record that nobody holds on to may be reused in another tree between the look and the
    /// lock, so the look is repeated under the lock; it may also be idle.
    pub(crate) fn lock_tag(&self, tag: Tag) -> Option<(Guard<'_, ()>, &Context)> {
        if tag.is_nobody() {
            return None;
        }
        let context = self.contexts.get(tag.to_bits())?;
        loop {
            let stripe = context.stripe();
            let guard = self.lock_stripe(stripe);
            if context.stripe() == stripe || !step!(self, StripeAgain) {
                return Some((guard, context));
            }
        }
    }

    /// The same, if the payer's generation is still in use.
    pub(crate) fn lock_payer(&self, payer: Payer) -> Option<(Guard<'_, ()>, &Context)> {
        let (guard, context) = self.lock_tag(payer.tag)?;
        let meant = context.generation() == payer.generation || !step!(self, Generation);
        (meant && !context.is_idle()).then_some((guard, context))
    }

    /// The record of `group`, with its stripe locked; `None`: the reference is stale. While the
    /// guard lives it does not become stale.
    pub(crate) fn lock_group(&self, group: GroupRef) -> Option<(Guard<'_, ()>, &Group)> {
        let record = self.group(group)?;
        let guard = self.lock_stripe(record.stripe());
        // A group ends under its stripe lock, so one that is still there now had this stripe.
        self.group(group).map(|record| (guard, record))
    }

    /// The slot of the group that pays for `context` now; `None`: nobody. Compresses the way.
    /// Called with the stripe locked, on a record that is not idle.
    pub(crate) fn resolve(&self, context: &Context) -> Option<u32> {
        debug_assert!(!context.is_idle(), "a free record leads nowhere");
        let first = match context.link() {
            Link::Group(group) => return Some(group),
            Link::Forward(target) => target,
        };
        let (last, group) = self.follow(first);
        if last != first {
            // INVARIANT: the new target is pinned before the old one is let go.
            self.pin_target(last);
            context.forward_to(last);
            self.unpin_locked(first);
        }
        group
    }

    /// The end of the way of forwards that begins at `tag`.
    pub(crate) fn follow(&self, mut tag: Tag) -> (Tag, Option<u32>) {
        loop {
            let Some(context) = self.context(tag) else { return (Tag::NOBODY, None) };
            match context.link() {
                Link::Group(group) => return (tag, Some(group)),
                Link::Forward(next) => tag = next,
            }
        }
    }

    pub(crate) fn context(&self, tag: Tag) -> Option<&Context> {
        if tag.is_nobody() { None } else { self.contexts.get(tag.to_bits()) }
    }

    pub(crate) fn pin_target(&self, tag: Tag) {
        if let Some(context) = self.context(tag).filter(|_| step!(self, PinTarget)) {
            context.add_pin();
        }
    }

    /// Takes a pin away and frees what is idle then. Called with the stripe locked.
    pub(crate) fn unpin_locked(&self, tag: Tag) {
        let Some(context) = self.context(tag) else { return };
        context.sub_pin();
        if context.is_idle() {
            self.release(tag);
        }
    }

    /// Frees an idle record, and those that it led to if they are idle then: a loop along the
    /// forwards, no recursion. Called with the stripe locked.
    #[cold]
    fn release(&self, mut tag: Tag) {
        // All of them lead to the same end.
        let mut end = None;
        while let Some(context) = self.context(tag) {
            if !context.is_idle() {
                return;
            }
            let Link::Forward(target) = context.link() else {
                debug_assert!(false, "an online context is pinned");
                return;
            };
            let (_, group) = *end.get_or_insert_with(|| self.follow(target));
            if let Some(group) = group.and_then(|slot| self.groups.get(slot)) {
                group.sub_inherited_context();
            }
            if context.retire() {
                self.contexts.put(tag.to_bits());
            }
            let Some(next) = self.context(target) else { return };
            next.sub_pin();
            tag = target;
        }
    }

    /// The group in `slot` and its ancestors, as far as they count: not the untracked root.
    pub(crate) fn chain(&self, slot: u32) -> impl Iterator<Item = (u32, &Group)> {
        let start = if self.counts(slot) { self.groups.get(slot) } else { None };
        core::iter::successors(start.map(|group| (slot, group)), |(_, group)| {
            group.up().map(|up| (group.parent(), up))
        })
    }

    /// Whether the group in `slot` is charged: every one but the untracked root.
    pub(crate) fn counts(&self, slot: u32) -> bool {
        slot != 0 || self.root_kind() == Root::Accounted
    }

    pub(crate) fn ref_to(slot: u32, group: &Group) -> GroupRef {
        GroupRef { index: slot, generation: group.generation() }
    }

    /// The record of `group`, if the group is in the tree.
    pub(crate) fn group(&self, group: GroupRef) -> Option<&Group> {
        self.record(group).filter(|record| record.is_in_tree())
    }

    /// The record of `group`, if the reference is not stale: the group may have ended.
    pub(crate) fn record(&self, group: GroupRef) -> Option<&Group> {
        self.groups.get(group.index).filter(|record| record.generation() == group.generation)
    }

    // ---- charging -----------------------------------------------------------------------

    /// Charges the payer and all its ancestors, at every level or at none.
    ///
    /// A payer that is gone, or whose group went to an untracked root, pays nothing: the answer
    /// says [`Tag::NOBODY`].
    ///
    /// # Errors
    ///
    /// [`OverLimit`] names the lowest group whose `max` refused. Nothing changed then.
    pub fn charge(&self, payer: Payer, want: Want) -> Result<Charged, OverLimit> {
        #[cfg(all(loom, test))]
        if self.is_weakened(Weakened::OneLock) {
            return self.charge_with_two_locks(payer, want);
        }
        let nobody = Charged { tag: Tag::NOBODY, bytes: want.need, ..Charged::default() };
        let Some((_guard, context)) = self.lock_payer(payer) else { return Ok(nobody) };
        let Some(slot) = self.resolve(context) else { return Ok(nobody) };
        self.charge_locked(payer.tag, context, slot, want)
    }

    /// [`charge`](Tree::charge) of exactly `bytes` for a large object, which is counted as one in the
    /// same step.
    ///
    /// # Errors
    ///
    /// As for `charge`.
    pub fn charge_large(&self, payer: Payer, bytes: u64) -> Result<Charged, OverLimit> {
        let nobody = Charged { tag: Tag::NOBODY, bytes, ..Charged::default() };
        let Some((_guard, context)) = self.lock_payer(payer) else { return Ok(nobody) };
        let Some(slot) = self.resolve(context) else { return Ok(nobody) };
        let charged = self.charge_locked(payer.tag, context, slot, Want::exactly(bytes))?;
        self.change_large(slot, |large| large + bytes);
        Ok(charged)
    }

    pub(crate) fn charge_locked(
        &self,
        tag: Tag,
        context: &Context,
        slot: u32,
        want: Want,
    ) -> Result<Charged, OverLimit> {
        let mut headroom = u64::MAX;
        for (slot, group) in self.chain(slot) {
            let left = group.counter.headroom();
            if left <= want.need && !group.counter.fits(want.need, want.over) {
                return Err(OverLimit {
                    group: Self::ref_to(slot, group),
                    requested: want.need,
                    usage: group.counter.usage(),
                    max: group.counter.max().bytes().unwrap_or(u64::MAX),
                });
            }
            headroom = headroom.min(left);
        }
        let ahead = self.ahead(slot, want, headroom);
        let bytes = want.need + ahead;
        let charged = self.add_locked(tag, context, slot, bytes);
        debug_assert!(
            self.chain(slot).all(|(_, group)| group.counter.is_within(want.over)),
            "a charge that is not forced stays within every limit"
        );
        Ok(charged)
    }

    /// What may be charged beyond the need: little enough that all threads together leave most
    /// of the headroom to requests.
    fn ahead(&self, slot: u32, want: Want, headroom: u64) -> u64 {
        let left = headroom.saturating_sub(want.need);
        if want.ahead == 0 || left < EXACT_BELOW {
            return 0;
        }
        if self.chain(slot).any(|(_, group)| group.is_exact()) {
            return 0;
        }
        // Relaxed: only sizes batches.
        let threads = u64::from(self.nr_threads.load(Ordering::Relaxed));
        want.ahead.min(left / (4 * threads))
    }

    pub(crate) fn add_locked(&self, tag: Tag, context: &Context, slot: u32, bytes: u64) -> Charged {
        let mut charged = Charged { tag, bytes, ..Charged::default() };
        self.change_usage(slot, |slot, group| {
            group.counter.add(bytes);
            if group.counter.is_alarming() {
                charged.tell_of(slot, group);
            }
        });
        context.add_bytes(bytes);
        self.add_to_trees(context.stripe(), bytes);
        charged
    }

    /// Has `change` change the usage of the group in `slot` and of its ancestors, as far as they
    /// count, and sees to what follows from usage.
    #[inline(always)]
    fn change_usage(&self, slot: u32, mut change: impl FnMut(u32, &Group)) {
        let mut claims = Claims::default();
        for (slot, group) in self.chain(slot) {
            claims = group.claims_after(claims, || change(slot, group));
            self.usage_changed(group);
        }
    }

    /// Charges whatever the limits say: for a thread that reclaims. Counts a `forced` event on
    /// the lowest group that is over its `max` then.
    pub fn force(&self, payer: Payer, bytes: u64) -> Charged {
        let nobody = Charged { tag: Tag::NOBODY, bytes, ..Charged::default() };
        let Some((_guard, context)) = self.lock_payer(payer) else { return nobody };
        let Some(slot) = self.resolve(context) else { return nobody };
        let charged = self.add_locked(payer.tag, context, slot, bytes);
        if let Some((level, _)) = self.first_over_max(slot) {
            self.count_locked(level, EventKind::Forced);
        }
        charged
    }

    /// Gives `bytes` that were charged through `tag` back to all levels.
    pub fn uncharge(&self, tag: Tag, bytes: u64) {
        if let Some((_guard, context)) = self.lock_tag(tag) {
            self.uncharge_locked(tag, context, bytes);
        }
    }

    /// The same for a large object, which is counted as one no longer.
    pub fn uncharge_large(&self, tag: Tag, bytes: u64) {
        let Some((_guard, context)) = self.lock_tag(tag) else { return };
        if let Some(slot) = self.resolve(context) {
            self.change_large(slot, |large| large.saturating_sub(bytes));
        }
        self.uncharge_locked(tag, context, bytes);
    }

    /// Called with the stripe locked.
    pub(crate) fn change_large(&self, slot: u32, change: impl Fn(u64) -> u64) {
        for (_, group) in self.chain(slot) {
            group.counter.set_large(change(group.counter.large()));
        }
    }

    /// [`uncharge`](Tree::uncharge) for each of `entries`, with one lock for each run of one
    /// tree, of a few at most.
    pub fn uncharge_all(&self, entries: &[(Tag, u64)]) {
        for entries in entries.chunks(RUN) {
            self.uncharge_run(entries);
        }
    }

    fn uncharge_run(&self, entries: &[(Tag, u64)]) {
        let mut held: Option<(u32, Guard<'_, ()>)> = None;
        for &(tag, bytes) in entries {
            let Some(context) = self.context(tag).filter(|_| bytes != 0) else { continue };
            // The entry's bytes keep the record, and so its stripe.
            let stripe = context.stripe();
            if held.as_ref().is_none_or(|(locked, _)| *locked != stripe) {
                drop(held.take());
                held = Some((stripe, self.lock_stripe(stripe)));
            }
            self.uncharge_locked(tag, context, bytes);
        }
    }

    pub(crate) fn uncharge_locked(&self, tag: Tag, context: &Context, bytes: u64) -> Option<u32> {
        // No bytes keep no record: the tag may be anybody's by now.
        if bytes == 0 {
            return None;
        }
        let slot = self.resolve(context);
        if let Some(slot) = slot {
            self.change_usage(slot, |_, group| group.counter.sub(bytes));
            self.sub_from_trees(context.stripe(), bytes);
        }
        context.sub_bytes(bytes);
        if context.is_idle() {
            self.release(tag);
        }
        slot
    }

    // ---- pins ---------------------------------------------------------------------------

    /// Keeps the payer's context: its tag will not be reused. `false`: it is gone already.
    pub fn pin(&self, payer: Payer) -> bool {
        let Some((_guard, context)) = self.lock_payer(payer) else { return false };
        context.add_pin();
        true
    }

    /// Gives a pin back.
    pub fn unpin(&self, tag: Tag) {
        if let Some((_guard, _)) = self.lock_tag(tag) {
            self.unpin_locked(tag);
        }
    }

    /// Whether `tag` belongs to a group that is gone.
    pub fn is_forwarded(&self, tag: Tag) -> bool {
        self.lock_tag(tag)
            .is_some_and(|(_guard, context)| matches!(context.link(), Link::Forward(_)))
    }

    /// The group that pays for `tag` now, without a handle; `None`: nobody.
    pub fn owner(&self, tag: Tag) -> Option<GroupRef> {
        let (_guard, context) = self.lock_tag(tag)?;
        if context.is_idle() {
            return None;
        }
        let slot = self.resolve(context)?;
        self.groups.get(slot).map(|group| Self::ref_to(slot, group))
    }

    /// The number of the top-level tree that `tag` belongs to: that of whoever it leads to, and never
    /// another's while anything is charged through it. Two trees have one number only after 2^32 others.
    #[inline]
    #[must_use]
    pub fn number_of(&self, tag: Tag) -> u32 {
        // Relaxed: what is charged through the context keeps the number as it was when the caller was
        // given something with this tag; of a tag that is not in use any answer will do.
        self.context(tag).map_or(0, Context::stripe)
    }

    /// The number of the top-level tree that `group` is in: [`number_of`](Tree::number_of) each tag that
    /// leads into its subtree. `None`: the reference is stale.
    #[must_use]
    pub fn number_of_group(&self, group: GroupRef) -> Option<u32> {
        self.lock_group(group).map(|(_guard, record)| record.stripe())
    }

    /// Whether the group that pays for `tag` is `top` or below it. Everything is below the
    /// root, what is charged to nobody too.
    pub fn contains(&self, top: GroupRef, tag: Tag) -> bool {
        if top.is_root() {
            return true;
        }
        let Some((_guard, context)) = self.lock_tag(tag) else { return false };
        !context.is_idle() && self.resolve(context).is_some_and(|slot| self.is_below(slot, top))
    }

    pub(crate) fn is_below(&self, slot: u32, top: GroupRef) -> bool {
        top.is_root() || self.chain(slot).any(|(level, group)| Self::ref_to(level, group) == top)
    }

    // ---- events -------------------------------------------------------------------------

    /// Counts an event on `group` and, as its subtree's, on its ancestors.
    pub fn count(&self, group: GroupRef, kind: EventKind) {
        if let Some((_guard, _)) = self.lock_group(group) {
            self.count_locked(group.index, kind);
        }
    }

    /// Counts a refusal on `group`: `max` is exact, without batches, for a while.
    pub fn refuse(&self, group: GroupRef) {
        if let Some((_guard, record)) = self.lock_group(group) {
            record.set_exact_from(crate::clock::now_ms());
            self.count_locked(group.index, EventKind::Oom);
        }
    }

    /// All levels count, the untracked root too: what happens in the whole process.
    fn count_locked(&self, slot: u32, kind: EventKind) {
        for (level, group) in self.ancestors(slot) {
            // First among those of the groups below: who reads it last never finds fewer there.
            if level != slot
                && let Some(below) = group.below()
            {
                below.events.count(kind);
            }
            group.events.count(kind);
            self.note_event(group, kind);
        }
    }
}

#[cfg(not(loom))]
impl Tree {
    /// # Safety
    ///
    /// The stripe is locked and its guard was forgotten.
    pub(crate) unsafe fn force_unlock_stripe(&self, stripe: u32) {
        // SAFETY: by contract.
        unsafe { self.stripe(stripe).lock.force_unlock() };
    }
}
