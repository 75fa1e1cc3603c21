//! A worker's subscribing link to one node, as a state machine: time and bytes go in; bytes, publications and events
//! come out. It is made, kept, and made again with every wanted channel.
//!
//! A channel is subscribed when Redis' confirmation is read in the stream of publications. `station.rs` makes the stream
//! and moves its bytes; `errand.rs` has the commands, `answer.rs` what follows from an answer. May not enter:
//! sockets, tasks, the clock.

use std::time::Duration;

use redis::{RedisResult, Value};
use tokio::time::Instant;

use super::answer::{self, Outcome};
use super::audit;
use super::backoff::Backoff;
use super::commands::{Command, Commands, subscriptions};
use super::errand::{Counting, Errand};
use super::fault::LinkError;
use super::link::{Count, Link, LinkState, UnderWay};
use super::links::{Greeting, Links, Sorted};
use super::marker;
use super::resp::{Item, Part};
use crate::broker::event::Report;
use crate::channel::Channel;

/// A subscribing link.
#[derive(Debug)]
pub(crate) struct Subscriber {
    state: LinkState,
    commands: Commands,
    backoff: Backoff,
    /// Whether publications were read since the probe was told.
    has_heard: bool,
}

impl Subscriber {
    /// A link that is to be made at once.
    pub(crate) fn new(max_reconnect_delay: Duration, now: Instant) -> Self {
        let backoff = Backoff::new(max_reconnect_delay);
        Self { state: LinkState::Waiting { until: now }, commands: Commands::default(), backoff, has_heard: false }
    }

    /// One that is never made.
    pub(crate) fn closed(now: Instant) -> Self {
        Self { state: LinkState::Closed, ..Self::new(Duration::ZERO, now) }
    }

    /// Subscribes a channel.
    pub(crate) fn subscribe(&mut self, links: &mut Links, channel: Channel) {
        links.channels.ask(channel.clone());
        self.command(Command::Subscribe(channel));
    }

    /// Unsubscribes a channel.
    pub(crate) fn unsubscribe(&mut self, links: &mut Links, channel: Channel) {
        links.channels.forget(&channel);
        self.command(Command::Unsubscribe(channel));
    }

    /// Wants the stream to stop at the marker that the links have.
    pub(crate) fn set_marker(&mut self) {
        self.command(Command::Marker);
    }

    fn command(&mut self, command: Command) {
        // Bounded: without a link nothing is unsubscribed, and handshakes are refused after a blip. The next link starts
        // over with the channels that are wanted then.
        if !matches!(self.state, LinkState::Closed) {
            self.commands.push(command);
        }
    }

    /// Goes on behind the marker.
    pub(crate) fn release(&mut self, links: &mut Links, now: Instant) {
        links.is_marker_due = false;
        let Some(marker) = links.marker.take() else { return };
        if marker.progress != marker::Progress::Lost {
            self.command(Command::Unmark(marker.channel));
        }
        self.state.go_on(links, now);
    }

    /// No link is made any more.
    pub(crate) fn close(&mut self) {
        self.state = LinkState::Closed;
        self.commands.clear();
    }

    /// Whether a link is to be made; the caller makes it, and says what came of it.
    pub(crate) fn wants_link(&mut self, now: Instant) -> bool {
        let is_due = matches!(self.state, LinkState::Waiting { until } if until <= now);
        if is_due {
            self.state = LinkState::Connecting;
        }
        is_due
    }

