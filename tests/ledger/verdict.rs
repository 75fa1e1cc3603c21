//! Compares what a client got with what Redis published on its channel. May not enter: servers, sockets.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use super::message::{Id, redis_name};
use super::reader::{Entry, Seen, Transport};
use super::truth::Truth;

/// The code of a WebSocket that is closed because of a gap.
const CLOSED_FOR_GAP: u16 = 1012;

/// Messages of all clients together, and what they were told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) received: usize,
    /// Missed while the client was connected, or came back with its position, and was told of no gap.
    pub(super) lost: Vec<(usize, Id, SystemTime)>,
    pub(super) duplicated: Vec<(usize, Id)>,
    pub(super) reordered: Vec<(usize, Id)>,
    /// Received and not in Redis' log: a failover lost them.
    pub(super) not_in_log: HashSet<Id>,
    /// Missed in gaps that the client was told of.
    pub(super) missed_in_gaps: usize,
    /// How often a client was told of a gap.
    pub(super) gaps: usize,
    /// Those of clients that never leave by themselves: a client that comes to another worker when a link is lost may be
    /// the first on its channel there.
    pub(super) steady_gaps: usize,
    /// Received once more, or late, by clients that were told of a gap and came back with a position from before it: what
    /// follows a gap has no position until the next milestone.
    pub(super) repeated_after_gaps: usize,
    /// Missed by clients without positions while they were not connected.
    pub(super) missed_while_away: usize,
    /// How often a client came back with a position.
    pub(super) came_back: usize,
}

/// A hole in what a client got, until it is known whether the client is told of it.
struct Hole {
    is_away: bool,
    missing: Vec<(Id, SystemTime)>,
}

impl Verdict {
    /// Adds what one client got, from its first message on: the producers start when all clients have got a lap.
    pub(super) fn judge(&mut self, seen: &Seen, truth: &Truth) {
        let published = truth.published.get(&redis_name(seen.channel)).map(Vec::as_slice).unwrap_or_default();
        let places: HashMap<Id, usize> = published.iter().enumerate().map(|(place, (id, _))| (*id, place)).collect();
        assert_eq!(places.len(), published.len(), "each message is published once");
        let (mut next, mut had, mut is_away, mut is_told, mut may_repeat) = (0, HashSet::new(), false, false, false);
        // Whether the next hole is that of a gap which was told, and behind which the client came back.
        let mut is_placed = false;
        let mut holes: Vec<Hole> = Vec::new();
        for entry in &seen.entries {
            let id = match entry {
                Entry::Message(id) => *id,
                Entry::Gap => {
                    self.count_gap(seen);
                    is_told = true;
                    continue;
                }
                Entry::Placed => {
                    is_placed |= is_told;
                    continue;
                }
                Entry::End(code) => {
                    let is_closed_for_gap = *code == Some(CLOSED_FOR_GAP);
                    if is_closed_for_gap {
                        self.count_gap(seen);
                    }
                    is_told |= is_closed_for_gap;
                    self.settle(seen, &mut holes, is_told);
                    (may_repeat, is_told) = (is_told, false);
                    is_away = seen.transport == Transport::Plain;
                    self.came_back += usize::from(!is_away);
                    continue;
                }
            };
            self.received += 1;
            if had.is_empty() {
                next = places.get(&id).copied().unwrap_or_default();
            }
            let (is_twice, place) = (!had.insert(id), places.get(&id).copied());
            if is_twice || place.is_some_and(|place| place < next) {
                match (may_repeat, is_twice) {
                    (true, _) => self.repeated_after_gaps += 1,
                    (false, true) => self.duplicated.push((seen.channel, id)),
                    (false, false) => self.reordered.push((seen.channel, id)),
                }
                continue;
            }
            let Some(place) = place else {
                self.not_in_log.insert(id);
                continue;
            };
            if place > next && is_placed {
                self.missed_in_gaps += place - next;
            } else if place > next {
                holes.push(Hole { is_away, missing: published[next..place].to_vec() });
            }
            (next, is_away, is_placed) = (place + 1, false, false);
        }
        if next < published.len() {
            holes.push(Hole { is_away, missing: published[next..].to_vec() });
        }
        self.settle(seen, &mut holes, is_told);
    }

