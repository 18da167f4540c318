//! A node of the tree, and the reference to it that code passes about.

use core::ptr;

use crate::counter::Counter;
use crate::event::EventCounters;
use crate::limit::Limit;
use crate::name::Kept;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::table::{NONE, Record};

/// Names a group: an index and a generation, so that a stale one is recognised.
///
/// It is `Copy` and counts nothing: who needs the group to stay takes a handle with
/// [`Tree::get`](crate::Tree::get) and gives it back with [`Tree::put`](crate::Tree::put).
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
}

/// Where a group stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// The slot is free.
    Free,
    /// It has handles or children.
    Online,
    /// Its last handle and child are gone; `offline` has yet to run.
    Dying,
}

/// For how long after a refusal a group's charges take nothing ahead.
const EXACT_MS: u32 = 10;

/// A group's record. Links, name, state and the step of `handles` to 0 are guarded by the
/// topology lock; counter and context by the stripe lock of the tree.
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
    state: AtomicU32,
    handles: AtomicU32,
    context: AtomicU32,
    stripe: AtomicU32,
    inherited_contexts: AtomicU32,
    name: AtomicPtr<u8>,
    name_len: AtomicU32,
    allowance: AtomicU64,
    reclaimed: AtomicU64,
    next_free: AtomicU32,
}

/// A group's place in the tree.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) parent: AtomicU32,
    pub(crate) first_child: AtomicU32,
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// The next group in the same bucket of the name index.
    pub(crate) same_bucket: AtomicU32,
    pub(crate) nr_children: AtomicU32,
    pub(crate) nr_descendants: AtomicU32,
    pub(crate) max_descendants: AtomicU64,
    /// The next group that waits for `offline`.
    pub(crate) next_dying: AtomicU32,
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
                first_child: none(),
                next: none(),
                prev: none(),
                same_bucket: none(),
                nr_children: zero(),
                nr_descendants: zero(),
                max_descendants: AtomicU64::new(u64::MAX),
                next_dying: none(),
            },
            generation: zero(),
            state: AtomicU32::new(State::Free as u32),
            handles: zero(),
            context: zero(),
            stripe: zero(),
            inherited_contexts: zero(),
            name: AtomicPtr::new(ptr::null_mut()),
            name_len: zero(),
            allowance: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            next_free: none(),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.next_free
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
        for word in [&links.first_child, &links.next, &links.prev, &links.next_dying] {
            word.store(NONE, Ordering::Relaxed);
        }
        links.nr_children.store(0, Ordering::Relaxed);
        links.nr_descendants.store(0, Ordering::Relaxed);
        links.max_descendants.store(u64::MAX, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        self.stripe.store(stripe, Ordering::Relaxed);
        self.inherited_contexts.store(0, Ordering::Relaxed);
        self.exact_until.store(0, Ordering::Relaxed);
        self.reclaimed.store(0, Ordering::Relaxed);
        self.name.store(kept.bytes, Ordering::Relaxed);
        self.name_len.store(u32::from(kept.len), Ordering::Relaxed);
        self.handles.store(1, Ordering::Relaxed);
        self.set_state(State::Online);
    }

    /// Ends the group: the next user of the slot has another generation.
    pub(crate) fn retire(&self) {
        self.set_state(State::Free);
        let next = self.generation().wrapping_add(1);
        self.generation.store(next, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Free,
            1 => State::Online,
            _ => State::Dying,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u32, Ordering::Relaxed);
    }

    pub(crate) fn handles(&self) -> u32 {
        self.handles.load(Ordering::Relaxed)
    }

    /// One handle more, for a caller that has one or holds the topology lock. Relaxed, as for
    /// `Arc`: the new handle is made from one that exists.
    pub(crate) fn get_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
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
        self.stripe.load(Ordering::Relaxed)
    }

    pub(crate) fn first_child(&self) -> u32 {
        self.links.first_child.load(Ordering::Relaxed)
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
        self.inherited_contexts.load(Ordering::Relaxed)
    }

    pub(crate) fn add_inherited_contexts(&self, n: u32) {
        self.inherited_contexts.store(self.inherited_contexts() + n, Ordering::Relaxed);
    }

    pub(crate) fn sub_inherited_context(&self) {
        let left = self.inherited_contexts().saturating_sub(1);
        self.inherited_contexts.store(left, Ordering::Relaxed);
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
        let len = u8::try_from(self.name_len.load(Ordering::Relaxed)).unwrap_or(u8::MAX);
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
