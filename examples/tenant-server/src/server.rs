//! The server: what all connections share, and the loop that takes them in.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

use crate::connection::Connection;
use crate::options::Options;
use crate::stats::Stats;
use crate::tenants::Tenants;

/// The version of Redis whose answers these are.
pub(crate) const VERSION: &str = "7.0.15";

/// Most clients at a time; fewer where fewer files may be open.
const MAX_CLIENTS: u64 = 10_000;

/// Files that are not clients: the listener, the runtime's own, `/proc` for INFO.
const OTHER_FILES: u64 = 32;

/// Connections that the system may hold before they are taken in.
const BACKLOG: u32 = 1024;

/// How long to wait when there are no files left for another client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long requests that are in flight may take when the server is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// What all connections share. It is made once and lives as long as the process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) tenants: Tenants,
    pub(crate) stats: Stats,
    pub(crate) password: Option<String>,
    pub(crate) started: Instant,
    pub(crate) port: u16,
    pub(crate) threads: usize,
    pub(crate) max_clients: u64,
    next_id: AtomicU64,
    stop: watch::Sender<bool>,
    gone: Notify,
}

/// Listens where the options say.
///
/// # Errors
///
/// One line that says what is wrong: an address that is none, a port that is taken.
pub(crate) async fn listen(options: &Options) -> Result<TcpListener, String> {
    let place = format!("{}:{}", options.bind, options.port);
    let wrong = |error: io::Error| format!("cannot listen on {place}: {error}");
    let mut last = None;
    for address in
        tokio::net::lookup_host((options.bind.as_str(), options.port)).await.map_err(wrong)?
    {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
            .map_err(wrong)?;
        socket.set_reuseaddr(true).map_err(wrong)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(wrong(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())))
}

impl Server {
    /// A server with no tenant yet. It is leaked: tenants are referred to from everywhere until the process ends.
    ///
    /// # Errors
    ///
    /// As [`Tenants::new`].
    pub(crate) fn start(
        options: &Options,
        port: u16,
        open_files: u64,
    ) -> Result<&'static Self, memcg::Error> {
        let server = Self {
            tenants: Tenants::new(options)?,
            stats: Stats::default(),
            password: options.password.clone(),
            started: Instant::now(),
            port,
            threads: options.threads,
            max_clients: MAX_CLIENTS.min(open_files.saturating_sub(OTHER_FILES)).max(1),
            next_id: AtomicU64::new(1),
            stop: watch::Sender::new(false),
            gone: Notify::new(),
        };
        Ok(Box::leak(Box::new(server)))
    }

    /// Takes in connections until the server is told to stop. Each is a task of its own; tasks and sockets are the server's
    /// memory, not a tenant's.
    pub(crate) async fn accept(&'static self, listener: TcpListener) {
        let mut stop = self.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, _)) => self.take_in(stream),
                // Above all when no more files may be open: some client will leave.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Tells every connection to finish what is in flight, and waits until they have, or for a bounded time.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        let all_gone = async {
            while self.stats.clients() > 0 {
                self.gone.notified().await;
            }
        };
        // Whoever is not done by then is cut off.
        let _in_time = tokio::time::timeout(GRACE, all_gone).await;
    }

    fn take_in(&'static self, stream: TcpStream) {
        let guest = Guest(self);
        if self.stats.connected() > self.max_clients {
            self.stats.rejected();
            // Best effort: the client is turned away whether or not it hears why.
            let _told = stream.try_write(b"-ERR max number of clients reached\r\n");
            return;
        }
        // Replies are written whole; waiting to fill a packet would only delay them.
        let _best_effort = stream.set_nodelay(true);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let Ok(connection) = Connection::new(self, stream, id) else {
            return;
        };
        let stop = self.stop.subscribe();
        tokio::spawn(async move {
            connection.run(stop).await;
            drop(guest);
        });
    }
}

/// Counts a connection as gone when it is, however it ends.
#[derive(Debug)]
struct Guest(&'static Server);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.stats.disconnected();
        self.0.gone.notify_one();
    }
}
