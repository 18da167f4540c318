//! Takes requests apart as they arrive.
//!
//! ```text
//!            '*'            n > 0          '$'           length                  last byte
//!   Start ───────► Count ─────────► Dollar ─────► Size ─────────► Begin ─► Body ──────────► Tail ─► Dollar | Start
//!     │                                 an argument that cannot be begun is refused: its bytes and all that
//!     └─ other: an inline line          follow in this request are skipped, and the request ends as Refused
//! ```

use super::args::NotBegun;
use super::inline::{Unbalanced, Words};
use super::number::{MAX_DIGITS, parse_i64};
use super::{
    Args, Input, MAX_ARGS, MAX_ARGS_BEFORE_AUTH, MAX_BULK, MAX_BULK_BEFORE_AUTH, MAX_LINE,
    ProtocolError,
};

/// What the connection is allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Whether it has authenticated; before, Redis's narrow limits hold.
    pub(crate) authenticated: bool,
    /// Whether it has come to a tenant, whose memory it may ask for.
    pub(crate) at_home: bool,
}

impl Rules {
    /// Before authentication the narrow limits bound what the server itself spends on a connection.
    fn may_allocate(self) -> bool {
        self.at_home || !self.authenticated
    }
}

/// What came of a look at the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The input is used up.
    More,
    /// A request is complete.
    Request,
    /// A request is complete, but there was no room for it; its arguments are gone.
    Refused,
    /// The next argument needs memory of a tenant.
    NeedsHome,
    /// What arrived is not the protocol.
    Broken(ProtocolError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Count,
    Dollar,
    Size,
    Begin { len: usize },
    Body { left: usize },
    Tail { left: usize },
    RestOfLine,
}

/// A length line: the digits that fit, and how many there were.
#[derive(Clone, Copy, Debug)]
struct Line {
    text: [u8; MAX_DIGITS],
    len: usize,
    ended: bool,
}

/// What a look for the end of a length line found.
enum Length {
    Incomplete,
    TooLong,
    Number(Option<i64>),
}

impl Line {
    const EMPTY: Self = Self { text: [0; MAX_DIGITS], len: 0, ended: false };

    /// Takes bytes up to and with the line's end.
    fn read(&mut self, input: &mut Input) -> Length {
        let unread = input.unread();
        for (index, byte) in unread.iter().enumerate() {
            if self.ended {
                input.take(index + 1);
                let text = self.text.get(..self.len);
                let number = text.and_then(parse_i64);
                *self = Self::EMPTY;
                return Length::Number(number);
            }
            if *byte == b'\r' {
                self.ended = true;
                continue;
            }
            if let Some(place) = self.text.get_mut(self.len) {
                *place = *byte;
            }
            self.len += 1;
        }
        input.take(unread.len());
        if self.len > MAX_LINE { Length::TooLong } else { Length::Incomplete }
    }
}

/// The state between two looks at the input.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    line: Line,
    args_left: i64,
    refused: bool,
}

impl Parser {
    /// At the start of a request.
    pub(crate) const fn new() -> Self {
        Self { state: State::Start, line: Line::EMPTY, args_left: 0, refused: false }
    }

