//! A connection whose request was accepted: what its session needs to open, and what its client gets when refused.
//!
//! May not enter: HTTP, the decision to admit (`admission.rs`).

use std::fmt;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use tokio::time::Instant;

use crate::protocol::session::{Denial, Grant};

/// Why a handshake was not admitted; the text of the 503.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the server is shutting down: try again")]
    Draining,
    #[error("the server has reached its limit of connections: try again later")]
    Full,
    #[error("the server is short of memory: try again later")]
    NoMemory,
    #[error("the message broker is unavailable: try again later")]
    BrokerAway,
    #[error("the message broker did not confirm the subscription in time: try again later")]
    BrokerSlow,
    #[error("the message broker does not allow this channel")]
    Channel,
    #[error("positions are unavailable now; without them, messages between two polls would be lost: try again later")]
    NoPositions,
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::TimedOut => Self::BrokerSlow,
            Denial::NotAllowed => Self::Channel,
        }
    }
}

/// Answers a connection that is refused; dropped unused when its session opens.
pub(crate) type Refuse = Box<dyn FnOnce(OwnedFd, Refusal)>;

/// A connection on its way to its session.
pub(crate) struct Opening {
    pub(crate) grant: Grant,
    /// The deadline of the handshake.
    pub(crate) deadline: Instant,
    /// The session's first bytes, the 101 or the 200, and the bytes behind the request.
    pub(crate) hello: Hello,
    pub(crate) refuse: Refuse,
}

/// A socket, the bytes to send first, and the bytes that were read already.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) socket: OwnedFd,
    pub(crate) head: Bytes,
    pub(crate) read_ahead: Vec<u8>,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut opening = f.debug_struct("Opening");
        opening.field("grant", &self.grant).field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Opening {
    pub(crate) fn refuse(self, refusal: Refusal) {
        (self.refuse)(self.hello.socket, refusal);
    }
}
