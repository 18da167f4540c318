//! Who is compared: peers, memcg with accounting compiled out, and memcg in five states.

use std::path::{Path, PathBuf};

use crate::build::Children;
use crate::ours::child_of;

/// What an allocator is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It counts nothing: what ratios are of.
    Unaccounted,
    /// It counts.
    Accounting,
    /// memcg.
    Ours,
    /// Another build, given on the command line.
    Also,
}

/// One column.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its title.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The child.
    pub binary: PathBuf,
    /// What memcg's groups are to be.
    pub state: String,
    /// Why it is not run, if it is not.
    pub absent: Option<&'static str>,
}

/// The title of the column that ratios are of.
pub(super) const BASE: &str = "jemalloc";

/// memcg in a build without accounting.
pub(super) const COMPILED_OUT: &str = "compiled out";
/// memcg where no group is used.
pub(super) const NONE: &str = "none";
/// memcg in one limited group.
pub(super) const LIMITED: &str = "limited";
/// memcg at the end of a chain of eight limited groups.
pub(super) const DEEP: &str = "depth 8";
/// memcg, 1,000 limited groups in turn.
pub(super) const MANY: &str = "1000 groups";

/// The only workload that has something to evict.
const EVICTING: &str = "cache.own";

impl Cell {
    fn new(name: &str, kind: Kind, binary: PathBuf, state: &str) -> Self {
        Self { name: name.to_owned(), kind, binary, state: state.to_owned(), absent: None }
    }

    /// From `NAME=BINARY` or `NAME=BINARY:STATE`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, binary) = text.split_once('=')?;
        let (binary, state) = binary.split_once(':').unwrap_or((binary, "none"));
        Some(Self::new(name, Kind::Also, PathBuf::from(binary), state))
    }

    /// Whether that workload is run on it.
    #[must_use]
    pub fn runs(&self, workload: &str) -> bool {
        self.absent.is_none() && (self.state != "at-limit" || workload == EVICTING)
    }
}

/// All of them.
pub(super) fn all(children: &Children) -> Vec<Cell> {
    let at = |binary: &str| children.directory.join(binary);
    let peer = |name: &str, kind, binary: &str| Cell::new(name, kind, at(binary), "none");
    let ours = |name: &str, in_folder: &Path, state: &str| {
        Cell::new(name, Kind::Ours, in_folder.join(child_of(state)), state)
    };
    let (as_it_is, unaccounted) = (&children.directory, &children.unaccounted);
    let mut snmalloc = peer("snmalloc", Kind::Unaccounted, "on-snmalloc");
    if !children.cxx {
        snmalloc.absent = Some("needs a C++ compiler");
    }
    vec![
        peer(BASE, Kind::Unaccounted, "on-jemalloc"),
        // The same again: what the machine's noise is.
        peer("jemalloc#2", Kind::Unaccounted, "on-jemalloc"),
        peer("system", Kind::Unaccounted, "on-system"),
        peer("mimalloc", Kind::Unaccounted, "on-mimalloc"),
        snmalloc,
        peer("cap", Kind::Accounting, "on-cap"),
        peer("stats_alloc", Kind::Accounting, "on-stats-alloc"),
        peer("tracking", Kind::Accounting, "on-tracking"),
        peer("header", Kind::Accounting, "on-header"),
        ours(COMPILED_OUT, unaccounted, "compiled-out"),
        ours(NONE, as_it_is, "none"),
        ours(LIMITED, as_it_is, "limited"),
        ours(DEEP, as_it_is, "depth-8"),
        ours(MANY, as_it_is, "groups-1000"),
        ours("at limit", as_it_is, "at-limit"),
    ]
}

/// Children that are nowhere, for tests.
#[cfg(test)]
pub(super) fn none() -> Children {
    Children { directory: PathBuf::new(), unaccounted: PathBuf::new(), cxx: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_is_named_on_the_command_line() {
        let cell = Cell::parse("before=/tmp/on-memcg:limited").expect("it has a name");
        assert_eq!((cell.name.as_str(), cell.state.as_str()), ("before", "limited"));
        assert_eq!(cell.binary, Path::new("/tmp/on-memcg"));
        assert!(Cell::parse("nothing").is_none());
    }

    #[test]
    fn only_what_can_evict_is_run_at_its_limit() {
        let cells = all(&none());
        let at_limit = cells.last().expect("there are cells");
        assert!(at_limit.runs(EVICTING) && !at_limit.runs("pair.64"));
    }
}
