//! A worker's channels: who listens to what, and one batch of frames for those who get the
//! same bytes.
//!
//! channel → audiences (one per wire) → subscribers. A publication is framed once per
//! audience, appended to its batch, and a flush hands every batch to each subscriber.
//! A channel stays subscribed for a short linger after its last subscriber left.
//! May not enter: sockets, the broker. It says what to subscribe; `worker.rs` does it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::Refused;
use crate::clock::Millis;
use crate::endpoint::Channel;
use crate::id::{SessionKey, SubscriberId};
use crate::outbound::Batch;
use crate::wire::Wire;

/// A batch of this many bytes is flushed without waiting for the broker's pause. Chosen:
/// two of nginx' buffers as shipped; a larger one only adds latency.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// Batch buffers kept for the next publications, and how large one may be to be kept.
const MAX_SPARE: usize = 16;
const MAX_SPARE_BYTES: usize = 2 * MAX_BATCH_BYTES;

/// After a flush an audience rests this many times as long as the flush took. Chosen: one busy
/// audience then takes a fifth of its worker; what it brings is measured in `lib.rs`.
const REST: u32 = 4;

/// Audiences of fewer members are flushed at once always: even at 10 µs a member, with nginx,
/// their flush takes less than the shortest rest would be worth.
const PACED_MEMBERS: usize = 25;

/// A shorter rest is not taken: tokio's timers tick once a millisecond, and a small audience
/// has little to gain.
const MIN_REST: Duration = Duration::from_millis(1);

/// What came of [`Hub::join`].
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) subscriber: SubscriberId,
    /// Whether the broker has to be asked to subscribe.
    pub(crate) is_first: bool,
    /// Resolves when the subscription is confirmed or refused; `None` when it is confirmed.
    pub(crate) confirmation: Option<oneshot::Receiver<Result<(), Refused>>>,
}

/// What came of [`Hub::flush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Frames handed out.
    pub(crate) frames: u64,
    /// When the next audience that has frames has rested.
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
    by_name: HashMap<Channel, usize>,
    channels: Slab<ChannelEntry>,
    subscribers: Slab<Subscriber>,
    /// Audiences with something in their batch, as (channel, audience).
    touched: Vec<(usize, usize)>,
    spare: Vec<BytesMut>,
    /// Channels without subscribers and when they are given up, in that order.
    lingering: VecDeque<(usize, Millis)>,
    linger: Millis,
    /// The longest rest of an audience between two flushes.
    pace: Duration,
}

#[derive(Debug)]
struct ChannelEntry {
    name: Channel,
    /// Whether the broker was asked to subscribe it and has not refused.
    is_asked: bool,
    is_confirmed: bool,
    audiences: Vec<Audience>,
    subscribers: usize,
    given_up_at: Option<Millis>,
    waiting: Vec<oneshot::Sender<Result<(), Refused>>>,
}

#[derive(Debug)]
struct Audience {
    wire: Wire,
    members: Vec<(SubscriberId, SessionKey)>,
    batch: BytesMut,
    /// Frames in the batch.
    frames: usize,
    /// Its rest after the last flush.
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Subscriber {
    channel: usize,
    audience: usize,
    place: usize,
}

impl Hub {
    /// A hub that keeps an unused channel subscribed for `linger`, and lets a busy audience
    /// rest between two flushes for at most `pace`.
    pub(crate) fn new(linger: Millis, pace: Duration) -> Self {
        Self {
            by_name: HashMap::new(),
            channels: Slab::new(),
            subscribers: Slab::new(),
            touched: Vec::new(),
            spare: Vec::new(),
            lingering: VecDeque::new(),
            linger,
            pace,
        }
    }

    /// Makes `session` a subscriber of `channel`; it gets publications from now on.
    pub(crate) fn join(&mut self, channel: &Channel, wire: Wire, session: SessionKey) -> Joined {
        let id = match self.by_name.get(channel) {
            Some(id) => *id,
            None => {
                let id = self.channels.insert(ChannelEntry::new(channel.clone()));
                self.by_name.insert(channel.clone(), id);
                id
            }
        };
        let subscriber = self.subscribers.vacant_key();
        // The slab has the entry: it was found or inserted above.
        let entry = self.channels.get_mut(id).expect("by_name leads to entries only");
        let is_first = !std::mem::replace(&mut entry.is_asked, true);
        let (audience, place) = entry.place(wire, SubscriberId(subscriber), session);
        let confirmation = (!entry.is_confirmed).then(|| {
            let (tell, told) = oneshot::channel();
            entry.waiting.push(tell);
            told
        });
        self.subscribers.insert(Subscriber { channel: id, audience, place });
        Joined { subscriber: SubscriberId(subscriber), is_first, confirmation }
    }

