//! A shard's hash table: chains in the order of their hashes, moved to another size in steps.
//!
//! ```text
//!   hash:    shard | bucket | …          buckets are ranges of hashes, in order
//!   current: [ 0x00.. ][ 0x40.. ][ 0x80.. ][ 0xc0.. ]     each a chain in hash order
//!   old:     [ moved  ][ moved  ]│[ to be moved … ]
//! ```
//!
//! The bucket is the *top* of the hash, so going through the buckets is going through the hashes
//! in order, whatever size the table has: a [scan](super::Cache::scan) is a position in the
//! hashes, which a change of size leaves as it is. What has the same hash stays in the order of
//! insertion.
//!
//! # Invariants
//!
//! - Chains are sorted by hash, and hold exactly the nodes that are `in_table`, of which the
//!   table has a count each.
//! - While there is an `old` table, its buckets below `moved` are empty, and hashes from there
//!   on are in it; all others are in `current`.
//! - Nothing is allocated, dropped or freed here: tables come and go as values.

use std::alloc::{Layout, alloc_zeroed};
use std::fmt;
use std::ptr;

use memcg_accounting::sync::{AtomicPtr, Ordering};

use super::node::{Node, NodeRef};

/// The head or a link of a chain. Relaxed throughout: the shard's lock orders it.
pub(super) type Link<K, V> = AtomicPtr<Node<K, V>>;

/// A power of two of chains.
pub(super) struct Buckets<K, V> {
    chains: Box<[Link<K, V>]>,
}

impl<K, V> fmt::Debug for Buckets<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buckets").field("len", &self.len()).finish()
    }
}

impl<K, V> Default for Buckets<K, V> {
    fn default() -> Self {
        Self { chains: Box::default() }
    }
}

impl<K, V> Buckets<K, V> {
    /// Buckets of a shard's first table, as a power of two.
    pub(super) const FIRST_BITS: u32 = 2;
    /// Buckets of the largest.
    pub(super) const MAX_BITS: u32 = 40;

    /// `2^bits` empty chains, charged to the current group. `None`: no memory.
    pub(super) fn try_new(bits: u32) -> Option<Self> {
        let nr = 1usize.checked_shl(bits)?;
        let layout = Layout::array::<Link<K, V>>(nr).ok()?;
        // SAFETY: there is at least one bucket, so the size is not 0.
        let memory = unsafe { alloc_zeroed(layout) }.cast::<Link<K, V>>();
        if memory.is_null() {
            return None;
        }
        let chains = ptr::slice_from_raw_parts_mut(memory, nr);
        // SAFETY: the memory has the layout of the slice, comes from the global allocator, and
        // zeros are null pointers.
        Some(Self { chains: unsafe { Box::from_raw(chains) } })
    }

    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    pub(super) fn is_none(&self) -> bool {
        self.chains.is_empty()
    }

    fn bits(&self) -> u32 {
        self.chains.len().trailing_zeros()
    }

    /// The bucket of a place in the shard.
    fn index(&self, place: u64) -> usize {
        let bits = self.bits();
        let top = place.checked_shr(64 - bits).unwrap_or(0);
        usize::try_from(top).unwrap_or(0)
    }

    /// Where bucket `index` begins; `None`: behind the last.
    fn start(&self, index: usize) -> Option<u64> {
        (index < self.len()).then(|| (index as u64).checked_shl(64 - self.bits()).unwrap_or(0))
    }
}

/// What [`Table::range`] ended at.
pub(super) enum Range<K, V> {
    /// The end of a bucket. The hash at which the next one begins; `None`: this was the last.
    Next(Option<u64>),
    /// A node that was not taken.
    Full(NodeRef<K, V>),
}

/// The nodes of a shard: those of which the top `shift` bits of the hash name the shard.
pub(super) struct Table<K, V> {
    current: Buckets<K, V>,
    old: Buckets<K, V>,
    moved: usize,
    len: usize,
    shift: u32,
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, buckets) = (self.len, self.current.len());
        f.debug_struct("Table").field("len", &len).field("buckets", &buckets).finish()
    }
}

impl<K, V> Table<K, V> {
    /// New buckets that one writing operation fills, or old ones that it moves if those are
    /// larger: a move is over long before the table wants the next.
    const STEP: usize = 4;

