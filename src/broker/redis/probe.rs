//! Proves that a subscribing link delivers: the worker publishes a probe over the link that carries its clients'
//! messages, and expects the probe on the subscribing link. A deaf link answers PING.
//!
//! Where there are milestones, an own milestone is the probe. Elsewhere it is a number on a channel of the worker's
//! own, signed (`seal.rs`): a publication of another client on this channel must not hide that a link is deaf. A probe
//! that Redis has taken is missing when neither the probe nor another publication arrives for two seconds ([`GRACE`]);
//! after a minute, other publications no longer count ([`MAX_BEHIND`]); and at once when Redis says that the probe had
//! no receiver. A Redis that does not answer is the business of the links' deadlines. May not enter: commands, sockets,
//! when milestones are due.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::seal::Seal;
use crate::channel::Channel;
use crate::clock;
use crate::position::MilestoneId;

/// The prefix of the probes' channels. An ACL must allow `&webws:probe:*`.
const PREFIX: &str = "webws:probe:";

/// The time between two numbers where there are no milestones. Chosen: the start of an outage is known to the second.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// How long a number may be under way after Redis has taken it. Chosen: far above the time between two turns of
/// a worker at its limit, and together with [`INTERVAL`] well under the five seconds after which
/// people look for a fault.
const GRACE: Duration = Duration::from_secs(2);

/// How long a number may be late while other publications arrive. They prove that the link hears a server, but not that
/// this server took the number. Chosen: Redis ends a subscriber that lags for a minute (`client-output-buffer-limit`,
/// its soft limit).
const MAX_BEHIND: Duration = Duration::from_secs(60);

/// The most numbers whose time of sending is kept. Chosen: more than are sent in [`MAX_BEHIND`].
const MAX_AWAITED: usize = 64;

/// Whether Redis' ACL allows the probe's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    Granted,
    Denied,
    /// The channel is not subscribed: no longer, or not yet.
    Lost,
}

/// A number that has not come back.
#[derive(Debug)]
struct Awaited {
    number: u64,
    sent: Instant,
    /// The milestone that stands for the number, if it was published as one.
    milestone: Option<MilestoneId>,
}

/// The probe of a worker's links to one node.
#[derive(Debug)]
pub(crate) struct Probe {
    channel: Channel,
    seal: Seal,
    /// The last numbers that were sent, taken by Redis, and heard.
    sent: u64,
    taken: u64,
    heard: u64,
    next_at: Instant,
    /// The numbers that were not heard.
    awaited: VecDeque<Awaited>,
    /// Until when the link has certainly delivered everything. Not the time at which the last proof was read: a process
    /// that was stopped reads an old proof late.
    complete_until: Instant,
    /// The same, proved by an own number.
    returned_until: Instant,
    /// When a publication was last read.
    heard_at: Instant,
    /// Since when Redis has a number that was not heard, and no other publication has arrived.
    missing_since: Option<Instant>,
    /// Since when Redis has a number that was not heard, even if other publications arrive.
    behind_since: Option<Instant>,
    /// Whether the deadline of the missing number was extended, because the process was stopped when it passed.
    is_extended: bool,
    /// Whether Redis was asked, because of the missing number, for its number of subscriptions.
    is_doubted: bool,
    /// Whether the link is subscribed; until then, no number can be heard.
    is_listening: bool,
    /// Whether Redis has said that the link is not subscribed.
    is_forgotten: bool,
    permission: Permission,
}

