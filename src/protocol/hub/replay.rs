//! A stream that was cut is continued from the node's log: every channel goes on where it was, exactly once.
//!
//! A channel that was placed when the link was lost is *interrupted*: the hub knows how many publications it has had
//! since the last milestone. The log is read from that milestone on. So many publications of the channel are skipped,
//! the next ones are delivered, until the milestone at which the new link stands still. What the new link delivered
//! before that milestone is in the log as well, and is dropped. May not enter: how the log is read.

use std::collections::HashMap;

use super::flush::Batching;
use super::milestones::Replay;
use super::places::Places;
use super::state::Hub;
use crate::clock::Millis;
use crate::id::{SessionKey, SubscriberId};
use crate::placement::Node;
use crate::position::{Logged, Milestone};

impl Hub {
    /// Delivers the next entry of the log of `node`.
    pub(crate) fn replay(&mut self, node: Node, logged: &Logged, now: Millis) -> Batching {
        let milestones = self.milestones.at_mut(node);
        let Some(start) = milestones.current() else { return Batching::Wait };
        let replay = milestones.replay.get_or_insert_with(|| Replay { start, skip: HashMap::new(), is_skipping: true });
        match logged {
            Logged::Milestone(milestone) => {
                replay.is_skipping = false;
                milestones.hear(*milestone, now);
            }
            Logged::Publication { channel, payload } => return self.replay_publication(node, channel, payload),
        }
        Batching::Wait
    }

    fn replay_publication(&mut self, node: Node, channel: &[u8], payload: &[u8]) -> Batching {
        let Some(id) = self.names.find(&self.channels, channel) else { return Batching::Wait };
        let Some(entry) = self.channels.get(id) else { return Batching::Wait };
        if entry.node != Some(node) || !entry.is_interrupted {
            return Batching::Wait;
        }
        if let Some(Replay { start, skip, is_skipping: true }) = &mut self.milestones.at_mut(node).replay {
            let left = skip.entry(id).or_insert_with(|| entry.places.since(*start));
            if *left > 0 {
                *left -= 1;
                return Batching::Wait;
            }
        }
        self.append_to(id, payload)
    }

    /// The log was replayed up to the milestone `until`, at which the new link stands still. Returns the subscribers
    /// that waited for that.
    pub(crate) fn end_replay(&mut self, node: Node, until: Milestone, now: Millis) -> Vec<(SessionKey, SubscriberId)> {
        let milestones = self.milestones.at_mut(node);
        let start = milestones.replay.take().map(|replay| replay.start).or(milestones.current());
        milestones.hear(until, now);
        milestones.take_held();
        let last = milestones.current().unwrap_or_default();
        for (_, entry) in self.channels.iter_mut().filter(|(_, entry)| entry.node == Some(node)) {
            let was_interrupted = std::mem::take(&mut entry.is_interrupted);
            if !entry.is_confirmed {
                self.budget.end(entry.history.as_deref_mut());
                entry.places = Places::nowhere();
            } else if was_interrupted {
                entry.missed_by = None;
            } else if start.is_none_or(|start| entry.places.from > start) {
                // The channel was confirmed on the new link, before the milestone.
                entry.places = Places::from(last);
            }
        }
        self.take_ready(node)
    }

    /// The log cannot be replayed: the missed publications stay missed, and those that the new link has delivered since
    /// come next. Returns the subscribers that waited for them.
    pub(crate) fn give_up_replay(&mut self, node: Node) -> Vec<(SessionKey, SubscriberId)> {
        let milestones = self.milestones.at_mut(node);
        milestones.replay = None;
        let (mut held, next) = (milestones.take_held(), milestones.next());
        held.retain(|(id, _)| self.channels.get(*id).is_some_and(|entry| entry.is_interrupted && entry.is_confirmed));
        for (id, entry) in self.channels.iter_mut().filter(|(_, entry)| entry.node == Some(node)) {
            if std::mem::take(&mut entry.is_interrupted) {
                self.budget.end(entry.history.as_deref_mut());
                entry.places = if entry.is_confirmed { Places::from(next) } else { Places::nowhere() };
                if entry.is_confirmed && entry.history.is_some() && !milestones.are_missing {
                    milestones.awaited_by.push(id);
                }
            }
        }
        for (id, payload) in held {
            self.append_to(id, &payload);
        }
        self.take_ready(node)
    }

    /// Whether a channel at `node` has missed publications.
    pub(crate) fn misses(&self, node: Node) -> bool {
        self.channels.iter().any(|(_, entry)| entry.node == Some(node) && entry.missed_by.is_some())
    }

