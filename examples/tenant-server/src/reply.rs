//! The replies that wait to be sent.
//!
//! ```text
//!   bytes   +OK\r\n $5\r\nhello\r\n $70000\r\n | \r\n :1\r\n
//!                                             ▲
//!   pieces                                    └ a large value, sent from the memory in which the cache keeps it
//! ```
//!
//! Room is reserved fallibly: [`Reply::is_ready`] says before each command that the fixed part of any reply fits
//! ([`MIN_REPLY`] bytes and one piece), so a command that has changed something can always say so. What is larger asks for
//! more as it is written; where there is none the command's whole reply is taken back and `-OOM` stands in its place.

use core::fmt;
use std::io::IoSlice;

use redis_protocol::resp2::encode::encode_borrowed as encode2;
use redis_protocol::resp2::types::BorrowedFrame as Frame2;
use redis_protocol::resp3::encode::complete::encode_borrowed as encode3;
use redis_protocol::resp3::types::BorrowedFrame as Frame3;

use crate::memory::{NoRoom, Value, reserve, room};
use crate::protocol::number::Digits;

/// Bytes that every connection has reserved for replies, also when idle.
pub(crate) const REPLY_BASE: usize = 1 << 10;

/// Bytes that are free before a command begins; every reply of a fixed form fits, and so does any error.
pub(crate) const MIN_REPLY: usize = 512;

/// Large values that can wait in one reply without further room.
const PIECES: usize = 8;

/// A value up to this length is copied among the other replies where there is room, a longer one is sent as a piece.
const COPIED: usize = 4 << 10;

/// Parts given to one system call.
const SLICES: usize = 16;

/// Longest bulk or aggregate header: a type, 20 digits, CR and LF, and the format of a verbatim string.
const HEADER: usize = 32;

/// What Redis says when a command needs memory that there is not.
pub(crate) const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";

/// Something that is sent from where it is.
#[derive(Debug)]
struct Piece {
    /// It is sent before the byte at this index.
    at: usize,
    value: Value,
}

/// How far the replies have been sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: usize,
    pieces: usize,
    of_piece: usize,
}

/// A place among the replies, to come back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    bytes: usize,
    pieces: usize,
}

/// The replies that wait to be sent.
///
/// # Invariants
///
/// - `at` of the pieces does not decrease, and is at most `bytes.len()`.
/// - `sent.bytes <= bytes.len()`, `sent.pieces <= pieces.len()`.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    sent: Sent,
    resp3: bool,
}

impl Reply {
    /// No replies, with the base reservations.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where the current group has none.
    pub(crate) fn new() -> Result<Self, NoRoom> {
        Ok(Self {
            bytes: room::with_capacity(REPLY_BASE)?,
            pieces: room::with_capacity(PIECES)?,
            sent: Sent::default(),
            resp3: false,
        })
    }

    /// The same replies in memory of the current group; there are no pieces, which belong to a tenant's cache.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] where that group has none.
    pub(crate) fn moved(&self) -> Result<Self, NoRoom> {
        debug_assert!(self.is_movable(), "pieces stay with their tenant");
        let unsent = &self.bytes[self.sent.bytes..];
        let mut moved = Self {
            bytes: room::with_capacity(REPLY_BASE.max(unsent.len() + MIN_REPLY))?,
            pieces: room::with_capacity(PIECES)?,
            sent: Sent::default(),
            resp3: self.resp3,
        };
        moved.bytes.extend_from_slice(unsent);
        Ok(moved)
    }

