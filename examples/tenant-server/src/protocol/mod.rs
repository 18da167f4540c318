//! The request side of the Redis protocol, as a value: bytes in, requests out, no socket and no lock.
//!
//! ```text
//!   socket ──► Input ──► Parser ──► Args ──► a command
//!                │          │         └ short arguments in an arena that the connection reserved beforehand,
//!                │          │           longer ones each in the memory in which a cache will keep them
//!                └──────────┴ a large value passes by Input: it is received straight into Args
//! ```
//!
//! The requests are taken apart as they arrive. A decoder of whole frames would first want the whole request in one buffer
//! and then a vector of its parts, both of them infallibly allocated and both the client's to size; here a value is held
//! once, and an argument for which the tenant has no room is read and thrown away while the protocol stays in step.

pub(crate) mod args;
pub(crate) mod inline;
pub(crate) mod input;
pub(crate) mod number;
pub(crate) mod parser;

pub(crate) use args::Args;
pub(crate) use input::Input;
pub(crate) use parser::{Event, Parser, Rules};

/// Longest inline request, and longest length line, in bytes (Redis: `PROTO_INLINE_MAX_SIZE`).
pub(crate) const MAX_LINE: usize = 64 << 10;

/// Most arguments of one request.
pub(crate) const MAX_ARGS: i64 = 1024 * 1024;

/// Longest argument in bytes (Redis: `proto-max-bulk-len`).
pub(crate) const MAX_BULK: i64 = 512 << 20;

/// Most arguments of a request before the client has authenticated.
pub(crate) const MAX_ARGS_BEFORE_AUTH: i64 = 10;

/// Longest argument in bytes before the client has authenticated.
pub(crate) const MAX_BULK_BEFORE_AUTH: i64 = 16384;

/// Why a connection is closed: what it sent is not the protocol. The words are Redis's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    /// A length line of the request without an end.
    MultibulkCountTooLong,
    /// The number of arguments is no number, or too large.
    MultibulkLength,
    /// Too many arguments for a client that has not authenticated.
    UnauthenticatedMultibulkLength,
    /// A length line of an argument without an end.
    BulkCountTooLong,
    /// Something else where an argument begins.
    ExpectedDollar(u8),
    /// The length of an argument is no number, or too large.
    BulkLength,
    /// Too long an argument for a client that has not authenticated.
    UnauthenticatedBulkLength,
    /// An inline request without an end.
    InlineTooLong,
    /// An inline request with a quote that is not closed.
    UnbalancedQuotes,
}

impl core::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let text = match self {
            Self::MultibulkCountTooLong => "too big mbulk count string",
            Self::MultibulkLength => "invalid multibulk length",
            Self::UnauthenticatedMultibulkLength => "unauthenticated multibulk length",
            Self::BulkCountTooLong => "too big bulk count string",
            Self::ExpectedDollar(got) => {
                return write!(f, "expected '$', got '{}'", char::from(*got));
            }
            Self::BulkLength => "invalid bulk length",
            Self::UnauthenticatedBulkLength => "unauthenticated bulk length",
            Self::InlineTooLong => "too big inline request",
            Self::UnbalancedQuotes => "unbalanced quotes in request",
        };
        f.write_str(text)
    }
}
