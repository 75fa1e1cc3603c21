//! The contract between a worker and what joins it to the other workers and producers:
//! the embedded broker (`memory.rs`) or Redis (`redis/`).
//!
//! A worker tells its [`Broker`] what to subscribe and that texts wait; the broker tells
//! the worker through [`Sink`]. All of it happens on the worker's thread. May not enter:
//! sessions, sockets of clients.

pub(crate) mod memory;
pub(crate) mod redis;

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use self::redis::Seal;
use crate::channel::{Channel, SubscriptionRefused};
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::placement::{Moved, Node};

/// What a broker tells its worker. Calls come one after the other, never from within a call
/// to [`Broker`].
pub(crate) trait Sink {
    /// Somebody published on a channel. Never waits: a reader that stalls is killed by Redis.
    fn on_publication(&self, channel: &[u8], payload: &[u8]);
    /// Nothing more is there at the moment: what was collected can leave.
    fn on_pause(&self);
    /// `channel` is subscribed at `node`: what is published from now on arrives.
    fn on_subscribed(&self, node: Node, channel: &[u8]);
    /// The broker does not let us subscribe to `channel`.
    fn on_refused(&self, channel: &[u8], refused: SubscriptionRefused);
    /// The subscriptions at `node` are gone; they are made again by and by.
    fn on_lost(&self, node: Node);
    /// One of them is gone. Says whether anybody wanted it.
    fn on_dropped(&self, node: Node, channel: &[u8]) -> bool;
    /// The subscriptions are there again; what was published in between is missing.
    fn on_gap(&self, gap: Gap<'_>);
    /// Channels live elsewhere now ([`crate::placement::Placement`]): texts that wait go there, and those of the
    /// channels that have to be subscribed there are returned.
    fn on_placed(&self) -> Vec<Moved>;
    /// All channels to subscribe at `node`.
    fn wanted(&self, node: Node) -> Vec<Channel>;
    /// Those of them that are not subscribed.
    fn unconfirmed(&self, node: Node) -> Vec<Channel>;
    /// How many channels are subscribed at `node`, as far as the worker was told.
    fn subscribed(&self, node: Node) -> usize;
    /// Texts to publish at `node` now, in order: at most about `max_bytes`, none when nothing waits.
    fn take_texts(&self, node: Node, max_bytes: usize) -> Vec<ClientMessage>;
    /// Texts that were taken and certainly not published: they are given out again, first of all.
    fn take_back(&self, texts: Vec<ClientMessage>);
    /// Clients' texts were taken by a server that was no master any more: nobody knows who heard them. So many
    /// of them, of these sessions.
    fn on_doubt(&self, sessions: HashSet<SessionKey>, texts: u64);
    /// What became of a text that was taken, whose [cost](ClientMessage::cost) is `bytes`.
    fn on_published(&self, origin: Origin, bytes: usize, outcome: Result<(), NotPublished>);
}

/// A time in which subscriptions were away: all that a worker had at a node, or single channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap<'a> {
    /// Where they are.
    pub(crate) node: Node,
    /// The same in words, without a password.
    pub(crate) server: &'a str,
    /// From the last time that they were known to be there to the last confirmation.
    pub(crate) length: Duration,
}

/// How far a mark has come: a point in the broker's streams, the same for all who listen.
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

/// A worker's side of the broker.
#[derive(Debug)]
pub(crate) enum Broker {
    Memory(memory::Port),
    Redis(redis::Servers),
}

impl Broker {
    /// Subscribes `channel` at `node`; [`Sink::on_subscribed`] or [`Sink::on_refused`] follows.
    pub(crate) fn subscribe(&self, node: Node, channel: Channel) {
        match self {
            Self::Memory(port) => port.subscribe(channel),
            Self::Redis(servers) => servers.subscribe(node, channel),
        }
    }

    /// Unsubscribes `channel`, which was confirmed.
    pub(crate) fn unsubscribe(&self, node: Node, channel: Channel) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(servers) => servers.unsubscribe(node, channel),
        }
    }

    /// Says that texts wait.
    pub(crate) fn wake_publisher(&self) {
        match self {
            Self::Memory(port) => port.wake_publisher(),
            Self::Redis(servers) => servers.wake_publishers(),
        }
    }

    /// Whether a handshake for `channel` has a chance of being subscribed in time.
    pub(crate) fn is_reachable(&self, channel: &Channel) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(servers) => servers.is_reachable(channel),
        }
    }

    /// Wants all streams to stop at a mark of that name, which others may want as well; at one with that seal, if
    /// they know of it.
    pub(crate) fn set_mark(&self, name: &str, seal: Option<Seal>) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(servers) => servers.set_mark(name, seal),
        }
    }

    /// Publishes the mark, behind all texts that were taken.
    pub(crate) fn publish_mark(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(servers) => servers.publish_mark(),
        }
    }

    /// How far the mark has come.
    pub(crate) fn marking(&self) -> Marking {
        match self {
            // Nobody else listens to this one.
            Self::Memory(port) if port.is_idle() => Marking::Reached,
            Self::Memory(_) => Marking::Set,
            Self::Redis(servers) => servers.marking(),
        }
    }

    /// Notes that nobody has listened since then: a gap, which is reported when all is subscribed.
    pub(crate) fn lose_since(&self, since: Instant) {
        match self {
            // Nobody else publishes there.
            Self::Memory(_) => {}
            Self::Redis(servers) => servers.lose_since(since),
        }
    }

    /// How long subscriptions are away, if they are.
    pub(crate) fn away_for(&self) -> Duration {
        match self {
            Self::Memory(_) => Duration::ZERO,
            Self::Redis(servers) => servers.away_for(),
        }
    }

    /// Goes on behind the mark.
    pub(crate) fn release(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(servers) => servers.release(),
        }
    }

    /// Why messages do not flow, if they do not.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(servers) => servers.fault(),
        }
    }

    /// Why there are no links to it, if there are none.
    pub(crate) fn link_fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(servers) => servers.link_fault(),
        }
    }

    /// Runs the broker's side of this worker for as long as the worker lives.
    pub(crate) async fn run(&self, sink: Rc<dyn Sink>) {
        match self {
            Self::Memory(port) => port.run(sink).await,
            Self::Redis(servers) => servers.run(sink).await,
        }
    }
}
