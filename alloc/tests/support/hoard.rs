//! A shrinker that holds objects, and drops as many as it is asked for.

use std::sync::{Mutex, MutexGuard};

use memcg::{Count, Scan, ShrinkControl, Shrinker};

use super::Raw;

/// Objects that may go.
pub(crate) struct Hoard(Mutex<Vec<Raw>>);

impl Hoard {
    /// With what it holds, in memory of the current group's.
    pub(crate) fn new(objects: Vec<Raw>) -> Self {
        Self(Mutex::new(objects))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Raw>> {
        self.0.lock().expect("not poisoned")
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Vec<Raw>>> {
        self.0.try_lock().ok()
    }
}

impl Shrinker for Hoard {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        self.try_lock().map_or(Count::Unknown, |objects| Count::Objects(objects.len()))
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        let Some(mut objects) = self.try_lock() else { return Scan::Stop };
        let keep = objects.len().saturating_sub(ctl.nr_to_scan());
        let gone = objects.split_off(keep);
        drop(objects);
        Scan::Freed(gone.len())
    }
}
