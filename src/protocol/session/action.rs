//! What a session asks of its owner: an [`Action`] after each transition, and [`Publish`] for the messages of its
//! client, which are too many to be collected first.

use crate::channel::Channel;
use crate::close::CloseReason;

/// What a transition asks of the session's owner.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Stay,
    /// Give each of its subscriptions an entry in the hub (`Session::next_to_join`), then call `Session::on_joined`.
    Subscribe,
    /// All its subscriptions are confirmed: give it its socket and its 101 (`Session::open`).
    Upgrade,
    /// Its handshake fails: answer with this refusal, and drop the session.
    Refuse(Denial),
    /// The socket may have more to read: call `Session::on_readable` when other sessions had their turn.
    ReadAgain,
    /// It closes for this reason: end its subscriptions, and read on until it is over.
    Close(CloseReason),
    /// It is over: drop it.
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

/// What a message of a client carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    /// A text message, UTF-8.
    Text(&'a [u8]),
    /// A binary message.
    Binary(&'a [u8]),
}

/// What becomes of a message that is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// A binary message that the endpoint's encoding reads and ignores.
    IgnoredBinary,
    /// The session closes for this reason.
    Closes(CloseReason),
}

/// What a message counts for in the owner's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Its cost while it waits.
    pub(crate) bytes: usize,
    /// The cost that the session may have waiting.
    pub(crate) allowance: usize,
}
