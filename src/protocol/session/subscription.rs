//! One channel of a session: how its publications are encoded, what the client may do, its entry in the hub.

use crate::channel::Channel;
use crate::config::EndpointConfig;
use crate::id::SubscriberId;
use crate::protocol::encoding::Encoding;

/// A channel that a session takes part in.
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

/// How far a subscription has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The hub has no entry for it.
    Apart,
    /// The hub has one; the broker has not confirmed the channel.
    Asked(SubscriberId),
    /// The broker has confirmed it. A later loss of the broker's subscription is a gap, not a state of the session.
    Confirmed(SubscriberId),
}

impl Rights {
    /// What an endpoint grants to its clients.
    pub(crate) fn of(config: &EndpointConfig) -> Self {
        Self { may_receive: config.subscribe, may_publish: config.publish }
    }
}

impl Subscription {
    pub(crate) fn new(channel: Channel, encoding: Encoding, rights: Rights) -> Self {
        Self { channel, encoding, rights, state: State::Apart }
    }

    /// The hub has an entry for it now. `channel` is the name of which all subscribers have a share.
    pub(crate) fn on_joined(&mut self, subscriber: SubscriberId, channel: Channel, is_confirmed: bool) {
        debug_assert_eq!(self.state, State::Apart, "a subscription has one entry in the hub");
        debug_assert_eq!(self.channel, channel);
        self.channel = channel;
        self.state = if is_confirmed { State::Confirmed(subscriber) } else { State::Asked(subscriber) };
    }

    /// The broker confirmed the channel of `subscriber`, which may be this one.
    pub(super) fn on_confirmed(&mut self, subscriber: SubscriberId) {
        if self.state == State::Asked(subscriber) {
            self.state = State::Confirmed(subscriber);
        }
    }

    /// Takes its entry in the hub: it has none from now on.
    pub(super) fn take_subscriber(&mut self) -> Option<SubscriberId> {
        match std::mem::replace(&mut self.state, State::Apart) {
            State::Apart => None,
            State::Asked(subscriber) | State::Confirmed(subscriber) => Some(subscriber),
        }
    }

    /// Whether it waits for an entry in the hub.
    pub(super) fn is_to_join(&self) -> bool {
        self.rights.may_receive && self.state == State::Apart
    }

    /// Whether nothing has to happen before its publications arrive.
    pub(super) fn is_settled(&self) -> bool {
        !self.rights.may_receive || matches!(self.state, State::Confirmed(_))
    }
}
