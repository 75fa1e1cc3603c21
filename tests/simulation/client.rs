//! A client: sends frames in pieces, reads what it likes, stalls, vanishes; and knows all that it received. One with
//! positions comes back, and goes on where it was.
//!
//! May not enter: what should have been received (`ledger.rs`, `positions.rs`).

use super::received::{Item, event, message};
use crate::channel::Channel;
use crate::id::SessionKey;
use crate::position::Position;
use crate::protocol::encoding::Encoding;
use crate::protocol::websocket::client_frame::client_frame;
use crate::worker::simulated::SharedSocket;

/// What a handshake ends with, in the place of a 101's head.
pub(crate) const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// The prefix of all channels.
pub(crate) const PREFIX: &str = "c:";

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits for its answer.
    Handshake(SessionKey),
    /// It has its answer; the socket is on its way to the session.
    Answered(SessionKey),
    Open(SessionKey),
    /// It got another answer than a 101.
    Refused,
    /// Its connection is over.
    Ended,
    /// Its process died, and its worker's fate is of no interest.
    Orphaned,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: usize,
    pub(crate) worker: usize,
    pub(crate) channel: Channel,
    pub(crate) encoding: Encoding,
    /// Whether its session is closed when it missed something.
    pub(crate) closes_on_gap: bool,
    /// Whether its endpoint has a history.
    pub(crate) has_history: bool,
    /// The position with which it comes back, and until when it certainly had everything before.
    pub(crate) since: Option<Position>,
    pub(crate) since_at: u64,
    pub(crate) state: State,
    pub(crate) socket: SharedSocket,
    /// When its session got its socket, and the first publication that it must have.
    pub(crate) open_at: u64,
    pub(crate) first_order: u64,
    /// The bytes that its socket holds for it.
    pub(crate) capacity: usize,
    pub(crate) stalled_until: u64,
    /// How often it was refused.
    pub(crate) refusals: usize,
    pub(crate) is_told_of_room: bool,
    /// The gaps that its worker told of while it was open: from and to.
    pub(crate) gaps: Vec<(u64, u64)>,
    /// The times of which it was told when it came back that something may be missing.
    pub(crate) answers: Vec<(u64, u64)>,
    /// Bytes that were read and are not a whole frame.
    unread: Vec<u8>,
    has_head: bool,
    /// What it received, and before it came back.
    pub(crate) received: Vec<Item>,
    /// How much of that it had when it came back.
    before: usize,
    /// The code of the server's close frame.
    pub(crate) close_code: Option<u16>,
    pub(crate) pongs: usize,
    /// Bytes of the frame that it is sending.
    outgoing: Vec<u8>,
    /// Messages of which all bytes were sent.
    pub(crate) sent: usize,
    /// Whether it sent a close frame, or all that it will ever send.
    pub(crate) is_done: bool,
    pub(crate) has_vanished: bool,
}

impl Client {
    pub(crate) fn new(id: usize, channel: Channel, encoding: Encoding, closes_on_gap: bool) -> Self {
        Self {
            id,
            worker: usize::MAX,
            channel,
            encoding,
            closes_on_gap,
            has_history: encoding.has_positions(),
            since: None,
            since_at: 0,
            state: State::Refused,
            socket: SharedSocket::default(),
            open_at: 0,
            first_order: 0,
            capacity: 0,
            stalled_until: 0,
            refusals: 0,
            is_told_of_room: false,
            gaps: Vec::new(),
            answers: Vec::new(),
            unread: Vec::new(),
            has_head: false,
            received: Vec::new(),
            before: 0,
            close_code: None,
            pongs: 0,
            outgoing: Vec::new(),
            sent: 0,
            is_done: false,
            has_vanished: false,
        }
    }

    /// The same client, coming back with the last position that it has. `published_at` tells when a publication was made
    /// that no failover lost.
    pub(crate) fn again(&self, id: usize, published_at: impl Fn(&[u8]) -> Option<u64>) -> Self {
        let new = Self::new(id, self.channel.clone(), self.encoding, self.closes_on_gap);
        let Some(last) = self.received.iter().rposition(|item| item.position().is_some()) else { return new };
        let mut received = self.received[..=last].to_vec();
        // What it was told stays with it.
        received.extend(self.received[last..].iter().filter(|item| matches!(item, Item::Gap)).cloned());
        let since = self.received[last].position().map(|text| text.parse().expect("webws made it"));
        let before = received.len();
        let (first_order, gaps, answers) = (self.first_order, self.gaps.clone(), self.answers.clone());
        // The position may be older than the connection: its worker's link may have been late.
        let mut had = received.iter().rev().filter_map(|item| match item {
            Item::Publication { payload, .. } => published_at(payload),
            _ => None,
        });
        let since_at = had.next().unwrap_or(0);
        Self { since, since_at, received, before, first_order, gaps, answers, ..new }
    }