impl Probe {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            channel: random_name(),
            seal: Seal::random(),
            sent: 0,
            taken: 0,
            heard: 0,
            next_at: now,
            awaited: VecDeque::new(),
            complete_until: now,
            returned_until: now,
            heard_at: now,
            missing_since: None,
            behind_since: None,
            is_extended: false,
            is_doubted: false,
            is_listening: false,
            is_forgotten: false,
            permission: Permission::Lost,
        }
    }

    /// The channel to subscribe on each new link where there are no milestones.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether `channel` is the probe's.
    pub(crate) fn is_on(&self, channel: &[u8]) -> bool {
        *channel == *self.channel
    }

    /// Takes another channel, one that `suits`.
    pub(crate) fn rename(&mut self, suits: impl Fn(&Channel) -> bool) {
        // So many names find even a node with one of the 16,384 slots. A node that they do not find owns none.
        let found = std::iter::repeat_with(random_name).take(1 << 18).find(suits);
        self.channel = found.unwrap_or_else(random_name);
    }

    /// Redis' ACL allows the probe's channel.
    pub(crate) fn allow(&mut self) {
        self.permission = Permission::Granted;
    }

    /// Redis' ACL does not allow the probe's channel.
    pub(crate) fn refuse(&mut self) {
        self.permission = Permission::Denied;
        self.miss_nothing();
    }

    /// The probe's channel is no longer subscribed, or cannot be subscribed for now.
    pub(crate) fn lose(&mut self) {
        self.permission = Permission::Lost;
        self.miss_nothing();
    }

    /// Whether numbers may be published.
    pub(crate) fn is_allowed(&self) -> bool {
        self.permission == Permission::Granted
    }

    /// Whether Redis' ACL forbids the probe's channel.
    pub(crate) fn is_denied(&self) -> bool {
        self.permission == Permission::Denied
    }

    /// Whether the probe's channel must be subscribed again.
    pub(crate) fn is_lost(&self) -> bool {
        self.permission == Permission::Lost
    }

    /// A new link has all its subscriptions. It does not have to hear the numbers of the old link.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.heard = self.sent;
        self.taken = self.sent;
        self.awaited.clear();
        self.miss_nothing();
        (self.is_listening, self.is_forgotten) = (true, false);
        self.heard_at = now;
    }

    /// The link is lost.
    pub(crate) fn end(&mut self) {
        self.is_listening = false;
        self.miss_nothing();
    }

    /// Whether Redis has said that the link was no longer subscribed.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.is_forgotten
    }

    fn miss_nothing(&mut self) {
        self.missing_since = None;
        self.behind_since = None;
        self.is_extended = false;
        self.is_doubted = false;
    }

    /// The link has delivered everything until `until`.
    pub(crate) fn proved(&mut self, until: Instant) {
        self.complete_until = self.complete_until.max(until);
        self.returned_until = self.returned_until.max(until);
    }

    /// Until when the link has certainly delivered everything.
    pub(crate) fn complete_until(&self) -> Instant {
        self.complete_until
    }

    /// The same, proved by an own number: one that was heard where it was published. Milestones of others prove nothing
    /// of the node that this worker publishes at.
    pub(crate) fn returned_until(&self) -> Instant {
        self.returned_until
    }

    /// When the next number should be published on the probe's own channel.
    pub(crate) fn due_at(&self) -> Instant {
        self.next_at
    }

    /// The next number, to be published now; as a milestone, or else on the probe's own channel.
    pub(crate) fn next(&mut self, milestone: Option<MilestoneId>, now: Instant) -> u64 {
        self.sent += 1;
        self.next_at = now + INTERVAL;
        if self.awaited.len() >= MAX_AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back(Awaited { number: self.sent, sent: now, milestone });
        self.sent
    }

    /// The payload that carries `number`.
    pub(crate) fn payload(&self, number: u64) -> String {
        format!("{number}:{}", self.seal.sign(&number.to_be_bytes()))
    }

    /// The number in a payload, if this probe has signed it.
    fn number(&self, payload: &[u8]) -> Option<u64> {
        let (number, _) = std::str::from_utf8(payload).ok()?.split_once(':')?;
        let number = number.parse().ok()?;
        (self.payload(number).as_bytes() == payload).then_some(number)
    }

    /// Redis has taken `number`, and delivered it to `receivers` subscribers.
    pub(crate) fn on_published(&mut self, number: u64, receivers: i64, now: Instant) {
        self.taken = number.max(self.taken);
        if number <= self.heard || !self.is_listening {
            return;
        }
        self.missing_since = Some(match self.missing_since {
            // Redis says that the link is not subscribed: the number cannot come.
            _ if receivers == 0 => {
                self.is_forgotten = true;
                now.checked_sub(GRACE).unwrap_or(now)
            }
            Some(since) => since,
            None => now,
        });
        self.behind_since = self.behind_since.or(Some(now));
    }

    /// A publication was read. Returns whether its channel is the probe's: no session gets the publication then.
    pub(crate) fn takes(&mut self, channel: &[u8], payload: &[u8]) -> bool {
        if !self.is_on(channel) {
            return false;
        }
        // A publication of another client proves that the link hears, as any publication does. It proves no number.
        if let Some(number) = self.number(payload) {
            self.hear(number);
        }
        true
    }

    /// A milestone came, behind the answer to a command that was sent at `answered`. Returns whether it is an own one.
    pub(crate) fn takes_milestone(&mut self, id: MilestoneId, answered: Instant) -> bool {
        let own = self.awaited.iter().find(|awaited| awaited.milestone == Some(id)).map(|awaited| awaited.number);
        match own {
            Some(number) => self.hear(number),
            None if self.is_listening => self.complete_until = self.complete_until.max(answered),
            None => {}
        }
        own.is_some()
    }

    fn hear(&mut self, number: u64) {
        self.heard = number.max(self.heard);
        self.behind_since = None;
        while let Some(Awaited { sent, .. }) = self.awaited.pop_front_if(|awaited| awaited.number <= number) {
            self.proved(sent);
        }
    }

    /// Publications were read, or a part of one: a missing number may be behind them.
    pub(crate) fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
        if self.heard >= self.taken {
            self.miss_nothing();
            return;
        }
        let is_patient = self.behind_since.is_none_or(|since| now.saturating_duration_since(since) < MAX_BEHIND);
        if is_patient && self.missing_since.is_some() {
            self.missing_since = Some(now);
            self.is_extended = false;
        }
    }

    /// When the awaited number becomes missing, if one is awaited.
    pub(crate) fn limit(&self) -> Option<Instant> {
        self.missing_since.map(|since| since + GRACE)
    }

    /// When to ask Redis for its number of subscriptions: a number is missing, and Redis counts as its receivers the
    /// links of others as well.
    pub(crate) fn doubt_at(&self) -> Option<Instant> {
        self.missing_since.filter(|_| !self.is_doubted).map(|since| since + GRACE / 2)
    }

    /// Whether it is time to ask; once for each number that is missing.
    pub(crate) fn take_doubt(&mut self, now: Instant) -> bool {
        let is_due = self.doubt_at().is_some_and(|at| at <= now);
        self.is_doubted |= is_due;
        is_due
    }

    /// For how long nothing was heard, if a number is missing.
    pub(crate) fn missed(&mut self, now: Instant) -> Option<Duration> {
        let limit = self.limit().filter(|limit| *limit <= now)?;
        // The number may have arrived while the process was stopped. It is read before the extended limit.
        if clock::was_stopped_at(limit, now) && !self.is_extended {
            self.is_extended = true;
            self.missing_since = Some(now);
            return None;
        }
        Some(now.saturating_duration_since(self.heard_at))
    }
}