    /// Ends a subscription. Its channel lingers if it was the last.
    pub(crate) fn leave(&mut self, subscriber: SubscriberId, now: Millis) {
        let Some(Subscriber { channel, audience, place }) = self.subscribers.try_remove(subscriber.0) else { return };
        let Some(entry) = self.channels.get_mut(channel) else { return };
        let Some(members) = entry.audiences.get_mut(audience).map(|audience| &mut audience.members) else { return };
        members.swap_remove(place);
        if let Some((moved, _)) = members.get(place)
            && let Some(moved) = self.subscribers.get_mut(moved.0)
        {
            moved.place = place;
        }
        entry.subscribers -= 1;
        if entry.subscribers == 0 {
            let given_up_at = now + self.linger;
            entry.given_up_at = Some(given_up_at);
            self.lingering.push_back((channel, given_up_at));
        }
    }

    /// Forgets the channels whose linger is over; those to unsubscribe go to `unsubscribe`.
    pub(crate) fn expire(&mut self, now: Millis, mut unsubscribe: impl FnMut(Channel)) {
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
            let entry = self.channels.remove(id);
            self.by_name.remove(&entry.name);
            self.touched.retain(|(channel, _)| *channel != id);
            if entry.is_confirmed {
                unsubscribe(entry.name);
            }
        }
    }

    /// Whether what is published on `channel` arrives already.
    pub(crate) fn is_confirmed(&self, channel: &Channel) -> bool {
        self.by_name.get(channel).and_then(|id| self.channels.get(*id)).is_some_and(|entry| entry.is_confirmed)
    }

    /// Notes that the broker confirmed `channel`. False when nobody wants it any more.
    pub(crate) fn confirm(&mut self, channel: &[u8]) -> bool {
        let Some(entry) = self.by_name.get(channel).and_then(|id| self.channels.get_mut(*id)) else { return false };
        entry.is_confirmed = true;
        entry.tell_waiting(&Ok(()));
        true
    }

    /// Notes that the broker refused `channel`; returns the sessions that now hear nothing.
    pub(crate) fn refuse(&mut self, channel: &[u8], refused: Refused) -> Vec<SessionKey> {
        let Some(entry) = self.by_name.get(channel).and_then(|id| self.channels.get_mut(*id)) else {
            return Vec::new();
        };
        entry.is_confirmed = false;
        entry.is_asked = false;
        entry.tell_waiting(&Err(refused));
        entry.audiences.iter().flat_map(|audience| audience.members.iter().map(|(_, session)| *session)).collect()
    }

    /// Notes that the link is lost: nothing is confirmed until the broker says so again.
    /// Returns how many channels were.
    pub(crate) fn unconfirm_all(&mut self) -> u64 {
        let confirmed = |(_, entry): (usize, &mut ChannelEntry)| std::mem::replace(&mut entry.is_confirmed, false);
        self.channels.iter_mut().map(confirmed).filter(|was_confirmed| *was_confirmed).count() as u64
    }

    /// All channels to subscribe on a new link. Those that linger are among them: somebody
    /// who comes back counts on them.
    pub(crate) fn wanted(&mut self) -> Vec<Channel> {
        let asked = self.channels.iter_mut().map(|(_, entry)| {
            entry.is_asked = true;
            entry.name.clone()
        });
        asked.collect()
    }

    /// Appends a publication to the batches of its channel's audiences.
    pub(crate) fn append(&mut self, channel: &[u8], payload: &[u8]) -> Batching {
        let Some(id) = self.by_name.get(channel).copied() else { return Batching::Wait };
        let Some(entry) = self.channels.get_mut(id) else { return Batching::Wait };
        let mut batching = Batching::Wait;
        for (index, audience) in entry.audiences.iter_mut().enumerate().filter(|(_, a)| !a.members.is_empty()) {
            if audience.frames == 0 {
                self.touched.push((id, index));
                if let Some(spare) = self.spare.pop() {
                    audience.batch = spare;
                }
            }
            audience.wire.encode(&entry.name, payload, &mut audience.batch);
            audience.frames += 1;
            if audience.batch.len() >= MAX_BATCH_BYTES {
                batching = Batching::Full;
            }
        }
        batching
    }

    /// Lets no audience rest any more: sessions are about to be closed.
    pub(crate) fn stop_resting(&mut self) {
        self.pace = Duration::ZERO;
        for (_, entry) in &mut self.channels {
            entry.audiences.iter_mut().for_each(|audience| audience.rests_until = None);
        }
    }