    pub(crate) fn key(&self) -> Option<SessionKey> {
        match self.state {
            State::Handshake(key) | State::Answered(key) | State::Open(key) => Some(key),
            State::Refused | State::Ended | State::Orphaned => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// The payload of its message number `n`, which no other client sends.
    pub(crate) fn message(id: usize, n: usize) -> String {
        format!("m{id}-{n}")
    }

    /// Begins to send a message, unless another is being sent.
    pub(crate) fn begin_message(&mut self, padding: usize) {
        if self.outgoing.is_empty() && !self.is_done && !self.encoding.is_one_way() {
            let payload = format!("{}{}!", Self::message(self.id, self.sent), " ".repeat(padding));
            self.outgoing = client_frame(0x81, payload.as_bytes());
        }
    }

    /// Sends a ping, unless a frame is being sent.
    pub(crate) fn ping(&mut self) {
        if self.outgoing.is_empty() && !self.is_done && !self.encoding.is_one_way() {
            self.push(&client_frame(0x89, b"p"));
        }
    }

    /// Says goodbye.
    pub(crate) fn close(&mut self) {
        if self.encoding.is_one_way() {
            self.socket.0.borrow_mut().is_peer_finished = true;
            self.is_done = true;
        } else if self.outgoing.is_empty() && !self.is_done {
            self.push(&client_frame(0x88, &1000_u16.to_be_bytes()));
            self.is_done = true;
        }
    }

    /// Goes away without a word.
    pub(crate) fn vanish(&mut self) {
        let mut socket = self.socket.0.borrow_mut();
        (socket.is_broken, socket.is_peer_finished) = (true, true);
        (self.is_done, self.has_vanished) = (true, true);
    }

    /// Sends at most `max` bytes of what it has begun.
    pub(crate) fn send_some(&mut self, max: usize) {
        if self.outgoing.is_empty() || self.is_done {
            return;
        }
        let some: Vec<u8> = self.outgoing.drain(..max.min(self.outgoing.len())).collect();
        self.push(&some);
        self.sent += usize::from(self.outgoing.is_empty());
    }

    fn push(&mut self, bytes: &[u8]) {
        self.socket.0.borrow_mut().inbound.extend(bytes);
    }

    /// Reads at most `max` bytes. Says whether the socket has more room for it.
    pub(crate) fn read(&mut self, max: usize) -> bool {
        let mut socket = self.socket.0.borrow_mut();
        let from = socket.taken;
        let to = socket.sent.len().min(from.saturating_add(max));
        self.unread.extend(&socket.sent[from..to]);
        socket.taken = to;
        socket.room += to - from;
        drop(socket);
        if self.encoding.is_one_way() {
            while let Some(event) = self.next_event() {
                self.on_event(&event);
            }
        } else {
            while let Some((first, payload)) = self.next_frame() {
                self.on_frame(first, &payload);
            }
        }
        to > from
    }

    fn take_head(&mut self) -> Option<()> {
        if !self.has_head {
            let head = self.unread.get(..HEAD.len())?;
            assert_eq!(head, HEAD, "client {}: the 101 is the first that it gets", self.id);
            self.unread.drain(..HEAD.len());
            self.has_head = true;
        }
        Some(())
    }

    fn next_event(&mut self) -> Option<Vec<u8>> {
        self.take_head()?;
        let end = self.unread.windows(2).position(|two| two == b"\n\n")?;
        let event = self.unread[..end].to_vec();
        self.unread.drain(..end + 2);
        Some(event)
    }

    fn on_event(&mut self, text: &[u8]) {
        assert!(self.close_code.is_none(), "client {}: an event behind the close", self.id);
        let text = std::str::from_utf8(text).expect("all payloads here are text");
        if let Some(comment) = text.strip_prefix(": ") {
            self.close_code = comment.get(..4).and_then(|code| code.trim().parse().ok());
        } else if text != ":" {
            self.take(event(text));
        }
    }

    /// Takes what it received.
    fn take(&mut self, item: Item) {
        if item == Item::NotRecovered {
            let is_answer = self.received.len() == self.before && self.since.is_some();
            assert!(is_answer, "client {}: an answer to a position comes first, and where one was shown", self.id);
            self.answers.push((self.since_at, self.open_at));
        }
        self.received.push(item);
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        self.take_head()?;
        let (first, second) = (*self.unread.first()?, *self.unread.get(1)?);
        let (len, at) = match second {
            126 => (usize::from(u16::from_be_bytes(self.unread.get(2..4)?.try_into().unwrap())), 4),
            127 => panic!("client {}: nothing here is so long", self.id),
            short => (usize::from(short), 2),
        };
        let payload = self.unread.get(at..at + len)?.to_vec();
        self.unread.drain(..at + len);
        Some((first, payload))
    }

    fn on_frame(&mut self, first: u8, payload: &[u8]) {
        assert!(self.close_code.is_none(), "client {}: a frame {first:x} behind the close frame", self.id);
        match first {
            0x81 => {
                if self.encoding == Encoding::Meta {
                    let text = std::str::from_utf8(payload).expect("all payloads here are text");
                    return self.take(message(text));
                }
                let name = match self.encoding {
                    Encoding::Lua { name_at } => &self.channel[name_at as usize..],
                    Encoding::Plain | Encoding::PlainText | Encoding::Meta => b"",
                    Encoding::Sse { .. } | Encoding::Poll { .. } => unreachable!("its clients open no WebSockets"),
                };
                let text = payload.strip_suffix(name).expect("a publication is for its own audience");
                self.take(Item::publication(text, None));
            }
            0x88 => {
                let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes(code.try_into().unwrap()));
                self.close_code = Some(code);
            }
            // The ping.
            0x89 => {}
            0x8a => self.pongs += 1,
            other => panic!("client {}: a frame that begins with {other:x}", self.id),
        }
    }
}
