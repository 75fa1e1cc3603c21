//! When the links of a worker to one node publish a milestone, and what it says. Milestones are shared: a worker that
//! hears one publishes its own later, so that a node gets about one a second, however many workers it has. An own
//! milestone that comes back proves that the subscribing link delivers (`probe.rs`).
//!
//! A milestone names a point of the node's replication log at or before itself. `INFO replication` tells that point,
//! right before the milestone. May not enter: what milestones are for.

use std::time::Duration;

use tokio::time::Instant;

use super::replid::Replid;
use crate::channel::Channel;
use crate::position::{LogPoint, Milestone, MilestoneId};

/// The channel of milestones.
pub(crate) const CHANNEL: &str = "webws:milestone";

/// The pause after a milestone before the next one is due, and how much longer a worker waits, so that not all publish
/// at once. Chosen: a place counts at most a second's publications, all webws of a node cost it one small message a
/// second, and a link that hears none asks for a proof within a second.
const PAUSE: Duration = Duration::from_millis(800);
const MAX_JITTER: Duration = Duration::from_millis(150);

/// The longest pause between two milestones of one worker, whatever it hears. Only an own milestone proves that both
/// links of the worker lead to the same node. Chosen: up to 20 workers still publish one a second together.
const LONGEST: Duration = Duration::from_secs(20);

/// How long a channel that was just subscribed waits for a milestone, up to twice as long. Chosen: the publications of a
/// channel can be continued from the log once it has been subscribed for a tenth of a second; a node gets at most 25
/// milestones a second for that.
const PLACING: Duration = Duration::from_millis(40);

/// The shortest pause behind a milestone where handshakes wait for the next one. Chosen: those of one storm wait
/// together, and a node gets at most 200 a second for that.
const SHORTEST: Duration = Duration::from_millis(5);

/// How long the answer to `INFO` is used. Chosen: a log is read back half a second further at most.
const FRESH: Duration = Duration::from_millis(500);

/// What milestones are for, by the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MilestoneUse {
    /// There are none.
    Nothing,
    /// Gaps are filled where Redis has a log and permits that.
    Gaps,
    /// The settings ask for positions or for a log.
    Positions,
}

/// The milestones of a worker's links to one node.
#[derive(Debug)]
pub(crate) struct MilestoneClock {
    channel: Channel,
    is_wanted: bool,
    /// Whether Redis refuses them.
    is_refused: bool,
    /// When the next is due if none is heard before, and when an own one is due in any case.
    next_at: Instant,
    own_at: Instant,
    /// When one was heard or published last.
    last_at: Option<Instant>,
    /// Whether a channel waits to be placed.
    is_placing: bool,
    log: Log,
    /// The last that was heard.
    pub(crate) last: Option<Milestone>,
}

/// What is known of the node's replication log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    /// The node of this link was not asked.
    Unknown,
    /// We may not ask.
    Hidden,
    /// The node was here at that time; `None` where it keeps no log.
    At(Option<LogPoint>, Instant),
}

impl MilestoneClock {
    /// For a worker; there are none in a cluster, whose nodes do not agree on an order.
    pub(crate) fn new(usage: MilestoneUse, is_in_cluster: bool, now: Instant) -> Self {
        Self {
            channel: Channel::from(CHANNEL.to_owned()),
            is_wanted: usage != MilestoneUse::Nothing && !is_in_cluster,
            is_refused: false,
            next_at: now,
            own_at: now,
            last_at: None,
            is_placing: false,
            log: Log::Unknown,
            last: None,
        }
    }

    /// Whether there are milestones.
    pub(crate) fn are_on(&self) -> bool {
        self.is_wanted && !self.is_refused
    }

    /// The channel to subscribe, if there are milestones.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.are_on().then_some(&self.channel)
    }

    pub(crate) fn is_on(&self, channel: &[u8]) -> bool {
        *self.channel == *channel
    }

    /// Redis' ACL does not let us publish or subscribe them.
    pub(crate) fn refuse(&mut self) {
        self.is_refused = true;
    }

    /// A new subscribing link may be permitted what the last one was not.
    pub(crate) fn on_link(&mut self) {
        self.is_refused = false;
    }

    /// A new link has all its subscriptions, and is to be proved soon.
    pub(crate) fn on_complete(&mut self, now: Instant) {
        self.own_at = now + MAX_JITTER.mul_f64(fastrand::f64());
    }

    /// One was heard: the next is due in about a second.
    pub(crate) fn on_heard(&mut self, milestone: Milestone, now: Instant) {
        self.last = Some(milestone);
        self.last_at = Some(now);
        self.is_placing = false;
        self.next_at = now + PAUSE + MAX_JITTER.mul_f64(fastrand::f64());
    }

    /// A channel waits for one.
    pub(crate) fn hasten(&mut self, now: Instant) {
        let soonest = self.last_at.map_or(now, |at| (at + SHORTEST).max(now));
        self.next_at = self.next_at.min(soonest);
    }

    /// A channel was subscribed: a stream that is cut can continue the channel if a milestone was heard behind that.
    pub(crate) fn place(&mut self, now: Instant) {
        let has_log = self.last.is_some_and(|last| last.log.is_some());
        if has_log && !std::mem::replace(&mut self.is_placing, true) {
            self.next_at = self.next_at.min(now + PLACING + PLACING.mul_f64(fastrand::f64()));
        }
    }

    /// When the next should be published; `None` where that may not be.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        self.are_on().then(|| self.next_at.min(self.own_at))
    }

    /// The log of a new link's node is not known.
    pub(crate) fn on_connected(&mut self) {
        self.log = Log::Unknown;
    }

    /// The next milestone, to be published now; `None` when the node has to be asked for its log first.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Milestone> {
        let log = match self.log {
            Log::Hidden => None,
            Log::At(log, at) if now.saturating_duration_since(at) <= FRESH => log,
            Log::Unknown | Log::At(..) => return None,
        };
        self.last_at = Some(now);
        (self.next_at, self.own_at) = (now + PAUSE, now + LONGEST);
        Some(Milestone { id: MilestoneId(fastrand::u64(..)), log })
    }

    /// What the node says of its log.
    pub(crate) fn on_info(&mut self, info: &str, now: Instant) {
        self.log = Log::At(log_point(info), now);
    }

    /// We may not ask the node for its log.
    pub(crate) fn hide_log(&mut self) {
        self.log = Log::Hidden;
    }
}

