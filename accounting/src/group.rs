//! A node of the tree, and the reference to it that code passes about.

use core::ptr;

use crate::below::Below;
use crate::counter::Counter;
use crate::event::{EventCounters, Events};
use crate::fatal::fatal;
use crate::limit::Limit;
use crate::name::Kept;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::table::{NONE, Record};

/// Names a group: an index and a generation, so that a stale one is recognised.
///
/// It is `Copy` and counts nothing: who needs the group to stay takes a handle with
/// [`Tree::get`](crate::Tree::get) and gives it back with [`Tree::put`](crate::Tree::put); who needs
/// no more than that the reference stays its own [holds](crate::Tree::hold) the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupRef {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl GroupRef {
    /// The root of the tree.
    pub const ROOT: GroupRef = GroupRef { index: 0, generation: 0 };

    /// The slot of the group: small, dense, reused after the group is gone.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which user of the slot this is.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }

    /// Whether this is the root.
    #[must_use]
    pub const fn is_root(self) -> bool {
        self.index == 0
    }

    /// The two numbers in one word, for an atomic slot.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | self.index as u64
    }

    /// What [`to_bits`](GroupRef::to_bits) made.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
        Self {
            index: u32::from_le_bytes([a, b, c, d]),
            generation: u32::from_le_bytes([e, f, g, h]),
        }
    }
}

/// What happens to an allocation that a limit refuses after reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLimit {
    /// It is refused: `alloc` answers null.
    #[default]
    Fail,
    /// It is let through and counted, without a bound.
    Overcommit,
    /// It is let through and counted while usage stays within this many bytes over the limit.
    OvercommitBy(u64),
}

impl OnLimit {
    /// How far over a limit this policy lets a charge go.
    #[must_use]
    pub const fn allowance(self) -> u64 {
        match self {
            OnLimit::Fail => 0,
            OnLimit::Overcommit => u64::MAX,
            OnLimit::OvercommitBy(bytes) => bytes,
        }
    }

    const fn from_allowance(bytes: u64) -> Self {
        match bytes {
            0 => OnLimit::Fail,
            u64::MAX => OnLimit::Overcommit,
            _ => OnLimit::OvercommitBy(bytes),
        }
    }
}

/// What a group is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The hard limit.
    pub max: Limit,
    /// Where background reclaim begins.
    pub high: Limit,
    /// Best-effort protection, in bytes.
    pub low: u64,
    /// Protection, in bytes.
    pub min: u64,
    /// The policy at the limit; `None` copies the parent's.
    pub on_limit: Option<OnLimit>,
    /// How many levels there may be below it; `None`: [`DEPTH`](crate::DEPTH) below the top of a tree, else no
    /// bound of its own.
    pub max_depth: Option<Limit>,
}

/// Where a group stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum State {
    /// The slot is free.
    Free,
    /// It has handles: users' and its online children's.
    Online,
    /// The last handle is gone, and so is its name; `offline` has yet to run, after that of its children.
    Dying,
    /// Its context leads to the parent's, and nothing is charged to it. It has yet to leave the list of the
    /// parent's children, and keeps that in the tree.
    Ended,
    /// It is out of the tree. Somebody holds the record.
    Held,
}

/// A bound on a number of groups or levels as a word: `u32::MAX` for none, or for more than there can be.
fn number_of(limit: Limit) -> u32 {
    limit.bytes().and_then(|bound| u32::try_from(bound).ok()).unwrap_or(u32::MAX)
}

/// What `life` holds: the state, the length of the name, and the number of the top-level tree, whole, as the
/// context has it. In one word: who sees a group in the tree sees its lock.
const STATE: u64 = (1 << NAME_SHIFT) - 1;
const NAME_SHIFT: u32 = 8;
const STRIPE_SHIFT: u32 = 16;

/// Handles that a group may have, users' and children's: as `Arc`.
const MAX_HANDLES: u32 = 1 << 31;

/// For how long after a refusal a group's charges take nothing ahead.
const EXACT_MS: u32 = 10;

/// A group's record. Links, name, state and the step of `handles` to 0 are guarded by the
/// topology lock (the end of a group by the stripe lock too); counter and context by the stripe lock of the tree.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) counter: Counter,
    /// The next level that a charge passes; null: there is none. It changes only while no context
    /// leads here.
    up: AtomicPtr<Group>,
    /// The slot's record of what is watched (`watch.rs`). It outlives the group.
    watch: AtomicU32,
    exact_until: AtomicU32,
    pub(crate) events: EventCounters,
    pub(crate) links: Links,
    generation: AtomicU32,
    life: AtomicU64,
    handles: AtomicU32,
    /// What keeps the record from being another group's: see `topology.rs`.
    holds: AtomicU32,
    context: AtomicU32,
    /// Null until the first child is made.
    below: AtomicPtr<Below>,
    name: AtomicPtr<u8>,
    allowance: AtomicU64,
    reclaimed: AtomicU64,
}

