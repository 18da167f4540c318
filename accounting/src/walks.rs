//! Walks over depth that are under way: whoever checks the numbers that they change knows of them.
//!
//! Making a group, or ending one, changes a number at each level above it, without a lock: in a deep tree
//! that takes long. Meanwhile the numbers of some levels are ahead of the tree's shape.

use crate::sync::{AtomicU32, Ordering, fence};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Walks {
    begun: AtomicU32,
    ended: AtomicU32,
}

/// A walk, until it is dropped: after what it was made for is linked or unlinked.
#[derive(Debug)]
pub(crate) struct Walking<'a>(&'a Walks);

impl Walks {
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self { begun: AtomicU32::new(0), ended: AtomicU32::new(0) }
        }
    }

    /// Begins one. Relaxed: whoever sees what it changes, by a Release of `Below`, sees this too.
    pub(crate) fn begin(&self) -> Walking<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Walking(self)
    }

    /// A moment at which none is under way; `None`: one is.
    pub(crate) fn none_is_under_way(&self) -> Option<u32> {
        // Acquire pairs with the Release of each end: what ended walks changed is seen.
        let ended = self.ended.load(Ordering::Acquire);
        (self.begun.load(Ordering::Relaxed) == ended).then_some(ended)
    }

    /// Whether what was read since `moment` is no walk's doing.
    pub(crate) fn none_since(&self, moment: Option<u32>) -> bool {
        // Makes the reads before it Acquire.
        fence(Ordering::Acquire);
        moment.is_some_and(|begun| self.begun.load(Ordering::Relaxed) == begun)
    }
}

impl Drop for Walking<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}
