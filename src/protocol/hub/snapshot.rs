//! Histories as data: gives a worker's own in parts of bounded size, and adopts those of another process, of another
//! worker (for a client that comes back), or of a node's replication log.
//!
//! The other process has subscribed the channels, so from some milestone on its own histories are complete. What was
//! published before does not change any more, and is sent while this process serves. May not enter: the messages of the
//! two processes, the reading of a log.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::entry::ChannelEntry;
use super::history::{Beginning, History};
use super::kept::Kept;
use super::milestones::Milestones;
use super::places::Place;
use super::state::Hub;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::placement::Node;
use crate::position::{Logged, Milestone, Since};

/// A part has no further history once it has reached this many bytes, or this many histories. Chosen: a worker makes,
/// and adopts, a part in about a millisecond.
const MAX_PART_BYTES: usize = 1 << 20;
const MAX_PART_HISTORIES: usize = 1_000;

/// Where the next part begins.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistoryCursor {
    node: u16,
    /// The id of an entry.
    channel: usize,
}

/// A part of a worker's histories: of channels at one node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HistoriesSnapshot {
    /// All milestones of the node that are known, in order, and for how long.
    milestones: Vec<(Milestone, Millis)>,
    pub(crate) histories: Vec<HistorySnapshot>,
}

/// The index of a milestone in the same part, and a number of publications.
type PlaceSnapshot = (u32, u32);

/// The history of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HistorySnapshot {
    channel: ByteBuf,
    /// Has all publications behind `start`, up to `end`.
    start: PlaceSnapshot,
    end: PlaceSnapshot,
    kept: Vec<KeptSnapshot>,
    /// Whether publications in front of these were here, or may have been; `None` for a log, which says nothing of that.
    /// An earlier version does not say, so they may have been.
    #[serde(default = "may_be_cut")]
    is_cut: Option<bool>,
}

fn may_be_cut() -> Option<bool> {
    Some(true)
}

/// A publication, and how long ago it came. Without names of fields, because there may be a hundred thousand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptSnapshot(PlaceSnapshot, Millis, ByteBuf);

impl HistoriesSnapshot {
    fn of(milestones: &Milestones, now: Millis) -> Self {
        let ago = |(milestone, at): &(Milestone, Millis)| (*milestone, now.saturating_sub(*at));
        Self { milestones: milestones.known().map(ago).collect(), histories: Vec::new() }
    }
}

impl HistoriesSnapshot {
    /// Whether the milestone of a position is among those known there.
    pub(crate) fn names(&self, since: &Since) -> bool {
        matches!(since, Since::Position(since) if self.milestones.iter().any(|(it, _)| it.id == since.milestone.id))
    }
}

impl HistorySnapshot {
    /// `None` for a channel without a history, or one that is not placed.
    fn of(entry: &ChannelEntry, milestones: &Milestones, now: Millis) -> Option<Self> {
        let end = entry.places.end(milestones.current())?;
        let history = entry.history.as_ref()?;
        // Places that count from a milestone forgotten since have no form for others: the history is complete from the
        // first milestone that has.
        let first = Place { milestone: milestones.first(), count: 0 };
        let place = |Place { milestone, count }| (milestone - first.milestone, count);
        let is_cut = history.beginning != Beginning::Subscribed || history.kept().any(|kept| kept.place < first);
        let kept = history.kept().filter(|kept| kept.place >= first);
        let kept = kept.map(|Kept { place: at, at: came, payload }| {
            KeptSnapshot(place(at), now.saturating_sub(came), ByteBuf::from(payload.into_owned()))
        });
        Some(Self {
            channel: ByteBuf::from(&*entry.name),
            start: place(history.start(entry.places.from).max(first)),
            end: place(end),
            kept: kept.collect(),
            is_cut: Some(is_cut),
        })
    }

    /// The approximate size in a message, in bytes.
    fn size(&self) -> usize {
        let kept: usize = self.kept.iter().map(|KeptSnapshot(_, _, payload)| payload.len() + 16).sum();
        kept + self.channel.len() + 64
    }
}

