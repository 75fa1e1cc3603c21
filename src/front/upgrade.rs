//! From an accepted connection to a session or a refusal: hyper reads the request, and the socket stays ours.
//!
//! hyper reads the request from memory: a handshake registers nothing with the reactor before its session does.
//! `waiting_room.rs` bounds the handshakes at work, `answer.rs` makes the answer. A late head gets 408 here; a client
//! that its worker refuses gets 503 with the worker's reason (`worker/opening.rs`). May not enter: a session's life
//! after its 101.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::access::Access;
use super::answer::{Accepted, RawRequest, answer};
use super::client_address::Sender;
use super::cors;
use super::event_stream;
use super::head::{Head, MAX_HEAD_BYTES, Target};
use super::page::Pages;
use super::refusal::{TIMED_OUT, linger, malformed, note_refused, plain_answer, unavailable};
use super::waiting_room::{Connection, WaitingRoom};
use crate::metrics::Counter;
use crate::notice;
use crate::throttle::Throttle;
use crate::worker::{Handle, Hello, Opening, Refusal};

/// The most header fields of a request. Chosen: browsers send some 15, the wire contract tests 120.
const MAX_HEADERS: usize = 256;

/// Turns a worker's connections into sessions, until the server ends.
pub(crate) async fn serve(worker: Handle, mut connections: mpsc::Receiver<Connection>, pages: Pages) {
    let access = Rc::new(Access::of(&worker.config));
    let worker = Rc::new(worker);
    let waiting_room = Rc::new(WaitingRoom::new(&worker.config.limits));
    // The permit first: a connection waits as a descriptor in the queue.
    while let Some((permit, connection)) = waiting_room.next(&mut connections).await {
        let (upgrade, waiting_room) = (Upgrade(worker.clone(), access.clone()), waiting_room.clone());
        let pages = pages.clone();
        // The task ends within the handshake's deadline; a worker that ends waits for the task.
        tokio::task::spawn_local(async move { upgrade.run(&waiting_room, permit, connection, &pages).await });
    }
    // No more connections come; the worker still has its sessions.
    std::future::pending::<()>().await;
}

/// A connection that is being answered.
struct Upgrade(Rc<Handle>, Rc<Access>);

impl Drop for Upgrade {
    fn drop(&mut self) {
        static PANICKED: Throttle = Throttle::per_minute();
        if std::thread::panicking() && PANICKED.allows() {
            tracing::error!(
                "a panic in one handshake: its connection is closed, and all others continue; please report the panic"
            );
        }
    }
}

impl Upgrade {
    async fn run(
        self,
        waiting_room: &WaitingRoom,
        permit: OwnedSemaphorePermit,
        connection: Connection,
        pages: &Pages,
    ) {
        let worker = self.0.clone();
        let Connection { socket, at, handshake, request } = connection;
        let deadline = at + worker.config.limits.handshake_timeout;
        let handed_off_by = request.as_ref().map(|received| received.sender);
        let (permit, answered) = match waiting_room.head_of(&socket, request, deadline, permit).await {
            // Boxed, so that a task that waits for its head is small.
            Ok((permit, head)) => {
                let asked = Asked { head, socket: socket.as_fd(), handed_off_by };
                let negotiated = Box::pin(negotiate(&worker, asked, pages, &self.1)).await;
                (Some(permit), negotiated)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                note_refused(&worker.shard, StatusCode::REQUEST_TIMEOUT, TIMED_OUT, socket.as_fd(), &Sender::default());
                (None, Answered::Refused(plain_answer("408 Request Timeout", TIMED_OUT)))
            }
            Err(error) => {
                worker.shard.add(Counter::HandshakesRefused, 1);
                notice::handshake_refused(0, "the connection ended before its request was complete");
                return tracing::debug!(%error, "a connection ended before its handshake was complete: {error}");
            }
        };
        match answered {
            Answered::Accepted { accepted, read_ahead, request } => {
                let Accepted { grant, head, page } = *accepted;
                let hello = Hello { socket, head, read_ahead };
                // The worker drops the permit with this closure, or refuses the client.
                let refuse = Box::new(move |socket, refusal| {
                    drop(permit);
                    tokio::task::spawn_local(async move {
                        self.refuse(socket, &refusal, &request, page.as_ref()).await;
                        drop(handshake);
                    });
                });
                worker.open(Opening { grant, deadline, hello, refuse }).await;
            }
            Answered::Refused(answer) => {
                drop(permit);
                // Boxed, because most handshakes are not refused.
                Box::pin(linger(socket, &answer)).await;
            }
        }
    }

