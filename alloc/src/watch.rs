//! Hearing of a group: usage thresholds, events, pressure, and its end. How it is noticed and
//! delivered is in `notice.rs`.
//!
//! Source: `cgroup.event_control` of cgroup v1, `memory.events` of v2, and `kernel/sched/psi.c`
//! for triggers.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::{Error, path_of};
use crate::group::{self, Group};
use crate::notice::{self, State};
use crate::path::Path;
use crate::process::ENGINE;
use crate::scope;
use crate::threshold::Threshold;
use crate::wakers::{Ticket, Wakers};

/// Tells when something happens to a group: see [`Group::watch`].
///
/// One wake-up may stand for several things that happened; whoever wakes up looks at the group.
/// When the group goes offline there is news for good ([`is_closed`](Watch::is_closed)). Dropping
/// it ends it. It holds no handle of the group.
///
/// All ways of waiting take the same news: of two that wait on one value, one gets it. `Send` and
/// `Sync`. What wakers panic with as they are woken or dropped is caught.
pub struct Watch {
    state: Arc<State>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("group", &Path(self.state.group()))
            .field("threshold", &self.state.threshold())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// What it waits for.
    #[must_use]
    pub fn threshold(&self) -> Threshold {
        self.state.threshold()
    }

    /// Whether the group is offline, or this is the child of a fork: nothing more will happen, and
    /// every wait answers at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.is_closed()
    }

    /// Takes the news, if there is any; never waits. One system call.
    #[must_use]
    pub fn try_wait(&self) -> bool {
        scope::at_safe_point();
        self.state.take()
    }

    /// Waits for news and takes it, for at most about `timeout`; `false`: there was none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use std::time::Duration;
    /// use memcg::{Group, Threshold};
    ///
    /// let tenant = Group::root().create("watched")?;
    /// let watch = tenant.watch(Threshold::Usage(1 << 20))?;
    /// assert!(!watch.try_wait());
    /// let buffer = tenant.run(|| vec![0u8; 2 << 20]);
    /// assert!(watch.wait(Duration::from_secs(60)), "usage rose over it");
    /// drop(buffer);
    /// assert!(watch.wait(Duration::from_secs(60)), "and fell below");
    /// # Ok::<(), memcg::Error>(())
    /// ```
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.try_wait() {
                return true;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            // Where no worker can be started, this thread is who delivers.
            let longest = if ENGINE.summon() { LONGEST_POLL } else { LOOK };
            poll_one(self.state.fd().as_raw_fd(), left.min(longest));
        }
    }

    /// A future that is ready when there is news, which it takes.
    ///
    /// Wakers are woken by the worker, never inside an allocation. Works with every executor, and
    /// any number of futures may wait on one value. Dropping one takes its waker along.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator] static ALLOC: memcg::Memcg = memcg::Memcg::new();
    /// # use memcg::{EventKind, Group, Threshold};
    /// # let tenant = Group::root().create("awaited")?;
    /// let refusals = tenant.watch(Threshold::Event(EventKind::Oom))?;
    /// let task = async move {
    ///     refusals.changed().await;
    ///     // … shed load …
    /// };
    /// # drop(task);
    /// # Ok::<(), memcg::Error>(())
    /// ```
    pub fn changed(&self) -> Changed<'_> {
        Changed { watch: self, ticket: None }
    }

    /// Ready when there is news, which it takes. Of several that poll one value so, the last is
    /// woken; [`changed`](Watch::changed) is for several.
    pub fn poll_changed(&self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_with(|wakers| wakers.leave_last(context.waker()))
    }

    fn poll_with(&self, leave: impl FnOnce(&Wakers)) -> Poll<()> {
        if self.try_wait() {
            return Poll::Ready(());
        }
        leave(self.state.wakers());
        if self.state.take() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A wait of this length is begun anew; some systems take no longer ones.
const LONGEST_POLL: Duration = Duration::from_secs(3600);
/// How often a thread looks that has no worker to wait for.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `fd` is readable, or a signal comes, or the time is over.
fn poll_one(fd: RawFd, timeout: Duration) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: one entry is given, which is valid for reading and writing.
    unsafe { libc::poll(&raw mut entry, 1, ms) };
}

