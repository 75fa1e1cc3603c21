//! Bounds the handshakes that are worked on at a time: each holds a permit.
//!
//! Other connections wait as bare descriptors, because thousands of half-read requests at once leave memory behind that
//! the allocator never gives back. A connection needs no permit while its head is incomplete, so that silent clients do
//! not block others. May not enter: the content of a request.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::head::{Head, MAX_HEAD_BYTES};
use crate::clock;
use crate::config::Limits;
use crate::worker::Handshake;

/// Handshakes worked on at a time in one worker. Measured on a prototype: 9,000 at once left
/// 15.6 kB resident per session, 64 at a time 0.58 kB.
const MAX_NEGOTIATING: usize = 64;

/// A connection that was accepted, and when.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) at: Instant,
    /// Counts the connection until its request is answered.
    pub(crate) handshake: Handshake,
    /// The request of a client that nginx handed off; other requests are received from the socket.
    pub(crate) request: Option<Received>,
}

/// A request's head that came with its client.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) head: Vec<u8>,
    /// The user whose process has handed the client off.
    pub(crate) sender: u32,
    /// The head's share of the bytes that may wait.
    pub(crate) room: OwnedSemaphorePermit,
}

/// The permits of one worker.
pub(super) struct WaitingRoom {
    /// For handshakes that are worked on.
    permits: Arc<Semaphore>,
    /// For connections with an incomplete head.
    silent: Arc<Semaphore>,
    /// The buffer into which heads are received.
    scratch: RefCell<Vec<u8>>,
}

impl WaitingRoom {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_NEGOTIATING)),
            silent: Arc::new(Semaphore::new(limits.max_handshakes)),
            scratch: RefCell::new(vec![0; MAX_HEAD_BYTES]),
        }
    }

    /// The next connection, when a permit is free.
    pub(super) async fn next(
        &self,
        connections: &mut mpsc::Receiver<Connection>,
    ) -> Option<(OwnedSemaphorePermit, Connection)> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        Some((permit, connections.recv().await?))
    }

    /// Receives a connection's request head, and gives the permit back while the head is incomplete.
    ///
    /// # Errors
    /// `TimedOut` when the head did not arrive in time; else the connection is gone.
    pub(super) async fn head_of(
        &self,
        socket: &OwnedFd,
        request: Option<Received>,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<(OwnedSemaphorePermit, Head)> {
        if let Some(Received { head, room, sender: _ }) = request {
            // What the client has sent since then is still in the socket.
            drop(room);
            return Ok((permit, Head::handed_off(head)));
        }
        let mut head = Head::default();
        if head.receive(socket.as_fd(), &self.scratch)? {
            return Ok((permit, head));
        }
        // At the limit of silent connections, this one keeps its permit: fewer connections are taken from the queue.
        let silent = self.silent.clone().try_acquire_owned().ok();
        let permit = silent.is_none().then_some(permit);
        clock::timeout_at(deadline, head.arrives(socket.as_fd(), &self.scratch)).await??;
        match permit {
            Some(permit) => Ok((permit, head)),
            None => {
                drop(silent);
                let permit = clock::timeout_at(deadline, self.permits.clone().acquire_owned()).await?;
                Ok((permit.map_err(io::Error::other)?, head))
            }
        }
    }
}