    pub(crate) fn on_not_connected(&mut self, links: &Links, error: &LinkError, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Connecting));
        links.health.attempt_failed(error);
        self.state = LinkState::Waiting { until: self.backoff.pause(now) };
    }

    pub(crate) fn on_connected(&mut self, links: &mut Links, greeting: Greeting, now: Instant) {
        debug_assert!(matches!(self.state, LinkState::Connecting));
        links.subscriber_at.clone_from(&greeting.master);
        if !greeting.role.is_told() {
            links.health.role_is_unknown();
        }
        let link = Link::new(greeting, [Errand::Probe, Errand::Unconfirmed, Errand::Count(Counting::First)]);
        self.state = LinkState::Subscribing(Box::new(link), Count::Unknown);
        self.has_heard = false;
        self.advance(links, now);
    }

    /// Whether there is a link.
    pub(crate) fn is_up(&self) -> bool {
        self.link().is_some()
    }

    /// Whether bytes are to be read; not while the stream stands still.
    pub(crate) fn wants_bytes(&self) -> bool {
        matches!(self.state, LinkState::Subscribing(..) | LinkState::Hearing(..))
    }

    pub(crate) fn is_at_marker(&self) -> bool {
        matches!(self.state, LinkState::AtMarker(..))
    }

    /// Since when an answer is awaited.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        Some(self.link()?.under_way.as_ref()?.since)
    }

    /// Bytes to send; the caller removes those that it sent.
    pub(crate) fn outgoing(&mut self) -> Option<&mut Vec<u8>> {
        self.link_mut().map(|link| &mut link.out).filter(|out| !out.is_empty())
    }

    /// Where the bytes that come next go.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.link_mut().map(|link| link.reader.room()).unwrap_or_default()
    }

    /// So many bytes came.
    pub(crate) fn on_bytes(&mut self, links: &mut Links, len: usize, now: Instant) {
        let Some(link) = self.link_mut() else { return };
        link.reader.filled(len);
        if link.reader.is_in_publication() {
            // A large one may take its time.
            links.probe.on_heard(now);
        }
    }

    /// The parts of the last publication, until more is read.
    pub(crate) fn publication(&self, channel: &Part, payload: &Part) -> Option<(&[u8], &[u8])> {
        let reader = &self.link()?.reader;
        Some((reader.bytes(channel), reader.bytes(payload)))
    }

    /// Takes the stream apart until a publication comes, its channel and payload; `None` when events come first, or more
    /// bytes are needed.
    pub(crate) fn next(&mut self, links: &mut Links, now: Instant) -> Option<(Part, Part)> {
        while links.events.is_empty()
            && let LinkState::Subscribing(link, _) | LinkState::Hearing(link, _) = &mut self.state
        {
            match link.reader.next() {
                Ok(Some(Item::Publication { channel, payload })) => {
                    self.has_heard = true;
                    match links.sort(link.reader.bytes(&channel), link.reader.bytes(&payload)) {
                        Sorted::Publication => return Some((channel, payload)),
                        Sorted::Own => {}
                        Sorted::Marker => self.state.stand_still(),
                    }
                }
                Ok(None) => {
                    self.tell_probe(links, now);
                    return None;
                }
                Ok(Some(item)) => self.on_item(links, &item, now),
                Err(_) => self.fail(links, &LinkError::Malformed, now),
            }
        }
        None
    }

    /// The probe learns that publications came.
    fn tell_probe(&mut self, links: &mut Links, now: Instant) {
        if std::mem::take(&mut self.has_heard) {
            links.probe.on_heard(now);
        }
    }

    fn on_item(&mut self, links: &mut Links, item: &Item, now: Instant) {
        let Some(link) = self.link_mut() else { return };
        let outcome = match item {
            Item::Confirmation(confirmation, channel) => {
                let Link { reader, under_way, .. } = link;
                let channel = reader.bytes(channel);
                let mut errand = under_way.as_mut().map(|under_way| &mut under_way.errand);
                let unwanted = answer::on_confirmation(links, errand.as_deref(), *confirmation, channel, now);
                let is_done =
                    errand.as_mut().is_some_and(|errand| errand.on_confirmation(links, *confirmation, channel));
                let done = if is_done { under_way.take() } else { None };
                unwanted.into_iter().for_each(|channel| self.commands.push(Command::Unsubscribe(channel)));
                let Some(UnderWay { errand, .. }) = done else { return };
                Ok(answer::on_confirmed(links, errand))
            }
            Item::Answer(answer) => {
                let answer = redis::parse_redis_value(link.reader.bytes(answer)).and_then(Value::extract_error);
                match link.under_way.take() {
                    Some(UnderWay { errand: Errand::Role, since, .. }) => self.on_role(links, since, answer, now),
                    Some(UnderWay { errand, .. }) => answer::on_answer(links, errand, answer, now),
                    None => Err(LinkError::OutOfStep),
                }
            }
            Item::Publication { .. } | Item::Push => return,
        };
        match outcome.and_then(|outcome| self.on_outcome(links, outcome, now)) {
            Ok(()) => self.advance(links, now),
            Err(error) => self.fail(links, &error, now),
        }
    }

    /// Leaves a node that is no master any more.
    fn on_role(
        &mut self,
        links: &mut Links,
        sent: Instant,
        answer: RedisResult<Value>,
        now: Instant,
    ) -> Result<Outcome, LinkError> {
        let Some(Link { role, address, .. }) = self.link_mut() else { return Ok(Outcome::Done) };
        let rank = role.on_answer(sent, answer).map_err(LinkError::Ended)?;
        if !role.is_told() {
            links.health.role_is_unknown();
        }
        links.on_rank(rank, address, now).map(|()| Outcome::Done)
    }

    fn on_outcome(&mut self, links: &mut Links, outcome: Outcome, now: Instant) -> Result<(), LinkError> {
        match outcome {
            Outcome::Done => {}
            Outcome::Next(errand) => self.state.plan_first([errand]),
            Outcome::Await(errand) => {
                if let Some(link) = self.link_mut() {
                    link.keep_under_way(links, errand, now);
                }
            }
            Outcome::Counted(counting, missing) => return audit::on_count(&mut self.state, links, counting, missing),
        }
        Ok(())
    }

    /// When [`Subscriber::step`] has something to do at the latest.
    pub(crate) fn next_timeout(&self, links: &Links) -> Option<Instant> {
        self.state.next_timeout(links)
    }

    /// Does what is due, and what the worker has asked for.
    pub(crate) fn step(&mut self, links: &mut Links, now: Instant) {
        if let LinkState::Subscribing(link, _) | LinkState::Hearing(link, _) = &mut self.state
            && link.is_overdue(now)
        {
            let silent = LinkError::Silent("Redis".to_owned(), links.terms.response_timeout);
            return self.fail(links, &silent, now);
        }
        if matches!(self.state, LinkState::Hearing(..))
            && let Some(silence) = links.probe.missed(now)
        {
            return self.fail(links, &LinkError::Deaf(silence), now);
        }
        self.advance(links, now);
    }

    /// Sends the next errand, unless one is under way.
    fn advance(&mut self, links: &mut Links, now: Instant) {
        while self.link().is_some_and(|link| link.under_way.is_none()) {
            let Some(errand) = self.next_errand(links, now) else { return };
            match errand {
                Errand::Unconfirmed => self.plan_unconfirmed(links),
                Errand::EndAudit => audit::end(&mut self.state, links, now),
                Errand::BeginProbe => links.probe.begin(now),
                errand => {
                    if let Some(link) = self.link_mut() {
                        link.send(links, errand, now);
                    }
                }
            }
        }
    }

    /// The next errand: of a plan, or one that is due, or what the worker has asked for. What is due comes first, so that
    /// a storm of handshakes cannot put it off.
    fn next_errand(&mut self, links: &mut Links, now: Instant) -> Option<Errand> {
        if let Some(errand) = self.link_mut()?.plan.pop_front() {
            return Some(errand);
        }
        if let LinkState::Subscribing(..) = &self.state {
            self.hear(links, now);
        }
        if let LinkState::Hearing(link, audits) = &mut self.state {
            let may_ask = link.role.next_at().is_some();
            if may_ask && (link.role.is_due(now) || links.is_suspect) {
                links.is_suspect = false;
                return Some(Errand::Role);
            }
            links.is_suspect = false;
            if audits.take_due(now) {
                return Some(Errand::Count(Counting::Audit));
            }
        }
        let mut errands = self.commands.next(links);
        if matches!(self.state, LinkState::Hearing(..)) && links.retry_at.is_some_and(|at| at <= now) {
            links.retry_at = None;
            // What was commanded before comes first: a channel may have to be left and joined again.
            while let more = self.commands.next(links)
                && !more.is_empty()
            {
                errands.extend(more);
            }
            errands.push(Errand::Unconfirmed);
        }
        let plan = &mut self.link_mut()?.plan;
        plan.extend(errands);
        let next = plan.pop_front();
        if next.is_none() && !self.is_at_marker() {
            links.end_gap(now);
        }
        next
    }

    /// All wanted channels are subscribed.
    fn hear(&mut self, links: &mut Links, now: Instant) {
        self.state.hear(now);
        links.probe.begin(now);
        links.deaf_since = None;
        links.subscribed_at = now;
        links.health.worker_hears();
        links.health.link_is_up();
        self.backoff.reset();
        links.end_gap(now);
    }

    /// Plans to subscribe all that Redis has not confirmed.
    fn plan_unconfirmed(&mut self, links: &Links) {
        if let LinkState::Subscribing(..) = &self.state {
            self.commands.start_over();
        }
        self.state.plan_first(subscriptions(links, links.channels.unconfirmed()));
    }

    /// The link is lost, as when its stream has ended, and another is made after a pause.
    pub(crate) fn fail(&mut self, links: &mut Links, error: &LinkError, now: Instant) {
        let state = std::mem::replace(&mut self.state, LinkState::Waiting { until: self.backoff.pause(now) });
        let (LinkState::Subscribing(..) | LinkState::Hearing(..) | LinkState::AtMarker(..)) = &state else {
            self.state = state;
            return;
        };
        self.tell_probe(links, now);
        links.probe.end();
        links.retry_at = None;
        links.set_progress(marker::Progress::Lost);
        if links.channels.confirmed() > 0 || !links.is_deaf() {
            let since = match (error, &state) {
                // What the probe heard says nothing about a subscription that Redis forgot.
                (LinkError::Fewer(_), LinkState::Hearing(_, audits)) => audits.complete_at,
                // Its new master may have had messages since that it did not hear of.
                (LinkError::NoMaster(..), LinkState::Hearing(link, _)) => link.role.master_at(),
                _ => links.probe.heard_at(),
            };
            links.lost(since);
        }
        if links.is_deaf() {
            links.health.attempt_failed(error);
        } else {
            links.deaf_since = Some(now);
            links.health.link_is_lost(error);
            links.health.worker_is_deaf();
        }
        links.channels.lose_all();
        links.events.push_back(Report::Lost { node: links.node });
    }

    fn link(&self) -> Option<&Link> {
        self.state.link()
    }

    fn link_mut(&mut self) -> Option<&mut Link> {
        self.state.link_mut()
    }
}

#[cfg(test)]
mod tests;
