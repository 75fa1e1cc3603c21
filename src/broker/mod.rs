//! The contract between a worker and its broker: the embedded broker (`memory.rs`) or Redis (`redis/`).
//!
//! A worker owns its [`Broker`], makes [`Request`]s, and polls for [`Event`]s. May not enter: sessions, clients'
//! sockets.

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
    /// Takes a request. Events that follow come by [`Broker::poll_event`], which the worker calls after its requests.
    pub(crate) fn request(&mut self, request: Request) {
        match self {
            Self::Memory(port) => port.request(request),
            Self::Redis(pool) => pool.request(request),
        }
    }

    /// The next event. The bytes of a publication are valid until the next poll.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event<'_>> {
        match self {
            Self::Memory(port) => port.poll_event(cx),
            Self::Redis(pool) => pool.poll_event(cx),
        }
    }

    /// Whether all workers hear the same milestones.
    pub(crate) fn shares_milestones(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    /// Takes the messages that the broker has not answered for; no answer follows.
    pub(crate) fn abandon(&mut self) -> Vec<ClientMessage> {
        match self {
            Self::Memory(port) => port.abandon(),
            Self::Redis(pool) => pool.abandon(),
        }
    }

    /// Whether `channel` can be subscribed in time for a handshake.
    pub(crate) fn is_reachable(&self, channel: &Channel) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(pool) => pool.is_reachable(channel),
        }
    }

    /// The progress of the marker.
    pub(crate) fn marking(&self) -> Marking {
        match self {
            Self::Memory(port) => port.marking(),
            Self::Redis(pool) => pool.marking(),
        }
    }

    /// For how long subscriptions are lost, if so.
    pub(crate) fn away_for(&self) -> Duration {
        match self {
            Self::Memory(_) => Duration::ZERO,
            Self::Redis(pool) => pool.away_for(),
        }
    }

    /// Why messages do not flow, if so.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(pool) => pool.fault(),
        }
    }

    /// Why the broker has no links, if so.
    pub(crate) fn link_fault(&self) -> Option<String> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(pool) => pool.link_fault(),
        }
    }
}
