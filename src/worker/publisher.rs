//! Publishing from within the program that embeds a server. May not enter: sessions.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::command::{Command, Mailbox, PublishRequest};
use crate::channel::Channel;
use crate::message::NotPublished;

/// Publishes messages as any Redis client would with `PUBLISH`; cheap to clone. Made with
/// [`Server::publisher`](crate::Server::publisher). A message that is published before the server runs waits for it.
///
/// ```
/// use webws::{NotPublished, Publisher};
///
/// /// Publishes; says whether the message may be published again without a duplicate.
/// async fn announce(publisher: &Publisher, text: String) -> Result<(), bool> {
///     publisher.publish("chat:news", text).await.map_err(|error| match error {
///         // Not published: Redis was away, or refused the message (`refusal.code()` says why).
///         NotPublished::TimedOut | NotPublished::Refused(_) => true,
///         _ => false,
///     })
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Publisher {
    mailbox: Mailbox,
}

impl Publisher {
    /// A publisher through the broker of the worker with this mailbox.
    pub(crate) fn through(mailbox: Mailbox) -> Self {
        Self { mailbox }
    }

    /// Publishes `payload` on `channel` (its full name, as `chat:zhang`) and waits for the broker's answer. The
    /// messages of one publisher are published in the order of the calls.
    ///
    /// # Errors
    /// The message was not published, or its fate is unknown: see [`NotPublished`].
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message may be published or not.
    pub async fn publish(&self, channel: impl Into<Bytes>, payload: impl Into<Bytes>) -> Result<(), NotPublished> {
        let (tell, told) = oneshot::channel();
        let request = PublishRequest { channel: Channel::from(channel.into()), payload: payload.into(), tell };
        self.mailbox.send(Command::Publish(request)).await.map_err(|_| NotPublished::Unavailable)?;
        told.await.unwrap_or(Err(NotPublished::Unavailable))
    }
}
