//! COMMAND: what client libraries and redis-cli ask when they connect.

use super::{Call, Command, Flag, Flow, NoRoom, Outcome, TABLE, named};
use crate::glob;
use crate::reply::Reply;

pub(super) fn command(call: &mut Call<'_>) -> Outcome {
    call.reply.array(TABLE.len())?;
    for command in TABLE {
        describe(call.reply, command)?;
    }
    Ok(Flow::Next)
}

pub(super) fn count(call: &mut Call<'_>) -> Outcome {
    call.reply.count(TABLE.len())?;
    Ok(Flow::Next)
}

pub(super) fn info(call: &mut Call<'_>) -> Outcome {
    if call.args.len() == 2 {
        return command(call);
    }
    call.reply.array(call.args.len() - 2)?;
    for name in call.args.from(2) {
        match by_full_name(name) {
            Some(command) => describe(call.reply, command)?,
            None => call.reply.null()?,
        }
    }
    Ok(Flow::Next)
}

pub(super) fn docs(call: &mut Call<'_>) -> Outcome {
    if call.args.len() == 2 {
        call.reply.map(TABLE.len())?;
        for command in TABLE {
            document(call.reply, command)?;
        }
        return Ok(Flow::Next);
    }
    // Names that do not exist are left out.
    let known = call.args.from(2).filter_map(by_full_name).count();
    call.reply.map(known)?;
    for command in call.args.from(2).filter_map(by_full_name) {
        document(call.reply, command)?;
    }
    Ok(Flow::Next)
}

/// COMMAND LIST [FILTERBY PATTERN pattern]
pub(super) fn list(call: &mut Call<'_>) -> Outcome {
    let pattern = match call.args.len() {
        2 => b"*".as_slice(),
        5 if call.args.is(2, "filterby") && call.args.is(3, "pattern") => call.args.get(4),
        _ => return Err(super::SYNTAX),
    };
    let listed = || {
        TABLE.iter().filter(|command| glob::matches_ignoring_case(pattern, command.name.as_bytes()))
    };
    call.reply.array(listed().count())?;
    for command in listed() {
        call.reply.bulk(command.name.as_bytes())?;
    }
    Ok(Flow::Next)
}

pub(super) fn help(call: &mut Call<'_>) -> Outcome {
    call.help(&[
        "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "(no subcommand)",
        "    Return details about all Redis commands.",
        "COUNT",
        "    Return the total number of commands in this Redis server.",
        "LIST [FILTERBY PATTERN <pattern>]",
        "    Return a list of all commands in this Redis server.",
        "INFO [<command-name> ...]",
        "    Return details about multiple Redis commands.",
        "DOCS [<command-name> ...]",
        "    Return documentation details about multiple Redis commands.",
        "HELP",
        "    Print this help.",
    ])
}

/// The command or, with a bar in its name, the subcommand.
fn by_full_name(name: &[u8]) -> Option<&'static Command> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let command = named(TABLE, parts.next()?)?;
    match parts.next() {
        None => Some(command),
        Some(sub) => named(command.subcommands, sub),
    }
}

fn flag_name(flag: Flag) -> Option<&'static str> {
    match flag {
        Flag::Write => Some("write"),
        Flag::ReadOnly => Some("readonly"),
        Flag::DenyOom => Some("denyoom"),
        Flag::Fast => Some("fast"),
        Flag::Admin => Some("admin"),
        Flag::NoAuth => Some("no_auth"),
        Flag::Slow | Flag::NoRoom => None,
    }
}

/// The ten elements of COMMAND INFO.
fn describe(reply: &mut Reply, command: &Command) -> Result<(), NoRoom> {
    reply.array(10)?;
    reply.bulk(command.name.as_bytes())?;
    reply.integer(command.arity)?;
    let flags = || command.flags.iter().filter_map(|flag| flag_name(*flag));
    reply.set(flags().count())?;
    for flag in flags() {
        reply.simple(flag)?;
    }
    let keys = command.keys.map_or([0; 3], |keys| [keys.first, keys.last, keys.step]);
    for number in keys {
        reply.integer(number)?;
    }
    // ACL categories, tips and key specifications: there are none.
    reply.set(0)?;
    reply.array(0)?;
    reply.array(0)?;
    reply.array(command.subcommands.len())?;
    for sub in command.subcommands {
        describe(reply, sub)?;
    }
    Ok(())
}

/// A pair of COMMAND DOCS: the name, and a map about it.
fn document(reply: &mut Reply, command: &Command) -> Result<(), NoRoom> {
    reply.bulk(command.name.as_bytes())?;
    let has_subcommands = !command.subcommands.is_empty();
    reply.map(3 + usize::from(has_subcommands))?;
    let about = command.about;
    for (field, text) in
        [("summary", about.summary), ("since", about.since), ("group", about.group)]
    {
        reply.bulk(field.as_bytes())?;
        reply.bulk(text.as_bytes())?;
    }
    if has_subcommands {
        reply.bulk(b"subcommands")?;
        reply.map(command.subcommands.len())?;
        for sub in command.subcommands {
            document(reply, sub)?;
        }
    }
    Ok(())
}
