//! The state that a worker's two links to one node share: wanted channels, gap, probe, marker, and the reports for the
//! worker. The links' machines (`subscriber.rs`, `publisher.rs`) change this state. May not enter: bytes, sockets.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::Instant;

use super::catch_up::{CatchUp, is_clean_cut};
use super::channel_table::{ChannelTable, Count};
use super::error::LinkError;
use super::health::Health;
use super::marker::{Marker, Progress};
use super::milestone::{MilestoneClock, MilestoneUse};
use super::probe::Probe;
use super::resp::Protocol;
use super::role::{Rank, RoleWatch};
use super::transport::HostPort;
use crate::broker::event::{Gap, Report};
use crate::channel::Channel;
use crate::placement::{Node, Placement};
use crate::position::{Logged, Milestone};

/// A handshake waits for a link that has been away, or has owed an answer, for less than this. Later handshakes are
/// refused at once. Chosen: a lost connection is back by then, a lost or frozen server is not. Without a limit, 64
/// handshakes at a time would wait `subscribe_timeout` for a frozen server, and those behind them would time out
/// without an answer.
const BLIP: Duration = Duration::from_secs(1);

/// The pause before a channel or message that a node refuses for now is tried again.
pub(crate) const RETRY: Duration = Duration::from_millis(100);

/// How long a node may lag behind the decisions of other nodes. Chosen: gossip between nodes takes some hundred
/// milliseconds (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
pub(crate) const NEWS: Duration = Duration::from_secs(1);

/// The settings of a node's links.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The node's address, without its password.
    pub(crate) server: String,
    /// The node's address in the name of a marker's channel.
    pub(crate) marker_name: String,
    pub(crate) response_timeout: Duration,
    pub(crate) max_reconnect_delay: Duration,
    /// Whether the topology of a cluster decides which node is a master.
    pub(crate) is_in_cluster: bool,
    /// What milestones are for.
    pub(crate) milestones: MilestoneUse,
    /// Whether the node's replication log may be read.
    pub(crate) may_replay: bool,
}

#[cfg(test)]
impl Terms {
    /// Of a node outside a cluster, with three seconds for an answer.
    pub(crate) fn of_test() -> Self {
        Self {
            server: "redis://a".to_owned(),
            marker_name: "a".to_owned(),
            response_timeout: Duration::from_secs(3),
            max_reconnect_delay: Duration::from_secs(1),
            is_in_cluster: false,
            milestones: MilestoneUse::Nothing,
            may_replay: false,
        }
    }
}

/// The result of a greeting.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) protocol: Protocol,
    /// The node's address, for log lines.
    pub(crate) address: String,
    /// The node's role, asked once already.
    pub(crate) role: RoleWatch,
    /// The master that the Sentinels named.
    pub(crate) master: Option<HostPort>,
}

/// The kind of a publication on a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PublicationKind {
    /// A publication for sessions.
    Session,
    /// A probe, an own milestone, a forged marker, or what others published on the channels of these.
    Own,
    /// Another worker's milestone.
    Milestone,
    /// The milestone at which the stream stands still, until the time before it is read from the node's log.
    CatchUp,
    /// The marker: the stream stands still here.
    Marker,
}

