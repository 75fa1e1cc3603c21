//! One browser connection as data, and its transitions: readable, writable, tick, close.
//!
//! Between two calls a session is complete and portable: its channel and endpoint, the bytes
//! it has read and not used, what it still has to send, its liveness clock. It knows its
//! socket and nothing else. May not enter: the broker, the hub, tasks, other sessions.

pub(crate) mod portable;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;

use crate::channel::Channel;
use crate::clock::{Millis, millis};
use crate::close::CloseReason;
use crate::config::BinaryPolicy;
use crate::id::SubscriberId;
use crate::os;
use crate::protocol::encoding::Wire;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::{Batch, Outbound};
use crate::protocol::websocket::frame;
use crate::protocol::websocket::reader::{Flow, Incoming, Reader};
use crate::worker::reactor::Wants;

/// Bytes read from a socket at once. Chosen: a whole largest message of the Lua handler's
/// limit and its header; one buffer per worker, not per session.
const SCRATCH_BYTES: usize = 66 << 10;

/// Where a worker's sessions receive bytes, one after the other.
#[derive(Debug)]
pub(crate) struct Scratch {
    bytes: Vec<u8>,
    /// Bytes that were judged, and not accounted for.
    pub(crate) work: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { bytes: vec![0; SCRATCH_BYTES], work: 0 }
    }
}

/// What became of a client's message in the worker's queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queued {
    /// What it counts for while it waits.
    pub(crate) bytes: usize,
    /// How many bytes its session may have waiting.
    pub(crate) allowance: usize,
}

impl Queued {
    /// It does not wait.
    pub(crate) const NOTHING: Self = Self { bytes: 0, allowance: usize::MAX };
}

/// How long a client's close frame is awaited after ours, and then its FIN after ours.
/// Chosen: a browser answers within a round trip; the wire contract allows 2.5 s in all.
const CLOSE_WAIT: Millis = 1_000;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Subscribed; its 101 has not left. What is published is queued.
    Opening,
    /// Messages go both ways.
    Open,
    /// A close frame is the last we send. `awaits_reply`: the client's is to come.
    Closing { reason: CloseReason, until: Millis, awaits_reply: bool },
    /// FIN is sent; what the client still sends is read off, because closing a socket
    /// with unread bytes resets it, and a reset can destroy the close frame on its way.
    Ending { reason: CloseReason, until: Millis },
}

/// A client's message, for the worker to queue or to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A text to publish.
    Text(&'a [u8]),
    /// A binary message to publish.
    Binary(&'a [u8]),
    /// A binary message that the endpoint's wire reads and ignores.
    IgnoredBinary,
    /// A message over which the session is closed.
    Refused(CloseReason),
}

/// What a transition asks of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing.
    Stay,
    /// The socket has more to read: call again when the others had their turn.
    Again,
    /// Close it for this reason: [`Session::close`].
    Close(CloseReason),
    /// It closes itself and needs no publications any more.
    Closing,
    /// It is over: drop it.
    End(CloseReason),
}

/// One browser connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) endpoint: Rc<Endpoint>,
    pub(crate) channel: Channel,
    wire: Wire,
    /// Its places in the hub: one today, several channels on one connection later.
    pub(crate) subscriptions: Vec<SubscriberId>,
    socket: Option<OwnedFd>,
    phase: Phase,
    reader: Reader,
    outbound: Option<Box<Outbound>>,
    /// When the client sent something last, and when it was last pinged.
    heard_at: Millis,
    pinged_at: Millis,
    /// When it gave a sign of life: sent something, or took something of a backlog.
    alive_at: Millis,
    /// Its texts that the broker has not answered for: their bytes, their number, and since
    /// when there was no progress with them.
    unpublished_bytes: usize,
    unpublished_texts: usize,
    unpublished_since: Millis,
    /// Whether its socket is not read, because too many texts wait.
    is_paused: bool,
    /// Whether those are of others, too: it is in the worker's list of who is not read.
    is_held: bool,
    /// When the wheel shall bring it up; the worker's book-keeping.
    pub(crate) due: Millis,
    /// Whether it is in the worker's list of those with more to read; the worker's book-keeping.
    pub(crate) has_another_turn: bool,
    /// What its socket is registered for; the worker's book-keeping.
    pub(crate) registered: Wants,
}

