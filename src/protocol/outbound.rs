//! A session's backlog: bytes that its socket has not taken yet, as slices of shared batches.
//!
//! The session bounds the backlog by [`Outbound::backlog`]. May not enter: the treatment of a slow client.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};

use crate::clock::Millis;
use crate::position::Position;
use crate::protocol::encoding::Encoding;
use crate::protocol::socket::Socket;

/// Memory of a waiting slice besides its bytes: its entry in the queue, and a share of the batch's reference count.
/// Counted, so that many tiny frames cannot pass the limit unseen.
const SLICE_COST: usize = 64;

/// Slices per system call. Chosen: well under IOV_MAX (1024), on the stack.
const MAX_SLICES: usize = 32;

/// Whole frames on their way to several sockets. Sessions whose sockets do not take all bytes share one copy of exactly
/// that size: the hub's buffer is larger and is used again.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    bytes: &'a [u8],
    shared: Option<Bytes>,
    end: Option<Position>,
    /// Frames that slow sessions did not get, of this batch and of earlier ones.
    pub(crate) dropped: u64,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, shared: None, end: None, dropped: 0 }
    }

    /// With the position behind its last publication, for clients whose frames do not name it.
    pub(crate) fn ending_at(self, end: Option<Position>) -> Self {
        Self { end, ..self }
    }

    pub(crate) fn end(&self) -> Option<Position> {
        self.end
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The shared copy, made at the first call.
    pub(crate) fn share(&mut self) -> Bytes {
        self.shared.get_or_insert_with(|| Bytes::copy_from_slice(self.bytes)).clone()
    }
}

/// Bytes that wait for a socket. The first slice starts with the first unsent byte.
#[derive(Debug)]
pub(crate) struct Outbound {
    slices: VecDeque<Bytes>,
    /// Unsent bytes of a frame whose first byte has left: such a frame cannot be taken back. 0 between frames.
    begun_frame_bytes: usize,
    cost: usize,
    /// When the socket last took a byte.
    pub(crate) progress_at: Millis,
}

impl Outbound {
    /// An empty queue.
    pub(crate) fn new(now: Millis) -> Self {
        Self { slices: VecDeque::new(), begun_frame_bytes: 0, cost: 0, progress_at: now }
    }

    /// A queue that starts with `frames`, of which the socket has taken `sent` bytes.
    pub(crate) fn with_rest(frames: Bytes, sent: usize, encoding: Encoding, now: Millis) -> Self {
        debug_assert!(sent < frames.len(), "frames that were sent whole do not wait");
        let mut queue = Self::new(now);
        queue.push(frames);
        queue.consume(sent, encoding);
        queue
    }

    /// A queue of these units, without the empty ones, of which the socket has taken `sent` bytes.
    pub(crate) fn with_units(
        units: impl IntoIterator<Item = Bytes>,
        sent: usize,
        encoding: Encoding,
        now: Millis,
    ) -> Self {
        let mut queue = Self::new(now);
        units.into_iter().filter(|unit| !unit.is_empty()).for_each(|unit| queue.push(unit));
        queue.consume(sent, encoding);
        queue
    }

    /// For a snapshot: all unsent bytes, and how many of them belong to a frame whose first byte has left.
    pub(crate) fn parts(&self) -> (Vec<u8>, usize) {
        (self.slices.iter().flatten().copied().collect(), self.begun_frame_bytes)
    }

    /// A queue that continues from another's [`Outbound::parts`]; `None` unless `unsent` is the rest of a frame
    /// followed by whole frames.
    pub(crate) fn from_parts(
        unsent: Bytes,
        begun_frame_bytes: usize,
        encoding: Encoding,
        progress_at: Millis,
    ) -> Option<Self> {
        let mut rest = unsent.get(begun_frame_bytes..)?;
        while !rest.is_empty() {
            rest = rest.get(encoding.unit_len(rest)?..)?;
        }
        let mut queue = Self::new(progress_at);
        queue.push(unsent);
        queue.begun_frame_bytes = begun_frame_bytes;
        Some(queue)
    }

    /// Appends whole frames.
    pub(crate) fn push(&mut self, frames: Bytes) {
        debug_assert!(!frames.is_empty(), "an empty slice would never be sent");
        self.cost += frames.len() + SLICE_COST;
        self.slices.push_back(frames);
    }

