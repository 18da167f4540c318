//! For whom a workload allocates: nobody, or groups.

use std::future::Future;
use std::sync::Arc;

use crate::second_chance::SecondChance;

/// Who is charged for what a workload allocates.
pub trait Tenants: Copy + Send + Sync + 'static {
    /// Ends what [`home`](Self::home) and [`of`](Self::of) began.
    type Scope;
    /// See [`Turn`].
    type Turn: Turn;
    /// The cache that a program on this allocator would use.
    type Cache: TestCache;

    /// Enters what a thread of a workload lives in. Each thread does so first.
    fn home(self) -> Self::Scope;

    /// Enters the tenant of that number.
    fn of(self, tenant: usize) -> Self::Scope;

    /// A workload's clock.
    fn turn(self) -> Self::Turn;

    /// A future of the tenant of that number.
    fn future<F>(
        self,
        tenant: usize,
        future: F,
    ) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static;
}

/// Counts operations, and goes to the next tenant when it is time to.
pub trait Turn {
    /// One operation is done.
    fn tick(&mut self);
}

/// A bounded cache from numbers to bytes.
pub trait TestCache: Send + Sync + 'static {
    /// Room for `entries`, or for what the tenant's limit lets in.
    fn of(entries: usize) -> Self;

    /// The value of `key`.
    fn get(&self, key: u64) -> Option<Arc<[u8]>>;

    /// Stores `value`, and makes room for it.
    fn put(&self, key: u64, value: Arc<[u8]>);
}

/// Nobody is charged: a peer without groups.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

/// Entered nothing.
#[derive(Debug)]
pub struct NoScope;

impl Turn for Nobody {
    #[inline(always)]
    fn tick(&mut self) {}
}

impl Tenants for Nobody {
    type Scope = NoScope;
    type Turn = Nobody;
    type Cache = SecondChance;

    #[inline(always)]
    fn home(self) -> NoScope {
        NoScope
    }

    #[inline(always)]
    fn of(self, _: usize) -> NoScope {
        NoScope
    }

    #[inline(always)]
    fn turn(self) -> Nobody {
        Nobody
    }

    fn future<F>(self, _: usize, future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
    {
        future
    }
}
