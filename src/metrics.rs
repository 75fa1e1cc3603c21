//! All counters, as an enum; one shard per worker, so that counting costs a plain add.
//!
//! May not enter: work on the message path beyond that add.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::close::CloseReason;
use crate::proxied::Proxied;

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
    /// Frames that slow sessions did not get (`on_slow`).
    FramesDropped,
    /// Client messages that the broker took.
    MessagesPublished,
    /// Client messages that the broker did not take, or whose fate is unknown.
    MessagesLost,
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
    /// Gaps that were filled from a node's replication log.
    GapsFilled,
    /// Clients that came back with a position, and got all that they missed.
    Recovered,
    /// Clients that came back with a position, and were told that publications may be missing.
    NotRecovered,
    /// Publications that recovered clients got.
    PublicationsRecovered,
    /// Clients that nginx handed off.
    Handoffs,
    /// Datagrams that were refused instead: their sender was not trusted, or they were not well-formed.
    HandoffsRefused,
    /// Handshakes that nginx proxied although it can hand clients off, by reason.
    Proxied(Proxied),
    /// Requests whose claims were dropped, because their sender is not trusted.
    ClaimsDropped,
    /// Sessions that ended, by reason.
    SessionsClosed(CloseReason),
}

const PLAIN: [(Counter, &str); 21] = [
    (Counter::SessionsOpened, "sessions_opened"),
    (Counter::HandshakesRefused, "handshakes_refused"),
    (Counter::PublicationsReceived, "publications_received"),
    (Counter::FramesDelivered, "frames_delivered"),
    (Counter::MessagesPublished, "texts_published"),
    (Counter::MessagesLost, "texts_lost"),
    (Counter::SubscriptionsLost, "subscriptions_lost"),
    (Counter::Gaps, "gaps"),
    (Counter::GapMillis, "gap_ms"),
    (Counter::BinariesTaken, "binaries_taken"),
    (Counter::BinariesIgnored, "binaries_ignored"),
    (Counter::BinariesRefused, "binaries_refused"),
    (Counter::PublicationsNotUtf8, "publications_not_utf8"),
    (Counter::Recovered, "recovered"),
    (Counter::NotRecovered, "not_recovered"),
    (Counter::PublicationsRecovered, "publications_recovered"),
    (Counter::GapsFilled, "gaps_filled"),
    (Counter::Handoffs, "handoffs"),
    (Counter::HandoffsRefused, "handoffs_refused"),
    (Counter::ClaimsDropped, "claims_dropped"),
    (Counter::FramesDropped, "frames_dropped"),
];

impl Counter {
    const COUNT: usize = PLAIN.len() + CloseReason::ALL.len() + Proxied::ALL.len();

    fn index(self) -> usize {
        match self {
            Self::SessionsOpened => 0,
            Self::HandshakesRefused => 1,
            Self::PublicationsReceived => 2,
            Self::FramesDelivered => 3,
            Self::MessagesPublished => 4,
            Self::MessagesLost => 5,
            Self::SubscriptionsLost => 6,
            Self::Gaps => 7,
            Self::GapMillis => 8,
            Self::BinariesTaken => 9,
            Self::BinariesIgnored => 10,
            Self::BinariesRefused => 11,
            Self::PublicationsNotUtf8 => 12,
            Self::Recovered => 13,
            Self::NotRecovered => 14,
            Self::PublicationsRecovered => 15,
            Self::GapsFilled => 16,
            Self::Handoffs => 17,
            Self::HandoffsRefused => 18,
            Self::ClaimsDropped => 19,
            Self::FramesDropped => 20,
            Self::SessionsClosed(reason) => PLAIN.len() + reason as usize,
            Self::Proxied(reason) => PLAIN.len() + CloseReason::ALL.len() + reason as usize,
        }
    }
}

/// One worker's counts. Only the worker adds; any thread may read.
#[derive(Debug)]
pub(crate) struct Shard {
    counts: [AtomicU64; Counter::COUNT],
    sessions: AtomicU64,
    /// The memory of the session that uses most, when the worker last looked for such sessions.
    largest: AtomicUsize,
    beats: AtomicU64,
}

