//! What a subscribing link asks of Redis, one command at a time: the commands, and what each confirmation brings forward.
//!
//! So a confirmation is never mixed up with another's, and what comes meanwhile is coalesced into the next command. May
//! not enter: what follows from an answer (`subscriber.rs`).

use redis::Cmd;

use super::node_state::NodeState;
use super::resp::{Confirmation, Protocol};
use super::role::RoleWatch;
use crate::channel::Channel;

/// Channels per command, and the bytes of their names, which come back with the confirmations. Chosen: 1,000
/// names are some 30 kB, so a resubscription of many channels is interleaved with messages and stays far
/// under Redis' query and output buffers, however long the names are.
pub(super) const CHUNK: usize = 1_000;
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// What is to be done at Redis.
#[derive(Debug)]
pub(super) enum LinkCommand {
    /// Subscribes the probe's channel, if Redis lets us: one that lives there, where channels are sharded.
    Probe,
    /// Subscribes all channels that are not confirmed.
    Unconfirmed,
    /// Subscribes channels by one command.
    Subscribe(Progress),
    /// Subscribes each by a command of its own, because Redis refused them together: the last is under way.
    OneByOne(Vec<Channel>, Tried),
    /// Subscribes sharded channels, each by a command of its own, for two slots cannot be in one: sent at once, answered
    /// in order.
    Sharded(Progress, Tried),
    /// Whether Redis takes a channel that it took before. Another was refused with that error.
    TryAgain(Channel, String),
    /// The same at an audit, while Redis refuses all.
    LookAgain(Channel),
    /// Unsubscribes a channel that was only subscribed to look; behind it, Redis is known to take subscriptions.
    GiveBack(Channel),
    Unsubscribe(Progress),
    UnsubscribeSharded(Progress),
    /// Subscribes the marker's channel. Never sharded: at its node it is in one order with everything all the same.
    Marker(Channel),
    Unmark(Channel),
    /// Whether the node is a master.
    Role,
    /// How many subscriptions Redis has.
    Count(Counting),
    /// Is there after the answers of an audit.
    EndAudit,
    /// The probe begins to be awaited.
    BeginProbe,
}

/// What a count of subscriptions is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    /// Right behind the confirmations of a new link: whether the count can be believed.
    First,
    Audit,
    /// After all were subscribed again.
    Again,
}

/// Channels that are answered one after the other.
#[derive(Debug)]
pub(super) struct Progress {
    channels: Vec<Channel>,
    answered: usize,
}

/// What came of channels that were tried one by one: the last of each.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) taken: Option<Channel>,
    /// With the error.
    pub(super) refused: Option<(Channel, String)>,
}

impl Progress {
    pub(super) fn new(channels: Vec<Channel>) -> Self {
        Self { channels, answered: 0 }
    }

    /// The channel that is to be answered next.
    pub(super) fn next(&self) -> Option<&Channel> {
        self.channels.get(self.answered)
    }

    pub(super) fn last(&self) -> Option<&Channel> {
        self.channels.last()
    }

    /// The next was answered.
    pub(super) fn advance(&mut self) {
        self.answered += 1;
    }

    /// `channel` was answered; false when it is none of those that are awaited. Redis answers in order; what speaks its
    /// protocol need not.
    pub(super) fn answer(&mut self, channel: &[u8]) -> bool {
        let awaited = self.channels.get_mut(self.answered..).unwrap_or_default();
        let Some(place) = awaited.iter().position(|awaited| **awaited == *channel) else { return false };
        awaited.swap(0, place);
        self.answered += 1;
        true
    }

    pub(super) fn is_done(&self) -> bool {
        self.answered >= self.channels.len()
    }

    pub(super) fn into_channels(self) -> Vec<Channel> {
        self.channels
    }
}

