//! From an accepted connection to a session or a refusal: hyper reads the request, this room
//! answers it and takes the raw socket back.
//!
//! Few handshakes are worked on at a time; the others wait as bare descriptors, because
//! thousands of half-read requests at once leave memory behind that is never given back.
//! A request is worked on when its whole head is there, so that the silent keep nobody out.
//! May not enter: a session's life after its 101.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::config::Limits;
use crate::metrics::Counter;
use crate::os;
use crate::throttle::Throttle;
use crate::worker::{Admission, Refusal, Worker};
use crate::ws::handshake::{self, HandshakeError};

/// Handshakes worked on at a time in one worker. Measured on a prototype: 9,000 at once left
/// 15.6 kB resident per session, 64 at a time 0.58 kB.
const MAX_NEGOTIATING: usize = 64;

/// Longest request head. Chosen: twice nginx' default for a request line, so that what
/// nginx lets through is read.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// Header fields of a request. Chosen: browsers send some 15, the wire contract tests 120.
const MAX_HEADERS: usize = 256;

/// How long a refused client may take to read its answer and go.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that was accepted, and when.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: OwnedFd,
    pub(crate) at: Instant,
}

/// Files served beside the endpoints: none, or the test page's.
pub(crate) type Pages = &'static [Page];

/// A file that is part of the binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

/// The test page of `webws dev`.
pub(crate) const TEST_PAGE: Pages = &[
    Page { path: "/", content_type: "text/html; charset=utf-8", content: include_str!("page/index.html") },
    Page { path: "/page.css", content_type: "text/css; charset=utf-8", content: include_str!("page/page.css") },
    Page { path: "/page.js", content_type: "text/javascript; charset=utf-8", content: include_str!("page/page.js") },
];

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Turns a worker's connections into sessions until the server is gone.
pub(crate) async fn serve(worker: Rc<Worker>, mut accepted: mpsc::Receiver<Accepted>, pages: Pages) {
    let waiting_room = Rc::new(WaitingRoom::new(&worker.config.limits));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            // All that have ended, not one a turn: a finished task keeps its memory until then.
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                report(ended);
                while let Some(ended) = tasks.try_join_next() {
                    report(ended);
                }
            }
            // The permit first: what waits, waits as a descriptor in the queue.
            next = waiting_room.next(&mut accepted) => {
                let Some((permit, connection)) = next else { break };
                let (worker, waiting_room) = (worker.clone(), waiting_room.clone());
                worker.handshakes.set(worker.handshakes.get() + 1);
                let worked_on = Handshake(worker);
                tasks.spawn_local(async move {
                    let worker = &worked_on.0;
                    let Some(permit) = waiting_room.head_of(&connection, permit).await else {
                        worker.shard.add(Counter::HandshakesRefused, 1);
                        return;
                    };
                    // Boxed, so that those who wait for their head are small.
                    let refused = Box::pin(negotiate(worker, connection, pages)).await;
                    drop(permit);
                    if let Some(stream) = refused {
                        see_off(stream).await;
                    }
                });
            }
        }
    }
    // Connections come no more; the worker goes on with its sessions.
    while tasks.join_next().await.is_some() {}
    std::future::pending::<()>().await;
}

fn report(ended: Result<(), JoinError>) {
    static PANICKED: Throttle = Throttle::per_minute();
    if let Err(error) = ended
        && PANICKED.allows()
    {
        tracing::error!(%error, "a handshake's handling panicked; its connection is closed");
    }
}

