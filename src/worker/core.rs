//! What the sessions' transitions work on: sessions, hub, timers, texts on their way. Borrowed
//! for one transition at a time, and never while the broker is called back.
//!
//! Here a transition's outcome is carried out ([`Core::settle`]). May not enter: tasks, the broker.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use slab::Slab;
use tokio::time::Instant;

use super::handover::{Adopted, Collected};
use crate::channel::Channel;
use crate::clock::{self, Millis, millis};
use crate::close::CloseReason;
use crate::config::{Config, EndpointConfig, GapPolicy};
use crate::id::{Generation, SessionKey};
use crate::message::{ClientMessage, Origin};
use crate::metrics::{Counter, Shard};
use crate::notice;
use crate::os::descriptors::Lent;
use crate::per_node::PerNode;
use crate::placement::Moved;
use crate::placement::{Node, Placement};
use crate::protocol::endpoint::Endpoint;
use crate::protocol::hub::{Hub, Outlet, Reserved};
use crate::protocol::outbound::Batch;
use crate::protocol::outbox::Outbox;
use crate::protocol::session::{Message, Outcome, Queued, Scratch, Session};
use crate::throttle::Throttle;
use crate::worker::reactor::{Ready, Registrar};
use crate::worker::wheel::Wheel;

/// What a session's event counts for beside the bytes that it brings, in [`Core::work`]. Chosen: a
/// system call or two take about as long as some 2 kB of frames.
const EVENT_BYTES: usize = 2 << 10;

/// What transitions work on, borrowed for one of them at a time.
#[derive(Debug)]
pub(super) struct Core {
    sessions: Slab<(Generation, Session)>,
    placement: Placement,
    /// The newest session's.
    generation: Generation,
    pub(super) hub: Hub,
    pub(super) wheel: Wheel,
    pub(super) outbox: Outbox,
    registrar: Registrar,
    scratch: Scratch,
    /// Sessions that have another turn, because they have more to read: each once.
    again: Vec<SessionKey>,
    /// Sessions that are not read until there is room for their texts, those who waited longest first.
    /// Of each of the broker's servers.
    held: PerNode<Vec<SessionKey>>,
    /// Channels of sessions that are to come from another process, those that have come, and those
    /// of them whose path is not served any more.
    reserved: Vec<Channel>,
    adopted: Vec<SessionKey>,
    homeless: HashSet<SessionKey>,
    /// What a flush found, to be settled after it.
    unsettled: Vec<(SessionKey, Outcome)>,
    shard: Arc<Shard>,
}

impl Core {
    pub(super) fn new(config: &Config, placement: Placement, registrar: Registrar, shard: Arc<Shard>) -> Self {
        Self {
            sessions: Slab::new(),
            generation: 0,
            held: PerNode::new(placement.count(), |_| Vec::new()),
            hub: Hub::new(millis(config.redis.subscription_linger), config.pace, placement.clone()),
            wheel: Wheel::new(clock::START),
            outbox: Outbox::new(config.limits.max_unpublished_bytes, placement.clone()),
            placement,
            registrar,
            scratch: Scratch::default(),
            again: Vec::new(),
            reserved: Vec::new(),
            adopted: Vec::new(),
            homeless: HashSet::new(),
            unsettled: Vec::new(),
            shard,
        }
    }

    pub(super) fn insert(&mut self, session: Session) -> SessionKey {
        self.generation = self.generation.wrapping_add(1);
        let index = self.sessions.insert((self.generation, session));
        self.shard.set_sessions(self.sessions.len());
        key_of(index, self.generation)
    }

    pub(super) fn session(&mut self, key: SessionKey) -> Option<&mut Session> {
        session_of(&mut self.sessions, key)
    }

    pub(super) fn has_unpublished(&mut self, key: SessionKey) -> bool {
        self.session(key).is_some_and(|session| session.has_unpublished())
    }

    /// The open sessions.
    pub(super) fn open_keys(&self) -> Vec<SessionKey> {
        let open = self.sessions.iter().filter(|(_, (_, session))| session.is_open());
        open.map(|(index, (generation, _))| key_of(index, *generation)).collect()
    }

    /// The subscriptions at a server are lost. Returns how many there were.
    pub(super) fn lose(&mut self, node: Node) -> usize {
        self.hub.unconfirm_all(node, self.generation)
    }

