//! A connection's side of the protocol without its socket: what arrived is carried out until something has to be awaited.
//!
//! ```text
//!   Input ──► Parser ──► pending request ──► command ──► Reply
//!                              │
//!                              └─► Step: what the connection has to do before it can go on
//! ```
//!
//! All of it runs inside the tenant's group, and none of it waits. What may wait or must run outside of the group (to read,
//! to send, to come to a tenant) is handed back as a [`Step`]; the request stays pending, and the next call goes on with it.

use crate::buffers::Buffers;
use crate::commands::{self, Call, Command, Flow, Run};
use crate::identity::Identity;
use crate::memory::NoRoom;
use crate::protocol::{Event, Parser, ProtocolError, Rules};
use crate::reply::OOM;
use crate::server::Server;
use crate::tenant::Tenant;

/// What the connection has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the replies, then read more.
    Read,
    /// Send the replies, so that there is room for another one.
    Flush,
    /// Come to the tenant of the selected database.
    Home,
    /// Go on where it does not hold up other connections: the command may take long.
    Slow,
    /// Come to the tenant of this database, and answer the pending SELECT.
    Select(u32),
    /// Send the replies, then close.
    Close,
}

/// What has been read and not yet answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Request,
    Refused,
    Broken(ProtocolError),
}

/// A connection's state but for its socket and its tenant.
#[derive(Debug)]
pub(crate) struct Dialogue {
    pub(crate) identity: Identity,
    pub(crate) buffers: Buffers,
    pub(crate) parser: Parser,
    pending: Pending,
}

/// Where a command may run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// The tenant whose memory the connection uses.
    pub(crate) home: Option<&'a Tenant>,
    /// Whether it may take long.
    pub(crate) slow: bool,
    /// How large buffers may become while there is much to do.
    pub(crate) buffer_cap: usize,
}

impl Dialogue {
    /// The dialogue of a new connection.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn new(identity: Identity) -> Result<Self, NoRoom> {
        Ok(Self {
            identity,
            buffers: Buffers::new()?,
            parser: Parser::new(),
            pending: Pending::Nothing,
        })
    }

    /// Whether it stands between two requests: nothing was read that is not answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending == Pending::Nothing
            && self.parser.is_idle()
            && self.buffers.input.unread().is_empty()
    }

    /// Carries out requests until something has to be awaited.
    pub(crate) fn go_on(&mut self, server: &Server, place: Place<'_>) -> Step {
        loop {
            if self.pending == Pending::Nothing
                && let Some(step) = self.read(place)
            {
                return step;
            }
            if !self.buffers.reply.is_ready() {
                self.buffers.reply.try_grow(place.buffer_cap);
            }
            if !self.buffers.reply.is_ready() {
                return Step::Flush;
            }
            if let Some(step) = self.answer(server, place) {
                return step;
            }
        }
    }

    /// Gives the pending request up for want of a home: `tenant` has no room for the connection.
    ///
    /// What needs no room is carried out nevertheless, so that a full tenant can be emptied.
    pub(crate) fn go_on_homeless(&mut self, server: &Server, tenant: &Tenant) {
        if self.pending != Pending::Request {
            self.parser.refuse(&mut self.buffers.args);
            return;
        }
        match commands::find(&self.buffers.args) {
            Ok(command) if command.needs_no_room() => {
                self.call(server, command, Some(tenant));
            }
            _ => self.say_oom(),
        }
        self.done();
    }

    /// Answers the pending request with an error.
    pub(crate) fn fail(&mut self, text: impl core::fmt::Display) {
        if self.pending == Pending::Nothing {
            self.parser.refuse(&mut self.buffers.args);
            return;
        }
        self.say_error(text);
        self.done();
    }

    /// Answers the pending SELECT: the connection has come to the tenant of `db`, or waits for room there.
    pub(crate) fn selected(&mut self, db: u32) {
        self.identity.db = db;
        self.say(|reply| reply.ok());
        self.done();
    }

    /// Answers the pending SELECT: there is no room for the connection there.
    pub(crate) fn not_selected(&mut self) {
        self.say_oom();
        self.done();
    }

    fn read(&mut self, place: Place<'_>) -> Option<Step> {
        let rules =
            Rules { authenticated: self.identity.authenticated, at_home: place.home.is_some() };
        self.pending =
            match self.parser.advance(&mut self.buffers.input, &mut self.buffers.args, rules) {
                Event::More => return Some(Step::Read),
                Event::NeedsHome => return Some(Step::Home),
                Event::Request => Pending::Request,
                Event::Refused => Pending::Refused,
                Event::Broken(error) => Pending::Broken(error),
            };
        None
    }

    fn answer(&mut self, server: &Server, place: Place<'_>) -> Option<Step> {
        match self.pending {
            Pending::Nothing => return None,
            Pending::Request => {
                if let Some(step) = self.request(server, place) {
                    return Some(step);
                }
            }
            Pending::Refused => self.say_oom(),
            Pending::Broken(error) => {
                self.say_error(format_args!("ERR Protocol error: {error}"));
                return Some(Step::Close);
            }
        }
        self.done();
        None
    }

    /// Carries out the pending request, or says what it waits for.
    fn request(&mut self, server: &Server, place: Place<'_>) -> Option<Step> {
        let command = match commands::find(&self.buffers.args) {
            Ok(command) => command,
            Err(not_found) => {
                server.stats.count_error();
                let said = self.buffers.reply.error(not_found);
                debug_assert!(said.is_ok(), "an error always fits");
                return None;
            }
        };
        if !self.identity.authenticated && !command.is_free_of_auth() {
            server.stats.count_error();
            self.say_error("NOAUTH Authentication required.");
            return None;
        }
        if matches!(command.run, Run::Keys(_)) && place.home.is_none() {
            return Some(Step::Home);
        }
        if command.is_slow() && !place.slow {
            return Some(Step::Slow);
        }
        match self.call(server, command, place.home) {
            Flow::Next => None,
            Flow::Close => Some(Step::Close),
            Flow::Select(db) => Some(Step::Select(db)),
        }
    }

    fn call(&mut self, server: &Server, command: &Command, tenant: Option<&Tenant>) -> Flow {
        server.stats.count_command();
        let mark = self.buffers.reply.mark();
        let mut call = Call {
            server,
            args: &self.buffers.args,
            reply: &mut self.buffers.reply,
            name: &mut self.buffers.name,
            identity: &mut self.identity,
        };
        let fault = match commands::run(command, &mut call, tenant) {
            Ok(flow) => return flow,
            Err(fault) => fault,
        };
        server.stats.count_error();
        self.buffers.reply.take_back(mark);
        self.say_error(fault);
        Flow::Next
    }

    fn done(&mut self) {
        self.buffers.args.clear();
        self.pending = Pending::Nothing;
    }

    fn say_oom(&mut self) {
        self.say_error(OOM);
    }

    fn say_error(&mut self, text: impl core::fmt::Display) {
        self.say(|reply| reply.error(text));
    }

    /// Says something of a fixed form, for which room was reserved before the request was looked at.
    fn say(&mut self, what: impl FnOnce(&mut crate::reply::Reply) -> Result<(), NoRoom>) {
        let said = what(&mut self.buffers.reply);
        debug_assert!(said.is_ok(), "a reply of a fixed form did not fit what was reserved for it");
    }
}
