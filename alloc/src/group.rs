//! A group, as its users hold it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter;
use std::time::Duration;

use memcg_accounting::{Events, GroupRef, Limit, OnLimit, Payer, Root, Tag};
use memcg_shrink::Deadline;

use crate::error::{Error, OverLimit};
use crate::path::Path;
use crate::process::{ENGINE, TREE};
use crate::record;
use crate::scope::{self, Current, Restore};
use crate::{drain, fork, maps};

/// A group: a tenant whose memory is counted, limited and reclaimed.
///
/// A value is a handle. Cloning makes another one; when the last handle and the last online
/// child are gone the group goes offline: its objects, lists and charges are its parent's, and its
/// name is free. What the library does meanwhile keeps neither: a group that is made
/// again by its name is made, also while a shrinker is at the old one.
///
/// Only such a call can still refer to a group that is gone
/// ([`ShrinkControl::group`](crate::ShrinkControl::group)). It, and each clone that it makes from then on, has
/// the name and the path of the group, equals other handles of it, and reads as one that nothing was ever
/// charged to and that has no limits. Setting something changes nothing, `create` says that it is
/// [gone](Error::is_gone), and who enters it pays as the nearest ancestor that is not. Nothing brings it back.
///
/// More than 2^31 handles of one group, which only leaking makes, end the process, as with
/// [`Arc`](std::sync::Arc).
///
/// A cgroup is removed by name, which may fail, and stays dying while its memory lives; a group goes
/// at once with whoever holds it. The whole comparison is in `docs/cgroup-v2.md`.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::Group;
///
/// let tenants = Group::root().create("tenants")?;
/// let acme = tenants.builder("acme").max(64 << 20).build()?;
/// let buffer = acme.run(|| vec![0u8; 1 << 20]);
/// assert!(acme.usage() >= 1 << 20);
/// assert_eq!(Group::of(buffer.as_ptr()), Some(acme.clone()));
///
/// drop(acme);
/// assert_eq!(Group::of(buffer.as_ptr()), Some(tenants));
/// # Ok::<(), memcg::Error>(())
/// ```
pub struct Group {
    group: GroupRef,
    /// Who pays in it: the same for as long as it has a handle.
    payer: Payer,
}

impl Group {
    // ---- handles ------------------------------------------------------------------------

    /// Takes over one handle.
    pub(crate) fn from_handle(group: GroupRef) -> Self {
        Self { group, payer: TREE.payer(group) }
    }

    pub(crate) fn as_ref(&self) -> GroupRef {
        self.group
    }

    /// The root of the tree. Its path is `/`.
    ///
    /// With [`Memcg::new`](crate::Memcg::new) the root is untracked: it has no limits and is
    /// nobody's payer.
    #[must_use]
    pub fn root() -> Group {
        Group { group: GroupRef::ROOT, payer: Payer::NOBODY }
    }

    /// The calling thread's group: who pays for what it allocates. `O(1)`, one short lock.
    #[must_use]
    pub fn current() -> Group {
        let Some(payer) = scope::current().as_group() else { return Group::root() };
        if TREE.pin(payer) {
            let owner = TREE.owner_handle(payer.tag);
            TREE.unpin(payer.tag);
            return owner.map_or_else(Group::root, Group::from_handle);
        }
        Group::root()
    }

    /// The same without a handle: it may be gone when the caller looks.
    pub(crate) fn current_ref() -> GroupRef {
        let Some(payer) = scope::current().as_group() else { return GroupRef::ROOT };
        if !TREE.pin(payer) {
            return GroupRef::ROOT;
        }
        let owner = TREE.owner(payer.tag);
        TREE.unpin(payer.tag);
        owner.unwrap_or(GroupRef::ROOT)
    }

    /// A new handle to the online group at `path`, like `/tenants/acme`. `O(depth)`.
    #[must_use]
    pub fn lookup(path: &str) -> Option<Group> {
        if path == "/" {
            return Some(Group::root());
        }
        TREE.lookup(path).map(Group::from_handle)
    }

    /// Who pays for the allocation that `object` points into, now. `None`: nobody does.
    ///
    /// Any address may be asked for: it is looked up, never dereferenced. Any address inside a
    /// slab-class object answers for it, of a large object those in its first page. `O(1)`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use memcg::Group;
    /// assert_eq!(Group::of(std::ptr::null::<u8>()), None);
    /// let on_the_stack = 1;
    /// assert_eq!(Group::of(&on_the_stack), None);
    /// ```
    #[must_use]
    pub fn of<T: ?Sized>(object: *const T) -> Option<Group> {
        let tag = maps::tag_at(object.cast::<u8>().addr());
        TREE.owner_handle(tag).map(Group::from_handle)
    }

