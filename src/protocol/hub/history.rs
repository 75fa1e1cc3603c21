//! The last publications of one channel, each with its place. May not enter: other channels, encodings.

use std::ops::Range;

use super::kept::{Iter, Kept, Queue};
use super::places::Place;
use crate::clock::{Millis, millis};
use crate::config::{EndpointConfig, HistoryConfig};

/// How much of a channel is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    pub(crate) messages: usize,
    pub(crate) age: Millis,
    /// Payloads together.
    pub(crate) bytes: usize,
}

impl Keep {
    /// What an endpoint keeps of its channels.
    pub(crate) fn of(config: &EndpointConfig) -> Option<Self> {
        let HistoryConfig { messages, age, bytes, .. } = config.history.as_ref()?;
        Some(Self { messages: *messages, age: millis(*age), bytes: *bytes })
    }

    /// What all endpoints that clients may join `channel` by keep of it, together.
    pub(crate) fn widest<'a>(endpoints: impl Iterator<Item = &'a EndpointConfig>, channel: &[u8]) -> Option<Self> {
        let of_channel = endpoints.filter(|config| channel.starts_with(config.prefix.as_bytes()));
        of_channel.filter_map(Self::of).reduce(Self::widened)
    }

    fn widened(self, Self { messages, age, bytes }: Self) -> Self {
        Self { messages: messages.max(self.messages), age: age.max(self.age), bytes: bytes.max(self.bytes) }
    }
}

/// The history of one channel.
#[derive(Debug)]
pub(super) struct History {
    pub(super) keep: Keep,
    /// Whether a session wants it, or another process had it: one for sessions that are to come may not be wanted.
    pub(super) is_wanted: bool,
    /// Tells this history from an earlier one of an entry with the same id.
    pub(super) serial: u64,
    pub(super) beginning: Beginning,
    /// Whether the other workers of the process have put in front what they had.
    pub(super) is_gathered: bool,
    /// All publications behind this place are kept; `None` before the first is placed.
    complete_from: Option<Place>,
    kept: Queue,
}

/// What is known of the publications in front of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// The channel was not subscribed before.
    Subscribed,
    /// Another process has them.
    Elsewhere,
    /// Some were here and are not kept any more, or were missed.
    Lost,
}

/// Not every publication behind a place is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incomplete;

impl History {
    /// A history that begins at `from`; with the next publication, if the channel is not placed yet.
    pub(super) fn new(keep: Keep, serial: u64, from: Option<Place>) -> Self {
        Self {
            keep,
            is_wanted: true,
            serial,
            beginning: Beginning::Subscribed,
            is_gathered: false,
            complete_from: from,
            kept: Queue::default(),
        }
    }

    /// Keeps as much as this asks for as well.
    pub(super) fn widen(&mut self, keep: Keep) {
        self.keep = self.keep.widened(keep);
        self.is_wanted = true;
    }

    /// The subscription is lost: what is kept is not continued. Returns the bytes that are free now.
    pub(super) fn end(&mut self) -> usize {
        self.complete_from = None;
        (self.beginning, self.is_gathered) = (Beginning::Lost, false);
        std::mem::take(&mut self.kept).bytes()
    }

    /// Keeps a publication at `place` of a channel that is placed from the milestone `from` on; returns how many bytes
    /// more are kept, or fewer.
    pub(super) fn push(&mut self, payload: &[u8], place: Place, from: u32, now: Millis) -> isize {
        self.complete_from.get_or_insert(Place { milestone: from, count: 0 });
        let before = self.kept.bytes().cast_signed();
        self.kept.push(place, now, payload);
        self.bound();
        self.kept.bytes().cast_signed() - before
    }

