//! The arguments of one request.
//!
//! Short ones go into an arena that was reserved when the connection came to its tenant, so that a small request never
//! needs memory: a tenant that is full can still be asked, configured and flushed. Longer ones are each allocated in the
//! form in which the cache keeps values.

use core::mem::MaybeUninit;

use crate::memory::value::FillingValue;
use crate::memory::{NoRoom, Value, room};

/// Bytes that every connection has reserved for short arguments.
pub(crate) const ARENA: usize = 512;

/// Arguments that every connection has reserved places for.
pub(crate) const PLACES: usize = 16;

/// Longest argument that goes into the arena where it could as well have memory of its own.
const SHORT: usize = 128;

/// Why an argument was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotBegun {
    /// The tenant has no room.
    NoRoom,
    /// It needs memory of a tenant, and the connection has not come to one yet.
    NeedsHome,
}

impl From<NoRoom> for NotBegun {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

#[derive(Debug)]
enum Arg {
    Short { start: u32, len: u32 },
    Own(Value),
}

/// The arguments of the request that is arriving or being carried out.
#[derive(Debug)]
pub(crate) struct Args {
    // INVARIANT: every `Short` lies within `arena`.
    arena: Vec<u8>,
    places: Vec<Arg>,
    filling: Option<FillingValue>,
}

impl Args {
    /// No arguments, with the base reservations.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn new() -> Result<Self, NoRoom> {
        Ok(Self {
            arena: room::with_capacity(ARENA)?,
            places: room::with_capacity(PLACES)?,
            filling: None,
        })
    }

    /// The same arguments in memory of the current group.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn moved(&self) -> Result<Self, NoRoom> {
        debug_assert!(self.filling.is_none(), "an argument that is arriving does not move");
        let mut moved = Self {
            arena: room::with_capacity(self.arena.len().max(ARENA))?,
            places: room::with_capacity(self.places.len().max(PLACES))?,
            filling: None,
        };
        moved.arena.extend_from_slice(&self.arena);
        for arg in &self.places {
            moved.places.push(match arg {
                Arg::Short { start, len } => Arg::Short { start: *start, len: *len },
                Arg::Own(value) => Arg::Own(Value::copy_of(value.as_slice())?),
            });
        }
        Ok(moved)
    }

    /// Begins an argument of `len` bytes, which [`Args::push`] then fills.
    ///
    /// # Errors
    ///
    /// [`NotBegun`]: nothing has changed.
    pub(crate) fn begin(&mut self, len: usize, may_allocate: bool) -> Result<(), NotBegun> {
        let spare = self.arena.capacity() - self.arena.len();
        let in_arena = len <= spare && (len <= SHORT || !may_allocate);
        let needs_memory = !in_arena || self.places.len() == self.places.capacity();
        if needs_memory && !may_allocate {
            return Err(NotBegun::NeedsHome);
        }
        room::reserve_one(&mut self.places)?;
        match (u32::try_from(self.arena.len()), u32::try_from(len)) {
            (Ok(start), Ok(len)) if in_arena => self.places.push(Arg::Short { start, len }),
            _ => self.filling = Some(FillingValue::new(len)?),
        }
        Ok(())
    }

    /// Adds bytes to the argument that was begun; no more than it is long.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        match &mut self.filling {
            Some(filling) => {
                filling.push(bytes);
            }
            None => self.arena.extend_from_slice(bytes),
        }
    }

    /// The missing part of the argument that was begun, if it has memory of its own: to be received into.
    pub(crate) fn spare(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        self.filling.as_mut().map(|filling| filling.filling().spare())
    }

    /// Counts `count` bytes at the front of [`Args::spare`] as received.
    ///
    /// # Safety
    ///
    /// - `count` is at most the length of `spare()`.
    /// - The first `count` bytes of it have been initialised since.
    pub(crate) unsafe fn advance(&mut self, count: usize) {
        if let Some(filling) = &mut self.filling {
            // SAFETY: the caller vouches for the same two things.
            unsafe { filling.filling().advance(count) };
        }
    }

    /// Ends the argument that was begun: all of its bytes are there.
    pub(crate) fn end(&mut self) {
        if let Some(filling) = self.filling.take() {
            debug_assert!(filling.missing() == 0 && self.places.len() < self.places.capacity());
            self.places.push(Arg::Own(filling.finish()));
        }
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// One of them; empty beyond the last.
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        match self.places.get(index) {
            Some(Arg::Own(value)) => value.as_slice(),
            Some(Arg::Short { start, len }) => {
                let start = *start as usize;
                &self.arena[start..start + *len as usize]
            }
            None => &[],
        }
    }

    /// All from the `first` on.
    pub(crate) fn from(&self, first: usize) -> impl Iterator<Item = &[u8]> {
        (first..self.len()).map(|index| self.get(index))
    }

    /// One of them as a value: the very memory in which it arrived, or a copy of a short one.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn value(&self, index: usize) -> Result<Value, NoRoom> {
        match self.places.get(index) {
            Some(Arg::Own(value)) => Ok(value.clone()),
            _ => Value::copy_of(self.get(index)),
        }
    }

    /// Whether an argument equals `word`, without regard to case.
    pub(crate) fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Lets go of all of them.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.arena.clear();
        self.filling = None;
    }

    /// Gives back what is beyond the base reservations; there are no arguments.
    pub(crate) fn rest(&mut self) {
        if self.places.capacity() > PLACES
            && self.places.is_empty()
            && let Ok(places) = room::with_capacity(PLACES)
        {
            self.places = places;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(args: &mut Args, bytes: &[u8], may_allocate: bool) -> Result<(), NotBegun> {
        args.begin(bytes.len(), may_allocate)?;
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        args.push(head);
        args.push(tail);
        args.end();
        Ok(())
    }

    #[test]
    fn short_and_long_arguments_read_alike() {
        let mut args = Args::new().expect("room");
        let long = vec![b'l'; 5000];
        for bytes in [b"SET".as_slice(), b"", b"key", &long, b"tail"] {
            add(&mut args, bytes, true).expect("room");
        }
        let all: Vec<_> = args.from(0).map(<[u8]>::to_vec).collect();
        assert_eq!(all, [b"SET".to_vec(), vec![], b"key".to_vec(), long.clone(), b"tail".to_vec()]);
        assert!(args.is(0, "set") && !args.is(2, "set"));
        let value = args.value(3).expect("room");
        assert_eq!(value.as_slice().as_ptr(), args.get(3).as_ptr(), "a long one is not copied");
        let moved = args.moved().expect("room");
        assert_eq!(moved.get(3), long);
        assert_ne!(moved.get(3).as_ptr(), args.get(3).as_ptr(), "but moved");
        args.clear();
        assert_eq!((args.len(), args.get(0)), (0, b"".as_slice()));
    }

    #[test]
    fn without_a_home_only_the_reserved_memory_is_used() {
        let mut args = Args::new().expect("room");
        add(&mut args, &[b'x'; 400], false).expect("fits the arena");
        assert_eq!(add(&mut args, &[b'x'; 200], false), Err(NotBegun::NeedsHome));
        for _ in 1..PLACES {
            add(&mut args, b"y", false).expect("fits");
        }
        assert_eq!(add(&mut args, b"z", false), Err(NotBegun::NeedsHome));
        add(&mut args, b"z", true).expect("may grow");
        assert_eq!(args.len(), PLACES + 1);
        args.clear();
        args.rest();
        assert_eq!(args.places.capacity(), PLACES);
    }
}
