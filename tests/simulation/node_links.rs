//! The links of a worker to a node: the real machines, and the ends of their streams.
//!
//! Stands in for `node_links.rs`, which has sockets and futures: bytes, answers and time reach the machines in the same
//! order; `log_links.rs` has those for the replication log. May not enter: what a server does with commands.

#[path = "log_links.rs"]
mod log_links;

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, RedisError, Value};
use tokio::time::Instant;

use self::log_links::{LogStep, Reading};
use super::stream::StreamId;
use crate::broker::redis::error::LinkError;
use crate::broker::redis::health::Health;
use crate::broker::redis::marker::{Marker, Progress};
use crate::broker::redis::milestone::MilestoneUse;
use crate::broker::redis::node_state::{Greeting, NodeState, Terms};
use crate::broker::redis::publisher::Publisher;
use crate::broker::redis::resp::{Protocol, reply_len};
use crate::broker::redis::role::RoleWatch;
use crate::broker::redis::subscriber::Subscriber;
use crate::broker::{Event, Marking, Request, Seal};
use crate::placement::{Node, Placement};

/// How long Redis may take to answer, and the longest pause between attempts to connect.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// The worker's end of a stream.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) stream: Option<StreamId>,
    /// Bytes that have arrived and were not read.
    pub(crate) arrived: Vec<u8>,
    /// The end of the stream has arrived behind them.
    pub(crate) is_ended: bool,
    /// Bytes to be sent.
    pub(crate) out: Vec<u8>,
}

/// Which of a worker's links to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Subscriber,
    Publisher,
    /// To read the log: for a stream that was cut, and for clients that come back.
    Cut,
    Back,
}

impl Which {
    pub(crate) const ALL: [Self; 4] = [Self::Subscriber, Self::Publisher, Self::Cut, Self::Back];

    /// Whether it leads to a master only.
    pub(crate) fn wants_master(self) -> bool {
        matches!(self, Self::Subscriber | Self::Publisher)
    }
}

/// What a station has for its worker.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    Event(Event<'a>),
    /// A link is to be made.
    Connect(Which),
    /// A link is gone, and so is its stream, with all that it had not read.
    Drop(StreamId, Vec<u8>),
}

/// What a node's links may do besides Pub/Sub.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Logs {
    pub(crate) has_milestones: bool,
    pub(crate) may_replay: bool,
}

/// A worker's links to one node.
#[derive(Debug)]
pub(crate) struct NodeLinks {
    pub(crate) node: NodeState,
    subscriber: Subscriber,
    publisher: Publisher,
    pub(crate) subscriber_stream: End,
    pub(crate) publisher_stream: End,
    /// How many answers the publisher awaits.
    awaited: usize,
    protocol: Protocol,
    is_flowing: bool,
    /// The log is read to continue the stream, and for clients that come back.
    cut: Option<Reading>,
    back: Option<Reading>,
}

impl NodeLinks {
    pub(crate) fn new(protocol: Protocol, logs: Logs, health: Arc<Health>, placement: Placement, now: Instant) -> Self {
        let terms = Terms {
            server: "redis://redis".to_owned(),
            marker_name: "redis".to_owned(),
            response_timeout: RESPONSE_TIMEOUT,
            max_reconnect_delay: MAX_RECONNECT_DELAY,
            is_in_cluster: false,
            milestones: if logs.has_milestones { MilestoneUse::Positions } else { MilestoneUse::Nothing },
            may_replay: logs.may_replay,
        };
        Self {
            node: NodeState::new(Node(0), terms, health, placement, now),
            subscriber: Subscriber::new(MAX_RECONNECT_DELAY, now),
            publisher: Publisher::new(MAX_RECONNECT_DELAY, now),
            subscriber_stream: End::default(),
            publisher_stream: End::default(),
            awaited: 0,
            protocol,
            is_flowing: false,
            cut: None,
            back: None,
        }
    }

