//! Types that may be dropped in the middle of an allocation.

use std::borrow::Cow;
use std::ffi::{CString, OsString};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A type of which dropping a value runs no code but deallocation.
///
/// Only such values can be evicted directly, inside the allocation that needs the room
/// ([`Cache::direct`](crate::Cache::direct)): the caller may hold any lock and be in the middle
/// of anything, so arbitrary destructors can't run there. Everything else is evicted by the
/// worker ([`Cache::new`](crate::Cache::new)).
///
/// There is no implementation for all `Copy` types, so that a type says it itself, and none for
/// types that drop through a vtable (`dyn Trait`, `Bytes`) or hold a foreign hasher.
///
/// # Safety
///
/// Dropping a value, and a clone of it, from any thread and at any moment:
///
/// - runs no code but that of the global allocator, and of drops of which the same is true;
/// - takes no lock, waits for nothing, does not unwind, and never allocates;
/// - needs a bounded stack: the type does not contain itself (a list of boxes overflows it);
/// - drops no [`Group`](crate::Group) and nothing else of this crate's.
///
/// # Examples
///
/// ```
/// struct Page {
///     bytes: Box<[u8]>,
///     checksum: u64,
/// }
///
/// // SAFETY: it has no `Drop` of its own; its fields are a box of bytes and a number.
/// unsafe impl memcg::PlainDrop for Page {}
/// ```
pub unsafe trait PlainDrop {
    /// Keeps the trait from being used as `dyn PlainDrop`.
    #[doc(hidden)]
    const NOT_DYN: () = ();
}

macro_rules! plain {
    ($(#[doc = $reason:literal] $($ty:ty),* ;)*) => {$($(
        // SAFETY: see the reason that is given with each group of types.
        #[doc = $reason]
        unsafe impl PlainDrop for $ty {}
    )*)*};
}

plain! {
    /// It has no drop at all.
    (), bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64;
    /// It has no drop at all.
    NonZero<u8>, NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<u128>, NonZero<usize>;
    /// It has no drop at all.
    NonZero<i8>, NonZero<i16>, NonZero<i32>, NonZero<i64>, NonZero<i128>, NonZero<isize>;
    /// It has no drop at all.
    Duration, Instant, SystemTime, std::cmp::Ordering, std::thread::ThreadId;
    /// It has no drop at all.
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6;
    /// Bytes in place, or behind a pointer that is freed with them.
    str, String, CString, OsString, PathBuf, std::ffi::CStr, std::ffi::OsStr, std::path::Path;
}

// SAFETY: a reference has no drop at all.
unsafe impl<T: ?Sized> PlainDrop for &'static T {}
// SAFETY: it holds nothing.
unsafe impl<T: ?Sized> PlainDrop for PhantomData<T> {}
// SAFETY: it drops its elements, one after the other.
unsafe impl<T: PlainDrop, const N: usize> PlainDrop for [T; N] {}
// SAFETY: it drops its elements, one after the other.
unsafe impl<T: PlainDrop> PlainDrop for [T] {}
// SAFETY: it drops its elements and frees their place.
unsafe impl<T: PlainDrop> PlainDrop for Vec<T> {}
// SAFETY: it drops its content and frees its place.
unsafe impl<T: PlainDrop + ?Sized> PlainDrop for Box<T> {}
// SAFETY: the last one drops the content and frees its place; the count is an atomic.
unsafe impl<T: PlainDrop + ?Sized> PlainDrop for Arc<T> {}
// SAFETY: it frees its place, and drops nothing else.
unsafe impl<T: ?Sized> PlainDrop for std::sync::Weak<T> {}
// SAFETY: it drops its content, if it has one.
unsafe impl<T: PlainDrop> PlainDrop for Option<T> {}
// SAFETY: it drops the one or the other.
unsafe impl<T: PlainDrop, E: PlainDrop> PlainDrop for Result<T, E> {}
// SAFETY: a borrowed one has no drop; an owned one drops its content.
unsafe impl<T: ToOwned<Owned: PlainDrop> + ?Sized + 'static> PlainDrop for Cow<'static, T> {}

macro_rules! tuples {
    ($($first:ident $($rest:ident)*)?) => {$(
        // SAFETY: it drops its fields, one after the other.
        unsafe impl<$first: PlainDrop, $($rest: PlainDrop),*> PlainDrop for ($first, $($rest,)*) {}
        tuples! { $($rest)* }
    )?};
}

tuples! { A B C D E F G H I J K L }

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain<T: PlainDrop + ?Sized>() {}

    #[test]
    fn what_keys_and_values_are_made_of_is_plain() {
        is_plain::<Vec<u8>>();
        is_plain::<Arc<[u8]>>();
        is_plain::<Box<str>>();
        is_plain::<(u64, String, Option<Box<[u32]>>)>();
        is_plain::<(u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8)>();
        is_plain::<[Cow<'static, str>; 4]>();
    }
}
