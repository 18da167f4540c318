//! The server's counters, for INFO.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Value;

/// Counters over all connections. All are Relaxed: numbers for people, from which nothing follows.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    connections: AtomicU64,
    rejected: AtomicU64,
    commands: AtomicU64,
    errors: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    clients: AtomicU64,
}

impl Stats {
    /// Counts a connection and answers how many are open with it.
    pub(crate) fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts the end of a connection.
    pub(crate) fn disconnected(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection that was turned away.
    pub(crate) fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a command.
    pub(crate) fn count_command(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an error reply.
    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a key that was looked up, as found or not, and hands on what was found.
    pub(crate) fn looked_up(&self, found: Option<Value>) -> Option<Value> {
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Sets everything to 0 but the open connections.
    pub(crate) fn reset(&self) {
        for counter in [
            &self.connections,
            &self.rejected,
            &self.commands,
            &self.errors,
            &self.hits,
            &self.misses,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Open connections.
    pub(crate) fn clients(&self) -> u64 {
        self.clients.load(Ordering::Relaxed)
    }

    /// The counters under the names that INFO has for them.
    pub(crate) fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("total_connections_received", &self.connections),
            ("rejected_connections", &self.rejected),
            ("total_commands_processed", &self.commands),
            ("total_error_replies", &self.errors),
            ("keyspace_hits", &self.hits),
            ("keyspace_misses", &self.misses),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}
