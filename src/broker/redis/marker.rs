//! The marker: a message at which a link stands still until its worker resumes. It is the same point in the stream of a
//! node for all subscribers. May not enter: the hand-over that sets it.

use crate::broker::seal::Seal;
use crate::channel::Channel;

/// A marker, on a channel of its node.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) channel: Channel,
    /// Signs the channel's name; the signature is the message. A process of an earlier version publishes any message.
    seal: Option<Seal>,
    pub(crate) progress: Progress,
}

/// The progress of a marker, until the stream stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The marker's channel is not subscribed yet.
    Asked,
    /// The channel is subscribed.
    Set,
    /// The link was lost, or Redis does not allow the channel.
    Lost,
}

impl Marker {
    /// The marker `name` at the node with that address; all processes write the address in the same way.
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
