//! Producers and clients of one scene, and the book that is kept of them. May not enter: faults.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::message::{CHANNELS, Id, LAPS, redis_name};
use super::producer::{connect, produce};
use super::reader::{Reader, Seen, Transport};
use super::truth::Truth;
use super::verdict::Verdict;
use crate::support::client::Target;
use crate::support::redis::Redis;
use crate::support::{SOON, START, holds_within, lasting};

/// The time in which messages reach every client again once a fault is over, however busy the machine is.
const LAP: Duration = Duration::from_secs(30);

/// Two producers and all clients.
pub(super) struct Book {
    /// The port to which messages are published.
    master: watch::Sender<u16>,
    /// Where clients connect.
    target: watch::Sender<Target>,
    stop_producers: watch::Sender<bool>,
    stop_clients: watch::Sender<bool>,
    producers: Vec<JoinHandle<Vec<bool>>>,
    clients: Vec<(Arc<AtomicU32>, JoinHandle<Seen>)>,
    /// Clients of another webws.
    control: Vec<JoinHandle<Seen>>,
    pub(super) truth: Truth,
    lap: u32,
}

/// What came of it all.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    /// Of the control's clients.
    pub(super) control: Verdict,
    /// Publications in Redis' log.
    pub(super) published: usize,
    /// Messages that Redis confirmed and that are not in its log: a failover lost them.
    pub(super) lost_by_redis: HashSet<Id>,
}

impl Book {
    /// Clients at `target`; then producers of `rate` messages a second each.
    pub(super) async fn open(redis: &Redis, target: Target, rate: u32, random: &mut Rng) -> Book {
        let truth = Truth::new(redis).await;
        let mut book = Book {
            master: watch::Sender::new(redis.port()),
            target: watch::Sender::new(target),
            stop_producers: watch::Sender::new(false),
            stop_clients: watch::Sender::new(false),
            producers: Vec::new(),
            clients: Vec::new(),
            control: Vec::new(),
            truth,
            lap: 0,
        };
        for client in 0..CHANNELS + CHANNELS / 5 {
            let transport = [Transport::Plain, Transport::Meta, Transport::Events][client % 3];
            // One in three of those that have positions leaves and comes back all the time.
            let flaps = (transport != Transport::Plain && client % 9 < 3).then(|| random.fork());
            book.clients.push(book.start(transport, client % CHANNELS, book.target.subscribe(), flaps));
        }
        book.lap().await;
        for producer in 1..=2 {
            let (master, stop) = (book.master.subscribe(), book.stop_producers.subscribe());
            book.producers.push(tokio::spawn(produce(producer, rate, master, stop)));
        }
        book
    }

    /// Adds clients of another webws.
    pub(super) fn control(&mut self, target: Target) {
        let target = watch::Sender::new(target);
        for channel in 0..CHANNELS / 10 {
            let (_, reading) = self.start(Transport::Plain, channel, target.subscribe(), None);
            self.control.push(reading);
        }
    }

    fn start(
        &self,
        transport: Transport,
        channel: usize,
        target: watch::Receiver<Target>,
        flaps: Option<Rng>,
    ) -> (Arc<AtomicU32>, JoinHandle<Seen>) {
        let (lap, stop) = (Arc::new(AtomicU32::new(0)), self.stop_clients.subscribe());
        let seen = Seen { transport, channel, is_steady: flaps.is_none(), entries: Vec::new() };
        let reader = Reader { seen, target, stop, lap: lap.clone(), flaps, position: String::new() };
        (lap, tokio::spawn(reader.run()))
    }

    /// Messages are published on another server from now on.
    pub(super) fn lead_producers_to(&self, redis: &Redis) {
        self.master.send_replace(redis.port());
    }

    /// Clients connect elsewhere from now on.
    pub(super) fn lead_clients_to(&self, target: Target) {
        self.target.send_replace(target);
    }

    /// Publishes a message on each channel, again and again, until every client has got one.
    pub(super) async fn lap(&mut self) {
        let (first, end) = (self.lap + 1, Instant::now() + LAP);
        loop {
            self.lap += 1;
            if self.publish_lap().await {
                let all = async || self.behind(first) == 0;
                if holds_within(SOON / 5, all).await {
                    return;
                }
            }
            assert!(Instant::now() < end, "{} clients get no message any more", self.behind(first));
            lasting(Duration::from_millis(50)).await;
        }
    }

    /// How many clients have not got that lap, or a later one.
    fn behind(&self, lap: u32) -> usize {
        self.clients.iter().filter(|(last, _)| last.load(Ordering::Relaxed) < lap).count()
    }

    /// Whether the server took it.
    async fn publish_lap(&self) -> bool {
        let port = *self.master.borrow();
        let Ok(Ok(mut connection)) = timeout(SOON, connect(port)).await else { return false };
        let mut pipeline = ::redis::pipe();
        for channel in 0..CHANNELS {
            let payload = Id { producer: LAPS, number: self.lap }.payload();
            pipeline.publish(redis_name(channel), payload).ignore();
        }
        pipeline.exec_async(&mut connection).await.is_ok()
    }

    /// Stops the producers, waits until all that they sent has come, and judges.
    pub(super) async fn close(mut self, redis: &Redis) -> Outcome {
        self.stop_producers.send_replace(true);
        let mut confirmed = HashSet::new();
        for (producer, producing) in (1..).zip(std::mem::take(&mut self.producers)) {
            let numbers = (0..).zip(producing.await.unwrap()).filter(|(_, is_confirmed)| *is_confirmed);
            confirmed.extend(numbers.map(|(number, _)| Id { producer, number }));
        }
        self.lap().await;
        // All are connected now: the last message of all reaches each.
        self.lap += 1;
        assert!(self.publish_lap().await);
        let all = async || self.behind(self.lap) == 0;
        assert!(holds_within(LAP, all).await, "{} clients do not get the last message", self.behind(self.lap));
        self.stop_clients.send_replace(true);
        self.truth.advance(redis).await;
        let clients = std::mem::take(&mut self.clients).into_iter().map(|(_, reading)| reading);
        let verdict = self.judge(clients.collect()).await;
        let control = std::mem::take(&mut self.control);
        let control = self.judge(control).await;
        let in_log = self.truth.ids();
        let published = self.truth.published.values().map(Vec::len).sum();
        confirmed.retain(|id| !in_log.contains(id));
        Outcome { verdict, control, published, lost_by_redis: confirmed }
    }

    async fn judge(&self, clients: Vec<JoinHandle<Seen>>) -> Verdict {
        let mut verdict = Verdict::default();
        for reading in clients {
            verdict.judge(&timeout(START, reading).await.expect("a client stops").unwrap(), &self.truth);
        }
        verdict
    }
}
