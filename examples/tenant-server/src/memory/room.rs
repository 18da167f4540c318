//! Growing a vector for a tenant, or saying that there is no room.

/// The tenant's limit refused the bytes, and nothing was left to evict.
///
/// Whoever gets this has changed nothing; the client is told `-OOM ...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl From<memcg::OverLimit> for NoRoom {
    fn from(_: memcg::OverLimit) -> Self {
        Self
    }
}

/// Makes room for `additional` more elements: afterwards so many pushes allocate nothing.
///
/// # Errors
///
/// [`NoRoom`] where the current group has none; the vector is as it was.
pub(crate) fn reserve<T>(vec: &mut Vec<T>, additional: usize) -> Result<(), NoRoom> {
    if vec.capacity() - vec.len() >= additional {
        return Ok(());
    }
    memcg::fallible(|| vec.try_reserve_exact(additional)).map_err(|_| NoRoom)
}

/// Makes room for one more element, doubling, so that n pushes cost O(n).
///
/// # Errors
///
/// As [`reserve`].
pub(crate) fn reserve_one<T>(vec: &mut Vec<T>) -> Result<(), NoRoom> {
    if vec.len() < vec.capacity() {
        return Ok(());
    }
    reserve(vec, vec.len().max(4))
}

/// An empty vector with room for exactly `capacity` elements.
///
/// # Errors
///
/// As [`reserve`].
pub(crate) fn with_capacity<T>(capacity: usize) -> Result<Vec<T>, NoRoom> {
    let mut vec = Vec::new();
    reserve(&mut vec, capacity)?;
    Ok(vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_there_and_what_cannot_be_is_refused() {
        let mut vec: Vec<u8> = with_capacity(100).expect("100 bytes");
        assert!(vec.capacity() >= 100);
        assert_eq!(reserve(&mut vec, usize::MAX / 2 + 1), Err(NoRoom));
        assert!(vec.capacity() >= 100, "a refusal changes nothing");
    }

    #[test]
    fn one_by_one_doubles() {
        let mut vec = Vec::new();
        for n in 0..1000_u32 {
            reserve_one(&mut vec).expect("room");
            vec.push(n);
        }
        assert!(vec.capacity() < 3000);
    }
}