    /// One of them is lost; says whether it was there.
    pub(super) fn lose_one(&mut self, node: Node, channel: &[u8]) -> bool {
        self.hub.unconfirm(node, channel, self.generation)
    }

    /// Channels live elsewhere now; returns those that have to be subscribed there.
    pub(super) fn follow_placement(&mut self) -> Vec<Moved> {
        // Who is held because of one server may have its texts go to another.
        let held = self.held.iter_mut().flat_map(|(_, held)| std::mem::take(held)).collect();
        self.release(held);
        self.held.grow(self.placement.count(), |_| Vec::new());
        self.outbox.follow_placement();
        self.hub.follow_placement(self.generation)
    }

    /// A gap at `node` is over. Returns how many channels had it, and the open sessions to close
    /// because of it: those that were there before.
    pub(super) fn end_gap(&mut self, node: Node) -> (usize, Vec<SessionKey>) {
        let (channels, missed) = self.hub.take_missed(node);
        let is_closed = |key: &SessionKey| {
            session_of(&mut self.sessions, *key)
                .is_some_and(|session| session.is_open() && session.endpoint.config.on_gap == GapPolicy::Close)
        };
        let before = missed.into_iter().filter(|(key, newest)| key.is_up_to(*newest)).map(|(key, _)| key);
        (channels, before.filter(is_closed).collect())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.outbox.unsettled() == 0
    }

    pub(super) fn attach(&mut self, key: SessionKey, socket: OwnedFd, head: &[u8], read_ahead: &[u8], now: Millis) {
        let Some((_, session)) = self.sessions.get_mut(key.index as usize).filter(|(g, _)| *g == key.generation) else {
            return;
        };
        let wants = session.wants();
        if let Err(error) = self.registrar.add(socket.as_fd(), key, wants) {
            tracing::error!(
                %error,
                "a WebSocket cannot be watched ({error}) and is closed: raise fs.epoll.max_user_watches or add memory"
            );
            return self.settle(key, Outcome::End(CloseReason::Internal), now);
        }
        session.registered = wants;
        let mut outcome = session.attach(socket, head, now);
        if outcome == Outcome::Stay && !read_ahead.is_empty() {
            let (outbox, shard) = (&mut self.outbox, &self.shard);
            let mut publish =
                |channel: &Channel, message: Message<'_>| queue(outbox, shard, channel, message, key, now);
            outcome = session.judge(&mut read_ahead.to_vec(), now, &mut publish);
        }
        self.settle(key, outcome, now);
    }

    /// How much work was done since [`Core::begin_slice`], in bytes that were read; an event counts for
    /// [`EVENT_BYTES`].
    pub(super) fn work(&self) -> usize {
        self.scratch.work
    }

    pub(super) fn begin_slice(&mut self) {
        self.scratch.work = 0;
    }

    /// Gives a session another turn, after the others.
    pub(super) fn read_again(&mut self, key: SessionKey) {
        if let Some(session) = session_of(&mut self.sessions, key)
            && !std::mem::replace(&mut session.has_another_turn, true)
        {
            self.again.push(key);
        }
    }

    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// Those that have another turn, which is now.
    pub(super) fn take_again(&mut self) -> Vec<SessionKey> {
        let again = std::mem::take(&mut self.again);
        for key in &again {
            if let Some(session) = session_of(&mut self.sessions, *key) {
                session.has_another_turn = false;
            }
        }
        again
    }

    pub(super) fn on_ready(&mut self, ready: Ready, now: Millis) {
        let key = ready.key;
        self.scratch.work += EVENT_BYTES;
        let Some(session) = session_of(&mut self.sessions, key) else { return };
        let mut outcome = Outcome::Stay;
        if ready.writable {
            let waiting = session.waiting_bytes();
            outcome = session.on_writable(now);
            self.scratch.work += waiting.saturating_sub(session.waiting_bytes());
        }
        if session.has_another_turn {
            // It is read then.
            return self.settle(key, outcome, now);
        }
        let node = self.outbox.node_of(&session.channel);
        if ready.readable && outcome == Outcome::Stay && session.is_open() && self.outbox.is_full(node) {
            if session.hold() {
                self.held.at_mut(node).push(key);
            }
        } else if ready.readable && outcome == Outcome::Stay {
            let allowance = self.outbox.allowance(node);
            let (outbox, shard) = (&mut self.outbox, &self.shard);
            let mut publish =
                |channel: &Channel, message: Message<'_>| queue(outbox, shard, channel, message, key, now);
            if session.may_resume(allowance) {
                outcome = session.resume(now, &mut publish);
            }
            if outcome == Outcome::Stay {
                outcome = session.on_readable(&mut self.scratch, ready.hung_up, now, publish);
            }
        }
        self.settle(key, outcome, now);
    }

