//! What follows from an answer on a subscribing link: channels are confirmed, refused, or tried again. May not enter:
//! the link itself (`subscriber.rs`).

use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::channel_table::Confirmed;
use super::error::{LinkError, is_for_now, is_not_allowed, is_refusal, refusal_text};
use super::link_command::{Counting, LinkCommand, Tried};
use super::marker;
use super::node_state::NodeState;
use super::resp::Confirmation;
use super::subscribe_refusal::{self, RefusalScope};
use crate::broker::event::Report;
use crate::channel::{Channel, SubscriptionRefused};

/// What follows for the link.
#[derive(Debug)]
pub(super) enum Consequence {
    Done,
    /// Another command comes next.
    Next(LinkCommand),
    /// The command awaits further answers.
    Await(LinkCommand),
    /// The number of subscriptions that Redis lacks; `None` where Redis does not count.
    Counted(Counting, Option<usize>),
}

/// Takes a confirmation into account, read while `command` is under way. With `is_leaving`, the channel is to be
/// unsubscribed first. Returns the channel if it is subscribed and
/// not wanted.
pub(super) fn on_confirmation(
    node: &mut NodeState,
    command: Option<&LinkCommand>,
    confirmation: Confirmation,
    channel: &[u8],
    is_leaving: bool,
    now: Instant,
) -> Option<Channel> {
    if !matches!(confirmation, Confirmation::Subscribed) {
        node.channels.left(channel);
    }
    match confirmation {
        Confirmation::Subscribed if *channel == **node.probe_channel() || node.is_marker(channel) => {}
        // An UNSUBSCRIBE waits, or may wait, to be sent, and behind it the SUBSCRIBE that confirms the channel.
        Confirmation::Subscribed
            if (is_leaving || is_out_of_turn(command, channel)) && node.channels.is_wanted(channel) =>
        {
            node.channels.has_again(channel);
        }
        Confirmation::Subscribed => match node.channels.confirm(channel) {
            Confirmed::Wanted(channel) => {
                node.milestones.place(now);
                node.events.push_back(Report::Subscribed { node: node.id, channel });
            }
            // The channel was only tried; `GiveBack` unsubscribes it.
            Confirmed::Unwanted if matches!(command, Some(LinkCommand::LookAgain(looked)) if **looked == *channel) => {}
            Confirmed::Unwanted => return Some(Channel::copy_from_slice(channel)),
        },
        Confirmation::ShardUnsubscribed if !command.is_some_and(|command| command.awaits_end_of(channel)) => {
            node.dropped(channel, now);
        }
        Confirmation::Unsubscribed | Confirmation::ShardUnsubscribed => {}
    }
    None
}

/// Whether a command tries `channel` ahead of the changes that wait.
fn is_out_of_turn(command: Option<&LinkCommand>, channel: &[u8]) -> bool {
    matches!(command, Some(LinkCommand::TryAgain(tried, _) | LinkCommand::LookAgain(tried)) if **tried == *channel)
}

/// All confirmations of a command have come.
pub(super) fn on_confirmed(node: &mut NodeState, command: LinkCommand) -> Consequence {
    match command {
        LinkCommand::Probe => node.probe.allow(),
        LinkCommand::Subscribe(progress) => {
            if let Some(channel) = progress.last() {
                node.health.subscription_is_taken(channel);
            }
        }
        LinkCommand::Sharded(_, tried) => return on_tried(node, tried),
        LinkCommand::OneByOne(mut rest, mut tried) => {
            tried.taken = rest.pop().or(tried.taken);
            return one_by_one(node, rest, tried);
        }
        LinkCommand::TryAgain(_, error) => subscribe_refusal::tell_one(&node.terms.server, &error),
        LinkCommand::LookAgain(channel) if !node.channels.is_wanted(&channel) => {
            return Consequence::Next(LinkCommand::GiveBack(channel));
        }
        LinkCommand::LookAgain(channel) | LinkCommand::GiveBack(channel) => node.health.subscription_is_taken(&channel),
        LinkCommand::Marker(channel) => {
            if node.is_marker(&channel) {
                node.set_progress(marker::Progress::Set);
            }
        }
        LinkCommand::Unsubscribe(_) | LinkCommand::UnsubscribeSharded(_) | LinkCommand::Unmark(_) => {}
        LinkCommand::Role
        | LinkCommand::Count(_)
        | LinkCommand::Unconfirmed
        | LinkCommand::EndAudit
        | LinkCommand::BeginProbe => {
            debug_assert!(false, "no confirmation belongs to these");
        }
    }
    Consequence::Done
}

