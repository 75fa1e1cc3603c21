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
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::metrics::Counter;
use crate::os;
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
pub(crate) async fn serve(worker: Rc<Worker>, mut accepted: mpsc::Receiver<Accepted>) {
    let permits = Arc::new(Semaphore::new(MAX_NEGOTIATING));
    let patience = Arc::new(Semaphore::new(worker.config.limits.max_handshakes));
    let scratch = Rc::new(RefCell::new(vec![0; MAX_HEAD_BYTES]));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a handshake's handling panicked; its connection is closed");
                }
            }
            // The permit first: what waits, waits as a descriptor in the queue.
            next = next(&permits, &mut accepted) => {
                let Some((permit, connection)) = next else { break };
                let (worker, scratch) = (worker.clone(), scratch.clone());
                let (permits, patience) = (permits.clone(), patience.clone());
                tasks.spawn_local(async move {
                    let permit = match patience.try_acquire_owned() {
                        Ok(place) if !has_head(connection.socket.as_fd(), &scratch) => {
                            drop(permit);
                            let timeout = worker.config.limits.handshake_timeout;
                            let arrived = head_arrives(connection.socket.as_fd(), &scratch);
                            let Ok(Ok(())) = tokio::time::timeout_at(connection.at + timeout, arrived).await else {
                                return;
                            };
                            drop(place);
                            let Ok(permit) = permits.acquire_owned().await else { return };
                            permit
                        }
                        // So many are silent that one more may as well be worked on.
                        Ok(_) | Err(_) => permit,
                    };
                    let refused = negotiate(&worker, connection).await;
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

async fn next(
    permits: &Arc<Semaphore>,
    accepted: &mut mpsc::Receiver<Accepted>,
) -> Option<(tokio::sync::OwnedSemaphorePermit, Accepted)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    Some((permit, accepted.recv().await?))
}

/// Waits until a request can be worked on without waiting for the client.
///
/// # Errors
/// When the socket cannot be waited for.
async fn head_arrives(socket: BorrowedFd<'_>, scratch: &RefCell<Vec<u8>>) -> io::Result<()> {
    let readable = os::readiness::readable(socket)?;
    loop {
        let mut guard = readable.readable().await?;
        if guard.ready().is_read_closed() || has_head(socket, scratch) {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// Whether a whole request head waits in the socket, more than a head may have, or an end.
fn has_head(socket: BorrowedFd<'_>, scratch: &RefCell<Vec<u8>>) -> bool {
    let mut scratch = scratch.borrow_mut();
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

/// A connection's stream, of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Answers a connection's one request. Returns the stream when no session came of it.
async fn negotiate(worker: &Rc<Worker>, accepted: Accepted) -> Option<Box<dyn Stream>> {
    let opened = if os::socket::is_tcp(accepted.socket.as_fd()) {
        os::socket::set_nodelay(accepted.socket.as_fd());
        let stream = TcpStream::from_std(std::net::TcpStream::from(accepted.socket));
        answer_one(worker, stream, accepted.at, |stream| stream.into_std().map(OwnedFd::from)).await
    } else {
        let stream = UnixStream::from_std(StdUnixStream::from(accepted.socket));
        answer_one(worker, stream, accepted.at, |stream| stream.into_std().map(OwnedFd::from)).await
    };
    opened.unwrap_or_else(|error| {
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
    into_socket: impl FnOnce(S) -> io::Result<OwnedFd>,
) -> io::Result<Option<Box<dyn Stream>>> {
    let admitted = Rc::new(Cell::new(None));
    let service = service_fn(|request| {
        let (worker, admitted) = (worker.clone(), admitted.clone());
        Box::pin(async move { Ok::<_, Infallible>(answer(&worker, &request, &admitted).await) })
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(worker.config.limits.handshake_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(stream?), service);
    let negotiated = std::future::poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        match admitted.take() {
            Some(admitted) => Poll::Ready(Ok(Some(admitted))),
            None => polled.map_ok(|()| None),
        }
    });
    let deadline = accepted_at + worker.config.limits.handshake_timeout;
    let negotiated = tokio::time::timeout_at(deadline, negotiated)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(io::Error::other)?;
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    match negotiated {
        Some(Admitted { admission, head }) => {
            admission.attach(into_socket(stream)?, &head, &parts.read_buf);
            Ok(None)
        }
        None => Ok(Some(Box::new(stream))),
    }
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
    admitted: &Cell<Option<Admitted>>,
) -> Response<Full<Bytes>> {
    if let Some(page) = worker.pages.iter().find(|page| page.path == request.uri().path())
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