    pub(crate) fn request(&mut self, request: Request, now: Instant) {
        let Self { node, subscriber, publisher, .. } = self;
        match request {
            Request::Subscribe { channel, .. } => subscriber.subscribe(node, channel),
            Request::Unsubscribe { channel, .. } => subscriber.unsubscribe(node, channel),
            Request::MessagesWait => publisher.on_messages_wait(),
            Request::Publish { messages, .. } => {
                let pipeline = publisher.on_messages(node, messages, now);
                self.send(pipeline);
            }
            Request::SetMarker { name, seal } => self.set_marker(&name, seal),
            Request::PublishMarker => node.is_marker_due = true,
            Request::Release => subscriber.release(node, now),
            Request::LoseSince(since) => node.lost(since),
            Request::ReadLog { from, .. } => self.read_log(from, now),
            Request::Milestone { .. } => node.hasten_milestone(now),
            Request::Move(_) => panic!("nothing moves"),
        }
    }

    pub(crate) fn set_marker(&mut self, name: &str, seal: Option<Seal>) {
        self.node.marker = Some(Marker::new(name, &self.node.terms.marker_name, seal));
        self.subscriber.set_marker();
    }

    /// As `RedisBroker::marking`, of one node.
    pub(crate) fn marking(&self) -> Marking {
        if self.node.lost_since.is_some() || self.node.refused_since.is_some() {
            return Marking::Lost;
        }
        match self.node.marker.as_ref().map(|marker| marker.progress) {
            None | Some(Progress::Lost) => Marking::Lost,
            Some(_) if self.subscriber.is_at_marker() => Marking::Reached,
            Some(Progress::Set) => Marking::Set,
            Some(Progress::Asked) => Marking::Asked,
        }
    }

    pub(crate) fn end(&mut self, which: Which) -> Option<&mut End> {
        match which {
            Which::Subscriber => Some(&mut self.subscriber_stream),
            Which::Publisher => Some(&mut self.publisher_stream),
            Which::Cut => self.cut.as_mut().map(Reading::stream),
            Which::Back => self.back.as_mut().map(Reading::stream),
        }
    }

    /// Whether its links speak RESP2.
    pub(crate) fn is_resp2(&self) -> bool {
        self.protocol == Protocol::Resp2
    }

    /// A link is made, to a server that says that it is a master, or not made.
    pub(crate) fn on_connected(&mut self, which: Which, stream: Option<StreamId>, is_master: bool, now: Instant) {
        if !which.wants_master() {
            return self.on_log_connected(which, stream);
        }
        let Self { node, subscriber, publisher, .. } = self;
        let mut role = RoleWatch::new(self.protocol, now);
        let name = if is_master { "master" } else { "replica" };
        let fields = ["role", name].map(|field| Value::SimpleString(field.to_owned()));
        let rank = role.on_answer(now, Ok::<_, RedisError>(Value::Array(fields.to_vec()))).expect("an answer came");
        let error = match stream {
            Some(_) if !rank.is_wrong() => {
                let greeting = Greeting { protocol: self.protocol, address: "redis:1".to_owned(), role, master: None };
                let end = End { stream, ..End::default() };
                if which == Which::Subscriber {
                    subscriber.on_connected(node, greeting, now);
                    self.subscriber_stream = end;
                } else {
                    publisher.on_connected(node, greeting, now);
                    (self.publisher_stream, self.awaited) = (end, 0);
                }
                return;
            }
            Some(_) => LinkError::NoMaster("redis:1".to_owned(), rank.fault()),
            None => LinkError::Closed,
        };
        if which == Which::Subscriber {
            subscriber.on_not_connected(node, &error, now);
        } else {
            publisher.on_not_connected(node, &error, now);
        }
    }

