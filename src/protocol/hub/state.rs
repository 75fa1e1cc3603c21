//! The hub and its subscribers: they join and leave, and a channel without subscribers lingers. May not enter: the
//! encoding of a publication (`flush.rs`), the broker's events (`confirm.rs`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;

use super::budget::Budget;
use super::entry::{Audience, ChannelEntry};
use super::history::{Beginning, History, Keep};
use super::milestones::Milestones;
use super::names::Names;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{SessionKey, SubscriberId};
use crate::per_node::PerNode;
use crate::placement::{Node, Placement};
use crate::protocol::encoding::Encoding;

/// The result of [`Hub::join`].
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) subscriber: SubscriberId,
    /// The channel's name, shared by all subscribers.
    pub(crate) channel: Channel,
    /// The channel's node, if known.
    pub(crate) node: Option<Node>,
    /// Whether the subscription has to be requested from the broker.
    pub(crate) is_first: bool,
    /// Whether the broker has confirmed the channel; else [`Hub::confirm`] or [`Hub::refuse`] names the session.
    pub(crate) is_confirmed: bool,
}

/// The result of [`Hub::reserve`]; fields as in [`Joined`].
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) node: Option<Node>,
    pub(crate) is_first: bool,
    pub(crate) is_confirmed: bool,
}

/// The hub of one worker.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(super) names: Names,
    pub(super) channels: Slab<ChannelEntry>,
    pub(super) subscribers: Slab<Subscriber>,
    /// Audiences with publications in their batch, as (channel, audience).
    pub(super) touched: Vec<(usize, usize)>,
    pub(super) placement: Placement,
    /// The number of confirmed channels.
    pub(super) confirmed: PerNode<usize>,
    /// Bytes in all batches.
    pub(super) pending: usize,
    /// Publications that were not UTF-8, since the last flush.
    pub(super) not_utf8: u64,
    pub(super) spare: Vec<BytesMut>,
    /// Channels without subscribers, as (when each is given up, id).
    pub(super) lingering: BinaryHeap<Reverse<(Millis, usize)>>,
    pub(super) linger: Millis,
    pub(super) milestones: PerNode<Milestones>,
    pub(super) budget: Budget,
    /// How long after a flush the next batch may be held back.
    pub(super) pace: Duration,
}

/// A subscriber's indices: of its channel, of its audience there, and of its member there.
#[derive(Debug)]
pub(super) struct Subscriber {
    channel: usize,
    audience: usize,
    member: usize,
}