/// Counts a connection that is being answered, for as long as it exists.
struct Handshake(Rc<Worker>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// Who may have one of the places at work.
struct WaitingRoom {
    places: Arc<Semaphore>,
    /// Connections that may be silent beside those at work.
    silent: Arc<Semaphore>,
    /// Where heads are looked at before they are read.
    scratch: RefCell<Vec<u8>>,
    timeout: Duration,
}

impl WaitingRoom {
    fn new(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_NEGOTIATING)),
            silent: Arc::new(Semaphore::new(limits.max_handshakes)),
            scratch: RefCell::new(vec![0; MAX_HEAD_BYTES]),
            timeout: limits.handshake_timeout,
        }
    }

    /// The next connection, when there is a place for it.
    async fn next(&self, accepted: &mut mpsc::Receiver<Accepted>) -> Option<(OwnedSemaphorePermit, Accepted)> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        Some((place, accepted.recv().await?))
    }

    /// Gives the place back until the connection's request head is there. `None`: it did not
    /// come in time, which the client was told.
    async fn head_of(&self, connection: &Accepted, place: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        let socket = connection.socket.as_fd();
        if self.has_head(socket) {
            return Some(place);
        }
        // When so many are silent already, one more may as well be worked on.
        let Ok(silent) = self.silent.clone().try_acquire_owned() else { return Some(place) };
        drop(place);
        let arrived = tokio::time::timeout_at(connection.at + self.timeout, self.head_arrives(socket));
        let Ok(arrived) = arrived.await else {
            // Read off what came: closing with unread bytes resets a connection, answer and all.
            let read = os::socket::receive(socket, &mut self.scratch.borrow_mut()).unwrap_or(0);
            let told = os::socket::send_bytes(socket, &timed_out()).is_ok();
            tracing::debug!(read, told, "a handshake did not come in time");
            os::socket::finish_sending(&connection.socket);
            return None;
        };
        arrived.ok()?;
        drop(silent);
        self.places.clone().acquire_owned().await.ok()
    }

    /// Waits until a request can be worked on without waiting for the client.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    async fn head_arrives(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let readable = os::readiness::readable(socket)?;
        loop {
            let mut guard = readable.readable().await?;
            if guard.ready().is_read_closed() || self.has_head(socket) {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Whether a whole request head waits in the socket, more than a head may have, or an end.
    fn has_head(&self, socket: BorrowedFd<'_>) -> bool {
        let mut scratch = self.scratch.borrow_mut();
        match os::socket::peek(socket, &mut scratch) {
            Ok(there) => {
                let head = scratch.get(..there).unwrap_or_default();
                // A head ends with an empty line; hyper takes a bare LF for a line's end too.
                let ends = |at: &[u8]| at.starts_with(b"\n\r\n") || at.starts_with(b"\n\n");
                there == 0 || there == scratch.len() || (0..there).any(|at| head.get(at..).is_some_and(ends))
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// An answer for who cannot be given one by hyper: `head` is the status line and further
/// headers, `why` the line that says why.
pub(crate) fn plain_answer(head: &str, why: &str) -> Bytes {
    let length = why.len() + 1;
    let answer = format!(
        "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\n\r\n{why}\n"
    );
    answer.into()
}

fn timed_out() -> Bytes {
    plain_answer("408 Request Timeout", "the handshake was not complete in time")
}

/// A connection's stream, of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Answers a connection's one request. Returns the stream when no session came of it.
async fn negotiate(worker: &Rc<Worker>, accepted: Accepted, pages: Pages) -> Option<Box<dyn Stream>> {
    let opened = if os::socket::is_tcp(accepted.socket.as_fd()) {
        os::socket::set_nodelay(accepted.socket.as_fd());
        let stream = TcpStream::from_std(std::net::TcpStream::from(accepted.socket));
        answer_one(worker, stream, accepted.at, pages, |stream| stream.into_std().map(OwnedFd::from)).await
    } else {
        let stream = UnixStream::from_std(StdUnixStream::from(accepted.socket));
        answer_one(worker, stream, accepted.at, pages, |stream| stream.into_std().map(OwnedFd::from)).await
    };
    opened.unwrap_or_else(|error| {
        worker.shard.add(Counter::HandshakesRefused, 1);
        tracing::debug!(%error, "a connection ended before its handshake did");
        None
    })
}

/// As [`negotiate`], for one family of sockets.
///
/// The 101 is not hyper's to write: the session sends it, after it was attached to its
/// audience, and hyper would add `close` to its `Connection` when the client said so.
async fn answer_one<S: Stream + 'static>(
    worker: &Rc<Worker>,
    stream: io::Result<S>,
    accepted_at: Instant,
    pages: Pages,
    into_socket: impl FnOnce(S) -> io::Result<OwnedFd>,
) -> io::Result<Option<Box<dyn Stream>>> {
    let admitted = Rc::new(Cell::new(None));
    let service = service_fn(|request| {
        let (worker, admitted) = (worker.clone(), admitted.clone());
        Box::pin(async move { Ok::<_, Infallible>(answer(&worker, &request, pages, &admitted).await) })
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        // The deadline below holds for the head as well.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(Held { stream: stream?, answer: Vec::new() }), service);
    let negotiated = std::future::poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        match admitted.take() {
            Some(admitted) => Poll::Ready(Ok(Some(admitted))),
            None => polled.map_ok(|()| None),
        }
    });
    let deadline = accepted_at + worker.config.limits.handshake_timeout;
    let negotiated = tokio::time::timeout_at(deadline, negotiated).await;
    let parts = connection.into_parts();
    let Held { mut stream, answer } = parts.io.into_inner();
    let refusal = match negotiated {
        Ok(Ok(Some(Admitted { admission, head }))) => {
            admission.attach(into_socket(stream)?, &head, &parts.read_buf);
            return Ok(None);
        }
        Ok(Ok(None)) => answer.into(),
        // hyper's own refusals have no words.
        Ok(Err(error)) => {
            let refusal = malformed(&answer).ok_or_else(|| io::Error::other(error))?;
            worker.shard.add(Counter::HandshakesRefused, 1);
            refusal
        }
        Err(_) => {
            worker.shard.add(Counter::HandshakesRefused, 1);
            timed_out()
        }
    };
    tokio::time::timeout(LINGER, stream.write_all(&refusal)).await??;
    Ok(Some(Box::new(stream)))
}

/// A stream whose answer is held back until it is known what becomes of the connection.
struct Held<S> {
    stream: S,
    answer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Unpin> AsyncWrite for Held<S> {
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

/// hyper's answer to what is no proper request, with words; `None` when it has none to give.
fn malformed(answer: &[u8]) -> Option<Bytes> {
    let answer = std::str::from_utf8(answer).ok()?;
    let status = answer.strip_prefix("HTTP/1.1 ")?.lines().next()?;
    let why = match status.split(' ').next()? {
        "414" => "the request line is too long",
        "431" => "the request head is too large",
        _ => "the request is no well-formed HTTP/1.1",
    };
    Some(plain_answer(status, why))
}

/// A handshake that succeeded: the session that waits for its socket, and its 101.
struct Admitted {
    admission: Admission,
    head: Bytes,
}

/// Lets a refused client read its answer: closing with unread bytes would reset the
/// connection, and a reset can destroy the answer on its way.
async fn see_off(mut stream: Box<dyn Stream>) {
    let mut sink = [0; 4096];
    let reading = async {
        stream.shutdown().await?;
        while stream.read(&mut sink).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    if tokio::time::timeout(LINGER, reading).await.is_err() {
        tracing::trace!("a refused client did not go");
    }
}

/// An answer that is not a 101: a status and one line that says why.
struct Refused {
    status: StatusCode,
    why: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refused {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), header: None }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }
}

async fn answer(
    worker: &Rc<Worker>,
    request: &Request<Incoming>,
    pages: Pages,
    admitted: &Cell<Option<Admitted>>,
) -> Response<Full<Bytes>> {
    if let Some(page) = pages.iter().find(|page| page.path == request.uri().path())
        && request.method() == Method::GET
    {
        return page_response(page);
    }
    let refused = match handshake(worker, request).await {
        Ok(success) => {
            admitted.set(Some(success));
            // Whoever polls hyper sees it at once and takes the connection away.
            return std::future::pending().await;
        }
        Err(refused) => refused,
    };
    worker.shard.add(Counter::HandshakesRefused, 1);
    tracing::debug!(status = refused.status.as_u16(), why = refused.why, "a handshake is refused");
    let mut response = Response::new(Full::from(format!("{}\n", refused.why)));
    *response.status_mut() = refused.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.extend(refused.header);
    response
}

/// Checks a request in the order of the wire contract: request line, channel, headers,
/// subscription.
async fn handshake(worker: &Rc<Worker>, request: &Request<Incoming>) -> Result<Admitted, Refused> {
    let path = request.uri().path();
    let endpoint = worker
        .endpoints
        .iter()
        .find(|endpoint| endpoint.serves(path))
        .ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "nothing is served at this path"))?;
    if request.method() != Method::GET {
        let why = "a WebSocket is opened with GET";
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, why).with(ALLOW, HeaderValue::from_static("GET")));
    }
    if request.version() != Version::HTTP_11 {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "a WebSocket is opened over HTTP/1.1 (behind nginx: proxy_http_version 1.1)",
        ));
    }
    if !request.body().is_end_stream() {
        return Err(Refused::new(StatusCode::BAD_REQUEST, "a handshake has no body"));
    }
    let (channel, wire) = endpoint
        .channel(path, request.uri().query().unwrap_or_default())
        .map_err(|why| Refused::new(StatusCode::BAD_REQUEST, why.to_string()))?;
    let head = handshake::accept(request.headers()).map_err(|why| match why {
        HandshakeError::Version => Refused::new(StatusCode::UPGRADE_REQUIRED, why.to_string())
            .with(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        _ => Refused::new(StatusCode::BAD_REQUEST, why.to_string()),
    })?;
    match worker.admit(endpoint, channel, wire).await {
        Ok(admission) => Ok(Admitted { admission, head }),
        Err(why) => Err(unavailable(worker, &why)),
    }
}

fn unavailable(worker: &Worker, why: &Refusal) -> Refused {
    let seconds = worker.config.limits.retry_after.as_secs().max(1);
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).with(RETRY_AFTER, seconds.into())
}

fn page_response(page: &'static Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page.content));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(hyper::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    response
}
