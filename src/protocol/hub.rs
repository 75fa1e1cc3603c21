//! A worker's channels: which session hears which, and one batch of frames for the sessions that get the same bytes.
//!
//! channel → audiences (one per encoding) → subscribers. A publication is framed once per audience, appended to its
//! batch, and a flush hands every batch to each subscriber. A channel stays subscribed for a short linger after its
//! last subscriber left. May not enter: sockets, the broker, tasks. It says what to subscribe and which sessions have
//! to be told of a confirmation; the worker does both.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{Generation, SessionKey, SubscriberId};
use crate::per_node::PerNode;
use crate::placement::Moved;
use crate::placement::{Node, Placement};
use crate::protocol::encoding::{Encoded, Encoding};
use crate::protocol::outbound::Batch;

/// A batch of this many bytes is flushed without waiting for the broker's pause. Chosen:
/// two of nginx' buffers as shipped; a larger one only adds latency.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// Batch buffers kept for the next publications, and how large one may be to be kept.
const MAX_SPARE: usize = 16;
const MAX_SPARE_BYTES: usize = 2 * MAX_BATCH_BYTES;

/// So many bytes in all batches are flushed without waiting for the broker's pause or for anybody
/// to catch up: many channels with a little each are much, too. Chosen: stays in a core's cache.
const MAX_PENDING_BYTES: usize = 4 * MAX_BATCH_BYTES;

/// Audiences of fewer members are flushed at once always: at 10 µs a member, with nginx, that is a
/// quarter of a millisecond, and a shorter wait than [`ASK_AGAIN`] there is not.
const PACED_MEMBERS: usize = 25;

/// Members asked whether they have caught up, of which most have to.
const SAMPLE: usize = 4;

/// How soon they are asked again. Chosen: tokio's timers tick once a millisecond.
const ASK_AGAIN: Duration = Duration::from_millis(1);

/// Where batches go.
pub(crate) trait Outlet {
    /// Hands a batch to a session.
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>);
    /// Whether the other end has not taken all that was delivered to a session.
    fn is_behind(&mut self, session: SessionKey) -> bool;
    /// The time, which passes while a large audience is served.
    fn now(&self) -> Instant;
}

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

/// What came of [`Hub::flush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Frames handed out.
    pub(crate) frames: u64,
    /// Publications since the last flush that were not UTF-8.
    pub(crate) not_utf8: u64,
    /// When to flush what is held back.
    pub(crate) next: Option<Instant>,
}

/// Whether a batch should be flushed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// It can wait for more.
    Wait,
    /// It has reached its size.
    Full,
}

/// The hub of one worker.
#[derive(Debug)]
pub(crate) struct Hub {
    names: Names,
    channels: Slab<ChannelEntry>,
    subscribers: Slab<Subscriber>,
    /// Audiences with something in their batch, as (channel, audience).
    touched: Vec<(usize, usize)>,
    placement: Placement,
    /// Channels that are confirmed, at each of the broker's servers.
    confirmed: PerNode<usize>,
    /// Bytes in all batches.
    pending: usize,
    /// Publications that were not UTF-8, since the last flush.
    not_utf8: u64,
    spare: Vec<BytesMut>,
    /// Channels without subscribers and when they are given up, in that order.
    lingering: VecDeque<(usize, Millis)>,
    linger: Millis,
    /// For how long after a flush the next may be held back.
    pace: Duration,
}

/// Which channel has a name; the name itself is in its entry.
#[derive(Debug, Default)]
struct Names {
    ids: HashTable<usize>,
    /// Keyed: clients choose the names.
    hasher: RandomState,
}

/// One channel. What a publication needs lies together: a channel with one audience of one
/// member, the commonest of all, has no other memory than this.
#[derive(Debug)]
struct ChannelEntry {
    name: Channel,
    node: Node,
    /// Whether the broker was asked to subscribe it and has not refused.
    is_asked: bool,
    is_confirmed: bool,
    /// After its subscription was lost: the newest session that missed something. Until the gap is
    /// reported.
    missed_by: Option<Generation>,
    audiences: SmallVec<[Audience; 1]>,
    subscribers: usize,
    given_up_at: Option<Millis>,
    /// Subscribers that joined before the confirmation, to be told of it. Some may have left since.
    awaiting: Vec<(SessionKey, SubscriberId)>,
}

