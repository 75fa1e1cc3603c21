//! Closes sessions spread over a time: at a drain, which ends the worker, and after a gap.
//!
//! May not enter: how a session closes.

use std::time::Duration;

use tokio::time::Instant;

use super::jitter::{SPREAD_STEP, Spread};
use super::opening::Refusal;
use super::phase::Phase;
use super::state::Worker;
use crate::broker::Broker;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::message::NotPublished;
use crate::metrics::Counter;

/// How long the worker waits for replies to close frames, beyond all other times.
const LAST_REPLIES: Duration = Duration::from_secs(3);

impl Worker {
    /// Closes all sessions, spread over `drain_time`, and then ends.
    pub(super) fn drain(&mut self, broker: &mut Broker) {
        if self.phase.is_still() {
            self.resume(broker);
        }
        self.core.hub.stop_pacing();
        self.flush();
        let start = Instant::now();
        // A session with waiting messages is closed when the broker has answered, within its endpoint's time.
        let patience = self.config.endpoints.iter().map(|endpoint| endpoint.publish_timeout).max();
        let deadline = start + self.config.drain_time + patience.unwrap_or_default() + LAST_REPLIES;
        let now = self.now();
        self.core.refuse_handshakes(&Refusal::Draining, now);
        let open = Spread::over(self.config.drain_time, self.core.open_keys(), start);
        self.phase.drain(open, deadline);
    }

    /// Closes these sessions because of a gap.
    pub(super) fn close_gapped(&mut self, sessions: Vec<SessionKey>) {
        if !sessions.is_empty() {
            self.gaps.push(Spread::over(self.config.drain_time, sessions, Instant::now()));
        }
    }

    /// When the next sessions are to be closed, counted from `now`.
    pub(super) fn next_step(&self, now: Instant) -> Option<Instant> {
        let is_draining = matches!(&self.phase, Phase::Draining { open, .. } if !open.is_empty());
        (is_draining || !self.gaps.is_empty() && !self.phase.is_still()).then(|| now + SPREAD_STEP)
    }

    /// Closes the sessions whose turn it is at `at`.
    pub(super) fn close_due(&mut self, at: Instant) {
        let core = &mut self.core;
        let mut due = Vec::new();
        if let Phase::Draining { open, .. } = &mut self.phase {
            let leaving = open.take_due(at, |key| core.has_waiting_messages(key));
            due.extend(leaving.into_iter().map(|key| (key, CloseReason::GoingAway)));
        }
        for spread in &mut self.gaps {
            due.extend(spread.take_due(at, |_| false).into_iter().map(|key| (key, CloseReason::Gap)));
        }
        self.gaps.retain(|spread| !spread.is_empty());
        let now = self.now();
        for (key, reason) in due {
            self.guarded(key, now, |core| core.close(key, reason, now));
        }
    }

    /// Whether a drain is over.
    pub(super) fn is_drained(&self) -> bool {
        let Phase::Draining { open, deadline } = &self.phase else { return false };
        let is_done = open.is_empty() && self.handshakes.count() == 0 && self.core.is_idle();
        is_done || Instant::now() >= *deadline
    }

    /// Counts and logs the messages that a drain leaves.
    pub(super) fn count_left(&mut self, broker: &mut Broker) {
        // The outcome of messages without an answer stays unknown.
        for message in broker.abandon() {
            let bytes = message.cost();
            self.on_published(message.origin, bytes, Err(NotPublished::Unknown));
        }
        let left = self.core.outbox.waiting() as u64;
        if left > 0 {
            self.shard.add(Counter::MessagesLost, left);
            tracing::warn!(left, "drain_time ended before {left} client messages were published, so they are lost");
        }
    }
}
