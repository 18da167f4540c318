//! A tenant: one database, one group, one cache.
//!
//! ```text
//!   /tenants          max = --total-max
//!     └── db7         max = --tenant 7=SIZE, --default-max or CONFIG SET maxmemory
//!           ├─ entries of its cache: nodes, keys, values      evicted inside the allocation that finds the group full
//!           └─ buffers of the connections that selected it    pinned
//! ```
//!
//! The cache's tables, and the `Tenant` itself, are the server's own: they are made outside of the group.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use memcg::{Cache, Group, Limit};

use crate::memory::value::now_ms;
use crate::memory::{Key, NoRoom, Value};
use crate::protocol::input::INPUT_BASE;
use crate::stripes::{AllHeld, Held, Stripes};

/// Largest input or reply buffer of a connection that has much to do.
const BUFFER_CAP: u64 = 16 << 10;

/// A buffer takes at most this part of its tenant's limit.
const BUFFER_SHARE: u64 = 256;

/// One database and whose memory it is in.
pub(crate) struct Tenant {
    index: u32,
    group: Group,
    cache: Cache<Key, Value>,
    stripes: Stripes,
    expiring: Expiring,
}

/// What is known of the keys that expire; counted by the way, and put right by each pass of the sweep.
#[derive(Debug, Default)]
struct Expiring {
    /// Keys with a deadline; evicted ones are still in it until the next pass ends.
    keys: AtomicI64,
    /// Keys that were given a deadline since the pass began.
    gained: AtomicI64,
    /// Mean time to live in milliseconds, of the last pass.
    mean_ttl: AtomicU64,
    /// Keys that have expired.
    expired: AtomicU64,
    pass: Mutex<Pass>,
}

/// A walk over all keys in steps.
#[derive(Debug, Default)]
struct Pass {
    cursor: u64,
    seen: i64,
    ttl: u64,
}

/// One key, locked: what is read here is still so when it is written.
pub(crate) struct Slot<'a> {
    tenant: &'a Tenant,
    key: &'a [u8],
    _held: Held<'a>,
}

