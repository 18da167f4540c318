//! Starts servers, speaks to them, and reads what INFO says.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) use resp_client::{Client, Reply2, encode};

/// What Redis says when there is no room.
pub(crate) const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.";

/// What a tenant may exceed its limit by.
pub(crate) const OVERSHOOT: u64 = 64 << 10;

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server of its own, which ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// The program, to be run with these options.
pub(crate) fn program(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenant-server"));
    command.args(options).stdin(Stdio::null());
    command
}

/// Runs the program to its end, which must come by itself.
pub(crate) fn run(options: &[&str]) -> Output {
    program(options).output().expect("the program runs")
}

impl Server {
    /// Starts one on a free port.
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = program(&["--port", "0", "--threads", "2"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line on stdout");
        let address = line.strip_prefix("ready on ").expect("the first line").trim_end();
        Self { address: address.parse().expect("an address"), child }
    }

    /// A connection.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address).expect("a connection")
    }

    /// A connection with a database selected.
    pub(crate) fn client_of(&self, db: u32) -> Client {
        let mut client = self.client();
        assert_eq!(ask(&mut client, &["SELECT", &db.to_string()]), "+OK");
        client
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the server did not end within {PATIENCE:?}");
    }

    /// Whether it is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Memory that is resident, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("status can be read");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it tells");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// One line of INFO tenants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant(HashMap<String, String>);

impl Tenant {
    /// A field that is a number.
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_else(|_| panic!("{field} is no number in {:?}", self.0))
    }

    /// A field.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.0.get(field).unwrap_or_else(|| panic!("no {field} in {:?}", self.0))
    }
}

/// What INFO tenants says of a database; `None` if nobody has selected it.
pub(crate) fn tenant(client: &mut Client, db: u32) -> Option<Tenant> {
    let text = text(&call(client, &["INFO", "tenants"]));
    let prefix = format!("db{db}:");
    let line = text.lines().find_map(|line| line.strip_prefix(prefix.as_str()))?;
    let fields = line.split(',').filter_map(|field| field.split_once('='));
    Some(Tenant(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// A database's usage in bytes; 0 as long as nobody has selected it.
pub(crate) fn usage(client: &mut Client, db: u32) -> u64 {
    tenant(client, db).map_or(0, |tenant| tenant.number("usage"))
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a request and reads the reply.
pub(crate) fn call(client: &mut Client, words: &[&str]) -> Reply2 {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    client.call(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Sends a request and spells the reply out.
pub(crate) fn ask(client: &mut Client, words: &[&str]) -> String {
    spell(&call(client, words))
}

/// Reads the next reply and spells it out.
pub(crate) fn next(client: &mut Client) -> String {
    spell(&client.read().expect("a reply"))
}

/// The bytes of a string reply as text.
pub(crate) fn text(reply: &Reply2) -> String {
    match reply {
        Reply2::BulkString(bytes) | Reply2::SimpleString(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        other => panic!("not a string: {}", spell(other)),
    }
}

/// A reply on one line: `+OK`, `:1`, `nil`, `-ERR ...`, `"bytes"`, `[a, b]`.
pub(crate) fn spell(reply: &Reply2) -> String {
    match reply {
        Reply2::SimpleString(bytes) => format!("+{}", String::from_utf8_lossy(bytes)),
        Reply2::Error(text) => format!("-{text}"),
        Reply2::Integer(number) => format!(":{number}"),
        Reply2::BulkString(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Reply2::Array(replies) => {
            format!("[{}]", replies.iter().map(spell).collect::<Vec<_>>().join(", "))
        }
        Reply2::Null => "nil".into(),
    }
}

/// The elements of an array.
pub(crate) fn elements(reply: &Reply2) -> &[Reply2] {
    match reply {
        Reply2::Array(replies) => replies,
        other => panic!("not an array: {}", spell(other)),
    }
}

/// Asks each request in turn and compares.
pub(crate) fn check(client: &mut Client, cases: &[(&str, &str)]) {
    for (request, expected) in cases {
        let words: Vec<&str> = request.split_whitespace().collect();
        assert_eq!(ask(client, &words), *expected, "{request}");
    }
}
