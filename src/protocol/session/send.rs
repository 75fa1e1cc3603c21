//! The sending half of a session: publications, the backlog, a socket that takes bytes again. May not enter: the
//! framing of publications (`encoding`).

use std::io;

use super::action::Action;
use super::state::{Phase, Session};
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::config::SlowPolicy;
use crate::protocol::outbound::{Batch, Outbound};
use crate::protocol::socket::Socket;

/// What a slow client is told in place of what was dropped.
const SLOW: &str = "messages were dropped: the client reads too slowly";

/// Why frames were neither sent nor queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// The connection is gone.
    Gone,
    /// The backlog is longer than the endpoint allows.
    TooMuch,
}

impl Session {
    /// Sends whole frames, or queues the bytes that the socket does not take.
    pub(crate) fn deliver(&mut self, frames: &mut Batch<'_>, socket: &mut impl Socket, now: Millis) -> Action {
        if self.is_closing() {
            // The close frame is the last.
            return Action::Stay;
        }
        if matches!(self.phase, Phase::Subscribing { .. }) {
            // The session begins when all its channels are ready. A gap before is not told: nothing may be queued from
            // before the gap.
            return Action::Stay;
        }
        if self.is_poll() {
            return self.on_batch(frames, socket, now);
        }
        match self.push(frames, socket, now) {
            Ok(()) if self.outbound.is_none() => Action::Stay,
            Ok(()) => {
                frames.dropped += self.conflate();
                Action::Stay
            }
            Err(Unsent::TooMuch) if self.endpoint.config.on_slow == SlowPolicy::Drop => {
                frames.dropped += self.drop_oldest();
                Action::Stay
            }
            Err(unsent) => self.on_unsent(unsent, socket, now),
        }
    }

    /// Makes room in the backlog of a slow client; returns the number of frames dropped.
    #[cold]
    fn drop_oldest(&mut self) -> u64 {
        let Some(queue) = &mut self.outbound else { return 0 };
        let told = self.encoding.gap(SLOW);
        // Room for the next publications, so that not each of them tells the client once more.
        queue.drop_oldest(self.endpoint.config.max_queue_bytes / 2, told, self.encoding)
    }

    /// Keeps the newest frame for a slow client whose endpoint wants that; returns the number of frames dropped.
    fn conflate(&mut self) -> u64 {
        // In a handshake no client is slow yet: what it missed waits there for its socket.
        if self.endpoint.config.on_slow != SlowPolicy::Latest || self.is_in_handshake() {
            return 0;
        }
        self.outbound.as_mut().map_or(0, |queue| queue.keep_newest(self.encoding))
    }

    /// Sends or queues whole frames. In a handshake they wait for the 101.
    pub(super) fn push(&mut self, frames: &mut Batch<'_>, socket: &mut impl Socket, now: Millis) -> Result<(), Unsent> {
        let is_in_handshake = self.is_in_handshake();
        let Some(queue) = &mut self.outbound else {
            let sent = if is_in_handshake {
                0
            } else {
                match socket.send(frames.bytes()) {
                    Ok(sent) if sent == frames.bytes().len() => return Ok(()),
                    Ok(sent) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(_) => return Err(Unsent::Gone),
                }
            };
            self.outbound = Some(Box::new(Outbound::with_rest(frames.share(), sent, self.encoding, now)));
            return Ok(());
        };
        queue.push(frames.share());
        if self.has_too_much() {
            // The socket may have room that the owner has not been told of.
            self.drain(socket, now)?;
        }
        if self.has_too_much() { Err(Unsent::TooMuch) } else { Ok(()) }
    }

    /// Publications may be missing: a client whose encoding can say so is told.
    pub(crate) fn on_gap(&mut self, reason: &str, socket: &mut impl Socket, now: Millis) -> Action {
        if self.is_poll() {
            return self.let_repeat(socket, now);
        }
        let Some(told) = self.encoding.gap(reason).filter(|_| self.may_miss()) else { return Action::Stay };
        match self.push(&mut Batch::new(&told), socket, now) {
            Ok(()) => Action::Stay,
            Err(unsent) => self.on_unsent(unsent, socket, now),
        }
    }

    /// Reacts to a failed [`Session::push`].
    #[cold]
    pub(super) fn on_unsent(&mut self, unsent: Unsent, socket: &mut impl Socket, now: Millis) -> Action {
        match (unsent, self.phase) {
            (Unsent::TooMuch, _) => self.fault(CloseReason::SlowConsumer, socket, now),
            // Bytes that the client sent before it left are still in the socket, and are read first. The read that
            // finds the end ends the session.
            (Unsent::Gone, Phase::Open) => {
                self.outbound = None;
                Action::ReadAgain
            }
            (Unsent::Gone, _) => Action::End(self.reason_or(CloseReason::ClientGone)),
        }
    }

    /// The socket takes bytes again.
    pub(crate) fn on_writable(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        match self.drain(socket, now) {
            Ok(()) => Action::Stay,
            Err(unsent) => self.on_unsent(unsent, socket, now),
        }
    }

    /// Sends as much of the backlog as the socket takes.
    pub(super) fn drain(&mut self, socket: &mut impl Socket, now: Millis) -> Result<(), Unsent> {
        if self.is_in_handshake() {
            return Ok(());
        }
        if let Some(queue) = &mut self.outbound {
            let is_empty = queue.send(socket, self.encoding, now).map_err(|_| Unsent::Gone)?;
            self.alive_at = self.alive_at.max(queue.progress_at);
            if is_empty {
                self.outbound = None;
            }
        }
        self.finish_if_sent(socket, now);
        Ok(())
    }

    /// Bytes of memory that wait for the client, after the slice that is being sent.
    pub(crate) fn backlog(&self) -> usize {
        self.outbound.as_ref().map_or(0, |queue| queue.backlog())
    }

    /// Bytes of memory that the session uses beyond what an idle one does. Sessions share batches, and each counts them.
    pub(crate) fn memory(&self) -> usize {
        self.outbound.as_ref().map_or(0, |queue| queue.memory()) + self.reader.memory()
    }

    /// Whether the session has to be told when its socket takes bytes again.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outbound.is_some() && !self.is_in_handshake()
    }

    fn has_too_much(&self) -> bool {
        self.backlog() > self.endpoint.config.max_queue_bytes && !self.is_closing()
    }
}
