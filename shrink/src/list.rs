//! A raw intrusive list: the nodes are parts of what is listed, so linking never allocates.
//!
//! ```text
//!   newest ─older─► node ─older─► node ─older─► oldest
//!          ◄─newer─      ◄─newer─  ▲   ◄─newer─
//!                                 hand: where the next walk goes on, towards the newest
//! ```
//!
//! The list knows no locks: whoever has `&mut List` holds the lock of its head.
//!
//! Source: the kernel's `include/linux/list.h`; the hand is SIEVE's (Zhang et al., NSDI 2024).

use core::cell::Cell;
use core::marker::PhantomPinned;
use core::ptr::NonNull;

use memcg_accounting::sync::{AtomicU32, Ordering};
use memcg_accounting::table::NONE;

/// `home` of a node that is about to be linked, or was unlinked and not yet handed out.
pub(crate) const CLAIMED: u32 = NONE - 1;

/// What makes a thing listable: a part of it, linked into at most one list.
///
/// # Invariants
///
/// - `home` is `NONE` while the node is in no list. While it is in one, `home` names the head
///   that it was linked under, which leads to the head that it is under now.
/// - The other words change only under the lock of that last head, or, while `home` is
///   `CLAIMED`, by the one thread that claimed the node.
#[derive(Debug)]
#[repr(C)]
pub struct Links {
    newer: Cell<Option<NonNull<Links>>>,
    older: Cell<Option<NonNull<Links>>>,
    home: AtomicU32,
    pinned: PhantomPinned,
}

