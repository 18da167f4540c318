//! A cache of std parts: what stands in for `memcg::Cache` where there is no memcg.
//!
//! A hash map of counted entries and a ring of them in the order of their arrival. An entry
//! that was asked for since the hand last passed gets a second chance.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::tenants::TestCache;

#[derive(Debug)]
struct Entry {
    key: u64,
    value: Arc<[u8]>,
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<u64, Arc<Entry>>,
    ring: VecDeque<Arc<Entry>>,
}

/// A bounded cache under one lock.
#[derive(Debug)]
pub struct SecondChance {
    inner: Mutex<Inner>,
    capacity: usize,
}

impl SecondChance {
    /// Entries in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TestCache for SecondChance {
    fn of(entries: usize) -> Self {
        Self { inner: Mutex::default(), capacity: entries }
    }

    fn get(&self, key: u64) -> Option<Arc<[u8]>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.entries.get(&key)?;
        // Relaxed: a hint, under the lock.
        entry.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&entry.value))
    }

    fn put(&self, key: u64, value: Arc<[u8]>) {
        let entry = Arc::new(Entry { key, value, used: AtomicBool::new(false) });
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.entries.insert(key, Arc::clone(&entry)).is_some() {
            inner.ring.retain(|old| old.key != key);
        }
        inner.ring.push_back(entry);
        while inner.entries.len() > self.capacity {
            let Some(oldest) = inner.ring.pop_front() else { break };
            // Relaxed: a hint, under the lock.
            if oldest.used.swap(false, Ordering::Relaxed) {
                inner.ring.push_back(oldest);
            } else {
                inner.entries.remove(&oldest.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_stays_longer() {
        let cache = SecondChance::of(2);
        cache.put(1, Arc::from([1]));
        cache.put(2, Arc::from([2]));
        assert!(cache.get(1).is_some());
        cache.put(3, Arc::from([3]));
        assert_eq!(cache.get(1).as_deref(), Some(&[1][..]));
        assert!(cache.get(2).is_none());
        assert_eq!(cache.len(), 2);
    }
}