#[derive(Debug)]
struct Audience {
    encoding: Encoding,
    members: SmallVec<[(SubscriberId, SessionKey); 1]>,
    batch: BytesMut,
    /// Frames in the batch.
    frames: usize,
    /// Until when it may be held back.
    held_until: Option<Instant>,
}

#[derive(Debug)]
struct Subscriber {
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

    fn named(&mut self, name: &[u8]) -> Option<&mut ChannelEntry> {
        self.channels.get_mut(self.names.find(&self.channels, name)?)
    }

    /// Whether what is published on `channel` arrives already.
    pub(crate) fn is_confirmed(&self, channel: &Channel) -> bool {
        self.names
            .find(&self.channels, channel)
            .and_then(|id| self.channels.get(id))
            .is_some_and(|entry| entry.is_confirmed)
    }

    /// Notes that the broker confirmed `channel` at `node`. Returns the subscribers to tell of it; `None` when the
    /// channel is not wanted there any more.
    pub(crate) fn confirm(&mut self, node: Node, channel: &[u8]) -> Option<Vec<(SessionKey, SubscriberId)>> {
        let entry = self.named(channel).filter(|entry| entry.node == node)?;
        let is_new = !std::mem::replace(&mut entry.is_confirmed, true);
        let awaiting = std::mem::take(&mut entry.awaiting);
        *self.confirmed.at_mut(node) += usize::from(is_new);
        Some(awaiting)
    }

    /// Notes that the broker refused `channel`; returns the sessions that now hear nothing.
    pub(crate) fn refuse(&mut self, channel: &[u8]) -> Vec<SessionKey> {
        let Some(entry) = self.named(channel) else { return Vec::new() };
        let was_confirmed = std::mem::replace(&mut entry.is_confirmed, false);
        entry.is_asked = false;
        entry.awaiting = Vec::new();
        let members = entry.audiences.iter().flat_map(|audience| audience.members.iter().map(|(_, session)| *session));
        let (members, node) = (members.collect(), entry.node);
        *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        members
    }

    /// How many channels are confirmed at a server.
    pub(crate) fn confirmed(&self, node: Node) -> usize {
        *self.confirmed.at(node)
    }

    /// Notes that the link to a server is lost: nothing there is confirmed until the broker says so
    /// again, and sessions up to `newest` miss what is published. Returns how many channels were.
    pub(crate) fn unconfirm_all(&mut self, node: Node, newest: Generation) -> usize {
        for entry in self.of_node(node) {
            entry.unconfirm(newest);
        }
        std::mem::take(self.confirmed.at_mut(node))
    }

    /// The same of one channel; says whether it was confirmed there.
    pub(crate) fn unconfirm(&mut self, node: Node, channel: &[u8], newest: Generation) -> bool {
        let was_confirmed =
            self.named(channel).filter(|entry| entry.node == node).is_some_and(|entry| entry.unconfirm(newest));
        *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        was_confirmed
    }

    /// Channels live elsewhere now. Returns those that were asked for and have to be asked for there.
    pub(crate) fn follow_placement(&mut self, newest: Generation) -> Vec<Moved> {
        self.confirmed.grow(self.placement.count(), |_| 0);
        let mut all = Vec::new();
        for (_, entry) in &mut self.channels {
            let from = entry.node;
            let to = self.placement.node_of(&entry.name);
            if to == from {
                continue;
            }
            let was_confirmed = entry.unconfirm(newest);
            *self.confirmed.at_mut(from) -= usize::from(was_confirmed);
            entry.node = to;
            if entry.is_asked {
                all.push(Moved { channel: entry.name.clone(), from, to, was_heard: entry.missed_by.is_some() });
            }
        }
        all
    }

    /// Notes that sessions up to `newest` miss what was published on all channels.
    pub(crate) fn miss_all(&mut self, newest: Generation) {
        for (_, entry) in &mut self.channels {
            entry.missed_by = Some(newest);
        }
    }

    /// How many channels at a server were lost and are there again, and their sessions that may have
    /// missed something, each with the newest of them.
    pub(crate) fn take_missed(&mut self, node: Node) -> (usize, Vec<(SessionKey, Generation)>) {
        let (mut channels, mut sessions) = (0, Vec::new());
        for entry in self.of_node(node) {
            let Some(newest) = entry.missed_by.take() else { continue };
            channels += 1;
            let members = entry.audiences.iter().flat_map(|audience| audience.members.iter());
            sessions.extend(members.map(|(_, session)| (*session, newest)));
        }
        (channels, sessions)
    }

