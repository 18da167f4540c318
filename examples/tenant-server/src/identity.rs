//! Who a client is and what it has chosen.

/// Who a client is and what it has chosen; none of it is on the heap.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The connection's number, as CLIENT ID tells it.
    pub(crate) id: u64,
    /// The database that was selected.
    pub(crate) db: u32,
    /// Whether it may do more than authenticate.
    pub(crate) authenticated: bool,
}