    /// The subscribers that wait for channels at `node` that are ready.
    fn take_ready(&mut self, node: Node) -> Vec<(SessionKey, SubscriberId)> {
        let milestones = self.milestones.at(node);
        let ready = self.channels.iter_mut().map(|(_, entry)| entry);
        let ready = ready.filter(|entry| entry.node == Some(node) && entry.is_ready(milestones));
        ready.flat_map(|entry| std::mem::take(&mut entry.awaiting)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stage::{channel, key, milestone, position, sent};
    use super::*;
    use crate::placement::Placement;
    use crate::position::{Since, Token};
    use crate::protocol::encoding::Encoding;
    use crate::protocol::hub::{Keep, Recovery};

    /// A text frame of [`Encoding::Meta`].
    fn text(id: u64, count: u32, payload: &str) -> String {
        let token = Token::from(position(id, count));
        format!("\u{fffd}\u{15}id: {token}\n\n{payload}")
    }

    /// One session on each of the channels `a` and `b` of node 0, which are placed from milestone 1 on.
    struct Stage(Hub);

    impl Stage {
        fn new() -> Self {
            let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
            hub.set_max_history(10_000);
            for (index, name) in (1..).zip(["a", "b"]) {
                hub.keep(&channel(name), Keep { messages: 10, age: 1_000, bytes: 1_000 });
                hub.join(&channel(name), Encoding::Meta, key(index));
                hub.confirm(Node(0), name.as_bytes());
            }
            hub.on_milestone(Node(0), milestone(1), 0);
            Self(hub)
        }

        fn cut(&mut self, is_cut: bool) {
            self.0.unconfirm_all(Node(0), 5, is_cut);
            for name in ["a", "b"] {
                assert_eq!(self.0.confirm(Node(0), name.as_bytes()), Some(vec![]));
            }
        }

        /// Replays publications of one byte, named by their channel's name and the payload; `M5` is milestone 5.
        fn replay(&mut self, log: &[&str]) {
            for logged in log {
                let logged = match logged.split_at(1) {
                    ("M", id) => Logged::Milestone(milestone(id.parse().unwrap())),
                    (name, payload) => {
                        Logged::Publication { channel: channel(name), payload: payload.to_owned().into() }
                    }
                };
                self.0.replay(Node(0), &logged, 0);
            }
        }

        /// What both sessions get.
        fn sent(&mut self) -> String {
            sent(&mut self.0)
        }
    }

    #[test]
    fn what_was_missed_is_delivered_once_and_what_was_had_is_not_delivered_again() {
        let mut stage = Stage::new();
        stage.0.append(b"a", b"1");
        stage.0.append(b"a", b"2");
        stage.sent();
        stage.cut(true);
        stage.0.append(b"a", b"5");
        assert_eq!(stage.sent(), "", "it is in the log as well");
        stage.replay(&["a1", "a2", "b1", "a3", "M2", "a4", "b2", "a5"]);
        assert!(stage.0.end_replay(Node(0), milestone(3), 0).is_empty());
        stage.0.append(b"a", b"6");
        let of_a = [text(1, 3, "3"), text(2, 1, "4"), text(2, 2, "5"), text(3, 1, "6")].concat();
        let of_b = [text(1, 1, "1"), text(2, 1, "2")].concat();
        let sent = stage.sent();
        assert!(sent == format!("{of_b}{of_a}") || sent == format!("{of_a}{of_b}"), "{sent}");
        assert_eq!(stage.0.take_missed(Node(0)).0, 0, "nothing is missing");
    }

    #[test]
    fn without_a_log_it_is_a_gap_and_the_history_starts_over() {
        let mut stage = Stage::new();
        stage.0.append(b"a", b"1");
        stage.cut(true);
        stage.0.append(b"b", b"7");
        assert!(stage.0.give_up_replay(Node(0)).is_empty());
        assert!(stage.sent().ends_with('7'), "what the new link has delivered is not lost");
        stage.0.on_milestone(Node(0), milestone(2), 0);
        stage.0.append(b"a", b"8");
        assert!(stage.sent().ends_with("\n8"), "no position behind a gap that clients have not been told of");
        assert_eq!(stage.0.take_missed(Node(0)).0, 2);
        stage.0.append(b"a", b"9");
        assert!(stage.sent().ends_with(&text(2, 2, "9")));
        stage.cut(false);
        stage.replay(&["M3", "a9", "b9"]);
        assert_eq!(stage.sent(), "", "Redis had forgotten subscriptions: how many publications came is not known");
    }

    #[test]
    fn a_client_that_came_meanwhile_waits_and_begins_behind_the_replay() {
        let mut stage = Stage::new();
        stage.0.unconfirm_all(Node(0), 5, true);
        let hub = &mut stage.0;
        let old = hub.join(&channel("a"), Encoding::Plain, key(3));
        let new = hub.join(&channel("c"), Encoding::Plain, key(4));
        assert!(!old.is_confirmed && new.is_first);
        assert_eq!(hub.confirm(Node(0), b"a"), Some(vec![]), "its channel is continued first");
        assert_eq!(hub.confirm(Node(0), b"c"), Some(vec![(key(4), new.subscriber)]), "nothing is continued here");
        hub.append(b"c", b"1");
        stage.replay(&["c0", "c1", "M2"]);
        assert_eq!(stage.sent(), "\u{fffd}\u{1}1", "live, and not once more");
        assert_eq!(stage.0.end_replay(Node(0), milestone(3), 0), [(key(3), old.subscriber)]);
        stage.0.append(b"a", b"2");
        assert!(stage.sent().contains(&text(3, 1, "2")));
    }

    #[test]
    fn what_a_former_master_lost_is_not_taken_for_what_the_new_one_has() {
        let mut stage = Stage::new();
        for payload in [b"1", b"2", b"3"] {
            stage.0.append(b"a", payload);
        }
        stage.0.append(b"b", b"1");
        stage.sent();
        stage.cut(true);
        // The replica never got a2, a3 and b1. It was promoted at milestone 9.
        stage.replay(&["a1", "M9", "a7"]);
        assert_eq!(stage.sent(), text(9, 1, "7"), "no position of what is lost is given once more");
        stage.replay(&["b9"]);
        assert_eq!(stage.sent(), text(9, 1, "9"), "the log's own first of this channel");
        stage.replay(&["M2", "a8"]);
        stage.0.end_replay(Node(0), milestone(3), 0);
        assert_eq!(stage.sent(), text(2, 1, "8"));
        // A client that had all that is lost comes back, and one that had less.
        for (count, payloads) in [(3, &["7", "8"][..]), (1, &["2", "3", "7", "8"])] {
            let joined = stage.0.join(&channel("a"), Encoding::Meta, key(9));
            let since = position(1, count);
            let mut out = bytes::BytesMut::new();
            let recovery = stage.0.recover(joined.subscriber, Some(Since::Position(since)), &mut out);
            assert_eq!(recovery, Recovery::Complete { publications: payloads.len() });
            let out = String::from_utf8_lossy(&out);
            let got = out.split("\n\n").skip(1).filter_map(|text| text.chars().next()).map(String::from);
            assert_eq!(got.collect::<Vec<_>>(), payloads, "{out}");
        }
    }

    #[test]
    fn a_link_that_is_lost_once_more_is_continued_from_the_same_place() {
        let mut stage = Stage::new();
        stage.0.append(b"a", b"1");
        stage.sent();
        stage.cut(true);
        stage.cut(true);
        stage.replay(&["a1", "a2"]);
        stage.0.end_replay(Node(0), milestone(2), 0);
        assert_eq!(stage.sent(), text(1, 2, "2"));
    }

    #[test]
    fn a_channel_that_the_new_link_is_refused_is_not_continued() {
        let mut stage = Stage::new();
        stage.0.append(b"a", b"1");
        stage.sent();
        stage.0.unconfirm_all(Node(0), 5, true);
        assert_eq!(stage.0.refuse(b"a"), [key(1)]);
        // The rights have changed meanwhile.
        let joined = stage.0.join(&channel("a"), Encoding::Meta, key(3));
        assert!(joined.is_first);
        assert_eq!(stage.0.confirm(Node(0), b"a"), Some(vec![]));
        stage.replay(&["a1", "a2"]);
        stage.0.end_replay(Node(0), milestone(2), 0);
        assert_eq!(stage.sent(), "");
        let since = Since::Position(position(1, 0));
        assert!(!stage.0.can_recover(joined.subscriber, &since), "what was kept is gone");
    }

    #[test]
    fn a_gap_that_is_not_told_yet_is_told_although_a_later_one_is_filled() {
        let mut stage = Stage::new();
        stage.0.miss_all(5);
        stage.cut(true);
        stage.replay(&["a1"]);
        stage.0.end_replay(Node(0), milestone(2), 0);
        assert_eq!(stage.0.take_missed(Node(0)).0, 2);
    }
}
