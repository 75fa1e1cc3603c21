//! How a worker knows that its subscribing link hears: it publishes a number on a channel of its
//! own, through the same link as its clients' texts, and waits for it to come back.
//!
//! Each number is signed (`seal.rs`): others may be allowed to publish on these channels, and must not make a
//! link that is deaf look as if it heard.
//!
//! A PING answers on a link that delivers nothing any more; only a message proves a subscription.
//! A probe is missing when Redis has taken it and neither it nor any other message has come since.
//! While Redis does not answer at all, nothing can be said: that is for the links' own deadlines.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::seal::Seal;
use crate::channel::Channel;
use crate::clock;

/// What the channels of probes start with; an ACL has to allow `&webws:probe:*`.
const PREFIX: &str = "webws:probe:";

/// How often a number is published. Chosen: an outage is known to the second.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// How long a number may take that Redis has taken. Chosen: far above the time between two turns of
/// a worker at its limit, and together with [`INTERVAL`] well under the five seconds after which
/// people look for a fault.
const GRACE: Duration = Duration::from_secs(2);

/// How long a number may be behind other messages. They prove that the link hears something, but not that it
/// hears the server where the number was published. Chosen: Redis ends a subscriber that is behind for a minute
/// (`client-output-buffer-limit`, its soft limit).
const MAX_BEHIND: Duration = Duration::from_secs(60);

/// Whether Redis lets us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    Granted,
    /// By its ACL it does not.
    Denied,
    /// It did, or was not asked.
    Lost,
}

/// The probe of a worker's link to one server.
#[derive(Debug)]
pub(super) struct Probe {
    channel: RefCell<Channel>,
    seal: Seal,
    /// The last number that was sent, that Redis has taken, and that has come back.
    sent: Cell<u64>,
    taken: Cell<u64>,
    heard: Cell<u64>,
    next_at: Cell<Instant>,
    /// When the link proved last that it hears.
    heard_at: Cell<Instant>,
    /// Since when Redis has a number that has not come back, and nothing else came.
    missing_since: Cell<Option<Instant>>,
    /// Since when it has one, whatever else came.
    behind_since: Cell<Option<Instant>>,
    missing: Notify,
    /// Whether the link is subscribed; before, nothing can come.
    is_listening: Cell<bool>,
    permission: Cell<Permission>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self {
            channel: RefCell::new(random_name()),
            seal: Seal::random(),
            sent: Cell::new(0),
            taken: Cell::new(0),
            heard: Cell::new(0),
            next_at: Cell::new(Instant::now()),
            heard_at: Cell::new(Instant::now()),
            missing_since: Cell::new(None),
            behind_since: Cell::new(None),
            missing: Notify::new(),
            is_listening: Cell::new(false),
            permission: Cell::new(Permission::Lost),
        }
    }

    /// The channel to subscribe on each new link.
    pub(super) fn channel(&self) -> Channel {
        self.channel.borrow().clone()
    }

    /// Whether it uses `channel`.
    pub(super) fn is_on(&self, channel: &[u8]) -> bool {
        *channel == **self.channel.borrow()
    }

    /// Takes another name, one that `suits`.
    pub(super) fn rename(&self, suits: impl Fn(&Channel) -> bool) {
        // A node with one slot of 16,384 is hit by then, or owns nothing any more.
        let found = std::iter::repeat_with(random_name).take(1 << 18).find(suits);
        self.channel.replace(found.unwrap_or_else(random_name));
    }

    /// Redis lets us subscribe it.
    pub(super) fn allow(&self) {
        self.permission.set(Permission::Granted);
    }

    /// Redis' ACL does not let us subscribe or publish it.
    pub(super) fn refuse(&self) {
        self.permission.set(Permission::Denied);
        self.miss_nothing();
    }

    /// It is not subscribed any more, or could not be for now.
    pub(super) fn lose(&self) {
        self.permission.set(Permission::Lost);
        self.miss_nothing();
    }

    /// Whether there is a probe at all.
    pub(super) fn is_allowed(&self) -> bool {
        self.permission.get() == Permission::Granted
    }

    /// Whether it has to be subscribed again.
    pub(super) fn is_lost(&self) -> bool {
        self.permission.get() == Permission::Lost
    }

    /// A new link has all its subscriptions: what the old one missed is nobody's fault now.
    pub(super) fn begin(&self) {
        self.heard.set(self.sent.get());
        self.taken.set(self.sent.get());
        self.miss_nothing();
        self.is_listening.set(true);
        self.proved();
    }

    /// The link is lost.
    pub(super) fn end(&self) {
        self.is_listening.set(false);
        self.miss_nothing();
    }

    fn miss_nothing(&self) {
        self.missing_since.set(None);
        self.behind_since.set(None);
    }

    /// The link has just proved that it hears.
    pub(super) fn proved(&self) {
        self.heard_at.set(Instant::now());
    }

    /// When it proved that last.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at.get()
    }

    /// When the next number should be published; `None` where it may not.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.is_allowed().then(|| self.next_at.get())
    }

    /// The next number, to be published now.
    pub(super) fn next(&self) -> u64 {
        self.sent.set(self.sent.get() + 1);
        self.next_at.set(Instant::now() + INTERVAL);
        self.sent.get()
    }

    /// What is published for `number`.
    pub(super) fn payload(&self, number: u64) -> String {
        format!("{number}:{}", self.seal.sign(&number.to_be_bytes()))
    }

    /// The number in a payload of our own.
    fn number(&self, payload: &[u8]) -> Option<u64> {
        let (number, _) = std::str::from_utf8(payload).ok()?.split_once(':')?;
        let number = number.parse().ok()?;
        (self.payload(number).as_bytes() == payload).then_some(number)
    }

    /// Redis has taken `number`, and given it to so many subscribers.
    pub(super) fn on_published(&self, number: u64, receivers: i64) {
        self.taken.set(number.max(self.taken.get()));
        if number <= self.heard.get() || !self.is_listening.get() {
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
        self.behind_since.set(self.behind_since.get().or(Some(now)));
        self.missing.notify_one();
    }

    /// A message came. True when it was a probe and is nobody else's business.
    pub(super) fn takes(&self, channel: &[u8], payload: &[u8]) -> bool {
        if !self.is_on(channel) {
            return false;
        }
        // What others publish here proves that we hear, as any message does, but nothing about the numbers.
        if let Some(number) = self.number(payload) {
            self.heard.set(number.max(self.heard.get()));
            self.behind_since.set(None);
        }
        true
    }

    /// Messages came, or a part of one: whatever is missing may be behind them.
    pub(super) fn on_heard(&self) {
        self.proved();
        let is_complete = self.heard.get() >= self.taken.get();
        if is_complete {
            self.miss_nothing();
            return;
        }
        let is_patient = self.behind_since.get().is_none_or(|since| since.elapsed() < MAX_BEHIND);
        if is_patient && self.missing_since.get().is_some() {
            self.missing_since.set(Some(self.heard_at.get()));
        }
    }

    /// Resolves when a probe is missing; returns for how long nothing was heard.
    pub(super) async fn is_missed(&self) -> Duration {
        let mut was_put_off = false;
        loop {
            match self.missing_since.get().map(|since| since + GRACE) {
                None => {
                    was_put_off = false;
                    self.missing.notified().await;
                }
                // It may have come while the process did not run, and is read before this comes round again.
                Some(limit) if clock::was_stopped_at(limit) && !was_put_off => {
                    was_put_off = true;
                    self.missing_since.set(Some(Instant::now()));
                }
                Some(limit) if limit <= Instant::now() => return self.heard_at.get().elapsed(),
                Some(limit) => tokio::select! {
                    () = tokio::time::sleep_until(limit) => {}
                    () = self.missing.notified() => {}
                },
            }
        }
    }
}