    /// The memory that waits after the slice being sent, in bytes. A single batch, however large, makes no client a
    /// slow consumer, and all waiting sessions share its memory.
    pub(crate) fn backlog(&self) -> usize {
        self.cost - self.slices.front().map_or(0, |first| first.len() + SLICE_COST)
    }

    /// All memory that waits, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.cost
    }

    /// Sends as much as the socket takes. True when the queue is empty.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) fn send(&mut self, socket: &mut impl Socket, encoding: Encoding, now: Millis) -> io::Result<bool> {
        while !self.slices.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut offered = 0;
            let mut count = 0;
            for (slot, waiting) in slices.iter_mut().zip(&self.slices) {
                *slot = IoSlice::new(waiting);
                offered += waiting.len();
                count += 1;
            }
            match socket.send_slices(slices.get(..count).unwrap_or_default()) {
                Ok(sent) => {
                    self.progress_at = now;
                    self.consume(sent, encoding);
                    if sent < offered {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Drops what waits behind the slice that is being sent, the oldest first and the newest never, until at most `max`
    /// bytes wait. `told` takes its place. Returns the number of frames dropped.
    pub(crate) fn drop_oldest(&mut self, max: usize, told: Option<Bytes>, encoding: Encoding) -> u64 {
        let mut dropped = 0;
        while self.backlog() > max && self.slices.len() > 2 {
            let Some(oldest) = self.slices.remove(1) else { break };
            self.cost -= oldest.len() + SLICE_COST;
            if told.as_ref() != Some(&oldest) {
                dropped += encoding.units(&oldest).count() as u64;
            }
        }
        if let Some(told) = told.filter(|_| dropped > 0) {
            self.cost += told.len() + SLICE_COST;
            self.slices.insert(1, told);
        }
        dropped
    }

    /// Drops all but the rest of a frame whose first byte has left, and the newest frame. Returns the number of frames
    /// dropped.
    pub(crate) fn keep_newest(&mut self, encoding: Encoding) -> u64 {
        let (mut newest, mut whole) = (None, 0_u64);
        for (index, slice) in self.slices.iter().enumerate() {
            let begun = if index == 0 { self.begun_frame_bytes } else { 0 };
            for unit in encoding.units(slice.get(begun..).unwrap_or_default()) {
                (newest, whole) = (Some(unit), whole + 1);
            }
        }
        if whole < 2 {
            return 0;
        }
        // A copy: a slice would keep its whole batch in memory.
        let newest = newest.map(Bytes::copy_from_slice);
        self.keep_begun_frame();
        newest.into_iter().for_each(|newest| self.push(newest));
        whole - 1
    }

    fn consume(&mut self, mut sent: usize, encoding: Encoding) {
        while sent > 0 {
            let first = self.slices.front_mut().expect("a socket takes no more than it is offered");
            if self.begun_frame_bytes == 0 {
                // Every slice holds whole frames, so one starts here.
                let len = encoding.unit_len(first).filter(|len| *len <= first.len());
                debug_assert!(len.is_some(), "a slice ends within a frame");
                self.begun_frame_bytes = len.unwrap_or(first.len());
            }
            let step = sent.min(self.begun_frame_bytes).min(first.len());
            first.advance(step);
            self.begun_frame_bytes -= step;
            self.cost -= step;
            sent -= step;
            if first.is_empty() {
                self.slices.pop_front();
                self.cost -= SLICE_COST;
            }
        }
    }

    /// Drops all but the rest of a frame whose first byte has left, so that a close frame can follow. True when bytes
    /// were dropped.
    pub(crate) fn keep_begun_frame(&mut self) -> bool {
        let before = self.slices.iter().map(Bytes::len).sum::<usize>();
        let begun = self.begun_frame_bytes;
        debug_assert!(self.slices.front().map_or(0, Bytes::len) >= begun, "a frame lies in one slice");
        let rest = self.slices.pop_front().map(|first| first.slice(..begun.min(first.len())));
        self.slices.clear();
        self.cost = 0;
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.push(rest);
        }
        before > begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::socket::memory::MemorySocket;
    use crate::protocol::websocket::frame;

    fn frame(len: usize) -> Bytes {
        let mut out = bytes::BytesMut::new();
        frame::put_text_header(&mut out, len);
        out.extend((0..len).map(|i| b'a' + u8::try_from(i % 26).unwrap()));
        out.freeze()
    }

    #[test]
    fn everything_leaves_in_order_however_little_the_socket_takes() {
        let mut socket = MemorySocket::default();
        let mut queue = Outbound::new(0);
        let mut expected = Vec::new();
        for len in [0, 1, 125, 126, 70_000, 3, 400_000, 9] {
            expected.extend_from_slice(&frame(len));
            queue.push(frame(len));
        }
        for room in [0, 1, 1, 2, 3, 7_777].into_iter().chain(std::iter::repeat(7_777)) {
            socket.room = room;
            let now = queue.progress_at + 1;
            if queue.send(&mut socket, Encoding::Plain, now).unwrap() {
                break;
            }
            assert_eq!(queue.progress_at == now, room > 0);
            let left = queue.slices.iter().map(Bytes::len).sum::<usize>();
            assert_eq!(queue.cost, left + SLICE_COST * queue.slices.len());
        }
        assert!(socket.sent == expected);
        assert_eq!((queue.cost, queue.begun_frame_bytes), (0, 0));
    }

    #[test]
    fn a_begun_frame_is_finished_and_the_rest_dropped() {
        let both = Bytes::from([frame(5), frame(9)].concat());
        for (sent, kept) in [(0, &b""[..]), (3, &both[3..7]), (7, &b""[..]), (8, &both[8..18])] {
            let mut queue = Outbound::with_rest(both.clone(), sent, Encoding::Plain, 0);
            queue.push(frame(3));
            assert!(queue.keep_begun_frame());
            assert_eq!(queue.slices.iter().flatten().copied().collect::<Vec<_>>(), kept, "{sent}");
            assert_eq!(queue.cost, if kept.is_empty() { 0 } else { kept.len() + SLICE_COST });
        }
    }
    #[test]
    fn the_oldest_frames_make_room_and_the_gap_is_told_once() {
        let told = frame(4);
        let mut queue = Outbound::with_rest([frame(10), frame(10)].concat().into(), 3, Encoding::Plain, 0);
        for _ in 0..10 {
            queue.push([frame(100), frame(100)].concat().into());
        }
        let max = 3 * (2 * 102 + SLICE_COST);
        assert_eq!(queue.drop_oldest(max, Some(told.clone()), Encoding::Plain), 14);
        queue.push(frame(7));
        assert_eq!(queue.drop_oldest(max, Some(told.clone()), Encoding::Plain), 2, "what was told is no frame");
        let (unsent, begun) = queue.parts();
        let first = [frame(10), frame(10)].concat().split_off(3);
        let rest = [frame(100), frame(100)].concat().repeat(2);
        assert_eq!((unsent, begun), ([&first[..], &told, &rest, &frame(7)].concat(), 9));
        assert_eq!(queue.drop_oldest(0, Some(told.clone()), Encoding::Plain), 4, "the newest stays");
        assert_eq!(queue.parts().0, [&first[..], &told, &frame(7)].concat());
        assert_eq!(queue.cost, first.len() + told.len() + frame(7).len() + 3 * SLICE_COST);
    }

    #[test]
    fn of_all_that_waits_the_newest_frame_is_kept() {
        let both = Bytes::from([frame(5), frame(9)].concat());
        for (sent, pushed, dropped, kept) in [
            (3, &[][..], 0, both[3..].to_vec()),
            (3, &[frame(20)][..], 1, [&both[3..7], &frame(20)].concat()),
            (0, &[[frame(20), frame(21)].concat().into(), frame(8)], 4, frame(8).to_vec()),
            (8, &[frame(20), frame(21)], 1, [&both[8..], &frame(21)].concat()),
        ] {
            let mut queue = Outbound::with_rest(both.clone(), sent, Encoding::Plain, 0);
            pushed.iter().for_each(|pushed: &Bytes| queue.push(pushed.clone()));
            assert_eq!(queue.keep_newest(Encoding::Plain), dropped, "{sent}");
            assert_eq!(queue.parts().0, kept, "{sent}");
        }
    }

    #[test]
    fn bytes_that_end_within_a_frame_are_no_queue() {
        let frames = [&frame(300)[200..], &frame(2), &frame(70_000)].concat();
        let parts = |len: usize, begun| {
            let unsent = Bytes::copy_from_slice(&frames[..len]);
            Outbound::from_parts(unsent, begun, Encoding::Plain, 0).map(|queue| queue.parts())
        };
        let len = frames.len();
        assert!(parts(len, 104) == Some((frames.clone(), 104)));
        assert!(
            [(len, 103), (len - 1, 104), (len, len + 1), (107, 104)]
                .iter()
                .all(|(len, begun)| parts(*len, *begun).is_none())
        );
    }
}
