//! Redis as the broker: two links per worker and server, one to subscribe and one to publish,
//! because the two must never share a connection.
//!
//! `connect.rs` makes a link, `subscriber.rs` and `publisher.rs` keep one each, forever;
//! `sieve.rs` takes the published messages out of the subscriber's stream, `probe.rs` proves that
//! they come. `dial.rs` finds a way to a server, `role.rs` asks whether it is a master. `sentinel.rs` and
//! `cluster.rs` know where the servers are, `tls` whom to trust.
//! The only room that names the redis crate. May not enter: sessions.

mod cluster;
mod connect;
mod credential;
mod dial;
mod greeting;
mod probe;
mod publisher;
mod refusal;
mod role;
mod seal;
mod sentinel;
mod sieve;
mod subscriber;
mod supervisor;
mod tls;
mod wrong_port;

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use self::cluster::Home;
use self::cluster::{Cluster, Topology};
use self::connect::{LinkError, Settings, SettingsError};
pub(crate) use self::credential::SystemdCredentials;
use self::greeting::Protocol;
use self::probe::Probe;
use self::role::Rank;
pub(crate) use self::seal::Seal;
use self::sentinel::Place;
use super::{Marking, Sink};
use crate::channel::Channel;
use crate::config::{Config, RedisAddress, RedisUrl};
use crate::message::ClientMessage;
use crate::placement::Moved;
use crate::placement::{NOWHERE, Node, Owners, Placement};

use self::supervisor::Health;
#[cfg(feature = "internals")]
pub(crate) use sieve::split;

/// A handshake is refused at once when the link has been away, or has owed an answer, for
/// this long; before, it waits. Chosen: a lost connection is back within it, a lost or
/// frozen server is not. Without it every handshake would wait `subscribe_timeout` for a
/// frozen server, 64 at a time, and those behind would run out of time without an answer.
const BLIP: Duration = Duration::from_secs(1);

/// The pause before a channel or a text is tried again that a server did not take for now.
const RETRY: Duration = Duration::from_millis(100);

/// What the subscriber shall do next, in order.
#[derive(Debug)]
enum Command {
    Subscribe(Channel),
    Unsubscribe(Channel),
    /// Subscribes the mark's channel, or unsubscribes it.
    Mark,
    Unmark(Channel),
}

/// A point in the stream of a server, the same for all who listen to it: where it stands still until
/// somebody says who goes on from there.
#[derive(Debug)]
struct Mark {
    channel: Channel,
    /// Signs the channel's name, which is the message; a process of an earlier version publishes anything.
    seal: Option<Seal>,
    state: Cell<MarkState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MarkState {
    Wanted,
    Subscribed,
    /// It came, and nothing behind it is read.
    Reached,
    /// The link was lost since, or Redis does not let us subscribe it.
    Lost,
}

/// What Redis there is, for all workers.
#[derive(Debug, Clone)]
pub(crate) enum Deployment {
    /// Independent servers over which channels are spread; one, mostly.
    Servers(Arc<[Server]>),
    Cluster(Arc<Cluster>),
}

/// What it takes to make links to a server.
pub(crate) type Server = (Arc<Settings>, Arc<Health>);

/// A worker's links to all servers.
#[derive(Debug)]
pub(crate) struct Servers {
    placement: Placement,
    links: Roster,
    cluster: Option<Arc<Cluster>>,
    /// The cluster's topology that is followed, and since when.
    followed: Cell<(u64, Instant)>,
}

/// Links by node. Those of a node that is gone keep their place until another takes it.
type Roster = Rc<RefCell<Vec<Rc<Links>>>>;

/// A worker's links to one server.
#[derive(Debug)]
pub(crate) struct Links {
    node: Node,
    settings: Arc<Settings>,
    health: Arc<Health>,
    placement: Placement,
    cluster: Option<Arc<Cluster>>,
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
    /// Since when subscriptions are lost that were there: until the gap is reported.
    lost_since: Cell<Option<Instant>>,
    /// Whether the subscriber has to ask at once what its server is.
    is_suspect: Cell<bool>,
    /// In a cluster: since when the node says that it is a replica.
    demoted_since: Cell<Option<Instant>>,
    /// When to ask again for channels that could not be subscribed for now.
    retry_at: Cell<Option<Instant>>,
    mark: RefCell<Option<Mark>>,
    /// Whether the mark is to be published.
    is_mark_due: Cell<bool>,
    /// Who reads on when the mark is taken away.
    stopped: RefCell<Option<Waker>>,
    /// Sharded channels that we are unsubscribing.
    leaving: RefCell<HashSet<Channel>>,
    /// The master that the subscriber is at, where Sentinels name it: texts go there and nowhere
    /// else, or they would not come back.
    subscriber_at: RefCell<Option<Place>>,
    /// What the subscriber's link speaks.
    protocol: Cell<Protocol>,
    probe: Probe,
    is_started: Cell<bool>,
    state: Cell<LinksState>,
    state_changed: Notify,
    /// The channels of the texts that Redis has not answered for, and how many such batches there were.
    batch: RefCell<Option<Vec<Channel>>>,
    batches: Cell<u64>,
    /// Batches under way at other nodes whose channels live here now: texts behind them wait.
    behind: RefCell<Vec<(Rc<Links>, u64)>>,
    /// Since when channels cannot be subscribed here for now.
    refused_since: Cell<Option<Instant>>,
}

/// Texts that Redis has not answered for, for as long as it exists.
#[derive(Debug)]
struct Batch<'a>(&'a Links);

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.0.batch.replace(None);
        self.0.state_changed.notify_one();
    }
}