    /// Whether it stands between two requests.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Start
    }

    /// Goes as far as the input allows.
    pub(crate) fn advance(&mut self, input: &mut Input, args: &mut Args, rules: Rules) -> Event {
        loop {
            let event = match self.state {
                State::Start => self.start(input, args, rules),
                State::Count => self.count(input, rules),
                State::Dollar => self.dollar(input),
                State::Size => self.size(input, rules),
                State::Begin { len } => self.begin(len, args, rules),
                State::Body { left } => self.body(left, input, args),
                State::Tail { left } => self.tail(left, input),
                State::RestOfLine => self.rest_of_line(input),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Gives up the request that is arriving: what is still to come of it is skipped.
    pub(crate) fn refuse(&mut self, args: &mut Args) {
        args.clear();
        self.refused = true;
        if self.state == State::Start {
            self.state = State::RestOfLine;
        }
    }

    /// How many bytes of a refused argument are still to be skipped.
    pub(crate) fn skipping(&self) -> Option<usize> {
        match self.state {
            State::Body { left } if self.refused => Some(left),
            _ => None,
        }
    }

    /// Whether the bytes that come next belong to an argument that is being kept.
    pub(crate) fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body { .. }) && !self.refused
    }

    /// Counts bytes of an argument that did not pass through the input.
    pub(crate) fn passed(&mut self, count: usize, args: &mut Args) {
        if let State::Body { left } = self.state {
            self.set_body(left.saturating_sub(count), args);
        }
    }

    fn start(&mut self, input: &mut Input, args: &mut Args, rules: Rules) -> Option<Event> {
        match input.unread().first() {
            None => Some(Event::More),
            Some(b'*') => {
                input.take(1);
                self.state = State::Count;
                None
            }
            Some(_) => self.inline(input, args, rules),
        }
    }

    fn count(&mut self, input: &mut Input, rules: Rules) -> Option<Event> {
        let number = match self.line.read(input) {
            Length::Incomplete => return Some(Event::More),
            Length::TooLong => return Some(Event::Broken(ProtocolError::MultibulkCountTooLong)),
            Length::Number(number) => number,
        };
        let Some(count) = number.filter(|count| *count <= MAX_ARGS) else {
            return Some(Event::Broken(ProtocolError::MultibulkLength));
        };
        if count > MAX_ARGS_BEFORE_AUTH && !rules.authenticated {
            return Some(Event::Broken(ProtocolError::UnauthenticatedMultibulkLength));
        }
        self.args_left = count;
        self.state = if count > 0 { State::Dollar } else { State::Start };
        None
    }

    fn dollar(&mut self, input: &mut Input) -> Option<Event> {
        match input.unread().first() {
            None => Some(Event::More),
            Some(b'$') => {
                input.take(1);
                self.state = State::Size;
                None
            }
            Some(other) => Some(Event::Broken(ProtocolError::ExpectedDollar(*other))),
        }
    }

    fn size(&mut self, input: &mut Input, rules: Rules) -> Option<Event> {
        let number = match self.line.read(input) {
            Length::Incomplete => return Some(Event::More),
            Length::TooLong => return Some(Event::Broken(ProtocolError::BulkCountTooLong)),
            Length::Number(number) => number,
        };
        let len = number.filter(|len| *len <= MAX_BULK).and_then(|len| usize::try_from(len).ok());
        let Some(len) = len else {
            return Some(Event::Broken(ProtocolError::BulkLength));
        };
        if number > Some(MAX_BULK_BEFORE_AUTH) && !rules.authenticated {
            return Some(Event::Broken(ProtocolError::UnauthenticatedBulkLength));
        }
        self.state = State::Begin { len };
        None
    }

    fn begin(&mut self, len: usize, args: &mut Args, rules: Rules) -> Option<Event> {
        if !self.refused {
            match args.begin(len, rules.may_allocate()) {
                Ok(()) => {}
                Err(NotBegun::NeedsHome) => return Some(Event::NeedsHome),
                Err(NotBegun::NoRoom) => self.refuse(args),
            }
        }
        self.set_body(len, args);
        None
    }

    fn body(&mut self, left: usize, input: &mut Input, args: &mut Args) -> Option<Event> {
        let unread = input.unread();
        let count = unread.len().min(left);
        if count == 0 {
            return Some(Event::More);
        }
        if !self.refused {
            args.push(&unread[..count]);
        }
        input.take(count);
        self.set_body(left - count, args);
        None
    }

    fn set_body(&mut self, left: usize, args: &mut Args) {
        if left > 0 {
            self.state = State::Body { left };
            return;
        }
        if !self.refused {
            args.end();
        }
        self.state = State::Tail { left: 2 };
    }

    /// The two bytes after an argument; as Redis, whatever they are.
    fn tail(&mut self, left: usize, input: &mut Input) -> Option<Event> {
        let count = input.unread().len().min(left);
        input.take(count);
        if count < left {
            self.state = State::Tail { left: left - count };
            return Some(Event::More);
        }
        self.args_left -= 1;
        if self.args_left > 0 {
            self.state = State::Dollar;
            return None;
        }
        Some(self.complete())
    }

    fn complete(&mut self) -> Event {
        self.state = State::Start;
        if core::mem::take(&mut self.refused) { Event::Refused } else { Event::Request }
    }

    fn rest_of_line(&mut self, input: &mut Input) -> Option<Event> {
        let unread = input.unread();
        match unread.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                input.take(end + 1);
                Some(self.complete())
            }
            None => {
                input.clear();
                Some(Event::More)
            }
        }
    }

    /// A line of words; it is taken only when all of it is there.
    fn inline(&mut self, input: &mut Input, args: &mut Args, rules: Rules) -> Option<Event> {
        let unread = input.unread();
        let Some(end) = unread.iter().position(|byte| *byte == b'\n') else {
            let too_long = unread.len() > MAX_LINE;
            return Some(if too_long {
                Event::Broken(ProtocolError::InlineTooLong)
            } else {
                Event::More
            });
        };
        match words_into(args, &unread[..end], rules) {
            Err(Unbalanced) => Some(Event::Broken(ProtocolError::UnbalancedQuotes)),
            Ok(Err(NotBegun::NeedsHome)) => {
                args.clear();
                Some(Event::NeedsHome)
            }
            Ok(Err(NotBegun::NoRoom)) => {
                self.refuse(args);
                None
            }
            Ok(Ok(())) => {
                input.take(end + 1);
                (args.len() > 0).then_some(Event::Request)
            }
        }
    }
}

