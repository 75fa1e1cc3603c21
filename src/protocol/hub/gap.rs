//! A gap in a node's stream: which clients have missed publications, and from which position on they miss none.
//!
//! A client that is told of a gap and then of no position would come back with a position from before the gap, and be
//! told of the same gap once more. May not enter: what a session sends (`session/send.rs`).

use bytes::BufMut;

use super::entry::ChannelEntry;
use super::state::Hub;
use crate::id::{Generation, SessionKey};
use crate::placement::Node;

impl Hub {
    /// The number of channels at `node` that were lost and are back, and their sessions. A session may have missed
    /// publications if it is not younger than the generation beside it.
    pub(crate) fn take_missed(&mut self, node: Node) -> (usize, Vec<(SessionKey, Generation)>) {
        let milestones = self.milestones.at_mut(node);
        let (mut channels, mut sessions) = (0, Vec::new());
        for (id, entry) in self.channels.iter_mut().filter(|(_, entry)| entry.node == Some(node)) {
            let Some(newest) = entry.missed_by.take() else { continue };
            channels += 1;
            let members = entry.audiences.iter().flat_map(|audience| audience.members.iter());
            sessions.extend(members.map(|(_, session)| (*session, newest)));
            if entry.history.is_some() && !milestones.are_missing {
                milestones.gapped.push(id);
            }
        }
        (channels, sessions)
    }

    /// Appends the positions at `node` to the batches of channels whose clients were told of a gap: a channel is placed
    /// again from the next milestone on. False when there was none.
    pub(crate) fn tell_positions(&mut self, node: Node) -> bool {
        let mut has_told = false;
        for id in std::mem::take(&mut self.milestones.at_mut(node).gapped) {
            // A channel that was lost again has another gap, which is told.
            let is_back = |entry: &&mut ChannelEntry| entry.node == Some(node) && entry.missed_by.is_none();
            let Some(entry) = self.channels.get_mut(id).filter(is_back) else { continue };
            let Some(position) = entry.tail(self.milestones.at(node)) else {
                self.milestones.at_mut(node).gapped.push(id);
                continue;
            };
            for (index, audience) in entry.audiences.iter_mut().enumerate().filter(|(_, a)| !a.members.is_empty()) {
                let Some(unit) = audience.encoding.position_behind_gap(position) else { continue };
                if audience.frames == 0 {
                    self.touched.push((id, index));
                    audience.begin_batch(&mut self.spare);
                }
                audience.batch.put_slice(&unit);
                audience.frames += 1;
                self.pending += unit.len();
                has_told = true;
            }
        }
        has_told
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stage::{channel, key, milestone, position, sent};
    use super::*;
    use crate::config::NotUtf8Policy;
    use crate::placement::Placement;
    use crate::position::{Position, Token};
    use crate::protocol::encoding::Encoding;
    use crate::protocol::hub::Keep;

    const SSE: Encoding = Encoding::Sse { not_utf8: NotUtf8Policy::Binary };

    /// A subscriber of each of these encodings on a channel with a history, which has had a gap after milestone 1.
    fn gapped(encodings: &[Encoding]) -> Hub {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.set_max_history(10_000);
        hub.keep(&channel("a"), Keep { messages: 10, age: 60_000, bytes: 1_000 });
        for (index, encoding) in (0..).zip(encodings) {
            hub.join(&channel("a"), *encoding, key(index));
        }
        hub.confirm(Node(0), b"a");
        hub.on_milestone(Node(0), milestone(1), 0);
        hub.append(b"a", b"before");
        sent(&mut hub);
        hub.unconfirm_all(Node(0), 9, false);
        hub.confirm(Node(0), b"a");
        hub
    }

    fn id(position: Position) -> String {
        format!("id: {}\n", Token::from(position))
    }

    #[test]
    fn clients_that_were_told_of_a_gap_are_told_the_first_position_behind_it() {
        let mut hub = gapped(&[SSE]);
        assert_eq!(hub.take_missed(Node(0)).0, 1);
        assert!(!hub.tell_positions(Node(0)), "the channel is not placed");
        hub.append(b"a", b"early");
        assert_eq!(sent(&mut hub), "data: early\n\n");
        hub.on_milestone(Node(0), milestone(1), 0);
        assert!(!hub.tell_positions(Node(0)), "that milestone was before");
        hub.on_milestone(Node(0), milestone(2), 0);
        hub.append(b"a", b"late");
        assert!(hub.tell_positions(Node(0)));
        let behind = id(position(2, 1));
        assert_eq!(sent(&mut hub), format!("{behind}data: late\n\n{behind}\n"));
        hub.on_milestone(Node(0), milestone(3), 0);
        assert!(!hub.tell_positions(Node(0)), "once");
    }

    #[test]
    fn only_clients_with_positions_are_told_and_only_while_nothing_else_is_missing() {
        let mut hub = gapped(&[Encoding::Plain, Encoding::Poll { not_utf8: NotUtf8Policy::Binary }]);
        hub.take_missed(Node(0));
        hub.on_milestone(Node(0), milestone(2), 0);
        assert!(!hub.tell_positions(Node(0)));
        let mut hub = gapped(&[Encoding::Meta]);
        hub.on_milestone(Node(0), milestone(2), 0);
        assert!(!hub.tell_positions(Node(0)), "the gap is not told");
        hub.take_missed(Node(0));
        hub.unconfirm_all(Node(0), 9, false);
        hub.confirm(Node(0), b"a");
        hub.on_milestone(Node(0), milestone(3), 0);
        assert!(!hub.tell_positions(Node(0)), "there is another gap");
        hub.take_missed(Node(0));
        assert!(hub.tell_positions(Node(0)));
        let told = sent(&mut hub);
        assert!(told.ends_with(&format!("{}event: position\n\n", id(position(3, 0)))), "{told:?}");
        hub.take_missed(Node(0));
        hub.without_milestones(Node(0));
        assert!(!hub.tell_positions(Node(0)));
    }
}
