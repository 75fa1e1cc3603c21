//! What a session could not send yet: slices of shared batches, in order.
//!
//! Bounded by its caller (`session.rs`), which asks for [`Outbound::backlog`]. May not
//! enter: what to do about a slow client.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use bytes::{Buf, Bytes};

use crate::clock::Millis;
use crate::os;
use crate::protocol::websocket::frame;

/// Memory of a waiting slice beside its bytes: its place in the queue and a share of the
/// batch's counter. Counted, so that many tiny frames cannot pass the limit unseen.
const SLICE_COST: usize = 64;

/// Slices per system call. Chosen: well under IOV_MAX (1024), on the stack.
const MAX_SLICES: usize = 32;

/// Whole frames on their way to several sockets. Who cannot take them all shares one copy of
/// exactly their size: the hub's buffer is larger and serves again.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    bytes: &'a [u8],
    shared: Option<Bytes>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, shared: None }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The copy that is shared.
    pub(crate) fn share(&mut self) -> Bytes {
        self.shared.get_or_insert_with(|| Bytes::copy_from_slice(self.bytes)).clone()
    }
}

/// Bytes that wait for a socket. The first slice starts with the first unsent byte.
#[derive(Debug)]
pub(crate) struct Outbound {
    slices: VecDeque<Bytes>,
    /// Bytes of the frame being sent that are still to go, when it was begun: a frame
    /// cannot be taken back once its first byte left.
    begun_frame_bytes: usize,
    cost: usize,
    /// When the socket took something last.
    pub(crate) progress_at: Millis,
}

impl Outbound {
    /// An empty queue.
    pub(crate) fn new(now: Millis) -> Self {
        Self { slices: VecDeque::new(), begun_frame_bytes: 0, cost: 0, progress_at: now }
    }

    /// A queue that starts with what a socket left of `frames` after taking `sent` bytes of it.
    pub(crate) fn with_rest(frames: Bytes, sent: usize, now: Millis) -> Self {
        let mut queue = Self::new(now);
        queue.push(frames);
        queue.consume(sent);
        queue
    }

    /// All that waits, and how many bytes of it belong to a frame that has begun to leave.
    pub(crate) fn parts(&self) -> (Vec<u8>, usize) {
        (self.slices.iter().flatten().copied().collect(), self.begun_frame_bytes)
    }

    /// Goes on where another stopped.
    pub(crate) fn from_parts(unsent: Bytes, begun_frame_bytes: usize, progress_at: Millis) -> Self {
        let mut queue = Self::new(progress_at);
        queue.push(unsent);
        queue.begun_frame_bytes = begun_frame_bytes;
        queue
    }

    /// Appends whole frames.
    pub(crate) fn push(&mut self, frames: Bytes) {
        self.cost += frames.len() + SLICE_COST;
        self.slices.push_back(frames);
    }

    /// What waits behind the slice that is being sent, in bytes of memory. However large one
    /// batch is, it alone makes nobody a slow reader, and it is shared by those who wait for it.
    pub(crate) fn backlog(&self) -> usize {
        self.cost - self.slices.front().map_or(0, |first| first.len() + SLICE_COST)
    }

    /// Sends what the socket takes. True when nothing is left.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, now: Millis) -> io::Result<bool> {
        while !self.slices.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut offered = 0;
            let mut count = 0;
            for (slot, waiting) in slices.iter_mut().zip(&self.slices) {
                *slot = IoSlice::new(waiting);
                offered += waiting.len();
                count += 1;
            }
            match os::socket::send_slices(socket, slices.get(..count).unwrap_or_default()) {
                Ok(sent) => {
                    self.progress_at = now;
                    self.consume(sent);
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

    fn consume(&mut self, mut sent: usize) {
        while sent > 0 {
            let Some(first) = self.slices.front_mut() else { return };
            if self.begun_frame_bytes == 0 {
                // Every slice holds whole frames, so one starts here.
                self.begun_frame_bytes = frame::len_of_first(first).unwrap_or(first.len());
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

    /// Drops everything but the rest of the frame that is half sent, so that a close frame
    /// can follow. Returns whether anything was dropped.
    pub(crate) fn keep_begun_frame(&mut self) -> bool {
        let before = self.slices.iter().map(Bytes::len).sum::<usize>();
        let begun = self.begun_frame_bytes;
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
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn frame(len: usize) -> Bytes {
        let mut out = bytes::BytesMut::new();
        frame::put_text_header(&mut out, len);
        out.extend((0..len).map(|i| b'a' + u8::try_from(i % 26).unwrap()));
        out.freeze()
    }

    #[test]
    fn everything_leaves_in_order_however_little_the_socket_takes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut queue = Outbound::new(0);
        let mut expected = Vec::new();
        for len in [0, 1, 125, 126, 70_000, 3, 400_000, 9] {
            expected.extend_from_slice(&frame(len));
            queue.push(frame(len));
        }
        let mut received = Vec::new();
        let mut now = 0;
        while !queue.send(ours.as_fd(), now).unwrap() {
            now += 1;
            let mut buffer = [0; 7_777];
            let n = theirs.read(&mut buffer).unwrap();
            received.extend_from_slice(&buffer[..n]);
        }
        drop(ours);
        theirs.set_nonblocking(false).unwrap();
        theirs.read_to_end(&mut received).unwrap();
        assert_eq!(received, expected);
        assert_eq!((queue.cost, queue.begun_frame_bytes), (0, 0));
    }

    #[test]
    fn a_begun_frame_is_finished_and_the_rest_dropped() {
        let both = Bytes::from([frame(5), frame(9)].concat());
        for (sent, kept) in [(0, &b""[..]), (3, &both[3..7]), (7, &b""[..]), (8, &both[8..18])] {
            let mut queue = Outbound::with_rest(both.clone(), sent, 0);
            queue.push(frame(3));
            assert!(queue.keep_begun_frame());
            assert_eq!(queue.slices.iter().flatten().copied().collect::<Vec<_>>(), kept, "{sent}");
            assert_eq!(queue.cost, if kept.is_empty() { 0 } else { kept.len() + SLICE_COST });
        }
    }
}
