//! Clients that came back with a position, and wait for a longer history of their channel. May not enter: how a history
//! is fetched (`recovery.rs`).

use crate::broker::Request;
use crate::channel::Channel;
use crate::id::SessionKey;
use crate::placement::Node;
use crate::position::{Milestone, Since};

/// A client whose position is not in the history here.
#[derive(Debug)]
pub(crate) struct ReadBack {
    pub(super) key: SessionKey,
    pub(super) channel: Channel,
    pub(super) since: Since,
    /// Whether another worker has heard the milestone of the position.
    pub(super) is_known_elsewhere: bool,
    /// How often the client waited for publications that it has already had.
    pub(super) waits: u8,
}

impl ReadBack {
    pub(super) fn new(key: SessionKey, channel: Channel, since: Since) -> Self {
        Self { key, channel, since, is_known_elsewhere: false, waits: 0 }
    }
}

/// Clients that wait for a node's log.
#[derive(Debug)]
pub(super) struct LogRead {
    pub(super) node: Node,
    /// The milestone from which the log is read.
    pub(super) from: Milestone,
    pub(super) clients: Vec<ReadBack>,
}

/// What a client needs next whose channel's history is still too short.
#[derive(Debug)]
pub(super) enum Next {
    /// Time: its position is behind all that was delivered here.
    Wait(ReadBack),
    /// The node's log.
    Log(Request),
}