    /// When it has something to do at the latest.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        // While a stream is continued, the other log is not looked at.
        let logs = self.cut.as_ref().or(self.back.as_ref()).map(Reading::until);
        self.subscriber.next_timeout(&self.node).into_iter().chain(self.publisher.next_timeout()).chain(logs).min()
    }

    /// Takes the next step, and gives it to `take`. False when there is nothing more to do at the moment.
    pub(crate) fn step(&mut self, now: Instant, take: impl FnOnce(Step<'_>)) -> bool {
        if let Some(event) = self.node.events.pop_front() {
            take(Step::Event(Event::Report(event)));
            return true;
        }
        if let Some((channel, payload)) = self.subscriber.next(&mut self.node, now) {
            self.is_flowing = true;
            let (channel, payload) = self.subscriber.publication(&channel, &payload).expect("it was just read");
            take(Step::Event(Event::Publication { channel, payload }));
            return true;
        }
        if !self.node.events.is_empty() {
            return true;
        }
        self.subscriber.step(&mut self.node, now);
        if self.step_ear(now) {
            return true;
        }
        if !self.subscriber.is_up()
            && let End { stream: Some(stream), arrived, .. } = std::mem::take(&mut self.subscriber_stream)
        {
            take(Step::Drop(stream, arrived));
            return true;
        }
        if self.subscriber.wants_link(now) {
            take(Step::Connect(Which::Subscriber));
            return true;
        }
        let pipeline = self.publisher.step(&mut self.node, now);
        self.send(pipeline);
        if self.step_mouth(now) {
            return true;
        }
        self.publisher.judge_deadline(&mut self.node, now);
        if !self.publisher.is_up()
            && let End { stream: Some(stream), arrived, .. } = std::mem::take(&mut self.publisher_stream)
        {
            take(Step::Drop(stream, arrived));
            return true;
        }
        if self.publisher.wants_link(now) {
            take(Step::Connect(Which::Publisher));
            return true;
        }
        match self.step_logs(now) {
            LogStep::None => {}
            LogStep::Made => return true,
            LogStep::Connect(which) => {
                take(Step::Connect(which));
                return true;
            }
            LogStep::Drop(stream) => {
                take(Step::Drop(stream, Vec::new()));
                return true;
            }
        }
        if self.node.events.is_empty() && std::mem::take(&mut self.is_flowing) {
            take(Step::Event(Event::Paused));
            return true;
        }
        !self.node.events.is_empty()
    }

    /// Moves bytes of the subscribing link.
    fn step_ear(&mut self, now: Instant) -> bool {
        let Self { node, subscriber, subscriber_stream, .. } = self;
        if let Some(out) = subscriber.outgoing() {
            subscriber_stream.out.append(out);
        }
        if !subscriber.wants_bytes() {
            return false;
        }
        if !subscriber_stream.arrived.is_empty() {
            let room = subscriber.room();
            let len = room.len().min(subscriber_stream.arrived.len());
            room[..len].copy_from_slice(&subscriber_stream.arrived[..len]);
            subscriber_stream.arrived.drain(..len);
            subscriber.on_bytes(node, len, now);
            return true;
        }
        if std::mem::take(&mut subscriber_stream.is_ended) {
            subscriber.fail(node, &LinkError::Closed, now);
            return true;
        }
        false
    }

    /// Takes answers of the publishing link.
    fn step_mouth(&mut self, now: Instant) -> bool {
        let Self { node, publisher, publisher_stream, awaited, .. } = self;
        if !publisher.is_up() {
            return false;
        }
        if *awaited > 0
            && let Some(answers) = take_answers(&mut publisher_stream.arrived, *awaited)
        {
            *awaited = 0;
            publisher.on_answers(node, Ok(answers), now);
            return true;
        }
        if std::mem::take(&mut publisher_stream.is_ended) {
            publisher.fail(node, &LinkError::Closed, now);
            return true;
        }
        false
    }

    fn send(&mut self, pipeline: Option<Pipeline>) {
        if let Some(pipeline) = pipeline {
            self.awaited = pipeline.cmd_iter().count();
            self.publisher_stream.out.extend(pipeline.get_packed_pipeline());
        }
    }
}

/// Takes so many answers, when all have arrived.
fn take_answers(arrived: &mut Vec<u8>, count: usize) -> Option<Vec<Value>> {
    let (mut at, mut answers) = (0, Vec::new());
    for _ in 0..count {
        let len = reply_len(&arrived[at..]).expect("the model writes RESP")?;
        answers.push(redis::parse_redis_value(&arrived[at..at + len]).expect("the model writes RESP"));
        at += len;
    }
    arrived.drain(..at);
    Some(answers)
}
