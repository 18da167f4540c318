//! A small blocking client of the Redis protocol: what the load generator and the tests speak to the server with.
//!
//! The replies are taken apart by a decoder that has nothing to do with the server's own code, so that the two check each
//! other.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use redis_protocol::resp2::decode::decode as decode2;
use redis_protocol::resp3::decode::complete::decode as decode3;

pub use redis_protocol::resp2::types::OwnedFrame as Reply2;
pub use redis_protocol::resp3::types::OwnedFrame as Reply3;

/// How long a reply may take before the client gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes read from the socket at a time.
const CHUNK: usize = 64 << 10;

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, unread: Vec::new() })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one request.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode(words, &mut bytes);
        self.write(&bytes)
    }

    /// Reads one reply in the older protocol.
    ///
    /// # Errors
    ///
    /// The socket's; `InvalidData` for what is not the protocol; `UnexpectedEof` when the server closes.
    pub fn read(&mut self) -> io::Result<Reply2> {
        self.read_with(|bytes| decode2(bytes).map_err(not_the_protocol))
    }

    /// Reads one reply in the newer protocol, which HELLO 3 asks for.
    ///
    /// # Errors
    ///
    /// As [`Client::read`].
    pub fn read3(&mut self) -> io::Result<Reply3> {
        self.read_with(|bytes| decode3(bytes).map_err(not_the_protocol))
    }

    /// Sends one request and reads its reply.
    ///
    /// # Errors
    ///
    /// As [`Client::read`].
    pub fn call(&mut self, words: &[&[u8]]) -> io::Result<Reply2> {
        self.send(words)?;
        self.read()
    }

    /// Whether the server closes the connection without another word.
    ///
    /// # Errors
    ///
    /// The socket's, above all when nothing happens for a long time.
    pub fn is_closed(&mut self) -> io::Result<bool> {
        if !self.unread.is_empty() {
            return Ok(false);
        }
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => Ok(count == 0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn read_with<T>(
        &mut self,
        decode: impl Fn(&[u8]) -> io::Result<Option<(T, usize)>>,
    ) -> io::Result<T> {
        loop {
            if !self.unread.is_empty()
                && let Some((reply, len)) = decode(&self.unread)?
            {
                self.unread.drain(..len);
                return Ok(reply);
            }
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

fn not_the_protocol(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Adds one request to `bytes`.
pub fn encode(words: &[&[u8]], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Raises this process's limit on open files as far as it goes, and answers what it is now: each connection takes one.
pub fn raise_open_files() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the pointer is to writable memory for one `rlimit`.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) };
    if got != 0 {
        return 0;
    }
    // SAFETY: `getrlimit` answered 0, so it has filled the structure.
    let mut limit = unsafe { limit.assume_init() };
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a filled `rlimit`.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if raised == 0 { limit.rlim_cur } else { before }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_an_array_of_strings() {
        let mut bytes = Vec::new();
        encode(&[b"SET", b"k", b""], &mut bytes);
        assert_eq!(bytes, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn files_may_be_opened() {
        assert!(raise_open_files() >= 256);
    }
}
