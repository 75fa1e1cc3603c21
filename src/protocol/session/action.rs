//! What a session asks of its owner, the worker: an [`Action`] after each transition, and [`Publish`] for client
//! messages, which are too many to be collected first. May not enter: how an action is carried out (`worker/apply.rs`).

use crate::channel::Channel;
use crate::close::CloseReason;

/// What a transition asks of the session's owner.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Stay,
    /// Give each subscription an entry in the hub (`Session::next_to_join`), then call `Session::on_joined`.
    Subscribe,
    /// All subscriptions are confirmed: find what the client gets first, and call `Session::on_recovered`,
    /// or `Session::on_polled` for a client that polls.
    Recover,
    /// The client has polled for long enough: find its position, and call `Session::on_waited`.
    Answer,
    /// The session is ready: call `Session::open` with the socket and the 101.
    Upgrade,
    /// The handshake fails: answer with this refusal, and drop the session.
    Refuse(Denial),
    /// The socket may have more bytes: call `Session::on_readable` after other sessions had their turn.
    ReadAgain,
    /// The session closes for this reason: end its subscriptions, and continue to read its socket.
    Close(CloseReason),
    /// The session has ended: drop it.
    End(CloseReason),
}

/// Why a handshake gets no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// A subscription was not confirmed in time.
    TimedOut,
    /// The broker does not allow a channel.
    NotAllowed,
}

/// Where a session's client messages go, in the order in which the client sent them.
pub(crate) trait Publish {
    /// Queues a message for the broker.
    fn publish(&mut self, channel: &Channel, payload: Payload<'_>) -> Queued;

    /// Notes a message that is not published.
    fn reject(&mut self, rejected: Rejected);
}

/// The payload of a client message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    /// A text message, UTF-8.
    Text(&'a [u8]),
    /// A binary message.
    Binary(&'a [u8]),
}

/// Why a client message is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// The encoding ignores binary messages.
    IgnoredBinary,
    /// The session closes for this reason.
    Closes(CloseReason),
}

/// The cost of a message in the outbox, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queued {
    /// The message's cost while it waits.
    pub(crate) bytes: usize,
    /// The cost of all messages that the session may have waiting.
    pub(crate) allowance: usize,
}