/// The state that a worker's links to one node share.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) id: Node,
    pub(crate) terms: Terms,
    pub(crate) health: Arc<Health>,
    pub(crate) placement: Placement,
    pub(crate) channels: ChannelTable,
    pub(crate) probe: Probe,
    pub(crate) marker: Option<Marker>,
    pub(crate) milestones: MilestoneClock,
    /// Set while a stream that was cut is continued from the node's log.
    pub(crate) catch_up: Option<CatchUp>,
    /// Since when some wanted channels are not subscribed; `None` while all are.
    pub(crate) incomplete_since: Option<Instant>,
    /// When the last of all wanted channels was subscribed.
    pub(crate) subscribed_at: Instant,
    /// Since when subscriptions are lost; `None` once the gap is reported.
    pub(crate) lost_since: Option<Instant>,
    /// Since when the node refuses channels for now.
    pub(crate) refused_since: Option<Instant>,
    /// When to subscribe the refused channels again.
    pub(crate) retry_at: Option<Instant>,
    /// In a cluster: since when the node says that it is a replica.
    demoted_since: Option<Instant>,
    /// Whether the subscriber must ask its server's role at once.
    pub(crate) is_suspect: bool,
    /// Whether the marker is to be published.
    pub(crate) is_marker_due: bool,
    /// The master that the subscriber's link leads to, where Sentinels name one. Messages published on another server
    /// would not come back.
    pub(crate) subscriber_at: Option<HostPort>,
    /// Whether this node's messages must wait for messages that are under way at other nodes.
    pub(crate) is_behind_others: bool,
    /// Until when the known topology was certainly the cluster's.
    pub(crate) topology_known_at: Option<Instant>,
    /// Whether a node contradicts the known topology.
    pub(crate) doubts_topology: bool,
    /// The reports for the worker, in order.
    pub(crate) events: VecDeque<Report>,
}

impl NodeState {
    pub(crate) fn new(id: Node, terms: Terms, health: Arc<Health>, placement: Placement, now: Instant) -> Self {
        let milestones = MilestoneClock::new(terms.milestones, terms.is_in_cluster, now);
        Self {
            id,
            terms,
            health,
            placement,
            channels: ChannelTable::default(),
            probe: Probe::new(now),
            marker: None,
            milestones,
            catch_up: None,
            incomplete_since: Some(now),
            subscribed_at: now,
            lost_since: None,
            refused_since: None,
            retry_at: None,
            demoted_since: None,
            is_suspect: false,
            is_marker_due: false,
            subscriber_at: None,
            is_behind_others: false,
            topology_known_at: None,
            doubts_topology: false,
            events: VecDeque::new(),
        }
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete_since.is_some()
    }

    /// The channel to subscribe on each new link, to prove that it delivers.
    pub(crate) fn probe_channel(&self) -> &Channel {
        self.milestones.channel().unwrap_or(self.probe.channel())
    }

    /// When the next proof should be asked for; `None` where there is none.
    pub(crate) fn proof_due_at(&self) -> Option<Instant> {
        self.probe.is_allowed().then(|| self.milestones.due_at().unwrap_or(self.probe.due_at()))
    }

    /// Redis' ACL does not let us publish or subscribe the channel by which links are proved. In place of the
    /// milestones', the probe's own is to be subscribed.
    pub(crate) fn refuse_probe(&mut self, error: &RedisError) {
        if !self.milestones.are_on() {
            self.probe.refuse();
            return self.health.probe_is_refused(error);
        }
        self.milestones.refuse();
        self.probe.lose();
        self.health.milestones_are_refused(error, self.terms.milestones);
        self.events.push_back(Report::NoMilestones { node: self.id });
    }

    /// The subscribing link has all wanted channels.
    pub(crate) fn on_complete(&mut self, now: Instant) {
        self.milestones.on_complete(now);
        self.incomplete_since = None;
        self.subscribed_at = now;
        self.health.worker_is_complete();
        self.health.link_is_up();
    }

    /// Distinguishes a publication for sessions from the links' own. It was read behind the answer to a command that was sent at
    /// `answered`.
    pub(crate) fn kind_of(
        &mut self,
        channel: &[u8],
        payload: &[u8],
        answered: Instant,
        now: Instant,
    ) -> PublicationKind {
        if let Some(marker) = self.marker.as_ref().filter(|marker| *marker.channel == *channel) {
            if marker.is_sealed(payload) { PublicationKind::Marker } else { PublicationKind::Own }
        } else if self.probe.takes(channel, payload) {
            PublicationKind::Own
        } else if self.milestones.is_on(channel) {
            self.on_milestone(payload, answered, now)
        } else {
            PublicationKind::Session
        }
    }

