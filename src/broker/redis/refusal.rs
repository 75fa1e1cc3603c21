//! Redis refuses a subscription: tells one refused channel from a refusal of all channels.
//!
//! One channel concerns its client, which gets 503. All channels concern the operator: /readyz reports the refusal
//! until a subscription succeeds. Each audit tries one, because a process that is not ready gets no clients that
//! would subscribe. May not enter: the client that asked for the channel.

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::Links;
use super::connect::{LinkError, ask, in_words, is_for_now, is_refusal};
use super::subscriber::answered;
use crate::channel::Channel;
use crate::throttle::Throttle;

/// Redis has taken a subscription to `channel`.
pub(super) fn on_taken(links: &Links, channel: &Channel) {
    links.health.subscription_is_taken(channel);
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
    let [taken, before] = links.health.tried(channel);
    let is_one = match taken {
        // Taken by any worker: all have the same ACL user.
        Some(taken) => try_again(links, connection, &taken).await? != Some(false),
        // One channel says nothing about the others, however often its client asks.
        None => before.is_none_or(|before| before == *channel),
    };
    if !is_one {
        links.health.subscription_is_refused(&in_words(error));
    } else if ONE.allows() {
        let error = in_words(error);
        tracing::warn!(error, "Redis does not allow a channel, and its client gets 503: {error}");
    }
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
    if let Some(channel) = links.health.last_tried()
        && try_again(links, connection, &channel).await? == Some(true)
    {
        on_taken(links, &channel);
    }
    Ok(())
}

/// Whether Redis takes a subscription; `None` if it cannot tell for now. An unneeded one is undone at its
/// confirmation.
async fn try_again(
    links: &Links,
    connection: &mut MultiplexedConnection,
    channel: &Channel,
) -> Result<Option<bool>, LinkError> {
    let mut subscribe = redis::cmd(if links.placement.is_sharded(channel) { "SSUBSCRIBE" } else { "SUBSCRIBE" });
    subscribe.arg(&**channel);
    match answered(links, ask(connection, &subscribe)).await {
        Ok(_) => Ok(Some(true)),
        // As of a channel that has moved since.
        Err(LinkError::Ended(error)) if is_for_now(error.code()) => Ok(None),
        Err(LinkError::Ended(error)) if is_refusal(&error) => Ok(Some(false)),
        Err(error) => Err(error),
    }
}
