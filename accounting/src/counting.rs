//! A build that counts what threads share: `--cfg memcg_counting`.
//!
//! [`sync`](crate::sync) then has these atomics in place of core's, under the same names, and so does every
//! layer. Nothing else of the code differs, so the figures are those of the code that is
//! measured elsewhere by time. Such a build is slower, and is not for use.
//!
//! # Invariants
//!
//! - An atomic is not dereferenced to core's: what is a read-modify-write is in the list below, or does not
//!   compile.

use core::fmt;
use core::sync::atomic as core_atomic;
use core::sync::atomic::Ordering;

/// What was done so far, by all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Atomic read-modify-writes, one for each try of a lock among them.
    pub read_modify_writes: u64,
    /// Locks that were taken: the short ones of all layers, and those of thread records.
    pub locks: u64,
    /// Tries that found the lock taken.
    pub contended: u64,
}

/// Threads count in one of these, for counting must not make them wait for each other.
const SHARDS: usize = 64;

#[repr(align(128))]
struct Shard {
    read_modify_writes: core_atomic::AtomicU64,
    locks: core_atomic::AtomicU64,
    contended: core_atomic::AtomicU64,
}

static COUNTED: [Shard; SHARDS] = [const {
    Shard {
        read_modify_writes: core_atomic::AtomicU64::new(0),
        locks: core_atomic::AtomicU64::new(0),
        contended: core_atomic::AtomicU64::new(0),
    }
}; SHARDS];

/// The calling thread's.
fn shard() -> &'static Shard {
    // SAFETY: `pthread_self` takes nothing and always succeeds.
    let id = unsafe { libc::pthread_self() };
    // The top bits of a product depend on all bits of the number.
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &COUNTED[usize::try_from(mixed >> (libc::pthread_t::BITS - SHARDS.ilog2())).unwrap_or(0)]
}

/// Relaxed, all of them: sums for reading.
fn add(to: &core_atomic::AtomicU64) {
    to.fetch_add(1, Ordering::Relaxed);
}

fn read_modify_write() {
    add(&shard().read_modify_writes);
}

/// A short lock was tried.
pub(crate) fn short_lock_tried(taken: bool) {
    read_modify_write();
    lock_tried(taken);
}

/// A lock of atomics that count themselves was tried.
pub(crate) fn lock_tried(taken: bool) {
    add(if taken { &shard().locks } else { &shard().contended });
}

/// What was done so far.
#[must_use]
pub fn counts() -> Counts {
    let sum = |of: fn(&Shard) -> &core_atomic::AtomicU64| {
        COUNTED.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    };
    Counts {
        read_modify_writes: sum(|shard| &shard.read_modify_writes),
        locks: sum(|shard| &shard.locks),
        contended: sum(|shard| &shard.contended),
    }
}

/// An atomic `A` that counts.
#[repr(transparent)]
pub struct Counted<A>(A);

impl<A: fmt::Debug> fmt::Debug for Counted<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<A: Default> Default for Counted<A> {
    fn default() -> Self {
        Self(A::default())
    }
}

/// Forwards what core's atomic has, and counts what reads, modifies and writes at once.
macro_rules! counted {
    ($atomic:ty, $value:ty, [$($generic:ident)?], [$($arithmetic:ident)*]) => {
        counted!($atomic, $value, [$($generic)?], [$($arithmetic)*], [
            compare_exchange compare_exchange_weak
        ]);
    };
    (
        $atomic:ty, $value:ty, [$($generic:ident)?], [$($arithmetic:ident)*], [$($exchange:ident)*]
    ) => {
        impl$(<$generic>)? Counted<$atomic> {
            /// As core's.
            #[inline]
            pub const fn new(value: $value) -> Self {
                Self(<$atomic>::new(value))
            }

            /// As core's.
            #[inline]
            pub fn load(&self, order: Ordering) -> $value {
                self.0.load(order)
            }

            /// As core's.
            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, order);
            }

            /// As core's.
            #[inline]
            pub fn as_ptr(&self) -> *mut $value {
                self.0.as_ptr()
            }

            /// As core's.
            #[inline]
            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            /// As core's.
            #[inline]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                read_modify_write();
                self.0.swap(value, order)
            }

            /// As core's; each try is one.
            ///
            /// # Errors
            ///
            /// As core's.
            #[inline]
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut f: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                self.0.fetch_update(set, fetch, |value| {
                    read_modify_write();
                    f(value)
                })
            }

            $(
                /// As core's.
                #[inline]
                pub fn $exchange(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    read_modify_write();
                    self.0.$exchange(old, new, success, failure)
                }
            )*

            $(
                /// As core's.
                #[inline]
                pub fn $arithmetic(&self, value: $value, order: Ordering) -> $value {
                    read_modify_write();
                    self.0.$arithmetic(value, order)
                }
            )*
        }
    };
}