    /// Puts publications in front that another process kept: all of the channel behind `theirs.start`, up to
    /// `theirs.end` at least, with `beginning` in front of them. Takes none if between these and the own ones a
    /// publication could be missing. The channel is placed from the milestone `from` on. Returns how many bytes more are
    /// kept.
    pub(super) fn prepend(
        &mut self,
        theirs: Range<Place>,
        kept: Vec<Kept<'_>>,
        beginning: Beginning,
        from: u32,
    ) -> usize {
        let own_start = self.start(from);
        let is_in_front = theirs.start < own_start;
        let is_contiguous = theirs.end >= own_start;
        match beginning {
            Beginning::Lost => self.beginning = Beginning::Lost,
            // What they had is not all here.
            Beginning::Subscribed if is_in_front && !is_contiguous => self.beginning = Beginning::Lost,
            Beginning::Subscribed | Beginning::Elsewhere => {}
        }
        if !is_in_front || !is_contiguous {
            return 0;
        }
        let own = std::mem::take(&mut self.kept);
        let earlier = kept.into_iter().filter(|kept| theirs.start < kept.place && kept.place <= own_start);
        for Kept { place, at, payload } in earlier.chain(own.iter()) {
            self.kept.push(place, at, &payload);
        }
        self.complete_from = Some(theirs.start);
        if self.beginning == Beginning::Elsewhere {
            self.beginning = beginning;
        }
        self.bound();
        self.kept.bytes() - own.bytes()
    }

    fn bound(&mut self) {
        while self.kept.len() > self.keep.messages || self.kept.bytes() > self.keep.bytes {
            self.evict();
        }
    }

    /// All publications behind this place are kept, if the channel is placed from the milestone `from` on.
    pub(super) fn start(&self, from: u32) -> Place {
        self.complete_from.unwrap_or(Place { milestone: from, count: 0 })
    }

