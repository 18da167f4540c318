//! For whom a workload allocates: nobody, or groups.

use std::future::Future;
use std::marker::PhantomData;
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

    /// A future of the tenant of that number: of nobody, where there are none.
    fn future<F>(
        self,
        _tenant: usize,
        future: F,
    ) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
    {
        future
    }
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

/// Nobody is charged: a peer without groups, whose programs would use the cache `C`.
#[derive(Debug)]
pub struct Nobody<C = SecondChance>(PhantomData<fn() -> C>);

impl Nobody {
    /// With a cache of std's parts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C> Default for Nobody<C> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<C> Clone for Nobody<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Nobody<C> {}

/// Entered nothing.
#[derive(Debug)]
pub struct NoScope;

/// Goes to nobody else.
#[derive(Debug)]
pub struct NoTurn;

impl Turn for NoTurn {
    #[inline(always)]
    fn tick(&mut self) {}
}

impl<C: TestCache> Tenants for Nobody<C> {
    type Scope = NoScope;
    type Turn = NoTurn;
    type Cache = C;

    #[inline(always)]
    fn home(self) -> NoScope {
        NoScope
    }

    #[inline(always)]
    fn of(self, _: usize) -> NoScope {
        NoScope
    }

    #[inline(always)]
    fn turn(self) -> NoTurn {
        NoTurn
    }
}
