//! One thread with everything it needs: runtime, sessions, hub, its own links to the broker,
//! reactor, timer wheel, counters. Nothing on the message path is shared between workers.
//!
//! Here the rooms meet: sockets, time and the broker (`sink.rs`) move the sessions in `core.rs`. May not enter: HTTP, what bytes mean.

mod core;
pub(crate) mod handover;
pub(crate) mod reactor;
mod sink;
mod wheel;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::reactor::{Reactor, Ready};
use crate::broker::{Broker, memory, redis};
use crate::channel::Channel;
use crate::channel::SubscriptionRefused;
use crate::close::CloseReason;
use crate::config::Config;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::{Counter, Metrics, Shard};
use crate::notice;
use crate::placement::Placement;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::hub::Joined;
use crate::protocol::session::{Outcome, Session};

use crate::clock::{self, Clock, Millis, millis};
use crate::protocol::encoding::Wire;
use crate::throttle::Throttle;
use crate::worker::wheel::TICK;

pub(crate) use self::core::PortableText;

use self::core::Core;
use self::handover::Ask;

/// What the server asks of its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    Drain,
}

/// A message from [`crate::Publisher`].
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
    pub(crate) tell: oneshot::Sender<Result<(), NotPublished>>,
}

/// A worker's broker on its way to the worker's thread.
#[derive(Debug)]
pub(crate) enum BrokerSeed {
    Memory(memory::PortSeed),
    Redis(redis::Deployment),
}

/// A worker on its way to its thread.
#[derive(Debug)]
pub(crate) struct WorkerSeed {
    pub(crate) config: Arc<Config>,
    pub(crate) broker: BrokerSeed,
    pub(crate) shard: Arc<Shard>,
    pub(crate) metrics: Metrics,
    pub(crate) max_sessions: usize,
    pub(crate) requests: Option<mpsc::Receiver<PublishRequest>>,
    pub(crate) orders: watch::Receiver<Order>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Whether it begins at rest, because another process' sessions are to come.
    pub(crate) rests: bool,
}

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
    Channel(SubscriptionRefused),
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) endpoints: Vec<Rc<Endpoint>>,
    pub(crate) shard: Arc<Shard>,
    broker: Broker,
    core: RefCell<Core>,
    metrics: Metrics,
    max_sessions: usize,
    clock: Clock,
    is_draining: Cell<bool>,
    /// Whether everything stands still for a hand-over.
    is_resting: Cell<bool>,
    rests_since: Cell<Millis>,
    /// Whether its sessions are in words already: nothing may be sent to their clients.
    is_frozen: Cell<bool>,
    /// Whether clients are being told of a gap.
    is_closing_gapped: Cell<bool>,
    /// Whether its sessions were without a process for a moment, by a restart.
    was_restarted: Cell<bool>,
    /// Connections that are being answered.
    pub(crate) handshakes: Cell<usize>,
    again: Notify,
    /// When to flush what the hub holds back, and that it is sooner than before.
    next_flush: Cell<Option<Instant>>,
    flush_sooner: Notify,
    /// Sessions to close because of a gap.
    gapped: RefCell<Vec<SessionKey>>,
    gap: Notify,
}

/// How long the end waits beyond all other times: for the replies to close frames.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(3);

/// Runs a worker until it has drained, or at once to its end when its server is gone.
///
/// `front` brings connections to it.
///
/// # Errors
/// When the thread's runtime or reactor cannot be made.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    seed: WorkerSeed,
    front: impl FnOnce(Rc<Worker>) -> F,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (reactor, registrar) = reactor::new()?;
        let WorkerSeed { requests, mut orders, mut asks, .. } = seed;
        let placement = match &seed.broker {
            BrokerSeed::Memory(_) => Placement::over(1),
            BrokerSeed::Redis(deployment) => deployment.placement(),
        };
        let worker = Rc::new(Worker {
            endpoints: seed.config.endpoints.iter().map(|config| Rc::new(Endpoint::new(config.clone()))).collect(),
            broker: match seed.broker {
                BrokerSeed::Memory(seed) => Broker::Memory(memory::Port::new(seed)),
                BrokerSeed::Redis(deployment) => Broker::Redis(redis::Servers::new(deployment, placement.clone())),
            },
            core: RefCell::new(Core::new(&seed.config, placement.clone(), registrar, seed.shard.clone())),
            shard: seed.shard,
            metrics: seed.metrics,
            max_sessions: seed.max_sessions,
            config: seed.config,
            clock: Clock::new(),
            is_draining: Cell::new(false),
            is_resting: Cell::new(seed.rests),
            rests_since: Cell::new(clock::START),
            is_frozen: Cell::new(seed.rests),
            is_closing_gapped: Cell::new(false),
            was_restarted: Cell::new(false),
            handshakes: Cell::new(0),
            again: Notify::new(),
            next_flush: Cell::new(None),
            flush_sooner: Notify::new(),
            gapped: RefCell::default(),
            gap: Notify::new(),
        });
        // Dropped, and so ended, with this future.
        let mut tasks = JoinSet::new();
        let of = |worker: &Rc<Worker>| worker.clone();
        tasks.spawn_local({
            let worker = of(&worker);
            async move { worker.broker.run(worker.clone()).await }
        });
        tasks.spawn_local(of(&worker).react(reactor));
        tasks.spawn_local(of(&worker).tick());
        tasks.spawn_local(of(&worker).read_again());
        tasks.spawn_local(of(&worker).flush_held_back());
        tasks.spawn_local(of(&worker).close_gapped());
        tasks.spawn_local(front(of(&worker)));
        if let Some(requests) = requests {
            tasks.spawn_local(of(&worker).take_requests(requests));
        }
        tokio::select! {
            () = worker.serve_and_drain(&mut orders) => Ok(()),
            () = worker.obey(&mut asks) => Ok(()),
            Some(ended) = tasks.join_next() => Err(match ended {
                Err(panic) => std::io::Error::other(panic),
                Ok(()) => std::io::Error::other("a task of the worker ended before its time"),
            }),
        }
    })
}

