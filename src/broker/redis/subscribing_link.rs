//! The states of a subscribing link, and a link that is up: its stream and the command under way. May not enter: the
//! order of commands (`subscriber.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use redis::{RedisResult, Value};
use tokio::time::Instant;

use super::backoff::Down;
use super::channel_table::Count;
use super::error::LinkError;
use super::link_command::LinkCommand;
use super::node_state::{Greeting, NodeState};
use super::resp::{Protocol, Reader};
use super::role::RoleWatch;
use crate::clock::Deadline;

/// The time between two audits, which also keep a link without channels from being idle. Chosen: an audit has some
/// hundred bytes, and a lost channel is back before its clients give up.
const AUDIT_INTERVAL: Duration = Duration::from_secs(5);

/// The stream of a link, and the command under way.
#[derive(Debug)]
pub(crate) struct SubscribingLink {
    pub(crate) reader: Reader,
    /// Bytes to send.
    pub(crate) out: Vec<u8>,
    pub(crate) role: RoleWatch,
    pub(crate) address: String,
    /// The next commands. The changes that the worker wants follow.
    pub(crate) plan: VecDeque<LinkCommand>,
    pub(crate) under_way: Option<UnderWay>,
    /// When the last command was sent, and when the last answered one was: everything that Redis sent before is read.
    sent_at: Instant,
    pub(crate) proved_until: Instant,
}

/// A command whose answer is awaited.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pub(crate) command: LinkCommand,
    pub(crate) since: Instant,
    deadline: Deadline,
}

/// The audits of a link: comparisons of Redis' number of subscriptions with ours.
#[derive(Debug)]
pub(crate) struct Audits {
    pub(crate) next_at: Instant,
    /// When the last question was sent whose answer proved that the subscriptions are complete.
    pub(crate) complete_at: Instant,
    pub(crate) count: Count,
}

/// Down → Subscribing → Complete ⇄ AtMarker or CatchingUp; from each of these to Down when the link fails, and from all
/// to Closed when the node leaves its cluster.
#[derive(Debug)]
pub(crate) enum LinkState {
    Down(Down),
    /// The link subscribes the probe's channel and all wanted channels.
    Subscribing(Box<SubscribingLink>, Count),
    /// All wanted channels are subscribed; new ones are added, and the link is audited.
    Complete(Box<SubscribingLink>, Audits),
    /// The stream stands still: nothing behind the marker is read, not even an answer.
    AtMarker(Box<SubscribingLink>, Audits),
    /// The stream stands still at a milestone, while the publications missed before it are read from the node's log.
    CatchingUp(Box<SubscribingLink>, Audits),
    /// No link is made.
    Closed,
}

impl LinkState {
    /// A link that was just made.
    pub(crate) fn subscribing(link: SubscribingLink) -> Self {
        Self::Subscribing(Box::new(link), Count::Unknown)
    }

    /// The link, if there is one.
    pub(crate) fn link(&self) -> Option<&SubscribingLink> {
        match self {
            Self::Subscribing(link, _)
            | Self::Complete(link, _)
            | Self::AtMarker(link, _)
            | Self::CatchingUp(link, _) => Some(link),
            Self::Down(_) | Self::Closed => None,
        }
    }

    /// The link, to change.
    pub(crate) fn link_mut(&mut self) -> Option<&mut SubscribingLink> {
        match self {
            Self::Subscribing(link, _)
            | Self::Complete(link, _)
            | Self::AtMarker(link, _)
            | Self::CatchingUp(link, _) => Some(link),
            Self::Down(_) | Self::Closed => None,
        }
    }

    /// All wanted channels are subscribed.
    pub(crate) fn complete(&mut self, now: Instant) {
        self.change(|state| match state {
            Self::Subscribing(link, count) => {
                let audits = Audits::new(count, link.proved_until, now);
                Self::Complete(link, audits)
            }
            other => other,
        });
    }

    /// A marker or a milestone was read at which the stream stops. Only a complete link stops.
    pub(crate) fn stand_still(&mut self, standing: impl FnOnce(Box<SubscribingLink>, Audits) -> Self) {
        self.change(|state| match state {
            Self::Complete(link, audits) => standing(link, audits),
            other => other,
        });
    }

    /// The stream continues behind the marker or the milestone.
    pub(crate) fn resume(&mut self, node: &mut NodeState, now: Instant) {
        self.change(|state| match state {
            Self::AtMarker(mut link, audits) | Self::CatchingUp(mut link, audits) => {
                // The standstill is not the fault of the probe or of Redis.
                node.probe.begin(now);
                link.restart_deadline(node, now);
                Self::Complete(link, audits)
            }
            other => other,
        });
    }

    /// Plans commands before all others.
    pub(crate) fn plan_first(&mut self, commands: impl IntoIterator<Item = LinkCommand>) {
        if let Some(link) = self.link_mut() {
            let rest = std::mem::take(&mut link.plan);
            link.plan = commands.into_iter().chain(rest).collect();
        }
    }

    fn change(&mut self, change: impl FnOnce(Self) -> Self) {
        *self = change(std::mem::replace(self, Self::Closed));
    }

