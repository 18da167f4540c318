//! The commands.
//!
//! ```text
//!   table        which there are, how many arguments each takes, who carries it out
//!   connection   PING ECHO HELLO AUTH SELECT QUIT CLIENT
//!   strings      GET SET SETNX GETDEL MGET MSET APPEND STRLEN INCR DECR INCRBY DECRBY
//!   keys         DEL UNLINK EXISTS TYPE KEYS SCAN DBSIZE FLUSHDB FLUSHALL
//!   expire       EXPIRE PEXPIRE TTL PTTL PERSIST
//!   server       INFO MEMORY CONFIG
//!   docs         COMMAND
//! ```
//!
//! A command writes its reply as it goes. Whatever it cannot do it says as a [`Fault`]; then its reply so far is taken back
//! and the error stands alone. A command that changes something says only things of a fixed form, for which room was made
//! before it began: so it never has to take back a reply to something that it has done.

mod connection;
mod docs;
mod expire;
mod keys;
mod server;
mod strings;
mod table;

use core::fmt;

use crate::identity::Identity;
use crate::memory::{Key, NoRoom};
use crate::protocol::Args;
use crate::protocol::number::parse_i64;
use crate::reply::{OOM, Reply, Shown};
use crate::server::Server;
use crate::tenant::Tenant;

pub(crate) use table::TABLE;

/// What a command can see.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) server: &'a Server,
    pub(crate) args: &'a Args,
    pub(crate) reply: &'a mut Reply,
    pub(crate) identity: &'a mut Identity,
    pub(crate) name: &'a mut Option<Key>,
}

/// What comes after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next one.
    Next,
    /// The end of the connection, once the replies are sent.
    Close,
    /// A move to the tenant of this database, and then the reply.
    Select(u32),
}

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The tenant has no room for what it needs.
    NoRoom,
    /// This, in Redis's words.
    Say(&'static str),
    /// The wrong number of arguments for this command.
    Arity(&'static str),
}

/// How a command ends.
pub(crate) type Outcome = Result<Flow, Fault>;

/// What Redis says of options that it does not understand.
pub(crate) const SYNTAX: Fault = Fault::Say("ERR syntax error");

/// What Redis says of a number that is none.
pub(crate) const NOT_INTEGER: Fault = Fault::Say("ERR value is not an integer or out of range");

impl From<NoRoom> for Fault {
    fn from(NoRoom: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom => f.write_str(OOM),
            Self::Say(text) => f.write_str(text),
            Self::Arity(name) => write!(f, "ERR wrong number of arguments for '{name}' command"),
        }
    }
}

/// Who carries a command out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    /// Needs no tenant.
    Server(fn(&mut Call<'_>) -> Outcome),
    /// Works on the keys of the tenant that the connection has come to.
    Keys(fn(&mut Call<'_>, &Tenant) -> Outcome),
    /// Only its subcommands do something.
    Subcommands,
}

/// Where the keys are among a command's arguments, as COMMAND tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyPlaces {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) step: i64,
}

/// What COMMAND DOCS says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// The version of Redis that brought it.
    pub(crate) since: &'static str,
    /// The part of the manual that it is in.
    pub(crate) group: &'static str,
    /// What it does.
    pub(crate) summary: &'static str,
}

/// One command or subcommand.
#[derive(Debug)]
pub(crate) struct Command {
    /// In lower case; a subcommand's after a bar.
    pub(crate) name: &'static str,
    /// Arguments with the name; at least so many if negative.
    pub(crate) arity: i64,
    pub(crate) flags: &'static [Flag],
    pub(crate) keys: Option<KeyPlaces>,
    pub(crate) about: About,
    pub(crate) run: Run,
    pub(crate) subcommands: &'static [Command],
}

/// What is to be known of a command before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// Changes keys.
    Write,
    /// Reads keys.
    ReadOnly,
    /// Needs memory.
    DenyOom,
    /// Takes constant time.
    Fast,
    /// Is for those who run the server.
    Admin,
    /// May be used before authentication.
    NoAuth,
    /// May take long: many keys, or every thread's caches.
    Slow,
    /// Needs no memory of the tenant, not even to say what it did: a full tenant can be told.
    NoRoom,
}

impl Command {
    pub(crate) fn has(&self, flag: Flag) -> bool {
        self.flags.contains(&flag)
    }

    pub(crate) fn is_free_of_auth(&self) -> bool {
        self.has(Flag::NoAuth)
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.has(Flag::Slow)
    }

    pub(crate) fn needs_no_room(&self) -> bool {
        self.has(Flag::NoRoom)
    }

