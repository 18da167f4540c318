//! How the program starts and how it ends.

use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Server, ask, encode, next, program, run};

#[test]
fn what_it_cannot_do_is_one_line_and_exit_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["--port", &port], "Address already in use"),
        (&["--port", "0", "--bind", "no.such.host.invalid"], "no.such.host.invalid"),
        (&["--total-max", "12Q"], "12Q"),
        (&["--default-max", ""], "--default-max"),
        (&["--tenant", "1=2gb", "--total-max", "1gb"], "--tenant 1="),
        (&["--tenant", "1024=1mb"], "only 1024 databases"),
        (&["--port", "123456"], "123456"),
        (&["--what"], "--what"),
    ];
    for (options, part) in cases {
        let output = run(options);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.starts_with("tenant-server: ") && said.contains(part), "{options:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{options:?}: {said}");
        assert!(output.stdout.is_empty(), "{options:?}");
    }
}

#[test]
fn help_and_version_are_for_stdout() {
    let output = run(&["--help"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for option in [
        "--bind",
        "--port",
        "--databases",
        "--requirepass",
        "--tenant",
        "--default-max",
        "--total-max",
        "--threads",
    ] {
        assert!(said.contains(option), "{option} is missing in {said}");
    }
    let output = run(&["--version"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(said, format!("tenant-server {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_databases_are_as_many_as_asked_for() {
    let server = Server::start(&["--databases", "4"]);
    let mut client = server.client();
    assert_eq!(ask(&mut client, &["SELECT", "3"]), "+OK");
    assert_eq!(ask(&mut client, &["SELECT", "4"]), "-ERR DB index is out of range");
}

#[test]
fn it_listens_where_it_is_told() {
    let server = Server::start(&["--bind", "127.0.0.2"]);
    assert_eq!(server.address.ip().to_string(), "127.0.0.2");
    assert_eq!(ask(&mut server.client(), &["PING"]), "+PONG");
}

#[test]
fn nobody_has_to_read_the_first_line() {
    let mut child = program(&["--port", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("it can be waited for").is_none(), "it serves all the same");
    child.kill().expect("it is there");
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("it can be read");
    child.wait().expect("it ends");
    assert_eq!(said, "");
}

#[test]
fn a_signal_ends_it_once_what_is_in_flight_is_done() {
    for name in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut idle = server.client();
        assert_eq!(ask(&mut idle, &["PING"]), "+PONG");
        let mut busy = server.client();
        let mut request = Vec::new();
        encode(&[b"SET", b"k", &[b'x'; 100_000]], &mut request);
        let (first, rest) = request.split_at(50_000);
        busy.write(first).expect("sent");
        std::thread::sleep(Duration::from_millis(100));
        server.signal(name);
        assert!(idle.is_closed().expect("the end"), "who has nothing in flight is closed");
        std::thread::sleep(Duration::from_millis(100));
        assert!(server.is_running());
        busy.write(rest).expect("sent");
        assert_eq!(next(&mut busy), "+OK");
        assert!(busy.is_closed().expect("the end"));
        assert_eq!(server.wait().code(), Some(0), "SIG{name}");
    }
}

#[test]
fn who_never_finishes_does_not_keep_it() {
    let mut server = Server::start(&[]);
    let mut stuck = server.client();
    stuck.write(b"*2\r\n$3\r\nGET\r\n$100\r\nabc").expect("sent");
    std::thread::sleep(Duration::from_millis(100));
    let since = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}
