//! A non-blocking stream to a broker, with buffers for unsent and unread bytes. May not enter: what the bytes mean.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use crate::address::{Address, Dialed};

/// Bytes asked for at a time.
const READ_BYTES: usize = 256 << 10;

/// How long a broker may take to accept a connection. Chosen: local ones take microseconds.
const DEADLINE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A connection to Redis or to an HTTP server that publishes.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    read: usize,
}

/// Whether all bytes have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    All,
    Rest,
}

impl Link {
    /// Connects, waiting for it.
    ///
    /// # Errors
    /// As connect(2) says, or `TimedOut`.
    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        let socket = match address.dial(None)? {
            Dialed::Connected(socket) => socket,
            Dialed::UnderWay(socket) => {
                if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&DEADLINE))? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                sockopt::socket_error(&socket)??;
                socket
            }
            Dialed::Full => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        Ok(Self { socket, out: Vec::new(), sent: 0, input: Vec::new(), read: 0 })
    }

    /// The buffer to which new bytes are appended.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that wait to be sent.
    pub(crate) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) fn flush(&mut self) -> io::Result<Flushed> {
        while let Some(rest @ [_, ..]) = self.out.get(self.sent..) {
            match send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => return Ok(Flushed::Rest),
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(Flushed::All)
    }

    /// Receives once; returns the number of bytes, 0 when none have arrived. `UnexpectedEof` is the peer's FIN.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) fn fill(&mut self) -> io::Result<usize> {
        self.input.drain(..self.read);
        self.read = 0;
        self.input.reserve(READ_BYTES);
        match recv(&self.socket, rustix::buffer::spare_capacity(&mut self.input), RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, received)) => Ok(received),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes that were received, and not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        self.input.get(self.read..).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.read = self.input.len().min(self.read.saturating_add(bytes));
    }

    /// Takes the received bytes out of the link, while the link's owner handles them.
    pub(crate) fn take_input(&mut self) -> Vec<u8> {
        self.input.drain(..self.read);
        self.read = 0;
        std::mem::take(&mut self.input)
    }

    /// Puts the received bytes back, without those consumed.
    pub(crate) fn put_back(&mut self, input: Vec<u8>, consumed: usize) {
        (self.input, self.read) = (input, consumed);
    }

    /// Flushes, and waits for bytes to read: for the exchange before the loop runs.
    ///
    /// # Errors
    /// When the connection is gone, or nothing came in time.
    pub(crate) fn converse(&mut self, deadline: Duration) -> io::Result<()> {
        self.flush()?;
        let timeout = Timespec {
            tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: deadline.subsec_nanos().into(),
        };
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.fill().map(drop)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
