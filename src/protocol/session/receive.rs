//! The receiving half of a session: bytes become client messages, and a client that sends too fast is paused. May not
//! enter: the decoding of frames (`websocket/reader.rs`).

use std::io;

use super::action::{Action, Payload, Publish, Queued, Rejected};
use super::rate::Rate;
use super::state::{Phase, Session, Waiting};
use super::subscription::Subscription;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::config::{BinaryPolicy, EndpointConfig, RateConfig, RatePolicy};
use crate::protocol::encoding::Encoding;
use crate::protocol::outbound::Batch;
use crate::protocol::socket::Socket;
use crate::protocol::websocket::reader::{Flow, Incoming, Reader};

/// Bytes read from a socket at once. Chosen: a whole largest message of the Lua handler's limit and its header; one
/// buffer per worker, not per session.
const SCRATCH_BYTES: usize = 66 << 10;

/// The buffer into which sessions receive bytes, one session after the other.
#[derive(Debug)]
pub(crate) struct Scratch {
    bytes: Vec<u8>,
    /// Bytes received in this turn: the owner bounds the work of a turn.
    pub(crate) work: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { bytes: vec![0; SCRATCH_BYTES], work: 0 }
    }
}

impl Session {
    /// Reads the socket once, so that other sessions have their turn soon. `hung_up`: the reactor has reported the end.
    pub(crate) fn on_readable(
        &mut self,
        socket: &mut impl Socket,
        scratch: &mut Scratch,
        hung_up: bool,
        now: Millis,
        outbox: &mut impl Publish,
    ) -> Action {
        debug_assert!(!self.is_in_handshake(), "a handshake has no socket");
        if self.waiting.is_paused {
            return Action::Stay;
        }
        if self.reader.was_interrupted() {
            // Bytes that the last turn left come first.
            return again_if_idle(self.decode(&mut [], socket, now, outbox));
        }
        let read = match socket.receive(&mut scratch.bytes) {
            Ok(0) => return Action::End(self.reason_or(CloseReason::ClientGone)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Action::Stay,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Action::ReadAgain,
            Err(_) => return Action::End(self.reason_or(CloseReason::ClientGone)),
        };
        scratch.work += read;
        self.heard_at = now;
        self.alive_at = now;
        // After a short read the socket is empty (epoll(7), Q&A 9), so the next edge announces new bytes.
        let is_drained = read < scratch.bytes.len() && !hung_up;
        let bytes = scratch.bytes.get_mut(..read).expect("a socket receives no more than the buffer holds");
        let action = self.decode(bytes, socket, now, outbox);
        if is_drained { action } else { again_if_idle(action) }
    }

    /// Decodes bytes: those just received, those that followed the request, or those kept while the session was paused.
    pub(crate) fn decode(
        &mut self,
        bytes: &mut [u8],
        socket: &mut impl Socket,
        now: Millis,
        outbox: &mut impl Publish,
    ) -> Action {
        if self.encoding.is_one_way() {
            // HTTP allows a further request behind the first; the connection ends with its answer, so none is served.
            return Action::Stay;
        }
        let phase = self.phase;
        match phase {
            Phase::Open | Phase::Closing { awaits_reply: true, .. } => {}
            Phase::Subscribing { .. } | Phase::Opening => return Action::Stay,
            Phase::Closing { .. } | Phase::Ending { .. } => {
                // A lingering close reads bytes off, and decodes none.
                self.reader = Reader::default();
                return Action::Stay;
            }
        }
        let config = &self.endpoint.config;
        let mut turn = Turn {
            config,
            encoding: self.encoding,
            subscription: self.subscriptions.first().expect("a session has a channel"),
            // Messages that the client sent before it received the 1001 are still published.
            takes_messages: matches!(phase, Phase::Open | Phase::Closing { reason: CloseReason::GoingAway, .. }),
            waiting: &mut self.waiting,
            rate: config.rate.as_ref().map(|config| {
                let rare = self.rare.get_or_insert_default();
                (config, rare.rate.get_or_insert_default())
            }),
            replies: Vec::new(),
            refused: None,
            closed: None,
            now,
            outbox,
        };
        let decoded = self.reader.feed(bytes, config.max_message_bytes, |incoming| turn.on(&incoming));
        let Turn { replies, refused, closed, .. } = turn;
        let replied = if replies.is_empty() || phase != Phase::Open {
            Ok(())
        } else {
            self.push(&mut Batch::new(&replies), socket, now)
        };
        match (decoded, closed, refused, replied) {
            (Err(reason), ..) | (Ok(_), None, Some(reason), _) => self.fault(reason, socket, now),
            (Ok(_), Some(code), ..) => self.on_client_close(code, socket, now),
            (Ok(_), None, None, Err(unsent)) => self.on_unsent(unsent, socket, now),
            (Ok(Flow::Interrupt), None, None, Ok(())) => Action::ReadAgain,
            (Ok(_), None, None, Ok(())) => Action::Stay,
        }
    }

    /// The broker has answered for a message with a cost of `bytes`. A paused session may be read again when at most
    /// half of `allowance` waits.
    pub(crate) fn on_published(&mut self, bytes: usize, allowance: usize, now: Millis) -> Action {
        let waiting = &mut self.waiting;
        debug_assert!(waiting.messages > 0 && waiting.bytes >= bytes, "the broker answers once for a message");
        waiting.messages = waiting.messages.saturating_sub(1);
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
        waiting.since = now;
        if self.may_end_pause(allowance, now) { Action::ReadAgain } else { Action::Stay }
    }

    /// Stops reading until [`Session::end_pause`], because the outbox is full.
    pub(crate) fn pause(&mut self) {
        debug_assert!(self.is_open(), "a closing session is read until its end");
        self.waiting.is_paused = true;
    }

    /// Whether a pause can end: half of `allowance` is free again, and the client is not too fast.
    pub(crate) fn may_end_pause(&self, allowance: usize, now: Millis) -> bool {
        let room = allowance.min(self.endpoint.config.max_unpublished_bytes);
        let may_send = self.rate().is_none_or(|rate| rate.free_at() <= now);
        self.waiting.is_paused && self.waiting.bytes <= room / 2 && may_send
    }

    /// Ends a pause, and decodes the bytes that were kept.
    pub(crate) fn end_pause(&mut self, socket: &mut impl Socket, now: Millis, outbox: &mut impl Publish) -> Action {
        self.waiting.is_paused = false;
        self.alive_at = now;
        if self.reader.has_unread() { self.decode(&mut [], socket, now, outbox) } else { Action::Stay }
    }

    /// Whether the broker has not answered for all of the session's messages.
    pub(crate) fn has_waiting_messages(&self) -> bool {
        self.waiting.messages > 0
    }
}

fn again_if_idle(action: Action) -> Action {
    if action == Action::Stay { Action::ReadAgain } else { action }
}

/// The state that the messages of one [`Session::decode`] work on.
struct Turn<'a, P> {
    config: &'a EndpointConfig,
    encoding: Encoding,
    subscription: &'a Subscription,
    takes_messages: bool,
    waiting: &'a mut Waiting,
    /// How fast the client may send, and how fast it sends.
    rate: Option<(&'a RateConfig, &'a mut Rate)>,
    /// Pongs.
    replies: Vec<u8>,
    /// Why a message closes the session.
    refused: Option<CloseReason>,
    /// The client's close frame and its code.
    closed: Option<Option<u16>>,
    now: Millis,
    outbox: &'a mut P,
}