    /// The part of the name after the bar.
    fn short_name(&self) -> &'static str {
        self.name.rsplit('|').next().unwrap_or(self.name)
    }

    fn takes(&self, count: usize) -> bool {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if self.arity < 0 { count >= -self.arity } else { count == self.arity }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum NotFound<'a> {
    Command(&'a Args),
    Subcommand(&'static Command, &'a Args),
    Arity(&'static Command),
}

impl fmt::Display for NotFound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arity(command) => Fault::Arity(command.name).fmt(f),
            Self::Subcommand(command, args) => {
                write!(
                    f,
                    "ERR unknown subcommand '{}'. Try {} HELP.",
                    Shown(args.get(1)),
                    Upper(command.name)
                )
            }
            Self::Command(args) => {
                write!(
                    f,
                    "ERR unknown command '{}', with args beginning with: ",
                    Shown(args.get(0))
                )?;
                let mut left = 128_usize;
                for arg in args.from(1) {
                    if left == 0 {
                        break;
                    }
                    let shown = &arg[..arg.len().min(left)];
                    write!(f, "'{}' ", Shown(shown))?;
                    left = left.saturating_sub(shown.len() + 3);
                }
                Ok(())
            }
        }
    }
}

struct Upper(&'static str);

impl fmt::Display for Upper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, c.to_ascii_uppercase()))
    }
}

/// The command that a request asks for.
///
/// # Errors
///
/// [`NotFound`], in the order in which Redis looks: the name, the subcommand, the number of arguments.
pub(crate) fn find(args: &Args) -> Result<&'static Command, NotFound<'_>> {
    let command = named(TABLE, args.get(0)).ok_or(NotFound::Command(args))?;
    if command.subcommands.is_empty() || args.len() < 2 {
        return if command.takes(args.len()) { Ok(command) } else { Err(NotFound::Arity(command)) };
    }
    let sub = named(command.subcommands, args.get(1)).ok_or(NotFound::Subcommand(command, args))?;
    if sub.takes(args.len()) { Ok(sub) } else { Err(NotFound::Arity(sub)) }
}

/// The command of this name in a table.
fn named(table: &'static [Command], name: &[u8]) -> Option<&'static Command> {
    table.iter().find(|command| command.short_name().as_bytes().eq_ignore_ascii_case(name))
}

/// Carries a command out.
///
/// # Errors
///
/// A [`Fault`]: what has been written of the reply is to be taken back.
pub(crate) fn run(command: &Command, call: &mut Call<'_>, tenant: Option<&Tenant>) -> Outcome {
    match (command.run, tenant) {
        (Run::Server(run), _) => run(call),
        (Run::Keys(run), Some(tenant)) => run(call, tenant),
        (Run::Keys(_), None) => Err(Fault::NoRoom),
        (Run::Subcommands, _) => Err(Fault::Arity(command.name)),
    }
}

impl Call<'_> {
    /// An argument as an integer.
    ///
    /// # Errors
    ///
    /// Redis's "not an integer".
    fn integer(&self, index: usize) -> Result<i64, Fault> {
        parse_i64(self.args.get(index)).ok_or(NOT_INTEGER)
    }

    /// Says the lines of a HELP subcommand.
    fn help(&mut self, lines: &[&str]) -> Outcome {
        self.reply.array(lines.len())?;
        for line in lines {
            self.reply.simple(line)?;
        }
        Ok(Flow::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        let mut args = Args::new().expect("room");
        for word in words {
            args.begin(word.len(), true).expect("room");
            args.push(word.as_bytes());
            args.end();
        }
        args
    }

    #[test]
    fn names_are_found_in_any_case() {
        for (words, name) in [
            (&["get", "k"][..], "get"),
            (&["GeT", "k"], "get"),
            (&["client", "ID"], "client|id"),
            (&["COMMAND"], "command"),
            (&["command", "count"], "command|count"),
        ] {
            assert_eq!(find(&args(words)).expect("known").name, name);
        }
    }

    #[test]
    fn what_is_not_found_is_said_in_redis_words() {
        for (words, text) in [
            (&["foo"][..], "ERR unknown command 'foo', with args beginning with: "),
            (&["foo", "a", "b"], "ERR unknown command 'foo', with args beginning with: 'a' 'b' "),
            (&["get"], "ERR wrong number of arguments for 'get' command"),
            (&["client"], "ERR wrong number of arguments for 'client' command"),
            (&["client", "id", "x"], "ERR wrong number of arguments for 'client|id' command"),
            (&["client", "foo"], "ERR unknown subcommand 'foo'. Try CLIENT HELP."),
        ] {
            assert_eq!(find(&args(words)).expect_err("not to be found").to_string(), text);
        }
    }

    #[test]
    fn the_table_is_consistent() {
        for command in TABLE {
            assert_eq!(
                TABLE.iter().filter(|other| other.name == command.name).count(),
                1,
                "{}",
                command.name
            );
            let is_container = matches!(command.run, Run::Subcommands);
            assert!(!is_container || !command.subcommands.is_empty(), "{}", command.name);
            for sub in command.subcommands {
                assert!(sub.name.starts_with(&format!("{}|", command.name)), "{}", sub.name);
            }
            let reserves = command.has(Flag::DenyOom) && command.needs_no_room();
            assert!(!reserves, "{} cannot both need memory and not", command.name);
        }
    }
}
