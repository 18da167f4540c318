//! Before a client has authenticated it can do nothing but that, and is allowed little.

use crate::harness::{Server, ask, check, next};

const NOAUTH: &str = "-NOAUTH Authentication required.";
const WRONG: &str = "-WRONGPASS invalid username-password pair or user is disabled.";

#[test]
fn a_password_is_asked_for() {
    let server = Server::start(&["--requirepass", "secret"]);
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("PING", NOAUTH),
            ("GET k", NOAUTH),
            ("SELECT 1", NOAUTH),
            ("NONSENSE", "-ERR unknown command 'NONSENSE', with args beginning with: "),
            ("AUTH wrong", WRONG),
            ("AUTH secretx", WRONG),
            ("AUTH secre", WRONG),
            ("AUTH nobody secret", WRONG),
            ("GET k", NOAUTH),
            ("AUTH secret", "+OK"),
            ("PING", "+PONG"),
            ("SET k v", "+OK"),
            ("AUTH wrong", WRONG),
            ("GET k", "\"v\""),
        ],
    );
    check(&mut server.client(), &[("AUTH default secret", "+OK"), ("GET k", "\"v\"")]);
    assert_eq!(ask(&mut server.client(), &["QUIT"]), "+OK");
}

#[test]
fn hello_authenticates() {
    let server = Server::start(&["--requirepass", "secret"]);
    let mut client = server.client();
    assert!(ask(&mut client, &["HELLO", "2"]).starts_with("-NOAUTH HELLO must be called"));
    assert_eq!(ask(&mut client, &["HELLO", "2", "AUTH", "default", "wrong"]), WRONG);
    assert_eq!(ask(&mut client, &["PING"]), NOAUTH);
    let hello = ask(&mut client, &["HELLO", "2", "AUTH", "default", "secret", "SETNAME", "me"]);
    assert!(hello.starts_with("[\"server\", \"redis\", \"version\", "), "{hello}");
    assert_eq!(ask(&mut client, &["CLIENT", "GETNAME"]), "\"me\"");
}

#[test]
fn before_that_little_is_allowed() {
    let server = Server::start(&["--requirepass", "secret"]);
    for (bytes, error) in [
        (b"*11\r\n".as_slice(), "-ERR Protocol error: unauthenticated multibulk length"),
        (b"*1\r\n$16385\r\n", "-ERR Protocol error: unauthenticated bulk length"),
    ] {
        let mut client = server.client();
        client.write(bytes).expect("sent");
        assert_eq!(next(&mut client), error);
        assert!(client.is_closed().expect("the end"));
    }
    let mut client = server.client();
    let long = "x".repeat(16384);
    assert_eq!(ask(&mut client, &["AUTH", &long]), WRONG);
    check(&mut client, &[("AUTH secret", "+OK"), ("PING", "+PONG")]);
    let mut many = vec!["EXISTS"];
    many.extend(["k"; 100]);
    assert_eq!(ask(&mut client, &many), ":0");
}
