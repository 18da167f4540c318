//! What a tenant's cache holds: keys, and values with the moment at which they expire.

use core::borrow::Borrow;
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Filling, NoRoom, Packed};

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The moment at which a value expires, in milliseconds since the epoch; 0 stands for never, inside this type only.
#[derive(Debug, Default)]
pub(crate) struct Deadline(AtomicU64);

/// A key: cloning it, as a scan of the cache does, allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Key(Packed<()>);

/// A value. The deadline is in the header, so EXPIRE and PERSIST allocate nothing and cannot be refused.
#[derive(Clone, Debug)]
pub(crate) struct Value(Packed<Deadline>);

/// A value whose bytes are still arriving.
#[derive(Debug)]
pub(crate) struct FillingValue(Filling<Deadline>);

impl Key {
    /// Copies `bytes` into the current group.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn copy_of(bytes: &[u8]) -> Result<Self, NoRoom> {
        Packed::copy_of(bytes).map(Self)
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// Bytes that a key of `len` bytes asks the allocator for.
    pub(crate) fn footprint(len: usize) -> usize {
        Packed::<()>::footprint(len)
    }
}

// A key hashes and compares as its bytes do, which is what lets the cache be asked with a `&[u8]`.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Hash for Key {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.as_slice().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Key {}

// SAFETY: a `Key` is one `Packed<()>` and no more; see there.
unsafe impl memcg::PlainDrop for Key {}
// SAFETY: a `Value` is one `Packed<Deadline>` and no more; see there.
unsafe impl memcg::PlainDrop for Value {}

impl Value {
    /// Copies `bytes` into the current group; never expires.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn copy_of(bytes: &[u8]) -> Result<Self, NoRoom> {
        Packed::copy_of(bytes).map(Self)
    }

    /// Joins two strings into a new value that expires as `self` does.
    ///
    /// # Errors
    ///
    /// As [`Value::copy_of`].
    pub(crate) fn joined(&self, tail: &[u8]) -> Result<Self, NoRoom> {
        let mut filling = FillingValue::new(self.len() + tail.len())?;
        filling.push(self.as_slice());
        filling.push(tail);
        let value = filling.finish();
        value.set_deadline(self.deadline());
        Ok(value)
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// When it expires.
    pub(crate) fn deadline(&self) -> Option<u64> {
        // Relaxed: a lone word; whoever changes it holds the key's stripe, whoever reads it may see either moment.
        match self.0.extra().0.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at),
        }
    }

    /// Sets when it expires.
    pub(crate) fn set_deadline(&self, at: Option<u64>) {
        // Relaxed: as in `deadline`.
        self.0.extra().0.store(at.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether its time has come.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }

    /// Bytes that a value of `len` bytes asks the allocator for.
    pub(crate) fn footprint(len: usize) -> usize {
        Packed::<Deadline>::footprint(len)
    }
}

impl FillingValue {
    /// Allocates a value of `len` bytes in the current group.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn new(len: usize) -> Result<Self, NoRoom> {
        Filling::new(len, Deadline::default()).map(Self)
    }

    /// As [`Filling::push`].
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        self.0.push(bytes)
    }

    /// As [`Filling::missing`].
    pub(crate) fn missing(&self) -> usize {
        self.0.missing()
    }

    /// The string under it, to be filled from a socket.
    pub(crate) fn filling(&mut self) -> &mut Filling<Deadline> {
        &mut self.0
    }

    /// As [`Filling::finish`].
    ///
    /// # Panics
    ///
    /// When bytes are missing.
    pub(crate) fn finish(self) -> Value {
        Value(self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hashes_as_its_bytes() {
        let state = std::hash::RandomState::new();
        let key = Key::copy_of(b"some key").expect("room");
        let hash = std::hash::BuildHasher::hash_one(&state, &key);
        assert_eq!(hash, std::hash::BuildHasher::hash_one(&state, b"some key".as_slice()));
    }

    #[test]
    fn a_deadline_is_set_moved_and_taken_away() {
        let value = Value::copy_of(b"v").expect("room");
        assert!(!value.is_due(u64::MAX));
        value.set_deadline(Some(50));
        assert!(value.is_due(50) && !value.is_due(49));
        let longer = value.joined(b"w").expect("room");
        assert_eq!((longer.as_slice(), longer.deadline()), (b"vw".as_slice(), Some(50)));
        value.set_deadline(None);
        assert_eq!(value.deadline(), None);
    }
}
