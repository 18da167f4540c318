//! Readers of a group's peak, each of which can be reset on its own.
//!
//! As in the kernel's `memory.peak`: the group has one local peak, since the last reset of any
//! reader; whoever resets it first saves it into all the others. A reader's peak is the larger
//! of what was saved for it and the local one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use memcg_accounting::GroupRef;
use memcg_accounting::sync::{AtomicU64, AtomicUsize, Lock, Ordering, lock};

use crate::fork::{self, AtFork, Place};
use crate::group::Group;
use crate::objects::Counted;
use crate::process::TREE;
use crate::scope::unaccounted;

/// Readers that were reset, by group, each until it is dropped. What is allocated under it is charged to nobody.
static RESET: Lock<Option<HashMap<GroupRef, Vec<Arc<Saved>>>>> = Lock::new(None);

/// What was saved for a reader.
#[derive(Debug)]
struct Saved {
    peak: AtomicU64,
    /// Where the reader is among those of its group. Changes under the lock.
    place: AtomicUsize,
}

/// Reads a group's peak since its own last reset: [`Group::peak_reader`]. Holds a handle.
///
/// Source: writing to `memory.peak`, `mm/memcontrol.c`.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// let group = memcg::Group::root().create("peaks")?;
/// let mut reader = group.peak_reader();
/// drop(group.run(|| vec![0u8; 1 << 20]));
/// assert!(reader.get() >= 1 << 20);
/// reader.reset();
/// assert!(reader.get() < 1 << 20);
/// assert!(group.peak() >= 1 << 20);
/// # Ok::<(), memcg::Error>(())
/// ```
pub struct PeakReader {
    group: Group,
    /// The peak that was saved for this reader; none before its first reset.
    saved: Option<Arc<Saved>>,
    _counted: Counted,
}

impl fmt::Debug for PeakReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeakReader").field("group", &self.group).finish_non_exhaustive()
    }
}

impl PeakReader {
    #[track_caller]
    pub(crate) fn new(group: Group) -> Self {
        fork::join(&AT_FORK);
        Self { group, saved: None, _counted: Counted::new() }
    }

    /// The highest usage since the last [`reset`](PeakReader::reset) of this reader, or since
    /// the group was made. Bytes, exact.
    #[must_use]
    pub fn get(&self) -> u64 {
        let Some(saved) = &self.saved else { return self.group.peak() };
        let _resets = lock(&RESET);
        // Relaxed: resets are kept out by the lock.
        saved.peak.load(Ordering::Relaxed).max(TREE.local_peak(self.group.as_ref()))
    }

    /// Begins anew at the usage of now. Other readers keep their peaks.
    pub fn reset(&mut self) {
        unaccounted(|| {
            let mut resets = lock(&RESET);
            let readers = resets.get_or_insert_default().entry(self.group.as_ref()).or_default();
            let (old, usage) = TREE.reset_local_peak(self.group.as_ref());
            for reader in &*readers {
                reader.peak.fetch_max(old, Ordering::Relaxed);
            }
            match &self.saved {
                Some(saved) => saved.peak.store(usage, Ordering::Relaxed),
                None => {
                    let place = AtomicUsize::new(readers.len());
                    let saved = Arc::new(Saved { peak: AtomicU64::new(usage), place });
                    readers.push(saved.clone());
                    self.saved = Some(saved);
                }
            }
        });
    }
}

impl Drop for PeakReader {
    fn drop(&mut self) {
        let Some(saved) = self.saved.take() else { return };
        let mut resets = lock(&RESET);
        let Some(resets) = resets.as_mut() else { return };
        let group = self.group.as_ref();
        let Some(readers) = resets.get_mut(&group) else { return };
        // Relaxed: places change under the lock.
        let place = saved.place.load(Ordering::Relaxed);
        readers.swap_remove(place);
        if let Some(moved) = readers.get(place) {
            moved.place.store(place, Ordering::Relaxed);
        }
        if readers.is_empty() {
            resets.remove(&group);
        }
    }
}

/// Before the drain mutex, as all that allocates under a lock.
static AT_FORK: AtFork = AtFork {
    place: Place::Peaks,
    prepare: || std::mem::forget(lock(&RESET)),
    // SAFETY: `prepare` took the lock and forgot the guard.
    release: |_| unsafe { RESET.force_unlock() },
    in_child: || (),
};