/// A group's place in the tree.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) parent: AtomicU32,
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// The next in the one chain that the record is in: of its bucket of the name index while it is online,
    /// then maybe of groups that wait for `offline`, and of free records.
    pub(crate) chain: AtomicU32,
    /// `u32::MAX`, as many as there can be, for no bound.
    max_descendants: AtomicU32,
    max_depth: AtomicU32,
    /// See `objects.rs`; 0 for what was not set, else one more than the bound, and `u32::MAX` for none.
    max_objects: AtomicU32,
    nr_objects: AtomicU32,
}

impl Record for Group {
    fn new() -> Self {
        let none = || AtomicU32::new(NONE);
        let zero = || AtomicU32::new(0);
        Self {
            counter: Counter::new(),
            up: AtomicPtr::new(ptr::null_mut()),
            watch: none(),
            exact_until: zero(),
            events: EventCounters::new(),
            links: Links {
                parent: none(),
                next: none(),
                prev: none(),
                chain: none(),
                max_descendants: AtomicU32::new(u32::MAX),
                max_depth: AtomicU32::new(u32::MAX),
                max_objects: zero(),
                nr_objects: zero(),
            },
            generation: zero(),
            life: AtomicU64::new(State::Free as u64),
            handles: zero(),
            holds: zero(),
            context: zero(),
            below: AtomicPtr::new(ptr::null_mut()),
            name: AtomicPtr::new(ptr::null_mut()),
            allowance: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.links.chain
    }

    fn is_empty(&self) -> bool {
        self.state() == State::Free
            && self.handles() == 0
            && self.holds() == 0
            && self.nr_children() == 0
    }
}

// Relaxed throughout: every word here is written under the topology or the stripe lock, which
// orders it; a reader without the lock gets a value that may be stale and is told so.
impl Group {
    /// Makes a taken record a live group with one handle.
    pub(crate) fn bring_online(
        &self,
        parent: u32,
        up: Option<&Group>,
        context: u32,
        stripe: u32,
        kept: Kept,
    ) {
        self.counter.reset();
        let up = up.map_or(ptr::null_mut(), |up| ptr::from_ref(up).cast_mut());
        self.up.store(up, Ordering::Relaxed);
        self.events.reset();
        let links = &self.links;
        links.parent.store(parent, Ordering::Relaxed);
        for word in [&links.next, &links.prev] {
            word.store(NONE, Ordering::Relaxed);
        }
        self.set_max_descendants(Limit::Max);
        self.set_max_depth(Limit::Max);
        for word in [&links.max_objects, &links.nr_objects] {
            word.store(0, Ordering::Relaxed);
        }
        self.context.store(context, Ordering::Relaxed);
        self.exact_until.store(0, Ordering::Relaxed);
        self.reclaimed.store(0, Ordering::Relaxed);
        self.name.store(kept.bytes, Ordering::Relaxed);
        self.handles.store(1, Ordering::Relaxed);
        self.holds.store(1, Ordering::Relaxed);
        let life = u64::from(stripe) << STRIPE_SHIFT | u64::from(kept.len) << NAME_SHIFT;
        self.life.store(life | State::Online as u64, Ordering::Relaxed);
    }

    /// Ends the use of the record: the next user of the slot has another generation. `false`: there is
    /// none left, and the slot is not used again, so that a reference from 2^32 groups ago names nobody.
    pub(crate) fn retire(&self) -> bool {
        self.set_state(State::Free);
        let next = self.generation().checked_add(1);
        self.generation.store(next.unwrap_or(u32::MAX), Ordering::Release);
        next.is_some_and(|next| next != u32::MAX)
    }

    /// Whether its generations are used up.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.generation() == u32::MAX
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> State {
        match self.life.load(Ordering::Relaxed) & STATE {
            0 => State::Free,
            1 => State::Online,
            2 => State::Dying,
            3 => State::Ended,
            _ => State::Held,
        }
    }

    /// Whether contexts lead here, and there may be children.
    pub(crate) fn is_in_tree(&self) -> bool {
        matches!(self.state(), State::Online | State::Dying)
    }

    /// Under the topology lock.
    pub(crate) fn set_state(&self, state: State) {
        let rest = self.life.load(Ordering::Relaxed) & !STATE;
        self.life.store(rest | state as u64, Ordering::Relaxed);
    }

    pub(crate) fn handles(&self) -> u32 {
        self.handles.load(Ordering::Relaxed)
    }

