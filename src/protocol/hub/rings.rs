//! The histories of all channels of a worker: they are placed by milestones, bounded together, and answer clients that
//! come back.
//!
//! A channel with a history counts as confirmed only when it is placed, so that each client knows its position from its
//! first byte on. May not enter: sockets, the broker.

use std::cmp::Reverse;

use bytes::{BufMut, BytesMut};

use super::budget::Budget;
use super::entry::ChannelEntry;
use super::history::{Beginning, History, Keep};
use super::kept;
use super::milestones::Milestones;
use super::state::Hub;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{SessionKey, SubscriberId};
use crate::per_node::PerNode;
use crate::placement::Node;
use crate::position::{Milestone, MilestoneId, Position, Since};

/// What a client is told for whose position not everything is kept.
pub(crate) const NOT_KEPT: &str = "messages since the last seen position may be missing";

/// What a client is told that asked for the oldest publications.
const OLDER_NOT_KEPT: &str = "earlier messages are not kept any more";

/// What a client that shows a position gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// It showed none: the position from which on it receives everything.
    New,
    /// Every publication behind its position.
    Complete { publications: usize },
    /// It asked for the oldest publications: those that are kept. Older ones were here, or may have been.
    Rest { publications: usize },
    /// Some publications behind its position may be missing.
    Incomplete,
}

impl Hub {
    /// Bounds the payloads that all histories keep together.
    pub(crate) fn set_max_history(&mut self, bytes: usize) {
        self.budget.max_bytes = bytes;
    }

    /// Keeps so much of `channel` from now on, for as long as the channel has an entry.
    pub(crate) fn keep(&mut self, channel: &Channel, keep: Keep) {
        let id = self.entry_of(channel);
        let Some(entry) = self.channels.get_mut(id) else { return };
        self.budget.longest = self.budget.longest.max(keep.age);
        match &mut entry.history {
            Some(history) => history.widen(keep),
            None => {
                self.budget.serials += 1;
                let current = entry.node.and_then(|node| self.milestones.at(node).current());
                let end = entry.places.end(current);
                entry.history = Some(Box::new(History::new(keep, self.budget.serials, end)));
                if entry.is_confirmed {
                    self.await_milestone(id);
                }
            }
        }
    }

    /// Waits until the confirmed channel `id` is placed, unless its node has no milestones.
    pub(super) fn await_milestone(&mut self, id: usize) {
        let Some(node) = self.channels.get(id).and_then(|entry| entry.node) else { return };
        let milestones = self.milestones.at_mut(node);
        if !milestones.are_missing {
            milestones.awaited_by.push(id);
        }
    }

    /// The milestone that was heard last at `node`.
    pub(crate) fn last_milestone(&self, node: Node) -> Option<MilestoneId> {
        self.milestones.at(node).last()
    }

    /// Whether a milestone was heard, at any node, and is not forgotten.
    pub(crate) fn has_heard(&self, milestone: MilestoneId) -> bool {
        self.milestones.iter().any(|of| of.has_heard(milestone))
    }

    /// The nodes that should publish a milestone soon, because a channel waits for it: each once, until it is heard.
    pub(crate) fn take_wanted_milestones(&mut self) -> Vec<Node> {
        let wanted = self.milestones.iter_mut().filter(|(_, of)| !of.awaited_by.is_empty() && !of.is_asked);
        wanted.map(|(node, of)| (of.is_asked = true, node).1).collect()
    }

    /// Lets the batch of a subscriber's audience leave with the next flush.
    pub(crate) fn release_batch(&mut self, subscriber: SubscriberId) {
        if let Some(audience) = self.audience_mut(subscriber) {
            audience.held_until = None;
        }
    }

