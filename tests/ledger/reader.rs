//! Clients of three transports, which note all that they get, and come back whenever their connection has ended. May not
//! enter: what they should have got.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;

use super::message::{Id, LAPS, name};
use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::events::{EventStream, events_request};
use crate::support::frame::{CLOSE, TEXT};
use crate::support::lasting;

/// How often a client looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// A WebSocket without positions.
    Plain,
    /// A WebSocket with nchan's subprotocol.
    Meta,
    Events,
}

/// What a client notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Message(Id),
    /// It was told that messages may be missing.
    Gap,
    /// Its position at the end of a connection is behind the gap that it was told of, and no message came since.
    Placed,
    /// Its connection has ended, with that code of the server's, if any.
    End(Option<u16>),
}

/// All that a client got.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) transport: Transport,
    pub(super) channel: usize,
    /// Whether it never leaves by itself.
    pub(super) is_steady: bool,
    pub(super) entries: Vec<Entry>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) seen: Seen,
    pub(super) target: watch::Receiver<Target>,
    pub(super) stop: watch::Receiver<bool>,
    /// The last lap that it got.
    pub(super) lap: Arc<AtomicU32>,
    /// A client that leaves by itself again and again has these chances.
    pub(super) flaps: Option<Rng>,
    /// The last position.
    pub(super) position: String,
}

enum Stream {
    /// Whether its position is behind a gap that it was told of, with no message since.
    Socket(Client, bool),
    Events(EventStream),
}

/// What comes next on a stream.
enum Next {
    Message(String),
    Gap,
    /// A position behind a gap.
    Position,
    Nothing,
    End(Option<u16>),
}

impl Reader {
    /// Reads until it is stopped.
    pub(super) async fn run(mut self) -> Seen {
        while !*self.stop.borrow() {
            let target = self.target.borrow().clone();
            match self.connect(&target).await {
                Some(stream) => self.read(stream).await,
                // The pause of a client before it tries once more.
                None => lasting(Duration::from_millis(50)).await,
            }
        }
        self.seen
    }

    fn end(&mut self, stream: &Stream, code: Option<u16>) {
        if stream.is_behind_gap() {
            self.seen.entries.push(Entry::Placed);
        }
        self.seen.entries.push(Entry::End(code));
    }

    async fn connect(&self, target: &Target) -> Option<Stream> {
        let mut path = format!("/webws?channel=%22{}%22", name(self.seen.channel));
        if self.seen.transport == Transport::Events {
            let header =
                if self.position.is_empty() { String::new() } else { format!("Last-Event-ID: {}\r\n", self.position) };
            let request = events_request(&path).replace("Accept:", &format!("{header}Accept:"));
            return EventStream::try_request(target, request.as_bytes()).await.map(Stream::Events);
        }
        if !self.position.is_empty() {
            path += &format!("&last_event_id={}", self.position);
        }
        let mut request = String::from_utf8(upgrade_request(&path)).unwrap();
        if self.seen.transport == Transport::Meta {
            request = request.replace("Upgrade: ", "Sec-WebSocket-Protocol: ws+meta.nchan\r\nUpgrade: ");
        }
        let client = Client::request(Socket::connect(target).await.ok()?, request.as_bytes()).await?;
        (client.head().status == 101).then_some(Stream::Socket(client, false))
    }

    /// Reads a stream to its end, or until the client leaves by itself.
    async fn read(&mut self, mut stream: Stream) {
        let mut left = self.flaps.as_mut().map_or(u32::MAX, |random| random.u32(3..40));
        loop {
            let entry = match stream.next(&mut self.position, GLANCE).await {
                Next::Nothing if *self.stop.borrow() => return,
                Next::Nothing | Next::Position => continue,
                Next::Message(text) => {
                    let (id, _) = Id::parse(&text).unwrap_or_else(|| panic!("{text:?}"));
                    if id.producer == LAPS {
                        self.lap.fetch_max(id.number, Ordering::Relaxed);
                    }
                    Entry::Message(id)
                }
                Next::Gap => Entry::Gap,
                Next::End(code) => return self.end(&stream, code),
            };
            self.seen.entries.push(entry);
            left -= 1;
            // A stream's position is that of all events that were read, so these are taken first.
            if left == 0 && stream.has_more() {
                left = 1;
            } else if left == 0 {
                self.end(&stream, None);
                drop(stream);
                let away = self.flaps.as_mut().map_or(0, |random| random.u64(0..1_500));
                return lasting(Duration::from_millis(away)).await;
            }
        }
    }
}

impl Stream {
    async fn next(&mut self, position: &mut String, deadline: Duration) -> Next {
        match self {
            Stream::Socket(client, is_behind_gap) => {
                let next = next_frame(client, position, deadline).await;
                match next {
                    Next::Message(_) | Next::Gap => *is_behind_gap = false,
                    Next::Position => *is_behind_gap = true,
                    Next::Nothing | Next::End(_) => {}
                }
                next
            }
            Stream::Events(events) => {
                let event = events.next(deadline).await;
                position.clone_from(&events.id);
                match event {
                    Some(event) if event.kind == "message" => Next::Message(event.data),
                    Some(event) if event.kind == "gap" => Next::Gap,
                    Some(event) => panic!("{event:?}"),
                    None if events.is_over() => Next::End(events.close_code()),
                    None => Next::Nothing,
                }
            }
        }
    }

    fn is_behind_gap(&self) -> bool {
        match self {
            Stream::Socket(_, is_behind_gap) => *is_behind_gap,
            Stream::Events(events) => events.is_behind_gap,
        }
    }

    /// Whether events were read that are not taken yet.
    fn has_more(&self) -> bool {
        matches!(self, Stream::Events(events) if events.has_more())
    }
}

async fn next_frame(client: &mut Client, position: &mut String, deadline: Duration) -> Next {
    let Some(frame) = client.next_but_pings(deadline).await else {
        return if client.end().is_some() { Next::End(None) } else { Next::Nothing };
    };
    let is_meta = client.head().header("Sec-WebSocket-Protocol").is_some();
    match frame.opcode {
        CLOSE => Next::End(frame.close_code()),
        TEXT => {
            let text = String::from_utf8(frame.payload.to_vec()).unwrap();
            if !is_meta {
                return Next::Message(text);
            }
            let mut rest = text.as_str();
            while let Some((line, behind)) = rest.split_once('\n') {
                rest = behind;
                match line.split_once(": ") {
                    Some(("id", id)) => id.clone_into(position),
                    Some(("event", "gap")) => return Next::Gap,
                    Some(("event", "position")) => return Next::Position,
                    None if line.is_empty() => break,
                    _ => panic!("{text:?}"),
                }
            }
            Next::Message(rest.to_owned())
        }
        _ => panic!("{frame:?}"),
    }
}