impl Hub {
    /// A hub that keeps an unused channel subscribed for `linger`, and holds the batch of an audience that is behind
    /// back for at most `pace`.
    pub(crate) fn new(linger: Millis, pace: Duration, placement: Placement) -> Self {
        let milestones = PerNode::new(placement.count(), |_| Milestones::default());
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
            lingering: BinaryHeap::new(),
            milestones,
            budget: Budget::default(),
            linger,
            pace,
        }
    }

    /// Makes `session` a subscriber of `channel`: from now on, the session gets its publications.
    pub(crate) fn join(&mut self, channel: &Channel, encoding: Encoding, session: SessionKey) -> Joined {
        let id = self.entry_of(channel);
        let subscriber = u32::try_from(self.subscribers.vacant_key());
        let subscriber = SubscriberId(subscriber.expect("each subscriber has a descriptor, and those are fewer"));
        let entry = self.channels.get_mut(id).expect("names lead to entries only");
        let (audience, member) = entry.add(encoding, subscriber, session);
        self.subscribers.insert(Subscriber { channel: id, audience, member });
        let is_first = entry.request();
        let is_confirmed = entry.node.is_some_and(|node| entry.is_ready(self.milestones.at(node)));
        if !is_confirmed {
            entry.awaiting.push((session, subscriber));
        }
        Joined { subscriber, channel: entry.name.clone(), node: entry.node, is_first, is_confirmed }
    }

    /// Keeps `channel` subscribed for sessions of a hand-over, until [`Hub::free`].
    pub(crate) fn reserve(&mut self, channel: &Channel) -> Reserved {
        let id = self.entry_of(channel);
        let entry = self.channels.get_mut(id).expect("names lead to entries only");
        entry.subscribers += 1;
        entry.given_up_at = None;
        let is_confirmed = entry.node.is_some_and(|node| entry.is_ready(self.milestones.at(node)));
        Reserved { node: entry.node, is_first: entry.request(), is_confirmed }
    }

    /// Keeps so much of a channel that was reserved, in case that its sessions want it.
    pub(crate) fn keep_reserved(&mut self, channel: &Channel, keep: Keep) {
        let id = self.entry_of(channel);
        let is_new = self.channels.get(id).is_some_and(|entry| entry.history.is_none());
        self.keep(channel, keep);
        if let Some(history) = self.channels.get_mut(id).and_then(|entry| entry.history.as_mut()) {
            history.is_wanted &= !is_new;
            if is_new {
                history.beginning = Beginning::Elsewhere;
            }
        }
    }

    /// The id of the channel's entry, which is made if missing.
    pub(super) fn entry_of(&mut self, channel: &Channel) -> usize {
        self.names.find(&self.channels, channel).unwrap_or_else(|| {
            let id = self.channels.insert(ChannelEntry::new(channel.clone(), self.placement.node_of(channel)));
            self.names.insert(&self.channels, channel, id);
            id
        })
    }

    /// Ends a [`Hub::reserve`]; a channel without subscribers lingers then.
    pub(crate) fn free(&mut self, channel: &[u8], now: Millis) {
        let Some(id) = self.names.find(&self.channels, channel) else { return };
        if let Some(entry) = self.channels.get_mut(id) {
            entry.subscribers -= 1;
            if let Some(mut unwanted) = entry.history.take_if(|history| !history.is_wanted) {
                self.budget.end(Some(&mut unwanted));
            }
        }
        self.linger_if_unused(id, now);
    }

    /// The channels with reservations or with subscribers that have their confirmation: a channel for which only
    /// handshakes wait may still be refused. A channel whose history waits for clients to come back is in use as well.
    pub(crate) fn channels_in_use(&self) -> Vec<Channel> {
        let used = self.channels.iter().filter(|(_, entry)| {
            entry.subscribers > entry.awaiting.len() || (entry.history.is_some() && entry.is_confirmed)
        });
        used.map(|(_, entry)| entry.name.clone()).collect()
    }

    /// Removes a subscriber. The channel of the last one lingers.
    pub(crate) fn leave(&mut self, subscriber: SubscriberId, now: Millis) {
        let left = self.subscribers.try_remove(subscriber.0 as usize);
        debug_assert!(left.is_some(), "a subscriber leaves once");
        let Some(Subscriber { channel, audience, member: index }) = left else { return };
        let entry = self.channels.get_mut(channel).expect("a channel with subscribers has an entry");
        let members = &mut entry.audiences.get_mut(audience).expect("a subscriber has an audience").members;
        debug_assert!(members.get(index).is_some_and(|(member, _)| *member == subscriber));
        members.swap_remove(index);
        if let Some((moved, _)) = members.get(index)
            && let Some(moved) = self.subscribers.get_mut(moved.0 as usize)
        {
            moved.member = index;
        }
        entry.subscribers -= 1;
        entry.awaiting.retain(|(_, awaiting)| *awaiting != subscriber);
        self.linger_if_unused(channel, now);
    }

    fn linger_if_unused(&mut self, channel: usize, now: Millis) {
        if let Some(entry) = self.channels.get_mut(channel).filter(|entry| entry.subscribers == 0) {
            let kept_for = entry.history.as_ref().map_or(0, |history| history.keep.age);
            let given_up_at = now + self.linger.max(kept_for);
            entry.given_up_at = Some(given_up_at);
            self.lingering.push(Reverse((given_up_at, channel)));
        }
    }

    /// Removes the channels whose linger is over; calls `unsubscribe` for those that are confirmed.
    pub(crate) fn expire(&mut self, now: Millis, mut unsubscribe: impl FnMut(Node, Channel)) {
        self.expire_kept(now);
        while let Some(Reverse((at, id))) = self.lingering.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.lingering.pop();
            // A subscriber has come back. If the last one has left once more, `lingering` has a later entry.
            let Some(entry) = self.channels.get_mut(id).filter(|entry| entry.given_up_at == Some(at)) else { continue };
            if entry.is_requested && !entry.is_confirmed {
                // The entry stays until the confirmation. Otherwise an UNSUBSCRIBE and another SUBSCRIBE could follow,
                // and a confirmation could belong to either SUBSCRIBE.
                let given_up_at = now + self.linger.max(1);
                entry.given_up_at = Some(given_up_at);
                self.lingering.push(Reverse((given_up_at, id)));
                continue;
            }
            self.names.remove(&self.channels, id);
            let mut entry = self.channels.remove(id);
            self.budget.end(entry.history.as_deref_mut());
            self.pending -= entry.audiences.iter().map(|audience| audience.batch.len()).sum::<usize>();
            self.touched.retain(|(channel, _)| *channel != id);
            if entry.is_confirmed {
                let node = entry.node.expect("only a node confirms a channel");
                *self.confirmed.at_mut(node) -= 1;
                unsubscribe(node, entry.name);
            }
        }
    }

    /// The entry and the encoding of a subscriber.
    pub(super) fn subscription(&self, subscriber: SubscriberId) -> Option<(&ChannelEntry, Encoding)> {
        let Subscriber { channel, audience, .. } = self.subscribers.get(subscriber.0 as usize)?;
        let entry = self.channels.get(*channel)?;
        Some((entry, entry.audiences.get(*audience)?.encoding))
    }

    /// The history of a subscriber's channel.
    pub(super) fn history_mut(&mut self, subscriber: SubscriberId) -> Option<&mut History> {
        let Subscriber { channel, .. } = self.subscribers.get(subscriber.0 as usize)?;
        self.channels.get_mut(*channel)?.history.as_deref_mut()
    }

    pub(super) fn audience_mut(&mut self, subscriber: SubscriberId) -> Option<&mut Audience> {
        let Subscriber { channel, audience, .. } = self.subscribers.get(subscriber.0 as usize)?;
        self.channels.get_mut(*channel)?.audiences.get_mut(*audience)
    }
}
