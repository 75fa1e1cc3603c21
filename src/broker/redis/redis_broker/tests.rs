//! What a worker's links become when a cluster's topology changes: without sockets, because no link is polled before
//! the test has made it. May not enter: sockets.

use std::task::Waker;

use bytes::Bytes;
use redis::Value;

use super::*;
use crate::broker::redis::connect::Settings;
use crate::broker::redis::node_state::{Greeting, NEWS};
use crate::broker::redis::resp::Protocol;
use crate::broker::redis::role::RoleWatch;
use crate::config::{Config, RedisAddress, RedisConfig, RedisUrl};
use crate::id::SessionKey;
use crate::message::Origin;
use crate::placement::SLOTS;

const SECOND: Duration = Duration::from_secs(1);

fn channel() -> Channel {
    Channel::from_static(b"c:a")
}

fn known_node() -> KnownNode {
    let settings = Settings::try_new(&RedisUrl::default(), &RedisConfig::default(), &Default::default()).unwrap();
    KnownNode::new(Arc::new(settings), 1)
}

/// A broker, and what a worker keeps beside it: the node of its one channel.
struct Stage {
    broker: RedisBroker,
    node: Option<Node>,
    version: u64,
    now: Instant,
}

impl Stage {
    /// A worker with one channel, in a cluster of which nothing is known yet.
    fn new() -> Self {
        let address = RedisAddress::Cluster { nodes: Vec::new(), tls: false };
        let url = RedisUrl { address, ..RedisUrl::default() };
        let deployment = Deployment::try_new(&Config::default(), &[url], 1, &Default::default()).unwrap();
        let mut broker = RedisBroker::new(&deployment, deployment.placement());
        broker.request(Request::Subscribe { node: None, channel: channel() });
        Self { broker, node: None, version: 0, now: Instant::now() }
    }

    /// The first of `nodes` owns all slots, if there are any; the one before did for the last time now. The worker
    /// moves its channel.
    fn follow(&mut self, nodes: &[&KnownNode], was_heard: bool) {
        self.version += 1;
        let owners = vec![(!nodes.is_empty()).then_some(0); SLOTS.into()];
        let topology = Topology {
            nodes: nodes.iter().copied().cloned().collect(),
            homes: owners.clone(),
            owners,
            version: self.version,
            old_until: Some(self.now + NEWS),
        };
        self.broker.follow(&topology, self.now);
        let to = self.broker.placement.node_of(&channel());
        let from = std::mem::replace(&mut self.node, to);
        if from != to {
            self.broker.request(Request::Move(vec![Moved { channel: channel(), from, to, was_heard }]));
        }
    }

    fn links(&mut self, node: u16) -> &mut NodeLinks {
        self.broker.links_mut(Node(node))
    }

    /// Makes the publishing link of a node, and lets a message be under way there.
    fn publish(&mut self, node: u16) {
        let now = self.now;
        let NodeLinks { publisher, node, .. } = self.links(node);
        node.incomplete_since = None;
        node.health.worker_is_complete();
        assert!(publisher.wants_link(now));
        let role = RoleWatch::of_master(Protocol::Resp3, now);
        let greeting = Greeting { protocol: Protocol::Resp3, address: "a:1".to_owned(), role, master: None };
        publisher.on_connected(node, greeting, now);
        assert!(publisher.step(node, now).is_none());
        assert!(matches!(node.events.pop_front(), Some(Report::Room { .. })));
        let origin = Origin::Session(SessionKey { index: 0, generation: 0 });
        let message = ClientMessage { channel: channel(), payload: Bytes::new(), origin, since: 0 };
        assert!(publisher.on_messages(node, vec![message], now).is_some());
    }

    /// Redis answers for that message.
    fn answer(&mut self, node: u16) {
        let now = self.now;
        let NodeLinks { publisher, node, .. } = self.links(node);
        publisher.on_answers(node, Ok(vec![Value::Int(1)]), now);
    }

    /// Polls the links of a node that is leaving, which makes no link.
    fn poll_leaving(&mut self, node: u16) {
        let mut now = self.now;
        let links = self.links(node);
        assert_eq!(links.life, Life::Leaving);
        while links.poll(&mut Context::from_waker(Waker::noop()), &mut now).is_ready() {}
    }
}

