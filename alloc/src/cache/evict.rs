//! Eviction: SIEVE on each group's part of the list, and the shrinker that asks for it.
//!
//! A hit sets a bit and moves nothing. The hand of a part goes from the oldest entry to the
//! newest and around: what has the bit loses it and stays where it is, what has not goes. New
//! entries come in ahead of the hand, so those that are never asked for again, as a scan's,
//! are soon met, and what was asked for survives them.
//!
//! Nothing here calls code of keys or values but to drop them, after all locks are gone; and of
//! what a [direct](super::Cache::direct) cache holds the drop is plain. Nothing allocates, and
//! every lock is a try-lock, but for `clear_in`, which a user calls.
//!
//! Source: Zhang et al., "SIEVE is Simpler than LRU" (NSDI 2024).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memcg_accounting::GroupRef;
use memcg_shrink::{
    Control, Isolated, Links, LruStatus, Place, RawCount, RawScan, RawShrinker, ShrinkerId,
    ShrinkerName, Wait, Walked,
};

use super::node::{Node, NodeRef};
use super::shared::{CLEAR_BATCH, Shared};
use crate::guarded::Thrown;
use crate::process::ENGINE;

/// Entries that one call of the shrinker evicts, at most: little, so that not more goes than
/// was asked for.
const BATCH: u32 = 16;
/// Entries with the bit that a call passes for each that it is to evict. After that it takes
/// what comes: where everything is hot something hot must go, and a call stays short.
const PATIENCE: usize = 8;

impl<K, V> Shared<K, V> {
    /// Evicts up to `nr` entries that are charged to `group`.
    pub(super) fn evict(&self, group: GroupRef, nr: usize) -> Walked {
        let mut isolated = Isolated::new();
        let mut patience = nr.saturating_mul(PATIENCE);
        let mut left = nr;
        let most = nr.saturating_add(patience);
        let walked = self.list.walk(group, most, Wait::No, &mut isolated, |links| {
            if left == 0 {
                return LruStatus::Stop;
            }
            // SAFETY: what the list holds are entries of this cache, valid while they are in it,
            // and the list's lock is held.
            let entry = unsafe { links.cast::<Node<K, V>>().as_ref() };
            if patience > 0 && entry.take_visited() {
                patience -= 1;
                return LruStatus::Skip;
            }
            let taken = self.try_take(entry, true);
            left -= usize::from(taken);
            if taken { LruStatus::Removed } else { LruStatus::Skip }
        });
        let mut thrown = Thrown::default();
        drop_all::<K, V>(&mut isolated, &mut thrown);
        // Whoever needs the room has nothing to do with it.
        thrown.end();
        walked
    }

    /// Takes an entry out of its table and leaves the table's count to the caller, if the
    /// shard's lock is free and the entry is in the table.
    fn try_take(&self, entry: &Node<K, V>, is_eviction: bool) -> bool {
        let Some(shard) = self.shard(entry.hash) else { return false };
        let Some(mut state) = shard.try_write() else { return false };
        let Some(taken) = state.table.remove(entry) else { return false };
        shard.publish_len(&state);
        drop(state);
        if is_eviction {
            shard.evictions.fetch_add(1, Ordering::Relaxed);
        }
        let _ = taken.into_raw();
        true
    }

    /// Takes out every entry that is charged to exactly `group`; `thrown` has what their drops
    /// throw.
    pub(super) fn clear_in(&self, group: GroupRef, thrown: &mut Thrown) {
        let mut left = self.list.count(group);
        while left > 0 {
            let mut isolated = Isolated::new();
            let mut passed = 0;
            let walked = self.list.walk(group, CLEAR_BATCH, Wait::Yes, &mut isolated, |links| {
                // SAFETY: as in `evict`.
                let entry = unsafe { links.cast::<Node<K, V>>().as_ref() };
                if self.try_take(entry, false) {
                    LruStatus::Removed
                } else if entry.is_in_table() {
                    // The shard is in use, and its user may want this list.
                    LruStatus::Retry
                } else {
                    // Its insertion or removal is under way.
                    passed += 1;
                    LruStatus::Skip
                }
            });
            drop_all::<K, V>(&mut isolated, thrown);
            if walked.shown == 0 {
                return;
            }
            left = left.saturating_sub(walked.removed + passed);
        }
    }