    /// Answers a client for whose session the worker has no room, or no subscription.
    async fn refuse(&self, socket: OwnedFd, refusal: &Refusal, request: &Request, page: Option<&HeaderValue>) {
        let why = refusal.to_string();
        let sender = Sender::in_head(request.head.bytes());
        note_refused(&self.0.shard, StatusCode::SERVICE_UNAVAILABLE, &why, socket.as_fd(), &sender);
        if let Some(path) = &request.path {
            tracing::info!(status = 503, %path, "refused {path} with 503: {why}");
        }
        let retry_after = self.0.config.limits.retry_after;
        let straight = Some(request.head.bytes()).filter(|_| request.head.is_handed_off());
        let answer = straight
            .and_then(|head| event_stream::ended(head, retry_after))
            .unwrap_or_else(|| unavailable(retry_after, &cors::lines(page), &why));
        linger(socket, &answer).await;
    }
}

/// A request that hyper has to read.
struct Asked<'a> {
    head: Head,
    socket: BorrowedFd<'a>,
    /// The user whose process has handed the client off, if one has.
    handed_off_by: Option<u32>,
}

/// A request that hyper has read.
struct Request {
    head: Head,
    /// The path, where a developer reads the log of refusals.
    path: Option<String>,
}

/// How a request is answered.
enum Answered {
    /// With a session.
    Accepted { accepted: Box<Accepted>, read_ahead: Vec<u8>, request: Request },
    /// With a refusal, or a file of the test page.
    Refused(Bytes),
}

/// Answers the one request of a connection.
///
/// hyper does not write the 101 or 200 of a session: the session sends its head once it is attached to its audience.
/// hyper would also copy a client's `Connection: close` into the answer.
async fn negotiate(worker: &Rc<Handle>, asked: Asked<'_>, pages: &Pages, access: &Rc<Access>) -> Answered {
    let Asked { mut head, socket, handed_off_by } = asked;
    let accepted = Rc::new(Cell::new(None));
    let target = Rc::new(head.take_target());
    let service = service_fn(|request| {
        let (worker, accepted, target) = (worker.clone(), accepted.clone(), target.clone());
        let (pages, access) = (pages.clone(), access.clone());
        Box::pin(async move {
            let target = target.as_ref().as_ref();
            let raw = RawRequest { target, request: &request, socket, handed_off_by, access: &access };
            Ok::<_, Infallible>(answer(&worker, &raw, &pages, &accepted).await)
        })
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        // The head is complete, so no timeout applies.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(Exchange { head, answer: Vec::new() }), service);
    let negotiated = std::future::poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        match accepted.take() {
            Some(accepted) => Poll::Ready(Ok(Some(accepted))),
            None => polled.map_ok(|()| None),
        }
    });
    let negotiated = negotiated.await;
    let parts = connection.into_parts();
    let Exchange { head: request, answer } = parts.io.into_inner();
    match negotiated {
        Ok(Some(accepted)) => {
            let path = |target: &Target| String::from_utf8_lossy(target.path()).into_owned();
            let path = target.as_ref().as_ref().filter(|_| pages.is_some()).map(path);
            let read_ahead = request.read_ahead(&parts.read_buf);
            let request = Request { head: request, path };
            Answered::Accepted { accepted: Box::new(accepted), read_ahead, request }
        }
        Ok(None) => Answered::Refused(answer.into()),
        // hyper's own refusals have no body: ours says the reason.
        Err(error) => {
            tracing::debug!(%error, "a request is not well-formed: {error}");
            let (status, why, answer) = malformed(&answer);
            note_refused(&worker.shard, status, why, socket, &Sender::in_head(request.bytes()));
            Answered::Refused(answer)
        }
    }
}

/// A connection as hyper sees it: the received head, and an answer that is held back, because a session sends its own.
struct Exchange {
    head: Head,
    answer: Vec<u8>,
}

impl AsyncRead for Exchange {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An end of file follows the head's bytes, so that hyper never waits for more bytes, nor for a body.
        let room = buffer.remaining();
        buffer.put_slice(self.head.read(room));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
