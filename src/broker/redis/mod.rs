//! Redis as the broker: two links per worker and server, one to subscribe and one to publish,
//! because the two must never share a connection.
//!
//! `connect.rs` makes a link, `subscriber.rs` and `publisher.rs` keep one each, forever;
//! `sieve.rs` takes the published messages out of the subscriber's stream, `probe.rs` proves that
//! they come.
//! The only room that names the redis crate. May not enter: sessions.

mod connect;
mod probe;
mod publisher;
mod sentinel;
mod sieve;
mod subscriber;
mod supervisor;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::probe::Probe;
use self::sentinel::Place;
use super::Sink;
use super::placement::{Node, Placement};
use crate::endpoint::Channel;

pub(crate) use connect::Settings;
#[cfg(feature = "internals")]
pub(crate) use sieve::split;
pub(crate) use supervisor::Health;

/// A handshake is refused at once when the link has been away, or has owed an answer, for
/// this long; before, it waits. Chosen: a lost connection is back within it, a lost or
/// frozen server is not. Without it every handshake would wait `subscribe_timeout` for a
/// frozen server, 64 at a time, and those behind would run out of time without an answer.
const BLIP: Duration = Duration::from_secs(1);

/// What the subscriber shall do next, in order.
#[derive(Debug)]
enum Command {
    Subscribe(Channel),
    Unsubscribe(Channel),
}

/// A worker's links to all servers over which channels are spread; one, mostly.
#[derive(Debug)]
pub(crate) struct Servers {
    placement: Placement,
    links: Vec<Rc<Links>>,
}

/// A worker's links to one server.
#[derive(Debug)]
pub(crate) struct Links {
    node: Node,
    settings: Arc<Settings>,
    health: Arc<Health>,
    commands: RefCell<VecDeque<Command>>,
    commands_wait: Notify,
    texts_wait: Notify,
    /// Since when not all wanted channels are subscribed; `None` while they are.
    deaf_since: Cell<Option<Instant>>,
    hears_again: Notify,
    /// When all wanted channels were subscribed last.
    subscribed_at: Cell<Instant>,
    /// Since when the subscriber waits for an answer.
    unanswered_since: Cell<Option<Instant>>,
    /// When Redis' subscriptions were compared with ours last and found complete.
    audited_at: Cell<Instant>,
    /// The master that the subscriber is at, where Sentinels name it: texts go there and nowhere
    /// else, or they would not come back.
    subscriber_at: RefCell<Option<Place>>,
    probe: Rc<Probe>,
}

/// What it takes to make links to a server.
pub(crate) type Server = (Arc<Settings>, Arc<Health>);

impl Servers {
    /// Links to `servers`, none of them made yet.
    pub(crate) fn new(servers: &[Server]) -> Self {
        let placement = Placement::over(servers.len());
        let links = placement
            .nodes()
            .zip(servers)
            .map(|(node, (settings, health))| Rc::new(Links::new(node, settings.clone(), health.clone())));
        Self { placement, links: links.collect() }
    }

    /// The links to the server where `channel` lives.
    pub(super) fn at(&self, channel: &Channel) -> &Links {
        let Node(node) = self.placement.node_of(channel);
        self.links.get(node).expect("the placement is over these")
    }

    pub(super) fn wake_publishers(&self) {
        self.links.iter().for_each(|links| links.texts_wait.notify_one());
    }

    /// What is wrong with the links of all workers, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        let faults: Vec<_> = self.links.iter().filter_map(|links| links.health.fault()).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    pub(super) async fn run(&self, sink: Rc<dyn Sink>) {
        let probes = self.links.iter().map(|links| links.probe.clone()).collect();
        let _target = subscriber::Target::set(sink.clone(), probes);
        let mut tasks = JoinSet::new();
        for links in &self.links {
            let (links, sink) = (links.clone(), sink.clone());
            tasks.spawn_local(async move {
                tokio::join!(subscriber::run(&links, &*sink), publisher::run(&links, &*sink));
            });
        }
        // None of them ends but by a panic, which ends the worker.
        while let Some(Ok(())) = tasks.join_next().await {}
    }
}

impl Links {
    fn new(node: Node, settings: Arc<Settings>, health: Arc<Health>) -> Self {
        Self {
            node,
            settings,
            health,
            commands: RefCell::default(),
            commands_wait: Notify::new(),
            texts_wait: Notify::new(),
            deaf_since: Cell::new(Some(Instant::now())),
            hears_again: Notify::new(),
            subscribed_at: Cell::new(Instant::now()),
            unanswered_since: Cell::new(None),
            audited_at: Cell::new(Instant::now()),
            subscriber_at: RefCell::default(),
            probe: Rc::new(Probe::new()),
        }
    }

    pub(super) fn subscribe(&self, channel: Channel) {
        self.command(Command::Subscribe(channel));
    }

    pub(super) fn unsubscribe(&self, channel: Channel) {
        self.command(Command::Unsubscribe(channel));
    }

    fn command(&self, command: Command) {
        // Bounded: while the link is away nothing is unsubscribed, and handshakes are refused
        // after a blip. The next link starts over with what the hub wants then.
        self.commands.borrow_mut().push_back(command);
        self.commands_wait.notify_one();
    }

    pub(super) fn is_reachable(&self) -> bool {
        [&self.deaf_since, &self.unanswered_since]
            .iter()
            .all(|trouble| trouble.get().is_none_or(|since| since.elapsed() < BLIP))
    }

    fn is_where_the_subscriber_is(&self, master: Option<&Place>) -> bool {
        self.subscriber_at.borrow().as_ref() == master
    }

    fn is_deaf(&self) -> bool {
        self.deaf_since.get().is_some()
    }
}
