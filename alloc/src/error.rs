//! What can go wrong, as two types: one that explains, one that is `Copy`.

use std::borrow::Cow;
use std::fmt;

use memcg_accounting::{CreateError, GroupRef, OverLimit as RawOverLimit, ParseLimitError};

use crate::path::{Path, Shown, try_to_string};
use crate::process::TREE;
use crate::scope::{self, Refused};

/// An allocation or insertion that was refused: by a limit, or by the system.
///
/// It is `Copy` and holds numbers: making one allocates nothing.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// let small = memcg::Group::root().builder("small").max(4096).build()?;
/// let cache = memcg::Cache::<u32, [u8; 8192]>::direct("pages");
/// let over = small.run(|| cache.insert(1, [0; 8192])).unwrap_err();
/// assert_eq!(over.group(), Some(small));
/// assert_eq!(over.max(), 4096);
/// # Ok::<(), memcg::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    refused_by: Option<GroupRef>,
    requested: u64,
    usage: u64,
    max: u64,
}

impl OverLimit {
    pub(crate) fn from_raw(raw: RawOverLimit) -> Self {
        let RawOverLimit { group, requested, usage, max, .. } = raw;
        Self { refused_by: Some(group), requested, usage, max }
    }

    /// The system had no memory for `requested` bytes.
    pub(crate) fn system(requested: u64) -> Self {
        Self { refused_by: None, requested, usage: 0, max: u64::MAX }
    }

    /// Why the calling thread's last refused allocation, of `requested` bytes, was refused.
    pub(crate) fn of_last_refusal(requested: u64) -> Self {
        match scope::take_refusal() {
            Some(Refused::Limit(raw)) => Self::from_raw(raw),
            Some(Refused::System(bytes)) => Self::system(bytes),
            None => Self::system(requested),
        }
    }

    /// Of which nobody needs a handle: it may be gone. `None` where the system had no memory.
    pub(crate) fn refused_by(&self) -> Option<GroupRef> {
        self.refused_by
    }

    /// Bytes that were asked for.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// Usage of the group that refused, when it did.
    #[must_use]
    pub fn usage(&self) -> u64 {
        self.usage
    }

    /// Its `max` then.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Whether no limit refused, but the system had no memory.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.refused_by.is_none()
    }
}

impl fmt::Debug for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverLimit")
            .field("group", &self.refused_by.map(Path))
            .field("requested", &self.requested)
            .field("usage", &self.usage)
            .field("max", &self.max)
            .finish()
    }
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requested, usage, max, .. } = self;
        let Some(path) = self.refused_by.map(Path) else {
            return write!(f, "the system has no memory for {requested} bytes");
        };
        if *requested == 0 {
            return write!(f, "usage of {path} is over its max: {usage} of {max} bytes");
        }
        write!(f, "{requested} bytes more do not fit into {path}: usage {usage}, max {max}")
    }
}

impl std::error::Error for OverLimit {}

/// What kind of error it is: see the predicates of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Exists,
    Busy,
    Again,
    Invalid,
    Unsupported,
    Gone,
    Cancelled,
    System,
}

/// Why an operation on a group failed. It names the group, and says what was asked for and what
/// was found; the predicates say what to do about it.
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// let error = memcg::Group::root().create("a/b").unwrap_err();
/// assert!(error.is_invalid());
/// assert!(error.to_string().contains("a/b"), "{error}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    kind: Kind,
    group: String,
    what: Cow<'static, str>,
    requested: u64,
    usage: u64,
    max: u64,
    reclaimed: u64,
}

/// The longest path that an error holds, in bytes, for nobody pays for it.
const LONGEST_PATH: usize = 512;

/// A path, or the end of one that is too long.
fn shortened(path: String) -> String {
    if path.len() <= LONGEST_PATH {
        return path;
    }
    let end = path.ceil_char_boundary(path.len() - LONGEST_PATH);
    try_to_string(format_args!("…{}", &path[end..])).unwrap_or_default()
}

/// The path of the root.
fn root() -> String {
    scope::unaccounted(|| try_to_string("/")).unwrap_or_default()
}

macro_rules! said {
    ($($what:tt)*) => { said(format_args!($($what)*)) };
}