fn words_into(
    args: &mut Args,
    line: &[u8],
    rules: Rules,
) -> Result<Result<(), NotBegun>, Unbalanced> {
    let mut words = Words::of(line);
    while let Some(len) = words.clone().next_word(|_| ())? {
        if let Err(not_begun) = args.begin(len, rules.may_allocate()) {
            return Ok(Err(not_begun));
        }
        words.next_word(|byte| args.push(&[byte]))?;
        args.end();
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_HOME: Rules = Rules { authenticated: true, at_home: true };

    /// Feeds `bytes` in pieces of `step` and gathers what comes out.
    fn parse(bytes: &[u8], step: usize, rules: Rules) -> Vec<Result<Vec<Vec<u8>>, Event>> {
        let mut input = Input::holding(b"").expect("room");
        let mut args = Args::new().expect("room");
        let mut parser = Parser::new();
        let mut all = Vec::new();
        for piece in bytes.chunks(step) {
            if input.is_full() {
                input.grow_for_line().expect("room");
            }
            let spare = input.spare();
            spare[..piece.len()].write_copy_of_slice(piece);
            // SAFETY: as many bytes were written in the line above.
            unsafe { input.advance(piece.len()) };
            loop {
                match parser.advance(&mut input, &mut args, rules) {
                    Event::More => break,
                    Event::Request => {
                        all.push(Ok(args.from(0).map(<[u8]>::to_vec).collect()));
                        args.clear();
                    }
                    other => {
                        all.push(Err(other));
                        if matches!(other, Event::Broken(_) | Event::NeedsHome) {
                            return all;
                        }
                    }
                }
            }
        }
        assert!(parser.is_idle() || !all.is_empty());
        all
    }

    fn request(words: &[&[u8]]) -> Result<Vec<Vec<u8>>, Event> {
        Ok(words.iter().map(|word| word.to_vec()).collect())
    }

    #[test]
    fn requests_in_any_pieces() {
        let long = vec![b'v'; 3000];
        let mut bytes =
            b"*1\r\n$4\r\nPING\r\n*0\r\n*-1\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$3000\r\n".to_vec();
        bytes.extend_from_slice(&long);
        bytes.extend_from_slice(b"\r\nECHO \"a b\"\r\n\r\n*1\r\n$4\r\nQUIT\r\n");
        let expected = [
            request(&[b"PING"]),
            request(&[b"SET", b"", &long]),
            request(&[b"ECHO", b"a b"]),
            request(&[b"QUIT"]),
        ];
        for step in [1, 2, 3, 7, 64, 500] {
            assert_eq!(parse(&bytes, step, AT_HOME), expected, "in pieces of {step}");
        }
    }

    #[test]
    fn what_is_not_the_protocol() {
        let cases: [(&[u8], ProtocolError); 9] = [
            (b"*x\r\n", ProtocolError::MultibulkLength),
            (b"*1048577\r\n", ProtocolError::MultibulkLength),
            (b"*123456789012345678901234567890\r\n", ProtocolError::MultibulkLength),
            (b"*1\r\nPING\r\n", ProtocolError::ExpectedDollar(b'P')),
            (b"*1\r\n$x\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$536870913\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$+4\r\nPING\r\n", ProtocolError::BulkLength),
            (b"set \"a\r\n", ProtocolError::UnbalancedQuotes),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(bytes, 3, AT_HOME), [Err(Event::Broken(error))]);
        }
    }

    #[test]
    fn lines_without_an_end() {
        let mut digits = vec![b'1'; MAX_LINE + 2];
        digits[0] = b'*';
        assert_eq!(
            parse(&digits, 512, AT_HOME),
            [Err(Event::Broken(ProtocolError::MultibulkCountTooLong))]
        );
        let mut digits = b"*1\r\n$".to_vec();
        digits.resize(MAX_LINE + 6, b'1');
        assert_eq!(
            parse(&digits, 512, AT_HOME),
            [Err(Event::Broken(ProtocolError::BulkCountTooLong))]
        );
        let words = vec![b'w'; MAX_LINE + 1];
        assert_eq!(parse(&words, 512, AT_HOME), [Err(Event::Broken(ProtocolError::InlineTooLong))]);
    }

    #[test]
    fn narrow_limits_before_authentication() {
        let rules = Rules { authenticated: false, at_home: false };
        let cases: [(&[u8], ProtocolError); 2] = [
            (b"*11\r\n", ProtocolError::UnauthenticatedMultibulkLength),
            (b"*1\r\n$16385\r\n", ProtocolError::UnauthenticatedBulkLength),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(bytes, 64, rules), [Err(Event::Broken(error))]);
        }
    }

    #[test]
    fn a_refused_request_is_skipped_and_the_next_one_is_read() {
        let mut input = Input::holding(b"").expect("room");
        let mut args = Args::new().expect("room");
        let mut parser = Parser::new();
        let homeless = Rules { authenticated: true, at_home: false };
        let bytes = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$600\r\n";
        input.spare()[..bytes.len()].write_copy_of_slice(bytes);
        // SAFETY: as many bytes were written in the line above.
        unsafe { input.advance(bytes.len()) };
        assert_eq!(parser.advance(&mut input, &mut args, homeless), Event::NeedsHome);
        assert_eq!(parser.advance(&mut input, &mut args, homeless), Event::NeedsHome, "asks again");
        parser.refuse(&mut args);
        assert_eq!(parser.advance(&mut input, &mut args, homeless), Event::More);
        assert_eq!(parser.skipping(), Some(600));
        parser.passed(598, &mut args);
        let bytes = b"xx\r\n*1\r\n$4\r\nPING\r\n";
        input.spare()[..bytes.len()].write_copy_of_slice(bytes);
        // SAFETY: as many bytes were written in the line above.
        unsafe { input.advance(bytes.len()) };
        assert_eq!(parser.advance(&mut input, &mut args, homeless), Event::Refused);
        assert_eq!(parser.advance(&mut input, &mut args, homeless), Event::Request);
        assert_eq!(args.get(0), b"PING");
    }
}
