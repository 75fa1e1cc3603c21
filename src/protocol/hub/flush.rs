//! The hot path: publications become batches, batches go to sessions, and a slow audience is waited for a little.

use std::time::{Duration, Instant};

use super::entry::Audience;
use super::state::Hub;
use crate::id::SessionKey;
use crate::protocol::encoding::Encoded;
use crate::protocol::outbound::Batch;

/// A batch of this many bytes is flushed without waiting for the broker's pause. Chosen:
/// two of nginx' buffers as shipped; a larger one only adds latency.
pub(super) const MAX_BATCH_BYTES: usize = 64 << 10;

/// Batch buffers kept for the next publications, and how large one may be to be kept.
const MAX_SPARE: usize = 16;
const MAX_SPARE_BYTES: usize = 2 * MAX_BATCH_BYTES;

/// So many bytes in all batches are flushed without waiting for the broker's pause or for anybody
/// to catch up: many channels with a little each are much, too. Chosen: stays in a core's cache.
pub(super) const MAX_PENDING_BYTES: usize = 4 * MAX_BATCH_BYTES;

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

impl Hub {
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