/// How long links live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinksState {
    Kept,
    /// The node is no part of the cluster any more; texts under way are waited for.
    Leaving,
    /// Another node may have the place.
    Gone,
}

impl Deployment {
    /// What `config` says.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that TLS cannot check.
    pub(crate) fn try_new(
        config: &Config,
        urls: &[RedisUrl],
        workers: usize,
        systemd: &SystemdCredentials,
    ) -> Result<Self, SettingsError> {
        let settings = |url| Settings::try_new(url, &config.redis, systemd).map(Arc::new);
        if let [url] = urls
            && let RedisAddress::Cluster { nodes, .. } = &url.address
        {
            let sharded = config.endpoints.iter().filter(|endpoint| endpoint.sharded);
            let sharded = sharded.map(|endpoint| endpoint.prefix.clone()).collect();
            return Ok(Self::Cluster(Arc::new(Cluster::new(settings(url)?, nodes.clone(), sharded, workers))));
        }
        let server = |url| Ok((settings(url)?, Arc::new(Health::new(url, workers))));
        urls.iter().map(server).collect::<Result<_, _>>().map(Self::Servers)
    }

    /// How many links so many workers have; in a cluster, of a size that is likely.
    pub(crate) fn links(&self, workers: usize) -> usize {
        let servers = match self {
            Self::Servers(servers) => servers.len(),
            Self::Cluster(cluster) => cluster.likely_masters(),
        };
        2 * workers * servers
    }

    /// Where the channels of a cluster are that are not sharded.
    pub(crate) fn homes(&self) -> Vec<Home> {
        match self {
            Self::Servers(_) => Vec::new(),
            Self::Cluster(cluster) => cluster.homes(),
        }
    }

    /// Keeps them where another process had them: the two must listen at the same nodes while one takes
    /// over from the other.
    pub(crate) fn inherit(&self, homes: Vec<Home>) {
        if let Self::Cluster(cluster) = self {
            cluster.inherit(homes);
        }
    }

    /// How a worker's channels are spread over it.
    pub(crate) fn placement(&self) -> Placement {
        match self {
            Self::Servers(servers) => Placement::over(servers.len()),
            Self::Cluster(cluster) => Placement::in_cluster(cluster.sharded.clone()),
        }
    }
}

