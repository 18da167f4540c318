//! Futures that run in a group: entered for every poll, and for the drop.

use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::OverLimit;
use crate::group::Group;

/// Puts futures into groups.
///
/// A task moves between threads and its thread runs other tasks in between, so a scope that is
/// held across an `await` would charge strangers. A wrapped future enters its group at each
/// poll and leaves it after, and enters it once more to be dropped.
///
/// It does not follow into tasks that the future spawns: they are polled by the runtime, in the
/// root. Wrap those too: `spawn(task.in_current_group())`.
pub trait FutureExt: Future {
    /// Runs the future in `group`, of which it holds a handle from now on.
    ///
    /// Allocates nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// use memcg::{FutureExt, Group};
    /// # use std::{future::Future, pin::pin, task::{Context, Poll, Waker}};
    ///
    /// let acme = Group::root().create("acme-future")?;
    /// let request = async { Box::new([0u8; 100]) }.in_group(&acme);
    /// # let polled = pin!(request).poll(&mut Context::from_waker(Waker::noop()));
    /// # let Poll::Ready(response) = polled else { panic!("it waits for nothing") };
    /// assert_eq!(Group::of(&*response), Some(acme));
    /// # Ok::<(), memcg::Error>(())
    /// ```
    fn in_group(self, group: &Group) -> InGroup<Self>
    where
        Self: Sized,
    {
        InGroup { group: group.clone(), future: ManuallyDrop::new(self) }
    }

    /// Runs the future in the group that is the calling thread's now.
    fn in_current_group(self) -> InGroup<Self>
    where
        Self: Sized,
    {
        self.in_group(&Group::current())
    }
}

impl<F: Future> FutureExt for F {}

/// A future that runs in a group. See [`FutureExt::in_group`].
///
/// The group stays online while this lives. It is `Send`, `Sync` and `Unpin` where the future is. What
/// the future's poll or drop panics with goes to the caller, outside the group again.
///
/// # Invariants
///
/// - `future` is there until `drop`, and never moves once this is pinned.
pub struct InGroup<F> {
    group: Group,
    future: ManuallyDrop<F>,
}

impl<F> fmt::Debug for InGroup<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InGroup").field("group", &self.group).finish_non_exhaustive()
    }
}

impl<F> InGroup<F> {
    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Ends the future at the next poll at which its group, or an ancestor, is over its `max`.
    ///
    /// For groups that let allocations through at the limit
    /// ([`OnLimit`](crate::OnLimit)`::Overcommit`): the tenant's work ends, and not the process.
    /// The look is before each poll: over the limit, the future is dropped, inside its group,
    /// and [`OverLimit`] is the output. A poll that is `Ready` wins.
    pub fn until_over_limit(self) -> UntilOverLimit<F> {
        UntilOverLimit { inner: Some(self) }
    }

    fn project(self: Pin<&mut Self>) -> (&Group, Pin<&mut F>) {
        // SAFETY: the future is not moved out of the reference: it is pinned again below, and
        // the group does not need to be pinned.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: `this` is pinned, so its future, which is a part of it, does not move until it
        // is dropped, which `drop` does in place.
        (&this.group, unsafe { Pin::new_unchecked(&mut *this.future) })
    }
}

impl<F: Future> Future for InGroup<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let (group, future) = self.project();
        let _entered = group.enter();
        future.poll(context)
    }
}

impl<F> Drop for InGroup<F> {
    fn drop(&mut self) {
        let _entered = self.group.enter();
        // SAFETY: this is the only place that drops the future, it is reached once, and the
        // future is not used after it.
        unsafe { ManuallyDrop::drop(&mut self.future) };
    }
}

/// A future that ends when its group is over its limit. See [`InGroup::until_over_limit`].
///
/// It is `Send`, `Sync` and `Unpin` where the future is. Over the limit the future is dropped inside
/// the poll, and what that panics with goes to whoever polled; it is dropped once.
///
/// # Invariants
///
/// - `inner` is there until it was dropped in place, over the limit, or because it was ready.
pub struct UntilOverLimit<F> {
    inner: Option<InGroup<F>>,
}

impl<F> fmt::Debug for UntilOverLimit<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UntilOverLimit").field("inner", &self.inner).finish()
    }
}

impl<F: Future> Future for UntilOverLimit<F> {
    type Output = Result<F::Output, OverLimit>;

    /// # Panics
    ///
    /// Panics when polled after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `inner` is pinned again below and dropped in place; nothing is moved.
        let inner = unsafe { &mut self.get_unchecked_mut().inner };
        let Some(running) = inner else { panic!("polled after it was ready") };
        if let Err(over) = running.group.check() {
            *inner = None;
            return Poll::Ready(Err(over));
        }
        // SAFETY: the option is a part of what is pinned, and its content is never moved.
        let polled = unsafe { Pin::new_unchecked(running) }.poll(context);
        if polled.is_ready() {
            *inner = None;
        }
        polled.map(Ok)
    }
}