    /// Whether anything waits to be flushed.
    pub(crate) fn has_batches(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Hands the waiting batches to their subscribers, but for those of audiences that rest.
    ///
    /// One send of many frames costs little more than of one, here and in nginx, so an audience
    /// that was just flushed at some cost collects for a while. One that was quiet does not wait.
    pub(crate) fn flush(&mut self, mut deliver: impl FnMut(SessionKey, &mut Batch<'_>)) -> Flushed {
        let mut flushed = Flushed { frames: 0, next: None };
        let now = Instant::now();
        for (channel, index) in std::mem::take(&mut self.touched) {
            let Some(audience) = self.channels.get_mut(channel).and_then(|entry| entry.audiences.get_mut(index)) else {
                continue;
            };
            if let Some(until) = audience.rests_until.filter(|until| *until > now)
                && audience.batch.len() < MAX_BATCH_BYTES
            {
                self.touched.push((channel, index));
                flushed.next = Some(flushed.next.map_or(until, |next: Instant| next.min(until)));
                continue;
            }
            let frames = std::mem::take(&mut audience.frames);
            let mut buffer = std::mem::take(&mut audience.batch);
            // A single frame is no sign of a busy channel, and a small audience not worth the clock.
            let is_paced = frames > 1 && audience.members.len() >= PACED_MEMBERS && !self.pace.is_zero();
            let start = is_paced.then(Instant::now);
            let mut batch = Batch::new(&buffer);
            for (_, session) in &audience.members {
                deliver(*session, &mut batch);
            }
            flushed.frames += (frames * audience.members.len()) as u64;
            audience.rests_until = start.and_then(|start| {
                let end = Instant::now();
                rest_after(end - start, self.pace).map(|rest| end + rest)
            });
            if self.spare.len() < MAX_SPARE && buffer.capacity() <= MAX_SPARE_BYTES {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
        flushed
    }
}

impl ChannelEntry {
    fn new(name: Channel) -> Self {
        Self {
            name,
            is_asked: false,
            is_confirmed: false,
            audiences: Vec::with_capacity(1),
            subscribers: 0,
            given_up_at: None,
            waiting: Vec::new(),
        }
    }

    /// Adds a member to the audience for `wire`; returns where it is.
    fn place(&mut self, wire: Wire, subscriber: SubscriberId, session: SessionKey) -> (usize, usize) {
        self.subscribers += 1;
        self.given_up_at = None;
        let index = self.audiences.iter().position(|audience| audience.wire == wire).unwrap_or_else(|| {
            let (members, batch) = (Vec::with_capacity(1), BytesMut::new());
            self.audiences.push(Audience { wire, members, batch, frames: 0, rests_until: None });
            self.audiences.len() - 1
        });
        let Some(audience) = self.audiences.get_mut(index) else { return (index, 0) };
        audience.members.push((subscriber, session));
        (index, audience.members.len() - 1)
    }

    fn tell_waiting(&mut self, outcome: &Result<(), Refused>) {
        for waiting in std::mem::take(&mut self.waiting) {
            // Whoever gave up waiting does not need to know.
            drop(waiting.send(outcome.clone()));
        }
    }
}

/// How long an audience rests after a flush that took `cost`.
fn rest_after(cost: Duration, pace: Duration) -> Option<Duration> {
    let rest = (REST * cost).min(pace);
    (rest >= MIN_REST).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LUA: Wire = Wire::Lua { name_at: 2 };

    fn key(index: u32) -> SessionKey {
        SessionKey { index, generation: 0 }
    }

    fn channel() -> Channel {
        Channel::from_static(b"c:a")
    }

    fn flushed(hub: &mut Hub) -> Vec<(u32, Vec<u8>)> {
        let mut out = Vec::new();
        hub.flush(|session, batch| out.push((session.index, batch.bytes().to_vec())));
        out.sort();
        out
    }

    #[test]
    fn each_wire_gets_its_own_bytes_and_what_is_ready_together_leaves_together() {
        let mut hub = Hub::new(0, Duration::ZERO);
        hub.join(&channel(), LUA, key(1));
        hub.join(&channel(), Wire::Plain, key(2));
        hub.join(&channel(), LUA, key(3));
        hub.append(b"c:a", b"1");
        hub.append(b"c:a", b"2");
        hub.append(b"c:other", b"3");
        let lua = b"\x81\x021a\x81\x022a".to_vec();
        assert_eq!(flushed(&mut hub), [(1, lua.clone()), (2, b"\x81\x011\x81\x012".to_vec()), (3, lua)]);
        assert_eq!(flushed(&mut hub), []);
    }

    #[test]
    fn a_subscription_is_asked_for_once_and_everybody_waits_for_it() {
        let mut hub = Hub::new(0, Duration::ZERO);
        let first = hub.join(&channel(), LUA, key(1));
        let second = hub.join(&channel(), Wire::Plain, key(2));
        assert!(first.is_first && !second.is_first);
        let (mut first, mut second) = (first.confirmation.unwrap(), second.confirmation.unwrap());
        assert!(first.try_recv().is_err());
        assert!(hub.confirm(b"c:a"));
        assert!(first.try_recv().unwrap().is_ok() && second.try_recv().unwrap().is_ok());
        assert!(hub.join(&channel(), LUA, key(3)).confirmation.is_none());
        hub.unconfirm_all();
        assert!(hub.join(&channel(), LUA, key(4)).confirmation.is_some());
    }

    #[test]
    fn an_unused_channel_lingers_before_it_is_unsubscribed() {
        let mut hub = Hub::new(1_000, Duration::ZERO);
        let mut gone = Vec::new();
        let first = hub.join(&channel(), LUA, key(1)).subscriber;
        hub.confirm(b"c:a");
        hub.leave(first, 0);
        hub.expire(999, |channel| gone.push(channel));
        let again = hub.join(&channel(), LUA, key(2));
        assert!(!again.is_first && again.confirmation.is_none());
        hub.expire(1_000, |channel| gone.push(channel));
        hub.leave(again.subscriber, 1_500);
        hub.expire(2_499, |channel| gone.push(channel));
        assert!(gone.is_empty());
        hub.expire(2_500, |channel| gone.push(channel));
        assert_eq!(gone, [channel()]);
        assert!(hub.join(&channel(), LUA, key(3)).is_first);
    }

    #[test]
    fn an_unconfirmed_channel_is_kept_until_it_is_confirmed() {
        let mut hub = Hub::new(0, Duration::ZERO);
        let joined = hub.join(&channel(), LUA, key(1));
        hub.leave(joined.subscriber, 0);
        hub.expire(0, |_| panic!("an unconfirmed channel is not unsubscribed"));
        let again = hub.join(&channel(), LUA, key(2));
        assert!(!again.is_first, "its SUBSCRIBE is on its way");
        hub.leave(again.subscriber, 1);
        assert!(hub.confirm(b"c:a"));
        let mut gone = 0;
        hub.expire(2, |_| gone += 1);
        assert_eq!(gone, 1);
        assert!(!hub.confirm(b"c:a"), "nobody knows it any more");
    }

    #[test]
    fn a_refused_channel_is_asked_for_again_by_who_comes_next() {
        let mut hub = Hub::new(0, Duration::ZERO);
        let joined = hub.join(&channel(), LUA, key(1));
        assert_eq!(hub.refuse(b"c:a", Refused("no".into())), [key(1)]);
        assert!(joined.confirmation.unwrap().try_recv().unwrap().is_err());
        assert!(hub.join(&channel(), LUA, key(2)).is_first);
        assert_eq!(hub.refuse(b"c:a", Refused("no".into())).len(), 2);
    }

    #[test]
    fn a_rest_grows_with_the_cost_up_to_the_pace() {
        let (micros, pace) = (Duration::from_micros, Duration::from_millis(5));
        assert_eq!(rest_after(micros(200), pace), None);
        assert_eq!(rest_after(micros(500), pace), Some(micros(2_000)));
        assert_eq!(rest_after(micros(9_000), pace), Some(pace));
        assert_eq!(rest_after(micros(9_000), Duration::ZERO), None);
    }

    #[test]
    fn a_busy_audience_collects_and_a_quiet_one_does_not_wait() {
        let mut hub = Hub::new(0, Duration::from_secs(60));
        for n in 0..100 {
            hub.join(&channel(), Wire::Plain, key(n));
        }
        hub.append(b"c:a", b"0");
        hub.append(b"c:a", b"1");
        let mut first = 0;
        let quiet = hub.flush(|_, _| {
            first += 1;
            // A costly flush: half a second in all, so a rest of two.
            std::thread::park_timeout(Duration::from_millis(5));
        });
        assert_eq!((first, quiet), (100, Flushed { frames: 200, next: None }));
        hub.append(b"c:a", b"2");
        hub.append(b"c:a", b"3");
        let busy = hub.flush(|_, _| panic!("it rests"));
        assert!(busy.frames == 0 && busy.next.is_some_and(|next| next > Instant::now()));
        assert!(hub.has_batches());
        // Enough is enough: a full batch leaves all the same.
        hub.append(b"c:a", &[b'x'; MAX_BATCH_BYTES]);
        assert_eq!(hub.flush(|_, batch| assert!(batch.bytes().starts_with(b"\x81\x012\x81\x013"))).frames, 300);
    }

    #[test]
    fn members_that_change_places_can_still_leave() {
        let mut hub = Hub::new(0, Duration::ZERO);
        let ids: Vec<_> = (0..5).map(|n| hub.join(&channel(), LUA, key(n)).subscriber).collect();
        for left in [0, 3, 4, 1] {
            hub.leave(ids[left], 0);
        }
        hub.append(b"c:a", b"x");
        assert_eq!(flushed(&mut hub).iter().map(|(session, _)| *session).collect::<Vec<_>>(), [2]);
    }
}
