//! What clients that poll get: publications behind their position, and the position behind those.
//!
//! May not enter: how clients wait (`session/poll.rs`).

use bytes::BytesMut;

use super::entry::ChannelEntry;
use super::milestones::Milestones;
use super::rings::Recovery;
use super::state::Hub;
use crate::id::SubscriberId;
use crate::position::{Position, Since};

/// What a client that polls gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) recovery: Recovery,
    /// The position behind the last publication; `None` where there are no positions now.
    pub(crate) next: Option<Position>,
    /// Whether that is the end of the channel's stream.
    pub(crate) is_up_to_date: bool,
}

impl ChannelEntry {
    /// The end of the channel's stream, if every publication up to there went to the subscribers.
    pub(super) fn tail(&self, milestones: &Milestones) -> Option<Position> {
        if self.history.is_none() || self.missed_by.is_some() || !self.is_ready(milestones) {
            return None;
        }
        milestones.position(self.places.end(milestones.current())?)
    }
}

impl Hub {
    /// The end of a subscriber's channel, as [`ChannelEntry::tail`].
    pub(crate) fn tail(&self, subscriber: SubscriberId) -> Option<Position> {
        let (entry, _) = self.subscription(subscriber)?;
        entry.tail(self.milestones.at(entry.node?))
    }

