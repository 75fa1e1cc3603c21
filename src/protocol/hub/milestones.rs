//! The milestones of one node as one worker heard them: numbered, so that places in a channel's stream can be compared.
//! May not enter: what is kept of channels.

use std::collections::{HashMap, VecDeque};

use super::places::Place;
use crate::clock::Millis;
use crate::position::{Milestone, MilestoneId, Position};

/// The number of the first milestone that is heard. In the middle, because a hand-over puts earlier ones in front.
const MIDDLE: u32 = 1 << 31;

/// The most that is held of what a new link delivers before its stream is continued. Chosen: more than comes until the
/// next milestone, unless Redis is very busy.
const MAX_HELD_BYTES: usize = 1 << 20;

/// The milestones of a node.
#[derive(Debug)]
pub(super) struct Milestones {
    /// The milestones that kept publications may name, in the order heard, and when each was heard.
    heard: VecDeque<(Milestone, Millis)>,
    /// The number of the first of these.
    first: u32,
    numbers: HashMap<MilestoneId, u32>,
    /// Channels that are confirmed, and wait for the next milestone: the ids of their entries.
    pub(super) awaited_by: Vec<usize>,
    /// A log that is replayed, to continue a stream that was cut.
    pub(super) replay: Option<Replay>,
    /// What the new link has delivered since the stream was cut, by channel, and the bytes of all: the log has it, too,
    /// if it can be read.
    held: Vec<(usize, Box<[u8]>)>,
    held_bytes: usize,
    /// Channels whose clients were told of a gap, and of no position since: the ids of their entries.
    pub(super) gapped: Vec<usize>,
    /// Whether the broker was asked for a milestone, and none was heard since.
    pub(super) is_asked: bool,
    /// Whether the broker publishes none.
    pub(super) are_missing: bool,
}

/// A log that is replayed.
#[derive(Debug)]
pub(super) struct Replay {
    /// The last milestone that was heard before the stream was cut.
    pub(super) start: u32,
    /// The publications since that milestone that are still to be skipped, by channel.
    pub(super) skip: HashMap<usize, u32>,
    /// Whether the log's publications may be from before the cut.
    pub(super) is_skipping: bool,
}

impl Default for Milestones {
    fn default() -> Self {
        Self {
            heard: VecDeque::new(),
            first: MIDDLE,
            numbers: HashMap::new(),
            awaited_by: Vec::new(),
            replay: None,
            held: Vec::new(),
            held_bytes: 0,
            gapped: Vec::new(),
            is_asked: false,
            are_missing: false,
        }
    }
}

impl Milestones {
    /// Notes a milestone; false for one that was heard before.
    pub(super) fn hear(&mut self, milestone: Milestone, now: Millis) -> bool {
        let next = self.next();
        if self.numbers.contains_key(&milestone.id) {
            return false;
        }
        (self.are_missing, self.is_asked) = (false, false);
        self.numbers.insert(milestone.id, next);
        self.heard.push_back((milestone, now));
        true
    }

    /// Holds a publication for the case that the log cannot be read. Beyond the bound, the publication is missing then.
    pub(super) fn hold(&mut self, channel: usize, payload: &[u8]) {
        let bytes = payload.len() + std::mem::size_of::<(usize, Box<[u8]>)>();
        if self.held_bytes + bytes <= MAX_HELD_BYTES {
            self.held_bytes += bytes;
            self.held.push((channel, payload.into()));
        }
    }

