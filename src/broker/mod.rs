//! The contract between a worker and what joins it to the other workers and producers:
//! the embedded broker (`memory.rs`) or Redis (`redis/`).
//!
//! A worker owns its [`Broker`], asks by [`Request`] and polls it for [`Event`]s. May not enter:
//! sessions, sockets of clients.

mod event;
pub(crate) mod memory;
pub(crate) mod redis;
mod seal;

use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) use self::event::{Event, Gap, Marking, Report, Request};
pub(crate) use self::seal::Seal;
use crate::channel::Channel;
use crate::message::ClientMessage;

/// A worker's side of the broker.
#[derive(Debug)]
pub(crate) enum Broker {
    Memory(memory::Port),
    Redis(redis::RedisBroker),
}

impl Broker {
    /// Takes a request; events that follow from it come by [`Broker::poll_event`], which the worker calls behind its
    /// requests.
    pub(crate) fn request(&mut self, request: Request) {
        match self {
            Self::Memory(port) => port.request(request),
            Self::Redis(pool) => pool.request(request),
        }
    }

    /// The next event. A publication's bytes are those that were read, until the next poll.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event<'_>> {
        match self {
            Self::Memory(port) => port.poll_event(cx),
            Self::Redis(pool) => pool.poll_event(cx),
        }
    }

    /// The messages that were taken and not answered for; none of them is from now on.
    pub(crate) fn abandon(&mut self) -> Vec<ClientMessage> {
        match self {
            Self::Memory(port) => port.abandon(),
            Self::Redis(pool) => pool.abandon(),
        }
    }

    /// Whether a handshake for `channel` has a chance of being subscribed in time.
    pub(crate) fn is_reachable(&self, channel: &Channel) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(pool) => pool.is_reachable(channel),
        }
    }

    /// How far the marker has come.
    pub(crate) fn marking(&self) -> Marking {
        match self {
            Self::Memory(port) => port.marking(),
            Self::Redis(pool) => pool.marking(),
        }
    }

    /// How long subscriptions are away, if they are.
    pub(crate) fn away_for(&self) -> Duration {
        match self {
            Self::Memory(_) => Duration::ZERO,
            Self::Redis(pool) => pool.away_for(),
        }
    }

    /// Why messages do not flow, if they do not.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(pool) => pool.fault(),
        }
    }

    /// Why there are no links to it, if there are none.
    pub(crate) fn link_fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(pool) => pool.link_fault(),
        }
    }
}
