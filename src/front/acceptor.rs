//! Accepts connections on all listeners, gives each to the worker with the lowest load, and refuses those beyond the
//! limit. `handoff.rs` does so with clients that nginx hands off.
//!
//! The bytes of a refused connection are read for the log line only. May not enter: the meaning of a request.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::event_stream;
use super::refusal::{linger, plain_answer};
use super::waiting_room::{Connection, Received};
use crate::front::client_address::Sender;
use crate::metrics::{Counter, Shard};
use crate::notice;
use crate::os;
use crate::throttle::Throttle;
use crate::worker::Handshakes;

/// Connections accepted on one listener before the next listener has its turn.
const ACCEPTS_PER_TURN: usize = 64;

/// All heads that came with their clients and wait in the queues. Chosen: 16 MiB, some 25,000 usual heads.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// The most connections that wait for their refusal; further ones are closed without an answer.
pub(super) const MAX_REFUSING: usize = 1_024;

/// The reason in the refusal.
const OVERFLOWING: &str = "too many handshakes wait: try again in a while";

/// The reason for a client that webws does not take over.
const NOT_TRUSTED: &str = "webws takes no clients from this nginx";

/// How long a refused client may take to send its request.
const REFUSING: Duration = Duration::from_secs(1);

/// The time between two checks for a free descriptor.
const RECHECK: Duration = Duration::from_millis(100);

/// The queue of connections for one worker.
#[derive(Debug)]
pub(crate) struct Inlet {
    pub(crate) queue: mpsc::Sender<Connection>,
    pub(crate) shard: Arc<Shard>,
    pub(crate) handshakes: Arc<Handshakes>,
}

/// The inlets of all workers, which can be shut.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// Locked while connections are accepted and given to workers.
    is_open: Mutex<bool>,
    pub(super) opened: watch::Sender<bool>,
    pub(super) inlets: Vec<Inlet>,
    /// The first descriptor number that is not for connections. Links that are made again need descriptors, which
    /// silent connections must not use up.
    pub(super) reserved_from: usize,
    /// The answer to connections beyond `limits.max_handshakes`.
    overflow: Bytes,
    /// The answer to clients that another process than nginx hands off.
    pub(super) not_trusted: Bytes,
    pub(super) retry_after: Duration,
    /// Bytes of requests that came with their clients and may wait in the queues.
    pub(super) room: Arc<Semaphore>,
}

impl Inlet {
    /// The worker's sessions, and connections in its queue.
    fn load(&self) -> u64 {
        self.shard.sessions() + (self.queue.max_capacity() - self.queue.capacity()) as u64
    }
}

