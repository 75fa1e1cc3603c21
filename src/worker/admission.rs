//! Admission of handshakes: sends each to its worker, and refuses it when the worker has no room.
//!
//! May not enter: HTTP, how a session opens (`opening.rs`).

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::command::{Command, Mailbox, State};
use super::opening::{Opening, Refusal};
use super::state::Worker;
use crate::broker::Broker;
use crate::clock::millis;
use crate::config::Config;
use crate::metrics::Shard;
use crate::notice;
use crate::protocol::endpoint::Endpoint;

/// Connections on their way to a session; each holds one of the permits for handshakes. While the worker is quiesced,
/// further connections wait in the tasks of their handshakes.
pub(super) const MAX_OPENINGS: usize = 128;

/// A worker, as handshakes use it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) config: Arc<Config>,
    pub(crate) endpoints: Rc<[Rc<Endpoint>]>,
    pub(crate) shard: Arc<Shard>,
    pub(super) mailbox: Mailbox,
    pub(super) openings: mpsc::Sender<Box<Opening>>,
}

impl Handle {
    /// Why messages do not flow from the broker to sessions and back, if they do not.
    pub(crate) async fn fault(&self) -> Option<String> {
        match self.mailbox.ask(Command::State).await {
            Ok(state) => state.fault,
            Err(ended) => Some(ended.to_string()),
        }
    }

    /// Makes a session of a connection, or refuses its client.
    pub(crate) async fn open(&self, opening: Opening) {
        // A worker that has ended closes its connections.
        self.openings.send(Box::new(opening)).await.ok();
    }
}

impl Worker {
    /// The state that an operator sees.
    pub(super) fn state(&self, broker: &Broker) -> State {
        State { handshakes: self.handshakes.count(), fault: self.fault(broker) }
    }

    /// Why messages do not flow from the broker to sessions and back, if they do not.
    fn fault(&self, broker: &Broker) -> Option<String> {
        if self.phase.is_draining() {
            return Some(Refusal::Draining.to_string());
        }
        let full = || format!("full: {} WebSockets are open, which is the limit", self.max_sessions);
        let spent = || {
            let (used, max) = (self.budget.used(), self.budget.max());
            format!("memory is short: {used} bytes are in use, and limits.memory allows {max}")
        };
        broker.fault().or_else(|| self.is_full().then(full)).or_else(|| self.budget.is_spent().then(spent))
    }

    /// Whether the limit of sessions is reached.
    fn is_full(&self) -> bool {
        self.metrics.sessions() >= self.max_sessions as u64
    }

    /// Makes a session of a connection and subscribes it, or refuses its client.
    pub(super) fn admit(&mut self, opening: Box<Opening>, broker: &Broker) {
        if let Err(refusal) = self.has_room(&opening, broker) {
            return opening.refuse(refusal);
        }
        let left = opening.deadline.saturating_duration_since(Instant::now());
        let left = left.min(self.config.redis.subscribe_timeout);
        let now = self.now();
        let key = self.core.admit(opening, now + millis(left), now);
        self.guarded(key, now, |core| core.begin(key, now));
    }

    fn has_room(&self, opening: &Opening, broker: &Broker) -> Result<(), Refusal> {
        if self.phase.is_draining() {
            return Err(Refusal::Draining);
        }
        if self.is_full() {
            notice::FULL.add(self.max_sessions);
            return Err(Refusal::Full);
        }
        if self.budget.is_spent() {
            notice::NO_MEMORY.add(self.budget.max());
            return Err(Refusal::NoMemory);
        }
        let channel = &opening.grant.channel;
        if !broker.is_reachable(channel) && !self.core.hub.is_confirmed(channel) {
            return Err(Refusal::BrokerAway);
        }
        Ok(())
    }

    /// Opens the sessions that are subscribed.
    pub(super) fn open_subscribed(&mut self) {
        for key in self.core.take_upgrades() {
            let now = self.now();
            self.guarded(key, now, |core| core.open(key, now));
        }
    }
}
