//! Clients that poll: what they are answered at once, and when they have waited long enough. May not enter: the answers
//! themselves (`session/poll.rs`).

use bytes::BytesMut;

use super::core::Core;
use super::opening::Refusal;
use crate::clock::Millis;
use crate::id::SessionKey;
use crate::protocol::hub::Recovery;
use crate::protocol::session::Polled;

impl Core {
    /// Answers a client with what it missed, or lets it wait. All batches were flushed.
    pub(super) fn give_polled(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let (since, max_bytes) = (slot.connection.since(), slot.session.endpoint.config.max_queue_bytes);
        let Some(subscriber) = slot.session.subscribers().first().copied() else { return };
        let mut elements = BytesMut::new();
        let caught = self.hub.catch_up(subscriber, since.as_ref(), max_bytes, &mut elements);
        let Some(next) = caught.next else { return self.refuse(key, Refusal::NoPositions, now) };
        // Nearly every poll shows a position, and most have missed nothing.
        if caught.recovery != (Recovery::Complete { publications: 0 }) {
            self.count_recovery(caught.recovery);
        }
        let has_gap = matches!(caught.recovery, Recovery::Incomplete | Recovery::Rest { .. });
        let polled = Polled { next, is_up_to_date: caught.is_up_to_date, has_gap };
        let Some(slot) = self.slots.get_mut(key) else { return };
        let action = slot.session.on_polled(polled, &elements, &mut slot.connection, now);
        self.apply(key, action, now);
    }

    /// Answers a client that has waited long enough.
    pub(super) fn answer_poll(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let subscriber = slot.session.subscribers().first().copied();
        if let Some(subscriber) = subscriber {
            self.hub.release_batch(subscriber);
            self.flush(now);
        }
        let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.session.is_open()) else { return };
        let tail = subscriber.and_then(|subscriber| self.hub.tail(subscriber));
        let action = slot.session.on_waited(tail, &mut slot.connection, now);
        self.apply(key, action, now);
    }
}
