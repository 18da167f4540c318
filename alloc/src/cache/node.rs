//! An entry of a cache: one allocation, counted, with its place in table and list.

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use memcg_accounting::sync::{AtomicBool, AtomicPtr, AtomicU32, Ordering, fence};
use memcg_shrink::Links;

use crate::error::OverLimit;
use crate::scope;

/// An entry.
///
/// # Invariants
///
/// - `refs` counts the [`NodeRef`]s, of which the table holds one while `in_table`.
/// - `next` and `in_table` change under the lock of the shard that `hash` names.
/// - Key and value are initialised until the last reference goes; they never change.
#[repr(C)]
pub(super) struct Node<K, V> {
    links: Links,
    next: AtomicPtr<Node<K, V>>,
    pub(super) hash: u64,
    refs: AtomicU32,
    visited: AtomicBool,
    in_table: AtomicBool,
    pub(super) key: K,
    pub(super) value: V,
}

// Relaxed throughout: the lock of the shard orders these words.
impl<K, V> Node<K, V> {
    pub(super) fn next(&self) -> *mut Node<K, V> {
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn set_next(&self, next: *mut Node<K, V>) {
        self.next.store(next, Ordering::Relaxed);
    }

    /// The link to the node after this one.
    pub(super) fn next_link(&self) -> &AtomicPtr<Node<K, V>> {
        &self.next
    }

    pub(super) fn is_in_table(&self) -> bool {
        self.in_table.load(Ordering::Relaxed)
    }

    pub(super) fn set_in_table(&self, in_table: bool) {
        self.in_table.store(in_table, Ordering::Relaxed);
    }

    /// Notes a hit, for the hand of the list. The load keeps the line shared where the note is
    /// there already. Relaxed, as it is a hint.
    pub(super) fn visit(&self) {
        if !self.visited.load(Ordering::Relaxed) {
            self.visited.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there was a hit since the hand was here last.
    pub(super) fn take_visited(&self) -> bool {
        self.visited.load(Ordering::Relaxed) && self.visited.swap(false, Ordering::Relaxed)
    }
}

/// A counted pointer to an entry.
///
/// # Invariants
///
/// - The node is valid, and one of its `refs` is this one's.
pub(super) struct NodeRef<K, V> {
    node: NonNull<Node<K, V>>,
}

// SAFETY: like `Arc`: it gives shared access to key and value, and drops them on whatever thread
// is last.
unsafe impl<K: Send + Sync, V: Send + Sync> Send for NodeRef<K, V> {}
// SAFETY: as above.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for NodeRef<K, V> {}

impl<K, V> fmt::Debug for NodeRef<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRef").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<K, V> Deref for NodeRef<K, V> {
    type Target = Node<K, V>;

    fn deref(&self) -> &Node<K, V> {
        // SAFETY: the node is valid (type invariant).
        unsafe { self.node.as_ref() }
    }
}

impl<K, V> NodeRef<K, V> {
    const LAYOUT: Layout = Layout::new::<Node<K, V>>();

    /// Allocates an entry in the current group.
    ///
    /// # Errors
    ///
    /// [`OverLimit`] where a limit, or the system, refuses; key and value are dropped then.
    pub(super) fn try_new(hash: u64, key: K, value: V) -> Result<Self, OverLimit> {
        let _ = scope::take_refusal();
        // SAFETY: a node has links, so its size is not 0.
        let memory = scope::fallible(|| unsafe { alloc(Self::LAYOUT) });
        let Some(node) = NonNull::new(memory.cast::<Node<K, V>>()) else {
            return Err(OverLimit::of_last_refusal(Self::LAYOUT.size() as u64));
        };
        let content = Node {
            links: Links::new(),
            next: AtomicPtr::new(ptr::null_mut()),
            hash,
            refs: AtomicU32::new(1),
            visited: AtomicBool::new(false),
            in_table: AtomicBool::new(false),
            key,
            value,
        };
        // SAFETY: the memory is ours and has the layout of a node.
        unsafe { node.write(content) };
        // INVARIANT: the node is initialised, and its one count is this one's.
        Ok(Self { node })
    }

    /// The links: a pointer to the whole node, of which they are the first part.
    pub(super) fn links(&self) -> NonNull<Links> {
        self.node.cast()
    }

    /// An address in the node's memory.
    pub(super) fn address(&self) -> usize {
        self.node.addr().get()
    }

    /// Gives the count away as a pointer.
    pub(super) fn into_raw(self) -> *mut Node<K, V> {
        ManuallyDrop::new(self).node.as_ptr()
    }

    /// Takes back a count that [`into_raw`](NodeRef::into_raw) gave away.
    ///
    /// # Safety
    ///
    /// - `node` came from `into_raw`, and its count is taken back once.
    pub(super) unsafe fn from_raw(node: *mut Node<K, V>) -> Self {
        // SAFETY: by contract the pointer is a node's, so it is not null.
        Self { node: unsafe { NonNull::new_unchecked(node) } }
    }

    /// Another count of a node.
    ///
    /// # Safety
    ///
    /// - `node` came from `into_raw` of a count that is there throughout the call.
    pub(super) unsafe fn count(node: *mut Node<K, V>) -> Self {
        // SAFETY: the node is valid by contract.
        let refs = unsafe { &(*node).refs };
        // Relaxed, as for `Arc`: a count is made from one that exists.
        let before = refs.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before > 0 && before < u32::MAX / 2, "counts are of live nodes, and few");
        // SAFETY: the count that was made is this one's.
        unsafe { Self::from_raw(node) }
    }

    /// The value: moved out where this is the last reference, else cloned.
    pub(super) fn into_value(self) -> V
    where
        V: Clone,
    {
        if self.refs.load(Ordering::Relaxed) != 1 {
            return self.value.clone();
        }
        // Acquire: what others did with the node comes before (see `drop`). Nobody can make
        // another count: the node is in no table, and this is the last.
        fence(Ordering::Acquire);
        let node = ManuallyDrop::new(self).node;
        let _free = Free { node };
        // SAFETY: the node is valid, so its fields are in its memory.
        let key = unsafe { &raw mut (*node.as_ptr()).key };
        // SAFETY: as above.
        let value = unsafe { &raw mut (*node.as_ptr()).value };
        // SAFETY: this was the only reference, so the node is ours; the value is moved out once,
        // and `Free` drops none of the node's fields.
        let value = unsafe { value.read() };
        // SAFETY: as above; the key is dropped once.
        unsafe { key.drop_in_place() };
        value
    }
}

/// Frees a node's memory when it is dropped, also while a destructor unwinds.
struct Free<K, V> {
    node: NonNull<Node<K, V>>,
}

impl<K, V> Drop for Free<K, V> {
    fn drop(&mut self) {
        // SAFETY: the node came from `alloc` with this layout, and nobody refers to it.
        unsafe { dealloc(self.node.as_ptr().cast(), NodeRef::<K, V>::LAYOUT) };
    }
}

impl<K, V> Drop for NodeRef<K, V> {
    fn drop(&mut self) {
        // Release pairs with the Acquire below: what was done through this reference comes
        // before the drop.
        if self.refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        debug_assert!(!self.is_in_table(), "the table holds a count");
        debug_assert!(!self.links.is_linked(), "an entry leaves the list before it goes");
        if self.is_in_table() || self.links.is_linked() {
            // Something leads here still: then the entry is kept for good.
            return;
        }
        let _free = Free { node: self.node };
        // SAFETY: this was the last reference, so the node is ours, and dropped once. Value and
        // key are dropped as a struct's fields are: one that unwinds does not keep the other.
        unsafe { ptr::drop_in_place(self.node.as_ptr()) };
    }
}
