//! A publishing link that is up: the commands under way, and the consequences of Redis' answers. May not enter: the
//! order of commands (`publisher.rs`).

use std::collections::{HashSet, VecDeque};

use redis::{RedisResult, Value};
use tokio::time::Instant;

use super::error::{LinkError, is_for_now, is_not_allowed, is_refusal};
use super::node_state::{Greeting, NodeState, RETRY};
use super::role::{Rank, RoleWatch};
use super::transport::HostPort;
use crate::broker::event::Report;
use crate::clock::Deadline;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin, Refusal};

/// The most senders whose messages a server's role can put in doubt. Chosen: far above the senders of one second. The
/// messages of further senders are only counted.
const MAX_DOUBTED: usize = 1 << 16;

/// A link that is up.
#[derive(Debug)]
pub(crate) struct PublishingLink {
    pub(crate) address: String,
    pub(crate) master: Option<HostPort>,
    pub(crate) role: RoleWatch,
    doubt: Doubt,
    pub(crate) work: Work,
    /// Since when no command is under way.
    pub(crate) idle_since: Instant,
    /// Until when messages wait, because Redis refused some for now or the subscriber lacks channels.
    pub(crate) paused_until: Option<Instant>,
}

/// What the link does: one thing at a time.
#[derive(Debug)]
pub(crate) enum Work {
    Idle,
    /// The worker was asked for messages.
    Asked,
    /// A command's answer is awaited.
    UnderWay {
        question: Question,
        sent: Instant,
        deadline: Deadline,
    },
}

/// The commands under way.
#[derive(Debug)]
pub(crate) enum Question {
    /// Whether the server is a master.
    Role,
    Marker,
    /// The state of the replication log, for the next milestone.
    Log,
    /// A number of the probe, which may be published as a milestone.
    Probe(u64),
    Ping,
    /// Each with an answer of its own.
    Messages(VecDeque<ClientMessage>),
}

/// The messages that the server has taken since it last said that it is a master. None if the server does not report
/// its role, and none in a cluster, where the topology decides.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    is_asked: bool,
    messages: u64,
    sessions: HashSet<SessionKey>,
}

impl Doubt {
    fn of(node: &NodeState, role: &RoleWatch) -> Self {
        Self::when(role.is_told() && !node.terms.is_in_cluster)
    }

    fn when(is_asked: bool) -> Self {
        Self { is_asked, ..Self::default() }
    }

    /// Reports the messages as in doubt.
    pub(crate) fn tell(self, node: &mut NodeState) {
        let Self { sessions, messages, .. } = self;
        if messages > 0 {
            node.events.push_back(Report::Doubt { sessions, messages });
        }
    }

    fn add(&mut self, session: SessionKey) {
        if self.is_asked {
            self.messages += 1;
            if self.sessions.len() < MAX_DOUBTED {
                self.sessions.insert(session);
            }
        }
    }
}

impl PublishingLink {
    pub(crate) fn new(node: &NodeState, greeting: Greeting, now: Instant) -> Self {
        let Greeting { address, master, role, .. } = greeting;
        let doubt = Doubt::of(node, &role);
        Self { address, master, role, doubt, work: Work::Idle, idle_since: now, paused_until: None }
    }

    /// The messages that Redis has not answered for.
    pub(crate) fn under_way(&self) -> Option<&VecDeque<ClientMessage>> {
        match &self.work {
            Work::UnderWay { question: Question::Messages(messages), .. } => Some(messages),
            Work::UnderWay { .. } | Work::Asked | Work::Idle => None,
        }
    }

