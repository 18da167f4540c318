//! Each command does what Redis's does.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use crate::harness::{Server, ask, call, check, elements, spell, tenant, text};

#[test]
fn connection() {
    let server = Server::start(&[]);
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("PING", "+PONG"),
            ("ping hello", "\"hello\""),
            ("ECHO hi", "\"hi\""),
            ("CLIENT GETNAME", "nil"),
            ("CLIENT SETNAME me", "+OK"),
            ("CLIENT GETNAME", "\"me\""),
            ("CLIENT SETINFO LIB-NAME test", "+OK"),
            ("CLIENT SETINFO lib-ver 1.0", "+OK"),
            ("SELECT 1023", "+OK"),
            ("CLIENT GETNAME", "\"me\""),
            ("SELECT 0", "+OK"),
            ("AUTH default anything", "+OK"),
        ],
    );
    let id = ask(&mut client, &["CLIENT", "ID"]);
    assert_ne!(id, ask(&mut server.client(), &["CLIENT", "ID"]));
    assert_eq!(ask(&mut client, &["QUIT"]), "+OK");
    assert!(client.is_closed().expect("the end"));
}

#[test]
fn strings() {
    let server = Server::start(&[]);
    check(
        &mut server.client(),
        &[
            ("GET k", "nil"),
            ("SET k v", "+OK"),
            ("GET k", "\"v\""),
            ("SET k w GET", "\"v\""),
            ("SET k x NX", "nil"),
            ("SET k x XX", "+OK"),
            ("SET new x XX", "nil"),
            ("SET new x XX GET", "nil"),
            ("SET new x NX GET", "nil"),
            ("SET new y NX GET", "\"x\""),
            ("GET new", "\"x\""),
            ("SETNX k y", ":0"),
            ("SETNX fresh y", ":1"),
            ("GETDEL fresh", "\"y\""),
            ("GETDEL fresh", "nil"),
            ("MSET a 1 b 2 a 3", "+OK"),
            ("MGET a missing b", "[\"3\", nil, \"2\"]"),
            ("APPEND a 45", ":3"),
            ("APPEND c new", ":3"),
            ("GET a", "\"345\""),
            ("STRLEN a", ":3"),
            ("STRLEN missing", ":0"),
        ],
    );
}

#[test]
fn numbers() {
    let server = Server::start(&[]);
    check(
        &mut server.client(),
        &[
            ("INCR n", ":1"),
            ("INCRBY n 41", ":42"),
            ("DECR n", ":41"),
            ("DECRBY n -9", ":50"),
            ("DECRBY n 100", ":-50"),
            ("GET n", "\"-50\""),
            ("SET n 9223372036854775806", "+OK"),
            ("INCR n", ":9223372036854775807"),
            ("INCR n", "-ERR increment or decrement would overflow"),
            ("GET n", "\"9223372036854775807\""),
            ("SET n 10 PX 100000", "+OK"),
            ("INCR n", ":11"),
            ("TTL n", ":100"),
        ],
    );
}

#[test]
fn keys() {
    let server = Server::start(&[]);
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("MSET a 1 b 2 c 3 long:key 4", "+OK"),
            ("EXISTS a b a missing", ":3"),
            ("TYPE a", "+string"),
            ("TYPE missing", "+none"),
            ("DBSIZE", ":4"),
            ("KEYS long*", "[\"long:key\"]"),
            ("KEYS nothing", "[]"),
            ("DEL a missing", ":1"),
            ("UNLINK b c", ":2"),
            ("DBSIZE", ":1"),
            ("SELECT 1", "+OK"),
            ("SET other 1", "+OK"),
            ("FLUSHDB", "+OK"),
            ("DBSIZE", ":0"),
            ("SELECT 0", "+OK"),
            ("DBSIZE", ":1"),
            ("FLUSHALL ASYNC", "+OK"),
            ("DBSIZE", ":0"),
        ],
    );
}

