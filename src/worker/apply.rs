//! Carries out the actions of sessions ([`Core::apply`]), and confines a panic to its session. May not enter: the
//! decisions of a session.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;

use super::core::Core;
use super::opening::{Hello, Opening, Refusal};
use super::outgoing::Outgoing;
use super::reactor::Wants;
use super::read_back::ReadBack;
use super::slots::Connection;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::notice;
use crate::protocol::hub::Keep;
use crate::protocol::session::{Action, Session};
use crate::throttle::Throttle;

impl Core {
    /// Makes a session of a connection whose request was accepted; [`Core::begin`] subscribes the session. The client
    /// is refused when the subscription is not confirmed by `until`.
    pub(super) fn admit(&mut self, opening: Box<Opening>, until: Millis, now: Millis) -> SessionKey {
        let key = self.insert(Session::new(opening.grant.clone(), until, now));
        let slot = self.slots.get_mut(key).expect("it was just inserted");
        slot.connection = Connection::Handshake(Some(opening));
        key
    }

    /// Subscribes a session. From the confirmation on, publications are kept for the session, and
    /// [`Core::take_upgrades`] returns it.
    pub(super) fn begin(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let action = slot.session.begin();
        self.apply(key, action, now);
    }

    /// Gives a session the socket of its handshake: the session sends the 101 first, and reads first the bytes behind
    /// the request.
    pub(super) fn open(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let Some(opening) = slot.connection.take_opening() else { return };
        self.shard.add(Counter::SessionsOpened, 1);
        let Hello { socket, head, mut read_ahead } = opening.hello;
        slot.registered = Wants::Read;
        if let Err(error) = self.registrar.add(socket.as_fd(), key, slot.registered) {
            tracing::error!(
                %error,
                "the kernel cannot watch a WebSocket ({error}), so webws closes it: raise fs.epoll.max_user_watches \
                 or add memory"
            );
            return self.apply(key, Action::End(CloseReason::Internal), now);
        }
        self.open_on(key, Connection::Socket(socket), &head, &mut read_ahead, now);
    }

