//! The marker: a point in the stream of a node that is the same for all its subscribers, at which a link stands still
//! until its worker resumes. May not enter: the hand-over that wants it.

use crate::broker::seal::Seal;
use crate::channel::Channel;

/// The message at which a link stands still, on a channel of its node's own.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) channel: Channel,
    /// Signs the channel's name, which is the message; a process of an earlier version publishes anything.
    seal: Option<Seal>,
    pub(crate) progress: Progress,
}

/// How far a marker has come before the stream stands still at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its channel is not subscribed yet.
    Asked,
    /// It is.
    Set,
    /// The link was lost since, or Redis does not let us subscribe it.
    Lost,
}

impl Marker {
    /// The marker `name` at the node with that address, which all processes write the same way.
    pub(crate) fn new(name: &str, address: &str, seal: Option<Seal>) -> Self {
        Self { channel: Channel::from(format!("{name}:{address}")), seal, progress: Progress::Asked }
    }

    /// The message to publish.
    pub(crate) fn payload(&self) -> String {
        self.seal.map_or_else(String::new, |seal| seal.sign(&self.channel))
    }

    /// Whether a message on the marker's channel is the marker: other Redis clients may publish there, and must not
    /// decide where the stream stops.
    pub(crate) fn is_sealed(&self, payload: &[u8]) -> bool {
        self.seal.is_none_or(|seal| seal.sign(&self.channel).as_bytes() == payload)
    }
}
