//! Where a channel's stream is, on this worker's numbering of milestones. May not enter: what is kept of the channel.

/// A place in a channel's stream: behind the `count`-th publication since the milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) milestone: u32,
    pub(super) count: u32,
}

/// The last publication of a channel, counted.
///
/// The number of publications between the last milestone and a subscription is unknown. So a channel is *placed* from
/// the first milestone behind its confirmation on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// The channel is placed from this milestone on.
    pub(super) from: u32,
    last: Place,
}

impl Places {
    /// A channel that is confirmed when `next` is the number of the next milestone.
    pub(super) fn from(next: u32) -> Self {
        Self { from: next, last: Place { milestone: next, count: 0 } }
    }

    /// A channel that is not confirmed.
    pub(super) fn nowhere() -> Self {
        Self::from(u32::MAX)
    }

    /// The publications counted since that milestone, the last one heard.
    pub(super) fn since(&self, milestone: u32) -> u32 {
        if self.last.milestone == milestone { self.last.count } else { 0 }
    }

    /// Counts a publication that comes when `current` is the last milestone; returns its place, if the channel is
    /// placed.
    pub(super) fn count(&mut self, current: Option<u32>) -> Option<Place> {
        let current = current.filter(|current| *current >= self.from)?;
        if self.last.milestone < current {
            self.last = Place { milestone: current, count: 0 };
        }
        self.last.count += 1;
        Some(self.last)
    }

    /// The place behind everything so far, when `current` is the last milestone.
    pub(super) fn end(&self, current: Option<u32>) -> Option<Place> {
        let current = current.filter(|current| *current >= self.from)?;
        Some(self.last.max(Place { milestone: current, count: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(milestone: u32, count: u32) -> Place {
        Place { milestone, count }
    }

    #[test]
    fn publications_count_from_the_last_milestone_and_only_once_the_channel_is_placed() {
        let mut places = Places::from(5);
        for early in [None, Some(4)] {
            assert_eq!((places.end(early), places.count(early)), (None, None));
        }
        assert_eq!(places.end(Some(5)), Some(place(5, 0)));
        assert_eq!(
            [5, 5, 9].map(|current| places.count(Some(current))),
            [Some(place(5, 1)), Some(place(5, 2)), Some(place(9, 1))]
        );
        assert_eq!((places.end(Some(9)), places.end(Some(10))), (Some(place(9, 1)), Some(place(10, 0))));
    }
}