    /// Wants `channel` for sessions that are to come.
    pub(super) fn reserve(&mut self, channel: &Channel) -> Reserved {
        self.reserved.push(channel.clone());
        self.hub.reserve(channel)
    }

    /// Those who were to come have come.
    pub(super) fn free_reserved(&mut self, now: Millis) {
        for channel in std::mem::take(&mut self.reserved) {
            self.hub.free(&channel, now);
        }
    }

    /// All that another process needs to go on.
    pub(super) fn collect(&self, now: Millis) -> Collected {
        let mut collected = Collected::default();
        let mut places = HashMap::new();
        for (index, (generation, session)) in &self.sessions {
            let (Some(portable), Some(socket)) = (session.portable(now), session.socket()) else { continue };
            places.insert(key_of(index, *generation), collected.sessions.len());
            collected.sessions.push((portable, Lent::from(socket)));
        }
        collected.texts = self.outbox.iter().map(|text| PortableText::of(text, &places, now)).collect();
        collected
    }

    /// Makes sessions of what another process had; they rest. Returns the channels that have to be
    /// subscribed for them.
    ///
    /// # Errors
    /// When one contradicts itself, or the kernel does not let us wait for its socket.
    pub(super) fn adopt(
        &mut self,
        adopted: Adopted,
        endpoints: &[Rc<Endpoint>],
        now: Millis,
    ) -> io::Result<Vec<(Node, Channel)>> {
        let mut asked = Vec::new();
        self.adopted.clear();
        for (portable, socket) in adopted.sessions {
            let known = endpoints.iter().find(|endpoint| endpoint.config.path == portable.endpoint).cloned();
            let is_known = known.is_some();
            let endpoint = known.unwrap_or_else(|| {
                // Of a path that is not served any more: it ends when all goes on.
                let path = portable.endpoint.clone();
                Rc::new(Endpoint::new(EndpointConfig { path, ..EndpointConfig::default() }))
            });
            let session = Session::adopt(portable, endpoint, socket, now).map_err(io::Error::other)?;
            let key = self.insert(session);
            self.adopted.push(key);
            let Some((_, session)) = self.sessions.get_mut(key.index as usize) else { continue };
            session.registered = session.wants();
            if let Some(socket) = session.socket() {
                self.registrar.add(socket.as_fd(), key, session.registered)?;
            }
            if !is_known {
                self.homeless.insert(key);
            } else if session.endpoint.config.subscribe && session.is_open() {
                let joined = self.hub.join(&session.channel, session.wire(), key);
                session.subscriptions.push(joined.subscriber);
                if joined.is_first {
                    asked.push((joined.node, joined.channel.clone()));
                }
                session.channel = joined.channel;
            }
        }
        for PortableText { session, channel, payload, ago } in adopted.texts {
            let origin = session.and_then(|place| self.adopted.get(place)).copied();
            let since = now.saturating_sub(ago);
            let (channel, payload) = (Channel::from(channel.into_vec()), Bytes::from(payload.into_vec()));
            let text = ClientMessage { channel, payload, origin: Origin::Session(origin.unwrap_or_default()), since };
            if let Some(session) = origin.and_then(|key| self.session(key)) {
                session.adopt_text(text.cost());
            }
            self.outbox.push(text);
        }
        Ok(asked)
    }

    /// Nobody has heard anything for a while.
    pub(super) fn miss_all(&mut self) {
        self.hub.miss_all(self.generation);
    }

    /// All sessions.
    pub(super) fn all_keys(&mut self) -> Vec<SessionKey> {
        self.adopted = Vec::new();
        self.sessions.iter().map(|(index, (generation, _))| key_of(index, *generation)).collect()
    }

