//! Where connections wait for one of the places at which handshakes are worked on.
//!
//! Few handshakes are worked on at a time; the others wait as bare descriptors, because
//! thousands of half-read requests at once leave memory behind that is never given back.
//! A request is worked on when its whole head is there, so that the silent keep nobody out.
//! May not enter: what a request says.

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
pub(crate) struct Accepted {
    pub(crate) socket: OwnedFd,
    pub(crate) at: Instant,
    /// Counts it until it is answered.
    pub(crate) handshake: Handshake,
}

/// Who may have one of the places at work.
pub(super) struct WaitingRoom {
    places: Arc<Semaphore>,
    /// Connections that may be silent beside those at work.
    silent: Arc<Semaphore>,
    /// Where bytes are received.
    scratch: RefCell<Vec<u8>>,
}

impl WaitingRoom {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_NEGOTIATING)),
            silent: Arc::new(Semaphore::new(limits.max_handshakes)),
            scratch: RefCell::new(vec![0; MAX_HEAD_BYTES]),
        }
    }

    /// The next connection, when there is a place for it.
    pub(super) async fn next(
        &self,
        accepted: &mut mpsc::Receiver<Accepted>,
    ) -> Option<(OwnedSemaphorePermit, Accepted)> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        Some((place, accepted.recv().await?))
    }

    /// Receives a connection's request head, and gives the place back while it is not there.
    ///
    /// # Errors
    /// `TimedOut` when it did not come in time; else the connection is gone.
    pub(super) async fn head_of(
        &self,
        socket: &OwnedFd,
        deadline: Instant,
        place: OwnedSemaphorePermit,
    ) -> io::Result<(OwnedSemaphorePermit, Head)> {
        let mut head = Head::default();
        if head.receive(socket.as_fd(), &self.scratch)? {
            return Ok((place, head));
        }
        // When so many are silent already, one more may as well keep its place.
        let silent = self.silent.clone().try_acquire_owned().ok();
        let place = silent.is_none().then_some(place);
        clock::timeout_at(deadline, head.arrives(socket.as_fd(), &self.scratch)).await??;
        match place {
            Some(place) => Ok((place, head)),
            None => {
                drop(silent);
                let place = clock::timeout_at(deadline, self.places.clone().acquire_owned()).await?;
                Ok((place.map_err(io::Error::other)?, head))
            }
        }
    }
}
