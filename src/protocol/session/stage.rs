//! A session with its surroundings, for tests: a socket in memory, a number as the clock, an outbox that keeps
//! messages. May not enter: tests.

use std::rc::Rc;

use bytes::BytesMut;

use super::{Action, Grant, Payload, Publish, Queued, Rejected, Scratch, Session};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::config::{BinaryPolicy, EndpointConfig, NotUtf8Policy};
use crate::id::SubscriberId;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::Batch;
use crate::protocol::socket::memory::MemorySocket;
pub(super) use crate::protocol::websocket::client_frame::client_frame as frame;

pub(super) const CHANNEL: &[u8] = b"chat:a";
pub(super) const LUA: Encoding = Encoding::Lua { name_at: 5 };
pub(super) const SSE: Encoding = Encoding::Sse { not_utf8: NotUtf8Policy::Binary };
pub(super) const SUBSCRIBER: SubscriberId = SubscriberId(7);

/// An outbox that keeps all messages.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) messages: Vec<(&'static str, Vec<u8>)>,
    pub(super) rejected: Vec<Rejected>,
    /// The cost of one message, and of all messages that a session may have waiting.
    pub(super) cost: usize,
    pub(super) allowance: usize,
}

impl Publish for Kept {
    fn publish(&mut self, channel: &Channel, payload: Payload<'_>) -> Queued {
        assert_eq!(&**channel, CHANNEL);
        self.messages.push(match payload {
            Payload::Text(text) => ("text", text.to_vec()),
            Payload::Binary(bytes) => ("binary", bytes.to_vec()),
        });
        Queued { bytes: self.cost, allowance: self.allowance }
    }

    fn reject(&mut self, rejected: Rejected) {
        self.rejected.push(rejected);
    }
}

/// A session, and everything that its transitions touch.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) session: Session,
    pub(super) socket: MemorySocket,
    pub(super) outbox: Kept,
    pub(super) scratch: Scratch,
    pub(super) now: Millis,
}

impl Stage {
    /// A session in its handshake, with a subscription that is not confirmed.
    pub(super) fn subscribing(config: EndpointConfig, encoding: Encoding) -> Self {
        let now = 1_000_000;
        let endpoint = Rc::new(Endpoint::new(config));
        let grant = Grant::of(endpoint, Channel::from_static(CHANNEL), encoding);
        let mut session = Session::new(grant, now + 5_000, now);
        assert_eq!(session.begin(), Action::Subscribe);
        let subscription = session.next_to_join().expect("it has a channel");
        assert_eq!((&*subscription.channel, subscription.encoding), (CHANNEL, encoding));
        subscription.on_joined(SUBSCRIBER, Channel::from_static(CHANNEL), false);
        assert_eq!(session.on_joined(), Action::Stay);
        let outbox = Kept { messages: Vec::new(), rejected: Vec::new(), cost: 10, allowance: usize::MAX };
        Self { session, socket: MemorySocket::roomy(), outbox, scratch: Scratch::default(), now }
    }

    /// A session that is open; its 101 is taken.
    pub(super) fn open(config: EndpointConfig, encoding: Encoding) -> Self {
        let mut stage = Self::subscribing(config, encoding);
        let mut subscribed = stage.session.on_subscribed(SUBSCRIBER);
        if encoding.has_positions() {
            assert_eq!(subscribed, Action::Recover);
            subscribed = stage.session.on_recovered(b"", &mut stage.socket, stage.now);
        }
        assert_eq!(subscribed, Action::Upgrade);
        assert_eq!(stage.session.open(b"101", &mut stage.socket, stage.now), Action::Stay);
        assert_eq!(stage.sent(), b"101");
        stage
    }

    /// With the default endpoint.
    pub(super) fn lua() -> Self {
        Self::open(EndpointConfig::default(), LUA)
    }

    /// The bytes sent since the last call; the client takes all of them.
    pub(super) fn sent(&mut self) -> Vec<u8> {
        self.socket.taken = 0;
        std::mem::take(&mut self.socket.sent)
    }

    /// The client sends `bytes`, and the session reads once.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Action {
        self.socket.inbound.extend(bytes);
        let Self { session, socket, outbox, scratch, now } = self;
        session.on_readable(socket, scratch, false, *now, outbox)
    }

    /// The client closes its side.
    pub(super) fn hang_up(&mut self) -> Action {
        self.socket.is_peer_finished = true;
        let Self { session, socket, outbox, scratch, now } = self;
        session.on_readable(socket, scratch, true, *now, outbox)
    }

    /// A publication with `payload` is delivered.
    pub(super) fn deliver(&mut self, payload: &[u8]) -> Action {
        let frame = encoded(self.session.encoding, payload);
        self.session.deliver(&mut Batch::new(&frame), &mut self.socket, self.now)
    }

    pub(super) fn close(&mut self, reason: CloseReason) -> Action {
        self.session.close(reason, &mut self.socket, self.now)
    }

    pub(super) fn end_pause(&mut self) -> Action {
        self.session.end_pause(&mut self.socket, self.now, &mut self.outbox)
    }

    /// The socket takes `room` bytes more.
    pub(super) fn writable(&mut self, room: usize) -> Action {
        self.socket.room = room;
        self.session.on_writable(&mut self.socket, self.now)
    }

    /// Lets `time` pass with its timers. Returns the first action that is not [`Action::Stay`].
    pub(super) fn pass(&mut self, time: Millis) -> Action {
        let end = self.now + time;
        while self.session.next_due() <= end {
            self.now = self.session.next_due();
            let action = self.session.on_tick(&mut self.socket, self.now);
            if action != Action::Stay {
                return action;
            }
            assert!(self.session.next_due() > self.now, "a timer is set to the past");
        }
        self.now = end;
        Action::Stay
    }
}

/// The frame of a publication.
pub(super) fn encoded(encoding: Encoding, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    encoding.encode(CHANNEL, payload, None, &mut frame);
    frame.to_vec()
}

/// A server's close frame.
pub(super) fn close_frame(reason: CloseReason) -> Vec<u8> {
    let row = reason.row();
    [&[0x88, u8::try_from(row.text.len()).unwrap() + 2], &row.code.unwrap().to_be_bytes()[..], row.text.as_bytes()]
        .concat()
}

/// The last unit of a stream of server-sent events.
pub(super) fn close_comment(reason: CloseReason) -> Vec<u8> {
    let row = reason.row();
    format!(": {} {}\n\n", row.code.unwrap(), row.text).into_bytes()
}

/// An endpoint whose clients may publish binary messages.
pub(super) fn plain() -> EndpointConfig {
    EndpointConfig { binary: BinaryPolicy::Publish, ..EndpointConfig::plain() }
}

pub(super) const TEXT: u8 = 0x81;
pub(super) const BINARY: u8 = 0x82;
pub(super) const CLOSE: u8 = 0x88;
pub(super) const PING: u8 = 0x89;
pub(super) const PONG: u8 = 0x8a;
