//! Access to the hot rooms for benchmarks and fuzzers, behind the feature `internals`.
//!
//! Not part of the library's promises. May not enter: code that the sidecar uses.

pub mod replay;

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::channel::Channel;
use crate::clock;
use crate::config::{Config, EndpointConfig};
use crate::front::head::Head;
use crate::handover::protocol::{self, Message};
use crate::id::SessionKey;
use crate::placement::{Node, Placement};
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::hub::{Hub, Outlet};
use crate::protocol::outbound::{Batch, Outbound};
use crate::protocol::session::{Payload, Publish, Queued, Rejected, Session};
use crate::protocol::socket::memory::MemorySocket;
use crate::protocol::websocket::reader::{Flow, Incoming, Reader};

/// The channel that a query names at the drop-in endpoint.
pub fn channel(query: &[u8]) -> Option<Bytes> {
    let endpoint = Endpoint::new(EndpointConfig::default());
    let (channel, _) = endpoint.channel_called(&endpoint.named(b"/webws", query).ok()?).ok()?;
    Some(channel.into_bytes())
}

/// The target of a request that starts with a whole head, as `path?query`, and the head that hyper gets.
pub fn take_apart(request: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut head = Head::handed_off(request.to_vec());
    let target = head.take_target()?;
    let rest = head.read(usize::MAX).to_vec();
    Some(([target.path(), b"?", target.query()].concat(), rest))
}

/// Whether `text` is a valid configuration.
pub fn is_config(text: &str) -> bool {
    Config::read("fuzz", text, []).is_ok_and(|config| config.validate().is_ok())
}

/// Splits a subscribing link's stream into the payloads of publications, and all other replies.
pub fn split(stream: &[u8]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    crate::broker::redis::split(stream)
}

/// Appends the Lua wire's frame for a publication on `chat:` and a name.
pub fn encode(channel: &[u8], payload: &[u8], out: &mut BytesMut) {
    Encoding::Lua { name_at: 5 }.encode(channel, payload, None, out);
}

/// Decodes the bytes of one client.
#[derive(Debug, Default)]
pub struct Decoder(Reader);

impl Decoder {
    /// Decodes the next bytes; returns the whole text messages, or `None` when the client broke the protocol.
    pub fn feed(&mut self, bytes: &mut [u8]) -> Option<Vec<String>> {
        let mut texts = Vec::new();
        let flow = self.0.feed(bytes, 65_535, |incoming| {
            if let Incoming::Text(text) = incoming {
                texts.push(text.to_owned());
            }
            Flow::Continue
        });
        flow.ok().map(|_| texts)
    }
}

/// A hub with sessions that only queue.
#[derive(Debug)]
pub struct Fanout {
    hub: Hub,
    queues: Vec<Outbound>,
}

impl Fanout {
    /// `channels` channels (`chat:c0`, `chat:c1`, …) with `subscribers` each.
    pub fn new(channels: u32, subscribers: u32) -> Self {
        let mut hub = Hub::new(0, std::time::Duration::ZERO, Placement::over(1));
        for n in 0..channels * subscribers {
            let channel = Channel::from(format!("chat:c{}", n % channels));
            hub.join(&channel, Encoding::Lua { name_at: 5 }, SessionKey { index: n, generation: 0 });
            hub.confirm(Node(0), &channel);
        }
        let queues = (0..channels * subscribers).map(|_| Outbound::new(0)).collect();
        Self { hub, queues }
    }

    /// Frames a publication into its audience's batch.
    pub fn append(&mut self, channel: &[u8], payload: &[u8]) {
        self.hub.append(channel, payload);
    }

    /// Puts the batches into the queues; returns the number of delivered frames.
    pub fn flush(&mut self) -> u64 {
        self.hub.flush(&mut Queues(&mut self.queues)).frames
    }

    /// As [`Fanout::flush`] to sockets that take everything.
    pub fn flush_to_sockets(&mut self) -> u64 {
        self.hub.flush(&mut Sockets).frames
    }

    /// Empties the queues.
    pub fn drain(&mut self) {
        for queue in &mut self.queues {
            queue.keep_begun_frame();
        }
    }
}

/// Decodes a message of a hand-over as the new process does, and adopts each valid session, with a socket that is read
/// and written once. Returns the number of sessions.
#[must_use]
pub fn adopt(message: &[u8]) -> usize {
    let Ok(Message::Sessions { sessions, .. }) = protocol::decode(message) else { return 0 };
    let adopted = sessions.into_iter().filter_map(|snapshot| {
        let mut socket = MemorySocket::roomy();
        let endpoint = Rc::new(Endpoint::new(EndpointConfig::default()));
        let mut session = Session::adopt(snapshot, endpoint, clock::START).ok()?;
        let ticked = session.on_tick(&mut socket, clock::START);
        let decoded = session.decode(&mut [], &mut socket, clock::START, &mut Nowhere);
        let sent = session.on_writable(&mut socket, clock::START);
        session.next_due();
        Some((ticked, decoded, sent, session.snapshot(clock::START)))
    });
    adopted.count()
}

/// An outbox that takes everything.
struct Nowhere;

impl Publish for Nowhere {
    fn publish(&mut self, _: &Channel, payload: Payload<'_>) -> Queued {
        std::hint::black_box(payload);
        Queued { bytes: 0, allowance: usize::MAX }
    }

    fn reject(&mut self, rejected: Rejected) {
        std::hint::black_box(rejected);
    }
}

struct Queues<'a>(&'a mut Vec<Outbound>);

impl Outlet for Queues<'_> {
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
        if let Some(queue) = self.0.get_mut(session.index as usize) {
            queue.push(batch.share());
        }
    }

    fn is_behind(&mut self, _: SessionKey) -> bool {
        false
    }

    fn now(&self) -> std::time::Instant {
        std::time::Instant::now()
    }
}

struct Sockets;

impl Outlet for Sockets {
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
        std::hint::black_box((session, batch));
    }

    fn is_behind(&mut self, _: SessionKey) -> bool {
        false
    }

    fn now(&self) -> std::time::Instant {
        std::time::Instant::now()
    }
}
