//! A worker's sessions and client messages as data for another process: makes snapshots, and adopts them. May not
//! enter: the messages of the two processes.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::core::Core;
use super::slots::Connection;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::config::EndpointConfig;
use crate::id::SessionKey;
use crate::message::{ClientMessage, Origin};
use crate::os::descriptors::Lent;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::session::snapshot::SessionSnapshot;
use crate::protocol::session::{Action, Session};

/// A worker as data: its sessions with their sockets, and the messages in its outbox.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) sessions: Vec<(SessionSnapshot, Lent)>,
    pub(crate) messages: Vec<MessageSnapshot>,
    /// How long its sessions have missed publications, in a gap that has not ended.
    pub(crate) away: Duration,
}

/// A worker as data, as another process receives it: messages name a session by its index.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    pub(crate) sessions: Vec<(SessionSnapshot, OwnedFd)>,
    pub(crate) messages: Vec<MessageSnapshot>,
}

impl Core {
    /// Everything that another process needs to continue.
    pub(super) fn collect(&self, now: Millis) -> Collected {
        let mut collected = Collected::default();
        let mut places = HashMap::new();
        for (key, slot) in self.slots.iter() {
            let (Some(snapshot), Some(socket)) = (slot.session.snapshot(now), slot.connection.socket()) else {
                continue;
            };
            places.insert(key, collected.sessions.len());
            collected.sessions.push((snapshot, Lent::from(socket)));
        }
        collected.messages = self.outbox.iter().map(|message| MessageSnapshot::of(message, &places, now)).collect();
        collected
    }

    /// Makes sessions from another process' snapshot; they are quiesced. [`Core::take_wanted`] returns the channels to
    /// subscribe.
    ///
    /// # Errors
    /// When a snapshot contradicts itself, or the kernel does not watch its socket.
    pub(super) fn adopt(&mut self, adopted: Adopted, endpoints: &[Rc<Endpoint>], now: Millis) -> io::Result<()> {
        self.adopted.clear();
        for (snapshot, socket) in adopted.sessions {
            self.adopt_session(snapshot, endpoints, Connection::Socket(socket), now)?;
        }
        self.adopt_messages(adopted.messages, now);
        Ok(())
    }

    /// Makes a session from a snapshot; it is quiesced.
    ///
    /// # Errors
    /// As [`Core::adopt`].
    pub(super) fn adopt_session(
        &mut self,
        snapshot: SessionSnapshot,
        endpoints: &[Rc<Endpoint>],
        connection: Connection,
        now: Millis,
    ) -> io::Result<SessionKey> {
        let known = endpoints.iter().find(|endpoint| endpoint.config.path == snapshot.endpoint).cloned();
        let is_known = known.is_some();
        let endpoint = known.unwrap_or_else(|| {
            // Orphaned: closed when the worker resumes.
            let path = snapshot.endpoint.clone();
            Rc::new(Endpoint::new(EndpointConfig { path, ..EndpointConfig::default() }))
        });
        let mut session = Session::adopt(snapshot, endpoint, now).map_err(io::Error::other)?;
        let action = if is_known { session.begin() } else { Action::Stay };
        let key = self.insert(session);
        self.adopted.push(key);
        if !is_known {
            self.orphaned.insert(key);
        }
        let slot = self.slots.get_mut(key).expect("it was inserted");
        slot.registered = slot.wants();
        if let Some(socket) = connection.socket() {
            self.registrar.add(socket.as_fd(), key, slot.registered)?;
        }
        slot.connection = connection;
        self.apply(key, action, now);
        Ok(key)
    }

    /// Adopts the messages of the sessions that were adopted last.
    pub(super) fn adopt_messages(&mut self, messages: Vec<MessageSnapshot>, now: Millis) {
        for MessageSnapshot { session, channel, payload, ago } in messages {
            let origin = session.and_then(|place| self.adopted.get(place)).copied();
            let since = now.saturating_sub(ago);
            let (channel, payload) = (Channel::from(channel.into_vec()), Bytes::from(payload.into_vec()));
            let origin_key = origin.unwrap_or_default();
            let message = ClientMessage { channel, payload, origin: Origin::Session(origin_key), since };
            if let Some(slot) = origin.and_then(|key| self.slots.get_mut(key)) {
                slot.session.adopt_message(message.cost());
            }
            self.outbox.push(message);
        }
    }

    /// All sessions.
    pub(super) fn all_keys(&mut self) -> Vec<SessionKey> {
        self.adopted = Vec::new();
        self.slots.iter().map(|(key, _)| key).collect()
    }

    /// Reads a session again that was quiesced for a time of `quiesced`: the readiness of its socket is reported once
    /// more.
    pub(super) fn resume_session(&mut self, key: SessionKey, quiesced: Millis, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.session.quiesced(quiesced);
        if !slot.has_socket() {
            return;
        }
        let wants = slot.wants();
        if let Some(socket) = slot.connection.socket()
            && let Err(error) = self.registrar.change(socket.as_fd(), key, wants)
        {
            tracing::warn!(%error, "the kernel stopped watching a WebSocket ({error}), so webws closes it");
            return self.apply(key, Action::End(CloseReason::Internal), now);
        }
        slot.registered = wants;
        // No event reports bytes that were read and kept.
        self.read_again(key);
        if self.orphaned.remove(&key) {
            self.close(key, CloseReason::GoingAway, now);
        } else {
            self.apply(key, Action::Stay, now);
        }
    }
}

/// A message in an outbox, as data for another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MessageSnapshot {
    /// The index of its session in the same snapshot; none when the client has left.
    session: Option<usize>,
    channel: ByteBuf,
    payload: ByteBuf,
    ago: Millis,
}

impl MessageSnapshot {
    /// The approximate size in a message of the hand-over, in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.channel.len() + self.payload.len()
    }

    pub(super) fn of(message: &ClientMessage, places: &HashMap<SessionKey, usize>, now: Millis) -> Self {
        let session = match &message.origin {
            Origin::Session(key) => places.get(key).copied(),
            Origin::Publisher(_) => None,
        };
        let (channel, payload) = (ByteBuf::from(&*message.channel), ByteBuf::from(&*message.payload));
        Self { session, channel, payload, ago: now.saturating_sub(message.since) }
    }
}