#[test]
fn a_scan_sees_every_key() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let names: HashSet<String> = (0..1000).map(|n| format!("key:{n}")).collect();
    for name in &names {
        assert_eq!(ask(&mut client, &["SET", name, "v"]), "+OK");
    }
    for options in
        [&[][..], &["COUNT", "100"], &["MATCH", "key:*", "COUNT", "7"], &["TYPE", "string"]]
    {
        let mut seen = HashSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let words: Vec<&str> = ["SCAN", &cursor].iter().chain(options).copied().collect();
            let reply = call(&mut client, &words);
            let [next, keys] = elements(&reply) else { panic!("{}", spell(&reply)) };
            seen.extend(elements(keys).iter().map(text));
            cursor = text(next);
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(seen, names, "{options:?}");
    }
    assert_eq!(ask(&mut client, &["SCAN", "0", "TYPE", "list", "COUNT", "100000"]), "[\"0\", []]");
    let all = call(&mut client, &["KEYS", "key:*"]);
    assert_eq!(elements(&all).iter().map(text).collect::<HashSet<_>>(), names);
}

#[test]
fn times_to_live() {
    let server = Server::start(&[]);
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("SET k v EX 100", "+OK"),
            ("TTL k", ":100"),
            ("SET k v KEEPTTL", "+OK"),
            ("TTL k", ":100"),
            ("PERSIST k", ":1"),
            ("PERSIST k", ":0"),
            ("TTL k", ":-1"),
            ("TTL missing", ":-2"),
            ("PTTL missing", ":-2"),
            ("EXPIRE k 50", ":1"),
            ("EXPIRE k 60 NX", ":0"),
            ("EXPIRE k 40 GT", ":0"),
            ("EXPIRE k 60 GT", ":1"),
            ("EXPIRE k 70 LT", ":0"),
            ("EXPIRE k 50 LT", ":1"),
            ("EXPIRE k 55 XX", ":1"),
            ("TTL k", ":55"),
            ("EXPIRE missing 50", ":0"),
            ("SET k v", "+OK"),
            ("TTL k", ":-1"),
            ("EXPIRE k 10 XX", ":0"),
            ("EXPIRE k -1", ":1"),
            ("EXISTS k", ":0"),
            ("SET k v PXAT 1", "+OK"),
            ("GET k", "nil"),
            ("SET soon v PX 60", "+OK"),
            ("SET later v PX 100000", "+OK"),
            ("APPEND later w", ":2"),
            ("TTL later", ":100"),
        ],
    );
    sleep(Duration::from_millis(80));
    check(
        &mut client,
        &[
            ("GET soon", "nil"),
            ("EXISTS soon", ":0"),
            ("TTL soon", ":-2"),
            ("KEYS *", "[\"later\"]"),
            ("SCAN 0 COUNT 100000", "[\"0\", [\"later\"]]"),
            ("SETNX soon again", ":1"),
            ("TTL soon", ":-1"),
        ],
    );
}

#[test]
fn keys_expire_though_nobody_asks_for_them() {
    let server = Server::start(&[]);
    let mut client = server.client();
    for n in 0..500 {
        assert_eq!(ask(&mut client, &["SET", &format!("k{n}"), "v", "PX", "50"]), "+OK");
    }
    assert_eq!(ask(&mut client, &["SET", "stays", "v"]), "+OK");
    crate::harness::eventually("all of them are gone", || ask(&mut client, &["DBSIZE"]) == ":1");
    let info = text(&call(&mut client, &["INFO", "stats"]));
    assert!(info.contains("expired_keys:500\r\n"), "{info}");
}

#[test]
fn info() {
    let server = Server::start(&["--tenant", "1=2mb", "--total-max", "32mb"]);
    let mut client = server.client_of(1);
    check(&mut client, &[("SET k v EX 100", "+OK"), ("SET l v", "+OK")]);
    let info = text(&call(&mut client, &["INFO"]));
    let port = format!("tcp_port:{}\r\n", server.address.port());
    for part in [
        "# Server\r\n",
        "redis_version:",
        &port,
        "# Clients\r\nconnected_clients:1\r\n",
        "# Memory\r\nused_memory:",
        "maxmemory:33554432\r\nmaxmemory_human:32.00M\r\n",
        "# Stats\r\n",
        "# Keyspace\r\ndb1:keys=2,expires=1,avg_ttl=",
        "# Tenants\r\ndb1:keys=2,usage=",
    ] {
        assert!(info.contains(part), "{part} is missing in {info}");
    }
    let line = tenant(&mut client, 1).expect("a line");
    assert_eq!((line.number("max"), line.text("high")), (2 << 20, "max"));
    assert_eq!((line.number("evictions"), line.number("oom"), line.number("forced")), (0, 0, 0));
    assert!(line.number("usage") > 0 && line.number("peak") >= line.number("usage"));
    let one = text(&call(&mut client, &["INFO", "keyspace"]));
    assert!(one.starts_with("# Keyspace\r\n") && !one.contains("# Server"));
    assert_eq!(ask(&mut client, &["INFO", "nonsense"]), "\"\"");
}

