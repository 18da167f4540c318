//! What is wrong is said in Redis's words, and nothing else changes.

use crate::harness::{Server, check};

#[test]
fn each_error_in_redis_words() {
    let server = Server::start(&["--total-max", "1gb"]);
    let mut client = server.client();
    check(&mut client, &[("SET text abc", "+OK"), ("SET k v", "+OK")]);
    let not_integer = "-ERR value is not an integer or out of range";
    let syntax = "-ERR syntax error";
    check(
        &mut client,
        &[
            ("FOO", "-ERR unknown command 'FOO', with args beginning with: "),
            ("FOO a b", "-ERR unknown command 'FOO', with args beginning with: 'a' 'b' "),
            ("GET", "-ERR wrong number of arguments for 'get' command"),
            ("PING a b", "-ERR wrong number of arguments for 'ping' command"),
            ("MSET a", "-ERR wrong number of arguments for 'mset' command"),
            ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
            ("CLIENT", "-ERR wrong number of arguments for 'client' command"),
            ("CLIENT NONSENSE", "-ERR unknown subcommand 'NONSENSE'. Try CLIENT HELP."),
            ("CLIENT ID x", "-ERR wrong number of arguments for 'client|id' command"),
            ("CLIENT SETINFO what x", "-ERR Unrecognized option 'what'"),
            ("SELECT x", not_integer),
            ("SELECT 1024", "-ERR DB index is out of range"),
            ("SELECT -1", "-ERR DB index is out of range"),
            ("SELECT 99999999999", "-ERR DB index is out of range"),
            ("SET k v NX XX", syntax),
            ("SET k v EX", syntax),
            ("SET k v EX 1 PX 1", syntax),
            ("SET k v KEEPTTL EX 1", syntax),
            ("SET k v WHAT", syntax),
            ("SET k v EX x", not_integer),
            ("SET k v EX 0", "-ERR invalid expire time in 'set' command"),
            ("SET k v PX -5", "-ERR invalid expire time in 'set' command"),
            ("SET k v EX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
            ("INCR text", not_integer),
            ("INCRBY k x", not_integer),
            ("DECRBY k -9223372036854775808", "-ERR decrement would overflow"),
            ("EXPIRE k x", not_integer),
            ("EXPIRE k 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
            ("PEXPIRE k 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
            (
                "EXPIRE k 1 NX GT",
                "-ERR NX and XX, GT or LT options at the same time are not compatible",
            ),
            ("EXPIRE k 1 GT LT", "-ERR GT and LT options at the same time are not compatible"),
            ("EXPIRE k 1 WHAT", "-ERR Unsupported option WHAT"),
            ("SCAN x", "-ERR invalid cursor"),
            ("SCAN 0 COUNT", syntax),
            ("SCAN 0 COUNT 0", syntax),
            ("SCAN 0 COUNT x", not_integer),
            ("FLUSHDB WHAT", syntax),
            ("MEMORY USAGE k SAMPLES", syntax),
            ("MEMORY NONSENSE", "-ERR unknown subcommand 'NONSENSE'. Try MEMORY HELP."),
            (
                "AUTH secret",
                "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            ),
            (
                "AUTH nobody secret",
                "-WRONGPASS invalid username-password pair or user is disabled.",
            ),
            ("HELLO 4", "-NOPROTO unsupported protocol version"),
            ("HELLO x", "-ERR Protocol version is not an integer or out of range"),
            ("HELLO 3 WHAT", "-ERR Syntax error in HELLO option 'WHAT'"),
            (
                "CONFIG SET nothing 1",
                "-ERR Unknown option or number of arguments for CONFIG SET - 'nothing'",
            ),
            (
                "CONFIG SET maxmemory 12q",
                "-ERR CONFIG SET failed (possibly related to argument 'maxmemory') - argument must be a memory value",
            ),
            (
                "CONFIG SET maxmemory 2gb",
                "-ERR CONFIG SET failed (possibly related to argument 'maxmemory') - argument must not exceed the total of all tenants",
            ),
            (
                "CONFIG SET databases 4",
                "-ERR CONFIG SET failed (possibly related to argument 'databases') - can't set immutable config",
            ),
            ("CONFIG SET maxmemory", "-ERR wrong number of arguments for 'config|set' command"),
        ],
    );
    check(
        &mut client,
        &[("GET k", "\"v\""), ("TTL k", ":-1"), ("GET text", "\"abc\""), ("DBSIZE", ":2")],
    );
}

#[test]
fn line_breaks_do_not_break_an_error() {
    let server = Server::start(&[]);
    let mut client = server.client();
    client.send(&[b"a\r\nb", b"\xff\r\n+OK"]).expect("sent");
    let said = crate::harness::next(&mut client);
    assert_eq!(said, "-ERR unknown command 'a  b', with args beginning with: '?  +OK' ");
    check(&mut client, &[("PING", "+PONG")]);
    client.send(&[b"CLIENT", b"SETNAME", b"a b"]).expect("sent");
    let said = crate::harness::next(&mut client);
    assert_eq!(said, "-ERR Client names cannot contain spaces, newlines or special characters.");
}
