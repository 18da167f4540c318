//! Lists of objects by the group that pays for them, in least-recently-used order.
//!
//! ```text
//!   Lru ─┬─ group a: node ─ node ─ node      a node is counted: the list has one count of it,
//!        ├─ group b: node                    every LruNode another
//!        └─ root:    node ─ node
//! ```
//!
//! Source: the kernel's `include/linux/list_lru.h`.

pub(crate) mod group_list;
mod node;

use std::fmt;

use std::marker::PhantomData;

use memcg_shrink::{Isolated, Wait};

pub use memcg_shrink::LruStatus;
pub use node::LruNode;

use self::group_list::GroupList;
use crate::group::Group;
use crate::guarded::Thrown;
use crate::shrinker::Registration;

/// Nodes that one step of a walk holds on to at most, between two times that it takes the lock.
const STEP: usize = 1;

/// A list that has a part for each group: an object is in the part of the group that its own
/// memory is charged to, whoever adds it.
///
/// It is what a cache needs that wants to give memory back where there is pressure: its
/// shrinker is asked for one group, and walks that group's part. When a group drops, its part
/// joins the parent's, and nothing is written to the objects.
///
/// A [node](LruNode) is allocated by whoever makes it; adding it to a list, removing it and
/// touching it allocate nothing. All methods may be called from any thread; they take one short
/// lock, that of the part, and run no code of `T` under it.
///
/// It is `Send` and `Sync` where `T` is both, and invariant in `T`. Dropping it drops its count of
/// every node; if the drops of some values panic, all others are dropped all the same, and the
/// first panic goes on.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::{Group, Lru, LruNode, LruStatus};
///
/// let acme = Group::root().create("acme-lru")?;
/// let lru = Lru::new();
/// let page = acme.run(|| LruNode::new([0u8; 512]));
/// assert!(lru.add(&page));
/// assert_eq!(lru.count(&acme), 1);
///
/// page.mark_used();
/// let second_chance = |page: &LruNode<[u8; 512]>| {
///     if page.take_used() { LruStatus::Rotate } else { LruStatus::Removed }
/// };
/// assert_eq!(lru.walk(&acme, 1, second_chance), 0);
/// assert_eq!(lru.walk(&acme, 1, second_chance), 1);
/// # Ok::<(), memcg::Error>(())
/// ```
///
/// Source: `struct list_lru` in the kernel's `mm/list_lru.c`.
pub struct Lru<T> {
    list: GroupList,
    nodes: PhantomData<LruNode<T>>,
    /// Nodes go in by a shared reference and come out again, so a list of one type must not be
    /// taken for one of a shorter-lived: invariant in `T`.
    takes_and_gives: PhantomData<fn(T) -> T>,
}

impl<T> fmt::Debug for Lru<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lru").finish_non_exhaustive()
    }
}

impl<T: Send + Sync> Default for Lru<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Send + Sync> Lru<T> {
    /// An empty list. Its records are charged to nobody.
    ///
    /// # Panics
    ///
    /// Panics where there are as many objects as [`set_max_objects`](crate::set_max_objects) and
    /// [`Group::set_max_objects`](crate::Group::set_max_objects) have it.
    /// Aborts, as `Box::new` does, where the system has no memory for the list's record.
    #[must_use]
    pub fn new() -> Self {
        Self { list: GroupList::new(), nodes: PhantomData, takes_and_gives: PhantomData }
    }

    /// Makes `shrinker` the one that serves the list: from now on a group whose part becomes
    /// non-empty is marked for it, so that it is asked there.
    ///
    /// Call it before anything is added. What is in the list by then is marked when the next
    /// node joins an empty part.
    pub fn served_by(&self, shrinker: &Registration) {
        if let Some(id) = shrinker.id() {
            self.list.set_shrinker(id);
        }
    }

    /// Adds `node` as the newest of the group that it is charged to; `false`: it is in this or
    /// another list already.
    ///
    /// `O(1)`, allocates nothing, takes two short locks.
    pub fn add(&self, node: &LruNode<T>) -> bool {
        let in_list = node.clone();
        // SAFETY: the node is counted, the count is leaked to the list, and taken back when the
        // node is removed. Its memory is allocated, for we have a node.
        let linked = unsafe { self.list.add(in_list.links(), in_list.address()) }.linked;
        if linked {
            in_list.leak();
        }
        linked
    }

