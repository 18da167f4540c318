//! Which commands there are.

use super::Flag::{self, Admin, DenyOom, Fast, NoAuth, NoRoom, ReadOnly, Slow, Write};
use super::{
    About, Call, Command, KeyPlaces, Outcome, Run, connection, docs, expire, keys, server, strings,
};
use crate::tenant::Tenant;

const ONE_KEY: KeyPlaces = KeyPlaces { first: 1, last: 1, step: 1 };
const MANY_KEYS: KeyPlaces = KeyPlaces { first: 1, last: -1, step: 1 };
const PAIRS: KeyPlaces = KeyPlaces { first: 1, last: -1, step: 2 };
const SECOND: KeyPlaces = KeyPlaces { first: 2, last: 2, step: 1 };

const fn about(since: &'static str, group: &'static str, summary: &'static str) -> About {
    About { since, group, summary }
}

const fn server(
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
    run: fn(&mut Call<'_>) -> Outcome,
    about: About,
) -> Command {
    Command { name, arity, flags, keys: None, about, run: Run::Server(run), subcommands: &[] }
}

const fn keys(
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
    keys: Option<KeyPlaces>,
    run: fn(&mut Call<'_>, &Tenant) -> Outcome,
    about: About,
) -> Command {
    Command { name, arity, flags, keys, about, run: Run::Keys(run), subcommands: &[] }
}

const fn container(name: &'static str, about: About, subcommands: &'static [Command]) -> Command {
    Command { name, arity: -2, flags: &[], keys: None, about, run: Run::Subcommands, subcommands }
}

/// Every command.
pub(crate) const TABLE: &[Command] = &[
    server(
        "ping",
        -1,
        &[Fast],
        connection::ping,
        about("1.0.0", "connection", "Says PONG, or what it is given."),
    ),
    server(
        "echo",
        2,
        &[Fast],
        connection::echo,
        about("1.0.0", "connection", "Says what it is given."),
    ),
    server(
        "hello",
        -1,
        &[Fast, NoAuth],
        connection::hello,
        about("6.0.0", "connection", "Chooses the protocol, and authenticates on the way."),
    ),
    server(
        "auth",
        -2,
        &[Fast, NoAuth],
        connection::auth,
        about("1.0.0", "connection", "Authenticates the connection."),
    ),
    server(
        "select",
        2,
        &[Fast],
        connection::select,
        about("1.0.0", "connection", "Comes to the tenant of a database."),
    ),
    server(
        "quit",
        -1,
        &[Fast, NoAuth],
        connection::quit,
        about("1.0.0", "connection", "Closes the connection."),
    ),
    container("client", about("2.4.0", "connection", "About the connection itself."), CLIENT),
    keys(
        "get",
        2,
        &[ReadOnly, Fast],
        Some(ONE_KEY),
        strings::get,
        about("1.0.0", "string", "The value of a key."),
    ),
    keys(
        "set",
        -3,
        &[Write, DenyOom],
        Some(ONE_KEY),
        strings::set,
        about("1.0.0", "string", "Sets the value of a key."),
    ),
    keys(
        "setnx",
        3,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::setnx,
        about("1.0.0", "string", "Sets the value of a key that does not exist."),
    ),
    keys(
        "getdel",
        2,
        &[Write, Fast],
        Some(ONE_KEY),
        strings::getdel,
        about("6.2.0", "string", "The value of a key, which is deleted."),
    ),
    keys(
        "mget",
        -2,
        &[ReadOnly, Fast],
        Some(MANY_KEYS),
        strings::mget,
        about("1.0.0", "string", "The values of several keys."),
    ),
    keys(
        "mset",
        -3,
        &[Write, DenyOom],
        Some(PAIRS),
        strings::mset,
        about("1.0.1", "string", "Sets the values of several keys."),
    ),
    keys(
        "append",
        3,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::append,
        about("2.0.0", "string", "Appends to the value of a key."),
    ),
    keys(
        "strlen",
        2,
        &[ReadOnly, Fast, NoRoom],
        Some(ONE_KEY),
        strings::strlen,
        about("2.2.0", "string", "The length of a value."),
    ),
    keys(
        "incr",
        2,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::incr,
        about("1.0.0", "string", "Adds one to a number."),
    ),
    keys(
        "decr",
        2,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::decr,
        about("1.0.0", "string", "Takes one from a number."),
    ),
    keys(
        "incrby",
        3,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::incrby,
        about("1.0.0", "string", "Adds to a number."),
    ),
    keys(
        "decrby",
        3,
        &[Write, DenyOom, Fast],
        Some(ONE_KEY),
        strings::decrby,
        about("1.0.0", "string", "Takes from a number."),
    ),
    keys(
        "del",
        -2,
        &[Write, NoRoom],
        Some(MANY_KEYS),
        keys::del,
        about("1.0.0", "generic", "Deletes keys."),
    ),
    keys(
        "unlink",
        -2,
        &[Write, Fast, NoRoom],
        Some(MANY_KEYS),
        keys::del,
        about("4.0.0", "generic", "Deletes keys."),
    ),
    keys(
        "exists",
        -2,
        &[ReadOnly, Fast, NoRoom],
        Some(MANY_KEYS),
        keys::exists,
        about("1.0.0", "generic", "How many of the keys exist."),
    ),
    keys(
        "type",
        2,
        &[ReadOnly, Fast, NoRoom],
        Some(ONE_KEY),
        keys::kind,
        about("1.0.0", "generic", "The type of a value."),
    ),
    keys(
        "keys",
        2,
        &[ReadOnly, Slow],
        None,
        keys::keys,
        about("1.0.0", "generic", "The keys that match a pattern."),
    ),
    keys(
        "scan",
        -2,
        &[ReadOnly],
        None,
        keys::scan,
        about("2.8.0", "generic", "Some of the keys, and where to go on."),
    ),
    keys(
        "dbsize",
        1,
        &[ReadOnly, Fast, NoRoom],
        None,
        keys::dbsize,
        about("1.0.0", "server", "How many keys there are."),
    ),
    keys(
        "flushdb",
        -1,
        &[Write, Slow, NoRoom],
        None,
        keys::flushdb,
        about("1.0.0", "server", "Deletes every key of the database."),
    ),
    server(
        "flushall",
        -1,
        &[Write, Slow],
        keys::flushall,
        about("1.0.0", "server", "Deletes every key of every database."),
    ),
    keys(
        "expire",
        -3,
        &[Write, Fast, NoRoom],
        Some(ONE_KEY),
        expire::expire,
        about("1.0.0", "generic", "Sets a key's time to live in seconds."),
    ),
    keys(
        "pexpire",
        -3,
        &[Write, Fast, NoRoom],
        Some(ONE_KEY),
        expire::pexpire,
        about("2.6.0", "generic", "Sets a key's time to live in milliseconds."),
    ),
    keys(
        "ttl",
        2,
        &[ReadOnly, Fast, NoRoom],
        Some(ONE_KEY),
        expire::ttl,
        about("1.0.0", "generic", "A key's time to live in seconds."),
    ),
    keys(
        "pttl",
        2,
        &[ReadOnly, Fast, NoRoom],
        Some(ONE_KEY),
        expire::pttl,
        about("2.6.0", "generic", "A key's time to live in milliseconds."),
    ),
    keys(
        "persist",
        2,
        &[Write, Fast, NoRoom],
        Some(ONE_KEY),
        expire::persist,
        about("2.2.0", "generic", "Takes a key's time to live away."),
    ),
    server(
        "info",
        -1,
        &[],
        server::info,
        about("1.0.0", "server", "The state of the server and of each tenant."),
    ),
    container("memory", about("4.0.0", "server", "About memory."), MEMORY),
    container("config", about("2.0.0", "server", "About the configuration."), CONFIG),
    Command {
        subcommands: COMMAND,
        ..server(
            "command",
            -1,
            &[],
            docs::command,
            about("2.8.13", "server", "About the commands."),
        )
    },
];

const CLIENT: &[Command] = &[
    server(
        "client|id",
        2,
        &[Fast],
        connection::id,
        about("5.0.0", "connection", "The number of the connection."),
    ),
    server(
        "client|setname",
        3,
        &[Fast],
        connection::setname,
        about("2.6.9", "connection", "Names the connection."),
    ),
    server(
        "client|getname",
        2,
        &[Fast],
        connection::getname,
        about("2.6.9", "connection", "The name of the connection."),
    ),
    server(
        "client|setinfo",
        4,
        &[Fast],
        connection::setinfo,
        about("7.2.0", "connection", "Takes note of the client's library."),
    ),
    server(
        "client|help",
        2,
        &[Fast],
        connection::help,
        about("5.0.0", "connection", "Says what there is."),
    ),
];

const MEMORY: &[Command] = &[
    keys(
        "memory|usage",
        -3,
        &[ReadOnly, NoRoom],
        Some(SECOND),
        server::memory_usage,
        about("4.0.0", "server", "What a key and its value take."),
    ),
    server(
        "memory|stats",
        2,
        &[Slow],
        server::memory_stats,
        about("4.0.0", "server", "What the selected tenant and the allocator use."),
    ),
    server(
        "memory|purge",
        2,
        &[Slow],
        server::memory_purge,
        about("4.0.0", "server", "Gives freed memory back to the system."),
    ),
    server(
        "memory|help",
        2,
        &[],
        server::memory_help,
        about("4.0.0", "server", "Says what there is."),
    ),
];

const CONFIG: &[Command] = &[
    server(
        "config|get",
        -3,
        &[Admin],
        server::config_get,
        about("2.0.0", "server", "The values of parameters."),
    ),
    server(
        "config|set",
        -4,
        &[Admin, Slow],
        server::config_set,
        about("2.0.0", "server", "Sets parameters; maxmemory is the selected tenant's."),
    ),
    server(
        "config|resetstat",
        2,
        &[Admin],
        server::config_resetstat,
        about("2.0.0", "server", "Sets the counters of INFO stats to 0."),
    ),
    server(
        "config|help",
        2,
        &[],
        server::config_help,
        about("5.0.0", "server", "Says what there is."),
    ),
];

const COMMAND: &[Command] = &[
    server(
        "command|count",
        2,
        &[],
        docs::count,
        about("2.8.13", "server", "How many commands there are."),
    ),
    server("command|info", -2, &[], docs::info, about("2.8.13", "server", "About some commands.")),
    server(
        "command|docs",
        -2,
        &[],
        docs::docs,
        about("7.0.0", "server", "What some commands are for."),
    ),
    server(
        "command|list",
        -2,
        &[],
        docs::list,
        about("7.0.0", "server", "The names of the commands."),
    ),
    server("command|help", 2, &[], docs::help, about("5.0.0", "server", "Says what there is.")),
];
