//! A worker: all that its thread owns.
//!
//! May not enter: in which order things have their turn (`turn.rs`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::Core;
use crate::broker::Broker;
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::id::SessionKey;
use crate::metrics::{Metrics, Shard};
use crate::protocol::endpoint::Endpoint;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) endpoints: Vec<Rc<Endpoint>>,
    pub(crate) shard: Arc<Shard>,
    pub(super) broker: Broker,
    pub(super) core: RefCell<Core>,
    pub(super) metrics: Metrics,
    pub(super) max_sessions: usize,
    pub(super) clock: Clock,
    pub(super) is_draining: Cell<bool>,
    /// Whether everything stands still for a hand-over.
    pub(super) is_resting: Cell<bool>,
    pub(super) rests_since: Cell<Millis>,
    /// Whether its sessions are in words already: nothing may be sent to their clients.
    pub(super) is_frozen: Cell<bool>,
    /// Whether clients are being told of a gap.
    pub(super) is_closing_gapped: Cell<bool>,
    /// Whether its sessions were without a process for a moment, by a restart.
    pub(super) was_restarted: Cell<bool>,
    /// Connections that are being answered.
    pub(crate) handshakes: Cell<usize>,
    pub(super) again: Notify,
    /// When to flush what the hub holds back, and that it is sooner than before.
    pub(super) next_flush: Cell<Option<Instant>>,
    pub(super) flush_sooner: Notify,
    /// Sessions to close because of a gap.
    pub(super) gapped: RefCell<Vec<SessionKey>>,
    pub(super) gap: Notify,
}

impl Worker {
    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    pub(super) fn after_reading(&self) {
        let core = self.core.borrow();
        if !core.outbox.is_empty() {
            self.broker.wake_publisher();
        }
        if core.has_again() {
            self.again.notify_one();
        }
    }

    pub(super) fn guarded(&self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Core)) {
        self.core.borrow_mut().guarded(key, now, act);
    }

    pub(super) fn flush(&self) {
        if self.is_frozen.get() {
            // It is asked for again when all goes on.
            self.next_flush.set(None);
            return;
        }
        let mut core = self.core.borrow_mut();
        let next = core.flush(self.now());
        if core.has_again() {
            self.again.notify_one();
        }
        drop(core);
        let before = self.next_flush.replace(next);
        if next.is_some_and(|next| before.is_none_or(|before| next < before)) {
            self.flush_sooner.notify_one();
        }
    }
}