impl LinkCommand {
    /// Appends its commands to `out`; nothing where there is none to send.
    pub(super) fn write(&self, node: &NodeState, protocol: Protocol, role: &RoleWatch, out: &mut Vec<u8>) {
        let one = |name: &str, channel: &Channel| command(name, [channel]);
        let sharded = |channel: &Channel| node.placement.is_sharded(channel);
        match self {
            Self::Probe => {
                let name = if node.placement.has_sharded() { "SSUBSCRIBE" } else { "SUBSCRIBE" };
                out.extend(one(name, node.probe.channel()));
            }
            Self::Subscribe(progress) => out.extend(command("SUBSCRIBE", &progress.channels)),
            Self::OneByOne(rest, _) => {
                out.extend(rest.last().map(|channel| one("SUBSCRIBE", channel)).unwrap_or_default())
            }
            Self::Sharded(progress, _) => {
                out.extend(progress.channels.iter().flat_map(|channel| one("SSUBSCRIBE", channel)))
            }
            Self::TryAgain(channel, _) | Self::LookAgain(channel) => {
                out.extend(one(if sharded(channel) { "SSUBSCRIBE" } else { "SUBSCRIBE" }, channel));
            }
            Self::Unsubscribe(progress) => out.extend(command("UNSUBSCRIBE", &progress.channels)),
            Self::UnsubscribeSharded(progress) => {
                out.extend(progress.channels.iter().flat_map(|channel| one("SUNSUBSCRIBE", channel)));
            }
            Self::GiveBack(channel) => {
                out.extend(one(if sharded(channel) { "SUNSUBSCRIBE" } else { "UNSUBSCRIBE" }, channel));
            }
            Self::Marker(channel) => out.extend(one("SUBSCRIBE", channel)),
            Self::Unmark(channel) => out.extend(one("UNSUBSCRIBE", channel)),
            Self::Role => out.extend(role.question().get_packed_command()),
            // A subscriber may not ask over RESP2; PING is a sign of life.
            Self::Count(_) if protocol == Protocol::Resp2 => out.extend(redis::cmd("PING").get_packed_command()),
            Self::Count(_) => out.extend(redis::cmd("CLIENT").arg("INFO").get_packed_command()),
            Self::Unconfirmed | Self::EndAudit | Self::BeginProbe => {}
        }
    }

    /// Takes a confirmation of `channel` into account. True when it was the last that the command awaits.
    pub(super) fn on_confirmation(&mut self, node: &NodeState, confirmation: Confirmation, channel: &[u8]) -> bool {
        match (self, confirmation) {
            (Self::Probe, Confirmation::Subscribed) => node.probe.is_on(channel),
            (Self::Subscribe(progress), Confirmation::Subscribed)
            | (Self::Unsubscribe(progress), Confirmation::Unsubscribed)
            | (Self::UnsubscribeSharded(progress), Confirmation::ShardUnsubscribed) => {
                progress.answer(channel);
                progress.is_done()
            }
            (Self::Sharded(progress, tried), Confirmation::Subscribed) => {
                // Strictly in order, for an error names no channel.
                if progress.next().is_some_and(|next| **next == *channel) {
                    tried.taken = progress.next().cloned();
                    progress.advance();
                }
                progress.is_done()
            }
            (Self::OneByOne(rest, _), Confirmation::Subscribed) => rest.last().is_some_and(|next| **next == *channel),
            (
                Self::TryAgain(expected, _) | Self::LookAgain(expected) | Self::Marker(expected),
                Confirmation::Subscribed,
            )
            | (Self::Unmark(expected), Confirmation::Unsubscribed)
            | (Self::GiveBack(expected), Confirmation::Unsubscribed | Confirmation::ShardUnsubscribed) => {
                **expected == *channel
            }
            _ => false,
        }
    }

    /// Whether it awaits that a sharded channel is unsubscribed.
    pub(super) fn awaits_end_of(&self, channel: &[u8]) -> bool {
        let Self::UnsubscribeSharded(progress) = self else { return false };
        let awaited = progress.channels.get(progress.answered..).unwrap_or_default();
        awaited.iter().any(|awaited| **awaited == *channel)
    }
}

/// Packs a command.
fn command<'a>(name: &str, channels: impl IntoIterator<Item = &'a Channel>) -> Vec<u8> {
    let mut command: Cmd = redis::cmd(name);
    for channel in channels {
        command.arg(&**channel);
    }
    command.get_packed_command()
}

/// Divides channels into those of one command each.
pub(super) fn chunks(channels: Vec<Channel>) -> Vec<Vec<Channel>> {
    let mut chunks: Vec<Vec<Channel>> = Vec::new();
    let mut bytes = 0;
    for channel in channels {
        let is_full = bytes >= CHUNK_BYTES || chunks.last().is_none_or(|chunk| chunk.len() >= CHUNK);
        if is_full {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += channel.len();
        chunks.last_mut().expect("one was pushed").push(channel);
    }
    chunks
}