    /// Opens a session on its connection.
    pub(super) fn open_on(
        &mut self,
        key: SessionKey,
        connection: Connection,
        head: &[u8],
        read_ahead: &mut [u8],
        now: Millis,
    ) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.connection = connection;
        let mut action = slot.session.open(head, &mut slot.connection, now);
        if action == Action::Stay && !read_ahead.is_empty() {
            let mut outgoing = Outgoing { outbox: &mut self.outbox, shard: &self.shard, key, now };
            action = slot.session.decode(read_ahead, &mut slot.connection, now, &mut outgoing);
        }
        self.apply(key, action, now);
    }

    /// Refuses the clients whose handshakes wait for a subscription.
    pub(super) fn refuse_handshakes(&mut self, refusal: &Refusal, now: Millis) {
        let waiting = self.slots.iter().filter(|(_, slot)| !slot.has_socket());
        let waiting: Vec<_> = waiting.map(|(key, _)| key).collect();
        for key in waiting {
            self.refuse(key, refusal.clone(), now);
        }
    }

    pub(super) fn refuse(&mut self, key: SessionKey, refusal: Refusal, now: Millis) {
        if let Some(opening) = self.slots.get_mut(key).and_then(|slot| slot.connection.take_opening()) {
            opening.refuse(refusal);
        }
        self.remove(key, now);
    }

    /// Closes a session, unless a close is under way.
    pub(super) fn close(&mut self, key: SessionKey, reason: CloseReason, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let action = slot.session.close(reason, &mut slot.connection, now);
        self.apply(key, action, now);
    }

    /// Carries out the action of a transition, and updates the registration of the socket and the timer.
    pub(super) fn apply(&mut self, key: SessionKey, action: Action, now: Millis) {
        match action {
            Action::Stay => {}
            Action::Subscribe => return self.subscribe(key, now),
            Action::Recover => return self.recover(key, now),
            Action::Answer => return self.answer_poll(key, now),
            Action::Upgrade => self.upgrades.push(key),
            Action::Refuse(denial) => return self.refuse(key, denial.into(), now),
            Action::ReadAgain => self.read_again(key),
            Action::Close(reason) => {
                if reason == CloseReason::NotPublished {
                    self.outbox.abandon(key);
                }
                self.unsubscribe(key, now);
                // The session may have been paused, and its readiness reported long ago.
                self.read_again(key);
            }
            Action::End(reason) => return self.end(key, reason, now),
        }
        self.watch(key, now);
    }

    /// Gives a session its entries in the hub.
    fn subscribe(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let keep = Keep::of(&slot.session.endpoint.config);
        while let Some(subscription) = slot.session.next_to_join() {
            if let Some(keep) = keep {
                self.hub.keep(&subscription.channel, keep);
            }
            let joined = self.hub.join(&subscription.channel, subscription.encoding, key);
            if joined.is_first {
                self.wanted.push((joined.node, joined.channel.clone()));
            }
            subscription.on_joined(joined.subscriber, joined.channel, joined.is_confirmed);
        }
        let action = slot.session.on_joined();
        self.apply(key, action, now);
    }

    /// Gives a session what its client missed, or asks for it elsewhere first.
    fn recover(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if let Some(since) = slot.connection.since() {
            let channel = slot.session.channel().clone();
            if !self.can_recover(key, &since) {
                self.read_backs.push(ReadBack::new(key, channel, since));
                return self.watch(key, now);
            }
        }
        self.give_recovered(key, now);
    }

    /// Gives a session what its client gets before all that follows: what the client missed, and its position.
    pub(super) fn give_recovered(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.session.is_to_recover()) else { return };
        let since = slot.connection.since();
        let subscribers = slot.session.subscribers();
        // What waits in batches is in the histories, too.
        subscribers.iter().for_each(|subscriber| self.hub.release_batch(*subscriber));
        self.flush(now);
        if self.slots.get_mut(key).is_some_and(|slot| slot.session.is_poll()) {
            return self.give_polled(key, now);
        }
        let mut frames = BytesMut::new();
        for subscriber in subscribers {
            let recovery = self.hub.recover(subscriber, since, &mut frames);
            self.count_recovery(recovery);
        }
        let Some(slot) = self.slots.get_mut(key) else { return };
        let action = slot.session.on_recovered(&frames, &mut slot.connection, now);
        self.apply(key, action, now);
    }

    fn unsubscribe(&mut self, key: SessionKey, now: Millis) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.session.unsubscribe().for_each(|subscriber| self.hub.leave(subscriber, now));
        }
    }

    fn end(&mut self, key: SessionKey, reason: CloseReason, now: Millis) {
        if self.slots.get_mut(key).is_none() {
            return;
        }
        if reason == CloseReason::NotPublished {
            self.outbox.abandon(key);
        }
        self.shard.add(Counter::SessionsClosed(reason), 1);
        notice::session_closed(reason);
        self.remove(key, now);
    }

    /// Updates the registration of a session's socket, and its timer.
    fn watch(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let wants = slot.wants();
        if wants != slot.registered {
            if let Some(socket) = slot.connection.socket()
                && let Err(error) = self.registrar.change(socket.as_fd(), key, wants)
            {
                tracing::warn!(%error, "the kernel stopped watching a WebSocket ({error}), so webws closes it");
                return self.apply(key, Action::End(CloseReason::Internal), now);
            }
            slot.registered = wants;
        }
        let due = slot.session.next_due();
        if due < slot.due {
            slot.due = due;
            self.wheel.schedule(key, due);
        }
    }

    /// Forgets a session, and closes its socket.
    pub(super) fn remove(&mut self, key: SessionKey, now: Millis) {
        self.unsubscribe(key, now);
        self.slots.remove(key);
        self.shard.set_sessions(self.slots.len());
    }

    /// Confines the fault of one session: a panic in `act` ends that session only.
    pub(super) fn guarded(&mut self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Self)) {
        static PANICKED: Throttle = Throttle::per_minute();
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            if PANICKED.allows() {
                tracing::error!(
                    "a panic in one session: its WebSocket is closed with 1011, and all others continue; please \
                     report the panic"
                );
            }
            self.apply(key, Action::End(CloseReason::Internal), now);
        }
    }
}
