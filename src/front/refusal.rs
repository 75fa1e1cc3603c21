//! The bytes and the log line of a refusal, hyper's refusals with a reason, and the lingering close after every
//! refusal.
//!
//! May not enter: checks of a request (`answer.rs`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::client_address::Sender;
use crate::metrics::{Counter, Shard};
use crate::notice;
use crate::os;

/// How long a refused client may take to read the answer and close.
const LINGER: Duration = Duration::from_secs(1);

pub(super) const TIMED_OUT: &str = "the handshake was not complete in time";

const MALFORMED: &str = "the request is not well-formed HTTP/1.1";

/// An answer that hyper does not write: `head` is the status line and further headers, `why` the body's one line.
pub(crate) fn plain_answer(head: &str, why: &str) -> Bytes {
    let length = why.len() + 1;
    let answer = format!(
        "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\n\r\n{why}\n"
    );
    answer.into()
}

/// The answer to a client that may come back after `retry_after`. `further` are lines of the head.
pub(super) fn unavailable(retry_after: Duration, further: &str, why: &str) -> Bytes {
    let seconds = retry_after.as_secs().max(1);
    let head = format!("503 Service Unavailable\r\nRetry-After: {seconds}\r\n{further}Cache-Control: no-store");
    plain_answer(&head, why)
}

/// Counts a refused handshake, and logs it.
pub(super) fn note_refused(shard: &Shard, status: StatusCode, why: &str, socket: BorrowedFd<'_>, sender: &Sender<'_>) {
    shard.add(Counter::HandshakesRefused, 1);
    let status = status.as_u16();
    notice::handshake_refused(status, why);
    sender.log_refused(status, why, socket);
}

/// The status of hyper's answer to a malformed request, the reason, and our answer with both; no bytes when hyper gives
/// no answer.
pub(super) fn malformed(answer: &[u8]) -> (StatusCode, &'static str, Bytes) {
    let answer = std::str::from_utf8(answer).unwrap_or_default();
    let Some(status) = answer.strip_prefix("HTTP/1.1 ").and_then(|answer| answer.lines().next()) else {
        return (StatusCode::BAD_REQUEST, MALFORMED, Bytes::new());
    };
    let code = status.split(' ').next().unwrap_or_default();
    let why = match code {
        "414" => "the request line is too long",
        "431" => "the request head is too large",
        _ => MALFORMED,
    };
    (code.parse().unwrap_or(StatusCode::BAD_REQUEST), why, plain_answer(status, why))
}

/// Sends a refused client the answer, and closes lingeringly: a close with unread bytes would reset the connection, and
/// a reset can destroy the answer on its way.
pub(super) async fn linger(socket: OwnedFd, answer: &[u8]) {
    let lingered = async {
        let mut stream = stream_of(socket)?;
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    if !matches!(tokio::time::timeout(LINGER, lingered).await, Ok(Ok(()))) {
        tracing::trace!("a refused client did not close its connection in time");
    }
}

/// A stream of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn stream_of(socket: OwnedFd) -> io::Result<Box<dyn Stream>> {
    Ok(if os::socket::is_tcp(socket.as_fd()) {
        Box::new(TcpStream::from_std(std::net::TcpStream::from(socket))?)
    } else {
        Box::new(UnixStream::from_std(StdUnixStream::from(socket))?)
    })
}