#[test]
fn a_channel_without_a_node_is_subscribed_when_a_topology_names_one() {
    let mut stage = Stage::new();
    let (a, now) = (known_node(), stage.now);
    assert!(stage.broker.links.is_empty() && stage.broker.is_reachable(&channel()));
    assert_eq!(stage.broker.marking(), Marking::Lost, "no stream stands still");
    stage.follow(&[&a], false);
    assert_eq!(stage.node, Some(Node(0)));
    let links = stage.links(0);
    assert!(links.known_node.is(&a) && links.node.channels.is_wanted(&channel()));
    assert_eq!((links.node.lost_since, links.subscriber.wants_link(now + SECOND)), (None, true));
}

#[test]
fn the_gap_of_a_channel_that_had_no_node_begins_at_the_last_proof_at_the_node_before() {
    let mut stage = Stage::new();
    let (a, b) = (known_node(), known_node());
    stage.follow(&[&a], false);
    let heard_at = stage.links(0).node.probe.complete_until();
    stage.now += 10 * SECOND;
    stage.follow(&[], true);
    assert_eq!(stage.node, None);
    assert_eq!(stage.broker.unplaced_missed_since(), Some(heard_at));
    assert_eq!(stage.broker.marking(), Marking::Lost);
    stage.now += 10 * SECOND;
    stage.follow(&[&b], true);
    assert_eq!(stage.broker.unplaced_missed_since(), None);
    let node = stage.node.unwrap();
    assert_eq!(stage.broker.links(node).node.lost_since, Some(heard_at));
}

#[test]
fn a_time_without_a_process_is_a_gap_of_channels_without_a_node() {
    let mut stage = Stage::new();
    let (a, since) = (known_node(), stage.now - 7 * SECOND);
    stage.broker.request(Request::LoseSince(since));
    assert!(stage.broker.away_for() >= 7 * SECOND);
    stage.follow(&[&a], true);
    assert_eq!((stage.broker.unplaced_missed_since(), stage.links(0).node.lost_since), (None, Some(since)));
}

#[test]
fn messages_wait_for_those_that_are_under_way_at_the_node_before() {
    let mut stage = Stage::new();
    let (a, b) = (known_node(), known_node());
    stage.follow(&[&a, &b], false);
    stage.publish(0);
    stage.follow(&[&b, &a], false);
    assert_eq!(stage.broker.behind, [Behind { node: Node(1), other: Node(0), batch: 1 }]);
    assert!(stage.links(1).node.is_behind_others && !stage.links(0).node.is_behind_others);
    assert!(!stage.broker.forget_behind());
    stage.answer(0);
    assert!(stage.broker.forget_behind() && !stage.links(1).node.is_behind_others);
}

#[test]
fn messages_under_way_hold_up_no_node_while_their_channel_has_none() {
    let mut stage = Stage::new();
    let (a, b) = (known_node(), known_node());
    stage.follow(&[&a], false);
    stage.publish(0);
    stage.follow(&[], false);
    assert_eq!(stage.broker.behind, []);
    // Its answer is still waited for when the channel has a node again.
    stage.follow(&[&b], false);
    assert_eq!(stage.broker.behind, [Behind { node: Node(1), other: Node(0), batch: 1 }]);
}

#[test]
fn a_node_that_leaves_keeps_its_index_until_its_messages_are_answered_for() {
    let mut stage = Stage::new();
    let [a, b, c, d] = [(); 4].map(|()| known_node());
    stage.follow(&[&a, &b], false);
    stage.publish(0);
    stage.follow(&[&b], false);
    stage.poll_leaving(0);
    assert_eq!(stage.links(0).life, Life::Leaving, "a message is under way");
    stage.follow(&[&b, &c], false);
    assert!(stage.links(2).known_node.is(&c), "no index was free");
    stage.answer(0);
    stage.poll_leaving(0);
    assert_eq!(stage.links(0).life, Life::Gone);
    stage.follow(&[&b, &c, &d], false);
    assert!(stage.links(0).known_node.is(&d) && stage.links(0).life == Life::Kept);
    assert_eq!((stage.broker.links.len(), stage.broker.placement.count()), (3, 3));
}

#[test]
fn a_node_that_comes_back_has_links_of_its_own_beside_those_that_leave() {
    let mut stage = Stage::new();
    let (a, b) = (known_node(), known_node());
    stage.follow(&[&a], false);
    stage.publish(0);
    stage.follow(&[&b], false);
    stage.follow(&[&a], false);
    assert_eq!((stage.node, stage.links(0).life, stage.links(1).life), (Some(Node(2)), Life::Leaving, Life::Leaving));
    assert!(stage.links(2).known_node.is(&a));
}
