//! A worker's sessions and what it is doing with them.
//!
//! Its sources of work stand beside it (`turn.rs`). May not enter: in which order they have their turn.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::command::{Missing, PublishRequest};
use super::core::Core;
use super::handshakes::Handshakes;
use super::jitter::Spread;
use super::phase::Phase;
use super::wait::Wait;
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::{Metrics, Shard};
use crate::protocol::endpoint::Endpoint;

/// One worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) config: Arc<Config>,
    pub(super) endpoints: Rc<[Rc<Endpoint>]>,
    pub(super) shard: Arc<Shard>,
    pub(super) metrics: Metrics,
    pub(super) max_sessions: usize,
    pub(super) clock: Clock,
    pub(super) core: Core,
    pub(super) phase: Phase,
    /// Commands that are not answered yet.
    pub(super) waits: Vec<Wait>,
    /// Sessions to close because of a gap, of each gap.
    pub(super) gaps: Vec<Spread>,
    /// Why no process listened for the sessions that came from another one.
    pub(super) missing: Option<Missing>,
    /// When to flush what the hub holds back.
    pub(super) next_flush: Option<Instant>,
    pub(super) handshakes: Arc<Handshakes>,
}

impl Worker {
    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    pub(super) fn guarded(&mut self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Core)) {
        self.core.guarded(key, now, act);
    }

    /// Hands out what the hub has collected, as far as it is not held back.
    pub(super) fn flush(&mut self) {
        // Of a snapshot nothing is sent; it is flushed when the worker resumes.
        self.next_flush = if self.phase.is_frozen() { None } else { self.core.flush(self.clock.now()) };
    }

    /// Takes a message of a publisher.
    pub(super) fn publish(&mut self, request: PublishRequest) {
        let PublishRequest { channel, payload, tell } = request;
        let outbox = &mut self.core.outbox;
        if outbox.is_full(outbox.node_of(&channel)) {
            // A publisher that has gone needs no answer.
            drop(tell.send(Err(NotPublished::Unavailable)));
        } else {
            let since = self.clock.now();
            outbox.push(ClientMessage { channel, payload, origin: Origin::Publisher(tell), since });
        }
    }
}
