//! What the broker tells a worker, and what a worker has for it.

use std::collections::HashSet;

use super::state::Worker;
use crate::broker::{Gap, Sink};
use crate::channel::Channel;
use crate::channel::SubscriptionRefused;
use crate::clock::{self, millis};
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::Counter;
use crate::notice::{self, Missed};
use crate::placement::Moved;
use crate::placement::Node;
use crate::protocol::hub::Batching;
use crate::throttle::Throttle;

impl Sink for Worker {
    fn on_publication(&self, channel: &[u8], payload: &[u8]) {
        self.shard.add(Counter::PublicationsReceived, 1);
        if self.core.borrow_mut().hub.append(channel, payload) == Batching::Full {
            self.flush();
        }
    }

    fn on_pause(&self) {
        if self.core.borrow().hub.has_batches() {
            self.flush();
        }
    }

    fn on_subscribed(&self, node: Node, channel: &[u8]) {
        let now = self.now();
        if !self.core.borrow_mut().on_subscribed(node, channel, now) {
            self.broker.unsubscribe(node, Channel::copy_from_slice(channel));
        }
    }

    fn on_refused(&self, channel: &[u8], refused: SubscriptionRefused) {
        let now = self.now();
        self.core.borrow_mut().on_refused(channel, refused, now);
        self.again.notify_one();
    }

    fn on_lost(&self, node: Node) {
        let lost = self.core.borrow_mut().lose(node);
        self.shard.add(Counter::SubscriptionsLost, lost as u64);
    }

    fn on_dropped(&self, node: Node, channel: &[u8]) -> bool {
        let was_there = self.core.borrow_mut().lose_one(node, channel);
        self.shard.add(Counter::SubscriptionsLost, u64::from(was_there));
        was_there
    }

    fn on_placed(&self) -> Vec<Moved> {
        let moved = self.core.borrow_mut().follow_placement();
        self.after_reading();
        moved
    }

    fn on_gap(&self, Gap { node, server, length }: Gap<'_>) {
        let (channels, keys) = self.core.borrow_mut().end_gap(node);
        self.shard.add(Counter::Gaps, 1);
        self.shard.add(Counter::GapMillis, millis(length));
        if channels == 0 {
            // Nobody listened.
            return;
        }
        let missed = Missed { length_ms: millis(length), channels, closing: keys.len() };
        // One that is older than this worker is that of a restart.
        if self.was_restarted.get() && millis(length) > self.now().saturating_sub(clock::START) {
            notice::restart_gap(server, missed);
        } else {
            notice::gap(server, missed);
        }
        if !keys.is_empty() {
            self.is_closing_gapped.set(true);
            self.gapped.borrow_mut().extend(keys);
            self.gap.notify_one();
        }
    }

    fn subscribed(&self, node: Node) -> usize {
        self.core.borrow().hub.confirmed(node)
    }

    fn wanted(&self, node: Node) -> Vec<Channel> {
        self.core.borrow_mut().hub.wanted(node)
    }

    fn unconfirmed(&self, node: Node) -> Vec<Channel> {
        self.core.borrow_mut().hub.unconfirmed(node)
    }

    fn take_back(&self, texts: Vec<ClientMessage>) {
        self.core.borrow_mut().outbox.take_back(texts);
        // They may be for another node by now.
        self.broker.wake_publisher();
    }

    fn take_texts(&self, node: Node, max_bytes: usize) -> Vec<ClientMessage> {
        if self.is_resting.get() {
            return Vec::new();
        }
        let mut core = self.core.borrow_mut();
        let taken = core.outbox.take(node, max_bytes);
        core.release_held();
        if core.has_again() {
            self.again.notify_one();
        }
        taken
    }

    fn on_doubt(&self, sessions: HashSet<SessionKey>, texts: u64) {
        if sessions.is_empty() {
            return;
        }
        tracing::warn!(
            texts,
            closing = sessions.len(),
            "{texts} messages of clients were published at a Redis that was no longer a master; {} WebSockets are \
             closed with 1013",
            sessions.len()
        );
        self.shard.add(Counter::TextsLost, texts);
        let now = self.now();
        for key in sessions {
            self.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
        self.after_reading();
    }

    fn on_published(&self, origin: Origin, bytes: usize, outcome: Result<(), NotPublished>) {
        static NOT_PUBLISHED: Throttle = Throttle::per_minute();
        let counter = if outcome.is_ok() { Counter::TextsPublished } else { Counter::TextsLost };
        self.shard.add(counter, 1);
        self.core.borrow_mut().outbox.answered();
        let key = match origin {
            Origin::Session(key) => key,
            Origin::Publisher(tell) => return drop(tell.send(outcome)),
        };
        let now = self.now();
        let mut core = self.core.borrow_mut();
        if let Err(error) = outcome {
            if NOT_PUBLISHED.allows() {
                tracing::warn!(%error, "a client's message was not published ({error}): its WebSocket is closed with 1013");
            }
            core.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        } else {
            core.on_published(key, bytes, now);
        }
        if core.has_again() {
            self.again.notify_one();
        }
    }
}
