//! What follows from an answer on a subscribing link: channels confirmed, refused or to be tried again. May not enter:
//! the link itself (`subscriber.rs`).

use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::errand::{Counting, Errand, Tried};
use super::fault::{LinkError, is_for_now, is_not_allowed, is_refusal, refusal_text};
use super::links::Links;
use super::marker;
use super::refusal::{self, Extent};
use super::register::Confirmed;
use super::resp::Confirmation;
use crate::broker::event::Report;
use crate::channel::{Channel, SubscriptionRefused};

/// What became of an errand.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    /// Another comes next.
    Next(Errand),
    /// It awaits further answers.
    Await(Errand),
    /// So many subscriptions are missing at Redis; `None` where it does not count them.
    Counted(Counting, Option<usize>),
}

/// Takes a confirmation into account that was read while `errand` is under way. Returns the channel if it is subscribed
/// and not wanted.
pub(super) fn on_confirmation(
    links: &mut Links,
    errand: Option<&Errand>,
    confirmation: Confirmation,
    channel: &[u8],
    now: Instant,
) -> Option<Channel> {
    match confirmation {
        Confirmation::Subscribed if links.probe.is_on(channel) || links.is_marker(channel) => {}
        Confirmation::Subscribed => match links.channels.confirm(channel) {
            Confirmed::Wanted(channel) => links.events.push_back(Report::Subscribed { node: links.node, channel }),
            // It was subscribed to look, and is given back.
            Confirmed::Unwanted if matches!(errand, Some(Errand::LookAgain(looked)) if **looked == *channel) => {}
            Confirmed::Unwanted => return Some(Channel::copy_from_slice(channel)),
        },
        Confirmation::ShardUnsubscribed if !errand.is_some_and(|errand| errand.awaits_end_of(channel)) => {
            links.dropped(channel, now);
        }
        Confirmation::Unsubscribed | Confirmation::ShardUnsubscribed => {}
    }
    None
}

/// All confirmations of an errand have come.
pub(super) fn on_confirmed(links: &mut Links, errand: Errand) -> Outcome {
    match errand {
        Errand::Probe => links.probe.allow(),
        Errand::Subscribe(progress) => {
            if let Some(channel) = progress.last() {
                links.health.subscription_is_taken(channel);
            }
        }
        Errand::Sharded(_, tried) => return on_tried(links, tried),
        Errand::OneByOne(mut rest, mut tried) => {
            tried.taken = rest.pop().or(tried.taken);
            return one_by_one(links, rest, tried);
        }
        Errand::TryAgain(_, error) => refusal::tell_one(&error),
        Errand::LookAgain(channel) if !links.channels.is_wanted(&channel) => {
            return Outcome::Next(Errand::GiveBack(channel));
        }
        Errand::LookAgain(channel) | Errand::GiveBack(channel) => links.health.subscription_is_taken(&channel),
        Errand::Marker(channel) => {
            if links.is_marker(&channel) {
                links.set_progress(marker::Progress::Set);
            }
        }
        Errand::Unsubscribe(_) | Errand::UnsubscribeSharded(_) | Errand::Unmark(_) => {}
        Errand::Role | Errand::Count(_) | Errand::Unconfirmed | Errand::EndAudit | Errand::BeginProbe => {
            debug_assert!(false, "no confirmation belongs to these");
        }
    }
    Outcome::Done
}