    /// Notes a milestone in the stream of `node`. Returns the subscribers that waited for it.
    pub(crate) fn on_milestone(
        &mut self,
        node: Node,
        milestone: Milestone,
        now: Millis,
    ) -> Vec<(SessionKey, SubscriberId)> {
        let milestones = self.milestones.at_mut(node);
        if !milestones.hear(milestone, now) {
            return Vec::new();
        }
        milestones.forget(now.saturating_sub(self.budget.longest));
        // A worker that awaits the sessions of another process has no ticks.
        self.budget.now = self.budget.now.max(now);
        let awaited_by = std::mem::take(&mut milestones.awaited_by);
        let mut told = Vec::new();
        for id in awaited_by {
            // Since it was confirmed, the channel may have been lost, moved or given up.
            let Some(entry) = self.channels.get_mut(id).filter(|entry| entry.node == Some(node) && entry.is_confirmed)
            else {
                continue;
            };
            told.append(&mut entry.awaiting);
        }
        told
    }

    /// Notes that `node` has no milestones: its channels have no positions, and wait for none. Returns the subscribers
    /// that waited.
    pub(crate) fn without_milestones(&mut self, node: Node) -> Vec<(SessionKey, SubscriberId)> {
        let milestones = self.milestones.at_mut(node);
        milestones.are_missing = true;
        milestones.gapped.clear();
        let awaited_by = std::mem::take(&mut milestones.awaited_by);
        let mut told = Vec::new();
        for id in awaited_by {
            if let Some(entry) =
                self.channels.get_mut(id).filter(|entry| entry.node == Some(node) && entry.is_confirmed)
            {
                told.append(&mut entry.awaiting);
            }
        }
        told
    }

    /// Drops the oldest publications of all until the rest fits into the budget.
    pub(super) fn bound_kept(&mut self) {
        while self.budget.is_exceeded() && self.evict_oldest(Millis::MAX) {}
    }

    /// Drops the older half of what all histories keep, because memory is short; false when nothing is kept.
    pub(crate) fn halve_history(&mut self) -> bool {
        let (bytes, max_bytes) = (self.budget.bytes, self.budget.max_bytes);
        self.budget.max_bytes = bytes / 2;
        self.bound_kept();
        self.budget.max_bytes = max_bytes;
        self.budget.bytes < bytes
    }

    /// Notes that publications came in front of what the history of the channel `id` keeps: `growth` bytes.
    pub(super) fn on_prepended(&mut self, id: usize, growth: usize) {
        let Some(history) = self.channels.get_mut(id).and_then(|entry| entry.history.as_mut()) else { return };
        // The entry that may be in `oldest` is too late, and of another history now.
        self.budget.serials += 1;
        history.serial = self.budget.serials;
        if let Some(at) = history.expires_at() {
            self.budget.oldest.push(Reverse((at, id, history.serial)));
        }
        self.budget.bytes += growth;
        self.bound_kept();
    }

    /// Drops what is too old.
    pub(super) fn expire_kept(&mut self, now: Millis) {
        self.budget.now = now;
        while self.evict_oldest(now) {}
    }

    /// Drops the publication that is too old first, if that is by `until`; false when there is none.
    fn evict_oldest(&mut self, until: Millis) -> bool {
        while let Some(mut top) = self.budget.oldest.peek_mut() {
            let Reverse((at, id, serial)) = *top;
            if at > until {
                return false;
            }
            let entry = self.channels.get_mut(id).and_then(|entry| entry.history.as_mut());
            let history = entry.filter(|history| history.serial == serial);
            let Some((history, expires_at)) = history.and_then(|history| history.expires_at().map(|at| (history, at)))
            else {
                std::collections::binary_heap::PeekMut::pop(top);
                continue;
            };
            if expires_at > at {
                *top = Reverse((expires_at, id, serial));
                continue;
            }
            self.budget.bytes -= history.evict();
            return true;
        }
        false
    }

    /// Whether the history of a subscriber's channel has all publications behind `since`; or has the oldest of all
    /// workers.
    pub(crate) fn can_recover(&self, subscriber: SubscriberId, since: &Since) -> bool {
        let Some((entry, _)) = self.subscription(subscriber) else { return false };
        match since {
            Since::Position(since) => self.kept_after(entry, since).is_some(),
            Since::Oldest => entry.history.as_ref().is_some_and(|history| history.is_gathered),
        }
    }

