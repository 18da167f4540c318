//! A tenant at its limit: refused, in step, alive, and alone with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{
    OOM, OVERSHOOT, Server, ask, call, check, encode, eventually, next, tenant, usage,
};

const MB: usize = 1 << 20;

#[test]
fn a_value_that_cannot_fit_is_refused_and_thrown_away() {
    let server = Server::start(&["--tenant", "1=1mb"]);
    let mut client = server.client_of(1);
    assert_eq!(ask(&mut client, &["SET", "small", "stays small"]), "+OK");
    let large = vec![b'x'; 10 * MB];
    let mut bytes = Vec::new();
    encode(&[b"SET", b"k", &large], &mut bytes);
    encode(&[b"PING"], &mut bytes);
    encode(&[b"APPEND", b"small", &large], &mut bytes);
    encode(&[b"MSET", b"a", b"1", b"k", &large, b"b", b"2"], &mut bytes);
    encode(&[b"ECHO", &large], &mut bytes);
    encode(&[b"GETDEL", &large], &mut bytes);
    encode(&[b"SET", b"after", b"1"], &mut bytes);
    let mut reader = server.client();
    client.write(&bytes).expect("sent");
    for expected in [OOM, "+PONG", OOM, OOM, OOM, OOM, "+OK"] {
        assert_eq!(next(&mut client), expected);
    }
    check(&mut client, &[("EXISTS k a b", ":0"), ("GET after", "\"1\"")]);
    let line = tenant(&mut reader, 1).expect("a line");
    assert!(line.number("oom") >= 5 && line.number("peak") <= MB as u64 + OVERSHOOT, "{line:?}");
}

#[test]
fn a_full_tenant_makes_room_and_never_exceeds_its_limit() {
    let server = Server::start(&["--tenant", "1=2mb", "--tenant", "2=2mb"]);
    let mut neighbour = server.client_of(2);
    for n in 0..1000 {
        assert_eq!(ask(&mut neighbour, &["SET", &format!("n{n}"), &"y".repeat(1000)]), "+OK");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut client = server.client();
            let mut samples = 0;
            while !done.load(Ordering::Relaxed) {
                let used = usage(&mut client, 1);
                assert!(used <= 2 * MB as u64 + OVERSHOOT, "{used}");
                samples += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            samples
        });
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.client_of(1);
                    for n in 0..2000 {
                        let key = format!("{writer}:{n}");
                        assert_eq!(ask(&mut client, &["SET", &key, &"x".repeat(1000)]), "+OK");
                        assert_eq!(
                            ask(&mut client, &["INCR", "counter"]).chars().next(),
                            Some(':')
                        );
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("a writer ends well");
        }
        done.store(true, Ordering::Relaxed);
        assert!(sampler.join().expect("the sampler ends well") > 10);
    });
    assert_eq!(ask(&mut neighbour, &["DBSIZE"]), ":1000");
    let line = tenant(&mut neighbour, 1).expect("a line");
    assert!(line.number("evictions") > 1000 && line.number("forced") == 0, "{line:?}");
    assert_eq!(tenant(&mut neighbour, 2).expect("a line").number("evictions"), 0);
}

#[test]
fn a_half_sent_value_is_charged_and_goes_with_its_connection() {
    let server = Server::start(&["--tenant", "1=4mb"]);
    let mut client = server.client();
    let mut sender = server.client_of(1);
    let before = usage(&mut client, 1);
    sender
        .write(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\nabc", 2 * MB).as_bytes())
        .expect("sent");
    eventually("the value is charged", || usage(&mut client, 1) >= before + 2 * MB as u64);
    drop(sender);
    eventually("nothing is left", || {
        call(&mut client, &["MEMORY", "PURGE"]);
        usage(&mut client, 1) == 0
    });
}

#[test]
fn select_moves_what_the_connection_has() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut others: Vec<_> = (0..50).map(|_| server.client_of(1)).collect();
    for other in &mut others {
        assert_eq!(ask(other, &["CLIENT", "SETNAME", "somebody"]), "+OK");
        assert_eq!(ask(other, &["GET", "missing"]), "nil");
    }
    let held = usage(&mut client, 1);
    assert!(held > 50 * 2048, "{held}");
    for other in &mut others {
        // With more behind it, which moves along.
        other.write(b"SELECT 2\r\nCLIENT GETNAME\r\nPING\r\n").expect("sent");
    }
    for other in &mut others {
        for expected in ["+OK", "\"somebody\"", "+PONG"] {
            assert_eq!(next(other), expected);
        }
    }
    assert_eq!(ask(&mut client, &["MEMORY", "PURGE"]), "+OK");
    assert_eq!(usage(&mut client, 1), 0);
    assert!(usage(&mut client, 2) > 50 * 2048);
    drop(others);
    eventually("nothing is left there either", || {
        call(&mut client, &["MEMORY", "PURGE"]);
        usage(&mut client, 2) == 0
    });
}

