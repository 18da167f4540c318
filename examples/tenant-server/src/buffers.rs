//! The memory that a connection holds.

use crate::memory::{Key, NoRoom};
use crate::protocol::{Args, Input};
use crate::reply::Reply;

/// All the memory that a connection has on the heap. It belongs to one group as a whole, and moves as a whole.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// What the socket gave.
    pub(crate) input: Input,
    /// The arguments of the request that is arriving or being carried out.
    pub(crate) args: Args,
    /// The replies that wait to be sent.
    pub(crate) reply: Reply,
    /// The name that the client gave itself.
    pub(crate) name: Option<Key>,
}

impl Buffers {
    /// The base reservations of a connection, in the current group.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn new() -> Result<Self, NoRoom> {
        Ok(Self {
            input: Input::holding(&[])?,
            args: Args::new()?,
            reply: Reply::new()?,
            name: None,
        })
    }

    /// The same contents in memory of the current group, no larger than they need: all or nothing.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none; `self` is as it was.
    pub(crate) fn moved(&self) -> Result<Self, NoRoom> {
        Ok(Self {
            input: Input::holding(self.input.unread())?,
            args: self.args.moved()?,
            reply: self.reply.moved()?,
            name: self.name.as_ref().map(|name| Key::copy_of(name.as_slice())).transpose()?,
        })
    }

    /// Gives back what is beyond the base reservations, for the connection is about to wait.
    pub(crate) fn rest(&mut self) {
        self.input.rest();
        self.args.rest();
        self.reply.rest();
    }
}
