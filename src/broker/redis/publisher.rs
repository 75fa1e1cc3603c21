//! A worker's publishing link to one node, as a state machine: answers and time go in; commands and events come out.
//! Messages leave in order, all waiting ones in one pipeline.
//!
//! At most once: a message that is not answered when the link breaks is reported as unknown and never sent again. While
//! the worker's subscriptions are lost, nothing is published, so that senders receive their own messages. Then the
//! other workers get some time to subscribe again, so that a restart of Redis loses no message between workers. May not
//! enter: sockets, tasks, the clock.

use std::collections::VecDeque;
use std::time::Duration;

use redis::{Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::backoff::{Backoff, Down};
use super::error::LinkError;
use super::milestone;
use super::node_state::{Greeting, NodeState};
use super::publishing_link::{Doubt, PublishingLink, Question, Work, give_back};
use super::transport::HostPort;
use crate::broker::event::Report;
use crate::clock::Deadline;
use crate::message::ClientMessage;

/// The most bytes of one pipeline, channel names included. Each worker may get as many back. Chosen: far below Redis'
/// limits for the query buffer and for a subscriber's output, and above what arrives in a round trip.
const BATCH_BYTES: usize = 256 << 10;

/// The time between two PINGs where Redis allows neither probes nor questions for the role. Redis' setting `timeout`
/// closes an idle link, and a dead link should be found before the next message.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A publishing link.
#[derive(Debug)]
pub(crate) struct Publisher {
    state: LinkState,
    backoff: Backoff,
    /// Whether the outbox may have messages for which the worker was not asked.
    has_messages: bool,
    /// How many batches of messages were sent.
    batches: u64,
    /// The messages that the last link left in doubt, and the master that the Sentinels had named.
    left: (Doubt, Option<HostPort>),
    /// When the next step is due, unless an event comes first.
    wake_at: Option<Instant>,
}

/// Down → Up, and back when the link fails; from both to Closed.
#[derive(Debug)]
enum LinkState {
    Down(Down),
    Up(Box<PublishingLink>),
    /// No link is made again.
    Closed,
}

impl Publisher {
    /// A publisher whose link is due at once.
    pub(crate) fn new(max_reconnect_delay: Duration, now: Instant) -> Self {
        let backoff = Backoff::new(max_reconnect_delay);
        let state = LinkState::Down(Down::Waiting { until: now });
        Self { state, backoff, has_messages: false, batches: 0, left: Default::default(), wake_at: None }
    }

    /// Messages wait in the outbox.
    pub(crate) fn on_messages_wait(&mut self) {
        self.has_messages = true;
    }

    /// Whether a link is due. The caller makes the link, and reports the result.
    pub(crate) fn wants_link(&mut self, now: Instant) -> bool {
        if let LinkState::Down(down) = &mut self.state { down.begin(now) } else { false }
    }

    pub(crate) fn on_not_connected(&mut self, node: &mut NodeState, error: &LinkError, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Down(Down::Connecting)));
        node.health.attempt_failed(error);
        if matches!(error, LinkError::NoMaster(..)) {
            self.take_left().tell(node);
        }
        self.state = LinkState::Down(self.backoff.pause(now));
    }

    pub(crate) fn on_connected(&mut self, node: &mut NodeState, greeting: Greeting, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Down(Down::Connecting)));
        node.health.link_is_up();
        self.backoff.reset();
        let is_elsewhere = self.left.1 != greeting.master;
        let left = self.take_left();
        if is_elsewhere {
            left.tell(node);
        }
        if !greeting.role.is_told() {
            node.health.role_is_unknown();
        }
        node.milestones.on_connected();
        if !node.terms.may_replay {
            node.milestones.hide_log();
        }
        self.state = LinkState::Up(Box::new(PublishingLink::new(node, greeting, now)));
        self.has_messages = true;
    }

    fn take_left(&mut self) -> Doubt {
        std::mem::take(&mut self.left).0
    }

    /// Whether there is a link.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up(_))
    }

    /// Makes no link again, unless messages are under way.
    pub(crate) fn close(&mut self) {
        if !self.has_under_way() {
            self.state = LinkState::Closed;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, LinkState::Closed)
    }

    /// Makes no link again; returns the messages that Redis has not answered for.
    pub(crate) fn abandon(&mut self) -> VecDeque<ClientMessage> {
        match std::mem::replace(&mut self.state, LinkState::Closed) {
            LinkState::Up(mut link) => link.take_under_way(),
            LinkState::Down(_) | LinkState::Closed => VecDeque::new(),
        }
    }

    /// The number of the batch of messages that is under way, if one is.
    pub(crate) fn batch(&self) -> Option<u64> {
        self.has_under_way().then_some(self.batches)
    }

    fn has_under_way(&self) -> bool {
        self.under_way().next().is_some()
    }

    /// The messages that Redis has not answered for.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = &ClientMessage> {
        let link = match &self.state {
            LinkState::Up(link) => Some(link),
            LinkState::Down(_) | LinkState::Closed => None,
        };
        link.and_then(|link| link.under_way()).into_iter().flatten()
    }

    /// When [`Publisher::step`] or [`Publisher::judge_deadline`] is due at the latest.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match &self.state {
            LinkState::Down(down) => down.next_at(),
            LinkState::Up(link) => match &link.work {
                Work::UnderWay { deadline, .. } => Some(deadline.at()),
                Work::Asked => None,
                Work::Idle => self.wake_at,
            },
            LinkState::Closed => None,
        }
    }

    /// Whether commands are sent whose answers have not been read.
    pub(crate) fn awaits_answers(&self) -> bool {
        matches!(&self.state, LinkState::Up(link) if matches!(link.work, Work::UnderWay { .. }))
    }

    /// Ends a link whose answers are not there in time. Before, what has arrived must be read
    /// ([`Publisher::on_answers`]).
    pub(crate) fn judge_deadline(&mut self, node: &mut NodeState, now: Instant) {
        if let LinkState::Up(link) = &mut self.state
            && let Work::UnderWay { deadline, .. } = &mut link.work
            && deadline.has_passed(now)
        {
            let silent = LinkError::Silent("Redis".to_owned(), node.terms.response_timeout);
            self.fail(node, &silent, now);
        }
    }

    /// The commands to send now: what is due, or nothing while an answer is awaited.
    pub(crate) fn step(&mut self, node: &mut NodeState, now: Instant) -> Option<Pipeline> {
        let LinkState::Up(link) = &mut self.state else { return None };
        if !matches!(link.work, Work::Idle) {
            return None;
        }
        // Asked even while the subscriber is down, so that messages in doubt do not wait for the subscriber.
        if link.role.is_due(now) {
            let mut pipeline = Pipeline::new();
            pipeline.add_command(link.role.question());
            return Some(self.send(node, Question::Role, pipeline, now));
        }
        let role_at = link.role.next_at();
        if let Some(wait) = link.wait(node, now) {
            self.wake_at = wait.into_iter().chain(role_at).min();
            return None;
        }
        if node.subscriber_at != link.master {
            self.fail(node, &LinkError::Elsewhere, now);
            return None;
        }
        self.next_command(node, role_at, now)
    }

    /// The next command of a link that may publish.
    fn next_command(&mut self, node: &mut NodeState, role_at: Option<Instant>, now: Instant) -> Option<Pipeline> {
        let LinkState::Up(link) = &mut self.state else { return None };
        let mut pipeline = Pipeline::new();
        if std::mem::take(&mut node.is_marker_due)
            && let Some(marker) = &node.marker
        {
            pipeline.cmd("PUBLISH").arg(&*marker.channel).arg(marker.payload());
            return Some(self.send(node, Question::Marker, pipeline, now));
        }
        if node.proof_due_at().is_some_and(|at| at <= now) {
            let question = ask_for_proof(node, &mut pipeline, now);
            return Some(self.send(node, question, pipeline, now));
        }
        if std::mem::take(&mut self.has_messages) {
            link.work = Work::Asked;
            node.events.push_back(Report::Room { node: node.id, max_bytes: BATCH_BYTES });
            return None;
        }
        let next = node.proof_due_at().into_iter().chain(role_at).min();
        let ping_at = link.idle_since + PING_INTERVAL;
        if next.is_none() && ping_at <= now {
            pipeline.cmd("PING");
            return Some(self.send(node, Question::Ping, pipeline, now));
        }
        self.wake_at = Some(next.unwrap_or(ping_at));
        None
    }

    /// The worker's messages for this node in their order, or none. Returns the commands that publish them.
    pub(crate) fn on_messages(
        &mut self,
        node: &mut NodeState,
        messages: Vec<ClientMessage>,
        now: Instant,
    ) -> Option<Pipeline> {
        let LinkState::Up(link) = &mut self.state else {
            give_back(node, messages);
            return None;
        };
        if !matches!(link.work, Work::Asked) {
            debug_assert!(messages.is_empty(), "the worker was not asked for messages");
            give_back(node, messages);
            return None;
        }
        link.work = Work::Idle;
        if messages.is_empty() {
            return None;
        }
        let mut pipeline = Pipeline::with_capacity(messages.len());
        for message in &messages {
            let name = if node.placement.is_sharded(&message.channel) { "SPUBLISH" } else { "PUBLISH" };
            pipeline.cmd(name).arg(&*message.channel).arg(&*message.payload);
        }
        self.batches += 1;
        Some(self.send(node, Question::Messages(messages.into()), pipeline, now))
    }

    fn send(&mut self, node: &NodeState, question: Question, pipeline: Pipeline, now: Instant) -> Pipeline {
        if let LinkState::Up(link) = &mut self.state {
            let deadline = Deadline::after(node.terms.response_timeout, now);
            link.work = Work::UnderWay { question, sent: now, deadline };
        }
        pipeline
    }

    /// The answers to the last commands, one for each.
    pub(crate) fn on_answers(&mut self, node: &mut NodeState, answers: RedisResult<Vec<Value>>, now: Instant) {
        let LinkState::Up(link) = &mut self.state else { return };
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return self.fail(node, &LinkError::Ended(error), now),
        };
        let Work::UnderWay { question, sent, .. } = std::mem::replace(&mut link.work, Work::Idle) else {
            debug_assert!(false, "answers without a question");
            return;
        };
        link.idle_since = now;
        link.paused_until = None;
        let done = match question {
            Question::Messages(messages) => {
                link.on_published(node, messages, answers, now);
                self.has_messages = true;
                Ok(())
            }
            question => {
                let answer = answers.into_iter().next().unwrap_or(Value::Nil).extract_error();
                link.on_answer(node, &question, answer, sent, now)
            }
        };
        if let Err(error) = done {
            self.fail(node, &error, now);
        }
    }

    /// The link is lost. Another one is due after a pause.
    pub(crate) fn fail(&mut self, node: &mut NodeState, error: &LinkError, now: Instant) {
        let LinkState::Up(link) = &mut self.state else { return };
        self.left = (link.end(node, error), link.master.take());
        node.health.link_is_lost(error);
        self.state = LinkState::Down(self.backoff.pause(now));
    }
}

/// Publishes a milestone, or asks for the log that it names first; without milestones, publishes the probe's next number.
fn ask_for_proof(node: &mut NodeState, pipeline: &mut Pipeline, now: Instant) -> Question {
    if !node.milestones.are_on() {
        let number = node.probe.next(None, now);
        let name = if node.placement.has_sharded() { "SPUBLISH" } else { "PUBLISH" };
        pipeline.cmd(name).arg(&**node.probe.channel()).arg(node.probe.payload(number));
        return Question::Probe(number);
    }
    let Some(milestone) = node.milestones.next(now) else {
        pipeline.cmd("INFO").arg("replication");
        return Question::Log;
    };
    pipeline.cmd("PUBLISH").arg(milestone::CHANNEL).arg(milestone.to_string());
    Question::Probe(node.probe.next(Some(milestone.id), now))
}

#[cfg(test)]
mod tests;
