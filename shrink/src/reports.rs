//! What a person should hear about shrinkers, kept until a moment at which it can be told.

use crate::host::Report;
use crate::sync::{Lock, lock};

/// Reports that are kept; later ones are dropped until these were told (counters count all).
const KEPT: usize = 8;

/// Reports that wait.
#[derive(Debug)]
pub(crate) struct Reports {
    kept: Lock<[Option<Report>; KEPT]>,
}

impl Reports {
    memcg_accounting::const_new! {
        pub(crate) fn new() -> Self {
            Self { kept: Lock::new([None; KEPT]) }
        }
    }

    pub(crate) fn push(&self, report: Report) {
        let mut kept = lock(&self.kept);
        if let Some(place) = kept.iter_mut().find(|place| place.is_none()) {
            *place = Some(report);
        }
    }

    pub(crate) fn pop(&self) -> Option<Report> {
        let mut kept = lock(&self.kept);
        let first = kept[0].take();
        kept.rotate_left(1);
        first
    }

    #[cfg(not(loom))]
    pub(crate) fn lock(&self) -> &Lock<[Option<Report>; KEPT]> {
        &self.kept
    }
}