    /// What is kept, in order.
    pub(super) fn kept(&self) -> Iter<'_> {
        self.kept.iter()
    }

    /// The publications behind `place`, in order.
    ///
    /// # Errors
    /// Some of them are not kept; or `place` is behind the channel's end at `end`, and so was made up.
    pub(super) fn after(&self, place: Place, from: u32, end: Place) -> Result<Iter<'_>, Incomplete> {
        if place < self.start(from) || place > end {
            return Err(Incomplete);
        }
        Ok(self.kept.after(place))
    }

    /// When the oldest publication is too old, if there is one.
    pub(super) fn expires_at(&self) -> Option<Millis> {
        self.kept.first_at().map(|at| at + self.keep.age)
    }

    /// Drops the oldest publication; returns the bytes that are free now.
    pub(super) fn evict(&mut self) -> usize {
        let Some((place, bytes)) = self.kept.pop() else { return 0 };
        self.complete_from = Some(place);
        self.beginning = Beginning::Lost;
        bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEEP: Keep = Keep { messages: 3, age: 1_000, bytes: 10 };

    fn place(milestone: u32, count: u32) -> Place {
        Place { milestone, count }
    }

    /// Of a channel that is placed from milestone 5 on, and ends at (9, 1).
    fn after(history: &History, milestone: u32, count: u32) -> Option<Vec<Vec<u8>>> {
        let kept = history.after(place(milestone, count), 5, place(9, 1)).ok()?;
        Some(kept.map(|kept| kept.payload.into_owned()).collect())
    }

    #[test]
    fn everything_behind_a_place_is_there_or_nothing_is() {
        let mut history = History::new(KEEP, 0, None);
        assert_eq!((after(&history, 5, 0), after(&history, 4, 9)), (Some(vec![]), None));
        for (payload, at) in [(b"a", place(5, 1)), (b"b", place(5, 2)), (b"c", place(9, 1))] {
            history.push(payload, at, 5, 0);
        }
        assert_eq!(after(&history, 5, 0), Some(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]));
        assert_eq!(after(&history, 5, 1), Some(vec![b"b".to_vec(), b"c".to_vec()]));
        assert_eq!(after(&history, 7, 0), Some(vec![b"c".to_vec()]), "between two publications");
        assert_eq!(after(&history, 9, 1), Some(vec![]));
        for (milestone, count) in [(4, 0), (4, 9), (9, 2), (10, 1)] {
            assert_eq!(after(&history, milestone, count), None, "{milestone} {count}");
        }
        history.push(b"d", place(9, 2), 5, 0);
        assert_eq!((after(&history, 5, 0), after(&history, 5, 1).map(|kept| kept.len())), (None, Some(3)));
        assert_eq!(history.end(), 3);
    }

    #[test]
    fn what_is_kept_is_bounded_in_messages_and_bytes() {
        let mut history = History::new(KEEP, 0, None);
        assert_eq!(history.push(&[0; 6], place(5, 1), 5, 0), 6);
        assert_eq!(history.push(&[0; 6], place(5, 2), 5, 0), 0, "the first makes room");
        assert_eq!(history.push(&[0; 11], place(5, 3), 5, 0), -6, "larger than all that may be kept");
        assert!(history.is_empty() && after(&history, 5, 2).is_none() && after(&history, 5, 3) == Some(vec![]));
        history.push(b"a", place(5, 4), 5, 500);
        assert_eq!(history.expires_at(), Some(1_500));
        assert_eq!(history.evict(), 1);
        assert_eq!((history.expires_at(), after(&history, 5, 3)), (None, None));
    }

    fn kept(milestone: u32, count: u32, payload: &[u8]) -> Kept<'_> {
        Kept { place: place(milestone, count), at: 0, payload: payload.into() }
    }

    #[test]
    fn publications_of_another_process_are_put_in_front_if_none_is_missing_in_between() {
        let theirs = || vec![kept(2, 1, b"a"), kept(3, 1, b"b"), kept(5, 1, b"c"), kept(5, 2, b"d")];
        let own = || {
            let mut history = History::new(KEEP, 0, None);
            history.push(b"c", place(5, 1), 5, 0);
            history
        };
        let mut history = own();
        assert_eq!(history.prepend(place(2, 0)..place(5, 2), theirs(), Beginning::Subscribed, 5), 2);
        assert_eq!(
            after(&history, 2, 0),
            Some(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]),
            "what both have comes once"
        );
        assert_eq!((after(&history, 1, 9), after(&history, 4, 0).map(|kept| kept.len())), (None, Some(1)));
        assert_eq!(
            history.prepend(place(2, 0)..place(5, 2), theirs(), Beginning::Subscribed, 5),
            0,
            "from another worker"
        );
        assert_eq!(history.kept().count(), 3);
        assert_eq!(
            history.prepend(place(1, 0)..place(4, 0), vec![kept(1, 2, b"z")], Beginning::Subscribed, 5),
            0,
            "no room"
        );
        assert_eq!((after(&history, 1, 2).map(|kept| kept.len()), after(&history, 1, 1)), (Some(3), None));
        // Theirs end before ours begin; or begin where ours do.
        for range in [place(2, 0)..place(4, 9), place(5, 0)..place(5, 2), place(5, 1)..place(5, 2)] {
            let mut history = own();
            assert_eq!(history.prepend(range.clone(), theirs(), Beginning::Subscribed, 5), 0, "{range:?}");
            assert_eq!((history.kept().count(), after(&history, 3, 1)), (1, None), "{range:?}");
        }
        // Nothing was published, and that is known now.
        let mut history = History::new(KEEP, 0, None);
        assert_eq!(history.prepend(place(2, 0)..place(5, 0), vec![], Beginning::Subscribed, 5), 0);
        assert_eq!((after(&history, 2, 0), after(&history, 1, 9)), (Some(vec![]), None));
        // Of ours, the first was dropped already: theirs reach over that.
        let mut history = own();
        history.evict();
        history.push(b"d", place(5, 2), 5, 0);
        assert_eq!(history.prepend(place(3, 0)..place(5, 1), theirs(), Beginning::Subscribed, 5), 2);
        assert_eq!(after(&history, 3, 0), Some(vec![b"b".to_vec(), b"c".to_vec(), b"d".to_vec()]));
    }

    #[test]
    fn a_channel_is_kept_as_all_endpoints_that_lead_to_it_want_together() {
        let endpoint = |prefix: &str, messages, age| EndpointConfig {
            history: Some(HistoryConfig { messages, age: Duration::from_secs(age), ..HistoryConfig::default() }),
            ..EndpointConfig::default().with_prefix(prefix)
        };
        let endpoints = [endpoint("a:", 7, 1), EndpointConfig::default().with_prefix("a:"), endpoint("a:b", 5, 2)];
        let widest = |channel: &str| {
            Keep::widest(endpoints.iter(), channel.as_bytes()).map(|keep| (keep.messages, keep.age, keep.bytes))
        };
        let all = ["a:b", "a:c", "b:c"].map(widest);
        assert_eq!(all, [Some((7, 2_000, 64_000)), Some((7, 1_000, 64_000)), None]);
    }
}