    /// Lets a session that rested for so long be read again: what its socket has to say is told once more.
    pub(super) fn go_on(&mut self, key: SessionKey, rested: Millis, now: Millis) {
        let Some((_, session)) = self.sessions.get_mut(key.index as usize) else { return };
        session.rested(rested);
        let Some(socket) = session.socket() else { return };
        let wants = session.wants();
        if let Err(error) = self.registrar.change(socket.as_fd(), key, wants) {
            tracing::warn!(%error, "a WebSocket cannot be watched any more ({error}) and is closed");
            return self.settle(key, Outcome::End(CloseReason::Internal), now);
        }
        session.registered = wants;
        let is_homeless = self.homeless.remove(&key);
        // What was read and kept waits for nobody but us.
        self.read_again(key);
        self.settle(key, if is_homeless { Outcome::Close(CloseReason::GoingAway) } else { Outcome::Stay }, now);
    }

    /// The broker has taken a text that counts for `bytes`.
    pub(super) fn on_published(&mut self, key: SessionKey, bytes: usize, now: Millis) {
        let Some(session) = session_of(&mut self.sessions, key) else { return };
        let allowance = self.outbox.allowance(self.outbox.node_of(&session.channel));
        if session.on_published(bytes, allowance, now) {
            self.read_again(key);
        }
    }

    /// Lets those be read who were held, when there is room again.
    pub(super) fn release_held(&mut self) {
        let outbox = &self.outbox;
        let with_room = self.held.iter_mut().filter(|(node, _)| outbox.has_room(*node));
        let released: Vec<_> = with_room.flat_map(|(_, held)| std::mem::take(held)).collect();
        self.release(released);
    }

    fn release(&mut self, held: Vec<SessionKey>) {
        for key in held {
            if let Some(session) = self.session(key) {
                session.release();
                self.read_again(key);
            }
        }
    }

    pub(super) fn on_due(&mut self, key: SessionKey, at: Millis, now: Millis) {
        let Some(session) = self.session(key).filter(|session| session.due == at) else { return };
        session.due = Millis::MAX;
        let outcome = session.on_tick(now);
        self.settle(key, outcome, now);
    }

    /// Hands waiting batches to their subscribers; returns when to try again with those
    /// that were held back.
    pub(super) fn flush(&mut self, now: Millis) -> Option<Instant> {
        let Self { hub, sessions, unsettled, .. } = self;
        let flushed = hub.flush(&mut Delivery { sessions, unsettled, now });
        self.shard.add(Counter::FramesDelivered, flushed.frames);
        self.shard.add(Counter::PublicationsNotUtf8, flushed.not_utf8);
        for (key, outcome) in std::mem::take(&mut self.unsettled) {
            self.guarded(key, now, |core| core.settle(key, outcome, now));
        }
        flushed.next
    }

    /// Keeps the fault of one session from the others: a panic in `act` ends that session.
    pub(super) fn guarded(&mut self, key: SessionKey, now: Millis, act: impl FnOnce(&mut Self)) {
        static PANICKED: Throttle = Throttle::per_minute();
        if catch_unwind(AssertUnwindSafe(|| act(self))).is_err() {
            if PANICKED.allows() {
                tracing::error!(
                    "a panic in one session: its WebSocket is closed with 1011, the others go on; please report it"
                );
            }
            self.settle(key, Outcome::End(CloseReason::Internal), now);
        }
    }

    pub(super) fn settle_if_open(&mut self, key: SessionKey, reason: CloseReason, now: Millis) {
        if self.session(key).is_some_and(|session| !session.is_closing()) {
            self.settle(key, Outcome::Close(reason), now);
        }
    }