/// What sessions may do before the worker's other tasks have their turn, in [`Core::work`]. Chosen: some
/// milliseconds at most, whatever clients send; and 128 events that bring little.
const SLICE_BYTES: usize = 256 << 10;

/// Timers handled before the same.
const TIMERS_PER_SLICE: usize = 512;

/// How often some more sessions are closed, when closing is spread over a time.
const SPREAD_STEP: std::time::Duration = std::time::Duration::from_millis(10);

/// How many of `total` have their turn after `elapsed`, evenly over `time` and one at least.
fn share_of(total: usize, elapsed: std::time::Duration, time: std::time::Duration) -> usize {
    let share = elapsed.as_secs_f64() / time.as_secs_f64().max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to total, or more")]
    let count = (share * total as f64) as usize;
    count.saturating_add(1).min(total)
}

impl Worker {
    fn now(&self) -> Millis {
        self.clock.now()
    }

    async fn serve_and_drain(&self, orders: &mut watch::Receiver<Order>) {
        if orders.wait_for(|order| *order == Order::Drain).await.is_err() {
            return;
        }
        self.is_draining.set(true);
        let mut open = self.core.borrow().open_keys();
        fastrand::shuffle(&mut open);
        self.core.borrow_mut().hub.stop_pacing();
        self.flush();
        let start = Instant::now();
        // Those with texts that the broker has not answered for wait for its word, within the
        // time that their endpoints give it.
        let patience = self.config.endpoints.iter().map(|endpoint| endpoint.publish_timeout).max();
        let deadline = start + self.config.drain_time + patience.unwrap_or_default() + LAST_WORDS;
        let (total, mut closed) = (open.len(), 0);
        loop {
            let closed_by_now = share_of(total, start.elapsed(), self.config.drain_time);
            let now = self.now();
            open.retain(|key| {
                if closed >= closed_by_now || self.core.borrow_mut().has_unpublished(*key) {
                    return true;
                }
                closed += 1;
                self.guarded(*key, now, |core| core.settle(*key, Outcome::Close(CloseReason::GoingAway), now));
                false
            });
            self.after_reading();
            tokio::time::sleep(SPREAD_STEP).await;
            let is_done = open.is_empty() && self.handshakes.get() == 0 && self.core.borrow().is_idle();
            if is_done || Instant::now() >= deadline {
                break;
            }
        }
        // What was taken and not answered for is counted when the broker's side is dropped.
        let left = self.core.borrow().outbox.waiting() as u64;
        if left > 0 {
            self.shard.add(Counter::TextsLost, left);
            tracing::warn!(
                left,
                "{left} messages of clients were still unpublished at the end of drain_time and are lost"
            );
        }
    }

    /// Handles the sockets' readiness.
    async fn react(self: Rc<Self>, mut reactor: Reactor) {
        let mut events = Vec::new();
        loop {
            if let Err(error) = reactor.turn(&mut events).await {
                tracing::error!(%error, "a worker cannot wait for its sockets any more ({error}), and ends");
                return;
            }
            self.give_turns(events.drain(..)).await;
        }
    }

    /// Lets sessions read and write, and the worker's other tasks have their turn after a bounded amount of
    /// work, and at the end: what is always ready must not keep them waiting.
    async fn give_turns(&self, turns: impl Iterator<Item = Ready>) {
        for turn in turns {
            // While everything stands still nobody is read; it is told once more when all goes on.
            if self.is_resting.get() {
                continue;
            }
            let now = self.now();
            self.guarded(turn.key, now, |core| core.on_ready(turn, now));
            if self.core.borrow().work() >= SLICE_BYTES {
                self.end_slice().await;
            }
        }
        self.end_slice().await;
    }