impl Servers {
    /// Links to all servers, none of them made yet.
    pub(crate) fn new(deployment: Deployment, placement: Placement) -> Self {
        let (servers, cluster) = match deployment {
            Deployment::Servers(servers) => (servers, None),
            Deployment::Cluster(cluster) => {
                let settings = cluster.settings().clone();
                // Of NOWHERE, where there are no workers with links.
                let health = Health::new(settings.server(), 0);
                ([(settings, Arc::new(health))].into(), Some(cluster))
            }
        };
        let links = placement
            .nodes()
            .zip(servers.iter())
            .map(|(node, server)| Rc::new(Links::new(node, server, placement.clone(), cluster.clone())));
        let links = Rc::new(RefCell::new(links.collect()));
        Self { placement, links, cluster, followed: Cell::new((0, Instant::now())) }
    }

    fn at(&self, Node(node): Node) -> Rc<Links> {
        self.links.borrow().get(node).expect("a placement is over these").clone()
    }

    pub(super) fn subscribe(&self, node: Node, channel: Channel) {
        self.at(node).command(Command::Subscribe(channel));
    }

    pub(super) fn unsubscribe(&self, node: Node, channel: Channel) {
        self.at(node).command(Command::Unsubscribe(channel));
    }

    pub(super) fn is_reachable(&self, channel: &Channel) -> bool {
        self.at(self.placement.node_of(channel)).is_reachable()
    }

    /// The links that are in use.
    fn kept(&self) -> Vec<Rc<Links>> {
        let links = self.links.borrow();
        let is_kept = |links: &&Rc<Links>| {
            links.state.get() == LinksState::Kept && (self.cluster.is_none() || links.node != NOWHERE)
        };
        links.iter().filter(is_kept).cloned().collect()
    }

    pub(super) fn set_mark(&self, name: &str, seal: Option<Seal>) {
        self.kept().iter().for_each(|links| links.set_mark(name, seal));
    }

    pub(super) fn publish_mark(&self) {
        for links in self.kept() {
            links.is_mark_due.set(true);
            links.texts_wait.notify_one();
        }
    }

    pub(super) fn marking(&self) -> Marking {
        // Who misses something must be told by the process that knows.
        if self.kept().iter().any(|links| links.lost_since.get().is_some() || links.refused_since.get().is_some()) {
            return Marking::Lost;
        }
        let states: Vec<_> = self.kept().iter().map(|links| links.mark_state()).collect();
        let all =
            |expected: &[MarkState]| states.iter().all(|state| state.is_some_and(|state| expected.contains(&state)));
        if states.is_empty() || states.contains(&None) || states.contains(&Some(MarkState::Lost)) {
            Marking::Lost
        } else if all(&[MarkState::Reached]) {
            Marking::Reached
        } else if all(&[MarkState::Reached, MarkState::Subscribed]) {
            Marking::Set
        } else {
            Marking::Asked
        }
    }

    pub(super) fn lose_since(&self, since: Instant) {
        for links in self.links.borrow().iter() {
            links.lost(since);
            // Where nothing has to be subscribed, the gap is over already.
            links.commands_wait.notify_one();
        }
    }

    /// How long subscriptions are away, if they are.
    pub(super) fn away_for(&self) -> Duration {
        let links = self.links.borrow();
        links.iter().filter_map(|links| Some(links.lost_since.get()?.elapsed())).max().unwrap_or_default()
    }

    pub(super) fn release(&self) {
        self.links.borrow().iter().for_each(|links| links.release());
    }

    pub(super) fn wake_publishers(&self) {
        self.links.borrow().iter().for_each(|links| links.texts_wait.notify_one());
    }

    /// Why messages do not flow, if they do not, in any worker.
    pub(super) fn fault(&self) -> Option<String> {
        self.faults(|links| links.fault().or_else(|| links.health.refusal()))
    }

    /// What is wrong with the links themselves.
    pub(super) fn link_fault(&self) -> Option<String> {
        self.faults(|links| links.fault())
    }

