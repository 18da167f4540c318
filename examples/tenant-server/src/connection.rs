//! A connection: the socket, and what has to be awaited.
//!
//! ```text
//!   read ──► go on ──► Step ──► Read: send, rest, read       Home: come to the tenant
//!    ▲                   │      Flush: send                  Select: come to another tenant
//!    └───────────────────┘      Slow: go on, off the loop    Close: send, end
//! ```
//!
//! Only [`Dialogue`] runs inside the tenant's group; what tokio allocates (a task, a registration, a waker) is allocated
//! outside of it. The connection's own memory ([`Buffers`]) is in the tenant's group as soon as it has come to a tenant:
//! with the first command on keys, the first argument that is not small, or SELECT. Until then, and so also before it has
//! authenticated, and while the tenant that it selected has no room, it has the small base reservations and no more, which
//! are the server's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::buffers::Buffers;
use crate::dialogue::{Dialogue, Place, Step};
use crate::identity::Identity;
use crate::memory::NoRoom;
use crate::protocol::input::INPUT_BASE;
use crate::server::Server;
use crate::tenant::Tenant;

/// Bytes of a refused argument that are thrown away per read.
const SKIP: usize = 16 << 10;

/// One client.
#[derive(Debug)]
pub(crate) struct Connection {
    server: &'static Server,
    home: Option<&'static Tenant>,
    dialogue: Dialogue,
    /// Whether the last read filled the buffer: there may be more, and a larger one pays.
    busy: bool,
    /// Last, so that it is dropped last: who sees the connection closed knows that its memory is free.
    stream: TcpStream,
}

/// Why a connection did not come to a tenant.
#[derive(Debug)]
enum NotSettled {
    NoRoom,
    Tenant(memcg::Error),
}

impl From<NoRoom> for NotSettled {
    fn from(NoRoom: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// Runs `f` in the tenant's group, or outside of any.
fn within<R>(home: Option<&Tenant>, f: impl FnOnce() -> R) -> R {
    match home {
        Some(tenant) => tenant.group().run(f),
        None => f(),
    }
}

impl Connection {
    /// A connection that has not come to a tenant yet.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the system has none.
    pub(crate) fn new(server: &'static Server, stream: TcpStream, id: u64) -> Result<Self, NoRoom> {
        let identity = Identity { id, db: 0, authenticated: server.password.is_none() };
        Ok(Self { server, stream, home: None, dialogue: Dialogue::new(identity)?, busy: false })
    }

    /// Serves the client until it leaves, breaks the protocol, or the server stops.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        // An error of the socket is the end of this connection and of nothing else.
        let _gone = self.serve(&mut stop).await;
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> io::Result<()> {
        loop {
            let mut step = self.go_on(false);
            if step == Step::Slow {
                // Another thread takes over the other connections of this one meanwhile.
                step = tokio::task::block_in_place(|| self.go_on(true));
            }
            match step {
                Step::Read => {
                    self.send().await?;
                    if !self.receive(stop).await? {
                        return Ok(());
                    }
                }
                Step::Flush => self.send().await?,
                Step::Slow => {}
                Step::Home => self.come_home(),
                Step::Select(db) => self.select(db).await?,
                Step::Close => {
                    self.send().await?;
                    return Ok(());
                }
            }
        }
    }

    fn go_on(&mut self, slow: bool) -> Step {
        let home = self.home;
        let buffer_cap = home.map_or(INPUT_BASE, Tenant::buffer_cap);
        within(home, || self.dialogue.go_on(self.server, Place { home, slow, buffer_cap }))
    }

    // ---- coming to a tenant -----------------------------------------------------------------------------------------

    fn come_home(&mut self) {
        let db = self.dialogue.identity.db;
        match self.settle(db) {
            Ok(()) => {}
            Err(NotSettled::NoRoom) => {
                if let Some(tenant) = self.server.tenants.get(db) {
                    self.dialogue.go_on_homeless(self.server, tenant);
                }
            }
            Err(NotSettled::Tenant(error)) => self.dialogue.fail(format_args!("ERR {error}")),
        }
    }

    async fn select(&mut self, db: u32) -> io::Result<()> {
        if self.home.is_some_and(|home| home.index() == db) {
            self.dialogue.selected(db);
            return Ok(());
        }
        if !self.dialogue.buffers.reply.is_movable() {
            self.send().await?;
        }
        match self.settle(db) {
            Ok(()) => self.dialogue.selected(db),
            Err(NotSettled::NoRoom) if self.leave(db) => self.dialogue.selected(db),
            Err(NotSettled::NoRoom) => self.dialogue.not_selected(),
            Err(NotSettled::Tenant(error)) => self.dialogue.fail(format_args!("ERR {error}")),
        }
        Ok(())
    }

    /// Leaves for a tenant that exists and has no room for the connection: it is at no tenant until there is some, and what
    /// needs no room is carried out, so that whoever comes can empty the tenant, or raise its limit. `false`: it stays, for
    /// there is no such tenant, or more to read than the server keeps for who is at none.
    fn leave(&mut self, db: u32) -> bool {
        let unread = self.dialogue.buffers.input.unread().len();
        if unread > INPUT_BASE || self.server.tenants.get(db).is_none() {
            return false;
        }
        let Ok(moved) = self.dialogue.buffers.moved() else { return false };
        within(self.home, || self.dialogue.buffers = moved);
        self.home = None;
        true
    }

    /// Makes the connection's memory anew in the tenant's group. All or nothing: what there was goes only then, and with it
    /// the last byte that the connection had of the tenant before.
    fn settle(&mut self, db: u32) -> Result<(), NotSettled> {
        let tenant =
            self.server.tenants.open(db).map_err(NotSettled::Tenant)?.ok_or(NotSettled::NoRoom)?;
        let moved = within(Some(tenant), || self.dialogue.buffers.moved())?;
        self.dialogue.buffers = moved;
        self.home = Some(tenant);
        Ok(())
    }

    // ---- the socket -------------------------------------------------------------------------------------------------

    /// Sends the replies that wait.
    async fn send(&mut self) -> io::Result<()> {
        while !self.dialogue.buffers.reply.is_empty() {
            let sent = std::future::poll_fn(|cx| self.poll_send(cx)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            within(self.home, || self.dialogue.buffers.reply.advance(sent));
        }
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (slices, count) = self.dialogue.buffers.reply.unsent();
        Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count])
    }

    /// Waits for more from the client; `false` when there will be no more, or when the server stops and nothing that the
    /// client has begun is left to finish.
    async fn receive(&mut self, stop: &mut watch::Receiver<bool>) -> io::Result<bool> {
        let stopping = *stop.borrow();
        if stopping && self.dialogue.is_idle() {
            // What has arrived is still answered; what would have to be awaited is not.
            return match std::future::poll_fn(|cx| Poll::Ready(self.poll_receive(cx))).await {
                Poll::Ready(received) => received.map(|count| count > 0),
                Poll::Pending => Ok(false),
            };
        }
        let received = tokio::select! {
            received = std::future::poll_fn(|cx| self.poll_receive(cx)) => received?,
            _ = stop.changed(), if !stopping => return Ok(true),
        };
        Ok(received > 0)
    }

    /// Receives into an argument, past one that was refused, or into the input.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let home = self.home;
        if self.dialogue.buffers.input.unread().is_empty() {
            if self.dialogue.parser.is_in_body() {
                return self.poll_argument(cx);
            }
            if let Some(left) = self.dialogue.parser.skipping() {
                return self.poll_skip(cx, left);
            }
        }
        within(home, || self.make_space());
        let polled = self.poll_input(cx);
        if polled.is_pending() {
            self.busy = false;
            within(home, || self.dialogue.buffers.rest());
        }
        polled
    }

