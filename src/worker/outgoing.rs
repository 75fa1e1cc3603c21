//! The two hot paths through a worker: client messages into the outbox, and the hub's batches to sockets. May not
//! enter: the order of turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use bytes::Bytes;

use super::slots::{Slot, Slots};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::message::{ClientMessage, Origin};
use crate::metrics::{Counter, Shard};
use crate::protocol::hub::Outlet;
use crate::protocol::outbound::Batch;
use crate::protocol::outbox::Outbox;
use crate::protocol::session::{Action, Payload, Publish, Queued, Rejected};
use crate::protocol::socket::Socket;

/// One session's access to the outbox.
pub(super) struct Outgoing<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) shard: &'a Shard,
    pub(super) key: SessionKey,
    pub(super) now: Millis,
}

impl Publish for Outgoing<'_> {
    fn publish(&mut self, channel: &Channel, payload: Payload<'_>) -> Queued {
        let bytes = match payload {
            Payload::Text(text) => text,
            Payload::Binary(bytes) => {
                self.shard.add(Counter::BinariesTaken, 1);
                bytes
            }
        };
        let payload = Bytes::copy_from_slice(bytes);
        let origin = Origin::Session(self.key);
        let message = ClientMessage { channel: channel.clone(), payload, origin, since: self.now };
        let bytes = message.cost();
        self.outbox.push(message);
        Queued { bytes, allowance: self.outbox.allowance(self.outbox.node_of(channel)) }
    }

    fn reject(&mut self, rejected: Rejected) {
        match rejected {
            Rejected::IgnoredBinary => self.shard.add(Counter::BinariesIgnored, 1),
            Rejected::Closes(CloseReason::BinaryRefused) => self.shard.add(Counter::BinariesRefused, 1),
            Rejected::Closes(_) => {}
        }
    }
}

/// The receiver of the hub's batches.
pub(super) struct Delivery<'a> {
    pub(super) slots: &'a mut Slots,
    /// The actions of sessions, carried out after the flush.
    pub(super) unsettled: &'a mut Vec<(SessionKey, Action)>,
    pub(super) now: Millis,
}

impl Outlet for Delivery<'_> {
    fn deliver(&mut self, key: SessionKey, frames: &mut Batch<'_>) {
        let slot = self.slots.get_mut(key);
        debug_assert!(slot.is_some(), "a session leaves the hub before its slot");
        let Some(slot) = slot else { return };
        // One session's panic must not keep the batch from the other sessions.
        let Slot { session, connection, .. } = slot;
        let action = catch_unwind(AssertUnwindSafe(|| session.deliver(frames, connection, self.now)))
            .unwrap_or(Action::End(CloseReason::Internal));
        if action != Action::Stay || slot.wants() != slot.registered {
            self.unsettled.push((key, action));
        }
    }

    fn is_behind(&mut self, key: SessionKey) -> bool {
        self.slots.get_mut(key).is_some_and(|slot| slot.connection.untaken_bytes() > 0)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
