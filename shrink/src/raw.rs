//! What a shrinker is to this layer: a pointer and functions.

use core::fmt;

use memcg_accounting::GroupRef;

/// Why shrinkers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Cause {
    /// An allocation waits, and its own thread asks.
    Direct,
    /// An allocation waits, and the worker asks for it.
    Worker,
    /// Nobody waits: usage is over `high`, or an allocation could not wait.
    Background,
    /// A program asked by name; not pressure.
    Proactive,
}

/// What a call says to a shrinker, and what the shrinker says about its work.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Whose objects are meant. Online for the length of the call.
    pub group: GroupRef,
    /// How many objects to look at; 0 while counting.
    pub nr_to_scan: usize,
    /// How many were looked at: the shrinker's to change, set to `nr_to_scan` before.
    pub nr_scanned: usize,
    /// How hard it presses: 12 is a touch, 0 is everything.
    pub priority: u32,
    /// Why.
    pub cause: Cause,
}

/// An answer to "how many could go?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawCount {
    /// So many objects.
    Objects(usize),
    /// It can't tell now; it is not scanned, and asked again next time.
    Unknown,
    /// None at all: it is not asked again until it is marked.
    Empty,
    /// The call panicked: it is never called again.
    Panicked,
}

/// An answer to "let some go".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawScan {
    /// So many objects went. It is not believed: what counts is what was uncharged.
    Freed(usize),
    /// Nothing can go at this moment: a lock is taken.
    Stop,
    /// The call panicked: it is never called again.
    Panicked,
}

/// On which thread a shrinker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the one that allocates, inside the allocation.
    Direct,
    /// On a worker.
    Worker,
}

/// A shrinker's name, by value, cut after [`LEN`](ShrinkerName::LEN) bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShrinkerName {
    bytes: [u8; Self::LEN],
    len: u8,
}

impl ShrinkerName {
    /// The longest name that is kept whole, in bytes.
    pub const LEN: usize = 47;

    /// Keeps `name`, or as much of it as there is room for.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut end = name.len().min(Self::LEN);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; Self::LEN];
        bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
        Self { bytes, len: u8::try_from(end).unwrap_or(0) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
}

impl fmt::Debug for ShrinkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for ShrinkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A shrinker as it is registered: see [`Engine::register`](crate::Engine::register) for what
/// its functions promise.
#[derive(Clone, Copy, Debug)]
pub struct RawShrinker {
    /// Handed to each function.
    pub data: *const (),
    /// Counts what could go. Any thread may call it, several at once.
    pub count: unsafe fn(data: *const (), control: &Control) -> RawCount,
    /// Lets objects go.
    pub scan: unsafe fn(data: *const (), control: &mut Control) -> RawScan,
    /// Ends the shrinker: the last call, made once, after which `data` is not used.
    pub drop: unsafe fn(data: *const ()),
    /// For reports.
    pub name: ShrinkerName,
    /// Where it runs.
    pub place: Place,
    /// Whether it is asked for each group by itself. If not, it is asked when the root reclaims.
    pub group_aware: bool,
    /// Whether every group counts as marked until the shrinker says `Empty` for it. If not, a
    /// group is asked for once it was [marked](crate::Engine::mark).
    pub starts_marked: bool,
    /// What an object costs to make again, as the kernel counts it: 2 is usual, 0 is free.
    pub seeks: u32,
    /// How many objects one call looks at, at most; 0 takes the default.
    pub batch: u32,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(ShrinkerName::new("dentries").as_str(), "dentries");
        let long = "é".repeat(40);
        let kept = ShrinkerName::new(&long);
        assert_eq!(kept.as_str(), "é".repeat(23));
    }
}
