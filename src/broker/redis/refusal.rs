//! Redis refuses a subscription: tells one refused channel from a refusal of all channels.
//!
//! One channel concerns its client, which gets 503. All channels concern the operator: /readyz reports the refusal
//! until a subscription succeeds. Each audit tries one, because a process that is not ready gets no clients that
//! would subscribe. May not enter: the client that asked for the channel.

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::Links;
use super::connect::{LinkError, ask, in_words, is_refusal};
use super::subscriber::answered;
use crate::endpoint::Channel;
use crate::throttle::Throttle;

/// Redis has taken a subscription to `channel`.
pub(super) fn on_taken(links: &Links, channel: &Channel) {
    links.taken.replace(Some(channel.clone()));
    links.health.subscription_is_taken();
}

/// Redis has refused `channel`, and taken no other channel of the same command.
///
/// # Errors
/// When the link is no longer usable.
pub(super) async fn on_refused(
    links: &Links,
    connection: &mut MultiplexedConnection,
    channel: &Channel,
    error: &RedisError,
) -> Result<(), LinkError> {
    static ONE: Throttle = Throttle::per_minute();
    links.refused.replace(Some(channel.clone()));
    let taken = links.taken.borrow().clone();
    if let Some(taken) = taken
        && is_taken(links, connection, &taken).await?
    {
        if ONE.allows() {
            let error = in_words(error);
            tracing::warn!(error, "Redis does not allow a channel, and its client gets 503: {error}");
        }
        return Ok(());
    }
    links.health.subscription_is_refused(&in_words(error));
    Ok(())
}

/// If Redis refused subscriptions, checks whether it still does.
///
/// # Errors
/// When the link is no longer usable.
pub(super) async fn look_again(links: &Links, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    if !links.health.is_subscription_refused() {
        return Ok(());
    }
    let channel = links.taken.borrow().clone().or_else(|| links.refused.borrow().clone());
    if let Some(channel) = channel
        && is_taken(links, connection, &channel).await?
    {
        on_taken(links, &channel);
    }
    Ok(())
}

/// Whether Redis takes a subscription. An unneeded one is undone at its confirmation.
async fn is_taken(links: &Links, connection: &mut MultiplexedConnection, channel: &Channel) -> Result<bool, LinkError> {
    let mut subscribe = redis::cmd(if links.placement.is_sharded(channel) { "SSUBSCRIBE" } else { "SUBSCRIBE" });
    subscribe.arg(&**channel);
    match answered(links, ask(connection, &subscribe)).await {
        Ok(_) => Ok(true),
        Err(LinkError::Ended(error)) if is_refusal(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
