//! Redis refuses a subscription: tells one refused channel from a refusal of all channels.
//!
//! One channel concerns its client, which gets 503. All channels concern the operator: /readyz reports the refusal
//! until a subscription succeeds. Each audit tries one, because a process that is not ready gets no clients that
//! would subscribe. May not enter: the client that asked for the channel.

use super::health::Health;
use crate::channel::Channel;
use crate::throttle::Throttle;

/// What a refused channel says about the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RefusalScope {
    One,
    All,
    /// Redis took this channel before: it is tried again to decide.
    Ask(Channel),
}

/// What follows when Redis has refused `channel`, and taken no other channel of the same command.
pub(super) fn extent(health: &Health, channel: &Channel) -> RefusalScope {
    match health.tried(channel) {
        // A channel that any worker subscribed counts: all have the same ACL user.
        [Some(taken), _] => RefusalScope::Ask(taken),
        // One channel says nothing about the others, however often its client asks.
        [None, before] if before.as_ref().is_none_or(|before| before == channel) => RefusalScope::One,
        [None, _] => RefusalScope::All,
    }
}

/// Logs one refused channel.
pub(super) fn tell_one(server: &str, error: &str) {
    static ONE: Throttle = Throttle::per_minute();
    if ONE.allows() {
        tracing::warn!(
            server,
            error,
            "{server} does not allow a channel, so its client gets 503: {error} (the ACL user needs a pattern that covers \
             the channel)"
        );
    }
}