    /// Evicts while there are more entries than there may be: of `group`, to which the last one
    /// came, or if that has no other, of any.
    pub(super) fn keep_to_max_entries(&self, group: GroupRef) {
        let max = self.max_entries.load(Ordering::Relaxed);
        if max == usize::MAX {
            return;
        }
        while self.len() > max {
            let own = (self.list.count(group) > 1).then_some(group);
            let Some(victim) = own.or_else(|| self.list.some_group()) else { return };
            if self.evict(victim, 1).removed == 0 {
                // Everything is in use at this moment: the next insertion sees to it.
                return;
            }
        }
    }
}

/// Drops what was taken out, under no lock: all of it, whatever the drops of some throw.
fn drop_all<K, V>(isolated: &mut Isolated, thrown: &mut Thrown) {
    while !thrown.catch(|| {
        while let Some(links) = isolated.take() {
            // SAFETY: `try_take` left a count of each entry that was removed, which is taken back
            // once: a node is isolated once.
            drop(unsafe { entry_of::<K, V>(links) });
        }
    }) {}
}

/// # Safety
///
/// - The links are those of an entry of which a count was left.
unsafe fn entry_of<K, V>(links: NonNull<Links>) -> NodeRef<K, V> {
    // SAFETY: by contract; the links are an entry's first part, and the pointer is to the whole.
    unsafe { NodeRef::from_raw(links.as_ptr().cast()) }
}

// ---- the shrinker -------------------------------------------------------------------------

/// Registers the shrinker of a cache. `None`: no memory for its record.
///
/// # Safety
///
/// - If `place` is [`Place::Direct`], `K` and `V` are [`PlainDrop`](crate::PlainDrop).
pub(super) unsafe fn register<K, V>(
    shared: &Arc<Shared<K, V>>,
    name: &str,
    place: Place,
) -> Option<ShrinkerId>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let data = Arc::into_raw(Arc::clone(shared));
    let raw = RawShrinker {
        data: data.cast(),
        count: count::<K, V>,
        scan: scan::<K, V>,
        drop: release::<K, V>,
        name: ShrinkerName::new(name),
        place,
        group_aware: true,
        starts_marked: false,
        seeks: 2,
        batch: BATCH,
    };
    // SAFETY: `data` is a count of the `Arc`, given back by `drop`, and what is shared is `Sync`.
    // None of the three unwinds: `count` reads, and `scan` catches what drops throw. They wait
    // for nothing, and run no code of keys and values but their drop, which is plain if `place`
    // is direct.
    let id = unsafe { ENGINE.register(raw) };
    if id.is_none() {
        // SAFETY: the count was not taken over.
        drop(unsafe { Arc::from_raw(data) });
    }
    id
}

/// # Safety
///
/// - `data` is that of a cache's [`register`], and was not released.
unsafe fn shared<'a, K, V>(data: *const ()) -> &'a Shared<K, V> {
    // SAFETY: by contract the `Arc`'s count is there.
    unsafe { &*data.cast::<Shared<K, V>>() }
}

/// # Safety
///
/// See [`shared`].
unsafe fn count<K, V>(data: *const (), control: &Control) -> RawCount {
    // SAFETY: by contract.
    let shared = unsafe { shared::<K, V>(data) };
    match shared.list.count(control.group) {
        0 => RawCount::Empty,
        nr => RawCount::Objects(nr),
    }
}

/// # Safety
///
/// See [`shared`].
unsafe fn scan<K, V>(data: *const (), control: &mut Control) -> RawScan {
    // SAFETY: by contract.
    let shared = unsafe { shared::<K, V>(data) };
    let evicted = shared.evict(control.group, control.nr_to_scan);
    control.nr_scanned = evicted.shown;
    if evicted.was_busy && evicted.removed == 0 {
        return RawScan::Stop;
    }
    RawScan::Freed(evicted.removed)
}

/// # Safety
///
/// See [`shared`]; and this is the last call.
unsafe fn release<K, V>(data: *const ()) {
    // SAFETY: by contract the count is given back once.
    let shared = unsafe { Arc::from_raw(data.cast::<Shared<K, V>>()) };
    // Entries that are left go with the last count; what unwinds out of them is caught there.
    drop(shared);
}
