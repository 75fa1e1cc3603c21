//! The beginning of a session: its subscriptions, the broker's confirmation, its 101.

use super::action::{Action, Denial};
use super::state::{Phase, Session};
use super::subscription::Subscription;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SubscriberId;
use crate::protocol::socket::Socket;

impl Session {
    /// Starts a handshake, or a session that came from another process.
    pub(crate) fn begin(&mut self) -> Action {
        if self.next_to_join().is_some() { Action::Subscribe } else { self.upgrade_if_subscribed() }
    }

    /// A subscription that waits for its entry in the hub ([`Subscription::on_joined`]).
    pub(crate) fn next_to_join(&mut self) -> Option<&mut Subscription> {
        if self.is_closing() {
            return None;
        }
        self.subscriptions.iter_mut().find(|subscription| subscription.is_to_join())
    }

    /// All its subscriptions have their entries in the hub.
    pub(crate) fn on_joined(&mut self) -> Action {
        debug_assert!(self.next_to_join().is_none());
        self.upgrade_if_subscribed()
    }

    /// The broker confirmed the channel of one of its subscriptions.
    pub(crate) fn on_subscribed(&mut self, subscriber: SubscriberId) -> Action {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.on_confirmed(subscriber));
        self.upgrade_if_subscribed()
    }

    fn upgrade_if_subscribed(&mut self) -> Action {
        let is_subscribed = self.subscriptions.iter().all(Subscription::is_settled);
        if !is_subscribed || !matches!(self.phase, Phase::Subscribing { .. }) {
            return Action::Stay;
        }
        self.phase = Phase::Opening;
        Action::Upgrade
    }

    /// The broker does not allow one of its channels.
    pub(crate) fn on_refused(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        match self.phase {
            Phase::Subscribing { .. } => Action::Refuse(Denial::NotAllowed),
            _ => self.close(CloseReason::SubscriptionLost, socket, now),
        }
    }

    /// Gives it a socket. `head`, the 101, is sent first, then the publications that wait.
    pub(crate) fn open(&mut self, head: &[u8], socket: &mut impl Socket, now: Millis) -> Action {
        debug_assert_eq!(self.phase, Phase::Opening, "the 101 leaves once, after the confirmation");
        // A socket that has not sent a byte takes the few of a head, or it is broken.
        if socket.send(head).ok() != Some(head.len()) {
            return Action::End(CloseReason::ClientGone);
        }
        self.phase = Phase::Open;
        (self.heard_at, self.pinged_at, self.alive_at) = (now, now, now);
        if let Some(queue) = &mut self.outbound {
            // Until now there was no socket that could take anything.
            queue.progress_at = now;
        }
        self.on_writable(socket, now)
    }

    /// Takes its entries in the hub, which has none for it from now on.
    pub(crate) fn unsubscribe(&mut self) -> impl Iterator<Item = SubscriberId> {
        self.subscriptions.iter_mut().filter_map(Subscription::take_subscriber)
    }
}