    /// Until when the link, which ends because of `error`, certainly heard everything.
    pub(crate) fn complete_until(&self, node: &NodeState, error: &LinkError) -> Instant {
        match (error, self) {
            // The probe proves nothing about a subscription that Redis has forgotten.
            (LinkError::Fewer(_), Self::Complete(_, audits)) => audits.complete_at,
            _ => {
                // A probe proves nothing about the server's role: a new master may have had publications since that the
                // link did not hear.
                let role = self.link().map(|link| &link.role).filter(|role| role.next_at().is_some());
                let role = role.filter(|role| role.is_told() && !node.terms.is_in_cluster);
                let until = match error {
                    LinkError::Deaf(_) => node.probe.returned_until(),
                    _ => node.probe.complete_until(),
                };
                role.map_or(until, |role| until.min(role.master_at()))
            }
        }
    }

    /// Whether the server's count of subscriptions is used.
    pub(crate) fn count(&self) -> Count {
        match self {
            Self::Subscribing(_, count) => *count,
            Self::Complete(_, audits) | Self::AtMarker(_, audits) | Self::CatchingUp(_, audits) => audits.count,
            Self::Down(_) | Self::Closed => Count::Unknown,
        }
    }

    /// When the link has something to do at the latest.
    pub(crate) fn next_timeout(&self, node: &NodeState) -> Option<Instant> {
        match self {
            Self::Down(down) => down.next_at(),
            Self::Subscribing(link, _) => link.next_timeout([None; 3]),
            Self::Complete(link, audits) => {
                let next = link.next_timeout([Some(audits.next_at), node.retry_at, node.probe.doubt_at()]);
                next.into_iter().chain(node.probe.limit()).min()
            }
            Self::AtMarker(..) | Self::CatchingUp(..) | Self::Closed => None,
        }
    }
}

impl SubscribingLink {
    /// A link whose first commands are `plan`.
    pub(crate) fn new(greeting: Greeting, plan: impl Into<VecDeque<LinkCommand>>, now: Instant) -> Self {
        let Greeting { protocol, address, mut role, .. } = greeting;
        if protocol == Protocol::Resp2 {
            // Over RESP2 a subscriber may not ask: the publisher asks for both links.
            role.end();
        }
        let reader = Reader::new(protocol);
        let (out, plan) = (Vec::new(), plan.into());
        Self { reader, out, role, address, plan, under_way: None, sent_at: now, proved_until: now }
    }

    /// Sends a command; the answer has to come within `response_timeout`.
    pub(crate) fn send(&mut self, node: &mut NodeState, command: LinkCommand, now: Instant) {
        debug_assert!(self.under_way.is_none(), "one command at a time");
        if matches!(command, LinkCommand::Probe) && node.placement.has_sharded() {
            node.probe.rename(|channel| node.placement.node_of(channel) == Some(node.id));
        }
        command.write(node, self.reader.protocol(), &self.role, &mut self.out);
        self.sent_at = now;
        self.keep_under_way(node, command, now);
    }

    /// Keeps a command that awaits further answers; the next one has to come within `response_timeout`.
    pub(crate) fn keep_under_way(&mut self, node: &NodeState, command: LinkCommand, now: Instant) {
        let deadline = Deadline::after(node.terms.response_timeout, now);
        self.under_way = Some(UnderWay { command, since: now, deadline });
    }

    /// Takes the command under way: it is answered.
    pub(crate) fn take_answered(&mut self) -> Option<UnderWay> {
        let answered = self.under_way.take();
        if answered.is_some() {
            self.proved_until = self.sent_at;
        }
        answered
    }

    /// The stream stood still: the command under way has its full time again.
    pub(crate) fn restart_deadline(&mut self, node: &NodeState, now: Instant) {
        if let Some(under_way) = &mut self.under_way {
            under_way.deadline = Deadline::after(node.terms.response_timeout, now);
        }
    }

    /// Leaves a node that is no longer a master.
    pub(crate) fn on_role(
        &mut self,
        node: &mut NodeState,
        sent: Instant,
        answer: RedisResult<Value>,
        now: Instant,
    ) -> Result<(), LinkError> {
        let rank = self.role.on_answer(sent, answer).map_err(LinkError::Ended)?;
        if !self.role.is_told() {
            node.health.role_is_unknown();
        }
        node.on_rank(rank, &self.address, now)
    }

    /// Whether an answer did not come in time.
    pub(crate) fn is_overdue(&mut self, now: Instant) -> bool {
        self.under_way.as_mut().is_some_and(|under_way| under_way.deadline.has_passed(now))
    }

    /// The deadline of the answer, or else the earliest of `due`.
    pub(crate) fn next_timeout(&self, due: [Option<Instant>; 3]) -> Option<Instant> {
        match &self.under_way {
            Some(under_way) => Some(under_way.deadline.at()),
            None => due.into_iter().flatten().chain(self.role.next_at()).min(),
        }
    }
}

impl Audits {
    /// The audits of a link whose channels are all confirmed.
    pub(crate) fn new(count: Count, complete_at: Instant, now: Instant) -> Self {
        Self { next_at: now + AUDIT_INTERVAL, complete_at, count }
    }

    /// Whether an audit is due; if so, the next one is scheduled.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.next_at <= now;
        if is_due {
            self.next_at = now + AUDIT_INTERVAL;
        }
        is_due
    }
}
