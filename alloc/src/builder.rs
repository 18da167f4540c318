//! Making a group with limits.

use std::fmt;

use memcg_accounting::{CreateError, Limit, Name, NameError, OnLimit, Settings};

use crate::error::{Error, path_of};
use crate::group::{self, Group};
use crate::path::Shown;
use crate::process::ENGINE;

/// Makes a group: [`Group::builder`].
///
/// # Examples
///
/// ```
/// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// use memcg::{Group, OnLimit};
/// let group = Group::root()
///     .builder("batch")
///     .max(256 << 20)
///     .high(200 << 20)
///     .on_limit(OnLimit::OvercommitBy(1 << 20))
///     .build()?;
/// assert_eq!(group.max().to_string(), "256M");
/// # Ok::<(), memcg::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "`build` makes the group"]
pub struct GroupBuilder {
    parent: Group,
    /// In place: a group that is full has no room for it elsewhere.
    name: Name,
    is_whole: bool,
    settings: Settings,
}

impl fmt::Debug for GroupBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder")
            .field("parent", &self.parent)
            .field("name", &Shown(self.name.as_str()))
            .field("settings", &self.settings)
            .finish()
    }
}

impl GroupBuilder {
    pub(crate) fn new(parent: Group, name: &str) -> Self {
        let (name, is_whole) = Name::cut(name);
        Self { parent, name, is_whole, settings: Settings::default() }
    }

    /// The hard limit, in bytes. Default: none.
    pub fn max(mut self, limit: impl Into<Limit>) -> Self {
        self.settings.max = limit.into();
        self
    }

    /// Where background reclaim begins, in bytes. Default: nowhere.
    pub fn high(mut self, limit: impl Into<Limit>) -> Self {
        self.settings.high = limit.into();
        self
    }

    /// Best-effort protection, in bytes. Default: 0.
    pub fn low(mut self, bytes: u64) -> Self {
        self.settings.low = bytes;
        self
    }

    /// Protection, in bytes. Default: 0.
    pub fn min(mut self, bytes: u64) -> Self {
        self.settings.min = bytes;
        self
    }

    /// The policy at the limit. Default: the parent's.
    pub fn on_limit(mut self, policy: OnLimit) -> Self {
        self.settings.on_limit = Some(policy);
        self
    }

    /// How many levels there may be below it: see [`Group::set_max_depth`]. Default: 64 for a top-level
    /// group, and no bound of their own for others. A top-level group that may have more is told so here, for it
    /// has another lock then.
    pub fn max_depth(mut self, limit: impl Into<Limit>) -> Self {
        self.settings.max_depth = Some(limit.into());
        self
    }

    /// Makes the group.
    ///
    /// # Errors
    ///
    /// See [`Group::create`].
    pub fn build(self) -> Result<Group, Error> {
        group::prepare(|| path_of(self.parent.as_ref()))?;
        let name = self.name.as_str();
        let made = if self.is_whole {
            ENGINE.create(self.parent.as_ref(), name, self.settings)
        } else {
            Err(CreateError::Name(NameError::TooLong))
        };
        let made = made.map_err(|error| Error::create(self.parent.as_ref(), name, error))?;
        ENGINE.summon();
        ENGINE.want_ticks();
        Ok(Group::from_handle(made))
    }
}

impl Group {
    /// Makes a child without limits. Cost: one lock, a step for each level above, and a few
    /// hundred bytes of metadata, which are charged to nobody.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): the name is empty, longer than 255 bytes, `.` or
    /// `..`, or holds `/` or NUL. [`is_exists`](Error::is_exists): a live sibling has it.
    /// [`is_again`](Error::is_again): an ancestor has as many descendants, or levels below it, as it may.
    /// [`is_unsupported`](Error::is_unsupported): memcg is not the global allocator.
    pub fn create(&self, name: &str) -> Result<Group, Error> {
        self.builder(name).build()
    }

    /// Begins to make a child with limits.
    pub fn builder(&self, name: &str) -> GroupBuilder {
        GroupBuilder::new(self.clone(), name)
    }
}
