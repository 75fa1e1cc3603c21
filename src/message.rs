//! A client message on its way to the broker, and why a message was not published.
//!
//! The outbox holds messages, the broker publishes them. May not enter: sessions, links.

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::SessionKey;

/// A message on its way to the broker.
#[derive(Debug)]
pub(crate) struct ClientMessage {
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
    pub(crate) origin: Origin,
    /// When the message entered the outbox.
    pub(crate) since: Millis,
}

/// Memory of a waiting message besides its payload and its channel's name. Counted, so that many empty messages
/// cannot pass a limit unseen; the command around a message on its way to Redis, and back, is shorter.
const OVERHEAD: usize = 128;

impl ClientMessage {
    /// The message's size against the outbox's limits, in bytes: its memory, and no less than its bytes on the
    /// link to Redis and on the way back to each worker that subscribes.
    pub(crate) fn cost(&self) -> usize {
        self.channel.len() + self.payload.len() + OVERHEAD
    }
}

/// The sender of a message, which learns what became of the message.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A session, by its client.
    Session(SessionKey),
    /// The caller of [`crate::Publisher::publish`].
    Publisher(oneshot::Sender<Result<(), NotPublished>>),
}

/// Why a message was not published. Only after [`NotPublished::Unknown`] may it have been published all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPublished {
    /// The broker refused the message; it was not published.
    #[error("the broker refused the message: {0}")]
    Refused(#[source] Refusal),
    /// The link broke before the answer came. The message may have been published or not,
    /// so webws does not send it again.
    #[error("the link to the broker broke before the broker answered: the message may have been published or not")]
    Unknown,
    /// The message waited too long for a broker that is away.
    #[error("the broker was unavailable for too long; the message was not published")]
    TimedOut,
    /// The server has stopped, or too many messages wait already.
    #[error("the server accepts no messages now; the message was not published")]
    Unavailable,
}

/// The broker's error reply to a message, as Redis' `NOPERM No permissions to access a channel`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {details}")]
pub struct Refusal {
    code: String,
    details: String,
}

impl Refusal {
    pub(crate) fn new(code: &str, details: Option<&str>) -> Self {
        Self { code: code.to_owned(), details: details.unwrap_or_default().to_owned() }
    }

    /// The first word of the reply, which programs tell errors apart by: `NOPERM`, `OOM`, `READONLY`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The rest of the reply, for a person; may be empty.
    pub fn details(&self) -> &str {
        &self.details
    }
}