impl core::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tenant")
            .field("index", &self.index)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Tenant {
    /// The tenant of database `index`, whose memory is `group`'s.
    pub(crate) fn new(index: u32, group: Group) -> Self {
        let cache = Cache::direct(&name_of(index));
        Self { index, group, cache, stripes: Stripes::new(), expiring: Expiring::default() }
    }

    /// The database's number.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Who pays.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Keys, expired ones that nobody has met included.
    pub(crate) fn len(&self) -> usize {
        self.cache.len()
    }

    /// Keys that were evicted to make room.
    pub(crate) fn evictions(&self) -> u64 {
        self.cache.stat().evictions
    }

    /// How large a connection's buffers may become while there is much to do: a small part of what the tenant has.
    pub(crate) fn buffer_cap(&self) -> usize {
        let share = match self.group.max() {
            Limit::Max => BUFFER_CAP,
            Limit::Bytes(max) => (max / BUFFER_SHARE).min(BUFFER_CAP),
        };
        usize::try_from(share).unwrap_or(INPUT_BASE).max(INPUT_BASE)
    }

    /// The value of a key, unless its time has come.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Value> {
        let value = self.cache.get(key)?;
        if is_due(&value) {
            return self.slot(key).get();
        }
        Some(value)
    }

    /// Locks a key.
    pub(crate) fn slot<'a>(&'a self, key: &'a [u8]) -> Slot<'a> {
        Slot { tenant: self, key, _held: self.stripes.lock(key) }
    }

    /// Locks several keys.
    pub(crate) fn lock_all<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> AllHeld<'_> {
        self.stripes.lock_all(keys)
    }

    /// The value of a key of which the caller holds the lock, unless its time has come.
    pub(crate) fn get_held(&self, _held: &AllHeld<'_>, key: &[u8]) -> Option<Value> {
        self.get_locked(key)
    }

    /// Stores `count` pairs, or none: the caller holds their locks.
    ///
    /// # Errors
    ///
    /// [`NoRoom`]; the keys that had been stored by then are gone, as if they had been evicted at once.
    pub(crate) fn put_all<'k>(
        &self,
        _held: &AllHeld<'_>,
        count: usize,
        key: impl Fn(usize) -> &'k [u8],
        value: impl Fn(usize) -> Result<Value, NoRoom>,
    ) -> Result<(), NoRoom> {
        for index in 0..count {
            let stored = value(index).and_then(|value| self.put_locked(key(index), value));
            if stored.is_err() {
                for done in 0..index {
                    self.remove_locked(key(done));
                }
                return Err(NoRoom);
            }
        }
        Ok(())
    }

    /// Drops every key.
    pub(crate) fn flush(&self) {
        let _held = self.stripes.lock_everything();
        self.cache.clear();
        // Relaxed: a statistic that the next pass puts right.
        self.expiring.keys.store(0, Ordering::Relaxed);
    }

    /// Some of the keys, and where to go on; 0 begins and ends.
    ///
    /// The vector is the caller's group's, the keys in it are the cache's own.
    pub(crate) fn scan(&self, cursor: u64) -> (u64, Vec<Key>) {
        self.cache.scan(cursor)
    }

    /// Whether a key that a scan gave is to be shown: its time has not come.
    pub(crate) fn is_live(&self, key: &Key) -> bool {
        self.expiring.keys.load(Ordering::Relaxed) <= 0
            || self.cache.peek(key.as_slice()).is_some_and(|value| !is_due(&value))
    }

    // ---- expiry -----------------------------------------------------------------------------------------------------

    /// Keys with a deadline, about.
    pub(crate) fn expiring(&self) -> u64 {
        u64::try_from(self.expiring.keys.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Mean time to live of those, in milliseconds, as the last pass found it.
    pub(crate) fn mean_ttl(&self) -> u64 {
        self.expiring.mean_ttl.load(Ordering::Relaxed)
    }

    /// Keys that have expired.
    pub(crate) fn expired(&self) -> u64 {
        self.expiring.expired.load(Ordering::Relaxed)
    }

    /// Sets when a value that the caller got from a [`Slot`] expires.
    pub(crate) fn set_deadline(&self, value: &Value, at: Option<u64>) {
        self.expiring.note(value.deadline().is_some(), at.is_some());
        value.set_deadline(at);
    }

    /// Removes some of the keys whose time has come; whether the pass over all keys goes on.
    pub(crate) fn sweep(&self) -> bool {
        let mut pass = self.expiring.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if pass.cursor == 0 {
            if self.expiring() == 0 {
                return false;
            }
            *pass = Pass::default();
            self.expiring.gained.store(0, Ordering::Relaxed);
        }
        let now = now_ms();
        let (next, keys) = self.cache.scan(pass.cursor);
        for key in &keys {
            let deadline = self.cache.peek(key.as_slice()).and_then(|value| value.deadline());
            match deadline {
                Some(at) if at <= now => drop(self.slot(key.as_slice()).get()),
                Some(at) => {
                    pass.seen += 1;
                    pass.ttl = pass.ttl.saturating_add(at - now);
                }
                None => {}
            }
        }
        pass.cursor = next;
        if next == 0 {
            self.expiring.finish(&pass);
        }
        next != 0
    }

    // ---- under a key's lock -----------------------------------------------------------------------------------------

    fn get_locked(&self, key: &[u8]) -> Option<Value> {
        let value = self.cache.get(key)?;
        if is_due(&value) {
            self.cache.remove(key);
            self.expiring.note(true, false);
            self.expiring.expired.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(value)
    }

    fn put_locked(&self, key: &[u8], value: Value) -> Result<Option<Value>, NoRoom> {
        let expires = value.deadline().is_some();
        let key = Key::copy_of(key)?;
        let old = memcg::fallible(|| self.cache.insert(key, value))?;
        self.expiring.note(old.as_ref().is_some_and(|old| old.deadline().is_some()), expires);
        Ok(old.filter(|old| !is_due(old)))
    }

    fn remove_locked(&self, key: &[u8]) -> Option<Value> {
        let old = self.cache.remove(key)?;
        self.expiring.note(old.deadline().is_some(), false);
        (!is_due(&old)).then_some(old)
    }
}

impl Slot<'_> {
    /// The value, unless its time has come; then the key is removed.
    pub(crate) fn get(&self) -> Option<Value> {
        self.tenant.get_locked(self.key)
    }

    /// Stores a value and answers the one before.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the tenant has none; the key is as it was.
    pub(crate) fn put(&self, value: Value) -> Result<Option<Value>, NoRoom> {
        self.tenant.put_locked(self.key, value)
    }

    /// Removes the key and answers its value.
    pub(crate) fn remove(&self) -> Option<Value> {
        self.tenant.remove_locked(self.key)
    }
}

impl Expiring {
    /// Counts a key that gains or loses its deadline.
    fn note(&self, before: bool, after: bool) {
        // Relaxed: statistics, from which nothing but the need of a sweep follows.
        if after && !before {
            self.keys.fetch_add(1, Ordering::Relaxed);
            self.gained.fetch_add(1, Ordering::Relaxed);
        }
        if before && !after {
            self.keys.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Puts the count right. Keys that gained a deadline behind the pass's back are added, some of them twice: too many
    /// only means one more pass.
    fn finish(&self, pass: &Pass) {
        let keys = pass.seen + self.gained.load(Ordering::Relaxed);
        self.keys.store(keys, Ordering::Relaxed);
        let seen = u64::try_from(pass.seen).unwrap_or(0);
        self.mean_ttl.store(pass.ttl.checked_div(seen).unwrap_or(0), Ordering::Relaxed);
    }
}

fn is_due(value: &Value) -> bool {
    value.deadline().is_some() && value.is_due(now_ms())
}

/// The name of a database's group and cache.
pub(crate) fn name_of(index: u32) -> String {
    format!("db{index}")
}
