//! How many objects of the library's the process has: what each takes beside its contents is charged to nobody, so there is
//! a bound.
//!
//! # Invariants
//!
//! - `live` counts the [`Counted`] that there are, and those of a parent that a child of a fork does not get to drop.

use memcg_accounting::Limit;
use memcg_accounting::sync::{AtomicU64, Ordering};

/// Objects that a process may have where nothing else was set.
const DEFAULT_MOST: u64 = 1 << 16;

static MOST: AtomicU64 = AtomicU64::new(DEFAULT_MOST);
static LIVE: AtomicU64 = AtomicU64::new(0);

/// An object that counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted(());

impl Counted {
    /// One more; `None`: there are as many as may be.
    pub(crate) fn try_new() -> Option<Self> {
        // Relaxed: a count that orders nothing.
        let most = MOST.load(Ordering::Relaxed);
        let more = |live: u64| (live < most).then_some(live + 1);
        LIVE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(()))
    }

    /// One more, for who cannot answer that there is none.
    ///
    /// # Panics
    ///
    /// Panics if there are as many as may be.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::try_new().unwrap_or_else(|| {
            panic!("memcg: {} objects, and no more may be: see set_max_objects", nr_objects())
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many there are.
pub(crate) fn nr_objects() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// Sets how many objects of the library's the process may have at once: lists and caches
/// ([`Lru`](crate::Lru), [`Cache`](crate::Cache), [`ObjectCache`](crate::ObjectCache), which counts for each list and shrinker
/// that it has, too), registered shrinkers, watches, and reclaims that go on by themselves. Default: 65,536.
///
/// What they take beside their contents, some hundred bytes to a few KiB each, is charged to nobody: this is what bounds it where
/// tenants decide how many are made. Those that are there stay, however low it is set. Groups have
/// [`Group::set_max_descendants`](crate::Group::set_max_descendants).
///
/// Beyond it a constructor that answers no error panics, for a program that went on with a cache that keeps nothing would not
/// learn why; [`Group::watch`](crate::Group::watch) answers an error that [`is_system`](crate::Error::is_system), a shrinker is
/// not registered and never asked, and [`Group::reclaim_async`](crate::Group::reclaim_async) ends at once with nothing.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::Lru;
///
/// memcg::set_max_objects(2);
/// let lists = [Lru::<u64>::new(), Lru::new()];
/// assert!(std::panic::catch_unwind(Lru::<u64>::new).is_err());
/// drop(lists);
/// assert_eq!(memcg::self_stat().objects, 0);
/// ```
///
/// Source: `cgroup.max.descendants`, which bounds what else a container can make the kernel keep.
pub fn set_max_objects(limit: impl Into<Limit>) {
    let most = match limit.into() {
        Limit::Bytes(number) => number,
        Limit::Max => u64::MAX,
    };
    MOST.store(most, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_may_be_and_each_goes_with_its_drop() {
        // Other tests of this process have some too.
        set_max_objects(nr_objects() + 1000);
        let mut counted: Vec<_> = std::iter::from_fn(Counted::try_new).collect();
        assert!((900..=1100).contains(&counted.len()), "{}", counted.len());
        counted.truncate(500);
        counted.push(Counted::new());
        set_max_objects(Limit::Max);
        assert!(Counted::try_new().is_some());
        set_max_objects(DEFAULT_MOST);
    }
}
