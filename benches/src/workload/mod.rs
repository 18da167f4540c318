//! The workloads: own code, after those that the field measures allocators with.
//!
//! Allocation workloads call the allocator under test themselves; those of the application
//! family are plain programs, and measure the allocator that is installed.

mod batches;
mod cache;
mod churn;
mod glibc;
mod json;
mod kept;
mod large;
mod larson;
mod maps;
mod memory;
mod mstress;
mod pairs;
mod rptest;
mod sharing;
mod strings;
mod tasks;
mod tenants;
mod xmalloc;

use crate::block::{Allocator, Heap};
use crate::meter::{Meter, Scale};
use crate::tenants::Tenants;

pub use memory::rest;

/// Threads of a workload of several.
pub const THREADS: usize = 2;

/// What workloads are averaged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Allocations and nothing else, on one thread.
    Allocator,
    /// The same on two.
    TwoThreads,
    /// Programs.
    Application,
    /// Work that is done for one tenant after another.
    Groups,
    /// Resident bytes.
    Memory,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Allocator, Self::TwoThreads, Self::Application, Self::Groups, Self::Memory];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocator => "allocator",
            Self::TwoThreads => "two-thread",
            Self::Application => "application",
            Self::Groups => "groups",
            Self::Memory => "memory",
        }
    }

    /// Whether a family of that name is one of times.
    #[must_use]
    pub fn is_timed(name: &str) -> bool {
        Self::ALL.iter().any(|family| *family != Self::Memory && family.name() == name)
    }
}

/// What a workload runs on.
#[derive(Debug)]
pub struct Cx<A: 'static, T> {
    /// The allocator under test.
    pub heap: Heap<A>,
    /// For whom it allocates.
    pub tenants: T,
    /// How much of it.
    pub scale: Scale,
    /// On so many threads; none for as many as the workload has.
    pub threads: Option<usize>,
}

impl<A, T: Clone> Clone for Cx<A, T> {
    fn clone(&self) -> Self {
        Self { tenants: self.tenants.clone(), ..*self }
    }
}

impl<A, T: Copy> Copy for Cx<A, T> {}

impl<A, T> Cx<A, T> {
    /// Threads of a workload of several.
    fn team(&self) -> usize {
        self.threads.unwrap_or(THREADS)
    }
}

/// A workload on one allocator.
#[derive(Debug)]
pub struct Workload<A: 'static, T> {
    /// Its name.
    pub name: &'static str,
    /// Its family.
    pub family: Family,
    /// Runs it.
    pub run: fn(Cx<A, T>, &mut Meter),
}

impl<A, T> Workload<A, T> {
    fn new(family: Family, name: &'static str, run: fn(Cx<A, T>, &mut Meter)) -> Self {
        Self { name, family, run }
    }
}

/// Every workload.
#[must_use]
pub fn all<A: Allocator, T: Tenants>() -> Vec<Workload<A, T>> {
    let mut all = Vec::new();
    pairs::list(&mut all);
    batches::list(&mut all);
    churn::list(&mut all);
    glibc::list(&mut all);
    large::list(&mut all);
    larson::list(&mut all);
    xmalloc::list(&mut all);
    mstress::list(&mut all);
    rptest::list(&mut all);
    sharing::list(&mut all);
    maps::list(&mut all);
    strings::list(&mut all);
    json::list(&mut all);
    tasks::list(&mut all);
    cache::list(&mut all);
    tenants::list(&mut all);
    memory::list(&mut all);
    kept::list(&mut all);
    all
}

/// Runs `work` on new threads, [`THREADS`] if nothing else was asked for, each at home with the tenants, and answers the sum.
pub(crate) fn on_threads<A, T, F>(cx: Cx<A, T>, work: F) -> usize
where
    A: Allocator,
    T: Tenants,
    F: Fn(usize) -> usize + Sync,
{
    std::thread::scope(|scope| {
        let start = |thread| {
            let work = &work;
            scope.spawn(move || {
                let _home = cx.tenants.home();
                work(thread)
            })
        };
        let threads: Vec<_> = (0..cx.team()).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no workload panics")).sum()
    })
}