fn random_name() -> Channel {
    Channel::from(format!("{PREFIX}{:016x}", fastrand::u64(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A probe with its own clock.
    struct Stage {
        probe: Probe,
        now: Instant,
    }

    impl Stage {
        /// A link that listens.
        fn listening() -> Self {
            let now = Instant::now();
            let mut probe = Probe::new(now);
            probe.allow();
            probe.begin(now);
            Self { probe, now }
        }

        fn begin(&mut self) {
            self.probe.begin(self.now);
        }

        /// Publishes the next number, which Redis takes and delivers to `receivers` subscribers.
        fn publish(&mut self, receivers: i64) -> u64 {
            let number = self.probe.next(None, self.now);
            self.probe.on_published(number, receivers, self.now);
            number
        }

        fn hear(&mut self, number: u64) {
            let (channel, payload) = (self.probe.channel().clone(), self.probe.payload(number));
            assert!(self.probe.takes(&channel, payload.as_bytes()));
            self.probe.on_heard(self.now);
        }

        /// Whether a number is found missing within `time`, when its limit has passed.
        fn misses_within(&mut self, time: Duration) -> bool {
            let end = self.now + time;
            while let Some(limit) = self.probe.limit().filter(|limit| *limit <= end) {
                self.now = limit.max(self.now);
                if self.probe.missed(self.now).is_some() {
                    return true;
                }
            }
            self.now = end;
            false
        }
    }

    #[test]
    fn a_number_is_due_at_once_and_then_once_per_interval() {
        let Stage { mut probe, now } = Stage::listening();
        assert!(probe.is_allowed() && probe.due_at() <= now);
        probe.next(None, now);
        assert_eq!(probe.due_at(), now + INTERVAL);
        probe.refuse();
        assert!(!probe.is_allowed());
    }

    #[test]
    fn a_number_that_comes_back_is_not_missed_whichever_answer_is_first() {
        let mut stage = Stage::listening();
        let first = stage.probe.next(None, stage.now);
        stage.hear(first);
        stage.probe.on_published(first, 1, stage.now);
        let second = stage.publish(1);
        stage.hear(second);
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn a_number_that_redis_took_and_that_does_not_come_back_is_missed() {
        let mut stage = Stage::listening();
        stage.publish(1);
        assert!(!stage.misses_within(GRACE / 2));
        assert!(stage.misses_within(GRACE));
        stage.begin();
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn a_number_behind_many_messages_is_waited_for() {
        let mut stage = Stage::listening();
        stage.publish(1);
        for _ in 0..10 {
            assert!(!stage.misses_within(GRACE / 2));
            assert!(!stage.probe.takes(b"chat:a", b"1"));
            stage.probe.on_heard(stage.now);
        }
        assert!(stage.misses_within(2 * GRACE));
    }

    #[test]
    fn a_number_without_receivers_is_missed_at_once() {
        let mut stage = Stage::listening();
        assert!(!stage.misses_within(10 * GRACE));
        stage.publish(0);
        assert!(stage.misses_within(Duration::ZERO));
    }

    #[test]
    fn between_two_links_nothing_is_missed() {
        let mut stage = Stage::listening();
        stage.publish(0);
        assert!(stage.misses_within(Duration::ZERO));
        stage.probe.end();
        stage.publish(0);
        assert!(!stage.misses_within(10 * GRACE));
        stage.begin();
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn a_number_that_redis_has_not_taken_is_not_missed_when_the_one_before_came_back() {
        let mut stage = Stage::listening();
        let first = stage.publish(1);
        stage.probe.next(None, stage.now);
        stage.hear(first);
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn while_redis_takes_nothing_nothing_is_missed() {
        let mut stage = Stage::listening();
        stage.probe.next(None, stage.now);
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn numbers_of_others_are_no_proof() {
        let mut stage = Stage::listening();
        let other = Probe::new(stage.now);
        let first = stage.publish(1);
        stage.hear(first);
        let number = stage.publish(1);
        let (channel, stolen) = (stage.probe.channel().clone(), stage.probe.payload(first));
        for forged in [number.to_string(), other.payload(number), stolen, format!("{number}:"), u64::MAX.to_string()] {
            assert!(stage.probe.takes(&channel, forged.as_bytes()), "sessions do not get it");
        }
        assert!(stage.misses_within(2 * GRACE));
    }

    #[test]
    fn everything_has_come_until_the_last_number_that_is_back_was_sent() {
        let mut stage = Stage::listening();
        let first = stage.publish(1);
        let (sent, later) = (stage.now, stage.now + INTERVAL);
        stage.now = later;
        stage.publish(1);
        stage.now += 20 * GRACE;
        stage.hear(first);
        assert_eq!(stage.probe.complete_until(), sent, "not the time at which it was read");
        stage.hear(first + 1);
        assert_eq!(stage.probe.complete_until(), later);
        stage.probe.on_heard(stage.now);
        stage.begin();
        assert_eq!(stage.probe.complete_until(), later, "neither other messages nor a release prove more");
    }

    #[test]
    fn an_own_milestone_is_a_number_and_one_of_another_worker_proves_only_what_was_read_before() {
        let mut stage = Stage::listening();
        let start = stage.now;
        let own = MilestoneId(7);
        let number = stage.probe.next(Some(own), stage.now);
        stage.now += INTERVAL;
        stage.probe.on_published(number, 9, stage.now);
        let answered = stage.now;
        assert!(!stage.probe.takes_milestone(MilestoneId(8), answered));
        assert_eq!((stage.probe.complete_until(), stage.probe.returned_until()), (answered, start));
        assert!(stage.misses_within(GRACE), "what others publish elsewhere does not stand in for it");
        stage.begin();
        let number = stage.probe.next(Some(own), stage.now);
        let sent = stage.now;
        stage.probe.on_published(number, 9, stage.now);
        stage.now += GRACE / 4;
        assert!(stage.probe.takes_milestone(own, start));
        stage.probe.on_heard(stage.now);
        assert_eq!((stage.probe.complete_until(), stage.probe.returned_until()), (sent, sent));
        assert!(!stage.misses_within(10 * GRACE));
    }

    #[test]
    fn a_missing_number_makes_redis_count_once_before_the_link_is_given_up() {
        let mut stage = Stage::listening();
        stage.publish(3);
        assert!(stage.probe.doubt_at().is_some_and(|at| at < stage.probe.limit().unwrap()));
        assert!(!stage.probe.take_doubt(stage.now));
        stage.now += GRACE / 2;
        assert!(stage.probe.take_doubt(stage.now) && !stage.probe.take_doubt(stage.now));
        assert_eq!(stage.probe.doubt_at(), None);
        stage.begin();
        stage.publish(3);
        assert!(stage.probe.doubt_at().is_some());
    }

    #[test]
    fn other_messages_do_not_stand_in_for_numbers_for_ever() {
        let mut stage = Stage::listening();
        stage.publish(1);
        let start = stage.now;
        let channel = stage.probe.channel().clone();
        while !stage.misses_within(GRACE / 2) {
            assert!(stage.now - start < 2 * MAX_BEHIND);
            assert!(stage.probe.takes(&channel, b"1"));
            stage.probe.on_heard(stage.now);
        }
        assert!(stage.now - start >= MAX_BEHIND);
    }

    #[test]
    fn a_number_whose_limit_passed_while_the_process_was_stopped_gets_another() {
        let mut stage = Stage::listening();
        stage.publish(1);
        stage.now += 20 * GRACE;
        assert_eq!(stage.probe.missed(stage.now), None);
        assert!(!stage.misses_within(GRACE / 2));
        assert!(stage.misses_within(GRACE));
    }
}