    /// Writes the publications behind `since`, until these are `max_bytes` or more.
    pub(crate) fn catch_up(
        &self,
        subscriber: SubscriberId,
        since: Option<&Since>,
        max_bytes: usize,
        out: &mut BytesMut,
    ) -> Caught {
        let nowhere = Caught { recovery: Recovery::Incomplete, next: None, is_up_to_date: false };
        let Some((entry, encoding)) = self.subscription(subscriber) else { return nowhere };
        let Some(milestones) = entry.node.map(|node| self.milestones.at(node)) else { return nowhere };
        let Some(end) = entry.places.end(milestones.current()).filter(|_| entry.history.is_some()) else {
            return nowhere;
        };
        let kept = since.map(|since| match since {
            Since::Position(since) => self.kept_after(entry, since).map(|kept| (kept, true)),
            Since::Oldest => self.kept_at_all(entry),
        });
        let (mut next, mut last, mut publications, mut is_whole) = (end, end, 0, true);
        for kept in kept.iter().flatten().flat_map(|(kept, _)| kept.clone()) {
            if out.len() >= max_bytes {
                (next, is_whole) = (last, false);
                break;
            }
            encoding.encode(&entry.name, &kept.payload, None, out);
            (publications, last) = (publications + 1, kept.place);
        }
        let recovery = match kept {
            None => Recovery::New,
            Some(None) => Recovery::Incomplete,
            Some(Some((_, true))) => Recovery::Complete { publications },
            Some(Some((_, false))) => Recovery::Rest { publications },
        };
        let is_up_to_date = is_whole && entry.is_ready(milestones);
        Caught { recovery, next: milestones.position(next), is_up_to_date }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::channel::Channel;
    use crate::config::NotUtf8Policy;
    use crate::id::SessionKey;
    use crate::placement::{Node, Placement};
    use crate::position::{Milestone, MilestoneId};
    use crate::protocol::encoding::Encoding;
    use crate::protocol::hub::{Keep, Outlet};
    use crate::protocol::outbound::Batch;

    const POLL: Encoding = Encoding::Poll { not_utf8: NotUtf8Policy::Binary };

    fn position(id: u64, count: u32) -> Position {
        Position { milestone: Milestone { id: MilestoneId(id), log: None }, count }
    }

    /// A subscriber of the channel `a`, which is placed from milestone 1 on.
    fn stage() -> (Hub, SubscriberId) {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.set_max_history(10_000);
        let channel = Channel::from_static(b"a");
        hub.keep(&channel, Keep { messages: 10, age: 60_000, bytes: 1_000 });
        let joined = hub.join(&channel, POLL, SessionKey { index: 1, generation: 1 });
        assert_eq!(hub.confirm(Node(0), b"a"), Some(vec![]));
        hub.on_milestone(Node(0), position(1, 0).milestone, 0);
        (hub, joined.subscriber)
    }

    fn caught(hub: &Hub, subscriber: SubscriberId, since: Option<Position>, max_bytes: usize) -> (Caught, String) {
        let mut out = BytesMut::new();
        let caught = hub.catch_up(subscriber, since.map(Since::Position).as_ref(), max_bytes, &mut out);
        (caught, String::from_utf8(out.to_vec()).unwrap())
    }

    /// The elements of the batches, and the position behind each.
    struct Sent(Vec<(String, Option<Position>)>);

    impl Outlet for Sent {
        fn deliver(&mut self, _: SessionKey, batch: &mut Batch<'_>) {
            self.0.push((String::from_utf8(batch.bytes().to_vec()).unwrap(), batch.end()));
        }

        fn is_behind(&mut self, _: SessionKey) -> bool {
            false
        }

        fn now(&self) -> Instant {
            Instant::now()
        }
    }

    fn sent(hub: &mut Hub) -> Vec<(String, Option<Position>)> {
        let mut sent = Sent(Vec::new());
        hub.flush(&mut sent);
        sent.0
    }

    #[test]
    fn what_is_caught_up_and_what_comes_live_have_the_same_positions() {
        let (mut hub, subscriber) = stage();
        assert_eq!(hub.tail(subscriber), Some(position(1, 0)));
        hub.append(b"a", b"1");
        hub.append(b"a", b"2");
        assert_eq!(sent(&mut hub), [(",\"1\",\"2\"".to_owned(), Some(position(1, 2)))]);
        hub.on_milestone(Node(0), position(2, 0).milestone, 0);
        hub.append(b"a", b"3");
        assert_eq!(sent(&mut hub), [(",\"3\"".to_owned(), Some(position(2, 1)))]);
        let complete = |publications, next, is_up_to_date| Caught {
            recovery: Recovery::Complete { publications },
            next: Some(next),
            is_up_to_date,
        };
        let all = (complete(3, position(2, 1), true), ",\"1\",\"2\",\"3\"".to_owned());
        assert_eq!(caught(&hub, subscriber, Some(position(1, 0)), 1_000), all);
        assert_eq!(
            caught(&hub, subscriber, Some(position(2, 1)), 1_000),
            (complete(0, position(2, 1), true), String::new())
        );
        assert_eq!(
            caught(&hub, subscriber, Some(position(1, 0)), 1),
            (complete(1, position(1, 1), false), ",\"1\"".to_owned())
        );
        assert_eq!(
            caught(&hub, subscriber, Some(position(1, 1)), 5),
            (complete(2, position(2, 1), true), ",\"2\",\"3\"".to_owned())
        );
        let new = Caught { recovery: Recovery::New, next: Some(position(2, 1)), is_up_to_date: true };
        assert_eq!(caught(&hub, subscriber, None, 1_000), (new, String::new()));
        let gap = Caught { recovery: Recovery::Incomplete, ..new };
        assert_eq!(caught(&hub, subscriber, Some(position(9, 0)), 1_000), (gap, String::new()));
    }

    #[test]
    fn a_stream_that_was_cut_has_no_end_until_it_is_known_what_was_missed() {
        let (mut hub, subscriber) = stage();
        hub.append(b"a", b"1");
        assert_eq!(hub.unconfirm_all(Node(0), 9, true), 1);
        assert_eq!((hub.tail(subscriber), sent(&mut hub)), (None, vec![(",\"1\"".to_owned(), None)]));
        let (cut, elements) = caught(&hub, subscriber, Some(position(1, 0)), 1_000);
        assert_eq!((cut.next, cut.is_up_to_date, elements.as_str()), (Some(position(1, 1)), false, ",\"1\""));
        hub.confirm(Node(0), b"a");
        hub.give_up_replay(Node(0));
        hub.on_milestone(Node(0), position(5, 0).milestone, 0);
        hub.append(b"a", b"9");
        assert_eq!(sent(&mut hub), [(",\"9\"".to_owned(), None)], "the gap is not told yet");
        assert_eq!(caught(&hub, subscriber, Some(position(1, 1)), 1_000).0.recovery, Recovery::Incomplete);
        hub.take_missed(Node(0));
        assert_eq!(hub.tail(subscriber), Some(position(5, 1)));
        let (_, elements) = caught(&hub, subscriber, Some(position(5, 0)), 1_000);
        assert_eq!(elements, ",\"9\"");
    }

    #[test]
    fn where_there_are_no_positions_nothing_is_caught_up() {
        let (mut hub, subscriber) = stage();
        hub.unconfirm_all(Node(0), 9, false);
        let (caught, _) = caught(&hub, subscriber, None, 1_000);
        assert_eq!((caught.next, caught.is_up_to_date, hub.tail(subscriber)), (None, false, None));
    }
}
