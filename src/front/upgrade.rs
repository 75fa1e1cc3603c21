//! From an accepted connection to a session or a refusal: hyper reads the request, this room
//! answers it and takes the raw socket back.
//!
//! Few handshakes are worked on at a time; the others wait as bare descriptors, because
//! thousands of half-read requests at once leave memory behind that is never given back.
//! A request is worked on when its whole head is there, so that the silent keep nobody out, and
//! hyper reads it from memory: a handshake costs no registration before its session's.
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
use tokio::time::Instant;

use crate::clock;
use crate::config::{Limits, WireName};
use crate::front::head::{Head, MAX_HEAD_BYTES, Target};
use crate::front::page::Pages;
use crate::front::sender::Sender;
use crate::metrics::Counter;
use crate::notice;
use crate::os;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::websocket::handshake::{self, HandshakeError, Subprotocols};
use crate::throttle::Throttle;
use crate::worker::{Admission, Refusal, Worker};

/// Handshakes worked on at a time in one worker. Measured on a prototype: 9,000 at once left
/// 15.6 kB resident per session, 64 at a time 0.58 kB.
const MAX_NEGOTIATING: usize = 64;

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

/// Turns a worker's connections into sessions until the server is gone.
pub(crate) async fn serve(worker: Rc<Worker>, mut accepted: mpsc::Receiver<Accepted>, pages: Pages) {
    let waiting_room = Rc::new(WaitingRoom::new(&worker.config.limits));
    // The place first: what waits, waits as a descriptor in the queue.
    while let Some((place, connection)) = waiting_room.next(&mut accepted).await {
        let (handshake, waiting_room) = (Handshake::new(worker.clone()), waiting_room.clone());
        let pages = pages.clone();
        // It ends by itself within its deadline; until then the worker waits for it.
        tokio::task::spawn_local(async move { handshake.run(&waiting_room, place, connection, &pages).await });
    }
    // Connections come no more; the worker goes on with its sessions.
    std::future::pending::<()>().await;
}

/// A connection that is being answered, counted for as long as it exists.
struct Handshake(Rc<Worker>);

impl Drop for Handshake {
    fn drop(&mut self) {
        static PANICKED: Throttle = Throttle::per_minute();
        self.0.handshakes.set(self.0.handshakes.get() - 1);
        if std::thread::panicking() && PANICKED.allows() {
            tracing::error!("a panic in one handshake: its connection is closed, the others go on; please report it");
        }
    }
}

impl Handshake {
    fn new(worker: Rc<Worker>) -> Self {
        worker.handshakes.set(worker.handshakes.get() + 1);
        Self(worker)
    }

    async fn run(&self, waiting_room: &WaitingRoom, place: OwnedSemaphorePermit, accepted: Accepted, pages: &Pages) {
        let worker = &self.0;
        let Accepted { socket, at } = accepted;
        let deadline = at + worker.config.limits.handshake_timeout;
        let (place, answered) = match waiting_room.head_of(&socket, deadline, place).await {
            // Boxed, so that those who wait for their head are small.
            Ok((place, head)) => {
                let negotiated = Box::pin(negotiate(worker, head, socket.as_fd(), deadline, pages)).await;
                (Some(place), negotiated)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                note_refused(worker, StatusCode::REQUEST_TIMEOUT, TIMED_OUT, socket.as_fd(), &Sender::default());
                (None, Answered::Refused(plain_answer("408 Request Timeout", TIMED_OUT)))
            }
            Err(error) => {
                worker.shard.add(Counter::HandshakesRefused, 1);
                notice::handshake_refused(0, "the connection ended before its request was complete");
                return tracing::debug!(%error, "a connection ended before its handshake was complete: {error}");
            }
        };
        match answered {
            Answered::Admitted { admission, head, read_ahead } => {
                // While everything stands still for a hand-over, its session would belong to nobody.
                worker.is_up().await;
                admission.attach(socket, &head, &read_ahead);
            }
            Answered::Refused(answer) => {
                drop(place);
                // Boxed: most handshakes are no refusals.
                Box::pin(see_off(socket, &answer)).await;
            }
        }
    }
}

/// Who may have one of the places at work.
struct WaitingRoom {
    places: Arc<Semaphore>,
    /// Connections that may be silent beside those at work.
    silent: Arc<Semaphore>,
    /// Where bytes are received.
    scratch: RefCell<Vec<u8>>,
}

