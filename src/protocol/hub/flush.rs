//! The hot path: publications become batches, batches go to sessions, and the batch of a slow audience is held back for
//! a moment. May not enter: sockets, anything per subscriber that can be done per audience.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::entry::Audience;
use super::rings;
use super::state::Hub;
use crate::id::SessionKey;
use crate::protocol::encoding::Encoded;
use crate::protocol::outbound::Batch;

/// A batch of this many bytes is flushed although the link has more to read. Chosen: two of nginx' buffers as shipped;
/// a larger batch only adds latency.
pub(super) const MAX_BATCH_BYTES: usize = 64 << 10;

/// The number of empty buffers kept for the next publications, and the largest capacity of one.
const MAX_SPARE: usize = 16;
const MAX_SPARE_BYTES: usize = 2 * MAX_BATCH_BYTES;

/// All batches are flushed at this many bytes in total, although the link has more to read and audiences are behind.
/// Chosen: stays in a core's cache.
pub(super) const MAX_PENDING_BYTES: usize = 4 * MAX_BATCH_BYTES;

/// Smaller audiences are always flushed at once. At 10 µs a member, with nginx, their flush takes a quarter of a
/// millisecond, less than the shortest wait ([`RECHECK`]).
const PACED_MEMBERS: usize = 25;

/// Members that are checked: an audience has caught up when at least half of them have.
const SAMPLE: usize = 4;

/// The time between two checks. Chosen: tokio's timers tick once a millisecond.
const RECHECK: Duration = Duration::from_millis(1);

/// Takes batches for sessions.
pub(crate) trait Outlet {
    /// Gives a batch to a session.
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>);
    /// Whether the session's peer has not taken all delivered bytes.
    fn is_behind(&mut self, session: SessionKey) -> bool;
    /// The time, which passes while a large audience is served.
    fn now(&self) -> Instant;
}

/// The result of [`Hub::flush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Frames given to sessions.
    pub(crate) frames: u64,
    /// Frames that were dropped for slow sessions.
    pub(crate) dropped: u64,
    /// Publications since the last flush that were not UTF-8.
    pub(crate) not_utf8: u64,
    /// When to flush the batches that are held back.
    pub(crate) next: Option<Instant>,
}

/// Whether a batch should be flushed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// No: the batch can wait for more publications.
    Wait,
    /// Yes: the batch has reached its size.
    Full,
}

impl Hub {
    /// Appends a publication to the batches of its channel's audiences.
    pub(crate) fn append(&mut self, channel: &[u8], payload: &[u8]) -> Batching {
        let Some(id) = self.names.find(&self.channels, channel) else { return Batching::Wait };
        if let Some(entry) = self.channels.get(id).filter(|entry| entry.is_interrupted) {
            // The node's log has this publication, too, and all before it.
            entry.node.into_iter().for_each(|node| self.milestones.at_mut(node).hold(id, payload));
            return Batching::Wait;
        }
        self.append_to(id, payload)
    }

    /// Appends a publication to the batches of the channel `id`.
    pub(super) fn append_to(&mut self, id: usize, payload: &[u8]) -> Batching {
        let Some(entry) = self.channels.get_mut(id) else { return Batching::Wait };
        let position = rings::record(id, entry, &self.milestones, &mut self.budget, payload);
        let (mut batching, mut encoded) = (Batching::Wait, Encoded::Utf8);
        for (index, audience) in entry.audiences.iter_mut().enumerate().filter(|(_, a)| !a.members.is_empty()) {
            if audience.frames == 0 {
                self.touched.push((id, index));
                audience.begin_batch(&mut self.spare);
            }
            let before = audience.batch.len();
            encoded = audience.encoding.encode(&entry.name, payload, position, &mut audience.batch);
            audience.frames += 1;
            self.pending += audience.batch.len() - before;
            if audience.batch.len() >= MAX_BATCH_BYTES || self.pending >= MAX_PENDING_BYTES {
                batching = Batching::Full;
            }
        }
        self.not_utf8 += u64::from(encoded == Encoded::NotUtf8);
        if self.budget.is_exceeded() {
            self.bound_kept();
        }
        batching
    }

    /// Stops holding batches back, because sessions are about to be closed.
    pub(crate) fn stop_pacing(&mut self) {
        self.pace = Duration::ZERO;
        for (_, entry) in &mut self.channels {
            entry.audiences.iter_mut().for_each(|audience| audience.held_until = None);
        }
    }

    /// Sets how long a batch may be held back.
    pub(crate) fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    /// Whether a batch waits to be flushed.
    pub(crate) fn has_batches(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Gives the waiting batches to their subscribers. Holds a batch back while its audience has not caught up with the
    /// last one. The clients lose nothing by that, and one send of many frames costs little more than of one frame,
    /// both here and in nginx.
    pub(crate) fn flush(&mut self, outlet: &mut impl Outlet) -> Flushed {
        let mut flushed = Flushed { frames: 0, dropped: 0, not_utf8: std::mem::take(&mut self.not_utf8), next: None };
        let now = outlet.now();
        let is_full = self.pending >= MAX_PENDING_BYTES;
        for (channel, index) in std::mem::take(&mut self.touched) {
            let Some(entry) = self.channels.get_mut(channel) else { continue };
            let is_poll = entry.audiences.get(index).is_some_and(|audience| audience.encoding.is_poll());
            let milestones = entry.node.filter(|_| is_poll).map(|node| self.milestones.at(node));
            let end = milestones.and_then(|milestones| entry.tail(milestones));
            let Some(audience) = entry.audiences.get_mut(index) else { continue };
            if let Some(until) = audience.held_until.filter(|until| *until > now)
                && !is_full
                && audience.batch.len() < MAX_BATCH_BYTES
                && audience.is_behind(outlet)
            {
                self.touched.push((channel, index));
                let next = until.min(now + RECHECK);
                flushed.next = Some(flushed.next.map_or(next, |first: Instant| first.min(next)));
                continue;
            }
            let frames = std::mem::take(&mut audience.frames);
            let mut buffer = std::mem::take(&mut audience.batch);
            self.pending -= buffer.len();
            let mut batch = Batch::new(&buffer).ending_at(end);
            for (_, session) in &audience.members {
                outlet.deliver(*session, &mut batch);
            }
            flushed.dropped += batch.dropped;
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
    /// Gives the batch an empty buffer, if there is one.
    #[inline]
    pub(super) fn begin_batch(&mut self, spare: &mut Vec<BytesMut>) {
        if let Some(spare) = spare.pop() {
            self.batch = spare;
        }
    }

    /// Whether most members have not taken all delivered bytes. nginx takes bytes roughly in the order of delivery. So
    /// the members that are checked are spread evenly along that order, up to the last member.
    fn is_behind(&self, outlet: &mut impl Outlet) -> bool {
        let behind = (1..=SAMPLE).filter(|nth| {
            let member = self.members.get((self.members.len() * nth / SAMPLE).saturating_sub(1));
            member.is_some_and(|(_, session)| outlet.is_behind(*session))
        });
        behind.count() > SAMPLE / 2
    }
}
