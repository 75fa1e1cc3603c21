//! A client's message on its way to the broker, and what became of it.
//!
//! On the vocabulary's floor: the outbox holds messages, the broker publishes them. May not enter: sessions, links.

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::SessionKey;

/// A text on its way to the broker.
#[derive(Debug)]
pub(crate) struct ClientMessage {
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
    pub(crate) origin: Origin,
    /// When it came.
    pub(crate) since: Millis,
}

/// Memory of a waiting text beside its payload and its channel's name. Counted, so that many empty texts
/// cannot pass a limit unseen; the command around a text on its way to Redis, and back, is shorter.
const TEXT_OVERHEAD: usize = 128;

impl ClientMessage {
    /// What it counts for while it waits: its memory, and no less than the bytes that go to Redis for it and
    /// come back to each worker that listens.
    pub(crate) fn cost(&self) -> usize {
        self.channel.len() + self.payload.len() + TEXT_OVERHEAD
    }
}

/// Who wants to know what became of a text.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The session whose client sent it.
    Session(SessionKey),
    /// The caller of [`crate::Publisher::publish`].
    Publisher(oneshot::Sender<Result<(), NotPublished>>),
}

/// Why a text was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPublished {
    /// The broker said no; the text was not published.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// The link broke before the answer came: the text may have been published or not,
    /// so it is not sent again.
    #[error("the link to the broker broke before it answered: nobody knows whether the message was published")]
    Unknown,
    /// It waited too long for a broker that is away.
    #[error("the broker was away for too long; the message was not published")]
    TimedOut,
    /// The server has stopped, or too much waits already.
    #[error("the server takes no messages now; the message was not published")]
    Unavailable,
}
