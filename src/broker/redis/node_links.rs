//! The two links of a worker to one node, with their sockets: makes streams for the machines (`subscriber.rs`,
//! `publisher.rs`), and moves bytes and time between them. `publisher_stream.rs` has the publisher's stream. May not
//! enter: what bytes mean, other nodes (`redis_broker.rs`).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::catch_up::CatchUp;
use super::connect::{Greeted, Purpose};
use super::error::LinkError;
use super::known_node::KnownNode;
use super::log_reading::LogReading;
use super::node_state::NodeState;
use super::publisher::Publisher;
use super::publisher_stream::PublisherStream;
use super::read_buffer::Part;
use super::subscriber::Subscriber;
use super::transport::{BoxFuture, Progress, Transport};
use crate::broker::event::Report;
use crate::message::ClientMessage;
use crate::placement::{Node, Placement};
use crate::position::Milestone;

/// The most reads of a link before the worker's other tasks have their turn.
const READS_PER_TURN: usize = 8;

/// A worker's links to one node.
pub(super) struct NodeLinks {
    pub(super) known_node: KnownNode,
    pub(super) node: NodeState,
    pub(super) subscriber: Subscriber,
    pub(super) publisher: Publisher,
    pub(super) life: Life,
    subscriber_stream: SubscriberStream,
    publisher_stream: PublisherStream,
    logs: LogReading,
    /// Resolves when all workers have their subscriptions. Set while the publisher may wait for them.
    all_complete: Option<BoxFuture<()>>,
    /// Reads in this turn.
    reads: usize,
    /// Whether publications were returned since the last pause.
    is_flowing: bool,
}

/// Whether a node keeps its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Kept,
    /// The node has left the cluster. Its messages under way are still answered for.
    Leaving,
    /// No link is left: another node may have its place.
    Gone,
}

/// What a poll of the links returns to the worker.
#[derive(Debug)]
pub(super) enum Step {
    /// Channel and payload, as parts of the read buffer.
    Publication(Part, Part),
    Report(Report),
    Paused,
}

/// The subscriber's stream.
enum SubscriberStream {
    None,
    Connecting(BoxFuture<Result<Greeted, LinkError>>),
    Up {
        transport: Box<dyn Transport>,
        /// Resolves when the Sentinels name another master.
        moved: BoxFuture<LinkError>,
        is_flushed: bool,
    },
}

impl NodeLinks {
    /// Links to a node, none of them made yet.
    pub(super) fn new(node: Node, known_node: KnownNode, placement: Placement, now: Instant) -> Self {
        let node = NodeState::new(node, known_node.settings.terms(), known_node.health.clone(), placement, now);
        let delay = node.terms.max_reconnect_delay;
        let logs = LogReading::new(&known_node.settings, known_node.is_log_to_keep());
        Self {
            known_node,
            node,
            subscriber: Subscriber::new(delay, now),
            publisher: Publisher::new(delay, now),
            life: Life::Kept,
            subscriber_stream: SubscriberStream::None,
            publisher_stream: PublisherStream::None,
            logs,
            all_complete: None,
            reads: 0,
            is_flowing: false,
        }
    }

    /// Whether links are made and kept.
    pub(super) fn is_in_use(&self) -> bool {
        self.life == Life::Kept
    }

    /// The node has left the cluster.
    pub(super) fn leave(&mut self) {
        self.life = Life::Leaving;
        self.subscriber.close();
        self.subscriber_stream = SubscriberStream::None;
    }

    /// The worker's messages for this node.
    pub(super) fn publish(&mut self, messages: Vec<ClientMessage>, now: Instant) {
        if let Some(pipeline) = self.publisher.on_messages(&mut self.node, messages, now) {
            self.publisher_stream.send(pipeline);
        }
    }

    pub(super) fn is_reachable(&self, now: Instant) -> bool {
        self.node.is_reachable(self.subscriber.unanswered_since(), now)
    }