/// A command of an errand was answered, which where confirmations are awaited is a refusal.
///
/// # Errors
/// When the link is of no use any more.
pub(super) fn on_answer(
    links: &mut Links,
    errand: Errand,
    answer: RedisResult<Value>,
    now: Instant,
) -> Result<Outcome, LinkError> {
    if let Errand::Count(counting) = errand {
        return on_count(links, counting, answer);
    }
    let error = match answer {
        Err(error) if is_refusal(&error) => error,
        Err(error) => return Err(LinkError::Ended(error)),
        Ok(_) => return Err(LinkError::OutOfStep),
    };
    let is_for_now = is_for_now(error.code());
    match errand {
        Errand::Probe if is_for_now => links.probe.lose(),
        Errand::Probe if is_not_allowed(&error) => {
            links.probe.refuse();
            links.health.probe_is_refused(&error);
        }
        Errand::Subscribe(_) if is_for_now => links.contradicted(now),
        // One by one, to find those that it refuses.
        Errand::Subscribe(progress) => return Ok(one_by_one(links, progress.into_channels(), Tried::default())),
        Errand::OneByOne(mut rest, mut tried) => {
            if let Some(channel) = rest.pop() {
                refuse(links, channel, &error, &mut tried, now);
            }
            return Ok(one_by_one(links, rest, tried));
        }
        Errand::Sharded(mut progress, mut tried) => {
            if let Some(channel) = progress.next().cloned() {
                refuse(links, channel, &error, &mut tried, now);
            }
            progress.advance();
            let is_done = progress.is_done();
            return Ok(if is_done { on_tried(links, tried) } else { Outcome::Await(Errand::Sharded(progress, tried)) });
        }
        // As of a channel that has moved since: says nothing about the others.
        Errand::TryAgain(_, refused) if is_for_now => refusal::tell_one(&refused),
        Errand::TryAgain(_, refused) => links.health.subscription_is_refused(&refused),
        Errand::LookAgain(_) => {}
        Errand::Marker(_) | Errand::Unmark(_) => links.set_progress(marker::Progress::Lost),
        Errand::Probe | Errand::GiveBack(_) | Errand::Unsubscribe(_) | Errand::UnsubscribeSharded(_) => {
            return Err(LinkError::Ended(error));
        }
        Errand::Role | Errand::Count(_) | Errand::Unconfirmed | Errand::EndAudit | Errand::BeginProbe => {
            debug_assert!(false, "these are not refused");
        }
    }
    Ok(Outcome::Done)
}

/// Redis does not subscribe a channel: for now, or not at all.
fn refuse(links: &mut Links, channel: Channel, error: &RedisError, tried: &mut Tried, now: Instant) {
    if is_for_now(error.code()) {
        tracing::debug!(%error, "a channel cannot be subscribed at this node for now: {error}");
        return links.contradicted(now);
    }
    tracing::debug!(%error, "Redis refuses to subscribe a channel: {error}");
    tried.refused = Some((channel.clone(), refusal_text(error)));
    links.channels.forget(&channel);
    let refused = SubscriptionRefused(format!("Redis refuses the channel: {error}").into());
    links.events.push_back(Report::Refused { channel, refused });
}

/// The rest of channels that are tried one by one.
fn one_by_one(links: &mut Links, rest: Vec<Channel>, tried: Tried) -> Outcome {
    if rest.is_empty() { on_tried(links, tried) } else { Outcome::Next(Errand::OneByOne(rest, tried)) }
}

/// Some channels were tried.
fn on_tried(links: &mut Links, Tried { taken, refused }: Tried) -> Outcome {
    if let Some(channel) = taken {
        links.health.subscription_is_taken(&channel);
    }
    let Some((channel, error)) = refused else { return Outcome::Done };
    match refusal::extent(&links.health, &channel) {
        Extent::One => refusal::tell_one(&error),
        Extent::All => links.health.subscription_is_refused(&error),
        Extent::Ask(taken) => return Outcome::Next(Errand::TryAgain(taken, error)),
    }
    Outcome::Done
}

/// Reads how many subscriptions Redis has: `None` where its ACL or RESP2 does not allow us to ask, or it does not say.
fn on_count(links: &Links, counting: Counting, answer: RedisResult<Value>) -> Result<Outcome, LinkError> {
    let info = match answer {
        // Over RESP2 it is the answer to PING.
        Ok(value) => redis::from_redis_value::<String>(value).unwrap_or_default(),
        Err(error) if is_refusal(&error) => String::new(),
        Err(error) => return Err(LinkError::Ended(error)),
    };
    let count = |kind: &str| info.split(' ').find_map(|field| field.strip_prefix(kind)?.parse::<usize>().ok());
    // A server that does not count sharded ones has none of them, or too few for us to believe.
    let there = count("sub=").map(|there| there + count("ssub=").unwrap_or_default());
    // Nothing else is under way on the link, so that the numbers belong together; but sharded channels may have been
    // taken from us before Redis counted.
    let told = links.channels.confirmed() + usize::from(links.probe.is_allowed());
    Ok(Outcome::Counted(counting, there.map(|there| told.saturating_sub(there))))
}
