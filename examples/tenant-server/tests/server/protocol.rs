//! The protocol in any pieces, and what happens to those who do not speak it.

use std::time::Duration;

use resp_client::Reply3;

use crate::harness::{Server, ask, check, encode, next, spell};

#[test]
fn requests_come_in_pipelines_and_pieces() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut bytes = Vec::new();
    for n in 0..100 {
        encode(&[b"SET", format!("k{n}").as_bytes(), format!("v{n}").as_bytes()], &mut bytes);
        encode(&[b"GET", format!("k{n}").as_bytes()], &mut bytes);
    }
    let (all, pieces) = bytes.split_at(bytes.len() / 2);
    client.write(all).expect("sent");
    for piece in pieces.chunks(97) {
        client.write(piece).expect("sent");
        std::thread::sleep(Duration::from_micros(200));
    }
    for n in 0..100 {
        assert_eq!(next(&mut client), "+OK");
        assert_eq!(next(&mut client), format!("\"v{n}\""));
    }
}

#[test]
fn a_pipeline_may_cross_databases() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut bytes = Vec::new();
    let large = vec![b'x'; 20_000];
    for db in 0..50 {
        encode(&[b"SELECT", db.to_string().as_bytes()], &mut bytes);
        encode(&[b"SET", b"k", db.to_string().as_bytes()], &mut bytes);
        encode(&[b"SET", b"large", &large], &mut bytes);
        encode(&[b"GET", b"large"], &mut bytes);
    }
    for db in 0..50 {
        encode(&[b"SELECT", db.to_string().as_bytes()], &mut bytes);
        encode(&[b"GET", b"k"], &mut bytes);
    }
    let mut writer = server.client();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            client.write(&bytes).expect("sent");
            for _ in 0..50 {
                for _ in 0..3 {
                    assert_eq!(next(&mut client), "+OK");
                }
                assert_eq!(next(&mut client).len(), large.len() + 2);
            }
            for db in 0..50 {
                assert_eq!(next(&mut client), "+OK");
                assert_eq!(next(&mut client), format!("\"{db}\""));
            }
        });
    });
    check(&mut writer, &[("GET k", "\"0\"")]);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::start(&[]);
    let mut deaf = server.client();
    assert_eq!(ask(&mut deaf, &["SET", "big", &"x".repeat(1 << 20)]), "+OK");
    let mut bytes = Vec::new();
    for _ in 0..200 {
        encode(&[b"GET", b"big"], &mut bytes);
    }
    deaf.write(&bytes).expect("sent");
    let mut other = server.client();
    for _ in 0..100 {
        assert_eq!(ask(&mut other, &["PING"]), "+PONG");
    }
    // It takes them up in the end, all of them and in order.
    for _ in 0..200 {
        assert_eq!(next(&mut deaf).len(), (1 << 20) + 2);
    }
}

#[test]
fn inline_requests() {
    let server = Server::start(&[]);
    let mut client = server.client();
    client.write(b"PING\r\n\r\n  \r\nset k \"a b\\x41\"\nGET k\r\n").expect("sent");
    for expected in ["+PONG", "+OK", "\"a bA\""] {
        assert_eq!(next(&mut client), expected);
    }
    let long = "x".repeat(40_000);
    client.write(format!("ECHO {long}\r\nPING\r\n").as_bytes()).expect("sent");
    assert_eq!(next(&mut client).len(), long.len() + 2);
    assert_eq!(next(&mut client), "+PONG");
}

#[test]
fn who_breaks_the_protocol_is_told_and_closed_alone() {
    let server = Server::start(&[]);
    let mut bystander = server.client();
    let long_line = [b'1'; 70_000];
    let with = |prefix: &[u8]| [prefix, &long_line].concat();
    let cases: [(Vec<u8>, &str); 10] = [
        (b"*x\r\n".to_vec(), "invalid multibulk length"),
        (b"*1048577\r\n".to_vec(), "invalid multibulk length"),
        (b"*1\r\n:1\r\n".to_vec(), "expected '$', got ':'"),
        (b"*1\r\n$-1\r\n".to_vec(), "invalid bulk length"),
        (b"*1\r\n$536870913\r\n".to_vec(), "invalid bulk length"),
        (b"*1\r\n$ 1\r\n".to_vec(), "invalid bulk length"),
        (b"echo \"a\r\n".to_vec(), "unbalanced quotes in request"),
        (with(b"*"), "too big mbulk count string"),
        (with(b"*1\r\n$"), "too big bulk count string"),
        (with(b"x"), "too big inline request"),
    ];
    for (bytes, text) in cases {
        let mut client = server.client();
        // What came before the break is still answered.
        client.write(b"PING\r\n").expect("sent");
        client.write(&bytes).expect("sent");
        assert_eq!(next(&mut client), "+PONG");
        assert_eq!(next(&mut client), format!("-ERR Protocol error: {text}"));
        assert!(client.is_closed().expect("the end"), "{text}");
        assert_eq!(ask(&mut bystander, &["PING"]), "+PONG");
    }
}

#[test]
fn who_leaves_in_the_middle_is_forgotten() {
    let server = Server::start(&[]);
    let mut client = server.client();
    for bytes in [
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\nabc".as_slice(),
        b"*2\r\n$3\r\nGE",
        b"GET k",
        b"*1",
    ] {
        let mut leaver = server.client();
        leaver.write(bytes).expect("sent");
    }
    crate::harness::eventually("only one client is left", || {
        let info = crate::harness::text(&crate::harness::call(&mut client, &["INFO", "clients"]));
        info.contains("connected_clients:1\r\n")
    });
    check(&mut client, &[("EXISTS k", ":0")]);
}

#[test]
fn the_newer_protocol_has_maps_and_nulls() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut ask3 = |words: &[&str]| {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        client.send(&words).expect("sent");
        client.read3().expect("a reply")
    };
    let hello = ask3(&["HELLO", "3"]);
    let Reply3::Map { data, .. } = &hello else { panic!("{hello:?}") };
    assert_eq!(data.len(), 7);
    assert!(matches!(ask3(&["GET", "missing"]), Reply3::Null));
    assert!(matches!(ask3(&["CONFIG", "GET", "maxmemory"]), Reply3::Map { .. }));
    assert!(matches!(ask3(&["INFO", "server"]), Reply3::VerbatimString { .. }));
    let stats = ask3(&["MEMORY", "STATS"]);
    let Reply3::Map { data, .. } = &stats else { panic!("{stats:?}") };
    assert!(data.values().any(|value| matches!(value, Reply3::Double { .. })));
    assert!(matches!(ask3(&["COMMAND", "DOCS", "get"]), Reply3::Map { .. }));
    assert!(matches!(ask3(&["HELLO", "2"]), Reply3::Array { .. }));
    let null = client.call(&[b"GET", b"missing"]).expect("a reply");
    assert_eq!(spell(&null), "nil");
}
