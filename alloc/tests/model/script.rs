//! Scripts: what a run does, step by step, as values and as text.

use std::fmt;
use std::str::FromStr;

use proptest::prelude::*;

/// Declares the verbs with their names in text.
macro_rules! verbs {
    ($($(#[$meta:meta])* $verb:ident = $weight:literal,)*) => {
        /// What a step does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Verb { $($(#[$meta])* $verb,)* }

        const VERBS: &[(Verb, u32)] = &[$((Verb::$verb, $weight),)*];
    };
}

verbs! {
    /// An object in the group.
    Alloc = 24,
    /// An object in what is current on the thread.
    AllocHere = 8,
    AllocZeroed = 4,
    AllocNobody = 2,
    /// An object that is refused at `max` whatever the policy says.
    AllocFallible = 3,
    Free = 14,
    /// The object gets another size, in the group.
    Realloc = 8,
    /// The same in what is current on the thread.
    ReallocHere = 3,
    /// A child of the group, or of the root; `bytes` is its limit, if not 0.
    Create = 5,
    /// A child whose name is taken.
    CreateTaken = 1,
    /// Another handle.
    Clone = 1,
    /// A handle goes.
    Drop = 5,
    Enter = 4,
    Leave = 4,
    SetMax = 4,
    SetPolicy = 2,
    Reclaim = 2,
    ShrinkTo = 1,
    ForceEmpty = 1,
    Drain = 2,
    Purge = 1,
    /// Every invariant of the allocator, and every object.
    Check = 1,
    /// An entry of the cache, in the group.
    Put = 10,
    Get = 3,
    Remove = 2,
    /// The thread ends, and another takes its place.
    Renew = 1,
}

/// The verb with that number, of as many as there are.
#[allow(dead_code, reason = "for the fuzzer, whose bytes are steps")]
pub(crate) fn verb(number: usize) -> Verb {
    VERBS[number % VERBS.len()].0
}

/// One step. What picks something is taken modulo how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) verb: Verb,
    /// The thread that does it.
    pub(crate) who: usize,
    pub(crate) group: usize,
    /// An object, a key, a policy.
    pub(crate) object: usize,
    pub(crate) bytes: usize,
    /// The alignment's logarithm.
    pub(crate) align: u32,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { verb, who, group, object, bytes, align } = self;
        write!(f, "{verb:?} who={who} group={group} object={object} bytes={bytes} align={align}")
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let verb = words.next().ok_or("an empty line")?;
        let found = VERBS.iter().find(|(known, _)| format!("{known:?}") == verb);
        let (verb, _) = *found.ok_or_else(|| format!("no such verb: {verb}"))?;
        let mut op = Op { verb, who: 0, group: 0, object: 0, bytes: 0, align: 0 };
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("not x=n: {word}"))?;
            let value: usize = value.parse().map_err(|_| format!("no number: {word}"))?;
            match name {
                "who" => op.who = value,
                "group" => op.group = value,
                "object" => op.object = value,
                "bytes" => op.bytes = value,
                "align" => op.align = u32::try_from(value).map_err(|e| e.to_string())?,
                _ => return Err(format!("no such field: {word}")),
            }
        }
        Ok(op)
    }
}

/// A run: its steps, and whether everything is drained and compared exactly after each, or only
/// where a step drains.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) strict: bool,
    pub(crate) ops: Vec<Op>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.strict { "strict" } else { "lazy" })?;
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

/// A failure prints the text that may be kept.
impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl FromStr for Script {
    type Err = String;

    /// Lines that begin with `#` are comments.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let strict = match lines.next() {
            Some("strict") => true,
            Some("lazy") => false,
            other => return Err(format!("strict or lazy first, not {other:?}")),
        };
        Ok(Script { strict, ops: lines.map(str::parse).collect::<Result<_, _>>()? })
    }
}

fn bytes() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1..400_usize,
        5 => 1..5_000_usize,
        2 => 1..80_000_usize,
        2 => 30_000..200_000_usize,
        1 => 200_000..2_000_000_usize,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let verbs = VERBS.iter().map(|&(verb, weight)| (weight, Just(verb))).collect();
    let verb = proptest::strategy::Union::new_weighted(verbs);
    let align = prop_oneof![8 => 0..4_u32, 2 => 4..8_u32, 1 => 8..15_u32];
    (verb, 0..4_usize, 0..1000_usize, 0..1000_usize, bytes(), align).prop_map(
        |(verb, who, group, object, bytes, align)| Op { verb, who, group, object, bytes, align },
    )
}

/// Scripts of up to `longest` steps.
pub(crate) fn script(longest: usize) -> impl Strategy<Value = Script> {
    (any::<bool>(), proptest::collection::vec(op(), 1..=longest))
        .prop_map(|(strict, ops)| Script { strict, ops })
}