impl Entrance {
    /// Connections get the descriptors below `reserved_from`.
    pub(crate) fn new(is_open: bool, inlets: Vec<Inlet>, retry_after: Duration, reserved_from: usize) -> Self {
        let head = format!("503 Service Unavailable\r\nRetry-After: {}", retry_after.as_secs().max(1));
        let (overflow, not_trusted) = (plain_answer(&head, OVERFLOWING), plain_answer(&head, NOT_TRUSTED));
        let (opened, room) = (watch::Sender::new(is_open), Arc::new(Semaphore::new(MAX_WAITING_BYTES)));
        Self { is_open: Mutex::new(is_open), opened, inlets, reserved_from, overflow, not_trusted, retry_after, room }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens or shuts the entrance. Afterwards, every accepted connection is counted among a worker's [`Handshakes`].
    pub(crate) fn set_open(&self, is_open: bool) {
        *self.lock() = is_open;
        self.opened.send_replace(is_open);
    }

    /// Each worker's counts.
    pub(crate) fn shards(&self) -> Vec<Arc<Shard>> {
        self.inlets.iter().map(|inlet| inlet.shard.clone()).collect()
    }

    /// Accepts on all `listeners` while the entrance is open. Returns only when a listener has become unusable: its
    /// address, and why.
    pub(crate) async fn accept(&self, listeners: &[BorrowedFd<'_>]) -> (String, io::Error) {
        let mut refusing = JoinSet::new();
        let mut sockets = Vec::new();
        for listener in listeners {
            match os::readiness::readable(*listener) {
                Ok(socket) => sockets.push(socket),
                Err(error) => return (os::socket::address(*listener), error),
            }
        }
        if sockets.is_empty() {
            return std::future::pending().await;
        }
        for turn in (0..sockets.len()).cycle() {
            // Each listener is the first in its turn: one that is always ready must not keep the others waiting.
            let readable =
                sockets.iter().cycle().skip(turn).take(sockets.len()).map(|socket| Box::pin(socket.readable()));
            let mut guard = match first(readable.collect()).await {
                Ok(guard) => guard,
                Err(error) => return ("a listener".to_owned(), error),
            };
            // Never an error: `self` has the sender.
            drop(self.opened.subscribe().wait_for(|is_open| *is_open).await);
            let accepted = self.accept_some(guard.get_inner().as_fd(), &mut refusing);
            match accepted {
                Ok(is_drained) => {
                    if is_drained {
                        guard.clear_ready();
                    }
                }
                Err(error) => self.wait_for_room(guard.get_inner().as_fd(), &error).await,
            }
            while refusing.try_join_next().is_some() {}
            tokio::task::yield_now().await;
        }
        unreachable!("there is a listener, so there is always another turn")
    }

    /// Accepts a turn's connections; true when the listener has no more of them.
    fn accept_some(&self, listener: BorrowedFd<'_>, refusing: &mut JoinSet<()>) -> io::Result<bool> {
        let is_open = self.lock();
        for _ in 0..if *is_open { ACCEPTS_PER_TURN } else { 0 } {
            match os::socket::accept(listener) {
                Ok(socket) => {
                    let was_room = os::limit::is_below(&socket, self.reserved_from);
                    self.deal(socket, None, refusing);
                    if !was_room {
                        return Err(os::limit::out_of_descriptors());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // The client closed the connection before it was accepted.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Waits while descriptors or memory are short; connections wait in the listener's queue.
    pub(super) async fn wait_for_room(&self, listener: BorrowedFd<'_>, error: &io::Error) {
        static NO_ROOM: Throttle = Throttle::per_minute();
        if NO_ROOM.allows() {
            tracing::error!(
                %error,
                "no connection can be accepted ({error}), so connections wait in the kernel's queue: raise LimitNOFILE \
                 or lower limits.max_sessions"
            );
        }
        loop {
            tokio::time::sleep(RECHECK).await;
            if os::limit::has_room(listener, self.reserved_from) {
                return;
            }
        }
    }

    /// Gives a connection to a worker. `request` is what nginx has read of it.
    pub(super) fn deal(&self, socket: OwnedFd, request: Option<Received>, refusing: &mut JoinSet<()>) {
        let Some(inlet) = self.inlets.iter().min_by_key(|inlet| inlet.load()) else { return };
        let connection = Connection { socket, at: Instant::now(), handshake: inlet.handshakes.begin(), request };
        if let Err(full) = inlet.queue.try_send(connection) {
            inlet.shard.add(Counter::HandshakesRefused, 1);
            notice::OVERFLOW.add(inlet.queue.max_capacity());
            notice::handshake_refused(503, OVERFLOWING);
            if refusing.len() < MAX_REFUSING {
                let Connection { socket, request, .. } = full.into_inner();
                let stream = request.as_ref().and_then(|request| event_stream::ended(&request.head, self.retry_after));
                refusing.spawn(refuse(socket, request, stream.unwrap_or_else(|| self.overflow.clone())));
            }
        }
    }
}

/// The first of several futures; the others are dropped.
pub(crate) async fn first<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(|cx| {
        for future in &mut futures {
            if let ready @ std::task::Poll::Ready(_) = std::pin::Pin::new(future).poll(cx) {
                return ready;
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Sends `answer`, whatever the request is.
async fn refuse(socket: OwnedFd, request: Option<Received>, answer: Bytes) {
    if let Some(request) = request {
        Sender::in_head(&request.head).log_refused(503, OVERFLOWING, socket.as_fd());
        return linger(socket, &answer).await;
    }
    let Ok(socket) = os::readiness::readable(socket) else { return };
    // The request is read first: a close with unread bytes would reset the connection.
    let request = async {
        let mut buffer = [0; 4096];
        let mut guard = socket.readable().await?;
        let received = guard.try_io(|socket| os::socket::receive(socket.as_fd(), &mut buffer)).unwrap_or(Ok(0))?;
        let head = buffer.get(..received).unwrap_or_default();
        Sender::in_head(head).log_refused(503, OVERFLOWING, socket.as_fd());
        os::socket::send_bytes(socket.as_fd(), &answer)
    };
    if !matches!(tokio::time::timeout(REFUSING, request).await, Ok(Ok(_))) {
        tracing::trace!("a refused client closed its connection before it read the answer");
    }
}
