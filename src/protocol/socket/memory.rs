//! A socket in memory, whose peer is the test. May not enter: what a session does.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use super::Socket;

/// A socket whose peer is a test.
#[derive(Debug, Default)]
pub(crate) struct MemorySocket {
    /// Bytes that the peer has sent, and that were not received.
    pub(crate) inbound: VecDeque<u8>,
    /// Whether the peer has sent FIN after them.
    pub(crate) is_peer_finished: bool,
    /// All bytes that were sent, in order.
    pub(crate) sent: Vec<u8>,
    /// Bytes that the socket takes before it blocks.
    pub(crate) room: usize,
    /// How many of the sent bytes the peer has taken.
    pub(crate) taken: usize,
    /// Whether FIN was sent.
    pub(crate) is_finished: bool,
    /// Whether the peer is gone: every send fails.
    pub(crate) is_broken: bool,
}

impl MemorySocket {
    /// A socket that takes everything.
    pub(crate) fn roomy() -> Self {
        Self { room: usize::MAX, ..Self::default() }
    }
}

impl Socket for MemorySocket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.is_finished, "bytes are sent behind FIN");
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = bytes.get(..bytes.len().min(self.room)).unwrap_or_default();
        if sent.is_empty() && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= sent.len();
        self.sent.extend_from_slice(sent);
        Ok(sent.len())
    }

    fn send_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.send(&bytes)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.inbound.is_empty() && !self.is_peer_finished {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = buffer.len().min(self.inbound.len());
        for (slot, byte) in buffer.iter_mut().zip(self.inbound.drain(..count)) {
            *slot = byte;
        }
        Ok(count)
    }

    fn untaken_bytes(&self) -> usize {
        self.sent.len() - self.taken
    }

    fn finish_sending(&mut self) {
        assert!(!self.is_finished, "FIN is sent once");
        self.is_finished = true;
    }
}