impl Shard {
    pub(crate) fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; Counter::COUNT],
            sessions: AtomicU64::new(0),
            largest: AtomicUsize::new(0),
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

    /// The bytes of the session that uses most memory.
    pub(crate) fn set_largest(&self, memory: usize) {
        self.largest.store(memory, Ordering::Relaxed);
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

/// Logs `text` with all counters as fields.
macro_rules! log_all {
    ($level:ident, $metrics:ident, $successor:expr, $text:expr) => {
        tracing::$level!(
            pid = $successor,
            sessions = $metrics.sessions(),
            log_lines_dropped = crate::log::dropped_lines(),
            sessions_opened = $metrics.get(Counter::SessionsOpened),
            handshakes_refused = $metrics.get(Counter::HandshakesRefused),
            claims_dropped = $metrics.get(Counter::ClaimsDropped),
            publications_received = $metrics.get(Counter::PublicationsReceived),
            frames_delivered = $metrics.get(Counter::FramesDelivered),
            frames_dropped = $metrics.get(Counter::FramesDropped),
            texts_published = $metrics.get(Counter::MessagesPublished),
            texts_lost = $metrics.get(Counter::MessagesLost),
            subscriptions_lost = $metrics.get(Counter::SubscriptionsLost),
            gaps = $metrics.get(Counter::Gaps),
            gap_ms = $metrics.get(Counter::GapMillis),
            binaries_taken = $metrics.get(Counter::BinariesTaken),
            binaries_ignored = $metrics.get(Counter::BinariesIgnored),
            binaries_refused = $metrics.get(Counter::BinariesRefused),
            publications_not_utf8 = $metrics.get(Counter::PublicationsNotUtf8),
            handoffs = $metrics.get(Counter::Handoffs),
            handoffs_refused = $metrics.get(Counter::HandoffsRefused),
            proxied = $metrics.proxied(),
            closed_client_closed = $metrics.closed(CloseReason::ClientClosed),
            closed_client_gone = $metrics.closed(CloseReason::ClientGone),
            closed_protocol_error = $metrics.closed(CloseReason::ProtocolError),
            closed_invalid_text = $metrics.closed(CloseReason::InvalidText),
            closed_too_big = $metrics.closed(CloseReason::TooBig),
            closed_publish_denied = $metrics.closed(CloseReason::PublishDenied),
            closed_too_fast = $metrics.closed(CloseReason::TooFast),
            closed_binary_refused = $metrics.closed(CloseReason::BinaryRefused),
            closed_slow_consumer = $metrics.closed(CloseReason::SlowConsumer),
            closed_memory = $metrics.closed(CloseReason::Memory),
            closed_stalled = $metrics.closed(CloseReason::Stalled),
            closed_silent = $metrics.closed(CloseReason::Silent),
            closed_not_published = $metrics.closed(CloseReason::NotPublished),
            closed_subscription_lost = $metrics.closed(CloseReason::SubscriptionLost),
            closed_gap = $metrics.closed(CloseReason::Gap),
            closed_expired = $metrics.closed(CloseReason::Expired),
            closed_going_away = $metrics.closed(CloseReason::GoingAway),
            closed_answered = $metrics.closed(CloseReason::Answered),
            closed_internal = $metrics.closed(CloseReason::Internal),
            "{}",
            $text
        )
    };
}

impl Metrics {
    pub(crate) fn new(shards: Arc<[Arc<Shard>]>) -> Self {
        Self { shards }
    }

    /// Sessions that are open now.
    pub fn sessions(&self) -> u64 {
        self.shards.iter().map(|shard| shard.sessions()).sum()
    }

    /// The bytes of the session that uses most memory, where workers have looked for such sessions.
    pub(crate) fn largest(&self) -> usize {
        self.shards.iter().map(|shard| shard.largest.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    fn get(&self, counter: Counter) -> u64 {
        self.shards.iter().map(|shard| shard.get(counter)).sum()
    }

    /// Logs the end of the service. `successor` is the process that serves now, if any.
    pub(crate) fn log_stopped(&self, successor: Option<u32>) {
        let text = match successor {
            Some(pid) => format!("stopped, process {pid} continues to serve: {self}"),
            None => format!("stopped: {self}"),
        };
        log_all!(info, self, successor, text);
    }

    /// Logs that a second signal to stop ends the service at once.
    pub(crate) fn log_cut_off(&self) {
        let sessions = self.sessions();
        let text = format!("stopped at once by a second signal, {sessions} sessions are cut off: {self}");
        log_all!(warn, self, None::<u32>, text);
    }

    /// How many handshakes were proxied although nginx can hand clients off; none when it is zero.
    fn proxied(&self) -> Option<u64> {
        let all = Proxied::ALL.into_iter().map(|reason| self.get(Counter::Proxied(reason)));
        Some(all.sum()).filter(|count| *count > 0)
    }

    /// For the status line: how many clients nginx has handed off, how many handshakes it has proxied instead, and why.
    /// None where nginx does not hand off clients.
    pub(crate) fn straight(&self) -> Option<String> {
        let (handoffs, proxied) = (self.get(Counter::Handoffs), self.proxied());
        if handoffs == 0 && proxied.is_none() {
            return None;
        }
        let reasons = Proxied::ALL.into_iter().map(|reason| (self.get(Counter::Proxied(reason)), reason.label()));
        let reasons = reasons.filter(|(count, _)| *count > 0).map(|(count, label)| format!("{label} {count}"));
        let reasons = reasons.collect::<Vec<_>>().join(", ");
        let proxied = proxied.map_or_else(|| "none proxied".to_owned(), |count| format!("{count} proxied ({reasons})"));
        Some(format!("{handoffs} clients straight from nginx, {proxied}"))
    }

    /// How many sessions have ended for this reason; none when it is zero.
    fn closed(&self, reason: CloseReason) -> Option<u64> {
        Some(self.get(Counter::SessionsClosed(reason))).filter(|count| *count > 0)
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
        for reason in Proxied::ALL {
            match self.get(Counter::Proxied(reason)) {
                0 => {}
                count => write!(f, " proxied_{}={count}", reason.label())?,
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
        let all = all.chain(CloseReason::ALL.map(Counter::SessionsClosed));
        let all: Vec<_> = all.chain(Proxied::ALL.map(Counter::Proxied)).collect();
        for counter in &all {
            shard.add(*counter, 1);
        }
        assert!(all.iter().all(|counter| shard.get(*counter) == 1));
    }

    #[test]
    fn the_status_says_what_came_straight_and_why_the_rest_did_not() {
        let shard = Arc::new(Shard::new());
        let metrics = Metrics::new(Arc::new([shard.clone()]));
        assert_eq!(metrics.straight(), None);
        shard.add(Counter::Handoffs, 5);
        assert_eq!(metrics.straight().as_deref(), Some("5 clients straight from nginx, none proxied"));
        for value in ["no; reason=tls", "no; reason=full", "no; reason=tls", "no; reason=else", "x"] {
            shard.add(Counter::Proxied(Proxied::of(value)), 1);
        }
        let expected = "5 clients straight from nginx, 5 proxied (tls 2, full 1, other 2)";
        assert_eq!(metrics.straight().as_deref(), Some(expected));
        assert!(metrics.to_string().ends_with(" proxied_tls=2 proxied_full=1 proxied_other=2"), "{metrics}");
    }
}
