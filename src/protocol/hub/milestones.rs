//! The milestones of one node as one worker heard them: numbered, so that places in a channel's stream can be compared.
//! May not enter: what is kept of channels.

use std::collections::{HashMap, VecDeque};

use super::places::Place;
use crate::clock::Millis;
use crate::position::{Milestone, MilestoneId, Position};

/// The milestones of a node.
#[derive(Debug, Default)]
pub(super) struct Milestones {
    /// Those that kept publications may name, in the order heard, and when each was heard.
    heard: VecDeque<(Milestone, Millis)>,
    /// The number of the first of these.
    first: u32,
    numbers: HashMap<MilestoneId, u32>,
    /// Channels that are confirmed, and wait for the next milestone: the ids of their entries.
    pub(super) awaited_by: Vec<usize>,
    /// Whether the broker was asked for a milestone, and none was heard since.
    pub(super) is_asked: bool,
    /// Whether the broker publishes none.
    pub(super) are_missing: bool,
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

    /// The number of the next milestone.
    pub(super) fn next(&self) -> u32 {
        self.first + u32::try_from(self.heard.len()).expect("a milestone of each millisecond fits")
    }

    /// The number of the milestone heard last; `None` before the first.
    pub(super) fn current(&self) -> Option<u32> {
        (!self.heard.is_empty()).then(|| self.next() - 1)
    }

    /// A position on this worker's numbering; `None` for a milestone that was not heard, or long ago.
    pub(super) fn place(&self, position: &Position) -> Option<Place> {
        let milestone = self.numbers.get(&position.milestone.id)?;
        Some(Place { milestone: *milestone, count: position.count })
    }

    /// A place as other workers understand it; `None` when the milestone was heard long ago.
    pub(super) fn position(&self, place: Place) -> Option<Position> {
        let index = place.milestone.checked_sub(self.first)? as usize;
        let (milestone, _) = self.heard.get(index)?;
        Some(Position { milestone: *milestone, count: place.count })
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
        let position = |id, count| Position { milestone: milestone(id), count };
        assert_eq!((milestones.current(), milestones.place(&position(7, 0))), (None, None));
        for (at, id) in [9, 7, 8].into_iter().enumerate() {
            assert!(milestones.hear(milestone(id), at as Millis));
        }
        assert!(!milestones.hear(milestone(7), 5), "a milestone is a point, so it is heard once");
        assert_eq!(milestones.current(), Some(2));
        assert_eq!(milestones.place(&position(7, 4)), Some(Place { milestone: 1, count: 4 }));
        assert_eq!(milestones.position(Place { milestone: 1, count: 4 }), Some(position(7, 4)));
        milestones.forget(2);
        assert_eq!(milestones.place(&position(7, 4)), None);
        assert_eq!(milestones.position(Place { milestone: 1, count: 4 }), None);
        milestones.forget(1_000);
        assert_eq!(milestones.position(Place { milestone: 2, count: 0 }), Some(position(8, 0)));
        assert!(milestones.hear(milestone(1), 9) && milestones.current() == Some(3));
    }
}
