//! Finds the head of a group in a list: a hash table of chains through the heads.
//!
//! Looking takes no lock. What is found is certain only under the head's own lock, where the
//! finder looks at it again; what is not found is looked for again under the lock of `Shape`.
//!
//! # Invariants
//!
//! - A head is in the chain of its bucket exactly while it is live and not a root's.
//! - Arrays are never unmapped: a reader may still be in an old one. Each is twice the one
//!   before, so all old ones together are smaller than the one in use.

use core::ptr::{self, NonNull};

use memcg_accounting::sync::{AtomicPtr, AtomicU32, Ordering};
use memcg_accounting::table::{NONE, Table};
use memcg_accounting::{GroupRef, Source};

use crate::list_head::Head;

/// Buckets of the first array: one page with the word that says how many there are.
const FIRST_BUCKETS: u32 = if cfg!(loom) { 2 } else { 512 };
/// Heads that a look without the lock passes before it gives up: a chain that changes
/// meanwhile may lead it on into others.
const MAX_STEPS: u32 = 64;

/// The table. Its first word is the number of buckets, a power of two; the buckets follow.
#[derive(Debug)]
pub(crate) struct Index {
    array: AtomicPtr<AtomicU32>,
}

/// Mixes list and slot; the generation is compared, not hashed.
fn hash(owner: u32, group: GroupRef) -> u32 {
    let key = (u64::from(owner) << 32) | u64::from(group.index());
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let [_, _, _, _, a, b, c, d] = mixed;
    u32::from_le_bytes([a, b, c, d])
}

impl Index {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { array: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// The array in use and its number of buckets.
    fn array(&self) -> Option<(NonNull<AtomicU32>, u32)> {
        // Acquire pairs with the Release in `grow`: the words are initialised.
        let array = NonNull::new(self.array.load(Ordering::Acquire))?;
        // SAFETY: arrays are initialised before they are published and never unmapped.
        let nr = unsafe { array.as_ref() }.load(Ordering::Relaxed);
        Some((array, nr))
    }

    fn bucket(&self, owner: u32, group: GroupRef) -> Option<&AtomicU32> {
        let (array, nr) = self.array()?;
        let at = 1 + (hash(owner, group) & (nr - 1)) as usize;
        // SAFETY: the array has `nr` words after its first.
        let bucket = unsafe { array.add(at) };
        // SAFETY: as in `array`.
        Some(unsafe { bucket.as_ref() })
    }

    /// The live head of `group` in `owner`, looked for without a lock: it may miss one that is
    /// being added, and what it finds may change at once.
    pub(crate) fn find<'a>(
        &self,
        heads: &'a Table<Head>,
        owner: u32,
        group: GroupRef,
    ) -> Option<(u32, &'a Head)> {
        self.search(heads, owner, group, MAX_STEPS)
    }

    /// The same, for certain. Called with `Shape` locked.
    pub(crate) fn find_locked<'a>(
        &self,
        heads: &'a Table<Head>,
        owner: u32,
        group: GroupRef,
    ) -> Option<(u32, &'a Head)> {
        self.search(heads, owner, group, u32::MAX)
    }

    fn search<'a>(
        &self,
        heads: &'a Table<Head>,
        owner: u32,
        group: GroupRef,
        steps: u32,
    ) -> Option<(u32, &'a Head)> {
        let mut at = self.bucket(owner, group)?.load(Ordering::Acquire);
        for _ in 0..steps {
            let head = heads.get(at)?;
            if head.is(owner, group) {
                return Some((at, head));
            }
            at = head.chains.bucket.load(Ordering::Acquire);
        }
        None
    }

    /// Adds a live head. Called with `Shape` locked, after [`grow`](Index::grow) answered true.
    pub(crate) fn add(&self, index: u32, head: &Head) {
        let Some(bucket) = self.bucket(head.owner(), head.group()) else {
            return;
        };
        // Relaxed: the chain changes under the lock that is held.
        head.chains.bucket.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release pairs with the Acquire in `search`: who finds the head sees whose it is.
        bucket.store(index, Ordering::Release);
    }

    /// Takes a head out. Called with `Shape` locked. The head's own link stays, for readers that
    /// are on it.
    pub(crate) fn remove(&self, heads: &Table<Head>, index: u32, head: &Head) {
        let Some(mut link) = self.bucket(head.owner(), head.group()) else {
            return;
        };
        loop {
            let at = link.load(Ordering::Relaxed);
            if at == index {
                link.store(head.chains.bucket.load(Ordering::Relaxed), Ordering::Release);
                return;
            }
            let Some(next) = heads.get(at) else { return };
            link = &next.chains.bucket;
        }
    }

    /// Makes room for `nr_heads` at one per bucket. Without memory chains grow longer; `false`
    /// only where there is no array at all. Called with `Shape` locked.
    pub(crate) fn grow(&self, heads: &Table<Head>, nr_heads: u32, source: &Source) -> bool {
        let old = self.array();
        let nr_old = old.map_or(0, |(_, nr)| nr);
        if nr_heads < nr_old {
            return true;
        }
        let Some(nr) = (nr_old * 2).max(FIRST_BUCKETS).checked_next_power_of_two() else {
            return old.is_some();
        };
        let Some(array) = new_array(nr, source) else {
            return old.is_some();
        };
        // A look without the lock may miss a head from here on; it looks again under the lock.
        self.array.store(array.as_ptr(), Ordering::Release);
        let Some((old, _)) = old else { return true };
        for i in 1..=nr_old as usize {
            // SAFETY: the old array has `nr_old` words after its first.
            let bucket = unsafe { old.add(i) };
            // SAFETY: it is initialised and never unmapped.
            let mut at = unsafe { bucket.as_ref() }.load(Ordering::Relaxed);
            while let Some(head) = heads.get(at) {
                let next = head.chains.bucket.load(Ordering::Relaxed);
                self.add(at, head);
                at = next;
            }
        }
        true
    }
}

/// An array of `nr` empty buckets, with its first word.
fn new_array(nr: u32, source: &Source) -> Option<NonNull<AtomicU32>> {
    let words = nr as usize + 1;
    let array = (source.map)(words.checked_mul(size_of::<AtomicU32>())?).cast::<AtomicU32>();
    let array = NonNull::new(array)?;
    for i in 0..words {
        let value = if i == 0 { nr } else { NONE };
        // SAFETY: the mapping holds `words` words.
        let word = unsafe { array.add(i) };
        // SAFETY: the word is ours and not yet seen by anybody.
        unsafe { word.write(AtomicU32::new(value)) };
    }
    Some(array)
}
