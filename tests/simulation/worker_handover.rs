//! The part of a simulated worker that hands over and takes over. Stands in for `handover.rs` and for the part of
//! `snapshot.rs` that has descriptors.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::super::slots::Connection;
use super::super::snapshot::MessageSnapshot;
use super::{SharedSocket, Simulated};
use crate::broker::Request;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::SessionKey;
use crate::protocol::hub::{HistoryCursor, Keep};
use crate::protocol::session::snapshot::SessionSnapshot;

/// A worker as data, in the bytes that the hand-over would send.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    sessions: Vec<(SessionKey, Vec<u8>, SharedSocket)>,
    messages: Vec<Vec<u8>>,
}

impl Simulated {
    /// The channels that sessions listen to.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        self.core.hub.channels_in_use()
    }

    /// Subscribes channels whose sessions are to come.
    pub(crate) fn reserve(&mut self, channels: &[Channel]) {
        for channel in channels {
            let keep = Keep::widest(self.endpoints.iter().map(|endpoint| &endpoint.config), channel);
            self.reserving.extend(self.core.reserve(channel, keep));
        }
        self.after_change();
    }

    /// Whether they are subscribed; `None` when one is refused.
    pub(crate) fn has_reserved(&mut self) -> Option<bool> {
        let mut is_refused = false;
        self.reserving.retain_mut(|told| match told.try_recv() {
            Ok(Ok(())) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {
                is_refused = true;
                false
            }
        });
        (!is_refused).then_some(self.reserving.is_empty())
    }

    /// Gives another worker all histories, as the hand-over would send them.
    pub(crate) fn give_histories(&self, to: &mut Self, now: Millis) {
        let mut next = Some(HistoryCursor::default());
        while let Some(from) = next {
            let (part, behind) = self.core.hub.histories(from, now);
            let bytes = rmp_serde::to_vec_named(&part).expect("a part is data");
            to.core.hub.adopt_histories(rmp_serde::from_slice(&bytes).expect("it was written so"), now);
            next = behind;
        }
    }

    /// Whether it stands still.
    pub(crate) fn is_still(&self) -> bool {
        self.still_since.is_some()
    }

    /// Whether handshakes are under way.
    pub(crate) fn has_handshakes(&self) -> bool {
        !self.waiting.is_empty() || self.core.slots.iter().any(|(_, slot)| !slot.has_socket())
    }

    /// Stands still.
    pub(crate) fn quiesce(&mut self, now: Millis) {
        self.still_since = self.still_since.or(Some(now));
    }

    /// Whether the broker has answered for all messages that it has, and no client is being told of a gap.
    pub(crate) fn is_settled(&self) -> bool {
        !self.core.outbox.has_in_flight() && self.gapped.is_empty()
    }

    /// The worker as data; nothing may be sent from now on that the data does not have.
    pub(crate) fn collect(&mut self, now: Millis) -> Moving {
        self.core.hub.stop_pacing();
        self.flush(now);
        self.is_frozen = true;
        let (mut moving, mut places) = (Moving::default(), HashMap::new());
        for (key, slot) in self.core.slots.iter() {
            let (Some(snapshot), Connection::Memory(socket)) = (slot.session.snapshot(now), &slot.connection) else {
                continue;
            };
            places.insert(key, moving.sessions.len());
            let bytes = rmp_serde::to_vec_named(&snapshot).expect("a snapshot is data");
            moving.sessions.push((key, bytes, socket.clone()));
        }
        let messages = self.core.outbox.iter().map(|message| MessageSnapshot::of(message, &places, now));
        moving.messages =
            messages.map(|message| rmp_serde::to_vec_named(&message).expect("a snapshot is data")).collect();
        moving
    }

    /// Becomes what another worker was. Returns the new key of each session.
    pub(crate) fn adopt(&mut self, moving: Moving, now: Millis) -> Vec<(SessionKey, SessionKey)> {
        self.still_since = Some(now);
        let mut keys = Vec::new();
        for (before, bytes, socket) in moving.sessions {
            let snapshot: SessionSnapshot = rmp_serde::from_slice(&bytes).expect("it was written so");
            let adopted = self.core.adopt_session(snapshot, &self.endpoints, Connection::Memory(socket), now);
            keys.push((before, adopted.expect("a session's own snapshot is one")));
        }
        let messages = moving.messages.iter().map(|bytes| rmp_serde::from_slice(bytes).expect("it was written so"));
        self.core.adopt_messages(messages.collect(), now);
        self.after_change();
        keys
    }

    /// Goes on.
    pub(crate) fn resume(&mut self, now: Millis) {
        let quiesced = now - self.still_since.take().unwrap_or(now);
        self.is_frozen = false;
        self.core.free_reserved(now);
        self.reserving.clear();
        self.core.outbox.extend_deadlines(quiesced);
        for key in self.core.all_keys() {
            self.core.guarded(key, now, |core| core.resume_session(key, quiesced, now));
        }
        self.requests.push(Request::Release);
        self.after_change();
        self.flush(now);
    }
}