    /// Takes the messages that Redis has not answered for.
    pub(crate) fn take_under_way(&mut self) -> VecDeque<ClientMessage> {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::UnderWay { question: Question::Messages(messages), .. } => messages,
            Work::UnderWay { .. } | Work::Asked | Work::Idle => VecDeque::new(),
        }
    }

    /// The link is lost, and with it the answers under way. If the node is no master, the messages that it took last
    /// are in doubt. Else the next link may find that the node is none: returns the messages that would be in doubt.
    pub(crate) fn end(&mut self, node: &mut NodeState, error: &LinkError) -> Doubt {
        for message in self.take_under_way() {
            self.tell(node, message, Err(NotPublished::Unknown));
        }
        let doubt = std::mem::take(&mut self.doubt);
        if matches!(error, LinkError::NoMaster(..)) {
            // The subscriber's server may be the same one.
            node.is_suspect = true;
            doubt.tell(node);
            return Doubt::default();
        }
        doubt
    }

    /// Whether nothing may be published yet: `Some(None)` until an event, `Some(Some(_))` until a time at the latest.
    pub(crate) fn wait(&mut self, node: &NodeState, now: Instant) -> Option<Option<Instant>> {
        if node.is_incomplete() || node.is_behind_others {
            return Some(None);
        }
        // Twice the longest pause between attempts: a worker that cannot connect must not delay the others for longer.
        let patience = node.subscribed_at + 2 * node.terms.max_reconnect_delay;
        if now < patience && !node.health.are_all_complete() {
            return Some(Some(patience));
        }
        if node.lost_since.is_some() && node.catch_up.is_none() {
            // The link is up, and the node refuses channels for now: messages on other channels do not wait long.
            self.paused_until = self.paused_until.or(Some(now + RETRY));
        }
        self.paused_until.filter(|until| now < *until).map(Some)
    }

    pub(crate) fn on_answer(
        &mut self,
        node: &mut NodeState,
        question: &Question,
        answer: RedisResult<Value>,
        sent: Instant,
        now: Instant,
    ) -> Result<(), LinkError> {
        match (question, answer) {
            (Question::Role, answer) => {
                let rank = self.role.on_answer(sent, answer).map_err(LinkError::Ended)?;
                node.on_rank(rank, &self.address, now)?;
                if rank == Rank::Master || !self.role.is_told() {
                    self.doubt = Doubt::of(node, &self.role);
                }
                if !self.role.is_told() {
                    node.health.role_is_unknown();
                }
            }
            (Question::Probe(number), Ok(Value::Int(receivers))) => node.probe.on_published(*number, receivers, now),
            (Question::Probe(_), Ok(other)) => {
                tracing::debug!(?other, "Redis answers PUBLISH with {other:?} instead of a number");
            }
            (Question::Probe(_), Err(error)) if is_not_allowed(&error) => node.refuse_probe(&error),
            (Question::Log, Ok(info)) => {
                let info = redis::from_redis_value::<String>(info).unwrap_or_default();
                node.milestones.on_info(&info, now);
            }
            (Question::Log, Err(error)) if is_not_allowed(&error) => node.milestones.hide_log(),
            (Question::Log, Err(error)) if is_refusal(&error) => node.milestones.on_info("", now),
            // A number that is not published proves nothing about the subscriber. When a slot has moved, Redis tells
            // the subscriber as well.
            (Question::Probe(_), Err(error)) if is_refusal(&error) => {
                tracing::debug!(%error, "Redis refuses the probe: {error}");
            }
            // No stream reaches a marker that is not published, so the hand-over fails at its deadline.
            (Question::Marker, Err(error)) if is_refusal(&error) => {
                tracing::debug!(%error, "Redis refuses the hand-over's marker: {error}");
            }
            (Question::Marker | Question::Ping | Question::Messages(_), Ok(_)) => {}
            (_, Err(error)) => return Err(LinkError::Ended(error)),
        }
        Ok(())
    }

    /// The answers to messages.
    pub(crate) fn on_published(
        &mut self,
        node: &mut NodeState,
        messages: VecDeque<ClientMessage>,
        mut answers: Vec<Value>,
        now: Instant,
    ) {
        debug_assert_eq!(messages.len(), answers.len(), "an answer for each");
        answers.resize(messages.len(), Value::Nil);
        let overtaken = overtaken(&messages, &answers);
        let mut returned = Vec::new();
        for ((message, answer), is_overtaken) in messages.into_iter().zip(answers).zip(overtaken) {
            match answer {
                Value::ServerError(error) if is_for_now(Some(error.code())) && !is_overtaken => returned.push(message),
                Value::ServerError(error) => {
                    let refusal = Refusal::new(error.code(), error.details());
                    self.tell(node, message, Err(NotPublished::Refused(refusal)));
                }
                _ => self.tell(node, message, Ok(())),
            }
        }
        if !returned.is_empty() {
            give_back(node, returned);
            node.contradicted(now);
            self.paused_until = Some(now + RETRY);
        }
    }

    fn tell(&mut self, node: &mut NodeState, message: ClientMessage, outcome: Result<(), NotPublished>) {
        let bytes = message.cost();
        if let (Ok(()), Origin::Session(key)) = (&outcome, &message.origin) {
            self.doubt.add(*key);
        }
        node.events.push_back(Report::Published { origin: message.origin, bytes, outcome });
    }
}

/// Messages that were certainly not published go back to the outbox.
pub(crate) fn give_back(node: &mut NodeState, messages: Vec<ClientMessage>) {
    if !messages.is_empty() {
        node.events.push_back(Report::Returned(messages));
    }
}

/// Of each message, whether a later message on its channel was published. Such a message is not tried again, because it
/// would come after the later one.
fn overtaken(messages: &VecDeque<ClientMessage>, answers: &[Value]) -> Vec<bool> {
    let is_taken = |answer: &Value| !matches!(answer, Value::ServerError(_));
    if answers.iter().all(is_taken) {
        return vec![false; answers.len()];
    }
    let mut published = HashSet::new();
    let mut overtaken: Vec<_> = messages
        .iter()
        .zip(answers)
        .rev()
        .map(|(message, answer)| {
            if is_taken(answer) {
                published.insert(&message.channel);
            }
            published.contains(&message.channel)
        })
        .collect();
    overtaken.reverse();
    overtaken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_bounded_and_none_is_kept_where_the_role_is_not_reported() {
        let (mut asked, mut not_asked) = (Doubt::when(true), Doubt::when(false));
        let count = u32::try_from(MAX_DOUBTED).unwrap() + 10;
        for index in 0..count {
            asked.add(SessionKey { index, generation: index });
            not_asked.add(SessionKey { index, generation: index });
        }
        assert_eq!((asked.sessions.len(), asked.messages), (MAX_DOUBTED, u64::from(count)));
        assert_eq!((not_asked.sessions.len(), not_asked.messages), (0, 0));
    }
}
