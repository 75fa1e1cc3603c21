//! The hub and its subscribers: they join, leave, and a channel without any lingers.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;

use super::entry::ChannelEntry;
use super::names::Names;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{SessionKey, SubscriberId};
use crate::per_node::PerNode;
use crate::placement::{Node, Placement};
use crate::protocol::encoding::Encoding;

/// What came of [`Hub::join`].
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) subscriber: SubscriberId,
    /// The channel's name, of which everybody's is a share.
    pub(crate) channel: Channel,
    /// Where the channel lives.
    pub(crate) node: Node,
    /// Whether the broker has to be asked to subscribe.
    pub(crate) is_first: bool,
    /// Whether the broker has confirmed the channel; else [`Hub::confirm`] or [`Hub::refuse`] names the session.
    pub(crate) is_confirmed: bool,
}

/// What came of [`Hub::reserve`]: as [`Joined`].
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) node: Node,
    pub(crate) is_first: bool,
    pub(crate) is_confirmed: bool,
}

/// The hub of one worker.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) names: Names,
    pub(super) channels: Slab<ChannelEntry>,
    pub(super) subscribers: Slab<Subscriber>,
    /// Audiences with something in their batch, as (channel, audience).
    pub(super) touched: Vec<(usize, usize)>,
    pub(super) placement: Placement,
    /// Channels that are confirmed, at each of the broker's servers.
    pub(super) confirmed: PerNode<usize>,
    /// Bytes in all batches.
    pub(super) pending: usize,
    /// Publications that were not UTF-8, since the last flush.
    pub(super) not_utf8: u64,
    pub(super) spare: Vec<BytesMut>,
    /// Channels without subscribers and when they are given up, in that order.
    pub(super) lingering: VecDeque<(usize, Millis)>,
    pub(super) linger: Millis,
    /// For how long after a flush the next may be held back.
    pub(super) pace: Duration,
}

#[derive(Debug)]
pub(super) struct Subscriber {
    channel: usize,
    audience: usize,
    place: usize,
}

impl Hub {
    /// A hub that keeps an unused channel subscribed for `linger`, and holds back what is for an
    /// audience that has not caught up for at most `pace`.
    pub(crate) fn new(linger: Millis, pace: Duration, placement: Placement) -> Self {
        Self {
            names: Names::default(),
            channels: Slab::new(),
            subscribers: Slab::new(),
            touched: Vec::new(),
            confirmed: PerNode::new(placement.count(), |_| 0),
            placement,
            pending: 0,
            not_utf8: 0,
            spare: Vec::new(),
            lingering: VecDeque::new(),
            linger,
            pace,
        }
    }

    /// Makes `session` a subscriber of `channel`; it gets publications from now on.
    pub(crate) fn join(&mut self, channel: &Channel, encoding: Encoding, session: SessionKey) -> Joined {
        let id = self.entry_of(channel);
        let subscriber = u32::try_from(self.subscribers.vacant_key());
        let subscriber = SubscriberId(subscriber.expect("each subscriber has a descriptor, and those are fewer"));
        let entry = self.channels.get_mut(id).expect("names lead to entries only");
        let (audience, place) = entry.place(encoding, subscriber, session);
        self.subscribers.insert(Subscriber { channel: id, audience, place });
        let (is_first, is_confirmed) = (entry.is_new_wish(), entry.is_confirmed);
        if !is_confirmed {
            entry.awaiting.push((session, subscriber));
        }
        Joined { subscriber, channel: entry.name.clone(), node: entry.node, is_first, is_confirmed }
    }

    /// Wants `channel` for sessions that are to come, until [`Hub::free`].
    pub(crate) fn reserve(&mut self, channel: &Channel) -> Reserved {
        let id = self.entry_of(channel);
        let entry = self.channels.get_mut(id).expect("names lead to entries only");
        entry.subscribers += 1;
        entry.given_up_at = None;
        Reserved { node: entry.node, is_first: entry.is_new_wish(), is_confirmed: entry.is_confirmed }
    }

