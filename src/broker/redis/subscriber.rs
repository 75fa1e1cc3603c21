//! A worker's subscribing link to one node, as a state machine: time and bytes go in; bytes, publications and events
//! come out. A lost link is made again, with every wanted channel.
//!
//! A channel is subscribed when Redis' confirmation is read in the stream of publications. `node_links.rs` makes the
//! stream and moves its bytes; `link_command.rs` has the commands, `reply.rs` the consequences of answers. May not
//! enter: sockets, tasks, the clock.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::audit;
use super::backoff::{Backoff, Down};
use super::error::LinkError;
use super::link_command::{Counting, LinkCommand};
use super::marker;
use super::node_state::{Greeting, NodeState, PublicationKind};
use super::pending_changes::{Change, PendingChanges, subscriptions};
use super::read_buffer::Part;
use super::reply::{self, Consequence};
use super::resp::Item;
use super::subscribing_link::{LinkState, SubscribingLink, UnderWay};
use crate::broker::event::Report;
use crate::channel::Channel;

/// A subscribing link.
#[derive(Debug)]
pub(crate) struct Subscriber {
    state: LinkState,
    commands: PendingChanges,
    backoff: Backoff,
    /// Whether publications were read that the probe does not know of yet.
    has_heard: bool,
}

impl Subscriber {
    /// A subscriber whose link is due at once.
    pub(crate) fn new(max_reconnect_delay: Duration, now: Instant) -> Self {
        let (state, backoff) = (LinkState::Down(Down::Waiting { until: now }), Backoff::new(max_reconnect_delay));
        Self { state, commands: PendingChanges::default(), backoff, has_heard: false }
    }

    /// Subscribes a channel.
    pub(crate) fn subscribe(&mut self, node: &mut NodeState, channel: Channel) {
        node.channels.ask(channel.clone());
        self.command(Change::Subscribe(channel));
    }

    /// Unsubscribes a channel.
    pub(crate) fn unsubscribe(&mut self, node: &mut NodeState, channel: Channel) {
        node.channels.forget(&channel);
        self.command(Change::Unsubscribe(channel));
    }

    /// Subscribes the marker's channel, so that the stream stops at the marker.
    pub(crate) fn set_marker(&mut self) {
        self.command(Change::Marker);
    }

    fn command(&mut self, command: Change) {
        // Bounded: without a link, nothing is unsubscribed, and handshakes are soon refused. The next link starts over
        // with the channels that are wanted then.
        if !matches!(self.state, LinkState::Closed) {
            self.commands.push(command);
        }
    }

    /// Continues behind the marker.
    pub(crate) fn release(&mut self, node: &mut NodeState, now: Instant) {
        node.is_marker_due = false;
        let Some(marker) = node.marker.take() else { return };
        if marker.progress != marker::Progress::Lost {
            self.command(Change::Unmark(marker.channel));
        }
        if self.is_at_marker() {
            self.state.resume(node, now);
        }
    }

    /// Makes no link again.
    pub(crate) fn close(&mut self) {
        self.state = LinkState::Closed;
        self.commands.clear();
    }

    /// Whether a link is due. The caller makes the link, and reports the result.
    pub(crate) fn wants_link(&mut self, now: Instant) -> bool {
        if let LinkState::Down(down) = &mut self.state { down.begin(now) } else { false }
    }