    fn of_node(&mut self, node: Node) -> impl Iterator<Item = &mut ChannelEntry> {
        self.channels.iter_mut().map(|(_, entry)| entry).filter(move |entry| entry.node == node)
    }

    /// All channels to subscribe on a new link to a server. Those that linger are among them:
    /// somebody who comes back counts on them.
    pub(crate) fn wanted(&mut self, node: Node) -> Vec<Channel> {
        let asked = self.of_node(node).map(|entry| {
            entry.is_asked = true;
            entry.name.clone()
        });
        asked.collect()
    }

    /// Those of them that were asked for and are not confirmed.
    pub(crate) fn unconfirmed(&mut self, node: Node) -> Vec<Channel> {
        let unconfirmed = self.of_node(node).filter(|entry| entry.is_asked && !entry.is_confirmed);
        unconfirmed.map(|entry| entry.name.clone()).collect()
    }

    /// Appends a publication to the batches of its channel's audiences.
    pub(crate) fn append(&mut self, channel: &[u8], payload: &[u8]) -> Batching {
        let Some(id) = self.names.find(&self.channels, channel) else { return Batching::Wait };
        let Some(entry) = self.channels.get_mut(id) else { return Batching::Wait };
        let (mut batching, mut encoded) = (Batching::Wait, Encoded::Utf8);
        for (index, audience) in entry.audiences.iter_mut().enumerate().filter(|(_, a)| !a.members.is_empty()) {
            if audience.frames == 0 {
                self.touched.push((id, index));
                if let Some(spare) = self.spare.pop() {
                    audience.batch = spare;
                }
            }
            let before = audience.batch.len();
            encoded = audience.encoding.encode(&entry.name, payload, &mut audience.batch);
            audience.frames += 1;
            self.pending += audience.batch.len() - before;
            if audience.batch.len() >= MAX_BATCH_BYTES || self.pending >= MAX_PENDING_BYTES {
                batching = Batching::Full;
            }
        }
        self.not_utf8 += u64::from(encoded == Encoded::NotUtf8);
        batching
    }

    /// Holds nothing back any more: sessions are about to be closed.
    pub(crate) fn stop_pacing(&mut self) {
        self.pace = Duration::ZERO;
        for (_, entry) in &mut self.channels {
            entry.audiences.iter_mut().for_each(|audience| audience.held_until = None);
        }
    }

