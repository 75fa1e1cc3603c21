//! Changes that wait for a subscribing link, in order, until they become commands. May not enter: answers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::link_command::{CHUNK, CHUNK_BYTES, LinkCommand, Progress, Tried, chunks};
use super::node_state::NodeState;
use crate::channel::Channel;

/// A change that the worker wants.
#[derive(Debug)]
pub(super) enum Change {
    Subscribe(Channel),
    Unsubscribe(Channel),
    /// Subscribes the marker's channel.
    Marker,
    Unmark(Channel),
}

/// Changes that wait for the link.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    queue: VecDeque<Change>,
    /// How often each channel is to be unsubscribed.
    leaving: HashMap<Channel, usize>,
}

impl PendingChanges {
    pub(super) fn push(&mut self, command: Change) {
        if let Change::Unsubscribe(channel) = &command {
            *self.leaving.entry(channel.clone()).or_default() += 1;
        }
        self.queue.push_back(command);
    }

    /// Whether an UNSUBSCRIBE of `channel` waits: what Redis confirms before is not the subscription that is wanted.
    pub(super) fn is_leaving(&self, channel: &[u8]) -> bool {
        self.leaving.contains_key(channel)
    }

    fn left(&mut self, channel: &Channel) {
        if let Entry::Occupied(mut times) = self.leaving.entry(channel.clone()) {
            *times.get_mut() -= 1;
            if *times.get() == 0 {
                times.remove();
            }
        }
    }

    /// Starts over for a new link: it subscribes all wanted channels, and unsubscribes none.
    pub(super) fn start_over(&mut self) {
        self.leaving.clear();
        self.queue.retain(|command| matches!(command, Change::Marker));
    }

    pub(super) fn clear(&mut self) {
        self.leaving.clear();
        self.queue.clear();
    }

    /// The commands for the next changes: one for each run of the same kind, or two where some channels are sharded.
    pub(super) fn next(&mut self, node: &NodeState) -> Vec<LinkCommand> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let (mut join, mut leave, mut bytes) = (Vec::new(), Vec::new(), 0);
        while join.len() + leave.len() < CHUNK && bytes < CHUNK_BYTES {
            match self.queue.pop_front() {
                Some(Change::Subscribe(channel)) if leave.is_empty() => {
                    bytes += channel.len();
                    join.push(channel);
                }
                Some(Change::Unsubscribe(channel)) if join.is_empty() => {
                    bytes += channel.len();
                    self.left(&channel);
                    leave.push(channel);
                }
                Some(Change::Marker) if join.is_empty() && leave.is_empty() => {
                    // Without a marker, it was released before its channel was subscribed.
                    if let Some(marker) = &node.marker {
                        return vec![LinkCommand::Marker(marker.channel.clone())];
                    }
                }
                Some(Change::Unmark(channel)) if join.is_empty() && leave.is_empty() => {
                    return vec![LinkCommand::Unmark(channel)];
                }
                Some(other_kind) => {
                    self.queue.push_front(other_kind);
                    break;
                }
                None => break,
            }
        }
        if !join.is_empty() {
            return subscriptions(node, join);
        }
        let (sharded, plain) = node.split(leave);
        let plain = (!plain.is_empty()).then(|| LinkCommand::Unsubscribe(Progress::new(plain)));
        let sharded = (!sharded.is_empty()).then(|| LinkCommand::UnsubscribeSharded(Progress::new(sharded)));
        plain.into_iter().chain(sharded).collect()
    }
}

/// The commands that subscribe channels; those that are not sharded come first.
pub(super) fn subscriptions(node: &NodeState, channels: Vec<Channel>) -> Vec<LinkCommand> {
    let (sharded, plain) = node.split(channels);
    let plain = chunks(plain).into_iter().map(|chunk| LinkCommand::Subscribe(Progress::new(chunk)));
    let sharded = chunks(sharded).into_iter().map(|chunk| LinkCommand::Sharded(Progress::new(chunk), Tried::default()));
    plain.chain(sharded).collect()
}
