//! The sessions' readiness: one epoll per worker, awaited by tokio as a single descriptor.
//!
//! Edge-triggered. A session is registered for reading, and for writing only while it has a backlog: an idle socket is
//! always writable, and would wake the worker at each delivery. May not enter: what the bytes mean.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::task::{self, Context, ready};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use tokio::io::unix::AsyncFd;

use crate::id::SessionKey;
use crate::os;

/// Events taken from the kernel at a time.
const EVENTS: usize = 1024;

/// What a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Bytes from the client.
    Read,
    /// Bytes from the client, and room for bytes to the client.
    ReadAndWrite,
}

/// What a session's socket is ready for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) key: SessionKey,
    pub(crate) readable: bool,
    /// The peer may have sent its FIN: after a short read, more may follow.
    pub(crate) hung_up: bool,
    pub(crate) writable: bool,
}

impl Ready {
    /// The readiness of a session that may have more to read than its last turn allowed.
    pub(crate) fn again(key: SessionKey) -> Self {
        Self { key, readable: true, hung_up: true, writable: false }
    }
}

/// Registers sockets: the half that is used while events are handled.
#[derive(Debug)]
pub(crate) struct Registrar(Registry);

/// Waits for events.
#[derive(Debug)]
pub(crate) struct Reactor {
    poll: AsyncFd<Poll>,
    events: Events,
}

/// Makes a reactor, on the runtime that will await its events.
///
/// # Errors
/// When the process has no descriptor left.
pub(crate) fn new() -> io::Result<(Reactor, Registrar)> {
    let poll = Poll::new()?;
    let registrar = Registrar(poll.registry().try_clone()?);
    let poll = os::readiness::readable(poll)?;
    Ok((Reactor { poll, events: Events::with_capacity(EVENTS) }, registrar))
}

impl Registrar {
    /// A registrar without a reactor.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    #[cfg(test)]
    pub(super) fn apart() -> io::Result<Self> {
        Ok(Self(Poll::new()?.registry().try_clone()?))
    }

    /// Registers a socket. Readiness that exists already is reported.
    ///
    /// # Errors
    /// When the kernel has no memory for it, or `fs.epoll.max_user_watches` is reached.
    pub(crate) fn add(&self, socket: BorrowedFd<'_>, key: SessionKey, wants: Wants) -> io::Result<()> {
        self.0.register(&mut SourceFd(&socket.as_raw_fd()), token(key), interest(wants))
    }

    /// Changes what a socket waits for. Readiness that exists already is reported again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn change(&self, socket: BorrowedFd<'_>, key: SessionKey, wants: Wants) -> io::Result<()> {
        self.0.reregister(&mut SourceFd(&socket.as_raw_fd()), token(key), interest(wants))
    }
}

impl Reactor {
    /// Appends the sockets that are ready to `ready`; pending when there are none.
    ///
    /// # Errors
    /// When epoll fails, which it does not while the reactor lives.
    pub(crate) fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        ready: &mut VecDeque<Ready>,
    ) -> task::Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.poll.poll_read_ready_mut(cx))?;
            guard.get_inner_mut().poll(&mut self.events, Some(std::time::Duration::ZERO))?;
            if !self.events.is_empty() {
                break;
            }
            guard.clear_ready();
        }
        ready.extend(self.events.iter().map(|event| Ready {
            key: key(event.token()),
            // A closed or broken socket is found out by reading.
            readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            hung_up: event.is_read_closed() || event.is_error(),
            writable: event.is_writable(),
        }));
        task::Poll::Ready(Ok(()))
    }
}

fn interest(wants: Wants) -> Interest {
    match wants {
        Wants::Read => Interest::READABLE,
        Wants::ReadAndWrite => Interest::READABLE | Interest::WRITABLE,
    }
}

// A token is a usize, and a session's key has 64 bits.
const _: () = assert!(usize::BITS == 64, "webws needs a 64-bit target");

fn token(key: SessionKey) -> Token {
    Token((key.generation as usize) << 32 | key.index as usize)
}

#[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart as they were put together")]
fn key(token: Token) -> SessionKey {
    SessionKey { index: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_kernel() {
        let original = SessionKey { index: 0xdead_beef, generation: 0x8765_4321 };
        assert_eq!(key(token(original)), original);
    }
}
