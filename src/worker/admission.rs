//! How handshakes reach their worker: room for a session, and its subscription, before the 101.
//!
//! May not enter: HTTP.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::state::{Shared, Worker};
use crate::broker::Request;
use crate::channel::Channel;
use crate::clock::millis;
use crate::close::CloseReason;
use crate::config::Config;
use crate::id::SessionKey;
use crate::metrics::{Counter, Shard};
use crate::notice;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::session::Denial;

/// Why a handshake was not admitted: the reason in its 503.
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

/// What came of a subscription that a handshake waits for.
type Told = oneshot::Receiver<Result<(), Denial>>;

/// A worker as its handshakes have it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) config: Arc<Config>,
    pub(crate) endpoints: Rc<[Rc<Endpoint>]>,
    pub(crate) shard: Arc<Shard>,
    resumed: Rc<Notify>,
    worker: Shared,
}

impl Handle {
    pub(super) fn of(worker: &Shared) -> Self {
        let this = worker.borrow();
        Self {
            config: this.config.clone(),
            endpoints: this.endpoints.clone(),
            shard: this.shard.clone(),
            resumed: this.resumed.clone(),
            worker: worker.clone(),
        }
    }

    /// Why messages do not flow from the broker to sessions and back, if they do not.
    pub(crate) fn fault(&self) -> Option<String> {
        self.worker.borrow().fault()
    }

    /// Makes room for a session on `channel` and subscribes it; from then on what is published
    /// waits for it.
    ///
    /// # Errors
    /// Why there is no room, or no subscription within `redis.subscribe_timeout` or by `deadline`.
    pub(crate) async fn admit(
        &self,
        endpoint: &Rc<Endpoint>,
        channel: Channel,
        encoding: Encoding,
        deadline: Instant,
    ) -> Result<Admission, Refusal> {
        is_up(&self.worker, &self.resumed).await;
        let (key, told) = self.worker.borrow_mut().reserve(endpoint, channel, encoding, deadline)?;
        let (worker, resumed) = (self.worker.clone(), self.resumed.clone());
        let admission = Admission { worker, resumed, key: Some(key) };
        let Some(told) = told else { return Ok(admission) };
        match told.await {
            Ok(Ok(())) if self.worker.borrow().phase.is_draining() => Err(Refusal::Draining),
            Ok(Ok(())) => Ok(admission),
            Ok(Err(Denial::NotAllowed)) => Err(Refusal::Channel),
            // Without an answer the session has ended.
            Ok(Err(Denial::TimedOut)) | Err(_) => Err(Refusal::BrokerSlow),
        }
    }
}

impl Worker {
    /// Why messages do not flow from the broker to sessions and back, if they do not.
    pub(super) fn fault(&self) -> Option<String> {
        if self.phase.is_draining() {
            return Some(Refusal::Draining.to_string());
        }
        let full = || format!("full: {} WebSockets are open, which is the limit", self.max_sessions);
        self.broker.fault().or_else(|| self.is_full().then(full))
    }

    /// Whether there are as many sessions as there may be.
    fn is_full(&self) -> bool {
        self.metrics.sessions() >= self.max_sessions as u64
    }

    /// Makes a session without a socket and, where its endpoint receives, a subscriber of it. The answer of the
    /// broker comes by the returned receiver, where there has to be one.
    fn reserve(
        &mut self,
        endpoint: &Rc<Endpoint>,
        channel: Channel,
        encoding: Encoding,
        deadline: Instant,
    ) -> Result<(SessionKey, Option<Told>), Refusal> {
        if self.phase.is_draining() {
            return Err(Refusal::Draining);
        }
        if self.is_full() {
            notice::FULL.add(self.max_sessions);
            return Err(Refusal::Full);
        }
        if !self.broker.is_reachable(&channel) && !self.core.hub.is_confirmed(&channel) {
            return Err(Refusal::BrokerAway);
        }
        let left = deadline.saturating_duration_since(Instant::now()).min(self.config.redis.subscribe_timeout);
        let now = self.now();
        let admitted = self.core.admit(endpoint, channel, encoding, now + millis(left), now);
        self.subscribe_wanted();
        Ok(admitted)
    }

    /// Asks the broker for the channels that sessions want.
    pub(super) fn subscribe_wanted(&mut self) {
        for (node, channel) in self.core.take_wanted() {
            self.broker.request(Request::Subscribe { node, channel });
        }
    }

    fn attach(&mut self, key: SessionKey, socket: OwnedFd, head: &[u8], read_ahead: &[u8]) {
        let now = self.now();
        self.shard.add(Counter::SessionsOpened, 1);
        self.guarded(key, now, |core| core.attach(key, socket, head, read_ahead, now));
        if self.phase.is_draining() {
            self.guarded(key, now, |core| core.close(key, CloseReason::GoingAway, now));
        }
        self.after_change();
    }
}

/// Resolves when nothing stands still for a hand-over.
async fn is_up(worker: &Shared, resumed: &Notify) {
    while worker.borrow().phase.is_still() {
        resumed.notified().await;
    }
}

/// A session that waits for its socket; dropped, the session is forgotten.
#[derive(Debug)]
pub(crate) struct Admission {
    worker: Shared,
    resumed: Rc<Notify>,
    /// None once the session has its socket.
    key: Option<SessionKey>,
}

impl Admission {
    /// Gives the session its socket: `head`, the 101, is the first it sends, and the bytes that
    /// came behind the request the first it reads.
    pub(crate) async fn attach(mut self, socket: OwnedFd, head: &[u8], read_ahead: &[u8]) {
        // While everything stands still for a hand-over, neither process would have its session.
        is_up(&self.worker, &self.resumed).await;
        if let Some(key) = self.key.take() {
            self.worker.borrow_mut().attach(key, socket, head, read_ahead);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let worker = &mut *self.worker.borrow_mut();
            let now = worker.now();
            worker.core.remove(key, now);
            worker.after_change();
        }
    }
}
