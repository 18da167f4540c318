//! The server as its clients see it: each test starts the real program on a free port and speaks to it over TCP.

mod anything;
mod auth;
mod commands;
mod errors;
mod harness;
mod lifecycle;
mod limits;
mod protocol;
mod tenancy;
