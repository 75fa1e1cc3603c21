//! The commands of a subscribing link, one at a time, and the effect of each confirmation on its command.
//!
//! So each confirmation belongs to one command, and changes that come meanwhile are merged into the next command. May
//! not enter: what follows from an answer (`reply.rs`).

use redis::Cmd;

use super::node_state::NodeState;
use super::resp::{Confirmation, Protocol};
use super::role::RoleWatch;
use crate::channel::Channel;

/// Channels per command, and the bytes of their names, which the confirmations repeat. Chosen: 1,000 names are some 30
/// kB. So publications are read between the confirmations of many channels, and Redis' query and output buffers have
/// room for names of any length.
pub(super) const CHUNK: usize = 1_000;
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// A command of a subscribing link.
#[derive(Debug)]
pub(super) enum LinkCommand {
    /// Subscribes the milestones' channel, or the probe's own, if Redis allows that; where channels are sharded, one that
    /// belongs to the node.
    Probe,
    /// Subscribes all channels that are not confirmed.
    Unconfirmed,
    /// Subscribes channels by one command.
    Subscribe(Progress),
    /// Subscribes each channel by a separate command, because Redis refused them together: the last one is under way.
    OneByOne(Vec<Channel>, Tried),
    /// Subscribes sharded channels, each by a separate command, because one command cannot have two slots. All are sent
    /// at once, and answered in order.
    Sharded(Progress, Tried),
    /// Tries a channel that Redis took before, because another channel was refused with this error.
    TryAgain(Channel, String),
    /// Tries a channel at an audit, while Redis refuses all.
    LookAgain(Channel),
    /// Unsubscribes a channel that was only tried: Redis takes subscriptions again.
    GiveBack(Channel),
    Unsubscribe(Progress),
    UnsubscribeSharded(Progress),
    /// Subscribes the marker's channel. It is never sharded: within a node, all publications have one order.
    Marker(Channel),
    Unmark(Channel),
    /// Asks whether the node is a master.
    Role,
    /// Asks for the number of subscriptions.
    Count(Counting),
    /// Ends an audit, behind its answers.
    EndAudit,
    /// Begins to await the probe.
    BeginProbe,
}

/// The reason for a count of subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    /// Right behind the confirmations of a new link: shows whether the count is reliable.
    First,
    Audit,
    /// After all channels were subscribed again.
    Again,
}

/// Channels with one answer each, in order.
#[derive(Debug)]
pub(super) struct Progress {
    channels: Vec<Channel>,
    answered: usize,
}

/// The results of channels that were tried one by one: the last channel of each kind.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) taken: Option<Channel>,
    /// The channel, and the error.
    pub(super) refused: Option<(Channel, String)>,
}

impl Progress {
    pub(super) fn new(channels: Vec<Channel>) -> Self {
        Self { channels, answered: 0 }
    }

    /// The channel of the next answer.
    pub(super) fn next(&self) -> Option<&Channel> {
        self.channels.get(self.answered)
    }

    pub(super) fn last(&self) -> Option<&Channel> {
        self.channels.last()
    }

    /// The next channel was answered.
    pub(super) fn advance(&mut self) {
        self.answered += 1;
    }

    /// `channel` was answered; false when no answer for it is awaited. Redis answers in order; other servers need not.
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
    /// Appends its bytes to `out`; none where nothing is to be sent.
    pub(super) fn write(&self, node: &NodeState, protocol: Protocol, role: &RoleWatch, out: &mut Vec<u8>) {
        let one = |name: &str, channel: &Channel| command(name, [channel]);
        let sharded = |channel: &Channel| node.placement.is_sharded(channel);
        match self {
            Self::Probe => {
                let name = if node.placement.has_sharded() { "SSUBSCRIBE" } else { "SUBSCRIBE" };
                out.extend(one(name, node.probe_channel()));
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

    /// Takes a confirmation of `channel` into account. Returns whether it was the last that the command awaits.
    pub(super) fn on_confirmation(&mut self, node: &NodeState, confirmation: Confirmation, channel: &[u8]) -> bool {
        match (self, confirmation) {
            (Self::Probe, Confirmation::Subscribed) => *channel == **node.probe_channel(),
            (Self::Subscribe(progress), Confirmation::Subscribed)
            | (Self::Unsubscribe(progress), Confirmation::Unsubscribed)
            | (Self::UnsubscribeSharded(progress), Confirmation::ShardUnsubscribed) => {
                progress.answer(channel);
                progress.is_done()
            }
            (Self::Sharded(progress, tried), Confirmation::Subscribed) => {
                // Strictly in order, because an error names no channel.
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

    /// Whether it awaits the end of a subscription to a sharded channel.
    pub(super) fn awaits_end_of(&self, channel: &[u8]) -> bool {
        let Self::UnsubscribeSharded(progress) = self else { return false };
        let awaited = progress.channels.get(progress.answered..).unwrap_or_default();
        awaited.iter().any(|awaited| **awaited == *channel)
    }
}

/// Encodes a command.
fn command<'a>(name: &str, channels: impl IntoIterator<Item = &'a Channel>) -> Vec<u8> {
    let mut command: Cmd = redis::cmd(name);
    for channel in channels {
        command.arg(&**channel);
    }
    command.get_packed_command()
}

/// Divides channels into the parts of one command each.
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
