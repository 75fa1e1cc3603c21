//! The contract in data: what a worker asks of its broker ([`Request`]), and what the broker tells ([`Event`]).
//!
//! Both brokers and the worker import these types. May not enter: how a broker works.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::seal::Seal;
use crate::channel::{Channel, SubscriptionRefused};
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::placement::{Moved, Node};
use crate::position::{Logged, Milestone};

/// What a worker asks of its broker. Requests take effect in the order of the calls.
#[derive(Debug)]
pub(crate) enum Request {
    /// To subscribe a channel, at the latest when the channel has a node ([`Request::Move`]); [`Report::Subscribed`] or
    /// [`Report::Refused`] follows, and again after each [`Report::Lost`] or [`Report::Dropped`].
    Subscribe { node: Option<Node>, channel: Channel },
    /// To unsubscribe a channel that was confirmed.
    Unsubscribe { node: Node, channel: Channel },
    /// To move channels to other nodes: the answer to [`Report::Placed`].
    Move(Vec<Moved>),
    /// Messages wait in the outbox: [`Report::Room`] follows for each node that can take some.
    MessagesWait,
    /// The answer to [`Report::Room`]: messages in order, none when none wait.
    Publish { node: Node, messages: Vec<ClientMessage> },
    /// To make all streams stop at a marker of that name, which other processes may want as well; with a seal, at the
    /// message that has its signature only.
    SetMarker { name: String, seal: Option<Seal> },
    /// To publish the marker, behind all messages that the broker took.
    PublishMarker,
    /// To resume behind the marker.
    Release,
    /// To publish a milestone soon: channels wait for one.
    Milestone { node: Node },
    /// To read a node's log from a milestone on that a client has shown; [`Report::LogRead`] follows.
    ReadLog { node: Node, from: Milestone },
    /// To note that no process was subscribed since then: a gap, which is told when all channels are subscribed.
    LoseSince(Instant),
}

/// What a broker tells its worker.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A publication. The reader of a link never waits for a client: Redis ends a subscriber that stalls.
    Publication { channel: &'a [u8], payload: &'a [u8] },
    /// No further publication is ready: batches can be flushed.
    Paused,
    /// All other events.
    Report(Report),
}

/// What a broker tells besides publications.
#[derive(Debug)]
pub(crate) enum Report {
    /// A channel is subscribed at `node`: what is published from now on arrives.
    Subscribed { node: Node, channel: Channel },
    /// The broker does not allow the channel.
    Refused { channel: Channel, refused: SubscriptionRefused },
    /// The subscriptions at a node are lost; the broker subscribes the channels again.
    Lost {
        node: Node,
        /// Whether everything before the loss was heard: then [`Report::Replayed`] may follow, or else [`Report::Gap`].
        is_cut: bool,
    },
    /// The subscription to one channel is lost; the broker subscribes it again.
    Dropped { node: Node, channel: Channel },
    /// All channels are subscribed again; publications of the time between are missing.
    Gap(Gap),
    /// A stream that was cut is continued: what the node's log has up to the milestone `until`. Publications that come
    /// next are those behind it.
    Replayed { gap: Gap, logged: Vec<Logged>, until: Milestone },
    /// What a node's log has between two milestones, of which the second is the last that was heard; `None` when it
    /// cannot be read.
    LogRead { node: Node, from: Milestone, logged: Option<(Vec<Logged>, Milestone)> },
    /// A milestone, in order with the publications of its node.
    Milestone { node: Node, milestone: Milestone },
    /// A node has no milestones: they are not wanted, not possible or not permitted there.
    NoMilestones { node: Node },
    /// The placement of channels has changed ([`crate::placement::Placement`]). The worker answers by
    /// [`Request::Move`].
    Placed,
    /// A node can take messages of about so many bytes. The worker answers by [`Request::Publish`].
    Room { node: Node, max_bytes: usize },
    /// The outcome of a message that the broker took; `bytes` is its [cost](ClientMessage::cost).
    Published { origin: Origin, bytes: usize, outcome: Result<(), NotPublished> },
    /// Messages that the broker took and certainly did not publish: they are the first when there is room again.
    Returned(Vec<ClientMessage>),
    /// A node took these messages when it may no longer have been a master: whether they reached a subscriber is
    /// unknown.
    Doubt { sessions: HashSet<SessionKey>, messages: u64 },
}

/// A time in which subscriptions were lost: all of a worker at a node, or those of single channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The node of the subscriptions.
    pub(crate) node: Node,
    /// The node's address, without a password.
    pub(crate) server: String,
    /// From the last proof of the subscriptions to the last confirmation.
    pub(crate) length: Duration,
}

/// The progress of a marker, over all streams of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Marking {
    /// A link was lost: the streams have no common point.
    Lost,
    /// The marker's channel is not subscribed everywhere yet.
    Asked,
    /// The channel is subscribed everywhere: the marker can be published.
    Set,
    /// All streams stand still at the marker.
    Reached,
}