impl Hub {
    /// A part of the histories, and where the next one begins; `None` behind the last.
    pub(crate) fn histories(&self, from: HistoryCursor, now: Millis) -> (HistoriesSnapshot, Option<HistoryCursor>) {
        let node = Node(from.node);
        let Some(milestones) = self.milestones.iter().nth(node.index()) else { return Default::default() };
        let mut part = HistoriesSnapshot::of(milestones, now);
        let mut bytes = 0;
        for channel in from.channel..self.channels.capacity() {
            if bytes >= MAX_PART_BYTES || part.histories.len() >= MAX_PART_HISTORIES {
                return (part, Some(HistoryCursor { channel, ..from }));
            }
            let entry = self.channels.get(channel).filter(|entry| entry.node == Some(node));
            if let Some(history) = entry.and_then(|entry| HistorySnapshot::of(entry, milestones, now)) {
                bytes += history.size();
                part.histories.push(history);
            }
        }
        let has_more = node.index() + 1 < self.milestones.iter().count();
        (part, has_more.then(|| HistoryCursor { node: from.node + 1, channel: 0 }))
    }

    /// The history of one channel, for another worker that is asked for more than it has.
    pub(crate) fn history_of(&self, channel: &[u8], now: Millis) -> HistoriesSnapshot {
        let entry = self.names.find(&self.channels, channel).and_then(|id| self.channels.get(id));
        let Some((entry, node)) = entry.and_then(|entry| Some((entry, entry.node?))) else { return Default::default() };
        let milestones = self.milestones.at(node);
        let mut part = HistoriesSnapshot::of(milestones, now);
        part.histories.extend(HistorySnapshot::of(entry, milestones, now));
        part
    }

    /// Puts what the log of `node` has between two milestones in front of the histories.
    pub(crate) fn adopt_log(
        &mut self,
        node: Node,
        from: Milestone,
        logged: Vec<Logged>,
        until: Milestone,
        now: Millis,
    ) {
        let mut part = HistoriesSnapshot { milestones: vec![(from, 0)], histories: Vec::new() };
        // On a channel that the log does not name, nothing was published: that is known now, too.
        let kept = self.channels.iter().map(|(_, entry)| entry);
        let kept = kept.filter(|entry| entry.node == Some(node) && entry.history.is_some());
        let mut places: HashMap<Channel, (PlaceSnapshot, Vec<KeptSnapshot>)> =
            kept.map(|entry| (entry.name.clone(), ((0, 0), Vec::new()))).collect();
        let mut current = 0;
        for logged in logged {
            match logged {
                Logged::Publication { channel, payload } => {
                    let Some((last, kept)) = places.get_mut(&channel) else { continue };
                    *last = if last.0 < current { (current, 1) } else { (current, last.1 + 1) };
                    kept.push(KeptSnapshot(*last, 0, ByteBuf::from(payload)));
                }
                Logged::Milestone(milestone) => {
                    current += 1;
                    part.milestones.push((milestone, 0));
                }
            }
        }
        part.milestones.push((until, 0));
        let end = (current + 1, 0);
        part.histories.extend(places.into_iter().map(|(channel, (_, kept))| HistorySnapshot {
            channel: ByteBuf::from(&*channel),
            start: (0, 0),
            end,
            kept,
            is_cut: None,
        }));
        self.adopt_histories(part, now);
    }

    /// Puts the publications of another process in front of those of channels that were reserved. A history that does
    /// not reach to the own one without a gap is dropped.
    pub(crate) fn adopt_histories(&mut self, part: HistoriesSnapshot, now: Millis) {
        let theirs = part.milestones.into_iter().map(|(milestone, ago)| (milestone, now.saturating_sub(ago)));
        let theirs: Vec<_> = theirs.collect();
        // The channels may be at other nodes here.
        let mut numbers: HashMap<Node, Vec<Option<u32>>> = HashMap::new();
        for snapshot in part.histories {
            let Some(id) = self.names.find(&self.channels, &snapshot.channel) else { continue };
            let Some(entry) = self.channels.get_mut(id) else { continue };
            let (Some(node), Some(history)) = (entry.node, &mut entry.history) else { continue };
            history.is_wanted = true;
            let milestones = self.milestones.at_mut(node);
            let numbers = numbers.entry(node).or_insert_with(|| milestones.adopt(&theirs));
            if !snapshot.is_unbroken(numbers, milestones.current()) {
                history.beginning = Beginning::Lost;
            } else if entry.places.end(milestones.current()).is_some()
                && let Some(growth) = snapshot.give_to(history, entry.places.from, numbers, now)
            {
                self.on_prepended(id, growth);
            }
        }
        self.expire_kept(now);
    }
}