    /// A table of no buckets. `1 <= shift < 64`.
    pub(super) fn new(shift: u32) -> Self {
        Self { current: Buckets::default(), old: Buckets::default(), moved: 0, len: 0, shift }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    pub(super) fn nr_buckets(&self) -> usize {
        self.current.len()
    }

    pub(super) fn is_moving(&self) -> bool {
        !self.old.is_none()
    }

    /// The hash without the shard: what buckets are ranges of.
    fn place(&self, hash: u64) -> u64 {
        hash << self.shift
    }

    /// The hash of the same shard as `like` at `place`.
    fn hash_at(&self, like: u64, place: u64) -> u64 {
        (like & !(u64::MAX >> self.shift)) | (place >> self.shift)
    }

    /// The chain where `hash` is or would be, and the place where the next one begins (`None`:
    /// this is the last).
    fn chain(&self, hash: u64) -> Option<(&Link<K, V>, Option<u64>)> {
        let place = self.place(hash);
        if self.is_moving() {
            let index = self.old.index(place);
            if index >= self.moved {
                return Some((self.old.chains.get(index)?, self.old.start(index + 1)));
            }
        }
        let index = self.current.index(place);
        let mut end = self.current.start(index + 1);
        if self.is_moving() {
            // A larger bucket may reach into what has yet to be moved.
            let unmoved = self.old.start(self.moved);
            end = match (end, unmoved) {
                (Some(end), Some(unmoved)) => Some(end.min(unmoved)),
                (end, unmoved) => end.or(unmoved),
            };
        }
        Some((self.current.chains.get(index)?, end))
    }

    /// The node that `link` leads to.
    fn at(&self, link: &Link<K, V>) -> Option<&Node<K, V>> {
        // SAFETY: what links of the table lead to are nodes of which it has a count (type
        // invariant), while it is borrowed.
        unsafe { link.load(Ordering::Relaxed).as_ref() }
    }

    /// Another count of the node that `link` leads to.
    fn count_at(&self, link: &Link<K, V>) -> NodeRef<K, V> {
        debug_assert!(self.at(link).is_some());
        // SAFETY: callers looked: the link leads to a node, of which the table has a count.
        unsafe { NodeRef::count(link.load(Ordering::Relaxed)) }
    }

    /// The link that leads to `wanted`.
    fn link_to(&self, wanted: &Node<K, V>) -> Option<&Link<K, V>> {
        let (mut link, _) = self.chain(wanted.hash)?;
        loop {
            let next = self.at(link)?;
            if ptr::eq(next, wanted) {
                return Some(link);
            }
            link = next.next_link();
        }
    }

    /// The first node with `hash`; or the one behind `after`, if that is still in the table.
    pub(super) fn find(&self, hash: u64, after: Option<&Node<K, V>>) -> Option<NodeRef<K, V>> {
        // The table has a count of a node that is in it, so the link is as good as its own.
        let mut link = match after.filter(|after| after.is_in_table()) {
            Some(after) => after.next_link(),
            None => self.chain(hash)?.0,
        };
        while let Some(next) = self.at(link)
            && next.hash <= hash
        {
            if next.hash == hash {
                return Some(self.count_at(link));
            }
            link = next.next_link();
        }
        None
    }

    /// Adds a node behind all with its hash. Gives it back where there are no buckets.
    pub(super) fn insert(&mut self, new: NodeRef<K, V>) -> Option<NodeRef<K, V>> {
        let Some((mut link, _)) = self.chain(new.hash) else { return Some(new) };
        while let Some(next) = self.at(link)
            && next.hash <= new.hash
        {
            link = next.next_link();
        }
        new.set_next(link.load(Ordering::Relaxed));
        new.set_in_table(true);
        // INVARIANT: the count goes to the table with the pointer.
        link.store(new.into_raw(), Ordering::Relaxed);
        self.len += 1;
        None
    }

    /// Takes `old` out. `None`: it is not in the table.
    pub(super) fn remove(&mut self, old: &Node<K, V>) -> Option<NodeRef<K, V>> {
        if !old.is_in_table() {
            return None;
        }
        let link = self.link_to(old)?;
        let taken = link.load(Ordering::Relaxed);
        link.store(old.next(), Ordering::Relaxed);
        old.set_in_table(false);
        self.len -= 1;
        // SAFETY: this is the table's count, of a node that is in no chain any more.
        Some(unsafe { NodeRef::from_raw(taken) })
    }

    /// Puts `new`, which has the same hash, where `old` is. `Err`: that is not in the table.
    pub(super) fn replace(
        &mut self,
        old: &Node<K, V>,
        new: NodeRef<K, V>,
    ) -> Result<NodeRef<K, V>, NodeRef<K, V>> {
        debug_assert_eq!(old.hash, new.hash);
        if !old.is_in_table() {
            return Err(new);
        }
        let Some(link) = self.link_to(old) else { return Err(new) };
        let taken = link.load(Ordering::Relaxed);
        new.set_next(old.next());
        new.set_in_table(true);
        old.set_in_table(false);
        // INVARIANT: the count goes to the table with the pointer.
        link.store(new.into_raw(), Ordering::Relaxed);
        // SAFETY: this is the table's count, of a node that is in no chain any more.
        Ok(unsafe { NodeRef::from_raw(taken) })
    }

    /// Gives counts of the nodes from `hash` on to `take`, in order, to the end of one bucket or
    /// until `take` gives one back.
    pub(super) fn range(
        &self,
        hash: u64,
        mut take: impl FnMut(NodeRef<K, V>) -> Option<NodeRef<K, V>>,
    ) -> Range<K, V> {
        let Some((mut link, end)) = self.chain(hash) else { return Range::Next(None) };
        while let Some(next) = self.at(link) {
            if next.hash >= hash
                && let Some(refused) = take(self.count_at(link))
            {
                return Range::Full(refused);
            }
            link = next.next_link();
        }
        Range::Next(end.map(|place| self.hash_at(hash, place)))
    }

    // ---- size ---------------------------------------------------------------------------

    /// The size that fits `len` nodes, as a power of two of buckets; `None`: the one that it has
    /// is good. A table is at most full, and at least an eighth.
    pub(super) fn wanted_bits(&self) -> Option<u32> {
        let nr = self.current.len();
        let fitting = (self.len + 1).next_power_of_two().max(1 << Buckets::<K, V>::FIRST_BITS);
        let grows = self.len >= nr && self.len != 0;
        let shrinks = nr > fitting && nr / 8 > self.len;
        let good = self.is_moving() || !(grows || shrinks);
        (!good).then(|| fitting.trailing_zeros().min(Buckets::<K, V>::MAX_BITS))
    }

    /// Begins to move to `fresh`. Gives it back where a move is under way, or where it has the
    /// size that the table has.
    pub(super) fn begin_move(&mut self, fresh: Buckets<K, V>) -> Option<Buckets<K, V>> {
        if self.is_moving() || fresh.len() == self.current.len() {
            return Some(fresh);
        }
        self.old = std::mem::replace(&mut self.current, fresh);
        self.moved = 0;
        None
    }

    /// Moves some buckets. Answers the old table when the last is moved: the caller frees it,
    /// under no lock.
    pub(super) fn step(&mut self) -> Buckets<K, V> {
        let ratio = self.old.len() / self.current.len().max(1);
        for _ in 0..Self::STEP * ratio.max(1) {
            let Some(chain) = self.old.chains.get(self.moved) else { break };
            // Appended in order: what a bucket has already came from old buckets before this.
            let mut tail: Option<(usize, &Link<K, V>)> = None;
            while let Some(moving) = self.at(chain) {
                let index = self.current.index(self.place(moving.hash));
                let mut link = match tail {
                    Some((bucket, link)) if bucket == index => link,
                    _ => &self.current.chains[index],
                };
                while let Some(next) = self.at(link) {
                    link = next.next_link();
                }
                link.store(chain.load(Ordering::Relaxed), Ordering::Relaxed);
                chain.store(moving.next(), Ordering::Relaxed);
                moving.set_next(ptr::null_mut());
                tail = Some((index, moving.next_link()));
            }
            self.moved += 1;
        }
        if self.moved == self.old.len() {
            std::mem::take(&mut self.old)
        } else {
            Buckets::default()
        }
    }

    /// Takes the buckets of an empty table: the caller frees them, under no lock. `None`: it is
    /// not empty.
    pub(super) fn take_buckets(&mut self) -> Option<(Buckets<K, V>, Buckets<K, V>)> {
        (self.len == 0).then(|| (std::mem::take(&mut self.current), std::mem::take(&mut self.old)))
    }

    /// Tests the type's invariants. `O(len + buckets)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub(super) fn check(&self) {
        let mut len = 0;
        for (buckets, which) in [(&self.current, "current"), (&self.old, "old")] {
            for (index, chain) in buckets.chains.iter().enumerate() {
                let (mut link, mut last) = (chain, 0);
                while let Some(node) = self.at(link) {
                    assert!(node.is_in_table(), "what is in a chain is in the table");
                    assert!(node.hash >= last, "chains are in the order of hashes");
                    assert_eq!(buckets.index(self.place(node.hash)), index, "{which} bucket");
                    let (home, _) = self.chain(node.hash).expect("there are buckets");
                    assert!(ptr::eq(home, chain), "a node is where it is looked for");
                    (last, len) = (node.hash, len + 1);
                    link = node.next_link();
                }
                assert!(which == "current" || index >= self.moved || self.at(chain).is_none());
            }
        }
        assert_eq!(len, self.len, "`len` is the number of nodes");
    }
}
