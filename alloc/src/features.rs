//! What this build does beside allocating, as constants.

/// The feature `debug-checks`.
pub(crate) const CHECKS: bool = cfg!(feature = "debug-checks");
/// The feature `hardened`.
pub(crate) const HARDENED: bool = cfg!(feature = "hardened");
/// A build for AddressSanitizer: `--cfg memcg_asan`, by `ci/asan.sh`.
pub(crate) const ASAN: bool = cfg!(memcg_asan);
/// Whether the [ledger](crate::ledger) is kept.
pub(crate) const LEDGER: bool = CHECKS || HARDENED;
/// Whether free memory holds something that is looked for later. Hardened it holds what fresh pages do.
pub(crate) const BLANKS: bool = CHECKS && !HARDENED;
/// Whether anything is done to slab-class objects here.
pub(crate) const ACTIVE: bool = LEDGER || ASAN;
