//! All counters, as an enum; one shard per worker, so that counting costs a plain add.
//!
//! May not enter: work on the message path beyond that add.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::close::CloseReason;

/// A counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Sessions that got their 101.
    SessionsOpened,
    /// Handshakes answered with another status.
    HandshakesRefused,
    /// Publications that came from the broker.
    PublicationsReceived,
    /// Frames handed to sessions.
    FramesDelivered,
    /// Client messages that the broker took.
    TextsPublished,
    /// Client messages that the broker did not take, or whose fate is unknown.
    TextsLost,
    /// Clients' binary messages that entered the outbox. The broker's answer counts them once more, as published or
    /// lost.
    BinariesTaken,
    /// Clients' binary messages that the `lua` wire ignored.
    BinariesIgnored,
    /// Clients' binary messages over which the WebSocket was closed.
    BinariesRefused,
    /// Publications that were not UTF-8, on channels with subscribers.
    PublicationsNotUtf8,
    /// Subscriptions of channels that ended with their link.
    SubscriptionsLost,
    /// Gaps of a worker's subscriptions.
    Gaps,
    /// The gaps' length, in milliseconds.
    GapMillis,
    /// Sessions that ended, by reason.
    SessionsClosed(CloseReason),
}

const PLAIN: [(Counter, &str); 13] = [
    (Counter::SessionsOpened, "sessions_opened"),
    (Counter::HandshakesRefused, "handshakes_refused"),
    (Counter::PublicationsReceived, "publications_received"),
    (Counter::FramesDelivered, "frames_delivered"),
    (Counter::TextsPublished, "texts_published"),
    (Counter::TextsLost, "texts_lost"),
    (Counter::SubscriptionsLost, "subscriptions_lost"),
    (Counter::Gaps, "gaps"),
    (Counter::GapMillis, "gap_ms"),
    (Counter::BinariesTaken, "binaries_taken"),
    (Counter::BinariesIgnored, "binaries_ignored"),
    (Counter::BinariesRefused, "binaries_refused"),
    (Counter::PublicationsNotUtf8, "publications_not_utf8"),
];

impl Counter {
    const COUNT: usize = PLAIN.len() + CloseReason::ALL.len();

    fn index(self) -> usize {
        match self {
            Self::SessionsOpened => 0,
            Self::HandshakesRefused => 1,
            Self::PublicationsReceived => 2,
            Self::FramesDelivered => 3,
            Self::TextsPublished => 4,
            Self::TextsLost => 5,
            Self::SubscriptionsLost => 6,
            Self::Gaps => 7,
            Self::GapMillis => 8,
            Self::BinariesTaken => 9,
            Self::BinariesIgnored => 10,
            Self::BinariesRefused => 11,
            Self::PublicationsNotUtf8 => 12,
            Self::SessionsClosed(reason) => PLAIN.len() + reason as usize,
        }
    }
}

/// One worker's counts. Only the worker adds; any thread may read.
#[derive(Debug)]
pub(crate) struct Shard {
    counts: [AtomicU64; Counter::COUNT],
    sessions: AtomicU64,
    beats: AtomicU64,
}