    /// The group's own name; the root's is empty.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(self.group)
    }

    /// The names from the root down, each after a `/`.
    #[must_use]
    pub fn path(&self) -> String {
        // No handles: those above are there for as long as this one is.
        let levels = iter::successors(Some(self.group), |&level| TREE.parent_ref(level));
        let names: Vec<_> = levels.take_while(|level| !level.is_root()).map(name_of).collect();
        if names.is_empty() {
            return "/".to_owned();
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
    }

    /// The parent; `None` for the root. Of a group that is gone (see [`Group`]): whose its objects are, the
    /// nearest ancestor that is not.
    #[must_use]
    pub fn parent(&self) -> Option<Group> {
        TREE.parent(self.group).map(Group::from_handle)
    }

    /// The online children, newest first.
    #[must_use]
    pub fn children(&self) -> Vec<Group> {
        let mut children = Vec::new();
        let mut last = None;
        while let Some(child) = TREE.next_child(self.group, last) {
            children.push(Group::from_handle(child));
            last = Some(child);
        }
        children
    }

    // ---- scopes -------------------------------------------------------------------------

    /// Makes the group current on this thread until the guard is dropped, which restores what
    /// was current. Scopes nest; the innermost wins.
    ///
    /// Dropping the guard is a safe point: groups whose end was put off are ended here, and what
    /// unregistered shrinkers left behind is dropped.
    ///
    /// Guards dropped out of order, or leaked, are memory-safe: what they leave current charges
    /// the nearest live ancestor.
    ///
    /// Source: the kernel's `set_active_memcg`. A cgroup has whole processes, and a new one begins in
    /// its parent's; a new thread begins at the root here.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use memcg::Group;
    /// let group = Group::root().create("entered")?;
    /// let scope = group.enter();
    /// assert_eq!(Group::current(), group);
    /// drop(scope);
    /// assert_eq!(Group::current(), Group::root());
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn enter(&self) -> Entered<'_> {
        Entered { restore: Restore::entering(self.to_current()), group: self }
    }

    /// The same with a guard that holds the handle.
    pub fn enter_owned(self) -> EnteredOwned {
        EnteredOwned { restore: Restore::entering(self.to_current()), group: self }
    }

    /// Runs `f` with the group current.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let _entered = self.enter();
        f()
    }

    fn to_current(&self) -> Current {
        if self.group.is_root() { Current::ROOT } else { Current::group(self.payer) }
    }

    // ---- limits -------------------------------------------------------------------------

    /// The hard limit. Exact, in bytes.
    #[must_use]
    pub fn max(&self) -> Limit {
        TREE.max(self.group)
    }

    /// Sets the hard limit. It holds from this moment; what is over it is reclaimed then.
    ///
    /// Source: `memory.max`. The kernel kills where this is an error, lets usage pass it for a while,
    /// and rounds it down to pages.
    ///
    /// # Errors
    ///
    /// [`is_busy`](Error::is_busy): memory that can't be reclaimed is over the limit, which
    /// stands all the same; `usage()` says how much there is.
    /// [`is_unsupported`](Error::is_unsupported): the root is untracked.
    pub fn set_max(&self, limit: impl Into<Limit>) -> Result<(), Error> {
        self.must_be_tracked("max")?;
        let limit = limit.into();
        let usage = TREE.set_max(self.group, limit);
        let Some(bytes) = limit.bytes().filter(|&bytes| usage > bytes) else { return Ok(()) };
        let (reclaimed, usage) = self.reclaim_to(bytes);
        if usage > bytes {
            return Err(Error::busy(self.as_ref(), bytes, usage, reclaimed));
        }
        Ok(())
    }

    /// Where background reclaim begins. Usage may pass it.
    #[must_use]
    pub fn high(&self) -> Limit {
        TREE.high(self.group)
    }

    /// Sets `high`, and reclaims towards it. Pinned memory may stay over it.
    ///
    /// Source: `memory.high`. There whoever passes it reclaims, and sleeps for up to 2 s; here the
    /// worker reclaims, and nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`is_unsupported`](Error::is_unsupported): the root is untracked.
    pub fn set_high(&self, limit: impl Into<Limit>) -> Result<(), Error> {
        self.must_be_tracked("high")?;
        let limit = limit.into();
        let usage = TREE.set_high(self.group, limit);
        if let Some(bytes) = limit.bytes().filter(|&bytes| usage > bytes) {
            self.reclaim_to(bytes);
        }
        Ok(())
    }

    /// Best-effort protection, in bytes: see [`set_low`](Group::set_low).
    #[must_use]
    pub fn low(&self) -> u64 {
        TREE.low(self.group)
    }

    /// Sets best-effort protection: what this group and those below it use up to it is evicted for
    /// a limit above only when nothing else is left, which counts the event `low`.
    ///
    /// What is above the protection is asked for in proportion. It holds against limits of the
    /// groups above, not against the group's own; children share what their parent has, by what
    /// they use of what they claim, and what none claims goes to those who use more. It keeps
    /// what can be evicted: pinned memory needs no protection.
    ///
    /// Source: `memory.low`, with `memory_recursiveprot`. The kernel asks object caches of a group
    /// above its protection for a full share; here theirs is in proportion too.
    ///
    /// # Errors
    ///
    /// [`is_unsupported`](Error::is_unsupported): the root is untracked.
    pub fn set_low(&self, bytes: u64) -> Result<(), Error> {
        self.must_be_tracked("low")?;
        TREE.set_low(self.group, bytes);
        Ok(())
    }

    /// Protection, in bytes: see [`set_min`](Group::set_min).
    #[must_use]
    pub fn min(&self) -> u64 {
        TREE.min(self.group)
    }

    /// Sets protection: as [`set_low`](Group::set_low), but what is under it is never evicted for a
    /// limit above: an allocation is refused instead.
    ///
    /// Source: `memory.min`.
    ///
    /// # Errors
    ///
    /// [`is_unsupported`](Error::is_unsupported): the root is untracked.
    pub fn set_min(&self, bytes: u64) -> Result<(), Error> {
        self.must_be_tracked("min")?;
        TREE.set_min(self.group, bytes);
        Ok(())
    }

    /// What happens to an allocation that no reclaim makes room for.
    #[must_use]
    pub fn on_limit(&self) -> OnLimit {
        TREE.on_limit(self.group)
    }

    /// Sets that policy; it counts for charges to this group, whichever ancestor refuses. New
    /// children copy it.
    ///
    /// The kernel kills instead. What is let through is its `__GFP_NOFAIL`, for a whole group.
    pub fn set_on_limit(&self, policy: OnLimit) {
        TREE.set_on_limit(self.group, policy);
    }

    /// Bounds how many groups there may be below this one (`cgroup.max.descendants`).
    ///
    /// What a group takes is charged to nobody, so that this is its bound; the kernel charges it to
    /// the parent.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn set_max_descendants(&self, limit: impl Into<Limit>) -> Result<(), Error> {
        TREE.set_max_descendants(self.group, limit.into());
        Ok(())
    }

    /// How many levels there may be below the group.
    #[must_use]
    pub fn max_depth(&self) -> Limit {
        TREE.max_depth(self.group)
    }

    /// Bounds how many levels there may be below this group: 0 for none, 1 for children alone
    /// (`cgroup.max.depth`). The kernel's default is none; here it is 64 for a top-level group (for the root,
    /// if that is accounted), and none for others.
    ///
    /// A charge looks at each level of its group, under a lock that it shares with other top-level
    /// groups. One that may have more than 64 levels below it shares its lock with such alone, and must be
    /// [made so](crate::GroupBuilder::max_depth). An accounted root has one lock for all.
    ///
    /// # Errors
    ///
    /// [`is_unsupported`](Error::is_unsupported): a top-level group that was made with at most 64 can't have
    /// more.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use memcg::Group;
    /// let tenant = Group::root().builder("tenant").max_depth(1).build()?;
    /// let job = tenant.create("job")?;
    /// assert!(job.create("too deep").unwrap_err().is_again());
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn set_max_depth(&self, limit: impl Into<Limit>) -> Result<(), Error> {
        if TREE.set_max_depth(self.group, limit.into()) {
            return Ok(());
        }
        Err(Error::shallow(self.as_ref()))
    }

    /// Sets how long an allocation of this group waits for shrinkers that run on the worker:
    /// `first` from when a worker is at it, renewed while bytes arrive, and `total` in all. Default: 50 ms and 200 ms.
    ///
    /// Durations count in milliseconds; more than 49 days count as that.
    pub fn set_deadline(&self, first: Duration, total: Duration) {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let deadline = Deadline { first_ms: ms(first), total_ms: ms(total) };
        ENGINE.set_deadline(self.group, deadline);
    }

    /// Slows down threads that charge this group, or one below it, while it is over its `high`: at
    /// safe points (the end of a scope, of a poll of [`InGroup`](crate::InGroup),
    /// [`check`](Group::check)) such a thread pauses, the longer the further over it and the more
    /// it charged, and `longest` at most; 100 ms if that is less. `None`, the default: it does not.
    ///
    /// It never pauses inside an allocation, a shrinker or [`no_reclaim`](crate::no_reclaim), and
    /// nothing is refused. Counts in milliseconds, at least one. Where several levels are over
    /// their `high`, the longest pause counts.
    ///
    /// Source: `calculate_high_delay` in the kernel's `mm/memcontrol.c`: 2 s at most there, and
    /// always on.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use std::time::Duration;
    ///
    /// let batch = memcg::Group::root().builder("batch").high(256 << 20).build()?;
    /// batch.set_throttle(Some(Duration::from_millis(20)));
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn set_throttle(&self, longest: Option<Duration>) {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
        ENGINE.set_throttle(self.group, longest.map_or(0, ms));
    }

    /// Whether the group and all its ancestors are within their `max`. One short lock.
    ///
    /// It is also a safe point: what had to wait for a moment with no allocation on the stack
    /// is done here.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] names the first that is over it.
    pub fn check(&self) -> Result<(), OverLimit> {
        scope::at_safe_point();
        match TREE.over_max(self.group) {
            Some(over) => Err(OverLimit::from_raw(over)),
            None => Ok(()),
        }
    }

    fn must_be_tracked(&self, what: &'static str) -> Result<(), Error> {
        if self.group.is_root() && TREE.root_kind() == Root::Untracked {
            return Err(Error::untracked_root(what));
        }
        Ok(())
    }

    // ---- reading ------------------------------------------------------------------------

    /// Bytes charged to the group and everything below it, as limits see them. One load.
    ///
    /// Never below what lives; up to 512 KiB per thread above it, of freed or unspent bytes
    /// that wait for reuse, [`drain`](crate::drain) or about 100 ms of idleness. An untracked
    /// root answers the sum of its children, by 80 loads however many there are.
    ///
    /// Source: `memory.current`.
    #[must_use]
    pub fn usage(&self) -> u64 {
        TREE.usage(self.group)
    }

    /// The highest usage since the group was made. Exact.
    #[must_use]
    pub fn peak(&self) -> u64 {
        TREE.peak(self.group)
    }

    /// What happened to the group and everything below it. Never runs backwards.
    ///
    /// Source: `memory.events`. There `oom` may end in a kill; here it is an allocation that was
    /// refused. The kernel counts `max` for each retry of a charge, and has no `forced`.
    #[must_use]
    pub fn events(&self) -> Events {
        TREE.events(self.group)
    }

    /// What happened to the group alone.
    #[must_use]
    pub fn events_local(&self) -> Events {
        TREE.events_local(self.group)
    }

    // ---- giving back --------------------------------------------------------------------

    /// Reclaims at least `bytes` from the group's subtree; answers how many. The root may be
    /// asked, tracked or not. It does not count as pressure.
    ///
    /// # Errors
    ///
    /// [`is_again`](Error::is_again): less than that could be reclaimed; `reclaimed()` says
    /// how much. Source: `memory.reclaim`.
    pub fn reclaim(&self, bytes: u64) -> Result<u64, Error> {
        let reclaimed = self.reclaim_some(bytes);
        if reclaimed < bytes {
            return Err(Error::again(self.as_ref(), bytes, reclaimed));
        }
        Ok(reclaimed)
    }

    /// Reclaims until usage is at most `bytes`; answers the bytes that it took.
    ///
    /// # Errors
    ///
    /// [`is_busy`](Error::is_busy): pinned memory keeps usage over `bytes`; `usage()` says
    /// where it stands. Source: `memory.shrink_in_bytes` of 2008.
    pub fn shrink_to(&self, bytes: u64) -> Result<u64, Error> {
        let (reclaimed, usage) = self.reclaim_to(bytes);
        if usage > bytes {
            return Err(Error::busy(self.as_ref(), bytes, usage, reclaimed));
        }
        Ok(reclaimed)
    }

    /// Reclaims whatever can be; answers the bytes. What stays is pinned.
    ///
    /// # Errors
    ///
    /// None at present. Source: `memory.force_empty`.
    pub fn force_empty(&self) -> Result<u64, Error> {
        Ok(self.reclaim_to(0).0)
    }

    /// Reclaims towards a usage of `bytes`; answers the bytes reclaimed and the usage left.
    fn reclaim_to(&self, bytes: u64) -> (u64, u64) {
        let before = self.usage();
        drain::drain();
        let mut reclaimed = before.saturating_sub(self.usage());
        let mut usage = self.usage();
        while usage > bytes {
            let step = self.reclaim_some(usage - bytes);
            usage = self.usage();
            if step == 0 {
                break;
            }
            reclaimed += step;
        }
        (reclaimed, usage)
    }

    /// What threads cache comes first: it costs nobody anything.
    fn reclaim_some(&self, bytes: u64) -> u64 {
        let drained = drain::tidy(self.group);
        if drained >= bytes {
            return drained;
        }
        let reclaimed = ENGINE.reclaim(self.group, bytes - drained, memcg_shrink::Cause::Proactive);
        let total = drained + reclaimed;
        if total < bytes { total + drain::tidy(self.group) } else { total }
    }
}

