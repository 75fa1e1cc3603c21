//! What a worker wants of a subscribing link, in order, until it is asked of Redis. May not enter: answers.

use std::collections::VecDeque;

use super::errand::{CHUNK, CHUNK_BYTES, Errand, Progress, Tried, chunks};
use super::links::Links;
use crate::channel::Channel;

/// What the worker wants of the link.
#[derive(Debug)]
pub(super) enum Command {
    Subscribe(Channel),
    Unsubscribe(Channel),
    /// Subscribes the marker's channel.
    Marker,
    Unmark(Channel),
}

/// Commands that wait.
#[derive(Debug, Default)]
pub(super) struct Commands(VecDeque<Command>);

impl Commands {
    pub(super) fn push(&mut self, command: Command) {
        self.0.push_back(command);
    }

    /// All wanted channels are to be subscribed, and nothing has to be unsubscribed on a new link.
    pub(super) fn start_over(&mut self) {
        self.0.retain(|command| matches!(command, Command::Marker));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The errands of the next commands: each run of the same kind as one, or as one for those that are sharded and one
    /// for the others.
    pub(super) fn next(&mut self, links: &Links) -> Vec<Errand> {
        let (mut join, mut leave, mut bytes) = (Vec::new(), Vec::new(), 0);
        while join.len() + leave.len() < CHUNK && bytes < CHUNK_BYTES {
            match self.0.pop_front() {
                Some(Command::Subscribe(channel)) if leave.is_empty() => {
                    bytes += channel.len();
                    join.push(channel);
                }
                Some(Command::Unsubscribe(channel)) if join.is_empty() => {
                    bytes += channel.len();
                    leave.push(channel);
                }
                Some(Command::Marker) if join.is_empty() && leave.is_empty() => {
                    // Without one, it was released before it was subscribed.
                    if let Some(marker) = &links.marker {
                        return vec![Errand::Marker(marker.channel.clone())];
                    }
                }
                Some(Command::Unmark(channel)) if join.is_empty() && leave.is_empty() => {
                    return vec![Errand::Unmark(channel)];
                }
                Some(other_kind) => {
                    self.0.push_front(other_kind);
                    break;
                }
                None => break,
            }
        }
        if !join.is_empty() {
            return subscriptions(links, join);
        }
        let (sharded, plain) = links.split(leave);
        let plain = (!plain.is_empty()).then(|| Errand::Unsubscribe(Progress::new(plain)));
        let sharded = (!sharded.is_empty()).then(|| Errand::UnsubscribeSharded(Progress::new(sharded)));
        plain.into_iter().chain(sharded).collect()
    }
}

/// The errands that subscribe channels: those that are not sharded first.
pub(super) fn subscriptions(links: &Links, channels: Vec<Channel>) -> Vec<Errand> {
    let (sharded, plain) = links.split(channels);
    let plain = chunks(plain).into_iter().map(|chunk| Errand::Subscribe(Progress::new(chunk)));
    let sharded = chunks(sharded).into_iter().map(|chunk| Errand::Sharded(Progress::new(chunk), Tried::default()));
    plain.chain(sharded).collect()
}