// SAFETY: the links are written by one thread at a time (type invariant), and lead to nothing
// that is tied to a thread.
unsafe impl Send for Links {}
// SAFETY: as above; `home`, which is read without the lock, is atomic.
unsafe impl Sync for Links {}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    memcg_accounting::const_new! {
        /// Links that are in no list.
        pub fn new() -> Self {
            Self {
                newer: Cell::new(None),
                older: Cell::new(None),
                home: AtomicU32::new(NONE),
                pinned: PhantomPinned,
            }
        }
    }

    /// Whether the node is in a list, about to be, or isolated from one. May change right after.
    pub fn is_linked(&self) -> bool {
        self.home() != NONE
    }

    /// Acquire pairs with the Release of `settle`: who sees a home sees the head's record.
    pub(crate) fn home(&self) -> u32 {
        self.home.load(Ordering::Acquire)
    }

    /// Makes a node that is in no list the caller's to link. One of two that try gets it.
    pub(crate) fn claim(&self) -> bool {
        self.home.compare_exchange(NONE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Says where the node is now. Release pairs with the Acquire of `home` and of `claim`: the
    /// next one to write the links comes after the last.
    pub(crate) fn settle(&self, home: u32) {
        self.home.store(home, Ordering::Release);
    }
}

/// # Safety
///
/// - The node is valid for as long as the caller uses the reference.
unsafe fn links<'a>(node: NonNull<Links>) -> &'a Links {
    // SAFETY: by contract. Only shared references to links are ever made.
    unsafe { node.as_ref() }
}

/// A list of nodes with a hand.
///
/// # Invariants
///
/// - Every node from `newest` along `older` to `oldest` is valid, and `newer` is the way back.
/// - `len` is their number; `hand` is one of them, or `None`: then it is at the oldest.
#[derive(Debug)]
pub(crate) struct List {
    newest: Option<NonNull<Links>>,
    oldest: Option<NonNull<Links>>,
    hand: Option<NonNull<Links>>,
    len: usize,
}

// SAFETY: what a list leads to are `Links`, which are `Send`.
unsafe impl Send for List {}

impl List {
    pub(crate) const fn new() -> Self {
        Self { newest: None, oldest: None, hand: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Links `node` as the newest.
    ///
    /// # Safety
    ///
    /// - The node is in no list, and stays valid and where it is until it is unlinked.
    pub(crate) unsafe fn push(&mut self, node: NonNull<Links>) {
        // SAFETY: the node is valid by contract.
        let new = unsafe { links(node) };
        new.newer.set(None);
        new.older.set(self.newest);
        match self.newest {
            // SAFETY: nodes of the list are valid (type invariant).
            Some(second) => unsafe { links(second) }.newer.set(Some(node)),
            None => self.oldest = Some(node),
        }
        self.newest = Some(node);
        self.len += 1;
    }

    /// Unlinks `node`. The hand passes on if it was there.
    ///
    /// # Safety
    ///
    /// - The node is in this list.
    pub(crate) unsafe fn unlink(&mut self, node: NonNull<Links>) {
        // SAFETY: nodes of the list are valid (type invariant).
        let old = unsafe { links(node) };
        let (newer, older) = (old.newer.take(), old.older.take());
        if self.hand == Some(node) {
            self.hand = newer;
        }
        match newer {
            // SAFETY: as above.
            Some(newer) => unsafe { links(newer) }.older.set(older),
            None => self.newest = older,
        }
        match older {
            // SAFETY: as above.
            Some(older) => unsafe { links(older) }.newer.set(newer),
            None => self.oldest = newer,
        }
        self.len -= 1;
    }

    /// The node that was added last.
    pub(crate) fn newest(&self) -> Option<NonNull<Links>> {
        self.newest
    }

    /// The node at the hand.
    pub(crate) fn at_hand(&self) -> Option<NonNull<Links>> {
        self.hand.or(self.oldest)
    }

    /// Moves the hand past the node that it is at; after the newest comes the oldest.
    pub(crate) fn pass(&mut self) {
        let Some(node) = self.at_hand() else { return };
        // SAFETY: nodes of the list are valid (type invariant).
        self.hand = unsafe { links(node) }.newer.get();
    }

    /// Takes over all nodes of `other`, as older than its own. `O(1)`.
    pub(crate) fn absorb(&mut self, other: &mut List) {
        let other = core::mem::replace(other, List::new());
        let (Some(first), Some(_)) = (other.newest, other.oldest) else {
            return;
        };
        let Some(last) = self.oldest else {
            *self = other;
            return;
        };
        // SAFETY: nodes of the list are valid (type invariant).
        unsafe { links(last) }.older.set(Some(first));
        // SAFETY: as above.
        unsafe { links(first) }.newer.set(Some(last));
        self.oldest = other.oldest;
        self.len += other.len;
    }

    /// Tests the type's invariants. `O(len)`.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub(crate) fn check(&self) {
        let (mut newer, mut at, mut len) = (None, self.newest, 0);
        let mut hand_found = self.hand.is_none();
        while let Some(node) = at {
            // SAFETY: nodes of the list are valid (type invariant).
            let this = unsafe { links(node) };
            assert_eq!(this.newer.get(), newer, "`newer` is the way back");
            assert_ne!(this.home(), NONE, "a linked node has a home");
            assert_ne!(this.home(), CLAIMED, "a linked node is nobody's");
            hand_found |= self.hand == Some(node);
            len += 1;
            assert!(len <= self.len, "the list has {} nodes and not more", self.len);
            newer = at;
            at = this.older.get();
        }
        assert_eq!(newer, self.oldest, "the last node is the oldest");
        assert_eq!(len, self.len, "`len` is the number of nodes");
        assert!(hand_found, "the hand is at a node of the list");
    }
}

/// Nodes that a walk removed: in no list any more, and the caller's alone.
///
/// They are handed out after the lock is gone, so that what is dropped drops under no lock.
/// Dropping this drops no node: it forgets them, so a caller takes them all.
///
/// # Invariants
///
/// - Every node from `first` along `older` is valid, claimed, and on no other chain.
#[derive(Debug, Default)]
pub struct Isolated {
    first: Option<NonNull<Links>>,
    last: Option<NonNull<Links>>,
}

// SAFETY: what it leads to are `Links`, which are `Send`.
unsafe impl Send for Isolated {}

impl Isolated {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: None, last: None }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Appends `node`.
    ///
    /// # Safety
    ///
    /// - The node is in no list, was claimed by the caller, and stays valid until it is taken.
    pub(crate) unsafe fn push(&mut self, node: NonNull<Links>) {
        // SAFETY: the node is valid by contract.
        unsafe { links(node) }.older.set(None);
        match self.last.replace(node) {
            // SAFETY: nodes of the chain are valid (type invariant).
            Some(last) => unsafe { links(last) }.older.set(Some(node)),
            None => self.first = Some(node),
        }
    }

    /// Takes the node that was removed first. It may be linked again.
    pub fn take(&mut self) -> Option<NonNull<Links>> {
        let node = self.first?;
        // SAFETY: nodes of the chain are valid (type invariant).
        let taken = unsafe { links(node) };
        self.first = taken.older.take();
        if self.first.is_none() {
            self.last = None;
        }
        taken.settle(NONE);
        Some(node)
    }
}
