//! What the broker's events about channels and streams change in the core: confirmed, refused, lost, placed, moved,
//! continued. May not enter: sockets, client messages.

use super::core::Core;
use super::slots::Slot;
use crate::channel::SubscriptionRefused;
use crate::clock::Millis;
use crate::config::GapPolicy;
use crate::id::{SessionKey, SubscriberId};
use crate::placement::{Moved, Node};
use crate::position::Milestone;

/// What clients are told after a gap.
const GAP: &str = "messages may be missing: a link to Redis was away";

impl Core {
    /// The broker has confirmed `channel` at `node`. Returns whether the channel is still wanted there.
    pub(super) fn on_subscribed(&mut self, node: Node, channel: &[u8], now: Millis) -> bool {
        let Some(awaiting) = self.hub.confirm(node, channel) else { return false };
        if self.hub.is_ready(channel) {
            self.tell_reserving(channel, &Ok(()));
        }
        self.on_ready_to_open(awaiting, now);
        true
    }

    /// A milestone was heard in the stream of `node`.
    pub(super) fn on_milestone(&mut self, node: Node, milestone: Milestone, now: Millis) {
        let awaiting = self.hub.on_milestone(node, milestone, now);
        self.tell_placed();
        self.on_ready_to_open(awaiting, now);
    }

    /// The stream of `node` was continued up to the milestone `until`.
    pub(super) fn end_replay(&mut self, node: Node, until: Milestone, now: Millis) {
        let awaiting = self.hub.end_replay(node, until, now);
        self.tell_placed();
        self.on_ready_to_open(awaiting, now);
    }

    /// The stream of `node` cannot be continued.
    pub(super) fn give_up_replay(&mut self, node: Node, now: Millis) {
        let awaiting = self.hub.give_up_replay(node);
        self.tell_placed();
        self.on_ready_to_open(awaiting, now);
    }

    /// There are no milestones at `node`.
    pub(super) fn without_milestones(&mut self, node: Node, now: Millis) {
        let awaiting = self.hub.without_milestones(node);
        self.tell_placed();
        self.on_ready_to_open(awaiting, now);
    }

    /// The channels of these subscribers are confirmed, and placed if they have a history.
    fn on_ready_to_open(&mut self, awaiting: Vec<(SessionKey, SubscriberId)>, now: Millis) {
        for (key, subscriber) in awaiting {
            self.guarded(key, now, |core| {
                let Some(slot) = core.slots.get_mut(key) else { return };
                let action = slot.session.on_subscribed(subscriber);
                core.apply(key, action, now);
            });
        }
    }

    /// The broker does not allow `channel`.
    pub(super) fn on_refused(&mut self, channel: &[u8], refused: SubscriptionRefused, now: Millis) {
        self.tell_reserving(channel, &Err(refused));
        for key in self.hub.refuse(channel) {
            self.guarded(key, now, |core| {
                let Some(slot) = core.slots.get_mut(key) else { return };
                let action = slot.session.on_refused(&mut slot.connection, now);
                core.apply(key, action, now);
            });
        }
    }

    /// The subscriptions at a node are lost; returns their number.
    pub(super) fn lose(&mut self, node: Node, is_cut: bool) -> usize {
        self.hub.unconfirm_all(node, self.slots.newest(), is_cut)
    }

    /// The subscription to one channel is lost; returns whether it was confirmed.
    pub(super) fn lose_one(&mut self, node: Node, channel: &[u8]) -> bool {
        self.hub.unconfirm(node, channel, self.slots.newest())
    }

    /// All sessions have missed publications.
    pub(super) fn miss_all(&mut self) {
        self.hub.miss_all(self.slots.newest());
    }

    /// Channels have moved to other nodes; returns those to subscribe there.
    pub(super) fn follow_placement(&mut self) -> Vec<Moved> {
        // The messages of a held session may go to another node now.
        let held = self.held.iter_mut().map(|(_, held)| held).chain([&mut self.held_unplaced]);
        let held = held.flat_map(std::mem::take).collect();
        self.release(held);
        self.held.grow(self.placement.count(), |_| Vec::new());
        self.outbox.follow_placement();
        self.hub.follow_placement(self.slots.newest())
    }

    /// A gap at `node` has ended. Tells the clients that were subscribed before it, if their encoding can. Returns the
    /// number of its channels, and the sessions of these clients to close because of the gap.
    pub(super) fn end_gap(&mut self, node: Node, now: Millis) -> (usize, Vec<SessionKey>) {
        let (channels, missed) = self.hub.take_missed(node);
        let before = missed.into_iter().filter(|(key, newest)| key.is_up_to(*newest)).map(|(key, _)| key);
        let before: Vec<_> = before.collect();
        for key in &before {
            self.guarded(*key, now, |core| {
                let Some(slot) = core.slots.get_mut(*key) else { return };
                let action = slot.session.on_gap(GAP, &mut slot.connection, now);
                core.apply(*key, action, now);
            });
        }
        let slots = &mut self.slots;
        let is_closed = |key: &SessionKey| {
            slots.get_mut(*key).is_some_and(|Slot { session, .. }| {
                session.may_miss() && session.endpoint.config.on_gap == GapPolicy::Close
            })
        };
        (channels, before.into_iter().filter(is_closed).collect())
    }
}