    /// The entry of a channel, which has one from now on.
    fn entry_of(&mut self, channel: &Channel) -> usize {
        self.names.find(&self.channels, channel).unwrap_or_else(|| {
            let id = self.channels.insert(ChannelEntry::new(channel.clone(), self.placement.node_of(channel)));
            self.names.insert(&self.channels, channel, id);
            id
        })
    }

    /// Ends what [`Hub::reserve`] began; a channel to which nobody came lingers.
    pub(crate) fn free(&mut self, channel: &[u8], now: Millis) {
        let Some(id) = self.names.find(&self.channels, channel) else { return };
        if let Some(entry) = self.channels.get_mut(id) {
            entry.subscribers -= 1;
        }
        self.linger_if_unused(id, now);
    }

    /// The channels that somebody listens to.
    pub(crate) fn channels_in_use(&self) -> Vec<Channel> {
        let used = self.channels.iter().filter(|(_, entry)| entry.subscribers > 0);
        used.map(|(_, entry)| entry.name.clone()).collect()
    }

    /// Ends a subscription. Its channel lingers if it was the last.
    pub(crate) fn leave(&mut self, subscriber: SubscriberId, now: Millis) {
        let left = self.subscribers.try_remove(subscriber.0 as usize);
        debug_assert!(left.is_some(), "a subscriber leaves once");
        let Some(Subscriber { channel, audience, place }) = left else { return };
        let entry = self.channels.get_mut(channel).expect("a channel with subscribers has an entry");
        let members = &mut entry.audiences.get_mut(audience).expect("a subscriber has an audience").members;
        debug_assert!(members.get(place).is_some_and(|(member, _)| *member == subscriber));
        members.swap_remove(place);
        if let Some((moved, _)) = members.get(place)
            && let Some(moved) = self.subscribers.get_mut(moved.0 as usize)
        {
            moved.place = place;
        }
        entry.subscribers -= 1;
        self.linger_if_unused(channel, now);
    }

    fn linger_if_unused(&mut self, channel: usize, now: Millis) {
        if let Some(entry) = self.channels.get_mut(channel).filter(|entry| entry.subscribers == 0) {
            let given_up_at = now + self.linger;
            entry.given_up_at = Some(given_up_at);
            self.lingering.push_back((channel, given_up_at));
        }
    }

    /// Forgets the channels whose linger is over; those to unsubscribe go to `unsubscribe`.
    pub(crate) fn expire(&mut self, now: Millis, mut unsubscribe: impl FnMut(Node, Channel)) {
        while let Some((id, at)) = self.lingering.front().copied().filter(|(_, at)| *at <= now) {
            self.lingering.pop_front();
            // Somebody came back, or left again later: that has an entry of its own.
            let Some(entry) = self.channels.get_mut(id).filter(|entry| entry.given_up_at == Some(at)) else { continue };
            if entry.is_asked && !entry.is_confirmed {
                // Until its confirmation has come it must not be forgotten: another SUBSCRIBE and
                // an UNSUBSCRIBE might follow, and which of them a confirmation belongs to
                // could not be told.
                let given_up_at = now + self.linger.max(1);
                entry.given_up_at = Some(given_up_at);
                self.lingering.push_back((id, given_up_at));
                continue;
            }
            self.names.remove(&self.channels, id);
            let entry = self.channels.remove(id);
            self.pending -= entry.audiences.iter().map(|audience| audience.batch.len()).sum::<usize>();
            self.touched.retain(|(channel, _)| *channel != id);
            if entry.is_confirmed {
                *self.confirmed.at_mut(entry.node) -= 1;
                unsubscribe(entry.node, entry.name);
            }
        }
    }

    pub(super) fn named(&mut self, name: &[u8]) -> Option<&mut ChannelEntry> {
        self.channels.get_mut(self.names.find(&self.channels, name)?)
    }
}