impl<P: Publish> Turn<'_, P> {
    fn on(&mut self, incoming: &Incoming<'_>) -> Flow {
        let payload = match *incoming {
            Incoming::Text(text) => Payload::Text(text.as_bytes()),
            Incoming::Binary(bytes) => Payload::Binary(bytes),
            Incoming::Ping(bytes) => {
                self.replies.extend_from_slice(&self.encoding.pong(bytes));
                return Flow::Continue;
            }
            Incoming::Pong => return Flow::Continue,
            Incoming::Close(code) => {
                self.closed = Some(code);
                return Flow::Stop;
            }
        };
        if !self.takes_messages {
            return Flow::Continue;
        }
        match self.rejection(payload) {
            None => self.take(payload),
            Some(rejected) => {
                self.outbox.reject(rejected);
                match rejected {
                    Rejected::IgnoredBinary => Flow::Continue,
                    Rejected::Closes(reason) => {
                        self.refused = Some(reason);
                        Flow::Stop
                    }
                }
            }
        }
    }

    /// Why a message is not published; `None` when it is.
    fn rejection(&self, payload: Payload<'_>) -> Option<Rejected> {
        let is_binary = matches!(payload, Payload::Binary(_));
        if is_binary && self.encoding.ignores_binary() {
            Some(Rejected::IgnoredBinary)
        } else if !self.subscription.rights.may_publish {
            Some(Rejected::Closes(CloseReason::PublishDenied))
        } else if is_binary && self.config.binary == BinaryPolicy::Close {
            Some(Rejected::Closes(CloseReason::BinaryRefused))
        } else {
            None
        }
    }

    /// Publishes a message, unless it comes too fast for an endpoint that closes then.
    fn take(&mut self, payload: Payload<'_>) -> Flow {
        let bytes = match payload {
            Payload::Text(bytes) | Payload::Binary(bytes) => bytes.len(),
        };
        let Some((config, rate)) = &mut self.rate else { return self.publish(payload) };
        if rate.take(config, bytes, self.now) {
            return self.publish(payload);
        }
        if config.over == RatePolicy::Close {
            self.outbox.reject(Rejected::Closes(CloseReason::TooFast));
            self.refused = Some(CloseReason::TooFast);
            return Flow::Stop;
        }
        rate.resumes_at = rate.free_at();
        self.publish(payload);
        self.waiting.is_paused = true;
        Flow::Pause
    }

    fn publish(&mut self, payload: Payload<'_>) -> Flow {
        let Queued { bytes, allowance } = self.outbox.publish(&self.subscription.channel, payload);
        if self.waiting.messages == 0 {
            self.waiting.since = self.now;
        }
        self.waiting.messages += 1;
        self.waiting.bytes += bytes;
        if self.waiting.bytes >= allowance.min(self.config.max_unpublished_bytes) {
            self.waiting.is_paused = true;
            return Flow::Pause;
        }
        Flow::Continue
    }
}
