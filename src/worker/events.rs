//! Carries out the broker's events; each returns the requests that follow.
//!
//! May not enter: how a broker works.

use std::collections::HashSet;

use super::command::Missing;
use super::state::Worker;
use crate::broker::{Event, Gap, Report, Request};
use crate::clock::{self, millis};
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::Counter;
use crate::notice::{self, Missed};
use crate::placement::Node;
use crate::position::{Logged, Milestone};
use crate::protocol::hub::Batching;
use crate::throttle::Throttle;

impl Worker {
    /// Carries out one event; returns the requests that follow.
    pub(super) fn on_event(&mut self, event: Event<'_>) -> Option<Request> {
        match event {
            Event::Publication { channel, payload } => {
                self.shard.add(Counter::PublicationsReceived, 1);
                if self.core.hub.append(channel, payload) == Batching::Full {
                    self.flush();
                }
            }
            Event::Paused => {
                if self.core.hub.has_batches() {
                    self.flush();
                }
            }
            Event::Report(report) => return self.on_report(report),
        }
        None
    }

    fn on_report(&mut self, report: Report) -> Option<Request> {
        match report {
            Report::Subscribed { node, channel } => {
                let now = self.now();
                let is_wanted = self.core.on_subscribed(node, &channel, now);
                return (!is_wanted).then_some(Request::Unsubscribe { node, channel });
            }
            Report::Refused { channel, refused } => {
                let now = self.now();
                self.core.on_refused(&channel, refused, now);
            }
            Report::Lost { node, is_cut } => {
                let lost = self.core.lose(node, is_cut);
                self.shard.add(Counter::SubscriptionsLost, lost as u64);
            }
            Report::Dropped { node, channel } => {
                let was_there = self.core.lose_one(node, &channel);
                self.shard.add(Counter::SubscriptionsLost, u64::from(was_there));
            }
            Report::Gap(gap) => self.on_gap(&gap),
            Report::Replayed { gap, logged, until } => self.on_replayed(&gap, &logged, until),
            Report::LogRead { node, from, logged } => {
                let now = self.now();
                return self.core.on_log_read(node, from, logged, now);
            }
            Report::Milestone { node, milestone } => {
                let now = self.now();
                self.core.on_milestone(node, milestone, now);
                if self.core.hub.tell_positions(node) {
                    self.flush();
                }
            }
            Report::NoMilestones { node } => {
                let now = self.now();
                self.core.without_milestones(node, now);
            }
            Report::Placed => return Some(Request::Move(self.core.follow_placement())),
            Report::Room { node, max_bytes } => {
                return Some(Request::Publish { node, messages: self.take_messages(node, max_bytes) });
            }
            Report::Published { origin, bytes, outcome } => self.on_published(origin, bytes, outcome),
            Report::Returned(messages) => {
                self.core.outbox.take_back(messages);
                // Channels may have moved: the messages may be for another node now.
                return Some(Request::MessagesWait);
            }
            Report::Doubt { sessions, messages } => self.on_doubt(sessions, messages),
        }
        None
    }

    /// A stream was cut, and the node's log has the missed publications.
    fn on_replayed(&mut self, gap: &Gap, logged: &[Logged], until: Milestone) {
        let now = self.now();
        for logged in logged {
            if self.core.hub.replay(gap.node, logged, now) == Batching::Full {
                self.flush();
            }
        }
        // No pause of the stream follows where nothing more is published.
        if self.core.hub.has_batches() {
            self.flush();
        }
        self.core.end_replay(gap.node, until, now);
        self.shard.add(Counter::GapsFilled, 1);
        let Gap { server, length, .. } = gap;
        tracing::info!(
            server,
            filled_ms = millis(*length),
            "the gap of {length:.1?} at {server} is filled from its replication log"
        );
        // Channels that were subscribed right before the gap cannot be continued.
        if self.core.hub.misses(gap.node) {
            self.on_gap(gap);
        }
    }

    fn on_gap(&mut self, Gap { node, server, length }: &Gap) {
        let now = self.now();
        self.core.give_up_replay(*node, now);
        let (channels, sessions) = self.core.end_gap(*node, now);
        self.core.hub.tell_positions(*node);
        // What the new link has delivered meanwhile, and the position there, behind the notice of the gap.
        if self.core.hub.has_batches() {
            self.flush();
        }
        self.shard.add(Counter::Gaps, 1);
        self.shard.add(Counter::GapMillis, millis(*length));
        if channels == 0 {
            // No session was subscribed.
            return;
        }
        let missed = Missed { length_ms: millis(*length), channels, closing: sessions.len() };
        // A gap that began before this worker is that of a restart.
        let is_older = millis(*length) > self.now().saturating_sub(clock::START);
        if self.missing == Some(Missing::Restart) && is_older {
            notice::restart_gap(server, missed);
        } else {
            notice::gap(server, missed);
        }
        self.close_gapped(sessions);
    }

    fn take_messages(&mut self, node: Node, max_bytes: usize) -> Vec<ClientMessage> {
        if self.phase.is_still() {
            return Vec::new();
        }
        let taken = self.core.outbox.take(node, max_bytes);
        self.core.release_held();
        taken
    }

    fn on_doubt(&mut self, sessions: HashSet<SessionKey>, messages: u64) {
        if sessions.is_empty() {
            return;
        }
        tracing::warn!(
            messages,
            closing = sessions.len(),
            "{messages} client messages were published on a Redis server that was no longer the master: {} WebSockets \
             are closed with 1013",
            sessions.len()
        );
        self.shard.add(Counter::MessagesLost, messages);
        let now = self.now();
        for key in sessions {
            self.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
    }

    /// The broker has answered for a message, or never will.
    pub(super) fn on_published(&mut self, origin: Origin, bytes: usize, outcome: Result<(), NotPublished>) {
        static NOT_PUBLISHED: Throttle = Throttle::per_minute();
        let counter = if outcome.is_ok() { Counter::MessagesPublished } else { Counter::MessagesLost };
        self.shard.add(counter, 1);
        self.core.outbox.answered();
        let key = match origin {
            Origin::Session(key) => key,
            // The publisher may have gone.
            Origin::Publisher(tell) => return drop(tell.send(outcome)),
        };
        let now = self.now();
        match outcome {
            Ok(()) => self.core.on_published(key, bytes, now),
            Err(error) => {
                if NOT_PUBLISHED.allows() {
                    tracing::warn!(
                        %error,
                        "a client's message was not published ({error}): its WebSocket is closed with 1013"
                    );
                }
                self.guarded(key, now, |core| core.on_not_published(key, now));
            }
        }
    }
}