    /// Whether `since` is behind everything that a subscriber's channel has delivered here. `is_known` tells whether
    /// others have heard its milestone, when this hub has not.
    pub(crate) fn is_behind(&self, subscriber: SubscriberId, since: &Since, is_known: bool) -> bool {
        let (Some((entry, _)), Since::Position(since)) = (self.subscription(subscriber), since) else { return false };
        let Some(milestones) = entry.node.map(|node| self.milestones.at(node)) else { return false };
        let Some(end) = entry.places.end(milestones.current()) else { return false };
        milestones.place(since).map_or(is_known, |place| place > end)
    }

    /// Notes that the other workers of the process have put in front what they had of a subscriber's channel.
    pub(crate) fn on_gathered(&mut self, subscriber: SubscriberId) {
        if let Some(history) = self.history_mut(subscriber) {
            history.is_gathered = true;
        }
    }

    /// What is kept of a channel behind `since`; `None` when some of it is not.
    pub(super) fn kept_after<'a>(&self, entry: &'a ChannelEntry, since: &Position) -> Option<kept::Iter<'a>> {
        let milestones = self.milestones.at(entry.node?);
        let end = entry.places.end(milestones.current())?;
        entry.history.as_ref()?.after(milestones.place(since)?, entry.places.from, end).ok()
    }

    /// All that is kept of a channel, and whether nothing came before it since the channel was subscribed; `None` when
    /// the channel has no positions.
    pub(super) fn kept_at_all<'a>(&self, entry: &'a ChannelEntry) -> Option<(kept::Iter<'a>, bool)> {
        entry.places.end(self.milestones.at(entry.node?).current())?;
        let history = entry.history.as_ref()?;
        Some((history.kept(), history.beginning == Beginning::Subscribed))
    }

    /// Writes what a subscriber gets before anything else, in its encoding: the publications behind `since`, or what
    /// says that some may be missing, and its position.
    pub(crate) fn recover(&mut self, subscriber: SubscriberId, since: Option<Since>, out: &mut BytesMut) -> Recovery {
        let Some((entry, encoding)) = self.subscription(subscriber) else { return Recovery::Incomplete };
        let milestones = entry.node.map(|node| self.milestones.at(node));
        let end = entry.places.end(milestones.and_then(Milestones::current));
        let position = |place| milestones.and_then(|milestones| milestones.position(place));
        let kept = since.map(|since| match since {
            Since::Position(since) => self.kept_after(entry, &since).map(|kept| (kept, true)),
            Since::Oldest => self.kept_at_all(entry),
        });
        let (recovery, gap) = match &kept {
            None => (Recovery::New, None),
            Some(None) => (Recovery::Incomplete, Some(NOT_KEPT)),
            Some(Some((kept, true))) => (Recovery::Complete { publications: kept.len() }, None),
            Some(Some((kept, false))) => (Recovery::Rest { publications: kept.len() }, Some(OLDER_NOT_KEPT)),
        };
        if let Some(gap) = gap.and_then(|gap| encoding.gap(gap)) {
            out.put_slice(&gap);
        }
        for kept in kept.flatten().into_iter().flat_map(|(kept, _)| kept) {
            encoding.encode(&entry.name, &kept.payload, position(kept.place), out);
        }
        let end = end.filter(|_| entry.history.is_some());
        // Publications have positions of their own.
        let has_gap_only = matches!(recovery, Recovery::Incomplete | Recovery::Rest { publications: 0 });
        let told = end
            .and_then(position)
            .and_then(|at| if has_gap_only { encoding.position_behind_gap(at) } else { encoding.position(at) });
        if let Some(position) = told {
            out.put_slice(&position);
        }
        recovery
    }
}