    fn count_gap(&mut self, seen: &Seen) {
        self.gaps += 1;
        self.steady_gaps += usize::from(seen.is_steady);
    }

    /// A connection has ended: its client was told of a gap, or never will be.
    fn settle(&mut self, seen: &Seen, holes: &mut Vec<Hole>, is_told: bool) {
        for Hole { is_away, missing } in holes.drain(..) {
            if is_away {
                self.missed_while_away += missing.len();
            } else if is_told {
                self.missed_in_gaps += missing.len();
            } else {
                self.lost.extend(missing.into_iter().map(|(id, sent)| (seen.channel, id, sent)));
            }
        }
    }
}

mod tests {
    use super::*;

    fn judge(transport: Transport, entries: &[Entry]) -> Verdict {
        let published = (1..=5).map(|number| (message(number), SystemTime::UNIX_EPOCH)).collect();
        let truth = Truth::of(HashMap::from([(redis_name(7), published)]));
        let mut verdict = Verdict::default();
        verdict.judge(&Seen { transport, channel: 7, is_steady: true, entries: entries.to_vec() }, &truth);
        verdict
    }

    fn message(number: u32) -> Id {
        Id { producer: 1, number }
    }

    fn lost(numbers: impl IntoIterator<Item = u32>) -> Vec<(usize, Id, SystemTime)> {
        numbers.into_iter().map(|number| (7, message(number), SystemTime::UNIX_EPOCH)).collect()
    }

    #[test]
    fn what_is_missing_twice_or_out_of_order_is_found() {
        let got = |number| Entry::Message(message(number));
        let all = [1, 2, 3, 4, 5].map(got);
        let whole = Verdict { received: 5, ..Verdict::default() };
        assert_eq!(judge(Transport::Plain, &all), whole);
        let ends = judge(Transport::Events, &[got(1), Entry::End(None), got(2), got(3)]);
        assert_eq!((ends.lost, ends.came_back), (lost(4..=5), 1));
        let holes = judge(Transport::Meta, &[got(2), got(5)]);
        assert_eq!(holes.lost, lost(3..=4));
        let twice = judge(Transport::Meta, &[got(1), got(2), got(2), got(4), got(3), got(5)]);
        assert_eq!((twice.duplicated, twice.reordered), (vec![(7, message(2))], vec![(7, message(3))]));
        assert_eq!(twice.lost, lost([3]));
    }

    #[test]
    fn what_a_client_is_told_is_not_lost() {
        let got = |number| Entry::Message(message(number));
        let told = judge(Transport::Events, &[got(1), Entry::Gap, got(3), got(4), got(5), got(6)]);
        assert_eq!((told.missed_in_gaps, told.gaps, told.not_in_log.len(), told.lost.len()), (1, 1, 1, 0));
        let away = [got(1), Entry::End(None), got(4), got(5)];
        assert_eq!(judge(Transport::Plain, &away).missed_while_away, 2);
        assert_eq!(judge(Transport::Meta, &away).lost, lost([2, 3]));
        let closed = [got(1), got(3), Entry::End(Some(1012)), got(4), got(5)];
        assert_eq!((judge(Transport::Meta, &closed).missed_in_gaps, judge(Transport::Meta, &closed).lost), (1, vec![]));
        let placed = [got(1), Entry::Gap, Entry::Placed, Entry::End(Some(1012)), got(3), got(5)];
        let placed = judge(Transport::Meta, &placed);
        assert_eq!((placed.missed_in_gaps, placed.lost), (1, lost([4])), "one hole is told");
        let placed = judge(Transport::Meta, &[got(1), Entry::Placed, Entry::End(None), got(3), got(4), got(5)]);
        assert_eq!(placed.lost, lost([2]), "no gap is told");
        let repeated = [got(1), got(3), Entry::End(Some(1012)), got(2), got(3), got(4), got(5)];
        let repeated = judge(Transport::Meta, &repeated);
        assert_eq!((repeated.repeated_after_gaps, repeated.duplicated, repeated.reordered), (2, vec![], vec![]));
    }
}