    pub(super) fn take_held(&mut self) -> Vec<(usize, Box<[u8]>)> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held)
    }

    /// The number of the next milestone.
    pub(super) fn next(&self) -> u32 {
        self.first + u32::try_from(self.heard.len()).expect("a milestone of each millisecond fits")
    }

    /// The milestone heard last.
    pub(super) fn last(&self) -> Option<MilestoneId> {
        self.heard.back().map(|(milestone, _)| milestone.id)
    }

    /// Whether a milestone was heard, and is not forgotten.
    pub(super) fn has_heard(&self, milestone: MilestoneId) -> bool {
        self.numbers.contains_key(&milestone)
    }

    /// The number of the milestone heard last; `None` before the first.
    pub(super) fn current(&self) -> Option<u32> {
        (!self.heard.is_empty()).then(|| self.next() - 1)
    }

    /// A position in this worker's numbering; `None` if its milestone was not heard, or was heard long ago.
    pub(super) fn place(&self, position: &Position) -> Option<Place> {
        let milestone = self.numbers.get(&position.milestone.id)?;
        Some(Place { milestone: *milestone, count: position.count })
    }

    /// A place as other workers understand it; `None` if its milestone was heard long ago.
    pub(super) fn position(&self, place: Place) -> Option<Position> {
        let index = place.milestone.checked_sub(self.first)? as usize;
        let (milestone, _) = self.heard.get(index)?;
        Some(Position { milestone: *milestone, count: place.count })
    }

    /// The number of the first milestone that is known.
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// The milestones that are known, in the order heard, and when each was heard.
    pub(super) fn known(&self) -> impl Iterator<Item = &(Milestone, Millis)> {
        self.heard.iter()
    }

    /// Puts the milestones that another process heard before our first one in front of ours. Returns our number for
    /// each of `theirs`: one behind all others for a milestone that we have not heard yet, `None` for a milestone that
    /// has no place among ours.
    pub(super) fn adopt(&mut self, theirs: &[(Milestone, Millis)]) -> Vec<Option<u32>> {
        let Some((own, _)) = self.heard.front().copied() else { return vec![None; theirs.len()] };
        let known = |(milestone, _): &(Milestone, Millis)| self.numbers.contains_key(&milestone.id);
        let Some(last_known) = theirs.iter().rposition(known) else { return vec![None; theirs.len()] };
        let before = theirs.iter().position(|(milestone, _)| milestone.id == own.id).unwrap_or(0);
        for (milestone, at) in theirs.iter().take(before).rev() {
            let Some(number) = self.first.checked_sub(1).filter(|_| !self.numbers.contains_key(&milestone.id)) else {
                break;
            };
            self.first = number;
            self.numbers.insert(milestone.id, number);
            self.heard.push_front((*milestone, *at));
        }
        let number = |(index, (milestone, _)): (usize, &(Milestone, Millis))| {
            self.numbers.get(&milestone.id).copied().or((index > last_known).then_some(u32::MAX))
        };
        theirs.iter().enumerate().map(number).collect()
    }

    /// Forgets all milestones that were heard before `since`, but the last.
    pub(super) fn forget(&mut self, since: Millis) {
        while self.heard.len() > 1
            && let Some((milestone, _)) = self.heard.pop_front_if(|(_, at)| *at < since)
        {
            self.numbers.remove(&milestone.id);
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milestone(id: u64) -> Milestone {
        Milestone { id: MilestoneId(id), log: None }
    }

    #[test]
    fn places_are_numbered_in_the_order_heard_and_old_ones_are_forgotten() {
        let mut milestones = Milestones::default();
        assert_eq!((milestones.current(), milestones.place(&position(7, 0))), (None, None));
        for (at, id) in [9, 7, 8].into_iter().enumerate() {
            assert!(milestones.hear(milestone(id), at as Millis));
        }
        assert!(!milestones.hear(milestone(7), 5), "a milestone is a point, so it is heard once");
        let place = |number, count| Place { milestone: MIDDLE + number, count };
        assert_eq!(milestones.current(), Some(MIDDLE + 2));
        assert_eq!(milestones.place(&position(7, 4)), Some(place(1, 4)));
        assert_eq!(milestones.position(place(1, 4)), Some(position(7, 4)));
        milestones.forget(2);
        assert_eq!(milestones.place(&position(7, 4)), None);
        assert_eq!(milestones.position(place(1, 4)), None);
        milestones.forget(1_000);
        assert_eq!(milestones.position(place(2, 0)), Some(position(8, 0)));
        assert!(milestones.hear(milestone(1), 9) && milestones.current() == Some(MIDDLE + 3));
    }

    #[test]
    fn milestones_of_another_process_are_put_before_the_first_own_one_and_nowhere_else() {
        let heard = |ids: &[u64]| {
            let mut milestones = Milestones::default();
            ids.iter().for_each(|id| assert!(milestones.hear(milestone(*id), 100)));
            milestones
        };
        let adopt = |own: &mut Milestones, theirs: &[u64]| {
            let theirs: Vec<_> = theirs.iter().map(|id| (milestone(*id), *id)).collect();
            let numbers = own.adopt(&theirs);
            let known: Vec<_> = own.known().map(|(milestone, _)| milestone.id.0).collect();
            let shown = |number: u32| {
                if number == u32::MAX {
                    "later".to_owned()
                } else {
                    format!("{}", i64::from(number) - i64::from(MIDDLE))
                }
            };
            let numbers: Vec<_> = numbers.into_iter().map(|number| number.map_or("none".to_owned(), shown)).collect();
            (numbers.join(" "), known)
        };
        let mut own = heard(&[4, 5, 6]);
        assert_eq!(adopt(&mut own, &[2, 3, 4, 5]), ("-2 -1 0 1".to_owned(), vec![2, 3, 4, 5, 6]));
        assert_eq!(adopt(&mut own, &[1, 2, 3, 4, 5, 6, 7]), ("-3 -2 -1 0 1 2 later".to_owned(), (1..=6).collect()));
        // Another link was away when 3 was published, or heard one that we did not.
        assert_eq!(adopt(&mut own, &[2, 4, 5, 8]), ("-2 0 1 later".to_owned(), (1..=6).collect()));
        assert_eq!(adopt(&mut own, &[9, 2, 10, 4, 5]), ("none -2 none 0 1".to_owned(), (1..=6).collect()));
        // Those that do not overlap have no order.
        assert_eq!(adopt(&mut own, &[20, 21]), ("none none".to_owned(), (1..=6).collect()));
        assert_eq!(adopt(&mut heard(&[]), &[1]), ("none".to_owned(), vec![]));
        assert_eq!(own.place(&position(2, 1)), Some(Place { milestone: MIDDLE - 2, count: 1 }));
        own.forget(3);
        assert_eq!((own.place(&position(2, 1)), own.first()), (None, MIDDLE - 1), "as old as they are");
        assert_eq!(own.current(), Some(MIDDLE + 2));
    }

    fn position(id: u64, count: u32) -> Position {
        Position { milestone: milestone(id), count }
    }
}
