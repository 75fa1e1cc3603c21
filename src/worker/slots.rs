//! A worker's sessions: each in a slot with its connection and the worker's notes.
//!
//! May not enter: what a session's transitions mean, the hub, timers.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::opening::Opening;
use super::reactor::Wants;
#[cfg(test)]
use super::simulated::SharedSocket;
use crate::clock::Millis;
use crate::id::{Generation, SessionKey};
use crate::os;
use crate::position::Since;
use crate::protocol::session::Session;
use crate::protocol::socket::Socket;
use slab::Slab;

/// All sessions of a worker. A key is never used twice, so a late event finds its session or none.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slab: Slab<Slot>,
    /// The newest session's generation.
    generation: Generation,
}

/// One session, and the notes of its worker.
#[derive(Debug)]
pub(super) struct Slot {
    generation: Generation,
    pub(super) session: Session,
    pub(super) connection: Connection,
    /// When the wheel fires for this session.
    pub(super) due: Millis,
    /// What the socket is registered for.
    pub(super) registered: Wants,
    /// Whether the session is in the list of those with more to read.
    pub(super) has_another_turn: bool,
    /// Whether the session is in the list of those held until the outbox has room.
    pub(super) is_held: bool,
}

/// What connects a session to its client.
#[derive(Debug)]
pub(super) enum Connection {
    /// The session waits for its subscription. `None` once the client is refused.
    Handshake(Option<Box<Opening>>),
    /// The session has its socket.
    Socket(OwnedFd),
    /// In the simulation: the session waits for its subscription, and its client comes back with this position; and the
    /// session has a socket in memory.
    #[cfg(test)]
    Returning(Box<Since>),
    #[cfg(test)]
    Memory(SharedSocket),
}

impl Slots {
    /// Adds a session whose socket is still with its handshake.
    pub(super) fn insert(&mut self, session: Session) -> SessionKey {
        self.generation = self.generation.wrapping_add(1);
        let index = self.slab.insert(Slot {
            generation: self.generation,
            session,
            connection: Connection::Handshake(None),
            due: Millis::MAX,
            registered: Wants::Read,
            has_another_turn: false,
            is_held: false,
        });
        key_of(index, self.generation)
    }

    pub(super) fn get_mut(&mut self, key: SessionKey) -> Option<&mut Slot> {
        self.slab.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)
    }

    pub(super) fn remove(&mut self, key: SessionKey) -> Option<Slot> {
        self.get_mut(key)?;
        Some(self.slab.remove(key.index as usize))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionKey, &Slot)> {
        self.slab.iter().map(|(index, slot)| (key_of(index, slot.generation), slot))
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The newest session's generation.
    pub(super) fn newest(&self) -> Generation {
        self.generation
    }
}

impl Slot {
    /// Whether the session has its socket.
    pub(super) fn has_socket(&self) -> bool {
        match self.connection {
            Connection::Handshake(_) => false,
            Connection::Socket(_) => true,
            #[cfg(test)]
            Connection::Returning(_) => false,
            #[cfg(test)]
            Connection::Memory(_) => true,
        }
    }

    /// What the socket should be registered for.
    pub(super) fn wants(&self) -> Wants {
        if self.session.has_unsent() { Wants::ReadAndWrite } else { Wants::Read }
    }
}

impl Connection {
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        match self {
            Self::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    /// Takes the connection of a handshake, which ends with it.
    pub(super) fn take_opening(&mut self) -> Option<Box<Opening>> {
        match self {
            Self::Handshake(opening) => opening.take(),
            _ => None,
        }
    }

    /// From where on the client of a handshake wants publications.
    pub(super) fn since(&self) -> Option<Since> {
        match self {
            Self::Handshake(opening) => opening.as_ref()?.grant.since,
            #[cfg(test)]
            Self::Returning(since) => Some(**since),
            _ => None,
        }
    }

    fn connected(&self) -> io::Result<BorrowedFd<'_>> {
        debug_assert!(matches!(self, Self::Socket(_)), "a session uses no socket before its 101");
        self.socket().map(AsFd::as_fd).ok_or(io::ErrorKind::NotConnected.into())
    }
}

impl Socket for Connection {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Self::Memory(socket) = self {
            return socket.send(bytes);
        }
        os::socket::send_bytes(self.connected()?, bytes)
    }

    fn send_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(test)]
        if let Self::Memory(socket) = self {
            return socket.send_slices(slices);
        }
        os::socket::send_slices(self.connected()?, slices)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Self::Memory(socket) = self {
            return socket.receive(buffer);
        }
        os::socket::receive(self.connected()?, buffer)
    }

    fn untaken_bytes(&self) -> usize {
        #[cfg(test)]
        if let Self::Memory(socket) = self {
            return socket.untaken_bytes();
        }
        // During a handshake, nothing was sent.
        self.socket().map_or(0, |socket| os::socket::untaken_bytes(socket.as_fd()))
    }

    fn finish_sending(&mut self) {
        match self {
            Self::Handshake(_) => {}
            Self::Socket(socket) => os::socket::finish_sending(socket),
            #[cfg(test)]
            Self::Returning(_) => {}
            #[cfg(test)]
            Self::Memory(socket) => socket.finish_sending(),
        }
    }
}

fn key_of(index: usize, generation: Generation) -> SessionKey {
    let index = u32::try_from(index).expect("each session has a descriptor, and those are fewer than 2^32");
    SessionKey { index, generation }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle session costs its slot, its channel's name and its entry in the hub (wall 6).
    #[test]
    fn a_slot_is_small() {
        assert!(size_of::<Slot>() <= 240, "{}", size_of::<Slot>());
    }
}