fn random_name() -> Channel {
    Channel::from(format!("{PREFIX}{:016x}", fastrand::u64(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a probe is found missing within `limit`.
    async fn is_missed_within(probe: &Probe, limit: Duration) -> bool {
        tokio::time::timeout(limit, probe.is_missed()).await.is_ok()
    }

    fn hear(probe: &Probe, number: u64) {
        assert!(probe.takes(&probe.channel(), probe.payload(number).as_bytes()));
        probe.on_heard();
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_is_due_at_once_and_then_once_an_interval() {
        let probe = Probe::new();
        probe.allow();
        probe.begin();
        assert!(probe.due_at().is_some_and(|at| at <= Instant::now()));
        probe.next();
        assert_eq!(probe.due_at(), Some(Instant::now() + INTERVAL));
        probe.refuse();
        assert_eq!(probe.due_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_comes_back_is_not_missed_whichever_answer_is_first() {
        let probe = Probe::new();
        probe.allow();
        probe.begin();
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
        probe.allow();
        probe.begin();
        probe.on_published(probe.next(), 1);
        assert!(!is_missed_within(&probe, GRACE / 2).await);
        assert!(is_missed_within(&probe, GRACE).await);
        probe.allow();
        probe.begin();
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_behind_many_messages_is_waited_for() {
        let probe = Probe::new();
        probe.allow();
        probe.begin();
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
        probe.allow();
        probe.begin();
        tokio::time::advance(10 * GRACE).await;
        probe.on_published(probe.next(), 0);
        assert!(is_missed_within(&probe, Duration::from_millis(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn between_two_links_nothing_is_missed() {
        let probe = Probe::new();
        probe.begin();
        let number = probe.next();
        probe.on_published(number, 0);
        assert!(is_missed_within(&probe, Duration::from_millis(1)).await);
        probe.end();
        probe.on_published(probe.next(), 0);
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
        probe.begin();
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_redis_has_not_taken_is_not_missed_when_the_one_before_came_back() {
        let probe = Probe::new();
        probe.begin();
        let first = probe.next();
        probe.on_published(first, 1);
        probe.next();
        hear(&probe, first);
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn while_redis_takes_nothing_nothing_is_missed() {
        let probe = Probe::new();
        probe.allow();
        probe.begin();
        probe.next();
        assert!(!is_missed_within(&probe, 10 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_of_others_are_no_proof() {
        let (probe, other) = (Probe::new(), Probe::new());
        probe.allow();
        probe.begin();
        let first = probe.next();
        hear(&probe, first);
        probe.on_published(first, 1);
        let number = probe.next();
        probe.on_published(number, 1);
        let stolen = probe.payload(first);
        for forged in [number.to_string(), other.payload(number), stolen, format!("{number}:"), u64::MAX.to_string()] {
            assert!(probe.takes(&probe.channel(), forged.as_bytes()), "it is nobody's message");
        }
        assert!(is_missed_within(&probe, 2 * GRACE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn other_messages_do_not_stand_in_for_numbers_for_ever() {
        let probe = Probe::new();
        probe.allow();
        probe.begin();
        probe.on_published(probe.next(), 1);
        let start = Instant::now();
        while !is_missed_within(&probe, GRACE / 2).await {
            assert!(start.elapsed() < 2 * MAX_BEHIND);
            assert!(probe.takes(&probe.channel(), b"1"));
            probe.on_heard();
        }
        assert!(start.elapsed() >= MAX_BEHIND);
    }
}
