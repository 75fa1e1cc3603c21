//! Room for a handshake: a session without a socket, and its subscription, before the 101.
//!
//! May not enter: HTTP.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::time::Instant;

use super::state::Worker;
use crate::channel::Channel;
use crate::clock::millis;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::notice;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::session::Denial;

/// Why a handshake was not admitted: what is said in the 503.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the server goes away: try again")]
    Draining,
    #[error("the server has as many connections as it may have: try again later")]
    Full,
    #[error("the message broker is away: try again later")]
    BrokerAway,
    #[error("the message broker did not confirm the subscription in time: try again later")]
    BrokerSlow,
    #[error("the message broker does not allow this channel")]
    Channel,
}

impl Worker {
    /// Why messages do not flow from the broker to sessions and back, if they do not.
    pub(crate) fn fault(&self) -> Option<String> {
        if self.is_draining.get() {
            return Some(Refusal::Draining.to_string());
        }
        let full = || format!("full: {} WebSockets are open, which is the limit", self.max_sessions);
        self.broker.fault().or_else(|| self.is_full().then(full))
    }

    /// Whether there are as many sessions as there may be.
    fn is_full(&self) -> bool {
        self.metrics.sessions() >= self.max_sessions as u64
    }

    /// Makes room for a session on `channel` and subscribes it; from then on what is published
    /// waits for it.
    ///
    /// # Errors
    /// Why there is no room, or no subscription within `redis.subscribe_timeout` or by `deadline`.
    pub(crate) async fn admit(
        self: &Rc<Self>,
        endpoint: &Rc<Endpoint>,
        channel: Channel,
        encoding: Encoding,
        deadline: Instant,
    ) -> Result<Admission, Refusal> {
        self.is_up().await;
        if self.is_draining.get() {
            return Err(Refusal::Draining);
        }
        if self.is_full() {
            notice::FULL.add(self.max_sessions);
            return Err(Refusal::Full);
        }
        if !self.broker.is_reachable(&channel) && !self.core.borrow().hub.is_confirmed(&channel) {
            return Err(Refusal::BrokerAway);
        }
        let left = deadline.saturating_duration_since(Instant::now()).min(self.config.redis.subscribe_timeout);
        let now = self.now();
        let (key, told) = self.core.borrow_mut().admit(endpoint, channel, encoding, now + millis(left), now);
        let admission = Admission { worker: self.clone(), key: Some(key) };
        self.subscribe_wanted();
        let Some(told) = told else { return Ok(admission) };
        match told.await {
            Ok(Ok(())) if self.is_draining.get() => Err(Refusal::Draining),
            Ok(Ok(())) => Ok(admission),
            Ok(Err(Denial::NotAllowed)) => Err(Refusal::Channel),
            // Without an answer the session has ended.
            Ok(Err(Denial::TimedOut)) | Err(_) => Err(Refusal::BrokerSlow),
        }
    }

    /// Asks the broker for the channels that sessions want.
    pub(super) fn subscribe_wanted(&self) {
        let wanted = self.core.borrow_mut().take_wanted();
        for (node, channel) in wanted {
            self.broker.subscribe(node, channel);
        }
    }
}

/// A session that waits for its socket; dropped, the session is forgotten.
#[derive(Debug)]
pub(crate) struct Admission {
    worker: Rc<Worker>,
    /// None once the session has its socket.
    key: Option<SessionKey>,
}

impl Admission {
    /// Gives the session its socket: `head`, the 101, is the first it sends, and the bytes that
    /// came behind the request the first it reads.
    pub(crate) fn attach(mut self, socket: OwnedFd, head: &[u8], read_ahead: &[u8]) {
        let Some(key) = self.key.take() else { return };
        let worker = &self.worker;
        let now = worker.now();
        worker.shard.add(Counter::SessionsOpened, 1);
        worker.guarded(key, now, |core| core.attach(key, socket, head, read_ahead, now));
        if worker.is_draining.get() {
            worker.guarded(key, now, |core| core.close(key, CloseReason::GoingAway, now));
        }
        worker.after_reading();
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let now = self.worker.now();
            self.worker.core.borrow_mut().remove(key, now);
        }
    }
}