impl WaitingRoom {
    fn new(limits: &Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_NEGOTIATING)),
            silent: Arc::new(Semaphore::new(limits.max_handshakes)),
            scratch: RefCell::new(vec![0; MAX_HEAD_BYTES]),
        }
    }

    /// The next connection, when there is a place for it.
    async fn next(&self, accepted: &mut mpsc::Receiver<Accepted>) -> Option<(OwnedSemaphorePermit, Accepted)> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        Some((place, accepted.recv().await?))
    }

    /// Receives a connection's request head, and gives the place back while it is not there.
    ///
    /// # Errors
    /// `TimedOut` when it did not come in time; else the connection is gone.
    async fn head_of(
        &self,
        socket: &OwnedFd,
        deadline: Instant,
        place: OwnedSemaphorePermit,
    ) -> io::Result<(OwnedSemaphorePermit, Head)> {
        let mut head = Head::default();
        if head.receive(socket.as_fd(), &self.scratch)? {
            return Ok((place, head));
        }
        // When so many are silent already, one more may as well keep its place.
        let silent = self.silent.clone().try_acquire_owned().ok();
        let place = silent.is_none().then_some(place);
        clock::timeout_at(deadline, head.arrives(socket.as_fd(), &self.scratch)).await??;
        match place {
            Some(place) => Ok((place, head)),
            None => {
                drop(silent);
                let place = clock::timeout_at(deadline, self.places.clone().acquire_owned()).await?;
                Ok((place.map_err(io::Error::other)?, head))
            }
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

const TIMED_OUT: &str = "the handshake was not complete in time";

/// Counts a refused handshake, and logs it for the person that looks for this one.
fn note_refused(worker: &Worker, status: StatusCode, why: &str, socket: BorrowedFd<'_>, sender: &Sender<'_>) {
    worker.shard.add(Counter::HandshakesRefused, 1);
    let status = status.as_u16();
    notice::handshake_refused(status, why);
    sender.log_refused(status, why, socket);
}

/// How a request is answered.
enum Answered {
    /// By a session that waits for its socket; `head` is its 101.
    Admitted { admission: Admission, head: Bytes, read_ahead: Vec<u8> },
    /// By a refusal, or a file.
    Refused(Bytes),
}

/// Answers the one request of a connection.
///
/// The 101 is not hyper's to write: the session sends it, after it was attached to its
/// audience, and hyper would add `close` to its `Connection` when the client said so.
async fn negotiate(
    worker: &Rc<Worker>,
    mut head: Head,
    socket: BorrowedFd<'_>,
    deadline: Instant,
    pages: &Pages,
) -> Answered {
    let admitted = Rc::new(Cell::new(None));
    let target = Rc::new(head.take_target());
    let service = service_fn(|request| {
        let (worker, admitted, target) = (worker.clone(), admitted.clone(), target.clone());
        let pages = pages.clone();
        Box::pin(async move {
            let asked = Asked { target: target.as_ref().as_ref(), request: &request, socket };
            Ok::<_, Infallible>(answer(&worker, &asked, deadline, &pages, &admitted).await)
        })
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        // The head is there.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(Exchange { head, answer: Vec::new() }), service);
    let negotiated = std::future::poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        match admitted.take() {
            Some(admitted) => Poll::Ready(Ok(Some(admitted))),
            None => polled.map_ok(|()| None),
        }
    });
    let negotiated = negotiated.await;
    let parts = connection.into_parts();
    let Exchange { head: request, answer } = parts.io.into_inner();
    match negotiated {
        Ok(Some(Admitted { admission, head })) => {
            Answered::Admitted { admission, head, read_ahead: request.read_ahead(&parts.read_buf) }
        }
        Ok(None) => Answered::Refused(answer.into()),
        // hyper's own refusals have no words.
        Err(error) => {
            tracing::debug!(%error, "a request is not well-formed: {error}");
            let (status, why, answer) = malformed(&answer);
            note_refused(worker, status, why, socket, &Sender::in_head(request.bytes()));
            Answered::Refused(answer)
        }
    }
}

/// A connection as hyper sees it: the head that was received, and an answer that is held back
/// until it is known what becomes of the connection.
struct Exchange {
    head: Head,
    answer: Vec<u8>,
}

impl AsyncRead for Exchange {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Behind its bytes comes an end, so that hyper never waits for more: not for a body either.
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

/// hyper's answer to what is no proper request, its reason, and the two with words; empty when it has none to give.
fn malformed(answer: &[u8]) -> (StatusCode, &'static str, Bytes) {
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

const MALFORMED: &str = "the request is no well-formed HTTP/1.1";

/// A handshake that succeeded: the session that waits for its socket, and its 101.
struct Admitted {
    admission: Admission,
    head: Bytes,
}

/// Sends a refused client its answer and lets it read it: closing with unread bytes would reset
/// the connection, and a reset can destroy the answer on its way.
async fn see_off(socket: OwnedFd, answer: &[u8]) {
    let seen_off = async {
        let mut stream = stream_of(socket)?;
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    if !matches!(tokio::time::timeout(LINGER, seen_off).await, Ok(Ok(()))) {
        tracing::trace!("a refused client did not close its connection in time");
    }
}

/// A stream of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

fn stream_of(socket: OwnedFd) -> io::Result<Box<dyn Stream>> {
    Ok(if os::socket::is_tcp(socket.as_fd()) {
        Box::new(TcpStream::from_std(std::net::TcpStream::from(socket))?)
    } else {
        Box::new(UnixStream::from_std(StdUnixStream::from(socket))?)
    })
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

/// A request: its target as it came, and what hyper read of the rest.
struct Asked<'a> {
    /// `None` when hyper saw the target as well, which it does in a head that it refuses.
    target: Option<&'a Target>,
    request: &'a Request<Incoming>,
    /// Where it came from.
    socket: BorrowedFd<'a>,
}

impl Asked<'_> {
    fn path(&self) -> &[u8] {
        self.target.map_or(b"", Target::path)
    }
}

async fn answer(
    worker: &Rc<Worker>,
    asked: &Asked<'_>,
    deadline: Instant,
    pages: &Pages,
    admitted: &Cell<Option<Admitted>>,
) -> Response<Full<Bytes>> {
    let foreign = pages.as_ref().and_then(|page| page.refusal(asked.request.headers()));
    if let (None, Some(page), Some(target)) = (&foreign, pages, asked.target)
        && let Some(response) = page.answer(asked.request.method(), target.path(), target.query()).await
    {
        return response;
    }
    if let Some(response) = health(worker, asked) {
        return response;
    }
    let outcome = match foreign {
        Some(why) => Err(Refused::new(StatusCode::FORBIDDEN, why)),
        None => handshake(worker, asked, deadline).await,
    };
    let refused = match outcome {
        Ok(success) => {
            admitted.set(Some(success));
            // Whoever polls hyper sees it at once and takes the connection away.
            return std::future::pending().await;
        }
        Err(refused) => refused,
    };
    let sender = Sender::in_headers(asked.request.headers());
    note_refused(worker, refused.status, &refused.why, asked.socket, &sender);
    if pages.is_some() {
        // A developer wants to see it.
        let (status, path) = (refused.status.as_u16(), String::from_utf8_lossy(asked.path()));
        tracing::info!(status, %path, "refused {path} with {status}: {}", refused.why);
    }
    let mut response = line_response(refused.status, &refused.why);
    response.headers_mut().extend(refused.header);
    response
}

fn line_response(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{line}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer to a question about our health: alive, or ready, which is that messages flow.
fn health(worker: &Worker, asked: &Asked<'_>) -> Option<Response<Full<Bytes>>> {
    let path = asked.path();
    let is_asked = matches!(path, b"/healthz" | b"/readyz")
        && matches!(*asked.request.method(), Method::GET | Method::HEAD)
        && !worker.endpoints.iter().any(|endpoint| endpoint.is_at(path));
    if !is_asked {
        return None;
    }
    let fault = if path == b"/readyz" { worker.fault() } else { None };
    Some(match fault {
        Some(fault) => line_response(StatusCode::SERVICE_UNAVAILABLE, &fault),
        None => line_response(StatusCode::OK, "ok"),
    })
}

/// A path on which nginx and this program could disagree.
const AMBIGUOUS: &str =
    "the path has a segment '.' or '..', an empty one, a backslash, an encoded slash, or an endpoint's name encoded";

/// Checks a request in the order of the wire contract: request line, channel, headers,
/// subscription.
async fn handshake(worker: &Rc<Worker>, asked: &Asked<'_>, deadline: Instant) -> Result<Admitted, Refused> {
    let bad = |why: String| Refused::new(StatusCode::BAD_REQUEST, why);
    let Asked { target: Some(target), request, .. } = asked else {
        return Err(bad("the request's target is no path".to_owned()));
    };
    let endpoint = Endpoint::serving(&worker.endpoints, target.path())
        .ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "nothing is served at this path"))?;
    if endpoint.is_ambiguous(&worker.endpoints, target.path()) {
        return Err(bad(AMBIGUOUS.to_owned()));
    }
    if request.method() != Method::GET {
        let why = "a WebSocket is opened with GET";
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, why).with(ALLOW, HeaderValue::from_static("GET")));
    }
    if request.version() != Version::HTTP_11 {
        return Err(bad("a WebSocket is opened over HTTP/1.1 (behind nginx: proxy_http_version 1.1)".to_owned()));
    }
    if !request.body().is_end_stream() {
        return Err(bad("a handshake has no body".to_owned()));
    }
    let (channel, wire) = endpoint.channel(target.path(), target.query()).map_err(|why| bad(why.to_string()))?;
    let spoken = match endpoint.config.wire {
        WireName::Lua => Subprotocols::First,
        WireName::Plain => Subprotocols::Listed(&endpoint.config.subprotocols),
    };
    let head = handshake::accept(request.headers(), spoken).map_err(|why| match why {
        HandshakeError::Version => Refused::new(StatusCode::UPGRADE_REQUIRED, why.to_string())
            .with(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        _ => bad(why.to_string()),
    })?;
    match worker.admit(endpoint, channel, wire, deadline).await {
        Ok(admission) => Ok(Admitted { admission, head }),
        Err(why) => Err(unavailable(worker, &why)),
    }
}

fn unavailable(worker: &Worker, why: &Refusal) -> Refused {
    let seconds = worker.config.limits.retry_after.as_secs().max(1);
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).with(RETRY_AFTER, seconds.into())
}
