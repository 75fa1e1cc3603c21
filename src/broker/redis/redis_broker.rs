//! Redis as a worker's broker: its links to all nodes (`node_links.rs`), polled by the worker, and the channels that
//! move with a slot of a cluster. May not enter: bytes, sockets.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::cluster::Topology;
use super::deployment::{Deployment, Kind};
use super::following::Following;
use super::known_node::KnownNode;
use super::marker::{Marker, Progress};
use super::node_links::{Life, NodeLinks, Step};
use super::read_buffer::Part;
use crate::broker::event::{Event, Marking, Report, Request};
use crate::broker::seal::Seal;
use crate::channel::Channel;
use crate::message::ClientMessage;
use crate::placement::{Moved, Node, Owners, Placement};

/// A worker's links to all nodes.
pub(crate) struct RedisBroker {
    placement: Placement,
    /// By node. That of a node that is gone keeps its place until another takes it.
    links: Vec<NodeLinks>,
    following: Option<Following>,
    /// Nodes whose messages wait for batches at other nodes: their channels lived there before.
    behind: Vec<Behind>,
    /// The index of the links that are polled next.
    at: usize,
    /// Whether nothing more was there at the last poll.
    is_idle: bool,
    timer: Option<Pin<Box<Sleep>>>,
    now: Instant,
}

