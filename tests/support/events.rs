//! A client of server-sent events: raw bytes, read as the standard says (WHATWG HTML, §9.2.6), with or without chunks.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::SOON;
use super::client::{End, Socket, Target};
use super::frame::{Head, take_head};

/// An event as a page sees it; one without a type has the type `message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) data: String,
}

/// A stream of events behind its head.
#[derive(Debug)]
pub(crate) struct EventStream {
    socket: Socket,
    pub(crate) head: Head,
    /// What was read of the connection, and of the stream in it, and is not used up.
    unread: BytesMut,
    text: BytesMut,
    is_whole: bool,
    events: VecDeque<Event>,
    /// The comments with text, in order, and the number of those without.
    pub(crate) comments: Vec<String>,
    pub(crate) pings: usize,
    pub(crate) retry: Option<u64>,
    /// The last position, and whether it came behind an event of the type `gap`, with no message since.
    pub(crate) id: String,
    pub(crate) is_behind_gap: bool,
    has_gap: bool,
    end: Option<End>,
}

/// The request of an `EventSource`.
pub(crate) fn events_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nAccept: text/event-stream\r\n\r\n")
}

impl EventStream {
    /// Opens a stream; a refusal panics.
    pub(crate) async fn open(target: &Target, path: &str) -> EventStream {
        EventStream::request(target, events_request(path).as_bytes()).await
    }

    /// Sends any request, which must be answered with a stream.
    pub(crate) async fn request(target: &Target, request: &[u8]) -> EventStream {
        EventStream::on(Socket::connect(target).await.unwrap(), request).await
    }

    /// The same on a connection that is there already.
    pub(crate) async fn on(socket: Socket, request: &[u8]) -> EventStream {
        socket.write(request).await.unwrap();
        let mut unread = BytesMut::new();
        let deadline = Instant::now() + 2 * SOON;
        let head = loop {
            if let Some(head) = take_head(&mut unread) {
                break head;
            }
            let read = timeout_at(deadline, socket.read(&mut unread)).await.expect("no head in time");
            read.unwrap_or_else(|end| panic!("{end:?} instead of a head: {unread:?}"));
        };
        let said = String::from_utf8_lossy(&unread).into_owned();
        assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")), "{head:?} {said}");
        EventStream::new(socket, head, unread)
    }

    /// Sends any request; `None` unless it is answered with a stream in time.
    pub(crate) async fn try_request(target: &Target, request: &[u8]) -> Option<EventStream> {
        let socket = Socket::connect(target).await.ok()?;
        socket.write(request).await.ok()?;
        let mut unread = BytesMut::new();
        let deadline = Instant::now() + 2 * SOON;
        loop {
            if let Some(head) = take_head(&mut unread) {
                return (head.status == 200).then(|| EventStream::new(socket, head, unread));
            }
            timeout_at(deadline, socket.read(&mut unread)).await.ok()?.ok()?;
        }
    }

    fn new(socket: Socket, head: Head, unread: BytesMut) -> EventStream {
        EventStream {
            socket,
            head,
            unread,
            text: BytesMut::new(),
            is_whole: false,
            events: VecDeque::new(),
            comments: Vec::new(),
            pings: 0,
            retry: None,
            id: String::new(),
            is_behind_gap: false,
            has_gap: false,
            end: None,
        }
    }

    /// The next event; `None` at the deadline or at the end.
    pub(crate) async fn next(&mut self, deadline: Duration) -> Option<Event> {
        let deadline = Instant::now() + deadline;
        loop {
            self.take_chunks();
            self.take_blocks();
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.end.is_some() || self.is_whole {
                return None;
            }
            self.end = timeout_at(deadline, self.socket.read(&mut self.unread)).await.ok()?.err();
        }
    }

    /// The next event must be this message.
    pub(crate) async fn expect(&mut self, data: &str) {
        self.expect_kind("message", data).await;
    }

    /// The next event must have this type and this data.
    pub(crate) async fn expect_kind(&mut self, kind: &str, data: &str) {
        let event = self.next(SOON).await;
        let expected = Event { kind: kind.to_owned(), data: data.to_owned() };
        assert_eq!(event, Some(expected), "end: {:?}, comments: {:?}", self.end, self.comments);
    }

    /// The stream must end in time, with a comment that starts with the close code.
    pub(crate) async fn expect_close(&mut self, code: u16, deadline: Duration) {
        let event = self.next(deadline).await;
        assert_eq!(event, None, "an event instead of the end");
        let closed = self.comments.last().is_some_and(|comment| comment.starts_with(&format!("{code} ")));
        assert!(self.has_ended() && closed, "{self:?}");
        assert!(self.text.is_empty(), "half an event at the end: {self:?}");
    }

    /// Whether the server has ended the stream in order.
    pub(crate) fn has_ended(&self) -> bool {
        let is_chunked = self.head.header("Transfer-Encoding").is_some();
        if is_chunked { self.is_whole } else { self.end == Some(End::Fin) }
    }

    /// Whether nothing more can come.
    pub(crate) fn is_over(&self) -> bool {
        (self.is_whole || self.end.is_some()) && self.events.is_empty()
    }

    /// Whether events were read that nobody has taken yet.
    pub(crate) fn has_more(&self) -> bool {
        !self.events.is_empty()
    }

    /// The close code of the last comment, if it has one.
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.comments.last()?.split(' ').next()?.parse().ok()
    }

    /// Sends bytes behind the request.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        self.socket.write(bytes).await.unwrap();
    }

    /// Half-closes.
    pub(crate) fn fin(&self) {
        self.socket.fin();
    }

    /// Takes whole chunks (RFC 9112 §7.1); a stream without chunks is taken as it is.
    fn take_chunks(&mut self) {
        if self.head.header("Transfer-Encoding") != Some("chunked") {
            self.text.extend_from_slice(&self.unread);
            return self.unread.clear();
        }
        while let Some(line) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
            let length = std::str::from_utf8(&self.unread[..line]).unwrap();
            let length = usize::from_str_radix(length, 16).unwrap_or_else(|e| panic!("{e}: {length:?}"));
            let Some(chunk) = self.unread.get(line + 2..line + 2 + length + 2) else { return };
            self.text.extend_from_slice(&chunk[..length]);
            self.is_whole = length == 0;
            self.unread.advance(line + 2 + length + 2);
        }
    }

    /// Takes whole blocks: lines and an empty line.
    fn take_blocks(&mut self) {
        while let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
            let block = String::from_utf8(self.text.split_to(end + 2).to_vec()).unwrap();
            self.take_block(&block);
        }
    }

    fn take_block(&mut self, block: &str) {
        let (mut kind, mut data) = ("message", String::new());
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => data.extend([value, "\n"]),
                "event" => kind = value,
                "retry" => self.retry = Some(value.parse().unwrap()),
                "" if value.is_empty() => self.pings += 1,
                "" => self.comments.push(value.to_owned()),
                "id" => {
                    value.clone_into(&mut self.id);
                    self.is_behind_gap = self.has_gap;
                }
                _ => panic!("an unknown field: {line:?}"),
            }
        }
        if let Some(data) = data.strip_suffix('\n') {
            self.has_gap = kind == "gap";
            self.is_behind_gap = false;
            self.events.push_back(Event { kind: kind.to_owned(), data: data.to_owned() });
        }
    }
}
