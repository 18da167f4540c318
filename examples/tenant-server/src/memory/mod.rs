//! Memory that a request asks for, always fallibly.
//!
//! ```text
//!   room     NoRoom, reserve()      the only ways this server grows a Vec for a tenant
//!   packed   Packed<H>, Filling<H>  counted byte strings in one allocation: header, then bytes
//!   value    Key, Value             what a tenant's cache holds
//! ```
//!
//! Everything here allocates in the group that the calling thread is in, and answers [`NoRoom`] where an ordinary
//! `Vec` or `Arc` would abort the process. That is the whole point: a tenant at its limit gets an error reply.

pub(crate) mod packed;
pub(crate) mod room;
pub(crate) mod value;

pub(crate) use packed::{Filling, Packed};
pub(crate) use room::{NoRoom, reserve};
pub(crate) use value::{Key, Value};