/// Reads `INFO replication` (<https://redis.io/docs/latest/commands/info/>); `None` where the node keeps no log.
fn log_point(info: &str) -> Option<LogPoint> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if field("repl_backlog_active")? != "1" {
        return None;
    }
    Some(Replid::parse(field("master_replid")?)?.at(field("master_repl_offset")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a Redis 7.0.15.
    const INFO: &str = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_failover_state:no-failover\r\n\
                        master_replid:8f31c2a0d1be5a779ef0a3b1c2d4e5f601234567\r\n\
                        master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:4711\r\n\
                        second_repl_offset:-1\r\nrepl_backlog_active:1\r\nrepl_backlog_size:1048576\r\n";

    fn clock(now: Instant) -> MilestoneClock {
        MilestoneClock::new(MilestoneUse::Gaps, false, now)
    }

    #[test]
    fn a_milestone_is_due_when_none_was_heard_for_a_second_or_a_channel_waits_for_one() {
        let now = Instant::now();
        let mut clock = clock(now);
        assert_eq!((clock.due_at(), clock.next(now)), (Some(now), None), "the log has to be asked for first");
        clock.on_info(INFO, now);
        let milestone = clock.next(now).unwrap();
        assert_eq!(milestone.log.unwrap().offset, 4_711);
        assert_eq!(milestone.log, Some(Replid::parse("8f31c2a0d1be5a779ef0a3b1c2d4e5f601234567").unwrap().at(4_711)));
        assert_ne!(clock.next(now).unwrap().id, milestone.id);
        clock.on_heard(milestone, now);
        let due = clock.due_at().unwrap();
        assert!(now + PAUSE <= due && due <= now + Duration::from_secs(1));
        clock.hasten(now);
        assert_eq!(clock.due_at(), Some(now + SHORTEST), "a storm of handshakes makes no storm of milestones");
        clock.refuse();
        assert_eq!(clock.due_at(), None);
        clock.on_link();
        assert!(clock.due_at().is_some());
        assert_eq!(MilestoneClock::new(MilestoneUse::Nothing, false, now).due_at(), None);
        assert_eq!(MilestoneClock::new(MilestoneUse::Positions, true, now).due_at(), None);
    }

    #[test]
    fn the_log_is_asked_for_again_once_the_answer_is_old_and_never_where_that_is_refused() {
        let now = Instant::now();
        let mut clock = clock(now);
        for info in ["", "master_replid:8f31\r\nmaster_repl_offset:1\r\n", &INFO.replace("active:1", "active:0")] {
            clock.on_info(info, now);
            assert_eq!(clock.next(now).unwrap().log, None);
        }
        clock.on_info(INFO, now);
        assert!(clock.next(now + FRESH).is_some_and(|milestone| milestone.log.is_some()));
        assert_eq!(clock.next(now + 2 * FRESH), None, "the log goes on while others publish milestones");
        clock.hide_log();
        assert_eq!(clock.next(now + 2 * FRESH).unwrap().log, None);
        clock.on_connected();
        assert_eq!(clock.next(now), None, "another node may be there");
    }

    #[test]
    fn a_worker_that_hears_others_publishes_seldom_but_a_new_link_soon() {
        let mut now = Instant::now();
        let mut clock = clock(now);
        clock.hide_log();
        let other = Milestone { id: MilestoneId(1), log: None };
        assert!(clock.next(now).is_some());
        let published = now;
        while clock.due_at().is_some_and(|due| due > now) {
            now += PAUSE / 2;
            clock.on_heard(other, now);
        }
        assert!(now >= published + LONGEST && now <= published + LONGEST + PAUSE);
        clock.next(now);
        clock.on_heard(other, now);
        clock.on_complete(now);
        assert!(clock.due_at().is_some_and(|due| due <= now + MAX_JITTER));
    }

    #[test]
    fn channels_that_were_just_subscribed_get_a_milestone_within_a_tenth_of_a_second_and_share_it() {
        let tenth = Duration::from_millis(100);
        let mut now = Instant::now();
        let mut clock = clock(now);
        let heard = |clock: &mut MilestoneClock, now| {
            clock.on_info(INFO, now);
            let milestone = clock.next(now).unwrap();
            clock.on_heard(milestone, now);
        };
        clock.place(now);
        clock.on_info("", now);
        let milestone = clock.next(now).unwrap();
        clock.on_heard(milestone, now);
        clock.place(now);
        assert!(clock.due_at().is_some_and(|due| due > now + tenth), "without a log there is nothing to continue");
        heard(&mut clock, now);
        // A thousand channels a second, for a second.
        let (end, mut milestones) = (now + Duration::from_secs(1), 0);
        while now < end {
            clock.place(now);
            assert!(clock.due_at().is_some_and(|due| due < now + tenth));
            if clock.due_at().is_some_and(|due| due <= now) {
                heard(&mut clock, now);
                milestones += 1;
            }
            now += Duration::from_millis(1);
        }
        assert!((10..=25).contains(&milestones), "{milestones}");
    }
}