#[test]
fn who_selects_a_full_tenant_may_do_what_needs_no_room() {
    let server = Server::start(&["--tenant", "1=64kb"]);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let mut client = server.client_of(7);
        check(&mut client, &[("SET where seven", "+OK"), ("SELECT 1", "+OK")]);
        match ask(&mut client, &["GET", "where"]).as_str() {
            "nil" => inside.push(client),
            OOM => outside.push(client),
            other => panic!("{other}"),
        }
    }
    assert!(outside.len() > 10 && !inside.is_empty(), "{} outside", outside.len());
    for client in inside.iter_mut().chain(&mut outside) {
        check(
            client,
            &[
                ("PING", "+PONG"),
                ("DBSIZE", ":0"),
                ("FLUSHDB", "+OK"),
                ("CONFIG GET maxmemory", "[\"maxmemory\", \"65536\"]"),
                ("SELECT 7", "+OK"),
                ("GET where", "\"seven\""),
            ],
        );
    }
    check(&mut server.client(), &[("SELECT 1", "+OK"), ("GET where", "nil")]);
}

#[test]
fn who_lowers_a_limit_to_nothing_locks_nobody_out() {
    let server = Server::start(&["--default-max", "4mb"]);
    check(&mut server.client_of(1), &[("SET a b", "+OK"), ("CONFIG SET maxmemory 1", "+OK")]);
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("SELECT 1", "+OK"),
            ("SET a c", OOM),
            ("CONFIG GET maxmemory", "[\"maxmemory\", \"1\"]"),
            ("CONFIG SET maxmemory 4mb", "+OK"),
            ("SET a c", "+OK"),
            ("GET a", "\"c\""),
        ],
    );
}

#[test]
fn a_full_tenant_answers_who_has_no_room_there() {
    let server = Server::start(&["--tenant", "0=64kb"]);
    let mut inside = Vec::new();
    // A new connection is in database 0 from the start, but comes to the tenant only with the first command on keys.
    loop {
        let mut client = server.client();
        match ask(&mut client, &["GET", "k"]).as_str() {
            "nil" => inside.push(client),
            OOM => break,
            other => panic!("{other}"),
        }
    }
    let mut client = server.client();
    check(
        &mut client,
        &[
            ("PING", "+PONG"),
            ("GET k", OOM),
            ("SET k v", OOM),
            ("DEL k", ":0"),
            ("DBSIZE", ":0"),
            ("FLUSHDB", "+OK"),
            ("CONFIG GET maxmemory", "[\"maxmemory\", \"65536\"]"),
            ("SELECT 1", "+OK"),
            ("SET k v", "+OK"),
            ("SELECT 0", "+OK"),
            ("GET k", OOM),
        ],
    );
    client.send(&[b"GET", b"k"]).expect("sent");
    assert_eq!(next(&mut client), OOM);
    drop(inside);
    eventually("there is room again", || ask(&mut client, &["GET", "k"]) == "nil");
}

#[test]
fn a_thousand_connections_on_one_full_tenant() {
    resp_client::raise_open_files();
    let max = 2 * MB as u64;
    let mut server = Server::start(&["--tenant", "1=2mb", "--tenant", "2=1mb"]);
    let mut neighbour = server.client_of(2);
    assert_eq!(ask(&mut neighbour, &["SET", "k", "v"]), "+OK");
    let mut filler = server.client_of(1);
    for n in 0..3000 {
        assert_eq!(ask(&mut filler, &["SET", &format!("k{n}"), &"x".repeat(1000)]), "+OK");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut client = server.client();
            let mut highest = 0;
            while !done.load(Ordering::Relaxed) {
                highest = highest.max(usage(&mut client, 1));
                std::thread::sleep(Duration::from_millis(5));
            }
            highest
        });
        let mut clients: Vec<_> = (0..1000).map(|_| server.client()).collect();
        let mut inside = 0;
        for client in &mut clients {
            match ask(client, &["SELECT", "1"]).as_str() {
                "+OK" => inside += 1,
                reply => assert_eq!(reply, OOM),
            }
        }
        assert!(inside > 100, "{inside} are inside");
        let mut request = Vec::new();
        encode(&[b"SET", b"key", &[b'v'; 3000]], &mut request);
        encode(&[b"GET", b"key"], &mut request);
        encode(&[b"MSET", b"a", b"1", b"b", b"2"], &mut request);
        encode(&[b"SET", b"large", &[b'v'; 300_000]], &mut request);
        encode(&[b"PING"], &mut request);
        for client in &mut clients {
            client.write(&request).expect("sent");
        }
        for client in &mut clients {
            for place in 0..5 {
                let reply = next(client);
                let fits = match place {
                    1 => reply == "nil" || reply.len() == 3002 || reply == OOM,
                    4 => reply == "+PONG",
                    _ => reply == "+OK" || reply == OOM,
                };
                assert!(fits, "{place}: {reply:.80}");
            }
        }
        done.store(true, Ordering::Relaxed);
        let highest = sampler.join().expect("the sampler ends well");
        assert!(highest <= max + OVERSHOOT, "{highest}");
    });
    let line = tenant(&mut neighbour, 1).expect("a line");
    assert!(line.number("peak") <= max + OVERSHOOT, "{line:?}");
    assert_eq!(ask(&mut neighbour, &["GET", "k"]), "\"v\"");
    assert!(server.is_running());
}