    /// Removes `node`; `false`: it is not in this list, or somebody else removes it now.
    ///
    /// `O(1)`, allocates nothing, takes one short lock.
    pub fn remove(&self, node: &LruNode<T>) -> bool {
        // SAFETY: the node is counted, so it is valid.
        let removed = unsafe { self.list.remove(node.links()) };
        if removed {
            // SAFETY: the list's count was leaked by `add`, and is taken back once, by whoever
            // removed the node.
            drop(unsafe { LruNode::<T>::from_links(node.links()) });
        }
        removed
    }

    /// Makes `node` the newest of its part; `false`: it is not in this list.
    ///
    /// For hot paths [`LruNode::mark_used`] is cheaper: it takes no lock, and a walk looks at
    /// the mark.
    pub fn touch(&self, node: &LruNode<T>) -> bool {
        // SAFETY: the node is counted, so it is valid.
        unsafe { self.list.touch(node.links()) }
    }

    /// Nodes that are charged to exactly `group`. One load; may change right after.
    pub fn count(&self, group: &Group) -> usize {
        self.list.count(group.as_ref())
    }

    /// Shows nodes of `group` to `visit`, the oldest first, `nr` at most, and does with each what
    /// [`visit` says](LruStatus). Answers how many were removed; the list's count of them is
    /// dropped, so a visitor that wants to keep one clones it.
    ///
    /// The walk begins where the one before ended, and goes around. A node is counted before it
    /// is shown, so [`LruStatus::Retry`] ends after `nr` times. `visit` runs under no lock, and
    /// may do what it likes, with this list too: what it says is done if the node is still in
    /// the list. Allocates nothing.
    pub fn walk(
        &self,
        group: &Group,
        nr: usize,
        visit: impl FnMut(&LruNode<T>) -> LruStatus,
    ) -> usize {
        self.walk_with(group, nr, Wait::Yes, visit)
    }

    /// [`walk`](Lru::walk) that does not wait for the list's lock: it ends where it would. For
    /// shrinkers, which wait for nothing.
    pub fn try_walk(
        &self,
        group: &Group,
        nr: usize,
        visit: impl FnMut(&LruNode<T>) -> LruStatus,
    ) -> usize {
        self.walk_with(group, nr, Wait::No, visit)
    }

    fn walk_with(
        &self,
        group: &Group,
        nr: usize,
        wait: Wait,
        mut visit: impl FnMut(&LruNode<T>) -> LruStatus,
    ) -> usize {
        let mut removed = 0;
        let mut again = None;
        for _ in 0..nr {
            let Some(node) = again.take().or_else(|| self.next(group, wait)) else { break };
            match visit(&node) {
                LruStatus::Removed => {
                    removed += usize::from(self.remove(&node));
                }
                LruStatus::Rotate => {
                    self.touch(&node);
                }
                LruStatus::Skip => {}
                LruStatus::Retry => {
                    std::thread::yield_now();
                    again = Some(node);
                }
                LruStatus::Stop => break,
            }
        }
        removed
    }

    /// A count of the node at the hand, which moves past it.
    fn next(&self, group: &Group, wait: Wait) -> Option<LruNode<T>> {
        let mut found = None;
        self.list.walk(group.as_ref(), STEP, wait, &mut Isolated::new(), |links| {
            // SAFETY: nodes in the list are `LruNode<T>`s, and the list has a count of each while
            // it is linked, as it is under the lock that is held here.
            found = Some(unsafe { LruNode::<T>::count_from_links(links) });
            LruStatus::Skip
        });
        found
    }

    /// Tests the invariants of all lists of the process. `O(nodes)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    #[doc(hidden)]
    pub fn check(&self) {
        crate::process::ENGINE.lists().check();
    }
}

impl<T> Drop for Lru<T> {
    /// Drops the list's count of every node, whatever the drops of some throw: the first panic
    /// goes on after the last node.
    fn drop(&mut self) {
        let (mut isolated, mut thrown) = (Isolated::new(), Thrown::default());
        let mut drop_nodes = || {
            while !isolated.is_empty() || self.list.take_any(&mut isolated) {
                let Some(links) = isolated.take() else { continue };
                // SAFETY: the list's count was leaked by `add`, and this thread removed the node.
                drop(unsafe { LruNode::<T>::from_links(links) });
            }
        };
        while !thrown.catch(&mut drop_nodes) {}
        thrown.go_on();
    }
}
