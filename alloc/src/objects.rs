//! How many objects of the library's the process has, and each group: what each takes beside its contents is charged to
//! nobody, so there are bounds.
//!
//! # Invariants
//!
//! - `live` counts the [`Counted`] that count, and those of threads of a parent that a child of a fork does not get to drop.
//! - One counts for the group that was current where it was made, and for those above; once that has ended, for its parent:
//!   its pinned place says which.

use std::fmt;

use memcg_accounting::sync::{AtomicBool, AtomicU64, Ordering};
use memcg_accounting::{GroupRef, Limit, OverLimit};

use crate::error::Error;
use crate::group::{Group, Pinned};
use crate::path::Path;
use crate::process::TREE;

/// Objects that a process may have where nothing else was set.
const DEFAULT_MOST: u64 = 1 << 16;
/// A group of which nothing was set may have one part in so many of them.
const SHARES: u64 = 4;

static MOST: AtomicU64 = AtomicU64::new(DEFAULT_MOST);
static LIVE: AtomicU64 = AtomicU64::new(0);

/// There are as many objects as may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TooMany {
    InProcess,
    InGroup(OverLimit),
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess => {
                write!(f, "{} objects, and no more may be: see set_max_objects", nr_objects())
            }
            Self::InGroup(OverLimit { group, usage, .. }) => write!(
                f,
                "{usage} objects of {}, and no more may be: see Group::set_max_objects",
                Path(*group)
            ),
        }
    }
}

/// An object that counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    maker: Pinned,
    counts: AtomicBool,
}

impl Counted {
    /// One more, for the current group and those above it.
    pub(crate) fn try_new() -> Result<Self, TooMany> {
        // Relaxed: a count that orders nothing.
        let more = |live: u64| (live < MOST.load(Ordering::Relaxed)).then_some(live + 1);
        let joined = LIVE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        joined.map_err(|_| TooMany::InProcess)?;
        let group = Group::current();
        if let Err(over) = TREE.join_objects(group.as_ref(), share()) {
            LIVE.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany::InGroup(over));
        }
        Ok(Self { maker: group.pinned(), counts: AtomicBool::new(true) })
    }

    /// One more, for who cannot answer that there is none.
    ///
    /// # Panics
    ///
    /// Panics if there are as many as may be.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::try_new().unwrap_or_else(|too_many| panic!("memcg: {too_many}"))
    }

    /// It does not count any more: its drop, or that of what a child of a fork keeps of its parent's.
    pub(crate) fn give_back(&self) {
        // Relaxed: whoever comes second, on whatever thread, has this value's memory by a stronger order.
        if !self.counts.swap(false, Ordering::Relaxed) {
            return;
        }
        LIVE.fetch_sub(1, Ordering::Relaxed);
        if let Some(group) = self.maker.handle() {
            TREE.leave_objects(group.as_ref());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What the process may have.
fn most() -> Limit {
    match MOST.load(Ordering::Relaxed) {
        u64::MAX => Limit::Max,
        most => Limit::Bytes(most),
    }
}

/// What a group may have of which nothing was set.
fn share() -> Limit {
    most().bytes().map_or(Limit::Max, |most| Limit::Bytes(most.div_ceil(SHARES)))
}

/// Those that count for `group`.
pub(crate) fn nr_objects_of(group: GroupRef) -> u64 {
    if group.is_root() { nr_objects() } else { TREE.nr_objects(group).into() }
}

/// How many there are.
pub(crate) fn nr_objects() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// Sets how many objects of the library's the process may have at once: lists and caches
/// ([`Lru`](crate::Lru), [`Cache`](crate::Cache), [`ObjectCache`](crate::ObjectCache), which counts for each list and shrinker
/// that it has, too), registered shrinkers, watches, readers of peaks, and reclaims that go on by themselves.
/// Default: 65,536.
///
/// What they take beside their contents, some hundred bytes to a few KiB each, is charged to nobody: this is what bounds it where
/// tenants decide how many are made. Those that are there stay, however low it is set. Of these a group may have a quarter, or
/// what [`Group::set_max_objects`](crate::Group::set_max_objects) says. How many groups there are,
/// [`Group::set_max_descendants`](crate::Group::set_max_descendants) bounds.
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

impl Group {
    /// Sets how many objects of the library's may count for this group at once: those that were made while it, or a group
    /// below it, was current. Which these are, and what happens beyond the bound, is with
    /// [`set_max_objects`](crate::set_max_objects); of the root this is that. How many there are is in
    /// [`Stat::nr_objects`](crate::Stat::nr_objects).
    ///
    /// Default: a quarter of what the process may have, so that one tenant does not take it all; where all tenants are below
    /// one group, that needs more, and each of them less. [`Limit::Max`] leaves the bound of the process, and those of
    /// the groups above. Those that are there stay, however low it is set.
    ///
    /// A watch counts for who made it, not for the group that it watches: who supervises tenants takes nothing from them. When the
    /// group ends, its objects count for its parent. In the child of a fork the watches and tasks of the parent, which are
    /// closed there, do not count.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use memcg::{Group, Lru};
    ///
    /// let acme = Group::root().create("acme-objects")?;
    /// acme.set_max_objects(2)?;
    /// let lists = acme.run(|| [Lru::<u64>::new(), Lru::new()]);
    /// assert!(std::panic::catch_unwind(|| acme.run(Lru::<u64>::new)).is_err());
    /// let of_the_host = Lru::<u64>::new();
    /// assert_eq!(acme.stat().nr_objects, 2);
    /// drop((lists, of_the_host));
    /// assert_eq!(acme.stat().nr_objects, 0);
    /// # Ok::<(), memcg::Error>(())
    /// ```
    ///
    /// Source: `pids.max`, and `cgroup.max.descendants`, which bound what else a container can make the kernel keep.
    pub fn set_max_objects(&self, limit: impl Into<Limit>) -> Result<(), Error> {
        if self.as_ref().is_root() {
            set_max_objects(limit);
        } else {
            TREE.set_max_objects(self.as_ref(), limit.into());
        }
        Ok(())
    }

    /// How many objects of the library's may count for this group at once.
    #[must_use]
    pub fn max_objects(&self) -> Limit {
        if self.as_ref().is_root() {
            return most();
        }
        TREE.max_objects(self.as_ref()).unwrap_or_else(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_may_be_and_each_goes_with_its_drop() {
        // Other tests of this process have some too.
        set_max_objects(nr_objects() + 1000);
        let mut counted: Vec<_> = std::iter::from_fn(|| Counted::try_new().ok()).collect();
        assert!((900..=1100).contains(&counted.len()), "{}", counted.len());
        counted.truncate(500);
        counted.push(Counted::new());
        set_max_objects(Limit::Max);
        assert!(Counted::try_new().is_ok());
        set_max_objects(DEFAULT_MOST);
    }
}