    /// When the links have something to do at the latest.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.subscriber.next_timeout(&self.node).into_iter().chain(self.publisher.next_timeout()).min()
    }

    /// The worker's other tasks have had their turn.
    pub(super) fn begin_turn(&mut self) {
        self.reads = 0;
    }

    /// The bytes of the publication that was returned last.
    pub(super) fn publication(&self, channel: &Part, payload: &Part) -> Option<(&[u8], &[u8])> {
        self.subscriber.publication(channel, payload)
    }

    /// The next publication of what was read, unless events come first.
    pub(super) fn next_publication(&mut self, now: Instant) -> Option<(Part, Part)> {
        let publication = self.subscriber.next(&mut self.node, now);
        self.is_flowing |= publication.is_some();
        publication
    }

    /// The next publication or report for the worker.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: &mut Instant) -> Poll<Step> {
        loop {
            if let Some(report) = self.node.events.pop_front() {
                return Poll::Ready(Step::Report(report));
            }
            if let Some((channel, payload)) = self.next_publication(*now) {
                return Poll::Ready(Step::Publication(channel, payload));
            }
            if !self.node.events.is_empty() {
                continue;
            }
            *now = Instant::now();
            self.subscriber.step(&mut self.node, *now);
            let is_idle = self.poll_subscriber(cx, *now) == Progress::None
                && self.poll_publisher(cx, *now) == Progress::None
                && self.poll_logs(cx, *now) == Progress::None;
            if is_idle && self.node.events.is_empty() {
                break;
            }
        }
        if std::mem::take(&mut self.is_flowing) {
            return Poll::Ready(Step::Paused);
        }
        if self.reads >= READS_PER_TURN {
            // Wakes this task after the runtime has looked at all other sockets and timers. A wake by the task itself
            // would make a LocalSet poll the task 61 times before.
            let yielded = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            debug_assert!(yielded.is_pending(), "the runtime wakes the task later");
        }
        Poll::Pending
    }

    /// Continues the subscriber's stream from the node's log.
    fn poll_logs(&mut self, cx: &mut Context<'_>, now: Instant) -> Progress {
        self.logs.poll_upkeep(cx);
        if let Some(CatchUp::Reading { from, until }) = self.node.catch_up {
            let read = self.logs.poll_cut(&self.known_node.settings, from, until, cx);
            let Poll::Ready(read) = read else { return Progress::None };
            self.node.caught_up(read, until, now);
            self.subscriber.caught_up(&mut self.node, now);
            return Progress::Made;
        }
        self.logs.forget_cut();
        let Poll::Ready((from, until, read)) = self.logs.poll_back(cx) else { return Progress::None };
        if let Err(error) = &read {
            let server = &self.node.terms.server;
            tracing::debug!(
                server,
                %error,
                "the replication log of {server} cannot be read for clients that come back: {error}"
            );
        }
        let logged = read.ok().map(|logged| (logged, until));
        self.node.events.push_back(Report::LogRead { node: self.node.id, from, logged });
        Progress::Made
    }

    /// Reads the node's log from the milestone that a client has shown.
    pub(super) fn read_log(&mut self, from: Milestone) {
        let until = self.node.milestones.last.filter(|_| self.node.terms.may_replay);
        if !until.is_some_and(|until| self.logs.read_back(&self.known_node.settings, from, until)) {
            self.node.events.push_back(Report::LogRead { node: self.node.id, from, logged: None });
        }
    }

    fn poll_subscriber(&mut self, cx: &mut Context<'_>, now: Instant) -> Progress {
        let Self { subscriber, node, subscriber_stream, .. } = self;
        if !subscriber.is_up() && matches!(subscriber_stream, SubscriberStream::Up { .. }) {
            *subscriber_stream = SubscriberStream::None;
        }
        if subscriber.wants_link(now) {
            *subscriber_stream = SubscriberStream::Connecting(connecting(&self.known_node, Purpose::Subscriber));
        }
        match subscriber_stream {
            SubscriberStream::None => Progress::None,
            SubscriberStream::Connecting(connecting) => {
                let Poll::Ready(made) = connecting.as_mut().poll(cx) else { return Progress::None };
                match made {
                    Ok(Greeted { transport, greeting }) => {
                        let (settings, master) = (self.known_node.settings.clone(), greeting.master.clone());
                        let moved = Box::pin(async move { settings.is_moved(master.as_ref()).await });
                        *subscriber_stream = SubscriberStream::Up { transport, moved, is_flushed: true };
                        subscriber.on_connected(node, greeting, now);
                    }
                    Err(error) => {
                        *subscriber_stream = SubscriberStream::None;
                        subscriber.on_not_connected(node, &error, now);
                    }
                }
                Progress::Made
            }
            SubscriberStream::Up { transport, moved, is_flushed } => {
                if let Poll::Ready(error) = moved.as_mut().poll(cx) {
                    subscriber.fail(node, &error, now);
                    return Progress::Made;
                }
                if poll_write(transport, subscriber, is_flushed, cx).is_err() {
                    subscriber.fail(node, &LinkError::Closed, now);
                    return Progress::Made;
                }
                if !subscriber.wants_bytes() || self.reads >= READS_PER_TURN {
                    return Progress::None;
                }
                self.reads += 1;
                let mut room = ReadBuf::new(subscriber.room());
                match Pin::new(transport).poll_read(cx, &mut room) {
                    Poll::Ready(Ok(())) if !room.filled().is_empty() => {
                        let len = room.filled().len();
                        subscriber.on_bytes(node, len, now);
                    }
                    Poll::Ready(_) => subscriber.fail(node, &LinkError::Closed, now),
                    Poll::Pending => {
                        self.reads -= 1;
                        return Progress::None;
                    }
                }
                Progress::Made
            }
        }
    }

    fn poll_publisher(&mut self, cx: &mut Context<'_>, now: Instant) -> Progress {
        if self.life == Life::Leaving {
            self.publisher.close();
            if self.publisher.is_closed() {
                self.life = Life::Gone;
                self.publisher_stream = PublisherStream::None;
            }
        }
        if !self.publisher.is_up() && matches!(self.publisher_stream, PublisherStream::Up { .. }) {
            self.publisher_stream = PublisherStream::None;
        }
        if self.publisher.wants_link(now) {
            self.publisher_stream = PublisherStream::connect(connecting(&self.known_node, Purpose::Publisher));
        }
        self.poll_all_complete(cx);
        self.publisher_stream.poll(&mut self.publisher, &mut self.node, cx, now)
    }

    /// Wakes this task when all workers have their subscriptions, because the publisher may wait for them.
    fn poll_all_complete(&mut self, cx: &mut Context<'_>) {
        if self.all_complete.is_none() && self.publisher.is_up() && !self.node.health.are_all_complete() {
            let mut incomplete = self.node.health.incomplete();
            self.all_complete = Some(Box::pin(async move {
                // The node's health has the sender, and outlives this future.
                drop(incomplete.wait_for(|incomplete| *incomplete == 0).await);
            }));
        }
        if self.all_complete.as_mut().is_some_and(|all_complete| all_complete.as_mut().poll(cx).is_ready()) {
            self.all_complete = None;
            cx.waker().wake_by_ref();
        }
    }
}

/// A stream to a node.
fn connecting(known_node: &KnownNode, purpose: Purpose) -> BoxFuture<Result<Greeted, LinkError>> {
    let KnownNode { settings, health, .. } = known_node.clone();
    Box::pin(async move { settings.connect(purpose, &|slow| health.attempt_failed(slow)).await })
}

/// Sends the subscriber's commands.
fn poll_write(
    transport: &mut Box<dyn Transport>,
    subscriber: &mut Subscriber,
    is_flushed: &mut bool,
    cx: &mut Context<'_>,
) -> std::io::Result<()> {
    while let Some(out) = subscriber.outgoing() {
        match Pin::new(&mut *transport).poll_write(cx, out)? {
            Poll::Ready(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Poll::Ready(len) => {
                out.drain(..len);
                *is_flushed = false;
            }
            Poll::Pending => return Ok(()),
        }
    }
    if !*is_flushed {
        *is_flushed = Pin::new(&mut *transport).poll_flush(cx)?.is_ready();
    }
    Ok(())
}
