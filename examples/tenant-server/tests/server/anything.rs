//! Any requests, in any order, by many, on tenants that are far too small for them: each gets a reply, and nothing is left.

use resp_client::raise_open_files;

use crate::harness::{Client, OOM, OVERSHOOT, Server, ask, call, encode, eventually, next, tenant};

/// Databases that the requests go to.
const DATABASES: u64 = 6;

/// The limit of each.
const MAX: u64 = 96 << 10;

/// A generator of numbers, the same in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[usize::try_from(self.below(words.len() as u64)).expect("an index")]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most =
            [4, 40, 300, 3000, 30_000, 300_000][usize::try_from(self.below(6)).expect("an index")];
        vec![b'x'; usize::try_from(self.below(most)).expect("a length")]
    }

    fn request(&mut self) -> Vec<Vec<u8>> {
        let key = |numbers: &mut Self| format!("key:{}", numbers.below(200)).into_bytes();
        let one =
            ["GET", "INCR", "DEL", "TTL", "GETDEL", "STRLEN", "PERSIST", "TYPE", "EXISTS", "DECR"];
        let alone = [
            "PING",
            "DBSIZE",
            "INFO",
            "COMMAND",
            "CLIENT GETNAME",
            "CONFIG GET *",
            "MEMORY STATS",
            "FLUSHDB",
        ];
        let alone =
            [alone.as_slice(), &["KEYS *", "SCAN 0 COUNT 1000", "COMMAND DOCS", "NONSENSE a b"]]
                .concat();
        match self.below(10) {
            0 | 1 => vec![self.one_of(&one).into(), key(self)],
            2 => self.one_of(&alone).split(' ').map(Into::into).collect(),
            3 => vec!["SELECT".into(), self.below(DATABASES).to_string().into()],
            4 => vec!["EXPIRE".into(), key(self), self.below(3).to_string().into()],
            5 => vec![self.one_of(&["APPEND", "SETNX"]).into(), key(self), self.bytes()],
            6 => vec![self.one_of(&["ECHO", "AUTH"]).into(), self.bytes()],
            7 => {
                let pairs = (0..=self.below(40))
                    .flat_map(|_| [key(self), self.bytes()])
                    .collect::<Vec<_>>();
                [vec![b"MSET".to_vec()], pairs].concat()
            }
            8 => {
                let keys = (0..=self.below(300)).map(|_| key(self)).collect::<Vec<_>>();
                [vec![self.one_of(&["MGET", "EXISTS", "UNLINK"]).into()], keys].concat()
            }
            _ => {
                let options =
                    self.one_of(&["", "GET", "NX", "XX GET", "PX 20", "EX 100 GET", "KEEPTTL"]);
                let options = options.split_whitespace().map(Into::into);
                [b"SET".to_vec(), key(self), self.bytes()].into_iter().chain(options).collect()
            }
        }
    }
}

/// Sends pipelines and reads as many replies as there were requests.
fn talk(client: &mut Client, numbers: &mut Numbers, pipelines: usize) {
    for _ in 0..pipelines {
        let requests: Vec<_> = (0..=numbers.below(12)).map(|_| numbers.request()).collect();
        let mut bytes = Vec::new();
        for request in &requests {
            encode(&request.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut bytes);
        }
        client.write(&bytes).expect("sent");
        for request in &requests {
            let reply = next(client);
            let allowed = ["-OOM", "-ERR", "-WRONGPASS"];
            let fine =
                !reply.starts_with('-') || allowed.iter().any(|error| reply.starts_with(error));
            let name = String::from_utf8_lossy(&request[0]);
            assert!(fine, "{name}: {reply:.200}");
        }
    }
}

#[test]
fn nothing_ends_the_server() {
    raise_open_files();
    let max = MAX.to_string();
    let mut server = Server::start(&["--default-max", &max, "--databases", "16"]);
    let mut admin = server.client();
    // In one of them somebody holds half of the memory, so that even evicting everything is of no great help.
    let mut holder = server.client_of(1);
    holder.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$49152\r\nabc").expect("sent");
    std::thread::scope(|scope| {
        for seed in 1..=12 {
            let server = &server;
            scope.spawn(move || {
                let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ seed);
                for _ in 0..4 {
                    talk(&mut server.client(), &mut numbers, 60);
                }
            });
        }
    });
    let mut refused = 0;
    for db in 0..u32::try_from(DATABASES).expect("few") {
        let line = tenant(&mut admin, db).expect("a line");
        assert!(line.number("peak") <= MAX + OVERSHOOT, "{line:?}");
        refused += line.number("oom");
    }
    assert!(refused > 100, "{refused} were refused");
    drop(holder);
    assert_eq!(ask(&mut admin, &["FLUSHALL"]), "+OK");
    assert_ne!(ask(&mut admin, &["PING"]), OOM);
    eventually("nothing is left of any of it", || {
        call(&mut admin, &["MEMORY", "PURGE"]);
        (0..u32::try_from(DATABASES).expect("few"))
            .all(|db| tenant(&mut admin, db).expect("a line").number("usage") == 0)
    });
    assert!(server.is_running());
}
