//! A worker: all that its thread owns, and what each of its rooms needs.
//!
//! May not enter: in which order its sources of work have their turn (`turn.rs`).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::command::{Missing, PublishRequest, State};
use super::core::Core;
use super::handshakes::Handshakes;
use super::phase::Phase;
use super::spread::Spread;
use super::wait::Wait;
use crate::broker::{Broker, Request};
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::{Metrics, Shard};
use crate::protocol::endpoint::Endpoint;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(super) config: Arc<Config>,
    pub(super) endpoints: Rc<[Rc<Endpoint>]>,
    pub(super) shard: Arc<Shard>,
    pub(super) metrics: Metrics,
    pub(super) max_sessions: usize,
    pub(super) clock: Clock,
    pub(super) broker: Broker,
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
    /// Tells the handshakes that the worker serves again.
    pub(super) resumed: Rc<Notify>,
    /// Wakes the worker's loop for what its other tasks have done to it.
    pub(super) waker: Waker,
}

/// A worker as the tasks of its thread have it.
pub(super) type Shared = Rc<RefCell<Worker>>;

impl Worker {
    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Lets the broker and the worker's loop know what a change has left for them.
    pub(super) fn after_change(&mut self) {
        if !self.core.outbox.is_empty() {
            self.broker.request(Request::MessagesWait);
        }
        if self.core.has_again() || !self.waits.is_empty() || self.phase.is_draining() {
            self.waker.wake_by_ref();
        }
    }

    pub(super) fn guarded(&mut self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Core)) {
        self.core.guarded(key, now, act);
    }

    /// Hands out what the hub has collected, as far as it is not held back.
    pub(super) fn flush(&mut self) {
        if self.phase.is_frozen() {
            // Flushed when the worker resumes.
            self.next_flush = None;
            return;
        }
        let before = self.next_flush;
        self.next_flush = self.core.flush(self.clock.now());
        let is_sooner = self.next_flush.is_some_and(|next| before.is_none_or(|before| next < before));
        if is_sooner || self.core.has_again() {
            self.waker.wake_by_ref();
        }
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
            self.broker.request(Request::MessagesWait);
        }
    }

    /// How it is, for an operator.
    pub(super) fn state(&self) -> State {
        State { handshakes: self.handshakes.count(), fault: self.fault() }
    }
}