    /// One handle more, for a caller that has one or a hold; answers whether it is the first. Relaxed, as
    /// for `Arc`: the new handle is made from one that exists.
    ///
    /// As for `Arc`, too, more than there can be ends the process, long before the number comes round: what
    /// is over the bound when that is noticed is as many as there are threads.
    pub(crate) fn get_handle(&self) -> bool {
        let before = self.handles.fetch_add(1, Ordering::Relaxed);
        if before >= MAX_HANDLES {
            fatal("memcg: more than 2^31 handles of one group: they were leaked\n");
        }
        before == 0
    }

    /// As if that many handles had been leaked.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn leak_handles(&self, nr: u32) {
        self.handles.fetch_add(nr, Ordering::Relaxed);
    }

    /// As if the slot had been used that often.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn wear(&self, generation: u32) {
        self.generation.store(generation, Ordering::Release);
    }

    pub(crate) fn holds(&self) -> u32 {
        self.holds.load(Ordering::Relaxed)
    }

    /// Keeps the record, for a caller that keeps it already. It can't wrap: see `docs/testing.md`.
    pub(crate) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// The same for a caller that does not; `false`: nobody does any more.
    pub(crate) fn try_hold(&self) -> bool {
        let more = |holds: u32| (holds != 0).then(|| holds + 1);
        self.holds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Ends a hold; `true`: it was the last, and the caller releases the record. AcqRel: what was done
    /// under any hold comes before that.
    pub(crate) fn let_go(&self) -> bool {
        self.holds.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// One handle less, unless it is the last. Release: what was done through the handle comes
    /// before the offline that the last one brings (which runs under the topology lock).
    pub(crate) fn put_handle_unless_last(&self) -> bool {
        let mut handles = self.handles();
        while handles > 1 {
            match self.handles.compare_exchange_weak(
                handles,
                handles - 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => handles = now,
            }
        }
        false
    }

    /// One handle less; answers how many are left. Called with the topology lock held.
    pub(crate) fn put_handle(&self) -> u32 {
        self.handles.fetch_sub(1, Ordering::AcqRel) - 1
    }

    pub(crate) fn context(&self) -> u32 {
        self.context.load(Ordering::Relaxed)
    }

    pub(crate) fn stripe(&self) -> u32 {
        let [_, _, stripe @ .., _, _] = self.life.load(Ordering::Relaxed).to_le_bytes();
        u32::from_le_bytes(stripe)
    }

    /// What it knows of the groups below it, once it has had a child. Acquire pairs with the Release in
    /// `set_below`.
    pub(crate) fn below(&self) -> Option<&Below> {
        // SAFETY: null, or a record of a table that lives as long as this one's.
        unsafe { self.below.load(Ordering::Acquire).as_ref() }
    }

    /// Under the topology lock.
    pub(crate) fn set_below(&self, below: Option<&Below>) {
        let below = below.map_or(ptr::null_mut(), |below| ptr::from_ref(below).cast_mut());
        self.below.store(below, Ordering::Release);
    }

    fn of_below(&self, word: impl Fn(&Below) -> &AtomicU32) -> Option<u32> {
        self.below().map(|below| word(below).load(Ordering::Relaxed))
    }

    pub(crate) fn first_child(&self) -> u32 {
        self.of_below(|below| &below.first_child).unwrap_or(NONE)
    }

    pub(crate) fn nr_children(&self) -> u32 {
        self.of_below(|below| &below.nr_children).unwrap_or(0)
    }

    /// Online and dying groups below it.
    pub(crate) fn nr_descendants(&self) -> u32 {
        self.of_below(|below| &below.nr_descendants).unwrap_or(0)
    }

    pub(crate) fn max_descendants(&self) -> u32 {
        self.links.max_descendants.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_descendants(&self, limit: Limit) {
        self.links.max_descendants.store(number_of(limit), Ordering::Relaxed);
    }

    /// Levels that there may be below it; `u32::MAX`: no bound.
    pub(crate) fn max_depth_word(&self) -> u32 {
        self.links.max_depth.load(Ordering::Relaxed)
    }

    pub(crate) fn max_depth(&self) -> Limit {
        match self.max_depth_word() {
            u32::MAX => Limit::Max,
            levels => Limit::Bytes(levels.into()),
        }
    }

    pub(crate) fn set_max_depth(&self, limit: Limit) {
        self.links.max_depth.store(number_of(limit), Ordering::Relaxed);
    }

    /// Objects that count for it or for a group below it.
    pub(crate) fn nr_objects(&self) -> u32 {
        self.links.nr_objects.load(Ordering::Relaxed)
    }

    /// One more, if there are less than `max`; else answers how many there are. Release, as in `Below::join`.
    pub(crate) fn join_objects(&self, max: u64) -> Result<(), u64> {
        let more = |nr: u32| (u64::from(nr) < max).then(|| nr.checked_add(1)).flatten();
        let nr = &self.links.nr_objects;
        nr.fetch_update(Ordering::Release, Ordering::Relaxed, more).map(drop).map_err(u64::from)
    }

    pub(crate) fn leave_objects(&self) {
        self.links.nr_objects.fetch_sub(1, Ordering::Release);
    }

    /// `None`: nothing was set.
    pub(crate) fn max_objects(&self) -> Option<Limit> {
        match self.links.max_objects.load(Ordering::Relaxed) {
            0 => None,
            u32::MAX => Some(Limit::Max),
            more => Some(Limit::Bytes(u64::from(more) - 1)),
        }
    }

    pub(crate) fn set_max_objects(&self, limit: Limit) {
        let word = number_of(limit).saturating_add(1);
        self.links.max_objects.store(word, Ordering::Relaxed);
    }

    /// Events of the group itself: those of its subtree without those below it. Called with the stripe locked;
    /// trees below an untracked root, which has none, count under other locks too.
    pub(crate) fn local_events(&self) -> Events {
        let all = self.events.read();
        all.without(self.below().map_or_else(Events::default, |below| below.events.read()))
    }

    pub(crate) fn next_sibling(&self) -> u32 {
        self.links.next.load(Ordering::Relaxed)
    }

    /// The next level that a charge passes: the parent, where that counts.
    #[inline]
    pub(crate) fn up(&self) -> Option<&Group> {
        // SAFETY: null, or a record of the same table: it lives as long as this one.
        unsafe { self.up.load(Ordering::Relaxed).as_ref() }
    }

    pub(crate) fn parent(&self) -> u32 {
        self.links.parent.load(Ordering::Relaxed)
    }

    /// Contexts of gone groups that this one has inherited. Under the stripe lock.
    pub(crate) fn inherited_contexts(&self) -> u32 {
        self.of_below(|below| &below.inherited_contexts).unwrap_or(0)
    }

    pub(crate) fn add_inherited_contexts(&self, n: u32) {
        self.set_inherited_contexts(self.inherited_contexts() + n);
    }

    pub(crate) fn sub_inherited_context(&self) {
        self.set_inherited_contexts(self.inherited_contexts().saturating_sub(1));
    }

    /// They are those of groups that were below it.
    fn set_inherited_contexts(&self, n: u32) {
        if let Some(below) = self.below() {
            below.inherited_contexts.store(n, Ordering::Relaxed);
        }
    }

    /// Bytes of the subtree that reclaim has given back, on behalf of whomever, or that became a
    /// parent's.
    pub(crate) fn reclaimed(&self) -> u64 {
        self.reclaimed.load(Ordering::Relaxed)
    }

    /// Under the stripe lock.
    pub(crate) fn add_reclaimed(&self, bytes: u64) {
        self.reclaimed.store(self.reclaimed().wrapping_add(bytes), Ordering::Relaxed);
    }

    pub(crate) fn watch(&self) -> u32 {
        self.watch.load(Ordering::Relaxed)
    }

    /// Under the topology or the stripe lock.
    pub(crate) fn set_watch(&self, word: u32) {
        self.watch.store(word, Ordering::Relaxed);
    }

    pub(crate) fn kept_name(&self) -> Kept {
        let [_, len, ..] = self.life.load(Ordering::Relaxed).to_le_bytes();
        Kept { bytes: self.name.load(Ordering::Relaxed), len }
    }

    pub(crate) fn on_limit(&self) -> OnLimit {
        OnLimit::from_allowance(self.allowance.load(Ordering::Relaxed))
    }

    pub(crate) fn set_on_limit(&self, policy: OnLimit) {
        self.allowance.store(policy.allowance(), Ordering::Relaxed);
    }

    /// Whether charges here take nothing ahead now: set for [`EXACT_MS`] by a refusal.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact_until.load(Ordering::Relaxed) != 0 && self.is_exact_at(crate::clock::now_ms())
    }

    /// The same at `now_ms`. The clock wraps, so a refusal of long ago may seem to lie ahead; but
    /// then it lies further ahead than a refusal can reach.
    pub(crate) fn is_exact_at(&self, now_ms: u32) -> bool {
        let until = self.exact_until.load(Ordering::Relaxed);
        until != 0 && (1..=EXACT_MS).contains(&until.wrapping_sub(now_ms))
    }

    /// Notes a refusal at `now_ms`. Called with the stripe locked.
    pub(crate) fn set_exact_from(&self, now_ms: u32) {
        self.exact_until.store(now_ms.wrapping_add(EXACT_MS).max(1), Ordering::Relaxed);
    }
}
