//! What memcg itself takes of memory: resident bytes, charged to nobody.
//!
//! Each a little more than what was measured; `cargo test -p memcg --test footprint` fails where one has come to take a
//! fourth more, or a third. With the feature `hardened` there are guard pages too, which take address space and no memory.

/// An idle group with a name of at most 16 bytes: its record, its context's and the engine's, its name and
/// its share of the table that finds it. A group that has had children takes 80 more, one that lists or caches have
/// objects of a list head for each.
pub const GROUP: usize = 264;

/// What is left of a group that is gone while objects of it live: its context's record, however many
/// objects there are.
pub const CONTEXT: usize = 28;

/// A thread that has allocated: its record with its stock, the magazines of one class, and what its stack
/// takes in any case. What it may cache beside it is 384 KiB of objects and 128 KiB of
/// charges.
pub const THREAD: usize = 54_000;

/// The tag of a slab-class object, in a span that has served an accounted one.
pub const TAG: usize = size_of::<memcg_accounting::Tag>();
