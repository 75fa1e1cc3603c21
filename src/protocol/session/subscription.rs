//! One channel of a session: how its publications are encoded, what the client may do, its entry in the hub. May not
//! enter: the other channels of the session, the hub.

use crate::channel::Channel;
use crate::config::EndpointConfig;
use crate::id::SubscriberId;
use crate::protocol::encoding::Encoding;

/// A channel of a session.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) channel: Channel,
    pub(crate) encoding: Encoding,
    pub(crate) rights: Rights,
    state: State,
}

/// What a client may do on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) may_receive: bool,
    pub(crate) may_publish: bool,
}

/// The state of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without an entry in the hub.
    Apart,
    /// In the hub; the broker has not confirmed the channel.
    Requested(SubscriberId),
    /// In the hub; the broker has confirmed the channel. If the broker loses it later, that is a gap, not a state here.
    Confirmed(SubscriberId),
}

impl Rights {
    /// The rights that an endpoint grants to its clients.
    pub(crate) fn of(config: &EndpointConfig) -> Self {
        Self { may_receive: config.subscribe, may_publish: config.publish }
    }
}

impl Subscription {
    pub(crate) fn new(channel: Channel, encoding: Encoding, rights: Rights) -> Self {
        Self { channel, encoding, rights, state: State::Apart }
    }

    /// The hub has made an entry. `channel` is the channel's name, shared by all subscribers.
    pub(crate) fn on_joined(&mut self, subscriber: SubscriberId, channel: Channel, is_confirmed: bool) {
        debug_assert_eq!(self.state, State::Apart, "a subscription has one entry in the hub");
        debug_assert_eq!(self.channel, channel);
        self.channel = channel;
        self.state = if is_confirmed { State::Confirmed(subscriber) } else { State::Requested(subscriber) };
    }

    /// The broker has confirmed the channel of `subscriber`, which may be this subscription.
    pub(super) fn on_confirmed(&mut self, subscriber: SubscriberId) {
        if self.state == State::Requested(subscriber) {
            self.state = State::Confirmed(subscriber);
        }
    }

    /// The key of the entry in the hub, while there is one.
    pub(crate) fn subscriber(&self) -> Option<SubscriberId> {
        match self.state {
            State::Apart => None,
            State::Requested(subscriber) | State::Confirmed(subscriber) => Some(subscriber),
        }
    }

    /// Takes the key of the entry in the hub, for the caller to remove the entry.
    pub(super) fn take_subscriber(&mut self) -> Option<SubscriberId> {
        match std::mem::replace(&mut self.state, State::Apart) {
            State::Apart => None,
            State::Requested(subscriber) | State::Confirmed(subscriber) => Some(subscriber),
        }
    }

    /// Whether the subscription waits for an entry in the hub.
    pub(super) fn is_to_join(&self) -> bool {
        self.rights.may_receive && self.state == State::Apart
    }

    /// Whether publications arrive, or none are wanted.
    pub(super) fn is_settled(&self) -> bool {
        !self.rights.may_receive || matches!(self.state, State::Confirmed(_))
    }
}