/// The messages of a node wait for a batch at another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Behind {
    node: Node,
    other: Node,
    batch: u64,
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links = self.links.iter().map(|links| (&links.node, links.life));
        f.debug_struct("RedisBroker").field("links", &links.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl RedisBroker {
    /// Links to all nodes, none of them made yet. The nodes of a cluster are not known yet.
    pub(crate) fn new(deployment: &Deployment, placement: Placement) -> Self {
        let now = Instant::now();
        let (known_nodes, following): (Arc<[KnownNode]>, _) = match deployment.kind() {
            Kind::Independent(known_nodes) => (known_nodes.clone(), None),
            Kind::Cluster(cluster) => (Arc::default(), Some(Following::new(cluster.clone(), now))),
        };
        let links =
            |(node, known_node): (Node, &KnownNode)| NodeLinks::new(node, known_node.clone(), placement.clone(), now);
        let links = placement.nodes().zip(known_nodes.iter()).map(links).collect();
        Self { placement, links, following, behind: Vec::new(), at: 0, is_idle: true, timer: None, now }
    }

    fn links(&self, node: Node) -> &NodeLinks {
        self.links.get(node.index()).expect("a placement is over these")
    }

    fn links_mut(&mut self, node: Node) -> &mut NodeLinks {
        at_mut(&mut self.links, node)
    }

    pub(crate) fn request(&mut self, request: Request) {
        let now = Instant::now();
        match request {
            Request::Subscribe { node: Some(node), channel } => {
                let NodeLinks { subscriber, node, .. } = self.links_mut(node);
                subscriber.subscribe(node, channel);
            }
            Request::Subscribe { node: None, channel } => {
                let following = self.following.as_mut().expect("only in a cluster is a channel without a node");
                following.unplaced.subscribe(channel);
            }
            Request::Unsubscribe { node, channel } => {
                let NodeLinks { subscriber, node, .. } = self.links_mut(node);
                subscriber.unsubscribe(node, channel);
            }
            Request::Move(moved) => self.on_moved(moved),
            Request::MessagesWait => self.messages_wait(),
            Request::Publish { node, messages } => self.links_mut(node).publish(messages, now),
            Request::SetMarker { name, seal } => self.set_marker(&name, seal),
            Request::PublishMarker => {
                let in_use = self.links.iter_mut().filter(|links| links.is_in_use());
                in_use.for_each(|links| links.node.is_marker_due = true);
            }
            Request::Release => {
                for NodeLinks { subscriber, node, .. } in &mut self.links {
                    subscriber.release(node, now);
                }
            }
            Request::ReadLog { node, from } => self.links_mut(node).read_log(from),
            Request::Milestone { node } => self.links_mut(node).node.hasten_milestone(now),
            Request::LoseSince(since) => {
                self.links.iter_mut().for_each(|links| links.node.lost(since));
                self.following.iter_mut().for_each(|following| following.unplaced.lost(since));
            }
        }
        // Links that were polled before may have something to do.
        self.at = 0;
    }

    /// The messages that were taken and not answered for.
    pub(crate) fn abandon(&mut self) -> Vec<ClientMessage> {
        self.links.iter_mut().flat_map(|links| links.publisher.abandon()).collect()
    }

    fn messages_wait(&mut self) {
        self.links.iter_mut().for_each(|links| links.publisher.on_messages_wait());
    }

    fn set_marker(&mut self, name: &str, seal: Option<Seal>) {
        for links in self.links.iter_mut().filter(|links| links.is_in_use()) {
            let NodeLinks { subscriber, node, .. } = links;
            node.marker = Some(Marker::new(name, &node.terms.marker_name, seal));
            subscriber.set_marker();
        }
    }

    /// What the worker is to be told next.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event<'_>> {
        // Nearly all events are publications, and the next one is mostly where the last one was.
        if !self.is_idle
            && let Some(links) = self.links.get_mut(self.at)
            && let Some((channel, payload)) = links.next_publication(self.now)
        {
            return Poll::Ready(self.publication(self.at, &channel, &payload));
        }
        if std::mem::take(&mut self.is_idle) {
            self.at = 0;
            self.links.iter_mut().for_each(NodeLinks::begin_turn);
            self.tell_topology();
        }
        let (at, step) = loop {
            if let Some(found) = self.poll_links(cx) {
                break found;
            }
            if self.poll_topology(cx) {
                return Poll::Ready(Event::Report(Report::Placed));
            }
            if !self.forget_behind() && !self.is_timer_due(cx) {
                self.is_idle = true;
                return Poll::Pending;
            }
            self.at = 0;
        };
        Poll::Ready(match step {
            Step::Report(report) => Event::Report(report),
            Step::Paused => Event::Paused,
            Step::Publication(channel, payload) => self.publication(at, &channel, &payload),
        })
    }

    /// The publication that was just read from the links with that index.
    fn publication(&self, at: usize, channel: &Part, payload: &Part) -> Event<'_> {
        let publication = self.links.get(at).and_then(|links| links.publication(channel, payload));
        let (channel, payload) = publication.expect("it was just read there");
        Event::Publication { channel, payload }
    }

    fn poll_links(&mut self, cx: &mut Context<'_>) -> Option<(usize, Step)> {
        while let Some(links) = self.links.get_mut(self.at) {
            let polled = links.poll(cx, &mut self.now);
            if std::mem::take(&mut links.node.doubts_topology)
                && let Some(Following { cluster, .. }) = &self.following
            {
                cluster.doubt();
            }
            match polled {
                Poll::Ready(step) => return Some((self.at, step)),
                Poll::Pending => self.at += 1,
            }
        }
        None
    }

    /// Tells the links what they have to know of the cluster.
    fn tell_topology(&mut self) {
        let Some(Following { cluster, .. }) = &self.following else { return };
        let known_at = cluster.known_at();
        for NodeLinks { node, .. } in &mut self.links {
            node.topology_known_at = known_at;
            node.is_behind_others = self.behind.iter().any(|behind| behind.node == node.id);
        }
    }

    /// Forgets the batches that were answered for; says whether there were any.
    fn forget_behind(&mut self) -> bool {
        let before = self.behind.len();
        let batch = |node: Node| self.links.get(node.index()).and_then(|links| links.publisher.batch());
        self.behind.retain(|behind| batch(behind.other) == Some(behind.batch));
        let has_changed = self.behind.len() < before;
        if has_changed {
            self.tell_topology();
        }
        has_changed
    }

    /// Whether any links have something to do by now. Otherwise, the task is woken when one has.
    fn is_timer_due(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(next) = self.links.iter().filter_map(NodeLinks::next_timeout).min() else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
        if timer.deadline() != next {
            timer.as_mut().reset(next);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    /// Follows the next topology, if there is one.
    fn poll_topology(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(following) = &mut self.following else { return false };
        let Poll::Ready(topology) = following.poll(cx) else { return false };
        self.follow(&topology, Instant::now());
        true
    }

    /// Brings links to where the cluster has nodes now.
    fn follow(&mut self, topology: &Topology, now: Instant) {
        let nodes: Vec<_> = topology.nodes.iter().map(|known_node| self.node_of(known_node, now)).collect();
        let owner = |node: &Option<usize>| node.and_then(|node| nodes.get(node)).copied();
        let [slots, homes] = [&topology.owners, &topology.homes].map(|owners| owners.iter().map(owner).collect());
        let owners = Owners { slots, homes, nodes: self.links.len(), live: nodes.len() };
        if let Some(following) = &mut self.following {
            following.on_topology(topology, now);
            following.unplaced.on_owners(&owners, now);
        }
        self.placement.set_owners(owners);
        // Of nodes that are leaving as well.
        for links in &self.links {
            let Some(batch) = links.publisher.batch() else { continue };
            let other = links.node.id;
            let to = links.publisher.under_way().map(|message| self.placement.node_of(&message.channel));
            let to: HashSet<_> = to.flatten().filter(|node| *node != other).collect();
            self.behind.extend(to.into_iter().map(|node| Behind { node, other, batch }));
        }
        for links in self.links.iter_mut().filter(|links| links.is_in_use()) {
            if !nodes.contains(&links.node.id) {
                links.leave();
            }
        }
        self.messages_wait();
        self.tell_topology();
    }

    /// Subscribes channels where they live now.
    fn on_moved(&mut self, moved: Vec<Moved>) {
        let Self { links, following: Some(Following { unplaced, old_until, .. }), .. } = self else {
            debug_assert!(moved.is_empty(), "only in a cluster do channels move");
            return;
        };
        unplaced.settle();
        for Moved { channel, from, to, was_heard } in moved {
            let heard_until = match from {
                Some(from) => {
                    let node = &mut at_mut(links, from).node;
                    node.channels.forget(&channel);
                    node.heard_until(*old_until)
                }
                None => unplaced.take(&channel, *old_until),
            };
            if let Some(to) = to {
                let NodeLinks { subscriber, node, .. } = at_mut(links, to);
                subscriber.subscribe(node, channel);
                if was_heard {
                    // Behind it, so that the gap lasts until the channel is subscribed.
                    node.lost(heard_until);
                }
            } else {
                if was_heard {
                    unplaced.lost(heard_until);
                }
                unplaced.subscribe(channel);
            }
        }
        unplaced.settle();
    }

    /// The node of a known_node; it has links from now on.
    fn node_of(&mut self, known_node: &KnownNode, now: Instant) -> Node {
        let known = self.links.iter().find(|links| links.life == Life::Kept && links.known_node.is(known_node));
        if let Some(links) = known {
            return links.node.id;
        }
        let free = self.links.iter().position(|links| links.life == Life::Gone);
        let node = Node::at(free.unwrap_or(self.links.len()));
        let links = NodeLinks::new(node, known_node.clone(), self.placement.clone(), now);
        match self.links.get_mut(node.index()) {
            Some(place) => *place = links,
            None => self.links.push(links),
        }
        node
    }

    pub(crate) fn is_reachable(&self, channel: &Channel) -> bool {
        let now = Instant::now();
        match (self.placement.node_of(channel), &self.following) {
            (Some(node), _) => self.links(node).is_reachable(now),
            (None, following) => following.as_ref().is_some_and(|following| following.unplaced.is_reachable(now)),
        }
    }

    pub(crate) fn marking(&self) -> Marking {
        let in_use = || self.links.iter().filter(|links| links.is_in_use());
        // What is missed must be told by the process that knows.
        let misses = |links: &NodeLinks| links.node.lost_since.is_some() || links.node.refused_since.is_some();
        if in_use().any(misses) || self.unplaced_missed_since().is_some() {
            return Marking::Lost;
        }
        let marking = |links: &NodeLinks| match links.node.marker.as_ref().map(|marker| marker.progress) {
            None | Some(Progress::Lost) => Marking::Lost,
            Some(_) if links.subscriber.is_at_marker() => Marking::Reached,
            Some(Progress::Set) => Marking::Set,
            Some(Progress::Asked) => Marking::Asked,
        };
        in_use().map(marking).min().unwrap_or(Marking::Lost)
    }

    fn unplaced_missed_since(&self) -> Option<Instant> {
        self.following.as_ref()?.unplaced.missed_since()
    }

    /// How long subscriptions are away, if they are.
    pub(crate) fn away_for(&self) -> Duration {
        let now = Instant::now();
        let lost = self.links.iter().filter_map(|links| links.node.lost_since).chain(self.unplaced_missed_since());
        lost.map(|since| now.saturating_duration_since(since)).max().unwrap_or_default()
    }

    /// Why messages do not flow, if they do not, in any worker.
    pub(crate) fn fault(&self) -> Option<String> {
        let now = Instant::now();
        self.faults(|links| links.node.fault(now).or_else(|| links.node.health.refusal()))
    }

    /// What is wrong with the links themselves.
    pub(crate) fn link_fault(&self) -> Option<String> {
        let now = Instant::now();
        self.faults(|links| links.node.fault(now))
    }

    fn faults(&self, of: impl Fn(&NodeLinks) -> Option<String>) -> Option<String> {
        let kept = self.links.iter().filter(|links| links.life == Life::Kept);
        let of_cluster = self.following.iter().filter_map(|following| following.cluster.fault());
        let faults: Vec<_> = of_cluster.chain(kept.filter_map(of)).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

fn at_mut(links: &mut [NodeLinks], node: Node) -> &mut NodeLinks {
    links.get_mut(node.index()).expect("a placement is over these")
}

#[cfg(test)]
mod tests;
