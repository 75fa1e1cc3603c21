//! How a worker knows that its subscribing link hears: it publishes a number on a channel of its
//! own, through the same link as its clients' texts, and waits for it to come back.
//!
//! A PING answers on a link that delivers nothing any more; only a message proves a subscription.
//! A probe is missing when Redis has taken it and neither it nor any other message has come since.
//! While Redis does not answer at all, nothing can be said: that is for the links' own deadlines.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::endpoint::Channel;

/// What the channels of probes start with; an ACL has to allow `&webws:probe:*`.
const PREFIX: &str = "webws:probe:";

/// How often a number is published. Chosen: an outage is known to the second.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// How long a number may take that Redis has taken. Chosen: far above the time between two turns of
/// a worker at its limit, and together with [`INTERVAL`] well under the five seconds after which
/// people look for a fault.
const GRACE: Duration = Duration::from_secs(2);

/// One worker's probe.
#[derive(Debug)]
pub(super) struct Probe {
    channel: Channel,
    sent: Cell<u64>,
    sent_at: Cell<Option<Instant>>,
    heard: Cell<u64>,
    /// When a message came, a probe or another.
    heard_at: Cell<Instant>,
    /// Since when Redis has a number that has not come back.
    missing_since: Cell<Option<Instant>>,
    missing: Notify,
    /// Whether Redis lets us; by its ACL it may not.
    is_allowed: Cell<bool>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self {
            channel: Channel::from(format!("{PREFIX}{:016x}", fastrand::u64(..))),
            sent: Cell::new(0),
            sent_at: Cell::new(None),
            heard: Cell::new(0),
            heard_at: Cell::new(Instant::now()),
            missing_since: Cell::new(None),
            missing: Notify::new(),
            is_allowed: Cell::new(true),
        }
    }

    /// The channel to subscribe on each new link.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// A new link hears: what the old one missed is nobody's fault now.
    pub(super) fn begin(&self, is_allowed: bool) {
        self.is_allowed.set(is_allowed);
        self.missing_since.set(None);
        self.heard.set(self.sent.get());
        self.heard_at.set(Instant::now());
    }

    /// When a message came last.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at.get()
    }

    /// When the next number should be published; `None` where it may not.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.is_allowed.get().then(|| self.sent_at.get().map_or_else(Instant::now, |at| at + INTERVAL))
    }

    /// The next number, to be published now.
    pub(super) fn next(&self) -> u64 {
        self.sent.set(self.sent.get() + 1);
        self.sent_at.set(Some(Instant::now()));
        self.sent.get()
    }

    /// Redis does not let us publish it.
    pub(super) fn refused(&self) {
        self.is_allowed.set(false);
        self.missing_since.set(None);
    }

    /// Redis has taken `number`, and given it to so many subscribers.
    pub(super) fn on_published(&self, number: u64, receivers: i64) {
        if number <= self.heard.get() {
            return;
        }
        let now = Instant::now();
        let since = match self.missing_since.get() {
            // It says itself that we are not subscribed: nothing to wait for.
            _ if receivers == 0 => now.checked_sub(GRACE).unwrap_or(now),
            Some(since) => since,
            None => now,
        };
        self.missing_since.set(Some(since));
        self.missing.notify_one();
    }

    /// A message came. True when it was a probe and is nobody else's business.
    pub(super) fn takes(&self, channel: &[u8], payload: &[u8]) -> bool {
        if *channel != *self.channel {
            return false;
        }
        let number = std::str::from_utf8(payload).ok().and_then(|digits| digits.parse().ok());
        // Somebody else's joke proves that we hear, but nothing about the numbers.
        self.heard.set(number.unwrap_or(0).clamp(self.heard.get(), self.sent.get()));
        true
    }

    /// Messages came: whatever is missing may be behind them.
    pub(super) fn on_heard(&self) {
        let now = Instant::now();
        self.heard_at.set(now);
        let is_complete = self.heard.get() == self.sent.get();
        self.missing_since.set(self.missing_since.get().filter(|_| !is_complete).map(|_| now));
    }

    /// Resolves when a probe is missing; returns for how long nothing was heard.
    pub(super) async fn is_missed(&self) -> Duration {
        loop {
            match self.missing_since.get().map(|since| since + GRACE) {
                None => self.missing.notified().await,
                Some(limit) if limit <= Instant::now() => return self.heard_at.get().elapsed(),
                Some(limit) => tokio::select! {
                    () = tokio::time::sleep_until(limit) => {}
                    () = self.missing.notified() => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a probe is found missing within `limit`.
    async fn is_missed_within(probe: &Probe, limit: Duration) -> bool {
        tokio::time::timeout(limit, probe.is_missed()).await.is_ok()
    }

    fn hear(probe: &Probe, number: u64) {
        assert!(probe.takes(&probe.channel.clone(), number.to_string().as_bytes()));
        probe.on_heard();
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_comes_back_is_not_missed_whichever_answer_is_first() {
        let probe = Probe::new();
        probe.begin(true);
        let first = probe.next();
        hear(&probe, first);
        probe.on_published(first, 1);
        let second = probe.next();
        probe.on_published(second, 1);
        hear(&probe, second);
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_redis_took_and_nobody_heard_is_missed() {
        let probe = Probe::new();
        probe.begin(true);
        probe.on_published(probe.next(), 1);
        assert!(!is_missed_within(&probe, GRACE / 2).await);
        assert!(is_missed_within(&probe, GRACE).await);
        probe.begin(true);
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_behind_many_messages_is_waited_for() {
        let probe = Probe::new();
        probe.begin(true);
        probe.on_published(probe.next(), 1);
        for _ in 0..10 {
            assert!(!is_missed_within(&probe, GRACE / 2).await);
            assert!(!probe.takes(b"chat:a", b"1"));
            probe.on_heard();
        }
        assert!(is_missed_within(&probe, 2 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_without_receivers_is_missed_at_once() {
        let probe = Probe::new();
        probe.begin(true);
        tokio::time::advance(10 * GRACE).await;
        probe.on_published(probe.next(), 0);
        assert!(is_missed_within(&probe, Duration::from_millis(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn while_redis_takes_nothing_nothing_is_missed() {
        let probe = Probe::new();
        probe.begin(true);
        probe.next();
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }
}