#[test]
fn memory() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let value = "v".repeat(1000);
    assert_eq!(ask(&mut client, &["SET", "key", &value]), "+OK");
    let usage = ask(&mut client, &["MEMORY", "USAGE", "key"]);
    let bytes: u64 = usage.trim_start_matches(':').parse().expect("a number");
    assert!((1000..1300).contains(&bytes), "{usage}");
    check(
        &mut client,
        &[
            ("MEMORY USAGE key SAMPLES 5", &usage),
            ("MEMORY USAGE missing", "nil"),
            ("MEMORY PURGE", "+OK"),
        ],
    );
    let stats = spell(&call(&mut client, &["MEMORY", "STATS"]));
    for part in [
        "\"peak.allocated\", :",
        "\"total.allocated\", :",
        "\"keys.count\", :1",
        "\"fragmentation\", \"",
    ] {
        assert!(stats.contains(part), "{part} is missing in {stats}");
    }
}

#[test]
fn config() {
    let server = Server::start(&["--tenant", "1=2mb"]);
    check(
        &mut server.client_of(1),
        &[
            ("CONFIG GET maxmemory", "[\"maxmemory\", \"2097152\"]"),
            ("CONFIG SET maxmemory 3mb", "+OK"),
            ("CONFIG GET MAXMEMOR?", "[\"maxmemory\", \"3145728\"]"),
            ("CONFIG GET save databases", "[\"databases\", \"1024\", \"save\", \"\"]"),
            ("CONFIG GET nothing", "[]"),
            ("CONFIG SET maxmemory 0", "+OK"),
            ("CONFIG GET maxmemory", "[\"maxmemory\", \"0\"]"),
            ("CONFIG RESETSTAT", "+OK"),
            ("SELECT 2", "+OK"),
            ("CONFIG GET maxmemory", "[\"maxmemory\", \"67108864\"]"),
        ],
    );
}

#[test]
fn what_clients_ask_when_they_connect() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let all = call(&mut client, &["COMMAND"]);
    assert_eq!(format!(":{}", elements(&all).len()), ask(&mut client, &["COMMAND", "COUNT"]));
    check(
        &mut client,
        &[
            (
                "COMMAND INFO get nothing",
                "[[\"get\", :2, [+readonly, +fast], :1, :1, :1, [], [], [], []], nil]",
            ),
            (
                "COMMAND DOCS get nothing",
                "[\"get\", [\"summary\", \"The value of a key.\", \"since\", \"1.0.0\", \"group\", \"string\"]]",
            ),
            ("COMMAND LIST FILTERBY PATTERN M?ET", "[\"mget\", \"mset\"]"),
        ],
    );
    let docs = call(&mut client, &["COMMAND", "DOCS"]);
    assert_eq!(elements(&docs).len(), 2 * elements(&all).len());
    for container in ["CLIENT", "CONFIG", "MEMORY", "COMMAND"] {
        assert!(elements(&call(&mut client, &[container, "HELP"])).len() > 3);
    }
}

#[test]
fn what_reads_and_writes_is_atomic() {
    let server = Server::start(&[]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.client();
                for _ in 0..500 {
                    assert!(ask(&mut client, &["INCR", "n"]).starts_with(':'));
                    assert!(ask(&mut client, &["APPEND", "s", "x"]).starts_with(':'));
                    assert_eq!(ask(&mut client, &["MSET", "a", "1", "b", "1"]), "+OK");
                    assert_eq!(ask(&mut client, &["MSET", "b", "2", "a", "2"]), "+OK");
                }
            });
        }
        scope.spawn(|| {
            let mut client = server.client();
            for _ in 0..500 {
                let both = ask(&mut client, &["MGET", "a", "b"]);
                assert!(
                    ["[nil, nil]", "[\"1\", \"1\"]", "[\"2\", \"2\"]"].contains(&both.as_str()),
                    "{both}"
                );
            }
        });
    });
    check(&mut server.client(), &[("GET n", "\"2000\""), ("STRLEN s", ":2000")]);
}