impl AsFd for Watch {
    /// An eventfd, which is readable while there is news: for `epoll` and the like. It does not
    /// block. News is taken by [`try_wait`](Watch::try_wait), or by reading it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.state.fd().as_raw_fd()
    }
}

/// Waits for news of a [`Watch`]: see [`Watch::changed`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Changed<'a> {
    watch: &'a Watch,
    ticket: Option<Ticket>,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Changed { watch, ticket } = self.get_mut();
        watch.poll_with(|wakers| wakers.leave(ticket, context.waker()))
    }
}

impl Drop for Changed<'_> {
    /// Takes its waker along.
    fn drop(&mut self) {
        // Where there is news for good, the wakers were taken or are about to be.
        if self.ticket.is_some() && !self.watch.is_closed() {
            self.watch.state.wakers().forget(self.ticket);
        }
    }
}

/// Ends when the group goes offline.
#[cfg(feature = "stream")]
impl futures_core::Stream for Watch {
    type Item = ();

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<()>> {
        self.poll_changed(context).map(|()| (!self.is_closed()).then_some(()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        notice::remove(&self.state);
    }
}

impl Group {
    /// Watches the group: usage that crosses a threshold, an event, pressure, and its end.
    ///
    /// Any number of watches may be on one group, the root too. Each takes a file descriptor and
    /// about 300 bytes, charged to nobody. News is delivered by the worker, never inside an
    /// allocation: a charge that makes some sets a flag and wakes the worker. A charge of a group
    /// that nobody watches pays one load. To add a watch and to end one takes `O(log watches)`, and
    /// news as much beside the watches that it is for.
    ///
    /// - [`Threshold::Usage`] is edge-triggered, and a crossing there and back is not missed. It
    ///   sees usage as limits do: threads charge up to 32 KiB ahead and keep what is freed for a
    ///   while (see [`usage`](Group::usage)), so a rise shows that much early and a fall late. On
    ///   an untracked root it is looked at every 100 ms, and a shorter excursion is missed; the
    ///   keeper wakes up for it while such a watch lives.
    /// - [`Threshold::Event`] counts the subtree, as [`events`](Group::events); on an untracked
    ///   root, the whole process.
    /// - [`Threshold::Pressure`] is looked at every 100 ms while there are stalls.
    ///
    /// # Errors
    ///
    /// [`is_invalid`](Error::is_invalid): a usage of 0, or a pressure whose `window` is not 500 ms
    /// to 10 s or whose `stall` is nothing or longer than it.
    /// [`is_unsupported`](Error::is_unsupported): memcg is not the global allocator.
    /// [`is_system`](Error::is_system): no file descriptor or no memory is left.
    ///
    /// Source: `cgroup.event_control` of cgroup v1 for usage, modified `memory.events` of v2 for
    /// events, triggers in `memory.pressure` for pressure.
    pub fn watch(&self, threshold: Threshold) -> Result<Watch, Error> {
        threshold.check().map_err(|what| Error::invalid(self.as_ref(), what))?;
        group::prepare(|| path_of(self.as_ref()))?;
        // The system's own words for its errors take memory, which there may be none of.
        let no_fd = |error: io::Error| match error.raw_os_error() {
            Some(code) => Error::system_at(
                self.as_ref(),
                format_args!("no watch: error {code} of the system"),
            ),
            None => Error::system_at(self.as_ref(), format_args!("no watch: {error}")),
        };
        // From here on the drop takes everything back.
        let watch = Watch { state: State::new(self.as_ref(), threshold).map_err(no_fd)? };
        let added = notice::add(&watch.state);
        match added {
            Ok(()) => Ok(watch),
            Err(_) => {
                Err(Error::system_at(self.as_ref(), format_args!("no memory to note a watch")))
            }
        }
    }
}
