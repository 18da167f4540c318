//! Many tenants, written round-robin by a few connections: each batch of writes goes to the next tenant.

use std::io;
use std::time::Instant;

use clap::Args;
use resp_client::{Client, Reply2, encode};

use crate::{Outcome, Server};

/// How much.
#[derive(Clone, Debug, Args)]
pub(crate) struct Spread {
    /// How many tenants, from database 0
    #[arg(long, default_value_t = 1000)]
    tenants: u32,
    /// How many connections
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// How often each connection goes round
    #[arg(long, default_value_t = 8)]
    rounds: u32,
    /// Writes to a tenant before the next one's turn
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 1024)]
    size: usize,
}

/// What was answered.
#[derive(Clone, Debug, Default)]
struct Answers {
    selected: u64,
    written: u64,
    refused: u64,
    wrong: Option<String>,
}

impl Spread {
    pub(crate) fn run(&self, server: &Server) -> Outcome {
        let since = Instant::now();
        let mut total = Answers::default();
        std::thread::scope(|scope| {
            let connections: Vec<_> = (0..self.connections)
                .map(|connection| scope.spawn(move || self.write(server, connection)))
                .collect();
            for connection in connections {
                let answers = connection
                    .join()
                    .map_err(|_| io::Error::other("a connection's thread panicked"))??;
                total.selected += answers.selected;
                total.written += answers.written;
                total.refused += answers.refused;
                total.wrong = total.wrong.take().or(answers.wrong);
            }
            io::Result::Ok(())
        })?;
        let Answers { selected, written, refused, wrong } = total;
        let seconds = since.elapsed().as_secs_f64();
        Ok(match wrong {
            Some(reply) => Err(format!("a request was answered {reply}")),
            None => Ok(format!(
                "{written} writes to {} tenants over {} connections, {selected} SELECTs, {refused} refused, in {seconds:.1} s",
                self.tenants, self.connections
            )),
        })
    }

    /// One connection's rounds. They begin at different tenants, so that no two write to the same one for long.
    fn write(&self, server: &Server, connection: u32) -> io::Result<Answers> {
        let mut client = Client::connect(server.address)?;
        let mut answers = Answers::default();
        let mut bytes = Vec::new();
        let value = vec![b'x'; self.size];
        let first = connection * self.tenants / self.connections;
        for round in 0..self.rounds {
            for step in 0..self.tenants {
                let db = (first + step) % self.tenants;
                bytes.clear();
                encode(&[b"SELECT", db.to_string().as_bytes()], &mut bytes);
                for write in 0..self.batch {
                    let key = format!("key:{connection}:{round}:{write}");
                    encode(&[b"SET", key.as_bytes(), &value], &mut bytes);
                }
                client.write(&bytes)?;
                answers.select(&client.read()?);
                for _ in 0..self.batch {
                    answers.add(&client.read()?);
                }
            }
        }
        Ok(answers)
    }
}

impl Answers {
    fn select(&mut self, reply: &Reply2) {
        match reply {
            Reply2::SimpleString(_) => self.selected += 1,
            other => self.wrong = Some(format!("{other:?}")),
        }
    }

    fn add(&mut self, reply: &Reply2) {
        match reply {
            Reply2::SimpleString(_) => self.written += 1,
            Reply2::Error(text) if text.starts_with("OOM ") => self.refused += 1,
            other => self.wrong = Some(format!("{other:?}")),
        }
    }
}