    pub(crate) fn on_not_connected(&mut self, node: &NodeState, error: &LinkError, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Down(Down::Connecting)));
        node.health.attempt_failed(error);
        self.state = LinkState::Down(self.backoff.pause(now));
    }

    pub(crate) fn on_connected(&mut self, node: &mut NodeState, greeting: Greeting, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Down(Down::Connecting)));
        node.subscriber_at.clone_from(&greeting.master);
        node.milestones.on_link();
        if !greeting.role.is_told() {
            node.health.role_is_unknown();
        }
        let plan = [LinkCommand::Probe, LinkCommand::Unconfirmed, LinkCommand::Count(Counting::First)];
        self.state = LinkState::subscribing(SubscribingLink::new(greeting, plan, now));
        self.has_heard = false;
        self.advance(node, now);
    }

    /// The node's log was read: the stream continues.
    pub(crate) fn caught_up(&mut self, node: &mut NodeState, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::CatchingUp(..)));
        self.state.resume(node, now);
    }

    /// Whether there is a link.
    pub(crate) fn is_up(&self) -> bool {
        self.state.link().is_some()
    }

    /// Whether bytes are to be read; not while the stream stands still.
    pub(crate) fn wants_bytes(&self) -> bool {
        matches!(self.state, LinkState::Subscribing(..) | LinkState::Complete(..))
    }

    pub(crate) fn is_at_marker(&self) -> bool {
        matches!(self.state, LinkState::AtMarker(..))
    }

    /// Since when an answer is awaited.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        Some(self.state.link()?.under_way.as_ref()?.since)
    }

    /// Bytes to send. The caller removes the bytes that are sent.
    pub(crate) fn outgoing(&mut self) -> Option<&mut Vec<u8>> {
        self.link_mut().map(|link| &mut link.out).filter(|out| !out.is_empty())
    }

    /// Where to put the next bytes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.link_mut().map(|link| link.reader.room()).unwrap_or_default()
    }

    /// `len` bytes were read.
    pub(crate) fn on_bytes(&mut self, node: &mut NodeState, len: usize, now: Instant) {
        let Some(link) = self.link_mut() else { return };
        let continues = link.reader.is_in_publication();
        link.reader.filled(len);
        if continues {
            // A large publication may take some time.
            node.probe.on_heard(now);
        }
    }

    /// The channel and the payload of the last publication, until more bytes are read.
    pub(crate) fn publication(&self, channel: &Part, payload: &Part) -> Option<(&[u8], &[u8])> {
        let reader = &self.state.link()?.reader;
        Some((reader.bytes(channel), reader.bytes(payload)))
    }

    /// Decodes the stream up to the next publication: its channel and payload. `None` if events come first, or if more
    /// bytes are needed.
    pub(crate) fn next(&mut self, node: &mut NodeState, now: Instant) -> Option<(Part, Part)> {
        while node.events.is_empty()
            && let LinkState::Subscribing(link, _) | LinkState::Complete(link, _) = &mut self.state
        {
            match link.reader.next() {
                Ok(Some(Item::Publication { channel, payload })) => {
                    let (name, bytes) = (link.reader.bytes(&channel), link.reader.bytes(&payload));
                    let kind = node.kind_of(name, bytes, link.proved_until, now);
                    self.has_heard |= kind != PublicationKind::Milestone;
                    match kind {
                        PublicationKind::Session => return Some((channel, payload)),
                        PublicationKind::Own | PublicationKind::Milestone => {}
                        PublicationKind::Marker => self.state.stand_still(LinkState::AtMarker),
                        PublicationKind::CatchUp => self.state.stand_still(LinkState::CatchingUp),
                    }
                }
                Ok(None) => {
                    self.tell_probe(node, now);
                    return None;
                }
                Ok(Some(item)) => self.on_item(node, &item, now),
                Err(_) => self.fail(node, &LinkError::Malformed, now),
            }
        }
        None
    }

    /// Tells the probe that publications were read.
    fn tell_probe(&mut self, node: &mut NodeState, now: Instant) {
        if std::mem::take(&mut self.has_heard) {
            node.probe.on_heard(now);
        }
    }

    fn on_item(&mut self, node: &mut NodeState, item: &Item, now: Instant) {
        let Some(link) = self.state.link_mut() else { return };
        let outcome = match item {
            Item::Confirmation(confirmation, channel) => {
                let SubscribingLink { reader, under_way, .. } = link;
                let channel = reader.bytes(channel);
                let mut command = under_way.as_mut().map(|under_way| &mut under_way.command);
                let is_leaving = self.commands.is_leaving(channel);
                let unwanted =
                    reply::on_confirmation(node, command.as_deref(), *confirmation, channel, is_leaving, now);
                let is_done =
                    command.as_mut().is_some_and(|command| command.on_confirmation(node, *confirmation, channel));
                let done = if is_done { link.take_answered() } else { None };
                unwanted.into_iter().for_each(|channel| self.commands.push(Change::Unsubscribe(channel)));
                let Some(UnderWay { command, .. }) = done else { return };
                Ok(reply::on_confirmed(node, command))
            }
            Item::Answer(answer) => {
                let answer = redis::parse_redis_value(link.reader.bytes(answer)).and_then(Value::extract_error);
                match link.take_answered() {
                    Some(UnderWay { command: LinkCommand::Role, since, .. }) => {
                        link.on_role(node, since, answer, now).map(|()| Consequence::Done)
                    }
                    Some(UnderWay { command, .. }) => reply::on_answer(node, command, answer, now),
                    None => Err(LinkError::OutOfStep),
                }
            }
            Item::Publication { .. } | Item::Push => return,
        };
        match outcome.and_then(|outcome| self.on_outcome(node, outcome, now)) {
            Ok(()) => {
                if matches!(self.state, LinkState::Complete(..)) {
                    node.end_gap(now);
                }
                self.advance(node, now);
            }
            Err(error) => self.fail(node, &error, now),
        }
    }

    fn on_outcome(&mut self, node: &mut NodeState, outcome: Consequence, now: Instant) -> Result<(), LinkError> {
        match outcome {
            Consequence::Done => {}
            Consequence::Next(command) => {
                // SUBSCRIBE brings back a channel that Redis has forgotten, and later audits would not find that
                // publications were lost.
                let hides =
                    matches!(&command, LinkCommand::TryAgain(channel, _) if node.channels.is_confirmed(channel));
                let audit = (hides && matches!(self.state, LinkState::Complete(..)))
                    .then_some(LinkCommand::Count(Counting::Audit));
                self.state.plan_first(audit.into_iter().chain([command]));
            }
            Consequence::Await(command) => {
                if let Some(link) = self.link_mut() {
                    link.keep_under_way(node, command, now);
                }
            }
            Consequence::Counted(counting, missing) => {
                return audit::on_count(&mut self.state, node, counting, missing);
            }
        }
        Ok(())
    }

    /// When [`Subscriber::step`] is due at the latest.
    pub(crate) fn next_timeout(&self, node: &NodeState) -> Option<Instant> {
        self.state.next_timeout(node)
    }

    /// Ends an overdue or deaf link, or sends the next command.
    pub(crate) fn step(&mut self, node: &mut NodeState, now: Instant) {
        if let LinkState::Subscribing(link, _) | LinkState::Complete(link, _) = &mut self.state
            && link.is_overdue(now)
        {
            let silent = LinkError::Silent("Redis".to_owned(), node.terms.response_timeout);
            return self.fail(node, &silent, now);
        }
        if matches!(self.state, LinkState::Complete(..))
            && let Some(silence) = node.probe.missed(now)
        {
            return self.fail(node, &LinkError::Deaf(silence), now);
        }
        self.advance(node, now);
    }

    /// Sends the next command, unless one is under way.
    fn advance(&mut self, node: &mut NodeState, now: Instant) {
        while self.state.link().is_some_and(|link| link.under_way.is_none()) {
            let Some(command) = self.next_command(node, now) else { return };
            match command {
                LinkCommand::Unconfirmed => self.plan_unconfirmed(node),
                LinkCommand::EndAudit => audit::end(&mut self.state, node),
                LinkCommand::BeginProbe => node.probe.begin(now),
                command => {
                    if let Some(link) = self.link_mut() {
                        link.send(node, command, now);
                    }
                }
            }
        }
    }

    /// The next command: one that is planned, else one that is due, else one for the worker's changes. A command that
    /// is due comes before the changes, so that a storm of handshakes cannot delay it.
    fn next_command(&mut self, node: &mut NodeState, now: Instant) -> Option<LinkCommand> {
        if let Some(command) = self.link_mut()?.plan.pop_front() {
            return Some(command);
        }
        if let LinkState::Subscribing(..) = &self.state {
            self.complete(node, now);
        }
        if let LinkState::Complete(link, audits) = &mut self.state {
            let may_ask = link.role.next_at().is_some();
            if may_ask && (link.role.is_due(now) || node.is_suspect) {
                node.is_suspect = false;
                return Some(LinkCommand::Role);
            }
            node.is_suspect = false;
            if audits.take_due(now) | node.probe.take_doubt(now) {
                return Some(LinkCommand::Count(Counting::Audit));
            }
        }
        let mut commands = self.commands.next(node);
        if matches!(self.state, LinkState::Complete(..)) && node.retry_at.is_some_and(|at| at <= now) {
            node.retry_at = None;
            // Earlier changes come first: a channel may have to be left and joined again.
            while let more = self.commands.next(node)
                && !more.is_empty()
            {
                commands.extend(more);
            }
            commands.push(LinkCommand::Unconfirmed);
        }
        let mut next = None;
        if !commands.is_empty() {
            let plan = &mut self.link_mut()?.plan;
            plan.extend(commands);
            next = plan.pop_front();
        }
        if next.is_none() && !self.is_at_marker() {
            node.end_gap(now);
        }
        next
    }

    /// All wanted channels are subscribed.
    fn complete(&mut self, node: &mut NodeState, now: Instant) {
        self.state.complete(now);
        node.probe.begin(now);
        if let Some(link) = self.state.link() {
            node.probe.proved(link.proved_until);
        }
        node.on_complete(now);
        self.backoff.reset();
        node.end_gap(now);
    }

    /// Plans to subscribe all channels that Redis has not confirmed.
    fn plan_unconfirmed(&mut self, node: &NodeState) {
        if let LinkState::Subscribing(..) = &self.state {
            self.commands.start_over();
        }
        self.state.plan_first(subscriptions(node, node.channels.unconfirmed()));
    }

    /// The link is lost. Another one is due after a pause.
    pub(crate) fn fail(&mut self, node: &mut NodeState, error: &LinkError, now: Instant) {
        let state = std::mem::replace(&mut self.state, LinkState::Down(self.backoff.pause(now)));
        if state.link().is_none() {
            self.state = state;
            return;
        }
        self.tell_probe(node, now);
        node.probe.end();
        node.retry_at = None;
        node.set_progress(marker::Progress::Lost);
        let is_cut = node.cut(error, state.count());
        if node.channels.confirmed() > 0 || !node.is_incomplete() {
            node.lost(state.complete_until(node, error));
        }
        if node.is_incomplete() {
            node.health.attempt_failed(error);
        } else {
            node.incomplete_since = Some(now);
            node.health.link_is_lost(error);
            node.health.worker_is_incomplete();
        }
        node.channels.lose_link();
        node.events.push_back(Report::Lost { node: node.id, is_cut });
    }

    fn link_mut(&mut self) -> Option<&mut SubscribingLink> {
        self.state.link_mut()
    }
}

#[cfg(test)]
mod losses;
#[cfg(test)]
mod milestones;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;