/// Core's, but counted.
pub type AtomicBool = Counted<core_atomic::AtomicBool>;
/// Core's, but counted.
pub type AtomicU32 = Counted<core_atomic::AtomicU32>;
/// Core's, but counted.
pub type AtomicU64 = Counted<core_atomic::AtomicU64>;
/// Core's, but counted.
pub type AtomicUsize = Counted<core_atomic::AtomicUsize>;
/// Core's, but counted.
pub type AtomicPtr<T> = Counted<core_atomic::AtomicPtr<T>>;

counted!(core_atomic::AtomicBool, bool, [], [fetch_and fetch_or fetch_xor]);
counted!(core_atomic::AtomicU32, u32, [], [
    fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min
]);
counted!(core_atomic::AtomicU64, u64, [], [
    fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min
]);
counted!(core_atomic::AtomicUsize, usize, [], [
    fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min
]);
counted!(core_atomic::AtomicPtr<T>, *mut T, [T], []);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Lock, lock, try_lock};

    /// What `work` adds to the calling thread's shard. Another thread that shares it may count meanwhile, so
    /// the least of several tries is the answer.
    fn least(work: impl Fn()) -> (u64, u64, u64) {
        let read = || {
            let shard = shard();
            let load = |of: &core_atomic::AtomicU64| of.load(Ordering::Relaxed);
            (load(&shard.read_modify_writes), load(&shard.locks), load(&shard.contended))
        };
        let once = || {
            let before = read();
            work();
            let after = read();
            (after.0 - before.0, after.1 - before.1, after.2 - before.2)
        };
        (0..20).map(|_| once()).min().unwrap_or_default()
    }

    #[test]
    fn read_modify_writes_are_counted_and_loads_are_not() {
        let word = AtomicU32::new(0);
        let counted = least(|| {
            word.fetch_add(1, Ordering::Relaxed);
            word.store(7, Ordering::Relaxed);
            assert_eq!(word.swap(8, Ordering::Relaxed), 7);
            assert!(word.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err());
            assert_eq!(word.load(Ordering::Relaxed), 8);
        });
        assert_eq!(counted, (3, 0, 0));
    }

    #[test]
    fn a_lock_is_one_read_modify_write_and_what_finds_it_taken_is_contended() {
        let word = Lock::new(());
        assert_eq!(least(|| drop(lock(&word))), (1, 1, 0));
        let _held = lock(&word);
        assert_eq!(least(|| assert!(try_lock(&word).is_none())), (1, 0, 1));
    }

    #[test]
    fn a_records_lock_is_a_lock() {
        let gate = crate::Gate::closed(crate::Reason::EMPTY);
        assert_eq!(
            least(|| {
                assert!(gate.try_lock());
                gate.unlock();
            }),
            (1, 1, 0)
        );
        assert!(gate.try_lock());
        assert_eq!(least(|| assert!(!gate.try_lock())), (1, 0, 1));
    }

    #[test]
    fn all_threads_are_in_the_sum() {
        let word = AtomicU64::new(0);
        let before = counts().read_modify_writes;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| {
                        word.fetch_add(1, Ordering::Relaxed);
                    })
                });
            }
        });
        assert!(counts().read_modify_writes >= before + 4000);
    }
}