impl HistorySnapshot {
    /// Whether its stream had all milestones that were heard here meanwhile, up to `current`. One without some has lost
    /// publications as well, and does not know that yet: a master that was made a replica relays its new master's stream
    /// from some point on. A log has everything.
    fn is_unbroken(&self, numbers: &[Option<u32>], current: Option<u32>) -> bool {
        let range = self.start.0 as usize..=self.end.0 as usize;
        let theirs: Vec<_> = numbers.get(range).into_iter().flatten().copied().flatten().collect();
        let follows = |[before, next]: [u32; 2]| match next {
            u32::MAX => before == u32::MAX || Some(before) == current,
            next => before.checked_add(1) == Some(next),
        };
        self.is_cut.is_none() || theirs.array_windows().copied().all(follows)
    }

    /// Puts the publications in front of those of `history`; returns how many bytes more are kept. `None` when a
    /// milestone has no number here.
    fn give_to(self, history: &mut History, from: u32, numbers: &[Option<u32>], now: Millis) -> Option<usize> {
        let place = |(milestone, count): PlaceSnapshot| {
            let number = numbers.get(milestone as usize).copied().flatten();
            number.map(|milestone| Place { milestone, count })
        };
        let theirs = place(self.start)?..place(self.end)?;
        let kept = self.kept.into_iter().map(|KeptSnapshot(at, ago, payload)| {
            let payload = payload.into_vec().into();
            Some(Kept { place: place(at)?, at: now.saturating_sub(ago), payload })
        });
        let kept: Option<Vec<_>> = kept.collect();
        let beginning = match self.is_cut {
            Some(true) => Beginning::Lost,
            Some(false) => Beginning::Subscribed,
            None => Beginning::Elsewhere,
        };
        Some(history.prepend(theirs, kept?, beginning, from))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::super::stage::{channel, key, position};
    use super::*;
    use crate::clock;
    use crate::id::SessionKey;
    use crate::placement::Placement;
    use crate::position::{Position, Since};
    use crate::protocol::encoding::Encoding;
    use crate::protocol::hub::{Keep, Recovery};

    const KEEP: Keep = Keep { messages: 20, age: 60_000, bytes: 4_000_000 };
    const NOW: Millis = clock::START;

    fn hub() -> Hub {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.set_max_history(100_000_000);
        hub
    }

    /// A hub of the old process, with a client on each channel.
    fn old(names: &[&str]) -> Hub {
        let mut hub = hub();
        for name in names {
            hub.keep(&channel(name), KEEP);
            hub.join(&channel(name), Encoding::Plain, key(1));
            hub.confirm(Node(0), name.as_bytes());
        }
        hub
    }

    /// A hub of the new process, which awaits their clients.
    fn new(names: &[&str]) -> Hub {
        let mut hub = hub();
        for name in names {
            hub.keep_reserved(&channel(name), KEEP);
            hub.reserve(&channel(name));
            hub.confirm(Node(0), name.as_bytes());
        }
        hub
    }

    /// Milestone `id` is published on the node, and then a publication on each channel.
    fn publish(hubs: &mut [&mut Hub], id: u64, names: &[&str], now: Millis) {
        for hub in hubs {
            hub.on_milestone(Node(0), position(id, 0).milestone, now);
            for name in names {
                hub.append(name.as_bytes(), format!("{name}{id}").as_bytes());
            }
        }
    }

    fn all_parts(hub: &Hub, now: Millis) -> Vec<HistoriesSnapshot> {
        let (mut parts, mut next) = (Vec::new(), Some(HistoryCursor::default()));
        while let Some(from) = next {
            let (part, behind) = hub.histories(from, now);
            parts.push(part);
            next = behind;
        }
        parts
    }

    fn move_to(new: &mut Hub, old: &Hub, now: Millis) {
        all_parts(old, now).into_iter().for_each(|part| new.adopt_histories(part, now));
    }

    /// How many publications a client gets that comes back; `None` if it is told that some may be missing.
    fn recovered(hub: &mut Hub, name: &str, since: Position) -> Option<usize> {
        hub.keep(&channel(name), KEEP);
        let joined = hub.join(&channel(name), Encoding::Meta, SessionKey { index: 9, generation: 9 });
        let recovery = hub.recover(joined.subscriber, Some(Since::Position(since)), &mut BytesMut::new());
        hub.leave(joined.subscriber, NOW);
        match recovery {
            Recovery::Complete { publications } => Some(publications),
            Recovery::New | Recovery::Rest { .. } | Recovery::Incomplete => None,
        }
    }

    /// How many publications a client gets that asks for the oldest, and whether it is told that there were others.
    fn oldest(hub: &mut Hub, name: &str) -> (usize, bool) {
        let joined = hub.join(&channel(name), Encoding::Meta, SessionKey { index: 9, generation: 9 });
        let recovery = hub.recover(joined.subscriber, Some(Since::Oldest), &mut BytesMut::new());
        hub.leave(joined.subscriber, NOW);
        match recovery {
            Recovery::Complete { publications } => (publications, false),
            Recovery::Rest { publications } => (publications, true),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_oldest_publications_are_those_of_all_that_had_the_channel() {
        let (mut whole, mut cut) = (old(&["a"]), old(&["a"]));
        publish(&mut [&mut whole, &mut cut], 1, &["a"], NOW);
        for _ in 0..20 {
            cut.append(b"a", b"more");
        }
        assert_eq!((oldest(&mut whole, "a"), oldest(&mut cut, "a")), ((1, false), (20, true)));
        let mut own = new(&["a"]);
        publish(&mut [&mut whole, &mut cut, &mut own], 2, &["a"], NOW);
        assert_eq!(oldest(&mut own, "a"), (1, true), "the old process may have had others");
        move_to(&mut own, &whole, NOW);
        assert_eq!(oldest(&mut own, "a"), (2, false));
        move_to(&mut own, &cut, NOW);
        assert_eq!(oldest(&mut own, "a"), (2, true), "from another one, whose history begins later");
        // An earlier version does not say.
        let mut own = new(&["a"]);
        publish(&mut [&mut whole, &mut own], 3, &["a"], NOW);
        let mut part = all_parts(&whole, NOW).remove(0);
        part.histories[0].is_cut = may_be_cut();
        own.adopt_histories(part, NOW);
        assert_eq!(oldest(&mut own, "a"), (3, true));
    }

    #[test]
    fn a_client_comes_back_to_the_new_process_with_a_position_of_the_old_one() {
        let mut old = old(&["a", "b"]);
        publish(&mut [&mut old], 1, &["a", "b"], NOW);
        publish(&mut [&mut old], 2, &["a"], NOW + 1_000);
        let mut new = new(&["a", "b"]);
        publish(&mut [&mut old, &mut new], 3, &["a"], NOW + 2_000);
        move_to(&mut new, &old, NOW + 2_500);
        publish(&mut [&mut new], 4, &["a"], NOW + 3_000);
        for (since, expected) in
            [(position(1, 0), 4), (position(1, 1), 3), (position(2, 1), 2), (position(3, 0), 2), (position(4, 1), 0)]
        {
            assert_eq!(recovered(&mut new, "a", since), Some(expected), "{since:?}");
        }
        assert_eq!(recovered(&mut new, "a", position(4, 2)), None, "made up");
        assert_eq!(recovered(&mut new, "b", position(1, 0)), Some(1));
        assert_eq!(recovered(&mut new, "b", position(2, 0)), Some(0));
        // They are as old as they were.
        new.expire(NOW + 60_500, |_, _| {});
        assert_eq!(
            (recovered(&mut new, "a", position(1, 0)), recovered(&mut new, "a", position(1, 1))),
            (None, Some(3))
        );
        let again: usize = all_parts(&new, NOW + 60_500).iter().map(|part| part.histories.len()).sum();
        assert_eq!(again, 2, "to the next process, in turn");
    }

    #[test]
    fn what_a_log_has_between_two_milestones_is_put_in_front_of_all_histories_of_its_node() {
        let mut own = old(&["a", "quiet"]);
        publish(&mut [&mut own], 5, &["a"], NOW);
        let publication = |name: &str| Logged::Publication { channel: channel(name), payload: name.to_owned().into() };
        let milestone = |id| position(id, 0).milestone;
        let logged = vec![
            publication("a"),
            publication("other"),
            Logged::Milestone(milestone(2)),
            publication("a"),
            publication("a"),
            Logged::Milestone(milestone(5)),
            publication("a"),
        ];
        own.on_milestone(Node(0), milestone(6), NOW);
        assert_eq!(oldest(&mut own, "a"), (1, false));
        own.adopt_log(Node(0), milestone(1), logged, milestone(6), NOW);
        for (since, expected) in [(position(1, 0), 4), (position(1, 1), 3), (position(2, 2), 1), (position(5, 1), 0)] {
            assert_eq!(recovered(&mut own, "a", since), Some(expected), "{since:?}");
        }
        assert_eq!(
            recovered(&mut own, "quiet", position(1, 0)),
            Some(0),
            "nothing was published, and nothing is missing"
        );
        assert_eq!(recovered(&mut own, "a", position(3, 0)), None);
        assert_eq!(oldest(&mut own, "a"), (4, false), "and nothing that was here is lost");
    }

    #[test]
    fn what_does_not_reach_to_the_own_history_is_not_taken_in_part() {
        let mut away = old(&["a"]);
        publish(&mut [&mut away], 1, &["a"], NOW);
        // This worker has not heard the milestone from which the new process' history is complete.
        let mut own = new(&["a"]);
        publish(&mut [&mut own], 2, &["a"], NOW);
        move_to(&mut own, &away, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), None);
        assert_eq!(recovered(&mut own, "a", position(2, 0)), Some(1));
        // This one has lost its link, and with it its history.
        let mut cut = old(&["a"]);
        publish(&mut [&mut cut], 1, &["a"], NOW);
        cut.unconfirm_all(Node(0), 0, false);
        publish(&mut [&mut cut], 2, &[], NOW);
        move_to(&mut own, &cut, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), None);
        // And here the new process lost its own.
        let mut whole = old(&["a"]);
        publish(&mut [&mut whole], 1, &["a"], NOW);
        publish(&mut [&mut whole], 2, &["a"], NOW);
        own.unconfirm_all(Node(0), 0, false);
        move_to(&mut own, &whole, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), None);
        own.confirm(Node(0), b"a");
        publish(&mut [&mut whole, &mut own], 3, &["a"], NOW);
        move_to(&mut own, &whole, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), Some(3));
    }

    #[test]
    fn a_history_without_a_milestone_that_was_heard_here_has_a_hole() {
        let (mut theirs, mut whole, mut own) = (old(&["a"]), old(&["a"]), old(&["a"]));
        publish(&mut [&mut theirs, &mut whole, &mut own], 1, &["a"], NOW);
        own.unconfirm_all(Node(0), 0, false);
        own.confirm(Node(0), b"a");
        publish(&mut [&mut whole, &mut own], 2, &["a"], NOW);
        // Their link is at a former master, which relays the new one's stream from here on.
        publish(&mut [&mut theirs, &mut whole, &mut own], 3, &["a"], NOW);
        move_to(&mut own, &theirs, NOW);
        assert_eq!(
            (recovered(&mut own, "a", position(1, 0)), recovered(&mut own, "a", position(2, 0))),
            (None, Some(2))
        );
        move_to(&mut own, &whole, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), Some(3));
        // They heard others, and not the last one here.
        let mut own = new(&["a"]);
        publish(&mut [&mut theirs, &mut own], 4, &["a"], NOW);
        publish(&mut [&mut own], 5, &["a"], NOW);
        publish(&mut [&mut theirs], 6, &["a"], NOW);
        own.unconfirm_all(Node(0), 0, false);
        own.confirm(Node(0), b"a");
        publish(&mut [&mut own], 7, &[], NOW);
        move_to(&mut own, &theirs, NOW);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), None);
    }

    #[test]
    fn histories_go_from_any_number_of_workers_to_any_other() {
        let (mut one, mut other) = (old(&["a", "b"]), old(&["b", "c"]));
        publish(&mut [&mut one], 1, &["a", "b"], NOW);
        publish(&mut [&mut one, &mut other], 2, &["a", "b", "c"], NOW);
        let mut fewer = new(&["a", "b", "c"]);
        publish(&mut [&mut one, &mut other, &mut fewer], 3, &["a", "b", "c"], NOW);
        for old in [&other, &one, &other] {
            move_to(&mut fewer, old, NOW);
        }
        let counts = |hub: &mut Hub, since| ["a", "b", "c"].map(|name| recovered(hub, name, since));
        assert_eq!(counts(&mut fewer, position(1, 0)), [Some(3), Some(3), None]);
        assert_eq!(counts(&mut fewer, position(2, 0)), [Some(2), Some(2), Some(2)], "each once");
        // One worker becomes two: each takes its channels.
        let (mut left, mut right) = (new(&["a"]), new(&["b", "c"]));
        publish(&mut [&mut fewer, &mut left, &mut right], 4, &["a", "b", "c"], NOW);
        move_to(&mut left, &fewer, NOW);
        move_to(&mut right, &fewer, NOW);
        assert_eq!(recovered(&mut left, "a", position(1, 0)), Some(4));
        assert_eq!(recovered(&mut right, "b", position(1, 0)), Some(4));
        assert_eq!(recovered(&mut right, "c", position(2, 0)), Some(3));
        assert_eq!(recovered(&mut left, "c", position(2, 0)), None);
    }

    #[test]
    fn parts_are_bounded_and_together_they_are_everything() {
        let names: Vec<_> = (0..2_500).map(|n| format!("c{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let (mut old, mut own) = (old(&names), new(&names));
        publish(&mut [&mut old], 1, &names, NOW);
        old.append(b"c7", &vec![0; 2 << 20]);
        publish(&mut [&mut old, &mut own], 2, &names, NOW);
        let parts = all_parts(&old, NOW);
        assert_eq!(parts.iter().map(|part| part.histories.len()).collect::<Vec<_>>(), [8, 1_000, 1_000, 492]);
        parts.into_iter().for_each(|part| own.adopt_histories(part, NOW));
        for name in names {
            assert_eq!(recovered(&mut own, name, position(1, 0)), Some(2 + usize::from(name == "c7")));
        }
    }

    #[test]
    fn the_new_process_keeps_no_more_than_its_own_limits_allow() {
        let mut old = old(&["a", "b"]);
        for id in 1..=10 {
            publish(&mut [&mut old], id, &["a", "b"], NOW + id);
        }
        let mut own = new(&["a", "b"]);
        own.set_max_history(19);
        publish(&mut [&mut old, &mut own], 11, &["a", "b"], NOW + 11);
        move_to(&mut own, &old, NOW + 12);
        // They hold the last 7 of 22 publications, each of 2 or 3 bytes.
        let kept = |hub: &mut Hub, id| ["a", "b"].map(|name| recovered(hub, name, position(id, 0)));
        assert_eq!(kept(&mut own, 9), [Some(3), Some(3)]);
        assert_eq!(kept(&mut own, 8), [None, Some(4)]);
    }

    #[test]
    fn a_reserved_history_that_no_session_wants_ends_with_the_reservation() {
        let mut old = old(&["a"]);
        publish(&mut [&mut old], 1, &["a"], NOW);
        let mut own = new(&["a", "b", "c"]);
        publish(&mut [&mut old, &mut own], 2, &["a", "b", "c"], NOW);
        move_to(&mut own, &old, NOW);
        own.keep(&channel("b"), KEEP);
        for name in ["a", "b", "c"] {
            own.free(name.as_bytes(), NOW);
        }
        let mut gone = Vec::new();
        own.expire(NOW + 59_999, |_, name| gone.push(name));
        assert_eq!(gone, [channel("c")]);
        assert_eq!(recovered(&mut own, "a", position(1, 0)), Some(2));
        assert_eq!(old.channels_in_use(), [channel("a")]);
        let mut none = hub();
        none.adopt_histories(all_parts(&old, NOW).remove(0), NOW);
        assert!(none.channels_in_use().is_empty(), "of channels that were not reserved");
    }
}