    async fn end_slice(&self) {
        self.core.borrow_mut().begin_slice();
        self.after_reading();
        tokio::task::yield_now().await;
    }

    /// Reads on where a session had more than its turn, after the others had theirs.
    async fn read_again(self: Rc<Self>) {
        loop {
            self.again.notified().await;
            // After the others, which may be many.
            tokio::task::yield_now().await;
            if self.is_resting.get() {
                continue;
            }
            let again = self.core.borrow_mut().take_again();
            self.give_turns(again.into_iter().map(Ready::again)).await;
        }
    }

    fn after_reading(&self) {
        let core = self.core.borrow();
        if !core.outbox.is_empty() {
            self.broker.wake_publisher();
        }
        if core.has_again() {
            self.again.notify_one();
        }
    }

    fn guarded(&self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Core)) {
        self.core.borrow_mut().guarded(key, now, act);
    }

    /// Pings, deadlines, lingering channels.
    async fn tick(self: Rc<Self>) {
        static TEXTS_LOST: Throttle = Throttle::per_minute();
        let longest = self.config.endpoints.iter().map(|endpoint| millis(endpoint.publish_timeout)).max();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut due = VecDeque::new();
        loop {
            ticks.tick().await;
            self.shard.beat();
            let now = self.now();
            if self.is_resting.get() {
                continue;
            }
            due.extend(self.core.borrow_mut().wheel.advance(now));
            while !self.is_resting.get() && !due.is_empty() {
                for (key, at) in due.drain(..due.len().min(TIMERS_PER_SLICE)) {
                    self.guarded(key, now, |core| core.on_due(key, at, now));
                }
                tokio::task::yield_now().await;
            }
            if self.is_resting.get() {
                continue;
            }
            let mut core = self.core.borrow_mut();
            core.hub.expire(now, |node, channel| self.broker.unsubscribe(node, channel));
            // A second later than the sessions' own deadline, which counts from the last progress.
            let lost = core.outbox.expire(now.saturating_sub(longest.unwrap_or(0) + 1_000));
            self.shard.add(Counter::TextsLost, lost.len() as u64 + core.outbox.take_dropped());
            if !lost.is_empty() && TEXTS_LOST.allows() {
                let lost = lost.len();
                tracing::warn!(
                    lost,
                    "{lost} messages of clients waited longer than publish_timeout and are lost: their WebSockets are \
                     closed with 1013"
                );
            }
            for key in lost {
                core.guarded(key, now, |core| core.settle_if_open(key, CloseReason::NotPublished, now));
            }
            core.release_held();
            drop(core);
            self.after_reading();
            notice::tell_due();
            self.shard.beat();
        }
    }

    fn flush(&self) {
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

    /// Flushes what the hub held back.
    async fn flush_held_back(self: Rc<Self>) {
        loop {
            match self.next_flush.get() {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => self.flush(),
                    // Another is due before.
                    () = self.flush_sooner.notified() => {}
                },
                None => self.flush_sooner.notified().await,
            }
        }
    }

    /// Closes those whose messages may be missing, spread over a time.
    async fn close_gapped(self: Rc<Self>) {
        loop {
            self.gap.notified().await;
            self.is_closing_gapped.set(true);
            let mut keys = std::mem::take(&mut *self.gapped.borrow_mut());
            fastrand::shuffle(&mut keys);
            let (start, total) = (Instant::now(), keys.len());
            while !keys.is_empty() {
                if self.is_resting.get() {
                    tokio::time::sleep(SPREAD_STEP).await;
                    continue;
                }
                let left = total - share_of(total, start.elapsed(), self.config.drain_time);
                let now = self.now();
                for key in keys.drain(left..) {
                    self.guarded(key, now, |core| core.settle_if_open(key, CloseReason::Gap, now));
                }
                self.after_reading();
                tokio::time::sleep(SPREAD_STEP).await;
            }
            self.is_closing_gapped.set(!self.gapped.borrow().is_empty());
        }
    }

    async fn take_requests(self: Rc<Self>, mut requests: mpsc::Receiver<PublishRequest>) {
        while let Some(PublishRequest { channel, payload, tell }) = requests.recv().await {
            let now = self.now();
            let outbox = &mut self.core.borrow_mut().outbox;
            if outbox.is_full(outbox.node_of(&channel)) {
                drop(tell.send(Err(NotPublished::Unavailable)));
            } else {
                outbox.push(ClientMessage { channel, payload, origin: Origin::Publisher(tell), since: now });
                self.broker.wake_publisher();
            }
        }
        // All publishers are gone; the worker goes on.
        std::future::pending::<()>().await;
    }

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
        wire: Wire,
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
        let (admission, joined) = self.reserve(endpoint, &channel, wire);
        let Some(joined) = joined else { return Ok(admission) };
        if joined.is_first {
            self.broker.subscribe(joined.node, channel);
        }
        let Some(confirmation) = joined.confirmation else { return Ok(admission) };
        let deadline = deadline.min(Instant::now() + self.config.redis.subscribe_timeout);
        match clock::timeout_at(deadline, confirmation).await {
            Ok(Ok(Ok(()))) if self.is_draining.get() => Err(Refusal::Draining),
            Ok(Ok(Ok(()))) => Ok(admission),
            Ok(Ok(Err(refused))) => Err(Refusal::Channel(refused)),
            Ok(Err(_)) | Err(_) => Err(Refusal::BrokerSlow),
        }
    }

    /// Makes a session without a socket and, where its endpoint receives, a subscriber of it.
    fn reserve(self: &Rc<Self>, endpoint: &Rc<Endpoint>, channel: &Channel, wire: Wire) -> (Admission, Option<Joined>) {
        let now = self.now();
        let mut core = self.core.borrow_mut();
        let key = core.insert(Session::new(endpoint.clone(), channel.clone(), wire, now));
        let joined = endpoint.config.subscribe.then(|| core.hub.join(channel, wire, key));
        if let (Some(joined), Some(session)) = (&joined, core.session(key)) {
            session.subscriptions.push(joined.subscriber);
            session.channel = joined.channel.clone();
        }
        (Admission { worker: self.clone(), key: Some(key) }, joined)
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
            worker.guarded(key, now, |core| core.settle(key, Outcome::Close(CloseReason::GoingAway), now));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Node;
    use crate::protocol::encoding::Wire;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A session on `chat:a` of a core, and its client.
    fn open(core: &mut Core, endpoint: &Rc<Endpoint>) -> (SessionKey, UnixStream) {
        let channel = Channel::from_static(b"chat:a");
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let key = core.insert(Session::new(endpoint.clone(), channel.clone(), Wire::Plain, 0));
        let joined = core.hub.join(&channel, Wire::Plain, key);
        core.session(key).unwrap().subscriptions.push(joined.subscriber);
        core.attach(key, ours.into(), b"101", b"", 0);
        (key, theirs)
    }

    fn core_with(limits: crate::Limits) -> (Reactor, Core, Rc<Endpoint>) {
        let (reactor, registrar) = reactor::new().unwrap();
        let core =
            Core::new(&Config { limits, ..Config::default() }, Placement::over(1), registrar, Arc::new(Shard::new()));
        (reactor, core, Rc::new(Endpoint::new(crate::EndpointConfig::default())))
    }

    #[tokio::test]
    async fn when_too_much_waits_to_be_published_nobody_is_read_and_later_all_are() {
        let limits = crate::Limits { max_unpublished_bytes: 100_000, ..crate::Limits::default() };
        let (_reactor, mut core, endpoint) = core_with(limits);
        let mut clients: Vec<_> = (0..20).map(|_| open(&mut core, &endpoint)).collect();
        let frame = [&[0x81, 0x80 | 126, 0xea, 0x60, 0, 0, 0, 0][..], &[b'x'; 60_000]].concat();
        for (_, client) in &mut clients {
            client.write_all(&frame).unwrap();
        }
        // Twice: who is not read is told of again when more comes, and is in the list once.
        let keys = clients.iter().chain(&clients).map(|(key, _)| *key);
        for key in keys {
            core.read_again(key);
        }
        let mut published = 0;
        while core.has_again() {
            for key in core.take_again() {
                core.on_ready(Ready::again(key), 0);
            }
            assert!(core.outbox.waiting() <= 2, "{} texts wait", core.outbox.waiting());
            for text in core.outbox.take(Node(0), usize::MAX) {
                published += 1;
                let bytes = text.cost();
                let Origin::Session(key) = text.origin else { panic!("nobody else publishes") };
                core.on_published(key, bytes, 0);
            }
            core.release_held();
        }
        assert_eq!(published, 20);
    }

    #[tokio::test]
    async fn a_panic_in_one_session_closes_it_and_no_other() {
        let (_reactor, mut core, endpoint) = core_with(crate::Limits::default());
        let ((faulty, mut its), (_, mut others)) = (open(&mut core, &endpoint), open(&mut core, &endpoint));
        core.guarded(faulty, 0, |_| panic!("on purpose"));
        core.hub.append(b"chat:a", b"x");
        core.flush(0);
        let read = |socket: &mut UnixStream| {
            let mut bytes = Vec::new();
            let end = socket.read_to_end(&mut bytes);
            (bytes, end.map_err(|error| error.kind()).is_ok())
        };
        assert_eq!(read(&mut its), (b"101".to_vec(), true));
        assert_eq!(read(&mut others), (b"101\x81\x01x".to_vec(), false));
    }
}
