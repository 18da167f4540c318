//! memcg's groups as tenants.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use memcg::{Cache, Entered, Error, FutureExt, Group};

use crate::child::Ask;
use crate::tenants::{Nobody, Tenants, TestCache, Turn};

/// The child that has memcg in that state. Each has its tenants compiled in, as the peers have theirs: two kinds in
/// one would be twice the code, and resident.
#[must_use]
pub fn child_of(state: &str) -> &'static str {
    match state {
        "none" | "compiled-out" => "on-memcg-alone",
        "groups-1000" => "on-memcg-tenants",
        _ => "on-memcg",
    }
}

/// A child's `main`: `run` knows some states, and answers none of another.
pub fn main(run: impl FnOnce(&str) -> Option<Result<ExitCode, Error>>) -> ExitCode {
    let state = Ask::of_this_process().map_or_else(|| String::from("none"), |ask| ask.state);
    match run(&state) {
        Some(Ok(code)) => code,
        Some(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("no such state here: {state}; ask {}", child_of(&state));
            ExitCode::from(2)
        }
    }
}

/// A group of that name and hard limit.
///
/// # Errors
///
/// As for its builder.
pub fn limited(parent: &Group, name: &str, max: u64) -> Result<Group, Error> {
    parent.builder(name).max(max).build()
}

/// Operations between two switches of the group.
pub const STRETCH: u32 = 16;

/// memcg serves, and no group is used.
pub type Unused = Nobody<OurCache>;

/// Groups that live as long as the process. With `SWITCH` a workload goes to the next one after
/// each [`STRETCH`] operations; without, all of it is the first one's.
#[derive(Clone, Copy, Debug)]
pub struct Groups<const SWITCH: bool>(&'static [Group]);

impl<const SWITCH: bool> Groups<SWITCH> {
    /// Keeps `groups` for ever.
    ///
    /// # Panics
    ///
    /// Of no group.
    #[must_use]
    pub fn new(groups: Vec<Group>) -> Self {
        assert!(!groups.is_empty());
        Self(groups.leak())
    }

    fn number(self, tenant: usize) -> &'static Group {
        if SWITCH { &self.0[tenant % self.0.len()] } else { &self.0[0] }
    }
}

/// See [`Groups`].
#[derive(Debug)]
pub struct GroupTurn<const SWITCH: bool> {
    groups: &'static [Group],
    next: usize,
    left: u32,
    scope: Option<Entered<'static>>,
}

impl<const SWITCH: bool> Turn for GroupTurn<SWITCH> {
    #[inline(always)]
    fn tick(&mut self) {
        if SWITCH {
            self.left -= 1;
            if self.left == 0 {
                self.left = STRETCH;
                self.next = if self.next + 1 == self.groups.len() { 0 } else { self.next + 1 };
                // The old scope ends before the new one begins.
                self.scope = None;
                self.scope = Some(self.groups[self.next].enter());
            }
        }
    }
}

impl<const SWITCH: bool> Tenants for Groups<SWITCH> {
    type Scope = Entered<'static>;
    type Turn = GroupTurn<SWITCH>;
    type Cache = OurCache;

    #[inline(always)]
    fn home(self) -> Entered<'static> {
        self.number(0).enter()
    }

    #[inline(always)]
    fn of(self, tenant: usize) -> Entered<'static> {
        self.number(tenant).enter()
    }

    #[inline(always)]
    fn turn(self) -> GroupTurn<SWITCH> {
        GroupTurn { groups: self.0, next: 0, left: STRETCH, scope: None }
    }

    fn future<F>(self, tenant: usize, future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
    {
        future.in_group(self.number(tenant))
    }
}

/// `memcg::Cache`, evicted in place. Where the current group has a limit of less than
/// [`ROOMY`], the limit bounds it; elsewhere the number of entries does.
#[derive(Debug)]
pub struct OurCache(Cache<u64, Arc<[u8]>>);

/// From this limit on a group counts as one that is never full.
pub const ROOMY: u64 = 1 << 30;

impl TestCache for OurCache {
    fn of(entries: usize) -> Self {
        let cache = Cache::direct("bench");
        let limit = Group::current().max();
        Self(if limit < ROOMY.into() { cache } else { cache.with_max_entries(entries) })
    }

    fn get(&self, key: u64) -> Option<Arc<[u8]>> {
        self.0.get(&key)
    }

    fn put(&self, key: u64, value: Arc<[u8]>) {
        // Over the limit nothing is stored, which no workload depends on.
        drop(self.0.insert(key, value));
    }
}