/// A group's place in the tree, without a handle: when the group goes offline it is the parent's.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// Whose tag is pinned; nobody's is the root.
    tag: Tag,
}

impl Pinned {
    /// The group whose place it is now.
    pub(crate) fn group(&self) -> GroupRef {
        TREE.owner(self.tag).unwrap_or(GroupRef::ROOT)
    }

    /// A handle to the group whose place it is now; `None`: nobody's.
    pub(crate) fn handle(&self) -> Option<Group> {
        TREE.owner_handle(self.tag).map(Group::from_handle)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.tag.is_nobody() {
            TREE.unpin(self.tag);
        }
    }
}

impl Group {
    /// The group's place in the tree, which its context keeps.
    pub(crate) fn pinned(&self) -> Pinned {
        let is_pinned = !self.payer.tag.is_nobody() && TREE.pin(self.payer);
        Pinned { tag: if is_pinned { self.payer.tag } else { Tag::NOBODY } }
    }
}

impl Clone for Group {
    fn clone(&self) -> Self {
        TREE.get(self.group);
        Self { group: self.group, payer: self.payer }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.group.is_root() {
            ENGINE.put(self.group);
        }
    }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.group == other.group
    }
}

impl Eq for Group {}

impl Hash for Group {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.group.hash(state);
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("path", &Path(self.group))
            .field("usage", &self.usage())
            .finish()
    }
}