    /// Holds back for at most `pace` from now on.
    pub(crate) fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    /// Whether anything waits to be flushed.
    pub(crate) fn has_batches(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Hands the waiting batches to their subscribers, but for those whose audience has not caught
    /// up with its last one: it would get to them no sooner, and one send of many frames costs
    /// little more than of one, here and in nginx.
    pub(crate) fn flush(&mut self, outlet: &mut impl Outlet) -> Flushed {
        let mut flushed = Flushed { frames: 0, not_utf8: std::mem::take(&mut self.not_utf8), next: None };
        let now = outlet.now();
        let is_full = self.pending >= MAX_PENDING_BYTES;
        for (channel, index) in std::mem::take(&mut self.touched) {
            let Some(audience) = self.channels.get_mut(channel).and_then(|entry| entry.audiences.get_mut(index)) else {
                continue;
            };
            if let Some(until) = audience.held_until.filter(|until| *until > now)
                && !is_full
                && audience.batch.len() < MAX_BATCH_BYTES
                && audience.is_behind(outlet)
            {
                self.touched.push((channel, index));
                let next = until.min(now + ASK_AGAIN);
                flushed.next = Some(flushed.next.map_or(next, |first: Instant| first.min(next)));
                continue;
            }
            let frames = std::mem::take(&mut audience.frames);
            let mut buffer = std::mem::take(&mut audience.batch);
            self.pending -= buffer.len();
            let mut batch = Batch::new(&buffer);
            for (_, session) in &audience.members {
                outlet.deliver(*session, &mut batch);
            }
            flushed.frames += (frames * audience.members.len()) as u64;
            let is_paced = audience.members.len() >= PACED_MEMBERS && !self.pace.is_zero();
            audience.held_until = is_paced.then(|| outlet.now() + self.pace);
            if self.spare.len() < MAX_SPARE && buffer.capacity() <= MAX_SPARE_BYTES {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
        flushed
    }
}

impl Audience {
    /// Whether most have not taken all that was delivered to them. nginx takes in the order of
    /// delivery, more or less, so those who are asked stand evenly along it, the last among them.
    fn is_behind(&self, outlet: &mut impl Outlet) -> bool {
        let behind = (1..=SAMPLE).filter(|nth| {
            let member = self.members.get((self.members.len() * nth / SAMPLE).saturating_sub(1));
            member.is_some_and(|(_, session)| outlet.is_behind(*session))
        });
        behind.count() > SAMPLE / 2
    }
}

impl Names {
    fn find(&self, channels: &Slab<ChannelEntry>, name: &[u8]) -> Option<usize> {
        let is_named = |id: &usize| channels.get(*id).is_some_and(|entry| *entry.name == *name);
        self.ids.find(self.hasher.hash_one(name), is_named).copied()
    }

    fn insert(&mut self, channels: &Slab<ChannelEntry>, name: &[u8], id: usize) {
        let Self { ids, hasher } = self;
        let hash_of = |id: &usize| channels.get(*id).map_or(0, |entry| hasher.hash_one(&*entry.name));
        ids.insert_unique(hasher.hash_one(name), id, hash_of);
    }

    fn remove(&mut self, channels: &Slab<ChannelEntry>, id: usize) {
        let Some(entry) = channels.get(id) else { return };
        if let Ok(found) = self.ids.find_entry(self.hasher.hash_one(&*entry.name), |other| *other == id) {
            found.remove();
        }
    }
}

impl ChannelEntry {
    fn new(name: Channel, node: Node) -> Self {
        Self {
            name,
            node,
            is_asked: false,
            is_confirmed: false,
            missed_by: None,
            audiences: SmallVec::new(),
            subscribers: 0,
            given_up_at: None,
            awaiting: Vec::new(),
        }
    }

    /// Notes that it is wanted; says whether the broker has to be asked for it.
    fn is_new_wish(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// Adds a member to the audience for `encoding`; returns where it is.
    fn place(&mut self, encoding: Encoding, subscriber: SubscriberId, session: SessionKey) -> (usize, usize) {
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

    /// Says whether it was confirmed.
    fn unconfirm(&mut self, newest: Generation) -> bool {
        let was_confirmed = std::mem::replace(&mut self.is_confirmed, false);
        if was_confirmed {
            self.missed_by = Some(newest);
        }
        was_confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LUA: Encoding = Encoding::Lua { name_at: 2 };

    fn key(index: u32) -> SessionKey {
        SessionKey { index, generation: 0 }
    }

    fn channel() -> Channel {
        Channel::from_static(b"c:a")
    }

    /// Sessions that keep what they get.
    #[derive(Default)]
    struct Kept {
        batches: Vec<(u32, Vec<u8>)>,
        /// Those from here on have not caught up.
        behind_from: Option<u32>,
    }

    impl Outlet for Kept {
        fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
            self.batches.push((session.index, batch.bytes().to_vec()));
        }

        fn is_behind(&mut self, session: SessionKey) -> bool {
            self.behind_from.is_some_and(|from| session.index >= from)
        }

        fn now(&self) -> Instant {
            Instant::now()
        }
    }

    fn flushed(hub: &mut Hub) -> Vec<(u32, Vec<u8>)> {
        let mut kept = Kept::default();
        hub.flush(&mut kept);
        kept.batches.sort();
        kept.batches
    }

    #[test]
    fn each_encoding_gets_its_own_bytes_and_what_is_ready_together_leaves_together() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.join(&channel(), LUA, key(1));
        hub.join(&channel(), Encoding::Plain, key(2));
        hub.join(&channel(), LUA, key(3));
        hub.append(b"c:a", b"1");
        hub.append(b"c:a", b"2");
        hub.append(b"c:other", b"3");
        let lua = b"\x81\x021a\x81\x022a".to_vec();
        assert_eq!(flushed(&mut hub), [(1, lua.clone()), (2, b"\x81\x011\x81\x012".to_vec()), (3, lua)]);
        assert_eq!(flushed(&mut hub), []);
    }

    #[test]
    fn a_subscription_is_asked_for_once_and_all_that_wait_are_told_once() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        let first = hub.join(&channel(), LUA, key(1));
        let second = hub.join(&channel(), Encoding::Plain, key(2));
        assert!(first.is_first && !second.is_first);
        assert!(!first.is_confirmed && !second.is_confirmed);
        assert_eq!(hub.confirm(Node(1), b"c:a"), None, "it lives elsewhere");
        let told = [(key(1), first.subscriber), (key(2), second.subscriber)];
        assert_eq!(hub.confirm(Node(0), b"c:a"), Some(told.to_vec()));
        assert_eq!(hub.confirm(Node(0), b"c:a"), Some(Vec::new()));
        assert!(hub.join(&channel(), LUA, key(3)).is_confirmed);
        hub.unconfirm_all(Node(0), 0);
        let fourth = hub.join(&channel(), LUA, key(4));
        assert!(!fourth.is_confirmed && !fourth.is_first, "a new link asks for all channels by itself");
        assert_eq!(hub.confirm(Node(0), b"c:a"), Some(vec![(key(4), fourth.subscriber)]));
    }

    #[test]
    fn an_unused_channel_lingers_before_it_is_unsubscribed() {
        let mut hub = Hub::new(1_000, Duration::ZERO, Placement::over(1));
        let mut gone = Vec::new();
        let first = hub.join(&channel(), LUA, key(1)).subscriber;
        hub.confirm(Node(0), b"c:a");
        hub.leave(first, 0);
        hub.expire(999, |_, channel| gone.push(channel));
        let again = hub.join(&channel(), LUA, key(2));
        assert!(!again.is_first && again.is_confirmed);
        hub.expire(1_000, |_, channel| gone.push(channel));
        hub.leave(again.subscriber, 1_500);
        hub.expire(2_499, |_, channel| gone.push(channel));
        assert!(gone.is_empty());
        hub.expire(2_500, |_, channel| gone.push(channel));
        assert_eq!(gone, [channel()]);
        assert!(hub.join(&channel(), LUA, key(3)).is_first);
    }

    #[test]
    fn an_unconfirmed_channel_is_kept_until_it_is_confirmed() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        let joined = hub.join(&channel(), LUA, key(1));
        hub.leave(joined.subscriber, 0);
        hub.expire(0, |_, _| panic!("an unconfirmed channel is not unsubscribed"));
        let again = hub.join(&channel(), LUA, key(2));
        assert!(!again.is_first, "its SUBSCRIBE is on its way");
        hub.leave(again.subscriber, 1);
        assert!(hub.confirm(Node(0), b"c:a").is_some());
        let mut gone = 0;
        hub.expire(2, |_, _| gone += 1);
        assert_eq!(gone, 1);
        assert!(hub.confirm(Node(0), b"c:a").is_none(), "nobody knows it any more");
    }

    #[test]
    fn a_refused_channel_is_asked_for_again_by_who_comes_next() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.join(&channel(), LUA, key(1));
        assert_eq!(hub.refuse(b"c:a"), [key(1)]);
        let second = hub.join(&channel(), LUA, key(2));
        assert!(second.is_first);
        // The first was told, and is not told again.
        assert_eq!(hub.confirm(Node(0), b"c:a"), Some(vec![(key(2), second.subscriber)]));
        assert_eq!(hub.refuse(b"c:a").len(), 2);
    }

    #[test]
    fn an_audience_that_has_not_caught_up_collects_and_one_that_has_does_not_wait() {
        let mut hub = Hub::new(0, Duration::from_secs(60), Placement::over(1));
        for n in 0..100 {
            hub.join(&channel(), Encoding::Plain, key(n));
        }
        let flush = |hub: &mut Hub, payload: &[u8], behind_from| {
            hub.append(b"c:a", payload);
            let mut kept = Kept { behind_from, ..Kept::default() };
            (hub.flush(&mut kept), kept.batches.pop().map(|(_, batch)| batch))
        };
        let (all, nobody) = (Some(0), None);
        assert_eq!(
            flush(&mut hub, b"0", all),
            (Flushed { frames: 100, not_utf8: 0, next: None }, Some(b"\x81\x010".to_vec()))
        );
        // The last quarter alone is nobody to wait for.
        assert_eq!(flush(&mut hub, b"1", Some(75)).0.frames, 100);
        let (held, batch) = flush(&mut hub, b"2", Some(25));
        assert!(held.frames == 0 && batch.is_none() && held.next.is_some_and(|next| next > Instant::now()));
        assert!(hub.has_batches());
        assert_eq!(flush(&mut hub, b"3", nobody).1, Some(b"\x81\x012\x81\x013".to_vec()));
        // Enough is enough: a full batch leaves all the same.
        assert_eq!(flush(&mut hub, b"4", all).1, None);
        assert_eq!(flush(&mut hub, &[b'x'; MAX_BATCH_BYTES], all).0.frames, 200);
        hub.stop_pacing();
        assert_eq!(flush(&mut hub, b"5", all).0.frames, 100);
        assert_eq!(hub.pending, 0);
    }

    #[test]
    fn many_channels_with_a_little_each_are_flushed_when_it_is_much_together() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        let payload = vec![b'x'; 10_000];
        let count = u32::try_from(MAX_PENDING_BYTES / payload.len()).unwrap() + 1;
        let names: Vec<_> = (0..count).map(|n| Channel::from(format!("c:{n}"))).collect();
        for (name, n) in names.iter().zip(0..) {
            hub.join(name, Encoding::Plain, key(n));
        }
        let batching: Vec<_> = names.iter().map(|name| hub.append(name, &payload)).collect();
        let first_full = batching.iter().position(|batching| *batching == Batching::Full);
        assert_eq!(first_full, Some(names.len() - 1));
        assert_eq!((flushed(&mut hub).len(), hub.pending), (names.len(), 0));
    }

