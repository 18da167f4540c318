//! Locks over a tenant's keys, so that what reads a key and then writes it is atomic.
//!
//! Lock order: stripes in ascending order, then the cache's own. Nothing that runs under a stripe waits for a client, and
//! eviction, which may happen in any allocation, takes no stripe.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many locks a tenant's keys share.
const STRIPES: usize = 64;

/// The locks of one tenant.
#[derive(Debug)]
pub(crate) struct Stripes([Mutex<()>; STRIPES]);

/// One key's lock.
pub(crate) type Held<'a> = MutexGuard<'a, ()>;

/// Several keys' locks.
#[derive(Debug)]
pub(crate) struct AllHeld<'a> {
    _held: [Option<Held<'a>>; STRIPES],
}

impl Stripes {
    /// All of them free.
    pub(crate) const fn new() -> Self {
        Self([const { Mutex::new(()) }; STRIPES])
    }

    /// Locks one key.
    pub(crate) fn lock(&self, key: &[u8]) -> Held<'_> {
        self.hold(stripe_of(key))
    }

    /// Locks several keys, each lock once and in ascending order.
    pub(crate) fn lock_all<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> AllHeld<'_> {
        let mut wanted = [false; STRIPES];
        for key in keys {
            wanted[stripe_of(key)] = true;
        }
        AllHeld { _held: core::array::from_fn(|index| wanted[index].then(|| self.hold(index))) }
    }

    /// Locks every key.
    pub(crate) fn lock_everything(&self) -> AllHeld<'_> {
        AllHeld { _held: core::array::from_fn(|index| Some(self.hold(index))) }
    }

    fn hold(&self, index: usize) -> Held<'_> {
        // A panic under a stripe leaves nothing half done that another command could see: the cache has its own locks.
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// FNV-1a, folded: spreads keys over the stripes. Who makes keys collide here slows down only his own tenant.
fn stripe_of(key: &[u8]) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    usize::try_from((hash ^ (hash >> 32)) % STRIPES as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_twice_is_locked_once() {
        let stripes = Stripes::new();
        let both = stripes.lock_all([b"k".as_slice(), b"k", b"other"].into_iter());
        assert!(stripes.0[stripe_of(b"k")].try_lock().is_err());
        drop(both);
        drop(stripes.lock_everything());
        assert!(stripes.0[stripe_of(b"k")].try_lock().is_ok());
    }

    #[test]
    fn keys_spread() {
        let mut seen = [false; STRIPES];
        for number in 0..1000 {
            seen[stripe_of(format!("key:{number:012}").as_bytes())] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }
}
