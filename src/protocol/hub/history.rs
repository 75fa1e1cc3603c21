//! What is kept of one channel's publications, and how each is placed in the channel's stream. May not enter: other
//! channels, encodings.

use std::collections::VecDeque;

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
}

/// The history of one channel.
#[derive(Debug)]
pub(super) struct History {
    pub(super) keep: Keep,
    /// Tells this history from an earlier one of an entry with the same id.
    pub(super) serial: u64,
    /// All publications behind this place are kept; `None` before the first is placed.
    complete_from: Option<Place>,
    kept: VecDeque<Kept>,
    /// Payloads together.
    bytes: usize,
}

/// A publication that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) place: Place,
    /// When it came.
    at: Millis,
    pub(super) payload: Box<[u8]>,
}

/// Not every publication behind a place is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incomplete;

impl History {
    /// A history that begins at `from`; with the next publication, if the channel is not placed yet.
    pub(super) fn new(keep: Keep, serial: u64, from: Option<Place>) -> Self {
        Self { keep, serial, complete_from: from, kept: VecDeque::new(), bytes: 0 }
    }

    /// Keeps as much as this asks for as well.
    pub(super) fn widen(&mut self, Keep { messages, age, bytes }: Keep) {
        let Keep { messages: own_messages, age: own_age, bytes: own_bytes } = &mut self.keep;
        *own_messages = messages.max(*own_messages);
        *own_age = age.max(*own_age);
        *own_bytes = bytes.max(*own_bytes);
    }

    /// The subscription is lost: what is kept is not continued. Returns the bytes that are free now.
    pub(super) fn end(&mut self) -> usize {
        self.complete_from = None;
        self.kept.clear();
        std::mem::take(&mut self.bytes)
    }

    /// Keeps a publication at `place` of a channel that is placed from the milestone `from` on; returns how many bytes
    /// more are kept, or fewer.
    pub(super) fn push(&mut self, payload: &[u8], place: Place, from: u32, now: Millis) -> isize {
        self.complete_from.get_or_insert(Place { milestone: from, count: 0 });
        let before = self.bytes.cast_signed();
        self.bytes += payload.len();
        self.kept.push_back(Kept { place, at: now, payload: payload.into() });
        while self.kept.len() > self.keep.messages || self.bytes > self.keep.bytes {
            self.evict();
        }
        self.bytes.cast_signed() - before
    }

    /// The publications behind `place`, in order.
    ///
    /// # Errors
    /// Some of them are not kept; or `place` is behind the channel's end at `end`, and so was made up.
    pub(super) fn after(&self, place: Place, from: u32, end: Place) -> Result<impl Iterator<Item = &Kept>, Incomplete> {
        let complete_from = self.complete_from.unwrap_or(Place { milestone: from, count: 0 });
        if place < complete_from || place > end {
            return Err(Incomplete);
        }
        let first = self.kept.partition_point(|kept| kept.place <= place);
        Ok(self.kept.range(first..))
    }

    /// When the oldest publication is too old, if there is one.
    pub(super) fn expires_at(&self) -> Option<Millis> {
        self.kept.front().map(|kept| kept.at + self.keep.age)
    }

    /// Drops the oldest publication; returns the bytes that are free now.
    pub(super) fn evict(&mut self) -> usize {
        let Some(oldest) = self.kept.pop_front() else { return 0 };
        self.complete_from = Some(oldest.place);
        self.bytes -= oldest.payload.len();
        oldest.payload.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { messages: 3, age: 1_000, bytes: 10 };

    fn place(milestone: u32, count: u32) -> Place {
        Place { milestone, count }
    }

    /// Of a channel that is placed from milestone 5 on, and ends at (9, 1).
    fn after(history: &History, milestone: u32, count: u32) -> Option<Vec<&[u8]>> {
        let kept = history.after(place(milestone, count), 5, place(9, 1)).ok()?;
        Some(kept.map(|kept| &*kept.payload).collect())
    }

    #[test]
    fn everything_behind_a_place_is_there_or_nothing_is() {
        let mut history = History::new(KEEP, 0, None);
        assert_eq!((after(&history, 5, 0), after(&history, 4, 9)), (Some(vec![]), None));
        for (payload, at) in [(b"a", place(5, 1)), (b"b", place(5, 2)), (b"c", place(9, 1))] {
            history.push(payload, at, 5, 0);
        }
        assert_eq!(after(&history, 5, 0), Some(vec![&b"a"[..], b"b", b"c"]));
        assert_eq!(after(&history, 5, 1), Some(vec![&b"b"[..], b"c"]));
        assert_eq!(after(&history, 7, 0), Some(vec![&b"c"[..]]), "between two publications");
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
        assert_eq!(std::mem::size_of::<Kept>(), 32);
    }
}