    /// Whether [`Reply::moved`] may be called.
    pub(crate) fn is_movable(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether a command may begin: its reply, if of a fixed form, will fit. Otherwise the replies have to be sent first.
    pub(crate) fn is_ready(&self) -> bool {
        self.bytes.capacity() - self.bytes.len() >= MIN_REPLY
            && self.pieces.len() < self.pieces.capacity()
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Makes the buffer `capacity` bytes if there is room for that; it is no loss if not.
    pub(crate) fn try_grow(&mut self, capacity: usize) {
        if self.pieces.len() == self.pieces.capacity() {
            return;
        }
        let additional = capacity.saturating_sub(self.bytes.len());
        // Only fewer system calls are at stake: a buffer of the old size goes on.
        let _kept = reserve(&mut self.bytes, additional);
    }

    /// Gives back what is beyond the base reservations; nothing waits to be sent.
    pub(crate) fn rest(&mut self) {
        if self.bytes.capacity() > REPLY_BASE
            && self.bytes.is_empty()
            && let Ok(bytes) = room::with_capacity(REPLY_BASE)
        {
            self.bytes = bytes;
        }
        if self.pieces.capacity() > PIECES
            && self.pieces.is_empty()
            && let Ok(pieces) = room::with_capacity(PIECES)
        {
            self.pieces = pieces;
        }
    }

    /// Whether the client asked for RESP3.
    pub(crate) fn is_resp3(&self) -> bool {
        self.resp3
    }

    /// Chooses the protocol of the replies from here on.
    pub(crate) fn set_resp3(&mut self, resp3: bool) {
        self.resp3 = resp3;
    }

    /// Where the next reply begins.
    pub(crate) fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), pieces: self.pieces.len() }
    }

    /// Takes back everything since `mark`, none of which has been sent.
    pub(crate) fn take_back(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.pieces.truncate(mark.pieces);
    }

    // ---- what can be said -------------------------------------------------------------------------------------------

    /// A status such as `+OK`.
    pub(crate) fn simple(&mut self, text: &str) -> Result<(), NoRoom> {
        self.frame(text.len(), |buf| {
            encode2(buf, &Frame2::SimpleString(text.as_bytes()), false).ok()
        })
    }

    /// `+OK`.
    pub(crate) fn ok(&mut self) -> Result<(), NoRoom> {
        self.simple("OK")
    }

    /// An integer.
    pub(crate) fn integer(&mut self, number: i64) -> Result<(), NoRoom> {
        self.frame(0, |buf| encode2(buf, &Frame2::Integer(number), false).ok())
    }

    /// A count of bytes, keys or arguments.
    pub(crate) fn count(&mut self, count: usize) -> Result<(), NoRoom> {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Nothing: a null of the client's protocol.
    pub(crate) fn null(&mut self) -> Result<(), NoRoom> {
        if self.resp3 {
            self.frame(0, |buf| encode3(buf, &Frame3::Null, false).ok())
        } else {
            self.frame(0, |buf| encode2(buf, &Frame2::Null, false).ok())
        }
    }

    /// A double; a string in RESP2.
    pub(crate) fn double(&mut self, number: f64) -> Result<(), NoRoom> {
        if self.resp3 {
            return self.frame(0, |buf| {
                encode3(buf, &Frame3::Double { data: number, attributes: None }, false).ok()
            });
        }
        self.text(b'$', "", format_args!("{number}"))
    }

    /// A bulk string.
    pub(crate) fn bulk(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        self.room(bytes.len() + HEADER)?;
        self.header(b'$', bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// A value: copied if it is short, otherwise sent from where it is, which needs no room but a piece.
    pub(crate) fn value(&mut self, value: &Value) -> Result<(), NoRoom> {
        if value.len() <= COPIED && self.bytes.capacity() - self.bytes.len() >= value.len() + HEADER
        {
            return self.bulk(value.as_slice());
        }
        room::reserve_one(&mut self.pieces)?;
        self.room(2 * HEADER)?;
        self.header(b'$', value.len())?;
        self.pieces.push(Piece { at: self.bytes.len(), value: value.clone() });
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// The beginning of an array of `len` elements.
    pub(crate) fn array(&mut self, len: usize) -> Result<(), NoRoom> {
        self.header(b'*', len)
    }

    /// The beginning of a set of `len` elements; an array in RESP2.
    pub(crate) fn set(&mut self, len: usize) -> Result<(), NoRoom> {
        self.header(if self.resp3 { b'~' } else { b'*' }, len)
    }

    /// The beginning of a map of `len` pairs; a flat array in RESP2.
    pub(crate) fn map(&mut self, len: usize) -> Result<(), NoRoom> {
        if self.resp3 { self.header(b'%', len) } else { self.header(b'*', 2 * len) }
    }

    /// A text for people: a verbatim string in RESP3.
    pub(crate) fn verbatim(&mut self, text: impl fmt::Display) -> Result<(), NoRoom> {
        let (kind, format) = if self.resp3 { (b'=', "txt:") } else { (b'$', "") };
        self.text(kind, format, format_args!("{text}"))
    }

    /// An error, on one line: line breaks in it become blanks, and what does not fit [`MIN_REPLY`] is cut off.
    pub(crate) fn error(&mut self, text: impl fmt::Display) -> Result<(), NoRoom> {
        self.room(MIN_REPLY)?;
        self.bytes.push(b'-');
        let mut line = OneLine { bytes: &mut self.bytes, left: MIN_REPLY - 3 };
        // Writing a line cannot fail: it is cut off instead.
        let _infallible = fmt::Write::write_fmt(&mut line, format_args!("{text}"));
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    // ---- how it is written ------------------------------------------------------------------------------------------

    /// Makes room for `count` more bytes.
    fn room(&mut self, count: usize) -> Result<(), NoRoom> {
        if self.bytes.capacity() - self.bytes.len() >= count {
            return Ok(());
        }
        let generous = count.max(self.bytes.capacity());
        reserve(&mut self.bytes, generous).or_else(|NoRoom| reserve(&mut self.bytes, count))
    }

    /// A frame of the codec, for which `len` bytes and a header are enough.
    fn frame(
        &mut self,
        len: usize,
        encode: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(), NoRoom> {
        self.room(len + HEADER)?;
        let start = self.bytes.len();
        self.bytes.resize(start + len + HEADER, 0);
        let written = encode(&mut self.bytes[start..]);
        self.bytes.truncate(start + written.unwrap_or(0));
        written.map(|_| ()).ok_or(NoRoom)
    }

    fn header(&mut self, kind: u8, len: usize) -> Result<(), NoRoom> {
        self.room(HEADER)?;
        self.bytes.push(kind);
        self.bytes
            .extend_from_slice(Digits::new(i64::try_from(len).unwrap_or(i64::MAX)).as_slice());
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// A string whose length is known only when it has been written: the header is put before it afterwards.
    fn text(&mut self, kind: u8, format: &str, text: fmt::Arguments<'_>) -> Result<(), NoRoom> {
        let start = self.bytes.len();
        self.append(text)?;
        let len = self.bytes.len() - start;
        self.room(2 * HEADER)?;
        self.header(kind, len + format.len())?;
        self.bytes.extend_from_slice(format.as_bytes());
        self.bytes[start..].rotate_left(len);
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn append(&mut self, text: fmt::Arguments<'_>) -> Result<(), NoRoom> {
        fmt::write(&mut Appender(self), text).map_err(|fmt::Error| NoRoom)
    }

    // ---- how it is sent ---------------------------------------------------------------------------------------------

    /// What comes next, for one system call.
    pub(crate) fn unsent(&self) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let mut add = |slice| {
            if let Some(place) = slices.get_mut(count) {
                *place = IoSlice::new(slice);
                count += 1;
            }
        };
        let mut from = self.sent.bytes;
        let mut of_piece = self.sent.of_piece;
        for piece in self.pieces.iter().skip(self.sent.pieces).take(SLICES / 2) {
            add(&self.bytes[from..piece.at]);
            add(&piece.value.as_slice()[of_piece..]);
            from = piece.at;
            of_piece = 0;
        }
        if self.pieces.len() - self.sent.pieces < SLICES / 2 {
            add(&self.bytes[from..]);
        }
        (slices, count)
    }

    /// Counts `count` bytes as sent; when all are, the buffers are empty again.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.get(self.sent.pieces) {
            let before = count.min(piece.at - self.sent.bytes);
            self.sent.bytes += before;
            count -= before;
            let of_piece = count.min(piece.value.len() - self.sent.of_piece);
            self.sent.of_piece += of_piece;
            count -= of_piece;
            if self.sent.bytes < piece.at || self.sent.of_piece < piece.value.len() {
                return;
            }
            self.sent.pieces += 1;
            self.sent.of_piece = 0;
        }
        self.sent.bytes = self.bytes.len().min(self.sent.bytes + count);
        if self.sent.bytes == self.bytes.len() {
            self.bytes.clear();
            self.pieces.clear();
            self.sent = Sent::default();
        }
    }
}

/// Formats into the replies, fallibly.
struct Appender<'a>(&'a mut Reply);

impl fmt::Write for Appender<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.room(text.len()).map_err(|NoRoom| fmt::Error)?;
        self.0.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Writes one line of bounded length into room that is there.
struct OneLine<'a> {
    bytes: &'a mut Vec<u8>,
    left: usize,
}

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let count = text.len().min(self.left);
        self.left -= count;
        let line = text.bytes().take(count);
        self.bytes.extend(line.map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
        Ok(())
    }
}

/// What a client sent, shown in an error: at most 128 bytes of it, as text.
#[derive(Debug)]
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(128)];
        for chunk in shown.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(reply: &mut Reply, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !reply.is_empty() {
            let (slices, count) = reply.unsent();
            let joined: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            assert!(!joined.is_empty(), "something is left, so something is sent");
            let part = joined.len().min(step);
            all.extend_from_slice(&joined[..part]);
            reply.advance(part);
        }
        all
    }

    #[test]
    fn each_type_in_both_protocols() {
        let mut reply = Reply::new().expect("room");
        let say = |reply: &mut Reply| {
            reply.ok()?;
            reply.integer(i64::MIN)?;
            reply.integer(i64::MAX)?;
            reply.integer(999_999_999_999_999_999)?;
            reply.null()?;
            reply.bulk(b"a\r\nb")?;
            reply.double(0.5)?;
            reply.map(1)?;
            reply.set(2)?;
            reply.array(3)?;
            reply.verbatim("text")?;
            reply.error("ERR a\r\nb")
        };
        say(&mut reply).expect("room");
        let two = b"+OK\r\n:-9223372036854775808\r\n:9223372036854775807\r\n:999999999999999999\r\n$-1\r\n$4\r\na\r\nb\r\n$3\r\n0.5\r\n*2\r\n*2\r\n*3\r\n$4\r\ntext\r\n-ERR a  b\r\n";
        assert_eq!(String::from_utf8_lossy(&sent(&mut reply, 1000)), String::from_utf8_lossy(two));
        reply.set_resp3(true);
        say(&mut reply).expect("room");
        let three = b"+OK\r\n:-9223372036854775808\r\n:9223372036854775807\r\n:999999999999999999\r\n_\r\n$4\r\na\r\nb\r\n,0.5\r\n%1\r\n~2\r\n*3\r\n=8\r\ntxt:text\r\n-ERR a  b\r\n";
        assert_eq!(
            String::from_utf8_lossy(&sent(&mut reply, 1000)),
            String::from_utf8_lossy(three)
        );
    }

    #[test]
    fn large_values_are_sent_in_place_in_any_steps() {
        for step in [997, 4096, 5010, 100_000] {
            let mut reply = Reply::new().expect("room");
            let mut expected = Vec::new();
            for round in 0..20_u8 {
                let value = Value::copy_of(&vec![round; 5000]).expect("room");
                reply.value(&value).expect("room");
                reply.integer(1).expect("room");
                expected.extend_from_slice(b"$5000\r\n");
                expected.extend_from_slice(&vec![round; 5000]);
                expected.extend_from_slice(b"\r\n:1\r\n");
            }
            assert_eq!(sent(&mut reply, step), expected);
            assert!(reply.is_movable());
        }
    }

    #[test]
    fn a_reply_is_taken_back_as_a_whole() {
        let mut reply = Reply::new().expect("room");
        reply.ok().expect("room");
        let mark = reply.mark();
        reply.array(2).expect("room");
        reply.value(&Value::copy_of(&[0; 9000]).expect("room")).expect("room");
        reply.take_back(mark);
        reply.error(OOM).expect("room");
        assert_eq!(sent(&mut reply, 7), format!("+OK\r\n-{OOM}\r\n").as_bytes());
    }

    #[test]
    fn every_error_fits_what_is_ready() {
        let mut reply = Reply::new().expect("room");
        while reply.is_ready() {
            reply.ok().expect("room");
        }
        reply.advance(5 * 40);
        let mut fresh = Reply::new().expect("room");
        fresh.bytes.resize(REPLY_BASE - MIN_REPLY, b'.');
        assert!(fresh.is_ready());
        let name = [b'n'; 200];
        fresh
            .error(format_args!(
                "ERR unknown command '{}', with args beginning with: '{}' ",
                Shown(&name),
                Shown(&name)
            ))
            .expect("room");
        assert_eq!(fresh.bytes.capacity(), REPLY_BASE, "nothing had to grow");
    }
}