fn name_of(group: GroupRef) -> String {
    TREE.name(group).as_str().to_owned()
}

/// Keeps a group current on the thread that made it; see [`Group::enter`]. Neither `Send` nor `Sync`;
/// dropping it never panics, whatever runs at the safe point that it is.
#[must_use = "the group is current while the guard lives"]
pub struct Entered<'a> {
    #[expect(dead_code, reason = "dropped for its effect")]
    restore: Restore,
    group: &'a Group,
}

impl fmt::Debug for Entered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("group", self.group).finish_non_exhaustive()
    }
}

/// The same, holding the handle; see [`Group::enter_owned`]. Neither `Send` nor `Sync`.
#[must_use = "the group is current while the guard lives"]
pub struct EnteredOwned {
    // Dropped in this order: what was current is restored before the handle goes.
    #[expect(dead_code, reason = "dropped for its effect")]
    restore: Restore,
    group: Group,
}

impl fmt::Debug for EnteredOwned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnteredOwned").field("group", &self.group).finish_non_exhaustive()
    }
}

impl EnteredOwned {
    /// The group that is current.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }
}

/// Whether `Memcg` really serves this process: an extern crate that nobody names is silently
/// not linked. Allocates and frees one small object.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// assert!(memcg::is_installed());
/// ```
#[must_use]
pub fn is_installed() -> bool {
    // Charged to nobody: the current group may be full.
    let probe = scope::unaccounted(|| std::hint::black_box(Box::new(0_u64)));
    maps::is_slab((&raw const *probe).addr())
}

/// What must be so before a group can be made.
pub(crate) fn prepare(path: impl FnOnce() -> String) -> Result<(), Error> {
    if !is_installed() {
        return Err(Error::not_installed(path()));
    }
    record::start_tracking();
    fork::register();
    Ok(())
}

impl OverLimit {
    /// The group whose limit refused: the payer's, or an ancestor; `None` once it is offline,
    /// and where the system had no memory.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.refused_by().filter(|&group| TREE.try_get(group)).map(Group::from_handle)
    }
}