/// Counts a publication on the channel `id`. Keeps it if the channel has a history, and returns the position behind it
/// then, if it is known and clients may know it. The caller bounds the budget.
#[inline]
pub(super) fn record(
    id: usize,
    entry: &mut ChannelEntry,
    milestones: &PerNode<Milestones>,
    budget: &mut Budget,
    payload: &[u8],
) -> Option<Position> {
    let milestones = milestones.at(entry.node?);
    let place = entry.places.count(milestones.current())?;
    let history = entry.history.as_mut()?;
    let was_empty = history.is_empty();
    let growth = history.push(payload, place, entry.places.from, budget.now);
    if was_empty && let Some(at) = history.expires_at() {
        budget.oldest.push(Reverse((at, id, history.serial)));
    }
    budget.bytes = budget.bytes.saturating_add_signed(growth);
    // A client that knew a position behind a gap, and left before it was told of the gap, would never learn of it.
    let is_untold = entry.missed_by.is_some() && !entry.is_interrupted;
    if is_untold { None } else { milestones.position(place) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stage::{channel, key, milestone, position, sent};
    use super::*;
    use crate::placement::Placement;
    use crate::protocol::encoding::Encoding;

    const KEEP: Keep = Keep { messages: 10, age: 60_000, bytes: 1_000 };

    fn hub() -> Hub {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.set_max_history(10_000);
        hub
    }

    /// Subscribes a session to a channel with a history.
    fn join(hub: &mut Hub, name: &str, index: u32) -> (SubscriberId, bool) {
        hub.keep(&channel(name), KEEP);
        let joined = hub.join(&channel(name), Encoding::Meta, key(index));
        (joined.subscriber, joined.is_confirmed)
    }

    /// What a subscriber gets that comes back with `since`.
    fn recovered(hub: &mut Hub, subscriber: SubscriberId, since: Option<Position>) -> (Recovery, String) {
        let mut out = BytesMut::new();
        let recovery = hub.recover(subscriber, since.map(Since::Position), &mut out);
        (recovery, String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn a_position_that_another_worker_has_reached_first_is_behind_what_is_here() {
        let mut hub = hub();
        let (subscriber, _) = join(&mut hub, "a", 1);
        hub.confirm(Node(0), b"a");
        let at = |id, count| Since::Position(position(id, count));
        assert!(!hub.is_behind(subscriber, &at(1, 0), true), "the channel has no place yet");
        hub.on_milestone(Node(0), milestone(1), 0);
        hub.append(b"a", b"x");
        let ahead = [at(1, 0), at(1, 1), at(1, 2)].map(|since| hub.is_behind(subscriber, &since, false));
        assert_eq!(ahead, [false, false, true]);
        // A milestone that is not known is a new one, or one from before the channel was subscribed here.
        assert_eq!([true, false].map(|is_known| hub.is_behind(subscriber, &at(2, 0), is_known)), [true, false]);
        assert!(!hub.is_behind(subscriber, &Since::Oldest, true));
    }

    #[test]
    fn a_channel_with_a_history_is_ready_at_the_first_milestone_behind_its_confirmation() {
        let mut hub = hub();
        let (subscriber, is_ready) = join(&mut hub, "a", 1);
        assert!(!is_ready && hub.on_milestone(Node(0), milestone(1), 0).is_empty(), "it is not confirmed");
        assert_eq!(hub.take_wanted_milestones(), []);
        assert_eq!(hub.confirm(Node(0), b"a"), Some(vec![]));
        assert_eq!(hub.take_wanted_milestones(), [Node(0)]);
        assert_eq!(hub.take_wanted_milestones(), [], "asked for once");
        assert!(!join(&mut hub, "a", 2).1);
        assert_eq!(hub.on_milestone(Node(0), milestone(2), 0).first(), Some(&(key(1), subscriber)));
        assert!(join(&mut hub, "a", 3).1);
        hub.unconfirm_all(Node(0), 0, false);
        assert!(!join(&mut hub, "a", 4).1);
        assert_eq!(hub.confirm(Node(0), b"a").map(|told| told.len()), Some(0));
        assert_eq!(hub.take_wanted_milestones(), [Node(0)], "asked for once more, on the new link");
        assert_eq!(hub.on_milestone(Node(0), milestone(3), 0).len(), 1);
    }

    #[test]
    fn where_there_are_no_milestones_channels_have_no_positions_and_wait_for_none() {
        let mut hub = hub();
        let (subscriber, _) = join(&mut hub, "a", 1);
        hub.confirm(Node(0), b"a");
        assert_eq!(hub.without_milestones(Node(0)), [(key(1), subscriber)]);
        assert!(join(&mut hub, "a", 2).1 && hub.take_wanted_milestones().is_empty());
        hub.append(b"a", b"P");
        assert_eq!(sent(&mut hub), "\u{fffd}\u{2}\nP".repeat(2));
        assert_eq!(recovered(&mut hub, subscriber, Some(position(1, 0))).0, Recovery::Incomplete);
        // Another process is allowed to publish milestones.
        hub.on_milestone(Node(0), milestone(1), 0);
        let (_, is_ready) = join(&mut hub, "b", 3);
        assert!(!is_ready && hub.confirm(Node(0), b"b") == Some(vec![]));
    }

    #[test]
    fn a_client_that_comes_back_gets_what_it_missed_or_is_told() {
        let mut hub = hub();
        let (subscriber, _) = join(&mut hub, "a", 1);
        hub.confirm(Node(0), b"a");
        hub.on_milestone(Node(0), milestone(1), 0);
        hub.append(b"a", b"1");
        hub.append(b"a", b"2");
        hub.on_milestone(Node(0), milestone(2), 0);
        hub.append(b"a", b"3");
        let live = sent(&mut hub);
        let text = |count: usize, id, payload| {
            let position = crate::position::Token::from(position(id, u32::try_from(count).unwrap()));
            format!("\u{fffd}\u{15}id: {position}\n\n{payload}")
        };
        let all = [text(1, 1, "1"), text(2, 1, "2"), text(1, 2, "3")];
        assert_eq!(live, all.concat());
        for (since, from) in
            [(position(1, 0), 0), (position(1, 1), 1), (position(1, 2), 2), (position(2, 0), 2), (position(2, 1), 3)]
        {
            let publications = all.len() - from;
            assert_eq!(
                recovered(&mut hub, subscriber, Some(since)),
                (Recovery::Complete { publications }, all[from..].concat())
            );
        }
        assert_eq!(recovered(&mut hub, subscriber, None), (Recovery::New, String::new()));
        for unknown in [position(3, 0), position(2, 2)] {
            let (recovery, told) = recovered(&mut hub, subscriber, Some(unknown));
            assert!(recovery == Recovery::Incomplete && told.contains("event: gap"), "{told}");
        }
        hub.unconfirm(Node(0), b"a", 0);
        assert_eq!(recovered(&mut hub, subscriber, Some(position(2, 1))).0, Recovery::Incomplete);
    }

    #[test]
    fn a_client_that_asks_for_the_oldest_gets_all_that_is_kept_and_is_told_of_what_is_not() {
        let mut hub = hub();
        let oldest = |hub: &mut Hub, subscriber| {
            let mut out = BytesMut::new();
            let recovery = hub.recover(subscriber, Some(Since::Oldest), &mut out);
            (recovery, String::from_utf8_lossy(&out).into_owned())
        };
        let (subscriber, _) = join(&mut hub, "a", 1);
        assert_eq!(oldest(&mut hub, subscriber).0, Recovery::Incomplete, "it is not placed");
        hub.confirm(Node(0), b"a");
        hub.on_milestone(Node(0), milestone(1), 0);
        assert_eq!(oldest(&mut hub, subscriber), (Recovery::Complete { publications: 0 }, String::new()));
        hub.append(b"a", b"1");
        hub.on_milestone(Node(0), milestone(2), 0);
        for n in 2..=10 {
            hub.append(b"a", n.to_string().as_bytes());
        }
        let all = sent(&mut hub);
        assert_eq!(oldest(&mut hub, subscriber), (Recovery::Complete { publications: 10 }, all));
        hub.append(b"a", b"11");
        let (recovery, told) = oldest(&mut hub, subscriber);
        assert_eq!(recovery, Recovery::Rest { publications: 10 });
        let (gap, second) = (told.find("event: gap"), told.find("\n\n2"));
        assert!(gap.is_some() && gap < second && told.ends_with("\n\n11"), "{told:?}");
        // The others are asked first, once.
        assert!(!hub.can_recover(subscriber, &Since::Oldest));
        hub.on_gathered(subscriber);
        assert!(hub.can_recover(subscriber, &Since::Oldest));
        // What is missed while the link is away was never here.
        let (other, _) = join(&mut hub, "b", 2);
        hub.confirm(Node(0), b"b");
        hub.on_milestone(Node(0), milestone(3), 0);
        hub.on_gathered(other);
        hub.unconfirm_all(Node(0), 0, false);
        hub.confirm(Node(0), b"b");
        hub.on_milestone(Node(0), milestone(4), 0);
        assert!(!hub.can_recover(other, &Since::Oldest));
        assert_eq!(oldest(&mut hub, other).0, Recovery::Rest { publications: 0 });
        let plain = hub.join(&channel("plain"), Encoding::Meta, key(3)).subscriber;
        hub.confirm(Node(0), b"plain");
        assert_eq!(oldest(&mut hub, plain).0, Recovery::Incomplete, "nothing is kept");
    }

    #[test]
    fn a_history_that_begins_late_does_not_claim_what_came_before() {
        let mut hub = hub();
        hub.join(&channel("a"), Encoding::Plain, key(1));
        hub.confirm(Node(0), b"a");
        hub.on_milestone(Node(0), milestone(1), 0);
        hub.append(b"a", b"1");
        let (subscriber, is_ready) = join(&mut hub, "a", 2);
        assert!(is_ready);
        hub.append(b"a", b"2");
        assert_eq!(recovered(&mut hub, subscriber, Some(position(1, 0))).0, Recovery::Incomplete);
        assert_eq!(recovered(&mut hub, subscriber, Some(position(1, 1))).0, Recovery::Complete { publications: 1 });
    }

    #[test]
    fn all_histories_together_are_bounded_and_the_oldest_publications_go_first() {
        let mut hub = hub();
        hub.set_max_history(30);
        let names = ["a", "b", "c"];
        let subscribers = names.map(|name| {
            let (subscriber, _) = join(&mut hub, name, 1);
            hub.confirm(Node(0), name.as_bytes());
            subscriber
        });
        hub.on_milestone(Node(0), milestone(1), 0);
        for now in 0..5 {
            hub.expire(now, |_, _| {});
            for name in names {
                hub.append(name.as_bytes(), b"1234");
            }
        }
        let kept = |hub: &mut Hub, since| {
            subscribers.map(|subscriber| match recovered(hub, subscriber, Some(position(1, since))).0 {
                Recovery::Complete { publications } => publications,
                _ => 99,
            })
        };
        assert_eq!(kept(&mut hub, 2), [99, 99, 3], "7 of 15 fit");
        assert_eq!(kept(&mut hub, 3), [2, 2, 2]);
        hub.expire(60_003, |_, _| {});
        assert_eq!(kept(&mut hub, 4), [1, 1, 1]);
        assert_eq!(kept(&mut hub, 3), [99, 99, 99], "too old");
        hub.expire(60_004, |_, _| {});
        assert_eq!((hub.budget.bytes, kept(&mut hub, 5)), (0, [0, 0, 0]));
    }

    #[test]
    fn a_channel_with_a_history_stays_subscribed_for_its_age_after_the_last_client() {
        let mut hub = hub();
        let (subscriber, _) = join(&mut hub, "a", 1);
        let plain = hub.join(&channel("plain"), Encoding::Plain, key(2));
        for name in [&b"a"[..], b"plain"] {
            hub.confirm(Node(0), name);
        }
        hub.on_milestone(Node(0), milestone(1), 0);
        hub.leave(subscriber, 0);
        hub.leave(plain.subscriber, 0);
        let mut gone = Vec::new();
        hub.expire(59_999, |_, name| gone.push(name));
        assert_eq!(gone, [channel("plain")]);
        hub.append(b"a", b"1");
        let (subscriber, is_ready) = join(&mut hub, "a", 3);
        assert!(is_ready);
        assert_eq!(recovered(&mut hub, subscriber, Some(position(1, 0))).0, Recovery::Complete { publications: 1 });
        hub.leave(subscriber, 60_000);
        hub.expire(120_000, |_, name| gone.push(name));
        assert_eq!((gone.last(), hub.budget.bytes), (Some(&channel("a")), 0));
    }
}
