//! What an object is tagged with: a tiny record that names the group that pays now.
//!
//! ```text
//!   tag in memory ─► context ──(online)──► group
//!                       └──(group gone)──► context of the parent ─► …
//! ```
//!
//! A group has one context for its life. When the group goes, the context forwards to the
//! parent's: nothing that carries the tag is touched. Resolving follows forwards and
//! compresses them.
//!
//! # Invariants
//!
//! - `bytes` is what is charged through the context: tagged objects and unspent stock.
//! - `pins` counts: one while the group's record is its, one per context that forwards here, one per
//!   stock entry, one per open request. A record is free exactly when `bytes` and `pins` are 0;
//!   its generation moves on then, and the pin on its target is given back.
//! - Everything here changes under the stripe lock that `stripe` names (`stripe` itself under the
//!   one that it named before), and a context and all that it forwards to have the same stripe. The root's context where the root is untracked,
//!   [`Tag::NOBODY`], is no record at all.
//!
//! Source: `struct obj_cgroup` in `mm/memcontrol.c`; `struct mem_cgroup_kmem_context` of 2014.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::Record;

/// Names a context. It is what is written beside an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Tag(u32);

impl Tag {
    /// Nobody pays.
    pub const NOBODY: Tag = Tag(0);

    /// The tag with this number.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Tag {
        Tag(bits)
    }

    /// The number of the tag.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Whether nobody pays.
    #[must_use]
    pub const fn is_nobody(self) -> bool {
        self.0 == 0
    }
}

/// Who pays: a tag, and which user of that tag is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Payer {
    /// The context.
    pub tag: Tag,
    /// Its generation.
    pub generation: u32,
}

impl Payer {
    /// Nobody pays.
    pub const NOBODY: Payer = Payer { tag: Tag::NOBODY, generation: 0 };
}

/// Where a context leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// To the group in this slot, which is online or dying.
    Group(u32),
    /// To another context, the parent's when the group went.
    Forward(Tag),
}

/// Marks a link as a forward; the rest is the tag.
const FORWARD: u32 = 1 << 31;

/// A context's record.
#[derive(Debug)]
pub(crate) struct Context {
    /// While the record is free, the next free one.
    link: AtomicU32,
    /// The number of its top-level tree, which names the lock.
    stripe: AtomicU32,
    generation: AtomicU32,
    pins: AtomicU32,
    bytes: AtomicU64,
}

impl Record for Context {
    fn new() -> Self {
        Self {
            link: AtomicU32::new(FORWARD),
            stripe: AtomicU32::new(0),
            // 0 is the generation of nobody.
            generation: AtomicU32::new(1),
            pins: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn next_free(&self) -> &AtomicU32 {
        &self.link
    }

    fn is_empty(&self) -> bool {
        self.is_idle()
    }
}

// Relaxed throughout: the stripe lock orders these words. `stripe` itself is read before the
// lock is known, and read again under it (see `Tree::lock_tag`).
impl Context {
    /// Puts a taken record under the lock of `stripe`. Called with the stripe locked that the
    /// record had before, so that whoever found it by an old tag is not at work on it.
    pub(crate) fn move_to(&self, stripe: u32) {
        debug_assert!(self.is_idle(), "a record that is taken has no bytes and no pins");
        self.stripe.store(stripe, Ordering::Relaxed);
    }

    /// Makes a taken record the context of `group`, with the pin of its record. Called with
    /// the record's stripe locked.
    pub(crate) fn bring_online(&self, group: u32) {
        debug_assert!(self.is_idle(), "a record that is taken has no bytes and no pins");
        self.link.store(group, Ordering::Relaxed);
        self.pins.store(1, Ordering::Relaxed);
    }

    /// Where it leads, if it is not idle.
    pub(crate) fn link(&self) -> Link {
        let word = self.link.load(Ordering::Relaxed);
        if word & FORWARD == 0 { Link::Group(word) } else { Link::Forward(Tag(word & !FORWARD)) }
    }

    pub(crate) fn forward_to(&self, target: Tag) {
        self.link.store(FORWARD | target.0, Ordering::Relaxed);
    }

    pub(crate) fn stripe(&self) -> u32 {
        self.stripe.load(Ordering::Relaxed)
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn pins(&self) -> u32 {
        self.pins.load(Ordering::Relaxed)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.bytes() == 0 && self.pins() == 0
    }

    pub(crate) fn add_bytes(&self, n: u64) {
        self.bytes.store(self.bytes() + n, Ordering::Relaxed);
    }

    pub(crate) fn sub_bytes(&self, n: u64) {
        debug_assert!(n <= self.bytes(), "{n} bytes leave a context of {}", self.bytes());
        self.bytes.store(self.bytes() - n, Ordering::Relaxed);
    }

    pub(crate) fn add_pin(&self) {
        self.pins.store(self.pins() + 1, Ordering::Relaxed);
    }

    pub(crate) fn sub_pin(&self) {
        debug_assert!(self.pins() > 0, "a pin is given back once");
        self.pins.store(self.pins() - 1, Ordering::Relaxed);
    }

    /// Ends this use of the record: whoever remembers the old generation is a stranger now. `false`: the
    /// generations are used up, and the record is not used again: a payer of 2^32 groups ago is nobody's.
    pub(crate) fn retire(&self) -> bool {
        let next = self.generation().saturating_add(1);
        self.generation.store(next, Ordering::Relaxed);
        !self.is_worn_out()
    }

    /// Whether its generations are used up.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.generation() == u32::MAX
    }

    /// As if the record had been used that often.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn wear(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }
}