    fn faults(&self, of: impl Fn(&Links) -> Option<String>) -> Option<String> {
        let links = self.links.borrow();
        let kept = links.iter().filter(|links| links.state.get() == LinksState::Kept);
        let faults = kept.filter_map(|links| of(links));
        let faults: Vec<_> = self.cluster.iter().filter_map(|cluster| cluster.fault()).chain(faults).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    pub(super) async fn run(&self, sink: Rc<dyn Sink>) {
        let _target = subscriber::Target::set(sink.clone(), self.links.clone());
        let mut tasks = JoinSet::new();
        let Some(cluster) = &self.cluster else {
            self.links.borrow().iter().for_each(|links| links.start(&sink, &mut tasks));
            // None of them ends but by a panic, which ends the worker.
            while let Some(Ok(())) = tasks.join_next().await {}
            return;
        };
        tasks.spawn_local({
            let cluster = cluster.clone();
            async move { cluster.watch().await }
        });
        let mut topology = cluster.topology();
        loop {
            tokio::select! {
                // Its sender is ours.
                _ = topology.changed() => {
                    let now = topology.borrow_and_update().clone();
                    self.follow(&now, &sink, &mut tasks);
                }
                // Links to a node that is gone end, and all others only by a panic.
                Some(ended) = tasks.join_next() => {
                    if ended.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Brings links, subscriptions and texts to where the cluster has them now.
    fn follow(&self, topology: &Topology, sink: &Rc<dyn Sink>, tasks: &mut JoinSet<()>) {
        let nodes: Vec<_> = topology.nodes.iter().map(|server| self.node_of(server)).collect();
        let owner = |node: &Option<usize>| node.and_then(|node| nodes.get(node)).copied().unwrap_or(NOWHERE);
        let [slots, homes] = [&topology.owners, &topology.homes].map(|owners| owners.iter().map(owner).collect());
        let count = self.links.borrow().len();
        self.placement.set_owners(Owners { slots, homes, nodes: count, live: nodes.len() });
        // Of nodes that are leaving as well.
        let all = self.links.borrow().clone();
        for links in all {
            let batch = links.batch.borrow();
            let moved = batch.iter().flatten().map(|channel| self.placement.node_of(channel));
            let to: HashSet<_> = moved.filter(|node| *node != links.node).collect();
            for node in to {
                self.at(node).behind.borrow_mut().push((links.clone(), links.batches.get()));
            }
        }
        let (version, followed_at) = self.followed.replace((topology.version, Instant::now()));
        let is_next = topology.version == version + 1;
        let old_until = topology.old_until.filter(|_| is_next).unwrap_or(followed_at);
        let old_until = old_until.checked_sub(cluster::NEWS).unwrap_or(old_until);
        for Moved { channel, from, to, was_heard } in sink.on_placed() {
            let (from, to) = (self.at(from), self.at(to));
            if was_heard {
                to.lost(from.heard_until(old_until));
            }
            to.command(Command::Subscribe(channel));
        }
        // Of NOWHERE nobody else says that nothing is missing there any more.
        let nowhere = self.at(NOWHERE);
        nowhere.lost_since.set(nowhere.lost_since.get().filter(|_| !sink.unconfirmed(NOWHERE).is_empty()));
        let links = self.links.borrow();
        for links in links.iter().filter(|links| links.node != NOWHERE && links.state.get() == LinksState::Kept) {
            if !nodes.contains(&links.node) {
                links.set_state(LinksState::Leaving);
            } else if !links.is_started.replace(true) {
                links.start(sink, tasks);
            }
        }
        drop(links);
        self.wake_publishers();
    }

    /// The node of a server; it has links from now on.
    fn node_of(&self, server: &Server) -> Node {
        let mut all = self.links.borrow_mut();
        let is_it = |links: &Rc<Links>| links.state.get() == LinksState::Kept && Arc::ptr_eq(&links.health, &server.1);
        if let Some(links) = all.iter().find(|links| is_it(links)) {
            return links.node;
        }
        let free = all.iter().position(|links| links.state.get() == LinksState::Gone);
        let node = Node(free.unwrap_or(all.len()));
        let links = Rc::new(Links::new(node, server, self.placement.clone(), self.cluster.clone()));
        match all.get_mut(node.0) {
            Some(place) => *place = links,
            None => all.push(links),
        }
        node
    }
}

impl Links {
    fn new(node: Node, server: &Server, placement: Placement, cluster: Option<Arc<Cluster>>) -> Self {
        let (settings, health) = server.clone();
        Self {
            node,
            settings,
            health,
            placement,
            cluster,
            commands: RefCell::default(),
            commands_wait: Notify::new(),
            texts_wait: Notify::new(),
            deaf_since: Cell::new(Some(Instant::now())),
            hears_again: Notify::new(),
            subscribed_at: Cell::new(Instant::now()),
            unanswered_since: Cell::new(None),
            audited_at: Cell::new(Instant::now()),
            lost_since: Cell::new(None),
            is_suspect: Cell::new(false),
            demoted_since: Cell::new(None),
            retry_at: Cell::new(None),
            mark: RefCell::default(),
            is_mark_due: Cell::new(false),
            stopped: RefCell::default(),
            leaving: RefCell::default(),
            subscriber_at: RefCell::default(),
            protocol: Cell::new(Protocol::Resp3),
            probe: Probe::new(),
            is_started: Cell::new(false),
            state: Cell::new(LinksState::Kept),
            state_changed: Notify::new(),
            batch: RefCell::default(),
            batches: Cell::new(0),
            behind: RefCell::default(),
            refused_since: Cell::new(None),
        }
    }

    /// Makes and keeps both links until the node is gone.
    fn start(self: &Rc<Self>, sink: &Rc<dyn Sink>, tasks: &mut JoinSet<()>) {
        let (links, sink) = (self.clone(), sink.clone());
        tasks.spawn_local(async move {
            tokio::select! {
                _ = async { tokio::join!(subscriber::run(&links, &*sink), publisher::run(&links, &*sink)) } => {}
                () = links.left() => links.set_state(LinksState::Gone),
            }
        });
    }

    /// Wants the stream to stop at a mark: at what is published on a channel of this node's own, which
    /// begins with `name`.
    fn set_mark(&self, name: &str, seal: Option<Seal>) {
        let channel = Channel::from(format!("{name}:{}", self.settings.server().mark_name()));
        self.mark.replace(Some(Mark { channel, seal, state: Cell::new(MarkState::Wanted) }));
        self.command(Command::Mark);
    }

    fn mark_state(&self) -> Option<MarkState> {
        self.mark.borrow().as_ref().map(|mark| mark.state.get())
    }

    fn set_mark_state(&self, state: MarkState) {
        if let Some(mark) = &*self.mark.borrow() {
            mark.state.set(state);
        }
    }

    fn is_mark(&self, channel: &[u8]) -> bool {
        self.mark.borrow().as_ref().is_some_and(|mark| *mark.channel == *channel)
    }

    /// Whether a message on the mark's channel is the mark itself.
    fn is_sealed(&self, payload: &[u8]) -> bool {
        let mark = self.mark.borrow();
        mark.as_ref().is_some_and(|mark| mark.seal.is_none_or(|seal| seal.sign(&mark.channel).as_bytes() == payload))
    }

    /// Goes on behind the mark.
    fn release(&self) {
        self.is_mark_due.set(false);
        if let Some(mark) = self.mark.take() {
            if mark.state.get() == MarkState::Reached {
                // What it took to get here is nobody's fault.
                self.probe.begin();
            }
            if mark.state.get() != MarkState::Lost {
                self.command(Command::Unmark(mark.channel));
            }
        }
        if let Some(stopped) = self.stopped.take() {
            stopped.wake();
        }
    }

    fn set_state(&self, state: LinksState) {
        self.state.set(state);
        self.state_changed.notify_one();
    }

    /// Resolves when the node is gone and no text is under way to it.
    async fn left(&self) {
        while self.state.get() == LinksState::Kept || self.batch.borrow().is_some() {
            self.state_changed.notified().await;
        }
    }

    /// Texts are under way from now on.
    fn begin_batch(&self, texts: &[ClientMessage]) -> Batch<'_> {
        // Only in a cluster do channels ever move.
        let moving = self.cluster.iter().flat_map(|_| texts.iter().map(|text| text.channel.clone()));
        self.batch.replace(Some(moving.collect()));
        self.batches.set(self.batches.get() + 1);
        Batch(self)
    }

    /// Whether texts that have to be first are still under way at other nodes.
    fn is_behind_others(&self) -> bool {
        let mut behind = self.behind.borrow_mut();
        behind.retain(|(other, batch)| other.batches.get() == *batch && other.batch.borrow().is_some());
        !behind.is_empty()
    }

    fn command(&self, command: Command) {
        if self.cluster.is_some() && self.node == NOWHERE {
            // Nobody takes it; whoever gets the channel is told.
            return;
        }
        // Bounded: while the link is away nothing is unsubscribed, and handshakes are refused
        // after a blip. The next link starts over with what the hub wants then.
        self.commands.borrow_mut().push_back(command);
        self.commands_wait.notify_one();
    }

    /// Subscriptions are lost that were last known to be there at `since`.
    fn lost(&self, since: Instant) {
        let earlier = self.lost_since.get().map_or(since, |before| before.min(since));
        self.lost_since.set(Some(earlier));
    }

    /// Until when channels were certainly heard here that were here until `placed`.
    fn heard_until(&self, placed: Instant) -> Instant {
        if self.node == NOWHERE {
            return self.lost_since.get().unwrap_or(placed);
        }
        self.lost_since.get().unwrap_or(placed).min(placed).min(self.probe.heard_at())
    }

    /// What a server says that it is decides whether the link stays. In a cluster the topology does, and is asked.
    fn judge(&self, rank: Rank, address: &str) -> Result<(), LinkError> {
        let Some(cluster) = &self.cluster else {
            return if rank.is_wrong() { Err(LinkError::NoMaster(address.to_owned(), rank)) } else { Ok(()) };
        };
        if rank.is_wrong() {
            cluster.doubt();
            self.demoted_since.set(self.demoted_since.get().or_else(|| Some(Instant::now())));
        } else {
            self.demoted_since.set(None);
        }
        Ok(())
    }

    /// The publisher's server is no master: the subscriber's may be the same.
    fn suspect(&self) {
        self.is_suspect.set(true);
        self.commands_wait.notify_one();
    }

    /// The node does not have what it should, for now; somebody must know better.
    fn contradicted(&self) {
        if self.refused_since.get().is_none() {
            self.refused_since.set(Some(Instant::now()));
        }
        self.retry_at.set(Some(Instant::now() + RETRY));
        self.commands_wait.notify_one();
        if let Some(cluster) = &self.cluster {
            cluster.doubt();
        }
    }

    /// What is wrong with the links of all workers to this server, or with this worker's channels there.
    fn fault(&self) -> Option<String> {
        let server = self.settings.server();
        let lasting = |since: &Cell<Option<Instant>>| Some(since.get()?.elapsed()).filter(|time| *time > BLIP);
        self.health.fault().or_else(|| {
            if let Some(time) = lasting(&self.demoted_since) {
                return Some(format!(
                    "{server} has been a replica for {time:.1?}, and the cluster names no other master"
                ));
            }
            let time = lasting(&self.refused_since)?;
            Some(format!("{server} has refused some channels for {time:.1?}"))
        })
    }

    fn is_reachable(&self) -> bool {
        [&self.deaf_since, &self.unanswered_since]
            .iter()
            .all(|trouble| trouble.get().is_none_or(|since| since.elapsed() < BLIP))
    }

    fn is_where_the_subscriber_is(&self, master: Option<&Place>) -> bool {
        self.subscriber_at.borrow().as_ref() == master
    }

    /// Resolves when all channels are subscribed; of those that are not for now, though the link is up,
    /// the others do not wait long.
    async fn hears(&self) {
        while self.is_deaf() {
            self.hears_again.notified().await;
        }
        if self.lost_since.get().is_some() {
            drop(tokio::time::timeout(RETRY, self.hears_again.notified()).await);
        }
    }

    fn is_deaf(&self) -> bool {
        self.deaf_since.get().is_some()
    }
}
