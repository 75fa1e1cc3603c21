//! The start of a session: its subscriptions, the broker's confirmation, its 101. May not enter: HTTP, the hub.

use smallvec::SmallVec;

use super::action::{Action, Denial};
use super::state::{Phase, Session};
use super::subscription::Subscription;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SubscriberId;
use crate::protocol::outbound::Batch;
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

    /// All subscriptions have their entries in the hub.
    pub(crate) fn on_joined(&mut self) -> Action {
        debug_assert!(self.next_to_join().is_none());
        self.upgrade_if_subscribed()
    }

    /// The broker has confirmed a subscription's channel.
    pub(crate) fn on_subscribed(&mut self, subscriber: SubscriberId) -> Action {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.on_confirmed(subscriber));
        self.upgrade_if_subscribed()
    }

    fn upgrade_if_subscribed(&mut self) -> Action {
        let is_subscribed = self.subscriptions.iter().all(Subscription::is_settled);
        if !is_subscribed || !matches!(self.phase, Phase::Subscribing { .. }) {
            return Action::Stay;
        }
        if self.encoding.has_positions() {
            return Action::Recover;
        }
        self.phase = Phase::Opening;
        Action::Upgrade
    }

    /// The session's entries in the hub.
    pub(crate) fn subscribers(&self) -> SmallVec<[SubscriberId; 1]> {
        self.subscriptions.iter().filter_map(Subscription::subscriber).collect()
    }

    /// Whether the session waits for what its client missed.
    pub(crate) fn is_to_recover(&self) -> bool {
        let is_subscribed = self.subscriptions.iter().all(Subscription::is_settled);
        is_subscribed && matches!(self.phase, Phase::Subscribing { .. })
    }

    /// `frames` is what the client gets before any publication that follows.
    pub(crate) fn on_recovered(&mut self, frames: &[u8], socket: &mut impl Socket, now: Millis) -> Action {
        debug_assert!(matches!(self.phase, Phase::Subscribing { .. }), "a session recovers once, before it opens");
        self.phase = Phase::Opening;
        if !frames.is_empty()
            && let Err(unsent) = self.push(&mut Batch::new(frames), socket, now)
        {
            return self.on_unsent(unsent, socket, now);
        }
        Action::Upgrade
    }

    /// The broker has refused a subscription.
    pub(crate) fn on_refused(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        match self.phase {
            Phase::Subscribing { .. } => Action::Refuse(Denial::NotAllowed),
            _ => self.close(CloseReason::SubscriptionLost, socket, now),
        }
    }

    /// Opens the session on a socket. Sends `head`, the 101, and then the waiting publications.
    pub(crate) fn open(&mut self, head: &[u8], socket: &mut impl Socket, now: Millis) -> Action {
        debug_assert_eq!(self.phase, Phase::Opening, "the 101 leaves once, after the confirmation");
        // A socket that has not sent a byte takes a whole head, or is broken.
        if socket.send(head).ok() != Some(head.len()) {
            return Action::End(CloseReason::ClientGone);
        }
        self.phase = Phase::Open;
        (self.heard_at, self.pinged_at, self.alive_at) = (now, now, now);
        if let Some(queue) = &mut self.outbound {
            // No socket could take bytes before, so the client has not stalled.
            queue.progress_at = now;
        }
        if self.is_poll() {
            return self.on_opened(socket, now);
        }
        self.on_writable(socket, now)
    }

    /// Takes the session's entries in the hub, for the caller to remove from the hub.
    pub(crate) fn unsubscribe(&mut self) -> impl Iterator<Item = SubscriberId> {
        self.subscriptions.iter_mut().filter_map(Subscription::take_subscriber)
    }
}