impl Session {
    pub(crate) fn new(endpoint: Rc<Endpoint>, channel: Channel, wire: Wire, now: Millis) -> Self {
        Self {
            endpoint,
            channel,
            wire,
            subscriptions: Vec::new(),
            socket: None,
            phase: Phase::Opening,
            reader: Reader::default(),
            outbound: None,
            heard_at: now,
            pinged_at: now,
            alive_at: now,
            unpublished_bytes: 0,
            unpublished_texts: 0,
            unpublished_since: now,
            is_paused: false,
            is_held: false,
            due: Millis::MAX,
            has_another_turn: false,
            registered: Wants::Read,
        }
    }

    /// Gives the session its socket. The 101, `head`, is sent, then what waits.
    pub(crate) fn attach(&mut self, socket: OwnedFd, head: &[u8], now: Millis) -> Outcome {
        // A socket that has not sent a byte takes the few of a head, or it is broken.
        let sent = os::socket::send_bytes(socket.as_fd(), head);
        self.socket = Some(socket);
        if sent.ok() != Some(head.len()) {
            return Outcome::End(CloseReason::ClientGone);
        }
        self.phase = Phase::Open;
        (self.heard_at, self.pinged_at, self.alive_at) = (now, now, now);
        self.on_writable(now)
    }

    pub(crate) fn wire(&self) -> Wire {
        self.wire
    }

    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// What the socket should be registered for.
    pub(crate) fn wants(&self) -> Wants {
        if self.outbound.is_some() { Wants::ReadAndWrite } else { Wants::Read }
    }

    /// Sends whole frames, or queues what the socket does not take.
    pub(crate) fn deliver(&mut self, frames: &mut Batch<'_>, now: Millis) -> Outcome {
        if matches!(self.phase, Phase::Closing { .. } | Phase::Ending { .. }) {
            return Outcome::Stay;
        }
        self.push(frames, now)
    }

    fn push(&mut self, frames: &mut Batch<'_>, now: Millis) -> Outcome {
        let Some(queue) = &mut self.outbound else {
            let sent = match &self.socket {
                Some(socket) => match os::socket::send_bytes(socket.as_fd(), frames.bytes()) {
                    Ok(sent) if sent == frames.bytes().len() => return Outcome::Stay,
                    Ok(sent) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(_) => return self.on_unsendable(),
                },
                None => 0,
            };
            self.outbound = Some(Box::new(Outbound::with_rest(frames.share(), sent, now)));
            return Outcome::Stay;
        };
        queue.push(frames.share());
        if !self.has_too_much() {
            return Outcome::Stay;
        }
        // There may be room by now, of which the reactor has not told yet.
        match self.on_writable(now) {
            Outcome::Stay if self.has_too_much() => Outcome::Close(CloseReason::SlowConsumer),
            other => other,
        }
    }

