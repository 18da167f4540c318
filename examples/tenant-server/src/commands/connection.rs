//! Commands about the connection itself. None of them needs a tenant, except that SELECT comes to one.

use super::{Call, Fault, Flow, Outcome, SYNTAX};
use crate::memory::Key;
use crate::protocol::number::parse_i64;
use crate::reply::Shown;
use crate::server::VERSION;

const WRONG_PASSWORD: Fault =
    Fault::Say("WRONGPASS invalid username-password pair or user is disabled.");

pub(super) fn ping(call: &mut Call<'_>) -> Outcome {
    match call.args.len() {
        1 => call.reply.simple("PONG")?,
        2 => call.reply.bulk(call.args.get(1))?,
        _ => return Err(Fault::Arity("ping")),
    }
    Ok(Flow::Next)
}

pub(super) fn echo(call: &mut Call<'_>) -> Outcome {
    call.reply.bulk(call.args.get(1))?;
    Ok(Flow::Next)
}

pub(super) fn quit(call: &mut Call<'_>) -> Outcome {
    call.reply.ok()?;
    Ok(Flow::Close)
}

pub(super) fn select(call: &mut Call<'_>) -> Outcome {
    let number = call.integer(1)?;
    let db =
        u32::try_from(number).ok().filter(|db| (*db as usize) < call.server.tenants.databases());
    db.map(Flow::Select).ok_or(Fault::Say("ERR DB index is out of range"))
}

pub(super) fn auth(call: &mut Call<'_>) -> Outcome {
    let (user, password) = match call.args.len() {
        2 => (b"default".as_slice(), call.args.get(1)),
        3 => (call.args.get(1), call.args.get(2)),
        _ => return Err(SYNTAX),
    };
    if call.server.password.is_none() && call.args.len() == 2 {
        return Err(Fault::Say(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
        ));
    }
    if !is_allowed(call, user, password) {
        return Err(WRONG_PASSWORD);
    }
    call.identity.authenticated = true;
    call.reply.ok()?;
    Ok(Flow::Next)
}

/// HELLO [protocol [AUTH user password] [SETNAME name]]: looks at everything before it changes anything.
pub(super) fn hello(call: &mut Call<'_>) -> Outcome {
    let mut protocol = None;
    let mut login = None;
    let mut name = None;
    if call.args.len() > 1 {
        let number = parse_i64(call.args.get(1))
            .ok_or(Fault::Say("ERR Protocol version is not an integer or out of range"))?;
        if !(2..=3).contains(&number) {
            return Err(Fault::Say("NOPROTO unsupported protocol version"));
        }
        protocol = Some(number == 3);
    }
    let mut at = 2;
    while at < call.args.len() {
        let left = call.args.len() - at - 1;
        if call.args.is(at, "auth") && left >= 2 {
            login = Some((at + 1, at + 2));
            at += 3;
        } else if call.args.is(at, "setname") && left >= 1 {
            name = Some(at + 1);
            at += 2;
        } else {
            call.reply.error(format_args!(
                "ERR Syntax error in HELLO option '{}'",
                Shown(call.args.get(at))
            ))?;
            return Ok(Flow::Next);
        }
    }
    if let Some((user, password)) = login {
        if !is_allowed(call, call.args.get(user), call.args.get(password)) {
            return Err(WRONG_PASSWORD);
        }
    } else if !call.identity.authenticated {
        return Err(Fault::Say(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ));
    }
    if let Some(index) = name {
        let named = checked_name(call.args.get(index))?;
        *call.name = named;
    }
    call.identity.authenticated = true;
    if let Some(resp3) = protocol {
        call.reply.set_resp3(resp3);
    }
    greet(call)
}

fn greet(call: &mut Call<'_>) -> Outcome {
    let protocol = if call.reply.is_resp3() { 3 } else { 2 };
    let id = i64::try_from(call.identity.id).unwrap_or(i64::MAX);
    call.reply.map(7)?;
    for (field, text) in [("server", "redis"), ("version", VERSION)] {
        call.reply.bulk(field.as_bytes())?;
        call.reply.bulk(text.as_bytes())?;
    }
    for (field, number) in [("proto", protocol), ("id", id)] {
        call.reply.bulk(field.as_bytes())?;
        call.reply.integer(number)?;
    }
    for (field, text) in [("mode", "standalone"), ("role", "master")] {
        call.reply.bulk(field.as_bytes())?;
        call.reply.bulk(text.as_bytes())?;
    }
    call.reply.bulk(b"modules")?;
    call.reply.array(0)?;
    Ok(Flow::Next)
}

fn is_allowed(call: &Call<'_>, user: &[u8], password: &[u8]) -> bool {
    let known = match &call.server.password {
        // Without a password the default user gets in with any, as Redis's `nopass` has it.
        None => true,
        Some(expected) => equal_in_constant_time(expected.as_bytes(), password),
    };
    known && user == b"default"
}

/// Compares without telling by the time it takes how much was right.
fn equal_in_constant_time(expected: &[u8], given: &[u8]) -> bool {
    let mut differs = u8::from(expected.len() != given.len());
    for (index, byte) in given.iter().enumerate() {
        differs |= byte ^ expected.get(index).copied().unwrap_or(!byte);
    }
    differs == 0
}

// ---- CLIENT ---------------------------------------------------------------------------------------------------------

pub(super) fn id(call: &mut Call<'_>) -> Outcome {
    call.reply.integer(i64::try_from(call.identity.id).unwrap_or(i64::MAX))?;
    Ok(Flow::Next)
}

pub(super) fn setname(call: &mut Call<'_>) -> Outcome {
    let named = checked_name(call.args.get(2))?;
    *call.name = named;
    call.reply.ok()?;
    Ok(Flow::Next)
}

pub(super) fn getname(call: &mut Call<'_>) -> Outcome {
    match call.name {
        Some(name) => call.reply.bulk(name.as_slice())?,
        None => call.reply.null()?,
    }
    Ok(Flow::Next)
}

/// Checks what a library says of itself; nothing here shows it, so it is not kept.
pub(super) fn setinfo(call: &mut Call<'_>) -> Outcome {
    let field = match () {
        () if call.args.is(2, "lib-name") => "lib-name",
        () if call.args.is(2, "lib-ver") => "lib-ver",
        () => {
            call.reply
                .error(format_args!("ERR Unrecognized option '{}'", Shown(call.args.get(2))))?;
            return Ok(Flow::Next);
        }
    };
    if is_plain(call.args.get(3)) {
        call.reply.ok()?;
    } else {
        call.reply.error(format_args!(
            "ERR {field} cannot contain spaces, newlines or special characters."
        ))?;
    }
    Ok(Flow::Next)
}

pub(super) fn help(call: &mut Call<'_>) -> Outcome {
    call.help(&[
        "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "GETNAME",
        "    Return the name of the current connection.",
        "ID",
        "    Return the ID of the current connection.",
        "SETINFO <option> <value>",
        "    Take note of the client's library: LIB-NAME, LIB-VER.",
        "SETNAME <name>",
        "    Assign the name <name> to the current connection.",
        "HELP",
        "    Print this help.",
    ])
}

/// A copy of a client's name in the current group; none if it is empty.
fn checked_name(name: &[u8]) -> Result<Option<Key>, Fault> {
    if !is_plain(name) {
        return Err(Fault::Say(
            "ERR Client names cannot contain spaces, newlines or special characters.",
        ));
    }
    if name.is_empty() { Ok(None) } else { Ok(Some(Key::copy_of(name)?)) }
}

fn is_plain(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}
