//! A client that keeps all it gets, and a request that is answered in HTTP.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};

use super::client::{Client, Socket, Target, upgrade_request};
use super::frame::{CLOSE, Head, PONG, TEXT, take_head};
use super::holds_within;

/// A client whose frames are kept by kind.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) client: Client,
    pub(crate) texts: Vec<String>,
    pub(crate) pongs: Vec<Bytes>,
    /// The code of the server's close frame, 1005 if it had none (RFC 6455 §7.4.1).
    pub(crate) closed: Option<u16>,
}

impl Witness {
    /// Upgrades on `path`.
    pub(crate) async fn join(target: &Target, path: &str) -> Witness {
        Witness::new(Client::connect(target, path).await)
    }

    pub(crate) fn new(client: Client) -> Witness {
        Witness { client, texts: Vec::new(), pongs: Vec::new(), closed: None }
    }

    /// Takes one frame but pings; false when none comes in time or the server has ended.
    pub(crate) async fn take(&mut self, deadline: Duration) -> bool {
        let Some(frame) = self.client.next_but_pings(deadline).await else { return false };
        assert_eq!(self.closed, None, "{frame:?} after the close frame");
        match frame.opcode {
            TEXT => self.texts.push(String::from_utf8(frame.payload.to_vec()).unwrap()),
            PONG => self.pongs.push(frame.payload),
            CLOSE => self.closed = Some(frame.close_code().unwrap_or(1005)),
            _ => panic!("{frame:?}"),
        }
        true
    }

    /// Takes what comes until nothing does for that long; the WebSocket must be open then.
    pub(crate) async fn collect(&mut self, quiet: Duration) {
        while self.take(quiet).await {}
        self.assert_open();
    }

    pub(crate) fn assert_open(&self) {
        assert_eq!((self.closed, self.client.end()), (None, None), "the WebSocket has ended; texts: {}", self.shown());
    }

    /// Waits until it has that many texts.
    pub(crate) async fn await_texts(&mut self, count: usize, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.texts.len() < count {
            let got = self.take(end.saturating_duration_since(Instant::now())).await;
            assert!(got && self.closed.is_none(), "{} of {count} texts: {}", self.texts.len(), self.shown());
        }
    }

    /// Waits until it has that text.
    pub(crate) async fn await_text(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        let mut seen = 0;
        loop {
            if self.texts[seen..].iter().any(|seen| seen == text) {
                return;
            }
            seen = self.texts.len();
            let got = self.take(end.saturating_duration_since(Instant::now())).await;
            assert!(got && self.closed.is_none(), "no {text:?} among {}", self.shown());
        }
    }

    /// Sends a ping, which must be answered in time, whatever else comes first.
    pub(crate) async fn ping(&mut self, payload: &[u8], deadline: Duration) {
        self.client.send_ping(payload).await;
        let end = Instant::now() + deadline;
        while !self.pongs.iter().any(|pong| pong == payload) {
            let got = self.take(end.saturating_duration_since(Instant::now())).await;
            assert!(got && self.closed.is_none(), "no pong within {deadline:?}; texts: {}", self.shown());
        }
    }

    /// Reads on until the close frame, which must have that code, and then the end.
    pub(crate) async fn expect_close(&mut self, code: u16, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.closed.is_none() {
            let got = self.take(end.saturating_duration_since(Instant::now())).await;
            assert!(got, "no close frame within {deadline:?} (end: {:?}) after {}", self.client.end(), self.shown());
        }
        assert_eq!(self.closed, Some(code));
        assert!(self.client.ends_within(deadline).await.is_some(), "open {deadline:?} after its close frame");
    }

    fn shown(&self) -> String {
        format!("{:?} (close {:?}, end {:?})", self.texts, self.closed, self.client.end())
    }
}

/// Whether a handshake on `path` succeeds before the deadline; refusals are tried again.
pub(crate) async fn upgrades_within(target: &Target, path: &str, deadline: Duration) -> bool {
    let upgrades = async || Answer::to_upgrade(target, path, deadline).await.is_some_and(|a| a.head.status == 101);
    holds_within(deadline, upgrades).await
}

/// An HTTP answer: its head and its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: String,
}

impl Answer {
    /// Asks for an upgrade on `path`, which must be refused: the answer, or `None` when none came in time.
    pub(crate) async fn to_upgrade(target: &Target, path: &str, deadline: Duration) -> Option<Answer> {
        let socket = Socket::connect(target).await.ok()?;
        socket.write(&upgrade_request(path)).await.ok()?;
        Answer::read(&socket, deadline).await
    }

    /// Reads an answer and, unless it is a 101, its body to the end of the connection.
    pub(crate) async fn read(socket: &Socket, deadline: Duration) -> Option<Answer> {
        let mut bytes = BytesMut::new();
        let reading = async {
            let head = loop {
                if let Some(head) = take_head(&mut bytes) {
                    break head;
                }
                socket.read(&mut bytes).await.ok()?;
            };
            if head.status != 101 {
                while socket.read(&mut bytes).await.is_ok() {}
            }
            Some(head)
        };
        let head = timeout(deadline, reading).await.ok()??;
        Some(Answer { head, body: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// It must be a 503 that says why in one line, and when to come back.
    pub(crate) fn expect_unavailable(&self, why: &str) {
        assert_eq!(self.head.status, 503, "{self:?}");
        let seconds = self.head.header("retry-after").and_then(|value| value.parse::<u32>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "no Retry-After: {self:?}");
        let is_one_line = self.body.ends_with('\n') && self.body.lines().count() == 1;
        assert!(is_one_line && self.body.contains(why), "{self:?} does not say {why:?} in one line");
        let length = self.head.header("content-length").and_then(|value| value.parse::<usize>().ok());
        assert_eq!(length, Some(self.body.len()), "the length of the body: {self:?}");
    }
}