    /// Bytes that wait for its client, behind those that are being sent.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.outbound.as_ref().map_or(0, |queue| queue.backlog())
    }

    fn has_too_much(&self) -> bool {
        self.waiting_bytes() > self.endpoint.config.max_queue_bytes
            && matches!(self.phase, Phase::Opening | Phase::Open)
    }

    /// Whether the other end (nginx, mostly) has not taken all that was sent to it.
    pub(crate) fn is_behind(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| os::socket::untaken_bytes(socket.as_fd()) > 0)
    }

    /// The socket takes bytes again.
    pub(crate) fn on_writable(&mut self, now: Millis) -> Outcome {
        let (Some(socket), Some(queue)) = (&self.socket, &mut self.outbound) else { return self.finish_if_said(now) };
        match queue.send(socket.as_fd(), now) {
            Ok(is_empty) => {
                self.alive_at = self.alive_at.max(queue.progress_at);
                if is_empty {
                    self.outbound = None;
                }
                self.finish_if_said(now)
            }
            Err(_) => self.on_unsendable(),
        }
    }

    /// The client takes nothing any more. What it sent before it went is still in the socket and
    /// is read first: the read that finds the end ends the session.
    fn on_unsendable(&mut self) -> Outcome {
        self.outbound = None;
        match self.phase {
            Phase::Open => Outcome::Again,
            Phase::Opening | Phase::Closing { .. } | Phase::Ending { .. } => {
                Outcome::End(self.reason_or(CloseReason::ClientGone))
            }
        }
    }

    /// Sends FIN when the close frame has left and no reply is awaited.
    fn finish_if_said(&mut self, now: Millis) -> Outcome {
        if let (Phase::Closing { reason, awaits_reply: false, .. }, None, Some(socket)) =
            (self.phase, &self.outbound, &self.socket)
        {
            os::socket::finish_sending(socket);
            self.phase = Phase::Ending { reason, until: now + CLOSE_WAIT };
        }
        Outcome::Stay
    }

    /// The socket has bytes, or its end, which `hung_up` announces: one read of them, so that the others have
    /// their turn soon. Messages go to `publish`.
    pub(crate) fn on_readable(
        &mut self,
        scratch: &mut Scratch,
        hung_up: bool,
        now: Millis,
        mut publish: impl FnMut(&Channel, Message<'_>) -> Queued,
    ) -> Outcome {
        if self.is_paused {
            return Outcome::Stay;
        }
        if self.reader.was_interrupted() {
            // What its last turn left comes first.
            return match self.judge(&mut [], now, &mut publish) {
                Outcome::Stay => Outcome::Again,
                other => other,
            };
        }
        let Some(socket) = &self.socket else { return Outcome::Stay };
        let read = match os::socket::receive(socket.as_fd(), &mut scratch.bytes) {
            Ok(0) => return Outcome::End(self.reason_or(CloseReason::ClientGone)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Stay,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Outcome::Again,
            Err(_) => return Outcome::End(self.reason_or(CloseReason::ClientGone)),
        };
        scratch.work += read;
        self.heard_at = now;
        self.alive_at = now;
        // A short read left nothing behind (epoll(7), Q&A 9), so the next edge tells.
        let is_drained = read < scratch.bytes.len() && !hung_up;
        match self.judge(scratch.bytes.get_mut(..read).unwrap_or_default(), now, &mut publish) {
            Outcome::Stay if !is_drained => Outcome::Again,
            other => other,
        }
    }

    /// Bytes that were read by somebody else (hyper's read-ahead), or earlier, while the
    /// session was paused.
    pub(crate) fn judge(
        &mut self,
        bytes: &mut [u8],
        now: Millis,
        publish: &mut impl FnMut(&Channel, Message<'_>) -> Queued,
    ) -> Outcome {
        let phase = self.phase;
        match phase {
            Phase::Open => {}
            Phase::Closing { awaits_reply: true, .. } => {}
            Phase::Opening => return Outcome::Stay,
            Phase::Closing { .. } | Phase::Ending { .. } => {
                // Read off, and never judged.
                self.reader = Reader::default();
                return Outcome::Stay;
            }
        }
        // What a client sends before it saw that we go away is published all the same.
        let takes_texts = matches!(phase, Phase::Open | Phase::Closing { reason: CloseReason::GoingAway, .. });
        let mut replies = Vec::new();
        let mut refused = None;
        let mut closed = None;
        let config = &self.endpoint.config;
        let judged = self.reader.feed(bytes, config.max_message_bytes, |incoming| {
            let message = match incoming {
                Incoming::Binary(_) if self.wire.ignores_binary() => Message::IgnoredBinary,
                Incoming::Text(_) | Incoming::Binary(_) if !config.publish => {
                    Message::Refused(CloseReason::PublishDenied)
                }
                Incoming::Binary(_) if config.binary == BinaryPolicy::Close => {
                    Message::Refused(CloseReason::BinaryRefused)
                }
                Incoming::Text(text) => Message::Text(text.as_bytes()),
                Incoming::Binary(payload) => Message::Binary(payload),
                Incoming::Ping(payload) => {
                    replies.extend_from_slice(&frame::pong(payload));
                    return Flow::Continue;
                }
                Incoming::Pong => return Flow::Continue,
                Incoming::Close(code) => {
                    closed = Some(code);
                    return Flow::Stop;
                }
            };
            if !takes_texts {
                return Flow::Continue;
            }
            let queued = publish(&self.channel, message);
            match message {
                Message::Text(_) | Message::Binary(_) => {
                    if self.unpublished_texts == 0 {
                        self.unpublished_since = now;
                    }
                    self.unpublished_texts += 1;
                    self.unpublished_bytes += queued.bytes;
                }
                Message::IgnoredBinary => return Flow::Continue,
                Message::Refused(reason) => {
                    refused = Some(reason);
                    return Flow::Stop;
                }
            }
            if self.unpublished_bytes >= queued.allowance.min(config.max_unpublished_bytes) {
                self.is_paused = true;
                return Flow::Pause;
            }
            Flow::Continue
        });
        let replied = if replies.is_empty() || phase != Phase::Open {
            Outcome::Stay
        } else {
            self.push(&mut Batch::new(&replies), now)
        };
        match (judged, closed) {
            (Err(reason), _) => Outcome::Close(reason),
            (Ok(Flow::Interrupt), None) if replied == Outcome::Stay => Outcome::Again,
            (Ok(_), None) => refused.map_or(replied, Outcome::Close),
            (Ok(_), Some(code)) => self.on_client_close(code, now),
        }
    }

    fn on_client_close(&mut self, code: Option<u16>, now: Millis) -> Outcome {
        if let Phase::Closing { awaits_reply, .. } = &mut self.phase {
            *awaits_reply = false;
            return self.finish_if_said(now);
        }
        let reply = self.wire.close_reply(code);
        self.last_frame(CloseReason::ClientClosed, &reply, now)
    }

    /// Starts to close: the frame that `reason` says, then FIN.
    pub(crate) fn close(&mut self, reason: CloseReason, now: Millis) -> Outcome {
        let row = reason.row();
        match (self.phase, row.code) {
            (Phase::Open, Some(code)) => self.last_frame(reason, &frame::close(Some(code), row.text), now),
            (Phase::Opening, _) | (_, None) => Outcome::End(reason),
            (Phase::Closing { .. } | Phase::Ending { .. }, _) => {
                // The peer breaks the protocol or stalls while it is being closed.
                Outcome::End(self.reason_or(reason))
            }
        }
    }

    fn last_frame(&mut self, reason: CloseReason, frame: &Bytes, now: Millis) -> Outcome {
        if matches!(reason, CloseReason::SlowConsumer | CloseReason::Stalled | CloseReason::ClientClosed)
            && let Some(queue) = &mut self.outbound
        {
            // Nobody would read what waits; the frame that is half sent has to be finished.
            queue.keep_begun_frame();
        }
        // A client that broke the protocol is not waited for (RFC 6455 §7.1.7).
        let awaits_reply = !matches!(
            reason,
            CloseReason::ClientClosed | CloseReason::ProtocolError | CloseReason::InvalidText | CloseReason::TooBig
        );
        self.phase = Phase::Closing { reason, until: now + CLOSE_WAIT, awaits_reply };
        self.is_paused = false;
        if !awaits_reply {
            self.reader = Reader::default();
        }
        match self.push(&mut Batch::new(frame), now) {
            Outcome::Stay => {
                self.finish_if_said(now);
                Outcome::Closing
            }
            other => other,
        }
    }

    /// What time does to a session.
    pub(crate) fn on_tick(&mut self, now: Millis) -> Outcome {
        let stall_timeout = self.endpoint.config.stall_timeout;
        match self.phase {
            Phase::Opening => Outcome::Stay,
            Phase::Closing { reason, until, awaits_reply } if now >= until => {
                if awaits_reply && self.outbound.is_none() {
                    // The reply does not come; FIN may end it in order all the same.
                    self.phase = Phase::Closing { reason, until, awaits_reply: false };
                    return self.finish_if_said(now);
                }
                Outcome::End(reason)
            }
            Phase::Ending { reason, until } if now >= until => Outcome::End(reason),
            Phase::Closing { .. } | Phase::Ending { .. } => Outcome::Stay,
            Phase::Open => {
                let waited = |since: Millis, limit| now.saturating_sub(since) >= millis(limit);
                let is_stalled = |queue: &Option<Box<Outbound>>| {
                    queue.as_ref().is_some_and(|q| waited(q.progress_at, stall_timeout))
                };
                if is_stalled(&self.outbound) {
                    // A Unix socket is reported as writable when three quarters of its buffer are
                    // free (the kernel's unix_writable); what a slow reader took is found by trying.
                    match self.on_writable(now) {
                        Outcome::Stay if is_stalled(&self.outbound) => return Outcome::Close(CloseReason::Stalled),
                        Outcome::Stay => {}
                        other => return other,
                    }
                }
                let config = &self.endpoint.config;
                // A client that is not read cannot show that it lives.
                if !config.idle_timeout.is_zero() && !self.is_paused && waited(self.alive_at, config.idle_timeout) {
                    return Outcome::Close(CloseReason::Silent);
                }
                if self.unpublished_texts > 0 && waited(self.unpublished_since, config.publish_timeout) {
                    return Outcome::Close(CloseReason::NotPublished);
                }
                if !config.ping_interval.is_zero() && waited(self.heard_at.max(self.pinged_at), config.ping_interval) {
                    self.pinged_at = now;
                    return self.push(&mut Batch::new(frame::PING), now);
                }
                Outcome::Stay
            }
        }
    }

    /// When [`Session::on_tick`] should be called next, if nothing happens until then.
    pub(crate) fn next_due(&self) -> Millis {
        let config = &self.endpoint.config;
        match self.phase {
            Phase::Opening => Millis::MAX,
            Phase::Closing { until, .. } | Phase::Ending { until, .. } => until,
            Phase::Open => {
                let limit = |since: Millis, limit: std::time::Duration| {
                    if limit.is_zero() { Millis::MAX } else { since + millis(limit) }
                };
                let stalled = self.outbound.as_ref().map(|queue| limit(queue.progress_at, config.stall_timeout));
                let unpublished =
                    (self.unpublished_texts > 0).then(|| limit(self.unpublished_since, config.publish_timeout));
                limit(self.heard_at.max(self.pinged_at), config.ping_interval)
                    .min(if self.is_paused { Millis::MAX } else { limit(self.alive_at, config.idle_timeout) })
                    .min(stalled.unwrap_or(Millis::MAX))
                    .min(unpublished.unwrap_or(Millis::MAX))
            }
        }
    }

    /// The broker took one of its texts, which counts for `bytes`. True when the session can be read again,
    /// which may have `allowance` bytes waiting.
    pub(crate) fn on_published(&mut self, bytes: usize, allowance: usize, now: Millis) -> bool {
        self.unpublished_texts = self.unpublished_texts.saturating_sub(1);
        self.unpublished_bytes = self.unpublished_bytes.saturating_sub(bytes);
        self.unpublished_since = now;
        self.may_resume(allowance)
    }

    /// Pauses it until [`Session::release`], because the worker has no room for its texts. True when
    /// that is new.
    pub(crate) fn hold(&mut self) -> bool {
        self.is_paused = true;
        !std::mem::replace(&mut self.is_held, true)
    }

    /// Ends what [`Session::hold`] began.
    pub(crate) fn release(&mut self) {
        self.is_held = false;
    }

    /// Whether a pause can end: half of the `allowance` bytes that it may have waiting are free again.
    pub(crate) fn may_resume(&self, allowance: usize) -> bool {
        let room = allowance.min(self.endpoint.config.max_unpublished_bytes);
        self.is_paused && !self.is_held && self.unpublished_bytes <= room / 2
    }

    /// Ends a pause: what was read and kept comes first.
    pub(crate) fn resume(&mut self, now: Millis, publish: &mut impl FnMut(&Channel, Message<'_>) -> Queued) -> Outcome {
        self.is_paused = false;
        self.alive_at = now;
        if self.reader.has_unread() { self.judge(&mut [], now, publish) } else { Outcome::Stay }
    }

    /// Whether messages go both ways.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the broker has not answered for all of its texts.
    pub(crate) fn has_unpublished(&self) -> bool {
        self.unpublished_texts > 0
    }

    /// Whether a close of ours or the client's is under way.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. } | Phase::Ending { .. })
    }

    fn reason_or(&self, other: CloseReason) -> CloseReason {
        match self.phase {
            Phase::Closing { reason, .. } | Phase::Ending { reason, .. } => reason,
            Phase::Opening | Phase::Open => other,
        }
    }
}