    fn on_milestone(&mut self, payload: &[u8], answered: Instant, now: Instant) -> PublicationKind {
        let milestone = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<Milestone>().ok());
        // Any other payload on this channel is ignored. A forged milestone keeps no deaf link, which does not hear it.
        let Some(milestone) = milestone.filter(|_| self.milestones.are_on()) else { return PublicationKind::Own };
        self.milestones.on_heard(milestone, now);
        let is_own = self.probe.takes_milestone(milestone.id, answered);
        match self.catch_up {
            None => self.events.push_back(Report::Milestone { node: self.id, milestone }),
            // The log has this milestone, too.
            Some(CatchUp::Cut { .. } | CatchUp::Reading { .. }) => {}
            Some(CatchUp::Subscribed { from, .. }) => {
                self.catch_up = Some(CatchUp::Reading { from, until: milestone });
                return PublicationKind::CatchUp;
            }
        }
        if is_own { PublicationKind::Own } else { PublicationKind::Milestone }
    }

    /// The link is lost because of `error`. Returns whether the stream can be continued from the node's log: only if
    /// the link has heard everything until its loss.
    pub(crate) fn cut(&mut self, error: &LinkError, count: Count) -> bool {
        // Redis may have forgotten some of a deaf link's subscriptions before the others; the count would show that.
        let is_certain = !matches!(error, LinkError::Deaf(_)) || count == Count::Believed;
        let is_clean = is_clean_cut(error) && is_certain && !self.probe.is_forgotten();
        let last = self.milestones.last.filter(|last| last.log.is_some() && !self.is_incomplete());
        let is_clean = is_clean && self.milestones.are_on();
        let from = self.catch_up.map(CatchUp::from).or(last);
        self.catch_up = from.filter(|_| self.terms.may_replay && is_clean).map(|from| CatchUp::Cut { from });
        self.catch_up.is_some()
    }

    /// The log was read, or could not be read, while the stream stood still at `until`.
    pub(crate) fn caught_up(&mut self, read: Result<Vec<Logged>, impl fmt::Display>, until: Milestone, now: Instant) {
        self.catch_up = None;
        match read {
            Ok(logged) => {
                let since = self.lost_since.take().unwrap_or(now);
                let length = now.saturating_duration_since(since);
                let gap = Gap { node: self.id, server: self.terms.server.clone(), length };
                self.events.push_back(Report::Replayed { gap, logged, until });
            }
            Err(error) => {
                let server = &self.terms.server;
                tracing::warn!(server, %error, "the gap at {server} cannot be filled from its replication log: {error}");
                self.end_gap(now);
                self.events.push_back(Report::Milestone { node: self.id, milestone: until });
            }
        }
    }

    /// A channel waits for the next milestone.
    pub(crate) fn hasten_milestone(&mut self, now: Instant) {
        if self.milestones.are_on() {
            self.milestones.hasten(now);
        } else {
            self.events.push_back(Report::NoMilestones { node: self.id });
        }
    }

    pub(crate) fn is_marker(&self, channel: &[u8]) -> bool {
        self.marker.as_ref().is_some_and(|marker| *marker.channel == *channel)
    }

    pub(crate) fn set_progress(&mut self, progress: Progress) {
        if let Some(marker) = &mut self.marker {
            marker.progress = progress;
        }
    }

    /// Subscriptions are lost. The last proof that Redis had them is of `since`.
    pub(crate) fn lost(&mut self, since: Instant) {
        self.channels.await_all();
        self.lost_since = Some(self.lost_since.map_or(since, |before| before.min(since)));
    }

    /// Until when the channels that were at this node until `placed` were certainly heard.
    pub(crate) fn heard_until(&self, placed: Instant) -> Instant {
        self.lost_since.unwrap_or(placed).min(placed).min(self.probe.complete_until())
    }

    /// Redis has ended the subscription to a sharded channel unasked.
    pub(crate) fn dropped(&mut self, channel: &[u8], now: Instant) {
        if self.probe.is_on(channel) {
            // The next audit finds another name.
            self.probe.lose();
        } else if let Some(channel) = self.channels.lose(channel) {
            let known = self.topology_known_at.and_then(|at| at.checked_sub(NEWS));
            self.lost(self.heard_until(known.unwrap_or(now)));
            self.events.push_back(Report::Dropped { node: self.id, channel });
        } else {
            return;
        }
        self.contradicted(now);
    }

    /// The node contradicts the topology for now: the topology must be read again.
    pub(crate) fn contradicted(&mut self, now: Instant) {
        self.channels.await_all();
        self.refused_since = self.refused_since.or(Some(now));
        self.retry_at = Some(now + RETRY);
        self.doubts_topology = true;
    }

    /// Reports the gap once all lost channels are subscribed again. Newer channels are not waited for: a stream of
    /// handshakes would put the report off.
    pub(crate) fn end_gap(&mut self, now: Instant) {
        if let Some(catch_up) = self.catch_up.filter(|catch_up| !catch_up.is_overdue(now)) {
            if let CatchUp::Cut { from } = catch_up
                && !self.channels.has_awaited()
            {
                self.catch_up = Some(CatchUp::Subscribed { from, at: now });
                self.milestones.hasten(now);
            }
            return;
        }
        self.catch_up = None;
        if self.lost_since.is_none() && self.refused_since.is_none() || self.channels.has_awaited() {
            return;
        }
        self.refused_since = None;
        if let Some(since) = self.lost_since.take() {
            let length = now.saturating_duration_since(since);
            self.events.push_back(Report::Gap(Gap { node: self.id, server: self.terms.server.clone(), length }));
        }
    }

    /// Judges the role that a node reports. In a cluster the topology decides, and a contradiction makes webws read it
    /// again.
    ///
    /// # Errors
    /// The node is no master.
    pub(crate) fn on_rank(&mut self, rank: Rank, address: &str, now: Instant) -> Result<(), LinkError> {
        if !self.terms.is_in_cluster {
            return if rank.is_wrong() { Err(LinkError::NoMaster(address.to_owned(), rank.fault())) } else { Ok(()) };
        }
        if rank.is_wrong() {
            self.doubts_topology = true;
            self.demoted_since = self.demoted_since.or(Some(now));
        } else {
            self.demoted_since = None;
        }
        Ok(())
    }

    /// Whether the link has its subscriptions and its answer (awaited since `unanswered_since`), or lacks them only
    /// briefly.
    pub(crate) fn is_reachable(&self, unanswered_since: Option<Instant>, now: Instant) -> bool {
        let trouble = [self.incomplete_since, unanswered_since];
        trouble.into_iter().flatten().all(|since| is_blip(since, now))
    }

    /// What is wrong with the links of all workers to this node, or with this worker's channels there.
    pub(crate) fn fault(&self, now: Instant) -> Option<String> {
        let server = &self.terms.server;
        let lasting = |since: Option<Instant>| {
            let time = now.saturating_duration_since(since?);
            (time > BLIP).then_some(time)
        };
        self.health.fault().or_else(|| {
            if let Some(time) = lasting(self.demoted_since) {
                return Some(format!(
                    "{server} has been a replica for {time:.1?}, and the cluster names no other master"
                ));
            }
            let time = lasting(self.refused_since)?;
            Some(format!("{server} has refused some channels for {time:.1?}"))
        })
    }

    /// Splits channels into sharded ones and others.
    pub(crate) fn split(&self, channels: Vec<Channel>) -> (Vec<Channel>, Vec<Channel>) {
        if !self.placement.has_sharded() {
            return (Vec::new(), channels);
        }
        channels.into_iter().partition(|channel| self.placement.is_sharded(channel))
    }
}

/// Whether a fault that began at `since` may be over soon.
pub(super) fn is_blip(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < BLIP
}