    /// Does what a transition asked for, and brings registration and timer up to date.
    pub(super) fn settle(&mut self, key: SessionKey, mut outcome: Outcome, now: Millis) {
        let Self { sessions, hub, wheel, registrar, outbox, .. } = self;
        let Some(session) = session_of(sessions, key) else { return };
        if let Outcome::Close(reason) = outcome {
            if reason == CloseReason::NotPublished {
                outbox.abandon(key);
            }
            outcome = session.close(reason, now);
        }
        let mut has_more = false;
        match outcome {
            Outcome::End(reason) => {
                self.shard.add(Counter::SessionsClosed(reason), 1);
                notice::session_closed(reason);
                return self.remove(key, now);
            }
            Outcome::Closing => {
                session.subscriptions.drain(..).for_each(|subscriber| hub.leave(subscriber, now));
                // It may have been paused, and what it has to read told long ago.
                has_more = true;
            }
            Outcome::Again => has_more = true,
            Outcome::Stay | Outcome::Close(_) => {}
        }
        let (wants, due) = (session.wants(), session.next_due());
        if wants != session.registered
            && let Some(socket) = session.socket()
        {
            if let Err(error) = registrar.change(socket.as_fd(), key, wants) {
                tracing::warn!(%error, "a WebSocket cannot be watched any more ({error}) and is closed");
                return self.settle(key, Outcome::End(CloseReason::Internal), now);
            }
            session.registered = wants;
        }
        if due < session.due {
            session.due = due;
            wheel.schedule(key, due);
        }
        if has_more {
            self.read_again(key);
        }
    }

    pub(super) fn remove(&mut self, key: SessionKey, now: Millis) {
        if self.session(key).is_none() {
            return;
        }
        let (_, mut session) = self.sessions.remove(key.index as usize);
        session.subscriptions.drain(..).for_each(|subscriber| self.hub.leave(subscriber, now));
        self.shard.set_sessions(self.sessions.len());
    }
}

/// Where the hub's batches go.
struct Delivery<'a> {
    sessions: &'a mut Slab<(u32, Session)>,
    unsettled: &'a mut Vec<(SessionKey, Outcome)>,
    now: Millis,
}

impl Outlet for Delivery<'_> {
    fn deliver(&mut self, key: SessionKey, frames: &mut Batch<'_>) {
        let Some(session) = session_of(self.sessions, key) else { return };
        // One session's panic must not keep the batch from those behind it.
        let outcome = catch_unwind(AssertUnwindSafe(|| session.deliver(frames, self.now)))
            .unwrap_or(Outcome::End(CloseReason::Internal));
        if outcome != Outcome::Stay || session.wants() != session.registered {
            self.unsettled.push((key, outcome));
        }
    }

    fn is_behind(&mut self, key: SessionKey) -> bool {
        session_of(self.sessions, key).is_some_and(|session| session.is_behind())
    }
}

/// A text that waits, for another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortableText {
    /// The place of its session among those that come with it; none when its client has left.
    session: Option<usize>,
    channel: ByteBuf,
    payload: ByteBuf,
    ago: Millis,
}

impl PortableText {
    /// About how many bytes it is in a message.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.channel.len() + self.payload.len()
    }

    fn of(text: &ClientMessage, places: &HashMap<SessionKey, usize>, now: Millis) -> Self {
        let session = match &text.origin {
            Origin::Session(key) => places.get(key).copied(),
            Origin::Publisher(_) => None,
        };
        let (channel, payload) = (ByteBuf::from(&*text.channel), ByteBuf::from(&*text.payload));
        Self { session, channel, payload, ago: now.saturating_sub(text.since) }
    }
}

fn key_of(index: usize, generation: Generation) -> SessionKey {
    SessionKey { index: u32::try_from(index).unwrap_or(u32::MAX), generation }
}

fn session_of(sessions: &mut Slab<(u32, Session)>, key: SessionKey) -> Option<&mut Session> {
    let (generation, session) = sessions.get_mut(key.index as usize)?;
    (*generation == key.generation).then_some(session)
}

/// Queues or counts a client's message.
fn queue(
    outbox: &mut Outbox,
    shard: &Shard,
    channel: &Channel,
    message: Message<'_>,
    key: SessionKey,
    now: Millis,
) -> Queued {
    let payload = match message {
        Message::Text(payload) => payload,
        Message::Binary(payload) => {
            shard.add(Counter::BinariesTaken, 1);
            payload
        }
        Message::IgnoredBinary => {
            shard.add(Counter::BinariesIgnored, 1);
            return Queued::NOTHING;
        }
        Message::Refused(reason) => {
            shard.add(Counter::BinariesRefused, u64::from(reason == CloseReason::BinaryRefused));
            return Queued::NOTHING;
        }
    };
    let payload = Bytes::copy_from_slice(payload);
    let text = ClientMessage { channel: channel.clone(), payload, origin: Origin::Session(key), since: now };
    let bytes = text.cost();
    outbox.push(text);
    Queued { bytes, allowance: outbox.allowance(outbox.node_of(channel)) }
}
