//! One epoll instance, level-triggered, by raw system calls.
//!
//! rustix, not mio or nix: it calls the kernel without glibc between, whose cancellation points cost about 3 % of a
//! `send` in a threaded process, and waits with a resolution below 1 ms. May not enter: what a descriptor is for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

pub(crate) use rustix::event::epoll::EventFlags as Flags;

/// Events taken from the kernel at a time.
const EVENTS: usize = 1024;

/// What a reader waits for.
pub(crate) const READ: Flags = EventFlags::IN;
/// What a reader with unsent bytes waits for.
pub(crate) const READ_WRITE: Flags = EventFlags::IN.union(EventFlags::OUT);
/// What a connection that never reads waits for: the peer's end.
pub(crate) const GONE: Flags = EventFlags::RDHUP;

/// The epoll instance of a thread.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

/// The events of a wait. Apart, because they cannot move to another thread.
pub(crate) struct Events(Vec<Event>);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, socket: impl AsFd, token: u64, wants: Flags) -> io::Result<()> {
        Ok(epoll::add(&self.0, socket, EventData::new_u64(token), wants)?)
    }

    pub(crate) fn change(&self, socket: impl AsFd, token: u64, wants: Flags) -> io::Result<()> {
        Ok(epoll::modify(&self.0, socket, EventData::new_u64(token), wants)?)
    }

    /// Waits, at most for `timeout`, and returns how many events there are.
    pub(crate) fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        events.0.clear();
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

impl Events {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(EVENTS))
    }

    /// The token and the flags of an event.
    pub(crate) fn get(&self, index: usize) -> Option<(u64, Flags)> {
        self.0.get(index).map(|event| (event.data.u64(), event.flags))
    }
}
