//! One channel in the hub: its state at the broker, and its audiences. May not enter: other channels, sessions.

use std::time::Instant;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::budget::Budget;
use super::history::History;
use super::milestones::Milestones;
use super::places::Places;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{Generation, SessionKey, SubscriberId};
use crate::placement::Node;
use crate::protocol::encoding::Encoding;

/// One channel. The data that a publication needs are close together: a channel with one audience of one member, the
/// most frequent case, has no further memory.
#[derive(Debug)]
pub(super) struct ChannelEntry {
    pub(super) name: Channel,
    /// Where the channel is subscribed; a channel without a node is not confirmed.
    pub(super) node: Option<Node>,
    /// Whether the subscription was requested from the broker, and not refused.
    pub(super) is_requested: bool,
    pub(super) is_confirmed: bool,
    /// Whether the stream was cut at a known place, from which the node's log may continue it.
    pub(super) is_interrupted: bool,
    /// From the loss of the subscription until the gap is reported: the newest session that may have missed
    /// publications.
    pub(super) missed_by: Option<Generation>,
    pub(super) audiences: SmallVec<[Audience; 1]>,
    pub(super) subscribers: usize,
    pub(super) given_up_at: Option<Millis>,
    pub(super) places: Places,
    /// The publications that are kept, if the channel's endpoint has a history.
    pub(super) history: Option<Box<History>>,
    /// Subscribers to tell of the confirmation, because they joined before.
    pub(super) awaiting: Vec<(SessionKey, SubscriberId)>,
}

#[derive(Debug)]
pub(super) struct Audience {
    pub(super) encoding: Encoding,
    pub(super) members: SmallVec<[(SubscriberId, SessionKey); 1]>,
    pub(super) batch: BytesMut,
    /// Frames in the batch.
    pub(super) frames: usize,
    /// Until when the batch may be held back.
    pub(super) held_until: Option<Instant>,
}

impl ChannelEntry {
    /// Whether publications arrive, and have places if the channel has a history.
    pub(super) fn is_ready(&self, milestones: &Milestones) -> bool {
        let is_placed = || self.places.end(milestones.current()).is_some();
        self.is_confirmed && !self.is_interrupted && (self.history.is_none() || milestones.are_missing || is_placed())
    }

    pub(super) fn new(name: Channel, node: Option<Node>) -> Self {
        Self {
            name,
            node,
            is_requested: false,
            is_confirmed: false,
            is_interrupted: false,
            missed_by: None,
            audiences: SmallVec::new(),
            subscribers: 0,
            given_up_at: None,
            places: Places::nowhere(),
            history: None,
            awaiting: Vec::new(),
        }
    }

    /// Notes that the channel is wanted; true when its subscription has to be requested now.
    pub(super) fn request(&mut self) -> bool {
        !std::mem::replace(&mut self.is_requested, true)
    }

    /// Adds a member to the audience for `encoding`; returns the indices of the audience and of the member.
    pub(super) fn add(&mut self, encoding: Encoding, subscriber: SubscriberId, session: SessionKey) -> (usize, usize) {
        self.subscribers += 1;
        self.given_up_at = None;
        let index = self.audiences.iter().position(|audience| audience.encoding == encoding).unwrap_or_else(|| {
            let (members, batch) = (SmallVec::new(), BytesMut::new());
            self.audiences.push(Audience { encoding, members, batch, frames: 0, held_until: None });
            self.audiences.len() - 1
        });
        let Some(audience) = self.audiences.get_mut(index) else { return (index, 0) };
        audience.members.push((subscriber, session));
        (index, audience.members.len() - 1)
    }

    /// Notes the loss of the subscription; true when it was confirmed. The history ends: later publications do not
    /// continue it.
    pub(super) fn unconfirm(&mut self, newest: Generation, budget: &mut Budget) -> bool {
        budget.end(self.history.as_deref_mut());
        self.places = Places::nowhere();
        self.is_interrupted = false;
        self.lose(newest)
    }

    /// Notes that the stream was cut at a known place: the node's log may continue it. True when the channel was
    /// confirmed.
    pub(super) fn interrupt(&mut self, newest: Generation) -> bool {
        self.is_interrupted = true;
        self.lose(newest)
    }

    fn lose(&mut self, newest: Generation) -> bool {
        let was_confirmed = std::mem::replace(&mut self.is_confirmed, false);
        if was_confirmed {
            self.missed_by = Some(newest);
        }
        was_confirmed
    }
}
