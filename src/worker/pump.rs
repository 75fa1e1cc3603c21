//! A worker polls its broker and carries out what the broker tells.
//!
//! May not enter: how the broker does it, what a session answers (`core.rs`).

use std::collections::HashSet;
use std::task::{Context, Poll};

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
use crate::protocol::hub::Batching;
use crate::throttle::Throttle;

impl Worker {
    /// Carries out what the broker tells, as long as there is anything.
    pub(super) fn poll_broker(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(event) = self.broker.poll_event(cx) {
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
                Event::Report(report) => self.on_report(report),
            }
        }
        if !self.waits.is_empty() {
            // A link or the marker may have come further.
            self.waker.wake_by_ref();
        }
        Poll::Pending
    }

    fn on_report(&mut self, report: Report) {
        let now = self.now();
        match report {
            Report::Subscribed { node, channel } => {
                if !self.core.on_subscribed(node, &channel, now) {
                    self.broker.request(Request::Unsubscribe { node, channel });
                }
            }
            Report::Refused { channel, refused } => self.core.on_refused(&channel, refused, now),
            Report::Lost { node } => {
                let lost = self.core.lose(node);
                self.shard.add(Counter::SubscriptionsLost, lost as u64);
            }
            Report::Dropped { node, channel } => {
                let was_there = self.core.lose_one(node, &channel);
                self.shard.add(Counter::SubscriptionsLost, u64::from(was_there));
            }
            Report::Gap(gap) => self.on_gap(&gap),
            Report::Placed => {
                let moved = self.core.follow_placement();
                self.broker.request(Request::Move(moved));
            }
            Report::Room { node, max_bytes } => return self.give_messages(node, max_bytes),
            Report::Published { origin, bytes, outcome } => return self.on_published(origin, bytes, outcome),
            // They may be for another node by now.
            Report::Returned(messages) => self.core.outbox.take_back(messages),
            Report::Doubt { sessions, messages } => self.on_doubt(sessions, messages),
        }
        self.after_change();
    }

    fn on_gap(&mut self, Gap { node, server, length }: &Gap) {
        let (channels, keys) = self.core.end_gap(*node);
        self.shard.add(Counter::Gaps, 1);
        self.shard.add(Counter::GapMillis, millis(*length));
        if channels == 0 {
            // No session listened.
            return;
        }
        let missed = Missed { length_ms: millis(*length), channels, closing: keys.len() };
        // A gap that is older than this worker is that of a restart.
        let is_older = millis(*length) > self.now().saturating_sub(clock::START);
        if self.missing == Some(Missing::Restart) && is_older {
            notice::restart_gap(server, missed);
        } else {
            notice::gap(server, missed);
        }
        self.close_gapped(keys);
    }

    fn give_messages(&mut self, node: Node, max_bytes: usize) {
        let mut messages = Vec::new();
        if !self.phase.is_still() {
            messages = self.core.outbox.take(node, max_bytes);
            self.core.release_held();
        }
        self.broker.request(Request::Publish { node, messages });
        self.serve_released();
    }

    /// Sessions that were held have another turn.
    fn serve_released(&self) {
        if self.core.has_again() {
            self.waker.wake_by_ref();
        }
    }

    fn on_doubt(&mut self, sessions: HashSet<SessionKey>, messages: u64) {
        if sessions.is_empty() {
            return;
        }
        tracing::warn!(
            messages,
            closing = sessions.len(),
            "{messages} messages of clients were published at a Redis that was no longer a master; {} WebSockets are \
             closed with 1013",
            sessions.len()
        );
        self.shard.add(Counter::TextsLost, messages);
        let now = self.now();
        for key in sessions {
            self.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
    }

    fn on_published(&mut self, origin: Origin, bytes: usize, outcome: Result<(), NotPublished>) {
        static NOT_PUBLISHED: Throttle = Throttle::per_minute();
        let counter = if outcome.is_ok() { Counter::TextsPublished } else { Counter::TextsLost };
        self.shard.add(counter, 1);
        self.core.outbox.answered();
        if !self.waits.is_empty() || self.phase.is_draining() {
            self.waker.wake_by_ref();
        }
        let key = match origin {
            Origin::Session(key) => key,
            // A publisher that has gone needs no answer.
            Origin::Publisher(tell) => return drop(tell.send(outcome)),
        };
        let now = self.now();
        if let Err(error) = outcome {
            if NOT_PUBLISHED.allows() {
                tracing::warn!(%error, "a client's message was not published ({error}): its WebSocket is closed with 1013");
            }
            self.guarded(key, now, |core| core.on_not_published(key, now));
        } else {
            self.core.on_published(key, bytes, now);
        }
        self.serve_released();
    }

    /// The worker ends: what became of the messages that the broker has not answered for stays unknown.
    pub(super) fn abandon_messages(&mut self) {
        let unanswered: Vec<ClientMessage> = self.broker.abandon();
        for message in unanswered {
            let bytes = message.cost();
            self.on_published(message.origin, bytes, Err(NotPublished::Unknown));
        }
    }
}
