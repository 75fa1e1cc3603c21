//! The channels of a worker in a cluster whose slot has no known owner. They are wanted, no link subscribes them, and a
//! topology that names an owner moves them to a node. What they miss meanwhile is told at that node, as its gap.
//!
//! `redis_broker.rs` tells what moves; messages on such channels wait in the outbox. May not enter: links.

use std::collections::HashSet;

use tokio::time::Instant;

use super::node_state::is_blip;
use crate::channel::Channel;
use crate::placement::Owners;

/// The channels without a node.
#[derive(Debug)]
pub(super) struct Unplaced {
    channels: HashSet<Channel>,
    /// Since when channels that were subscribed before may miss publications.
    lost_since: Option<Instant>,
    /// Since when some slots have no known owner; `None` while all have one.
    since: Option<Instant>,
}

impl Unplaced {
    /// No owner is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { channels: HashSet::new(), lost_since: None, since: Some(now) }
    }

    /// A topology names these owners. The channels move later, by [`Unplaced::take`] and [`Unplaced::subscribe`].
    pub(super) fn on_owners(&mut self, owners: &Owners, now: Instant) {
        let have_all_owners = owners.slots.iter().chain(&owners.homes).all(Option::is_some);
        self.since = if have_all_owners { None } else { self.since.or(Some(now)) };
    }

    /// Wants a channel.
    pub(super) fn subscribe(&mut self, channel: Channel) {
        self.channels.insert(channel);
    }

    /// Gives a channel to a node. Returns until when the channel was certainly heard, if ever; the topology without an
    /// owner was the true one until `old_until`.
    pub(super) fn take(&mut self, channel: &Channel, old_until: Instant) -> Instant {
        let was_there = self.channels.remove(channel);
        debug_assert!(was_there, "a channel without a node is known here");
        self.lost_since.unwrap_or(old_until)
    }

    /// Publications since `since` are missing on channels that were subscribed before.
    pub(super) fn lost(&mut self, since: Instant) {
        self.lost_since = Some(self.lost_since.map_or(since, |before| before.min(since)));
    }

    /// Without channels nothing is missing. No link would tell so, as [`super::node_state::NodeState::end_gap`] does.
    pub(super) fn settle(&mut self) {
        if self.channels.is_empty() {
            self.lost_since = None;
        }
    }

    /// Since when publications are missing, if any are.
    pub(super) fn missed_since(&self) -> Option<Instant> {
        self.lost_since.filter(|_| !self.channels.is_empty())
    }

    /// Whether a handshake may wait for an owner to be named.
    pub(super) fn is_reachable(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| is_blip(since, now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::placement::{Node, SLOTS};

    const SECOND: Duration = Duration::from_secs(1);

    fn owners(last: Option<Node>) -> Owners {
        let mut slots = vec![Some(Node(0)); SLOTS.into()];
        slots[usize::from(SLOTS) - 1] = last;
        Owners { slots, homes: vec![Some(Node(0)); SLOTS.into()], nodes: 1, live: 1 }
    }

    fn channel() -> Channel {
        Channel::from_static(b"c:a")
    }

    #[test]
    fn a_channel_that_was_never_subscribed_misses_nothing() {
        let now = Instant::now();
        let mut unplaced = Unplaced::new(now);
        unplaced.subscribe(channel());
        assert_eq!(unplaced.missed_since(), None);
        assert_eq!(unplaced.take(&channel(), now + SECOND), now + SECOND);
        unplaced.settle();
        assert_eq!(unplaced.missed_since(), None);
    }

    #[test]
    fn a_gap_begins_at_the_first_loss_and_ends_with_the_last_channel() {
        let now = Instant::now();
        let other = Channel::from_static(b"c:b");
        let mut unplaced = Unplaced::new(now);
        for (channel, since) in [(channel(), now + SECOND), (other.clone(), now + 2 * SECOND)] {
            unplaced.lost(since);
            unplaced.subscribe(channel);
        }
        assert_eq!(unplaced.take(&other, now + 5 * SECOND), now + SECOND);
        unplaced.settle();
        assert_eq!(unplaced.missed_since(), Some(now + SECOND), "of the other one");
        assert_eq!(unplaced.take(&channel(), now + 5 * SECOND), now + SECOND);
        unplaced.settle();
        unplaced.subscribe(other);
        assert_eq!(unplaced.missed_since(), None, "another channel has another gap");
    }

    #[test]
    fn what_a_restart_missed_is_told_of_channels_that_come_later() {
        let now = Instant::now();
        let mut unplaced = Unplaced::new(now);
        unplaced.lost(now - SECOND);
        assert_eq!(unplaced.missed_since(), None, "no channel misses anything");
        unplaced.subscribe(channel());
        assert_eq!(unplaced.missed_since(), Some(now - SECOND));
        assert_eq!(unplaced.take(&channel(), now), now - SECOND);
    }

    #[test]
    fn a_handshake_waits_for_a_blip_from_when_slots_have_no_owner() {
        let now = Instant::now();
        let mut unplaced = Unplaced::new(now);
        assert!(unplaced.is_reachable(now) && !unplaced.is_reachable(now + SECOND));
        unplaced.on_owners(&owners(Some(Node(0))), now + SECOND);
        assert!(unplaced.is_reachable(now + 9 * SECOND));
        unplaced.on_owners(&owners(None), now + 10 * SECOND);
        unplaced.on_owners(&owners(None), now + 11 * SECOND);
        assert!(unplaced.is_reachable(now + 10 * SECOND) && !unplaced.is_reachable(now + 11 * SECOND));
    }
}
