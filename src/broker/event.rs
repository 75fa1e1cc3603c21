//! What a worker asks of its broker ([`Request`]) and what the broker tells ([`Event`]).
//!
//! The broker's floor: both brokers and the worker meet here. May not enter: how a broker does it.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::seal::Seal;
use crate::channel::{Channel, SubscriptionRefused};
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::placement::{Moved, Node};

/// What a worker asks of its broker. Each takes effect in the order of the calls.
#[derive(Debug)]
pub(crate) enum Request {
    /// To subscribe a channel; [`Report::Subscribed`] or [`Report::Refused`] follows, and again after each
    /// [`Report::Lost`] or [`Report::Dropped`].
    Subscribe { node: Node, channel: Channel },
    /// To unsubscribe a channel that was confirmed.
    Unsubscribe { node: Node, channel: Channel },
    /// The channels that live elsewhere now: the answer to [`Report::Placed`].
    Move(Vec<Moved>),
    /// Messages wait in the outbox: [`Report::Room`] follows for each node that can take some.
    MessagesWait,
    /// The answer to [`Report::Room`]: messages in order, none when none wait.
    Publish { node: Node, messages: Vec<ClientMessage> },
    /// To let all streams stop at a marker of that name, which other processes may want as well; at one with that
    /// seal, if they know of it.
    SetMarker { name: String, seal: Option<Seal> },
    /// To publish the marker, behind all messages that were taken.
    PublishMarker,
    /// To resume behind the marker.
    Release,
    /// To note that no process has listened since then: a gap, which is told when all is subscribed.
    LoseSince(Instant),
}

/// What a broker tells its worker.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A publication. The reader of a link never waits for a client: Redis ends a subscriber that stalls.
    Publication { channel: &'a [u8], payload: &'a [u8] },
    /// No publication is there at the moment: what was collected can leave.
    Paused,
    /// Anything else.
    Report(Report),
}

/// What a broker tells besides publications.
#[derive(Debug)]
pub(crate) enum Report {
    /// A channel is subscribed at `node`: what is published from now on arrives.
    Subscribed { node: Node, channel: Channel },
    /// The broker does not let us subscribe to a channel.
    Refused { channel: Channel, refused: SubscriptionRefused },
    /// The subscriptions at a node are lost; the broker makes them again.
    Lost { node: Node },
    /// One subscription is lost; the broker makes it again.
    Dropped { node: Node, channel: Channel },
    /// The subscriptions are there again; what was published in between is missing.
    Gap(Gap),
    /// Channels live elsewhere now ([`crate::placement::Placement`]). The worker answers by [`Request::Move`].
    Placed,
    /// A node can take messages of about so many bytes. The worker answers by [`Request::Publish`].
    Room { node: Node, max_bytes: usize },
    /// What became of a message that was taken, whose [cost](ClientMessage::cost) is `bytes`.
    Published { origin: Origin, bytes: usize, outcome: Result<(), NotPublished> },
    /// Messages that were taken and certainly not published: they are first when there is room again.
    Returned(Vec<ClientMessage>),
    /// A node that was no master any more took so many clients' messages, of these sessions: whether they reached
    /// anybody is unknown.
    Doubt { sessions: HashSet<SessionKey>, messages: u64 },
}

/// A time in which subscriptions were away: all that a worker had at a node, or single channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Where they are.
    pub(crate) node: Node,
    /// The node's address, without a password.
    pub(crate) server: String,
    /// From the last time that they were known to be there to the last confirmation.
    pub(crate) length: Duration,
}

/// How far a marker has come: a point in the broker's streams, the same for all subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Marking {
    /// A link was lost: there is no such point.
    Lost,
    /// It is not subscribed everywhere yet.
    Asked,
    /// It is, and can be published.
    Set,
    /// All streams stand still at it.
    Reached,
}
