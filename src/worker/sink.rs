//! What the broker tells a worker, and what a worker has for it.

use std::cell::RefCell;
use std::collections::HashSet;

use super::command::Missing;
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

// A seam: the broker's tasks call back into the worker that they share a thread with.
impl Sink for RefCell<Worker> {
    fn on_publication(&self, channel: &[u8], payload: &[u8]) {
        let worker = &mut *self.borrow_mut();
        worker.shard.add(Counter::PublicationsReceived, 1);
        if worker.core.hub.append(channel, payload) == Batching::Full {
            worker.flush();
        }
    }

    fn on_pause(&self) {
        let worker = &mut *self.borrow_mut();
        if worker.core.hub.has_batches() {
            worker.flush();
        }
    }

    fn on_subscribed(&self, node: Node, channel: &[u8]) {
        let worker = &mut *self.borrow_mut();
        let now = worker.now();
        if !worker.core.on_subscribed(node, channel, now) {
            worker.broker.unsubscribe(node, Channel::copy_from_slice(channel));
        }
        worker.after_change();
    }

    fn on_refused(&self, channel: &[u8], refused: SubscriptionRefused) {
        let worker = &mut *self.borrow_mut();
        let now = worker.now();
        worker.core.on_refused(channel, refused, now);
        worker.after_change();
    }

    fn on_lost(&self, node: Node) {
        let worker = &mut *self.borrow_mut();
        let lost = worker.core.lose(node);
        worker.shard.add(Counter::SubscriptionsLost, lost as u64);
    }

    fn on_dropped(&self, node: Node, channel: &[u8]) -> bool {
        let worker = &mut *self.borrow_mut();
        let was_there = worker.core.lose_one(node, channel);
        worker.shard.add(Counter::SubscriptionsLost, u64::from(was_there));
        was_there
    }

    fn on_placed(&self) -> Vec<Moved> {
        let worker = &mut *self.borrow_mut();
        let moved = worker.core.follow_placement();
        worker.after_change();
        moved
    }

    fn on_gap(&self, Gap { node, server, length }: Gap<'_>) {
        let worker = &mut *self.borrow_mut();
        let (channels, keys) = worker.core.end_gap(node);
        worker.shard.add(Counter::Gaps, 1);
        worker.shard.add(Counter::GapMillis, millis(length));
        if channels == 0 {
            // No session listened.
            return;
        }
        let missed = Missed { length_ms: millis(length), channels, closing: keys.len() };
        // A gap that is older than this worker is that of a restart.
        let is_older = millis(length) > worker.now().saturating_sub(clock::START);
        if worker.missing == Some(Missing::Restart) && is_older {
            notice::restart_gap(server, missed);
        } else {
            notice::gap(server, missed);
        }
        worker.close_gapped(keys);
    }

    fn subscribed(&self, node: Node) -> usize {
        self.borrow().core.hub.confirmed(node)
    }

    fn wanted(&self, node: Node) -> Vec<Channel> {
        self.borrow_mut().core.hub.wanted(node)
    }

    fn unconfirmed(&self, node: Node) -> Vec<Channel> {
        self.borrow_mut().core.hub.unconfirmed(node)
    }

    fn take_back(&self, texts: Vec<ClientMessage>) {
        let worker = &mut *self.borrow_mut();
        worker.core.outbox.take_back(texts);
        // They may be for another node by now.
        worker.broker.wake_publisher();
    }

    fn take_texts(&self, node: Node, max_bytes: usize) -> Vec<ClientMessage> {
        let worker = &mut *self.borrow_mut();
        if worker.phase.is_still() {
            return Vec::new();
        }
        let taken = worker.core.outbox.take(node, max_bytes);
        worker.core.release_held();
        if worker.core.has_again() {
            worker.waker.wake_by_ref();
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
        let worker = &mut *self.borrow_mut();
        worker.shard.add(Counter::TextsLost, texts);
        let now = worker.now();
        for key in sessions {
            worker.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
        worker.after_change();
    }

    fn on_published(&self, origin: Origin, bytes: usize, outcome: Result<(), NotPublished>) {
        static NOT_PUBLISHED: Throttle = Throttle::per_minute();
        let counter = if outcome.is_ok() { Counter::TextsPublished } else { Counter::TextsLost };
        let worker = &mut *self.borrow_mut();
        worker.shard.add(counter, 1);
        worker.core.outbox.answered();
        if !worker.waits.is_empty() || worker.phase.is_draining() {
            worker.waker.wake_by_ref();
        }
        let key = match origin {
            Origin::Session(key) => key,
            Origin::Publisher(tell) => return drop(tell.send(outcome)),
        };
        let now = worker.now();
        let core = &mut worker.core;
        if let Err(error) = outcome {
            if NOT_PUBLISHED.allows() {
                tracing::warn!(%error, "a client's message was not published ({error}): its WebSocket is closed with 1013");
            }
            core.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        } else {
            core.on_published(key, bytes, now);
        }
        if core.has_again() {
            worker.waker.wake_by_ref();
        }
    }
}
