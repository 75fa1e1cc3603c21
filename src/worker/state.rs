//! A worker: its core, its phase, and what is under way.
//!
//! `turn.rs` has its sources of work. May not enter: the order of turns.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::command::{Mailbox, Missing, PublishRequest};
use super::core::Core;
use super::handshakes::Handshakes;
use super::jitter::Spread;
use super::phase::Phase;
use super::wait::Wait;
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::id::SessionKey;
use crate::memory::Budget;
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
    pub(super) budget: Budget,
    /// Not before then does the worker look again for memory to give up.
    pub(super) shed_again: Millis,
    pub(super) clock: Clock,
    pub(super) core: Core,
    pub(super) phase: Phase,
    /// Its own mailbox, and those of the server's other workers.
    pub(super) own: Mailbox,
    pub(super) siblings: Rc<[Mailbox]>,
    /// Commands without an answer yet.
    pub(super) waits: Vec<Wait>,
    /// For each gap, the sessions to close.
    pub(super) gaps: Vec<Spread>,
    /// Why no process was subscribed for the adopted sessions.
    pub(super) missing: Option<Missing>,
    /// When to flush the batches that the hub holds back.
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

    /// Flushes the hub's batches, except those held back.
    pub(super) fn flush(&mut self) {
        // A frozen worker sends nothing; the batches are flushed when it resumes.
        self.next_flush = if self.phase.is_frozen() { None } else { self.core.flush(self.clock.now()) };
        self.bound_memory();
    }

    /// Gives up memory if the process has spent its budget.
    pub(super) fn bound_memory(&mut self) {
        if self.budget.is_spent() && !self.phase.is_still() {
            self.shed();
        }
    }

    /// Puts a publisher's message into the outbox.
    pub(super) fn publish(&mut self, request: PublishRequest) {
        let PublishRequest { channel, payload, tell } = request;
        let outbox = &mut self.core.outbox;
        if outbox.is_full(outbox.node_of(&channel)) {
            // The publisher may have gone.
            drop(tell.send(Err(NotPublished::Unavailable)));
        } else {
            let since = self.clock.now();
            outbox.push(ClientMessage { channel, payload, origin: Origin::Publisher(tell), since });
        }
    }
}