    fn poll_argument(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { stream, dialogue, .. } = self;
        let Some(spare) = dialogue.buffers.args.spare() else {
            return self.poll_input(cx);
        };
        let mut space = ReadBuf::uninit(spare);
        let polled = Pin::new(stream).poll_read(cx, &mut space);
        let count = space.filled().len();
        // SAFETY: `ReadBuf` vouches that what it counts as filled lies at the front of `spare` and is initialised.
        unsafe { dialogue.buffers.args.advance(count) };
        dialogue.parser.passed(count, &mut dialogue.buffers.args);
        polled.map_ok(|()| count)
    }

    fn poll_skip(&mut self, cx: &mut Context<'_>, left: usize) -> Poll<io::Result<usize>> {
        let mut thrown_away = [core::mem::MaybeUninit::uninit(); SKIP];
        let mut space = ReadBuf::uninit(&mut thrown_away[..left.min(SKIP)]);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut space);
        let count = space.filled().len();
        self.dialogue.parser.passed(count, &mut self.dialogue.buffers.args);
        polled.map_ok(|()| count)
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::uninit(self.dialogue.buffers.input.spare());
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut space);
        let count = space.filled().len();
        self.busy = count > 0 && space.remaining() == 0;
        // SAFETY: as in `poll_argument`, at the front of the input's spare room.
        unsafe { self.dialogue.buffers.input.advance(count) };
        polled.map_ok(|()| count)
    }

    /// Makes room in the input: more of it while there is much to do, and for a line that does not fit.
    fn make_space(&mut self) {
        let buffer_cap = self.home.map_or(INPUT_BASE, Tenant::buffer_cap);
        let Dialogue { buffers: Buffers { input, args, .. }, parser, .. } = &mut self.dialogue;
        if self.busy && input.capacity() < buffer_cap {
            input.try_grow(buffer_cap);
        }
        // Only an inline request is left in the input until all of it is there.
        if input.is_full() && input.grow_for_line().is_err() {
            parser.refuse(args);
            input.clear();
        }
    }
}