/// Redis answered a command. Where confirmations are awaited, the answer is a refusal.
///
/// # Errors
/// When the link is of no use any more.
pub(super) fn on_answer(
    node: &mut NodeState,
    command: LinkCommand,
    answer: RedisResult<Value>,
    now: Instant,
) -> Result<Consequence, LinkError> {
    if let LinkCommand::Count(counting) = command {
        return on_count(node, counting, answer);
    }
    let error = match answer {
        Err(error) if is_refusal(&error) => error,
        Err(error) => return Err(LinkError::Ended(error)),
        Ok(_) => return Err(LinkError::OutOfStep),
    };
    let is_for_now = is_for_now(error.code());
    match command {
        LinkCommand::Probe if is_for_now => node.probe.lose(),
        LinkCommand::Probe if is_not_allowed(&error) => {
            node.refuse_probe(&error);
            if node.probe.is_lost() {
                return Ok(Consequence::Next(LinkCommand::Probe));
            }
        }
        LinkCommand::Subscribe(_) if is_for_now => node.contradicted(now),
        // One by one, to find the channels that Redis refuses.
        LinkCommand::Subscribe(progress) => return Ok(one_by_one(node, progress.into_channels(), Tried::default())),
        LinkCommand::OneByOne(mut rest, mut tried) => {
            if let Some(channel) = rest.pop() {
                refuse(node, channel, &error, &mut tried, now);
            }
            return Ok(one_by_one(node, rest, tried));
        }
        LinkCommand::Sharded(mut progress, mut tried) => {
            if let Some(channel) = progress.next().cloned() {
                refuse(node, channel, &error, &mut tried, now);
            }
            progress.advance();
            if progress.is_done() {
                return Ok(on_tried(node, tried));
            }
            return Ok(Consequence::Await(LinkCommand::Sharded(progress, tried)));
        }
        // The channel may have moved: its refusal says nothing about the others.
        LinkCommand::TryAgain(_, refused) if is_for_now => subscribe_refusal::tell_one(&node.terms.server, &refused),
        LinkCommand::TryAgain(_, refused) => node.health.subscription_is_refused(&refused),
        LinkCommand::LookAgain(_) => {}
        LinkCommand::Marker(_) | LinkCommand::Unmark(_) => node.set_progress(marker::Progress::Lost),
        LinkCommand::Probe
        | LinkCommand::GiveBack(_)
        | LinkCommand::Unsubscribe(_)
        | LinkCommand::UnsubscribeSharded(_) => {
            return Err(LinkError::Ended(error));
        }
        LinkCommand::Role
        | LinkCommand::Count(_)
        | LinkCommand::Unconfirmed
        | LinkCommand::EndAudit
        | LinkCommand::BeginProbe => {
            debug_assert!(false, "these are not refused");
        }
    }
    Ok(Consequence::Done)
}

/// Redis does not subscribe a channel, now or at all.
fn refuse(node: &mut NodeState, channel: Channel, error: &RedisError, tried: &mut Tried, now: Instant) {
    if is_for_now(error.code()) {
        tracing::debug!(%error, "a channel cannot be subscribed at this node for now: {error}");
        return node.contradicted(now);
    }
    tracing::debug!(%error, "Redis refuses to subscribe a channel: {error}");
    tried.refused = Some((channel.clone(), refusal_text(error)));
    node.channels.forget(&channel);
    let refused = SubscriptionRefused(format!("Redis refuses the channel: {error}").into());
    node.events.push_back(Report::Refused { channel, refused });
}

/// Tries the remaining channels one by one.
fn one_by_one(node: &mut NodeState, rest: Vec<Channel>, tried: Tried) -> Consequence {
    if rest.is_empty() { on_tried(node, tried) } else { Consequence::Next(LinkCommand::OneByOne(rest, tried)) }
}

/// Channels were tried one by one.
fn on_tried(node: &mut NodeState, Tried { taken, refused }: Tried) -> Consequence {
    if let Some(channel) = taken {
        node.health.subscription_is_taken(&channel);
    }
    let Some((channel, error)) = refused else { return Consequence::Done };
    match subscribe_refusal::extent(&node.health, &channel) {
        RefusalScope::One => subscribe_refusal::tell_one(&node.terms.server, &error),
        RefusalScope::All => node.health.subscription_is_refused(&error),
        RefusalScope::Ask(taken) => return Consequence::Next(LinkCommand::TryAgain(taken, error)),
    }
    Consequence::Done
}

/// Reads the number of subscriptions: `None` where an ACL or RESP2 forbids the question, or Redis does not say.
fn on_count(node: &NodeState, counting: Counting, answer: RedisResult<Value>) -> Result<Consequence, LinkError> {
    let info = match answer {
        // Over RESP2, this is the answer to PING.
        Ok(value) => redis::from_redis_value::<String>(value).unwrap_or_default(),
        Err(error) if is_refusal(&error) => String::new(),
        Err(error) => return Err(LinkError::Ended(error)),
    };
    let count = |kind: &str| info.split(' ').find_map(|field| field.strip_prefix(kind)?.parse::<usize>().ok());
    // A server that does not count sharded channels has none, or the number is not reliable.
    let there = count("sub=").map(|there| there + count("ssub=").unwrap_or_default());
    // Nothing else is under way on the link, so the numbers belong together. But Redis may have ended subscriptions to
    // sharded channels before it counted.
    // Also channels whose UNSUBSCRIBE is to come: Redis counts them, and they would hide that another is missing.
    let told = node.channels.subscribed() + usize::from(node.probe.is_allowed());
    Ok(Consequence::Counted(counting, there.map(|there| told.saturating_sub(there))))
}