    #[test]
    fn members_that_change_places_can_still_leave() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        let ids: Vec<_> = (0..5).map(|n| hub.join(&channel(), LUA, key(n)).subscriber).collect();
        for left in [0, 3, 4, 1] {
            hub.leave(ids[left], 0);
        }
        hub.append(b"c:a", b"x");
        assert_eq!(flushed(&mut hub).iter().map(|(session, _)| *session).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn who_missed_something_is_known_until_the_gap_is_reported() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        hub.join(&channel(), LUA, key(1));
        hub.join(&Channel::from_static(b"c:b"), LUA, key(2));
        hub.confirm(Node(0), b"c:a");
        hub.unconfirm_all(Node(0), 7);
        assert_eq!(hub.unconfirmed(Node(0)).len(), 2);
        hub.confirm(Node(0), b"c:a");
        assert!(hub.unconfirm(Node(0), b"c:a", 9), "it was there again");
        assert_eq!(hub.take_missed(Node(0)), (1, vec![(key(1), 9)]));
        assert_eq!(hub.take_missed(Node(0)), (0, vec![]));
    }

    #[test]
    fn channels_follow_their_placement() {
        use crate::placement::{NOWHERE, Owners, SLOTS};
        let placement = Placement::in_cluster(vec!["c:".to_owned()]);
        let mut hub = Hub::new(0, Duration::ZERO, placement.clone());
        let joined = hub.join(&channel(), LUA, key(1));
        assert!(joined.is_first && joined.node == NOWHERE);
        let all_at = |node| Owners { slots: vec![node; SLOTS.into()], homes: Vec::new(), nodes: 3, live: 1 };
        let moved = |from, to, was_heard| Moved { channel: channel(), from, to, was_heard };
        placement.set_owners(all_at(Node(1)));
        assert_eq!(hub.follow_placement(0), [moved(NOWHERE, Node(1), false)]);
        assert!(hub.confirm(Node(1), b"c:a").is_some());
        assert!(hub.follow_placement(0).is_empty());
        placement.set_owners(all_at(Node(2)));
        assert_eq!(hub.follow_placement(0), [moved(Node(1), Node(2), true)]);
        assert_eq!([Node(1), Node(2)].map(|node| hub.confirmed(node)), [0, 0]);
        assert!(hub.confirm(Node(1), b"c:a").is_none() && hub.confirm(Node(2), b"c:a").is_some());
        assert_eq!(hub.confirmed(Node(2)), 1);
    }

    #[test]
    fn a_channel_that_is_reserved_is_kept_until_it_is_freed_and_costs_nothing_more() {
        let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
        let mut gone = 0;
        let reserved = hub.reserve(&channel());
        assert!(reserved.is_first && !reserved.is_confirmed);
        hub.confirm(Node(0), b"c:a");
        hub.expire(10, |_, _| gone += 1);
        let joined = hub.join(&channel(), LUA, key(1));
        assert!(!joined.is_first && joined.is_confirmed && gone == 0);
        assert!(hub.channels.iter().all(|(_, entry)| entry.audiences.len() == 1 && !entry.audiences.spilled()));
        hub.free(b"c:a", 10);
        hub.expire(11, |_, _| gone += 1);
        assert_eq!((gone, hub.channels_in_use()), (0, vec![channel()]));
        hub.leave(joined.subscriber, 12);
        hub.expire(13, |_, _| gone += 1);
        assert_eq!(gone, 1);
    }
}
