//! The one place where what sessions ask is carried out ([`Core::apply`]), and where a session's fault stops.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::core::Core;
use super::outgoing::Outgoing;
use super::reactor::Wants;
use super::slots::Connection;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::notice;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::session::{Action, Denial, Session};
use crate::throttle::Throttle;

impl Core {
    /// Makes a session whose handshake waits for its subscription until `until`, and subscribes it: its publications
    /// wait for it from the confirmation on. The answer comes by the returned receiver; `None` when the session can
    /// have its socket now ([`Core::attach`]).
    pub(super) fn admit(
        &mut self,
        endpoint: &Rc<Endpoint>,
        channel: Channel,
        encoding: Encoding,
        until: Millis,
        now: Millis,
    ) -> (SessionKey, Option<oneshot::Receiver<Result<(), Denial>>>) {
        let mut session = Session::new(endpoint.clone(), channel, encoding, until, now);
        let action = session.begin();
        let key = self.insert(session);
        self.apply(key, action, now);
        let slot = self.slots.get_mut(key).expect("it was inserted, and a handshake that begins does not end");
        let told = slot.session.is_subscribing().then(|| {
            let (tell, told) = oneshot::channel();
            slot.connection = Connection::Handshake(Some(tell));
            told
        });
        (key, told)
    }

    /// Gives a session its socket, which the handshake had: `head`, the 101, is sent first, and `read_ahead`, the
    /// bytes behind the request, are read first.
    pub(super) fn attach(&mut self, key: SessionKey, socket: OwnedFd, head: &[u8], read_ahead: &[u8], now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.registered = Wants::Read;
        if let Err(error) = self.registrar.add(socket.as_fd(), key, slot.registered) {
            tracing::error!(
                %error,
                "a WebSocket cannot be watched ({error}) and is closed: raise fs.epoll.max_user_watches or add memory"
            );
            return self.apply(key, Action::End(CloseReason::Internal), now);
        }
        self.open(key, Connection::Socket(socket), head, read_ahead, now);
    }

    /// Opens a session on its connection.
    pub(super) fn open(
        &mut self,
        key: SessionKey,
        connection: Connection,
        head: &[u8],
        read_ahead: &[u8],
        now: Millis,
    ) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.connection = connection;
        let mut action = slot.session.open(head, &mut slot.connection, now);
        if action == Action::Stay && !read_ahead.is_empty() {
            let mut outgoing = Outgoing { outbox: &mut self.outbox, shard: &self.shard, key, now };
            action = slot.session.decode(&mut read_ahead.to_vec(), &mut slot.connection, now, &mut outgoing);
        }
        self.apply(key, action, now);
    }

    /// Closes a session, unless a close is under way.
    pub(super) fn close(&mut self, key: SessionKey, reason: CloseReason, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let action = slot.session.close(reason, &mut slot.connection, now);
        self.apply(key, action, now);
    }

    /// Carries out what a transition asks, and brings registration and timer up to date.
    pub(super) fn apply(&mut self, key: SessionKey, action: Action, now: Millis) {
        match action {
            Action::Stay => {}
            Action::Subscribe => return self.subscribe(key, now),
            Action::Upgrade => {
                if let Some(slot) = self.slots.get_mut(key) {
                    slot.connection.answer(Ok(()));
                }
            }
            Action::Refuse(denial) => {
                if let Some(slot) = self.slots.get_mut(key) {
                    slot.connection.answer(Err(denial));
                }
                return self.remove(key, now);
            }
            Action::ReadAgain => self.read_again(key),
            Action::Close(reason) => {
                if reason == CloseReason::NotPublished {
                    self.outbox.abandon(key);
                }
                self.unsubscribe(key, now);
                // It may have been paused, and what it has to read told long ago.
                self.read_again(key);
            }
            Action::End(reason) => return self.end(key, reason, now),
        }
        self.watch(key, now);
    }

    /// Gives a session its entries in the hub.
    fn subscribe(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        while let Some(subscription) = slot.session.next_to_join() {
            let joined = self.hub.join(&subscription.channel, subscription.encoding, key);
            if joined.is_first {
                self.wanted.push((joined.node, joined.channel.clone()));
            }
            subscription.on_joined(joined.subscriber, joined.channel, joined.is_confirmed);
        }
        let action = slot.session.on_joined();
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

    /// Brings the registration of a session's socket and its timer up to date.
    fn watch(&mut self, key: SessionKey, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let wants = slot.wants();
        if wants != slot.registered {
            if let Some(socket) = slot.connection.socket()
                && let Err(error) = self.registrar.change(socket.as_fd(), key, wants)
            {
                tracing::warn!(%error, "a WebSocket cannot be watched any more ({error}) and is closed");
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

    /// Keeps the fault of one session from the others: a panic in `act` ends that session.
    pub(super) fn guarded(&mut self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Self)) {
        static PANICKED: Throttle = Throttle::per_minute();
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            if PANICKED.allows() {
                tracing::error!(
                    "a panic in one session: its WebSocket is closed with 1011, the others go on; please report it"
                );
            }
            self.apply(key, Action::End(CloseReason::Internal), now);
        }
    }
}
