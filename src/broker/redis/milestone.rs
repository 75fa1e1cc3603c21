//! When the links of a worker to one node publish a milestone, and what it says. Milestones are shared: a worker that
//! has heard none for a second publishes the next, so that a node gets about one a second, however many workers it has.
//!
//! A milestone names a point of the node's replication log at or before itself. `INFO replication` tells that point; it
//! is asked behind each milestone, for the next one. May not enter: what milestones are for.

use std::time::Duration;

use tokio::time::Instant;

use super::replid::Replid;
use crate::channel::Channel;
use crate::position::{LogPoint, Milestone, MilestoneId};

/// The channel of milestones.
pub(crate) const CHANNEL: &str = "webws:milestone";

/// The pause after a milestone before the next one is due. Chosen: a place counts at most a second's publications, and
/// all webws of a node cost it one small message a second.
const INTERVAL: Duration = Duration::from_secs(1);

/// Each worker waits up to this much longer, so that not all publish at once.
const MAX_JITTER: Duration = Duration::from_millis(200);

/// The shortest time between two milestones of one worker. Chosen: handshakes of one storm wait for one together.
const SHORTEST: Duration = Duration::from_millis(5);

/// The milestones of a worker's links to one node.
#[derive(Debug)]
pub(crate) struct MilestoneClock {
    /// `None` where no endpoint has a history, or in a cluster, whose nodes do not agree on an order.
    channel: Option<Channel>,
    /// Whether Redis refuses them.
    is_refused: bool,
    next_at: Instant,
    published_at: Option<Instant>,
    log: Log,
    /// The last that was heard.
    pub(crate) last: Option<Milestone>,
}

/// What is known of the node's replication log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    /// The node of this link was not asked.
    Unknown,
    /// The node was here when it was asked; `None` where we may not ask.
    At(Option<LogPoint>),
}

impl MilestoneClock {
    pub(crate) fn new(are_wanted: bool, now: Instant) -> Self {
        let channel = are_wanted.then(|| Channel::from(CHANNEL.to_owned()));
        Self { channel, is_refused: false, next_at: now, published_at: None, log: Log::Unknown, last: None }
    }

    /// The channel to subscribe, if milestones are wanted.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    pub(crate) fn is_on(&self, channel: &[u8]) -> bool {
        self.channel.as_ref().is_some_and(|own| **own == *channel)
    }

    /// Redis' ACL does not let us publish or subscribe them.
    pub(crate) fn refuse(&mut self) {
        self.is_refused = true;
    }

    /// One was heard: the next is due in a second.
    pub(crate) fn on_heard(&mut self, milestone: Milestone, now: Instant) {
        self.last = Some(milestone);
        self.next_at = now + INTERVAL + MAX_JITTER.mul_f64(fastrand::f64());
    }

    /// A channel waits for one.
    pub(crate) fn hasten(&mut self, now: Instant) {
        let soonest = self.published_at.map_or(now, |at| (at + SHORTEST).max(now));
        self.next_at = self.next_at.min(soonest);
    }

    /// When the next should be published; `None` where that may not be.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        (self.channel.is_some() && !self.is_refused).then_some(self.next_at)
    }

    /// The log of a new link's node is not known.
    pub(crate) fn on_connected(&mut self) {
        self.log = Log::Unknown;
    }

    /// The next milestone, to be published now; `None` when the node has to be asked for its log first.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Milestone> {
        let Log::At(log) = self.log else { return None };
        self.published_at = Some(now);
        self.next_at = now + INTERVAL;
        Some(Milestone { id: MilestoneId(fastrand::u64(..)), log })
    }

    /// What the node says of its log; `None` where we may not ask.
    pub(crate) fn on_info(&mut self, info: Option<&str>) {
        self.log = Log::At(info.and_then(log_point));
    }
}

/// Reads `INFO replication` (<https://redis.io/docs/latest/commands/info/>).
fn log_point(info: &str) -> Option<LogPoint> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some(Replid::parse(field("master_replid")?)?.at(field("master_repl_offset")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a Redis 7.0.15.
    const INFO: &str = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_failover_state:no-failover\r\n\
                        master_replid:8f31c2a0d1be5a779ef0a3b1c2d4e5f601234567\r\n\
                        master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:4711\r\n\
                        second_repl_offset:-1\r\nrepl_backlog_active:0\r\n";

    #[test]
    fn a_milestone_is_due_when_none_was_heard_for_a_second_or_a_channel_waits_for_one() {
        let now = Instant::now();
        let mut clock = MilestoneClock::new(true, now);
        assert_eq!((clock.due_at(), clock.next(now)), (Some(now), None), "the log has to be asked for first");
        clock.on_info(Some(INFO));
        let milestone = clock.next(now).unwrap();
        assert_eq!(milestone.log.unwrap().offset, 4_711);
        assert_eq!(milestone.log, Some(Replid::parse("8f31c2a0d1be5a779ef0a3b1c2d4e5f601234567").unwrap().at(4_711)));
        assert_ne!(clock.next(now).unwrap().id, milestone.id);
        clock.on_heard(milestone, now);
        let due = clock.due_at().unwrap();
        assert!(now + INTERVAL <= due && due <= now + INTERVAL + MAX_JITTER);
        clock.hasten(now);
        assert_eq!(clock.due_at(), Some(now + SHORTEST), "a storm of handshakes makes no storm of milestones");
        clock.refuse();
        assert_eq!(clock.due_at(), None);
        assert_eq!(MilestoneClock::new(false, now).due_at(), None);
    }

    #[test]
    fn without_the_right_to_ask_a_milestone_names_no_log() {
        let now = Instant::now();
        let mut clock = MilestoneClock::new(true, now);
        for info in [None, Some(""), Some("master_replid:8f31\r\nmaster_repl_offset:1\r\n")] {
            clock.on_info(info);
            assert_eq!(clock.next(now).unwrap().log, None);
        }
        clock.on_connected();
        assert_eq!(clock.next(now), None, "another node may be there");
    }
}