/// What an error says; where there is no memory for it, that.
fn said(what: fmt::Arguments<'_>) -> Cow<'static, str> {
    let text = scope::unaccounted(|| try_to_string(what));
    text.map_or(Cow::Borrowed("there is no memory to say what"), Cow::Owned)
}

/// The path of a group as text, charged to nobody; empty where there is no memory for it.
pub(crate) fn path_of(group: GroupRef) -> String {
    scope::unaccounted(|| try_to_string(Path(group))).unwrap_or_default()
}

impl Error {
    fn new(kind: Kind, group: String, what: impl Into<Cow<'static, str>>) -> Self {
        let what = what.into();
        let group = shortened(group);
        Self { kind, group, what, requested: 0, usage: 0, max: u64::MAX, reclaimed: 0 }
    }

    // What these allocate is charged to nobody: whoever is told that a group is full may be in
    // that very group.

    pub(crate) fn create(parent: GroupRef, name: &str, error: CreateError) -> Self {
        scope::unaccounted(|| Self::of_creation(parent, name, error))
    }

    fn of_creation(parent: GroupRef, name: &str, error: CreateError) -> Self {
        let path = path_of(parent);
        match error {
            CreateError::Name(reason) => {
                let shown = Shown(name);
                Self::new(Kind::Invalid, path, said!("`{shown}` can't be a child: {reason}"))
            }
            CreateError::Exists => {
                Self::new(Kind::Exists, path, said!("there is a child `{}` already", Shown(name)))
            }
            CreateError::Gone => Self::new(Kind::Gone, path, "the group is going offline"),
            CreateError::Descendants(over) => Self::full(path, over, "descendants"),
            CreateError::Depth(over) => Self::full(path, over, "levels below it"),
            _ => Self::new(Kind::System, path, "the system has no memory for a group"),
        }
    }

    /// An ancestor, or if it is gone that at `path`, has as much of something as it may.
    fn full(path: String, over: memcg_accounting::OverLimit, of_what: &str) -> Self {
        let limiting = OverLimit::from_raw(over);
        let above = limiting.refused_by.map_or(path, path_of);
        let what = said!("it has {} {of_what} of at most {}", over.usage, over.max);
        Self {
            usage: over.usage,
            max: over.max,
            requested: 1,
            ..Self::new(Kind::Again, above, what)
        }
    }

    /// A tree that shares its lock can't become a deep one.
    pub(crate) fn shallow(group: GroupRef) -> Self {
        scope::unaccounted(|| {
            let most = memcg_accounting::DEPTH;
            let what = said!(
                "a top-level group with more than {most} levels below it is made so: see \
                 `GroupBuilder::max_depth`"
            );
            Self::new(Kind::Unsupported, path_of(group), what)
        })
    }

    pub(crate) fn not_installed(path: String) -> Self {
        let what = "memcg is not the process's global allocator: declare it with \
                    `#[global_allocator]` in a crate that is linked by name";
        Self::new(Kind::Unsupported, path, what)
    }

    pub(crate) fn untracked_root(what: &'static str) -> Self {
        scope::unaccounted(|| {
            let what =
                said!("the root is untracked and has no {what}: see `Memcg::accounting_root`");
            Self::new(Kind::Unsupported, root(), what)
        })
    }

    pub(crate) fn busy(group: GroupRef, wanted: u64, usage: u64, reclaimed: u64) -> Self {
        scope::unaccounted(|| {
            let what =
                said!("usage {usage} can't be reclaimed to {wanted}: what is left is in use");
            Self { usage, max: wanted, reclaimed, ..Self::new(Kind::Busy, path_of(group), what) }
        })
    }

    pub(crate) fn again(group: GroupRef, requested: u64, reclaimed: u64) -> Self {
        let path = path_of(group);
        Self::again_at(path, group, requested, reclaimed)
    }

    /// The same of a group at `path`, which may be gone.
    pub(crate) fn again_at(path: String, group: GroupRef, requested: u64, reclaimed: u64) -> Self {
        let (usage, limit) = (TREE.usage(group), TREE.max(group));
        let max = limit.bytes().unwrap_or(u64::MAX);
        scope::unaccounted(|| {
            let what = said!(
                "{reclaimed} of {requested} bytes could be reclaimed: usage {usage}, max {limit}"
            );
            Self { requested, reclaimed, usage, max, ..Self::new(Kind::Again, path, what) }
        })
    }

    pub(crate) fn cancelled(path: String, requested: u64, reclaimed: u64) -> Self {
        scope::unaccounted(|| {
            let what = said!("cancelled when {reclaimed} of {requested} bytes were reclaimed");
            Self { requested, reclaimed, ..Self::new(Kind::Cancelled, path, what) }
        })
    }

    pub(crate) fn gone(path: String, requested: u64, reclaimed: u64) -> Self {
        scope::unaccounted(|| {
            let what = said!(
                "the group went offline when {reclaimed} of {requested} bytes were reclaimed"
            );
            Self { requested, reclaimed, ..Self::new(Kind::Gone, path, what) }
        })
    }

    pub(crate) fn invalid(group: GroupRef, what: &'static str) -> Self {
        scope::unaccounted(|| Self::new(Kind::Invalid, path_of(group), what))
    }

    pub(crate) fn system_at(group: GroupRef, what: fmt::Arguments<'_>) -> Self {
        scope::unaccounted(|| Self::new(Kind::System, path_of(group), said(what)))
    }

    /// A live sibling has the name.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.kind == Kind::Exists
    }

    /// Memory that can't be reclaimed is in the way (`EBUSY`).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.kind == Kind::Busy
    }

    /// Less was done than was asked for; trying again may do more (`EAGAIN`).
    #[must_use]
    pub fn is_again(&self) -> bool {
        self.kind == Kind::Again
    }

    /// An argument is not one that the operation takes (`EINVAL`).
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.kind == Kind::Invalid
    }

    /// The process, or this group, does not have what was asked for.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.kind == Kind::Unsupported
    }

    /// The caller ended it before it was done (`EINTR`).
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind == Kind::Cancelled
    }

    /// The group is going offline.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.kind == Kind::Gone
    }

    /// The system has no memory.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.kind == Kind::System
    }

    /// Bytes that were reclaimed all the same.
    #[must_use]
    pub fn reclaimed(&self) -> u64 {
        self.reclaimed
    }

    /// Usage of the group, when the operation gave up.
    #[must_use]
    pub fn usage(&self) -> u64 {
        self.usage
    }

    /// The limit that could not be met.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// What was asked for.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.group, self.what)
    }
}

impl std::error::Error for Error {}

impl From<ParseLimitError> for Error {
    fn from(error: ParseLimitError) -> Self {
        Self::new(Kind::Invalid, root(), said!("{error}"))
    }
}