#[test]
fn a_large_value_is_sent_from_where_it_is() {
    // The value takes most of the tenant: there would be no room for a second copy of it.
    let server = Server::start(&["--tenant", "1=4mb"]);
    let mut client = server.client_of(1);
    let value: String =
        (0..3 * MB).map(|n| char::from(b'a' + u8::try_from(n % 26).expect("a letter"))).collect();
    assert_eq!(ask(&mut client, &["SET", "large", &value]), "+OK");
    assert_eq!(ask(&mut client, &["GET", "large"]).len(), value.len() + 2);
    let reply = call(&mut client, &["MGET", "large", "large", "missing", "large"]);
    let lengths: Vec<_> =
        crate::harness::elements(&reply).iter().map(|e| crate::harness::spell(e).len()).collect();
    assert_eq!(lengths, [value.len() + 2, value.len() + 2, 3, value.len() + 2]);
    assert_eq!(ask(&mut client, &["GETDEL", "large"]), format!("{value:?}"));
}

#[test]
fn a_reply_for_which_there_is_no_room_is_an_error() {
    let server = Server::start(&["--tenant", "1=256kb"]);
    let mut client = server.client_of(1);
    for n in 0..100 {
        assert_eq!(ask(&mut client, &["SET", &format!("k{n}"), "v"]), "+OK");
    }
    // Somebody holds nearly all of the tenant's memory.
    let mut holder = server.client_of(1);
    holder.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$204800\r\nabc").expect("sent");
    let mut reader = server.client();
    eventually("it is held", || usage(&mut reader, 1) > 200 << 10);
    let many: Vec<String> = (0..20_000).map(|n| format!("k{n}")).collect();
    let mut words: Vec<&str> = vec!["MGET"];
    words.extend(many.iter().map(String::as_str));
    assert_eq!(ask(&mut client, &words), OOM);
    check(&mut client, &[("PING", "+PONG"), ("SET again v", "+OK"), ("GET again", "\"v\"")]);
}

#[test]
fn maxmemory_can_be_lowered_and_raised() {
    let server = Server::start(&["--tenant", "1=4mb"]);
    let mut client = server.client_of(1);
    for n in 0..3000 {
        assert_eq!(ask(&mut client, &["SET", &format!("k{n}"), &"x".repeat(1000)]), "+OK");
    }
    assert_eq!(ask(&mut client, &["CONFIG", "SET", "maxmemory", "1mb"]), "+OK");
    let line = tenant(&mut client, 1).expect("a line");
    assert!(line.number("usage") <= MB as u64 && line.number("keys") > 100, "{line:?}");
    assert_eq!(
        ask(&mut client, &["CONFIG", "SET", "maxmemory", "1kb"]),
        "+OK",
        "less than the connection itself has"
    );
    check(
        &mut client,
        &[
            ("SET k v", OOM),
            ("PING", "+PONG"),
            ("CONFIG SET maxmemory 4mb", "+OK"),
            ("SET k v", "+OK"),
        ],
    );
}

#[test]
fn the_total_holds_for_all_tenants_together() {
    let server = Server::start(&["--default-max", "8mb", "--total-max", "8mb"]);
    let mut clients: Vec<_> = (1..=4).map(|db| server.client_of(db)).collect();
    for n in 0..4000 {
        for client in &mut clients {
            assert_eq!(ask(client, &["SET", &format!("k{n}"), &"x".repeat(1000)]), "+OK");
        }
    }
    let info = crate::harness::text(&call(&mut clients[0], &["INFO", "memory"]));
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim().parse::<usize>().expect("a number")
    };
    assert!(field("used_memory_peak:") <= 8 * MB + 4 * (64 << 10), "{info}");
    assert!(field("used_memory:") > 6 * MB, "{info}");
}