impl Shard {
    pub(crate) fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; Counter::COUNT],
            sessions: AtomicU64::new(0),
            beats: AtomicU64::new(0),
        }
    }

    pub(crate) fn add(&self, counter: Counter, n: u64) {
        if let Some(count) = self.counts.get(counter.index()) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Sessions that are open or being opened.
    pub(crate) fn set_sessions(&self, sessions: usize) {
        self.sessions.store(sessions as u64, Ordering::Relaxed);
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The worker makes progress.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.counts.get(counter.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// A server's counts, readable from any thread, also after the server's end; cheap to clone. `Display` writes
/// `name=value` pairs, separated by blanks.
///
/// ```
/// # let mut config = webws::Config::default();
/// # config.broker = "memory".parse()?;
/// # let server = webws::Server::on(config, Vec::new())?;
/// let metrics = server.metrics();
/// assert_eq!(metrics.sessions(), 0);
/// assert!(metrics.to_string().contains(" publications_received=0 "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Metrics {
    shards: Arc<[Arc<Shard>]>,
}

impl Metrics {
    pub(crate) fn new(shards: Arc<[Arc<Shard>]>) -> Self {
        Self { shards }
    }

    /// Sessions that are open now.
    pub fn sessions(&self) -> u64 {
        self.shards.iter().map(|shard| shard.sessions()).sum()
    }

    fn get(&self, counter: Counter) -> u64 {
        self.shards.iter().map(|shard| shard.get(counter)).sum()
    }

    /// Logs the end of the service with all counters, in the text and as fields. `successor` is the process that
    /// serves now, if any.
    pub(crate) fn log_stopped(&self, successor: Option<u32>) {
        let closed = |reason| Some(self.get(Counter::SessionsClosed(reason))).filter(|count| *count > 0);
        let text = match successor {
            Some(pid) => format!("stopped, process {pid} continues to serve: {self}"),
            None => format!("stopped: {self}"),
        };
        tracing::info!(
            pid = successor,
            sessions = self.sessions(),
            log_lines_dropped = crate::log::dropped_lines(),
            sessions_opened = self.get(Counter::SessionsOpened),
            handshakes_refused = self.get(Counter::HandshakesRefused),
            publications_received = self.get(Counter::PublicationsReceived),
            frames_delivered = self.get(Counter::FramesDelivered),
            texts_published = self.get(Counter::TextsPublished),
            texts_lost = self.get(Counter::TextsLost),
            subscriptions_lost = self.get(Counter::SubscriptionsLost),
            gaps = self.get(Counter::Gaps),
            gap_ms = self.get(Counter::GapMillis),
            binaries_taken = self.get(Counter::BinariesTaken),
            binaries_ignored = self.get(Counter::BinariesIgnored),
            binaries_refused = self.get(Counter::BinariesRefused),
            publications_not_utf8 = self.get(Counter::PublicationsNotUtf8),
            closed_client_closed = closed(CloseReason::ClientClosed),
            closed_client_gone = closed(CloseReason::ClientGone),
            closed_protocol_error = closed(CloseReason::ProtocolError),
            closed_invalid_text = closed(CloseReason::InvalidText),
            closed_too_big = closed(CloseReason::TooBig),
            closed_publish_denied = closed(CloseReason::PublishDenied),
            closed_binary_refused = closed(CloseReason::BinaryRefused),
            closed_slow_consumer = closed(CloseReason::SlowConsumer),
            closed_stalled = closed(CloseReason::Stalled),
            closed_silent = closed(CloseReason::Silent),
            closed_not_published = closed(CloseReason::NotPublished),
            closed_subscription_lost = closed(CloseReason::SubscriptionLost),
            closed_gap = closed(CloseReason::Gap),
            closed_going_away = closed(CloseReason::GoingAway),
            closed_internal = closed(CloseReason::Internal),
            "{text}"
        );
    }
}

impl Metrics {
    /// Logs that the service is cut off by a second signal to stop.
    pub(crate) fn log_cut_off(&self) {
        let sessions = self.sessions();
        tracing::warn!(sessions, "stopped at once by a second signal, {sessions} sessions are cut off: {self}");
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sessions={} log_lines_dropped={}", self.sessions(), crate::log::dropped_lines())?;
        for (counter, name) in PLAIN {
            write!(f, " {name}={}", self.get(counter))?;
        }
        for reason in CloseReason::ALL {
            match self.get(Counter::SessionsClosed(reason)) {
                0 => {}
                count => write!(f, " closed_{}={count}", reason.row().label)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_an_index_of_its_own() {
        let shard = Shard::new();
        let all = PLAIN.map(|(counter, _)| counter).into_iter();
        let all: Vec<_> = all.chain(CloseReason::ALL.map(Counter::SessionsClosed)).collect();
        for counter in &all {
            shard.add(*counter, 1);
        }
        assert!(all.iter().all(|counter| shard.get(*counter) == 1));
    }
}
