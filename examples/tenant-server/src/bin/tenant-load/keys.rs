//! One tenant's keys: written in pipelines, and checked one by one later.

use std::io;

use clap::Args;
use resp_client::{Client, Reply2, encode};

use crate::{Outcome, Server};

/// Requests sent before their replies are read.
const PIPELINE: usize = 64;

/// Which keys.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// Of which database
    #[arg(long)]
    db: u32,
    /// How many
    #[arg(long, default_value_t = 20_000)]
    keys: usize,
    /// Bytes of each value
    #[arg(long, default_value_t = 1024)]
    size: usize,
}

impl Keys {
    /// Writes all of them.
    pub(crate) fn fill(&self, server: &Server) -> Outcome {
        let mut client = connect(server, self.db)?;
        let (mut written, mut wrong) = (0, None);
        self.each_batch(
            &mut client,
            |key, value| vec![b"SET".to_vec(), key, value],
            |_, reply| match reply {
                Reply2::SimpleString(_) => written += 1,
                other => wrong = Some(format!("{other:?}")),
            },
        )?;
        Ok(match wrong {
            None => {
                Ok(format!("{written} keys of {} bytes written to database {}", self.size, self.db))
            }
            Some(reply) => Err(format!("a SET on database {} was answered {reply}", self.db)),
        })
    }

    /// Reads all of them and compares.
    pub(crate) fn verify(&self, server: &Server) -> Outcome {
        let mut client = connect(server, self.db)?;
        let (mut kept, mut missing) = (0, 0);
        self.each_batch(
            &mut client,
            |key, _| vec![b"GET".to_vec(), key],
            |index, reply| {
                if matches!(&reply, Reply2::BulkString(value) if *value == self.value(index)) {
                    kept += 1;
                } else {
                    missing += 1;
                }
            },
        )?;
        Ok(if missing == 0 {
            Ok(format!("all {kept} keys of database {} are there", self.db))
        } else {
            Err(format!(
                "{missing} of {} keys of database {} are gone or changed",
                self.keys, self.db
            ))
        })
    }

    fn key(index: usize) -> Vec<u8> {
        format!("kept:{index:08}").into_bytes()
    }

    fn value(&self, index: usize) -> Vec<u8> {
        let mut value = format!("{index:08}").into_bytes();
        value.resize(self.size, b'.');
        value
    }

    fn each_batch(
        &self,
        client: &mut Client,
        request: impl Fn(Vec<u8>, Vec<u8>) -> Vec<Vec<u8>>,
        mut answered: impl FnMut(usize, Reply2),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for first in (0..self.keys).step_by(PIPELINE) {
            let batch = first..self.keys.min(first + PIPELINE);
            bytes.clear();
            for index in batch.clone() {
                let words = request(Self::key(index), self.value(index));
                encode(&words.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut bytes);
            }
            client.write(&bytes)?;
            for index in batch {
                answered(index, client.read()?);
            }
        }
        Ok(())
    }
}

/// A connection with a database selected.
pub(crate) fn connect(server: &Server, db: u32) -> io::Result<Client> {
    let mut client = Client::connect(server.address)?;
    match client.call(&[b"SELECT", db.to_string().as_bytes()])? {
        Reply2::SimpleString(_) => Ok(client),
        other => Err(io::Error::other(format!("SELECT {db} was answered {other:?}"))),
    }
}
