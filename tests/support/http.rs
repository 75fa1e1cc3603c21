//! Answers that are no 101: status, headers and the whole body.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use super::client::{Socket, Target, upgrade_request};
use super::frame::{Head, take_head};

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: String,
}

impl Answer {
    /// It must be a 503 that says why in one line and, once, when to come back.
    pub(crate) fn assert_unavailable(&self, retry_after: &str) {
        assert_eq!(self.head.status, 503, "{self:?}");
        assert_eq!(self.all("Retry-After"), [retry_after], "{self:?}");
        let line = self.body.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {self:?}"));
        assert!(!line.is_empty() && !line.contains('\n'), "not one line: {self:?}");
    }

    /// The values of all headers of that name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.head.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// Asks for a WebSocket at `path`; a 101 has an empty body here.
pub(crate) async fn handshake(target: &Target, path: &str) -> Answer {
    request(&Socket::connect(target).await.unwrap(), &upgrade_request(path)).await
}

/// Asks for a document at `path`.
pub(crate) async fn get(target: &Target, path: &str) -> Answer {
    let socket = Socket::connect(target).await.unwrap();
    request(&socket, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Sends `bytes` and reads one answer.
pub(crate) async fn request(socket: &Socket, bytes: &[u8]) -> Answer {
    socket.write(bytes).await.unwrap();
    timeout(Duration::from_secs(20), answer(socket)).await.expect("no whole answer in 20 s")
}

async fn answer(socket: &Socket) -> Answer {
    let mut read = BytesMut::new();
    let head = loop {
        if let Some(head) = take_head(&mut read) {
            break head;
        }
        socket.read(&mut read).await.unwrap_or_else(|end| panic!("{end:?} instead of an answer: {read:?}"));
    };
    let length = match head.header("Content-Length") {
        Some(length) => length.parse().unwrap(),
        None if matches!(head.status, 101 | 204) => 0,
        None => usize::MAX,
    };
    while read.len() < length && socket.read(&mut read).await.is_ok() {}
    read.truncate(length);
    Answer { head, body: String::from_utf8_lossy(&read).into_owned() }
}
