//! The publications that are kept of one channel, in the order of their places. May not enter: how many, how long.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::chunks::Chunks;
use super::places::Place;
use crate::clock::Millis;

/// Bytes before each payload.
const HEAD_BYTES: usize = 16;

/// Publications from one mark to the next. Chosen: as many heads are passed over in a microsecond.
const MARK_EVERY: usize = 64;

/// A publication that is kept.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub(super) place: Place,
    /// When it came.
    pub(super) at: Millis,
    pub(super) payload: Cow<'a, [u8]>,
}

/// Publications in order: of each a head, then the payload.
#[derive(Debug, Default)]
pub(super) struct Queue {
    chunks: Chunks,
    len: usize,
    /// Payloads together.
    bytes: usize,
    /// The latest time of all: a head has the lower half of a time, and no two are 49 days apart.
    latest: Millis,
    /// Each [`MARK_EVERY`]-th publication.
    marks: VecDeque<Mark>,
    /// Bytes and publications that are gone.
    gone: usize,
    popped: usize,
}

/// Where a publication is.
#[derive(Debug)]
struct Mark {
    place: Place,
    /// Counted from the first byte that ever was.
    at: usize,
    /// The publications that ever were before it.
    number: usize,
}

/// Publications that are kept, in order.
#[derive(Debug, Clone)]
pub(super) struct Iter<'a> {
    queue: &'a Queue,
    at: usize,
    left: usize,
}

/// What precedes a payload.
struct Head {
    place: Place,
    at: Millis,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all payloads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a publication.
    pub(super) fn push(&mut self, place: Place, at: Millis, payload: &[u8]) {
        let number = self.popped + self.len;
        if number % MARK_EVERY == MARK_EVERY - 1 {
            self.marks.push_back(Mark { place, at: self.gone + self.chunks.len(), number });
        }
        self.latest = self.latest.max(at);
        let len = u32::try_from(payload.len()).expect("Redis has no larger strings");
        let head = [place.milestone, place.count, low(at), len];
        self.chunks.push(head.map(u32::to_ne_bytes).as_flattened());
        self.chunks.push(payload);
        self.len += 1;
        self.bytes += payload.len();
    }

    /// Drops the first publication; returns its place and its length.
    pub(super) fn pop(&mut self) -> Option<(Place, usize)> {
        let Head { place, len, .. } = self.head(0)?;
        self.chunks.pop(HEAD_BYTES + len);
        self.gone += HEAD_BYTES + len;
        self.popped += 1;
        self.len -= 1;
        self.bytes -= len;
        self.marks.pop_front_if(|mark| mark.number < self.popped);
        Some((place, len))
    }

    /// When the first publication came.
    pub(super) fn first_at(&self) -> Option<Millis> {
        self.head(0).map(|head| head.at)
    }

    /// The publications behind `place`.
    pub(super) fn after(&self, place: Place) -> Iter<'_> {
        let marks = self.marks.partition_point(|mark| mark.place <= place);
        let mark = marks.checked_sub(1).and_then(|last| self.marks.get(last));
        let (mut at, mut passed) = mark.map_or((0, 0), |mark| (mark.at - self.gone, mark.number - self.popped));
        while let Some(head) = self.head(at).filter(|head| head.place <= place) {
            at += HEAD_BYTES + head.len;
            passed += 1;
        }
        Iter { queue: self, at, left: self.len - passed }
    }

    /// All publications.
    pub(super) fn iter(&self) -> Iter<'_> {
        Iter { queue: self, at: 0, left: self.len }
    }

    /// The head at `at`, where one begins; `None` at the end.
    fn head(&self, at: usize) -> Option<Head> {
        if at == self.chunks.len() {
            return None;
        }
        let bytes = self.chunks.read(at, HEAD_BYTES);
        let (words, _) = bytes.as_chunks();
        let [milestone, count, came, len] = *words else { return None };
        let [milestone, count, came, len] = [milestone, count, came, len].map(u32::from_ne_bytes);
        let ago = low(self.latest).wrapping_sub(came);
        Some(Head { place: Place { milestone, count }, at: self.latest - Millis::from(ago), len: len as usize })
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Kept<'a>;

    fn next(&mut self) -> Option<Kept<'a>> {
        let Head { place, at, len } = self.queue.head(self.at)?;
        let payload = self.queue.chunks.read(self.at + HEAD_BYTES, len);
        self.at += HEAD_BYTES + len;
        self.left -= 1;
        Some(Kept { place, at, payload })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// The lower half of a time.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(at: Millis) -> u32 {
    at as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(count: u32) -> Place {
        Place { milestone: count / 100, count: count % 100 }
    }

    #[test]
    fn publications_come_out_as_they_went_in() {
        let mut queue = Queue::default();
        let payload = |n: u32| vec![n.to_le_bytes()[0]; n as usize % 300];
        // The lower half of the time wraps in between.
        let at = |n: u32| Millis::from(u32::MAX) - 500 + Millis::from(n);
        for n in 0..1_000 {
            queue.push(place(n), at(n), &payload(n));
            if n >= 300 {
                assert_eq!(queue.pop(), Some((place(n - 300), payload(n - 300).len())));
                assert_eq!(queue.first_at(), Some(at(n - 299)));
            }
        }
        assert_eq!((queue.len(), queue.bytes()), (300, (700..1_000).map(|n| n % 300).sum()));
        for from in [600, 700, 701, 763, 764, 765, 899, 998, 999, 1_000] {
            let expected: Vec<_> = (700.max(from + 1)..1_000).map(|n| (place(n), at(n), payload(n))).collect();
            assert_eq!(queue.after(place(from)).len(), expected.len());
            let after = queue.after(place(from)).map(|kept| (kept.place, kept.at, kept.payload.into_owned()));
            assert_eq!(after.collect::<Vec<_>>(), expected, "{from}");
        }
        while queue.pop().is_some() {}
        assert_eq!((queue.len(), queue.bytes(), queue.first_at(), queue.iter().count()), (0, 0, None, 0));
    }

    #[test]
    fn a_kept_publication_costs_its_payload_and_at_most_48_bytes_on_average() {
        // As the defaults of a history keep them: 200, and 64 kB.
        for (size, kept) in [(64, 200), (200, 200), (1_000, 64)] {
            let mut queue = Queue::default();
            let mut sum = 0;
            for n in 0..1_000 + u32::try_from(kept).unwrap() {
                queue.push(place(n), 0, &vec![0; size]);
                if queue.len() > kept {
                    queue.pop();
                    sum += queue.chunks.allocated() + queue.marks.capacity() * size_of::<Mark>();
                }
            }
            let each = (sum / 1_000).div_ceil(kept);
            assert!(each <= size + 48, "{each} bytes for {size}");
        }
    }
}
