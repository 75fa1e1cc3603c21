//! The answer to a request: a session and its encoding, a refusal with its status and reason, the server's health, or
//! the test page. A worker's refusal (503) and a late head (408) are answered in `upgrade.rs`.
//!
//! A socket is here for its peer's user and for the log line. May not enter: reading and writing it, a session's life
//! after its 101.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_VERSION,
};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::access::Access;
use super::arrival;
use super::client_address::Sender;
use super::cors;
use super::denied::Denied;
use super::event_stream;
use super::head::Target;
use super::long_poll;
use super::page::Pages;
use super::refusal::note_refused;
use super::token;
use crate::channel::Channel;
use crate::config::{ClaimsSource, WireName};
use crate::metrics::Counter;
use crate::position::{NotAPosition, Since};
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::{Endpoint, NoChannel};
use crate::protocol::session::{Claims, Grant, Poll, Rights};
use crate::protocol::websocket::handshake::{self, HandshakeError, Subprotocols};
use crate::worker::Handle;

/// A request that was accepted: what its session gets, and the head of its answer, a 101 or a 200.
pub(super) struct Accepted {
    pub(super) grant: Grant,
    pub(super) head: Bytes,
    /// The page that made the request, if the endpoint serves only some, and the page reads a refusal.
    pub(super) page: Option<HeaderValue>,
}

/// How a request for an endpoint is answered, unless it is refused.
enum Success {
    /// With a session.
    Session(Accepted),
    /// To a browser that asks what a page of this origin may send.
    Preflight(HeaderValue),
}

impl Accepted {
    /// A client that may have shown a position.
    fn coming_back(mut grant: Grant, shown: Option<Result<Since, NotAPosition>>, mut head: Vec<u8>) -> Self {
        if matches!(shown, Some(Err(_)))
            && let Some(gap) = grant.encoding.gap("the last event's id is not a position: messages may be missing")
        {
            head.extend_from_slice(&gap);
        }
        grant.since = shown.and_then(Result::ok);
        Self { grant, head: head.into(), page: None }
    }

    /// A client that polls: its session makes the head of its answer.
    fn polling(mut grant: Grant, headers: &HeaderMap, target: &Target, page: Option<&HeaderValue>) -> Self {
        let (since, begin) = long_poll::since(headers, target.query());
        let poll = Poll::new(begin, page.and_then(|page| page.to_str().ok()).map(Into::into));
        (grant.since, grant.poll) = (since, Some(Box::new(poll)));
        Self { grant, head: Bytes::new(), page: page.cloned() }
    }
}

/// An answer without a session: a status, and one line with the reason.
struct RefusedHandshake {
    status: StatusCode,
    why: String,
    /// Boxed, because most refusals have none.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// The page that may read the refusal.
    page: Option<HeaderValue>,
}

impl RefusedHandshake {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), header: None, page: None }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }
}

/// A request: its target in the client's bytes, and hyper's reading of the rest.
pub(super) struct RawRequest<'a> {
    /// `None` when the target could not be taken out of the head: then hyper sees the target, too.
    pub(super) target: Option<&'a Target>,
    pub(super) request: &'a Request<Incoming>,
    /// The connection: its sender's user, and for a log line.
    pub(super) socket: BorrowedFd<'a>,
    /// The user whose process has handed the client off, if one has.
    pub(super) handed_off_by: Option<u32>,
    pub(super) access: &'a Access,
}

impl RawRequest<'_> {
    fn path(&self) -> &[u8] {
        self.target.map_or(b"", Target::path)
    }
}

pub(super) async fn answer(
    worker: &Handle,
    raw: &RawRequest<'_>,
    pages: &Pages,
    accepted: &Cell<Option<Accepted>>,
) -> Response<Full<Bytes>> {
    if let Some(why) = arrival::why_proxied(raw.request.headers()) {
        worker.shard.add(Counter::Proxied(why), 1);
    }
    if let Some(told) = arrival::told(raw.request.headers(), raw.handed_off_by.is_some()) {
        return line_response(StatusCode::OK, &told);
    }
    let foreign = pages.as_ref().and_then(|page| page.refusal(raw.request.headers()));
    if let (None, Some(page), Some(target)) = (&foreign, pages, raw.target)
        && let Some(response) = page.answer(raw.request.method(), target.path(), target.query()).await
    {
        return response;
    }
    if let Some(response) = health(worker, raw).await {
        return response;
    }
    let result = match foreign {
        Some(why) => Err(RefusedHandshake::new(StatusCode::FORBIDDEN, why)),
        None => handshake(worker, raw),
    };
    let refused = match result {
        Ok(Success::Session(session)) => {
            accepted.set(Some(session));
            // `negotiate` finds `accepted` set at its next poll, and takes the connection away from hyper.
            return std::future::pending().await;
        }
        Ok(Success::Preflight(page)) => return cors::preflight(page),
        Err(refused) => refused,
    };
    let sender = Sender::in_headers(raw.request.headers());
    note_refused(&worker.shard, refused.status, &refused.why, raw.socket, &sender);
    if pages.is_some() {
        // A developer wants to see each refusal.
        let (status, path) = (refused.status.as_u16(), String::from_utf8_lossy(raw.path()));
        let why = &refused.why;
        tracing::info!(status, %path, why, "refused {path} with {status}: {why}");
    }
    let mut response = line_response(refused.status, &refused.why);
    response.headers_mut().extend(refused.header.map(|header| *header));
    response.headers_mut().extend(refused.page.into_iter().flat_map(cors::fields));
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

/// The answer to `/healthz` (the process lives) and `/readyz` (messages flow).
async fn health(worker: &Handle, raw: &RawRequest<'_>) -> Option<Response<Full<Bytes>>> {
    let path = raw.path();
    let is_asked = matches!(path, b"/healthz" | b"/readyz")
        && matches!(*raw.request.method(), Method::GET | Method::HEAD)
        && !worker.endpoints.iter().any(|endpoint| endpoint.is_at(path));
    if !is_asked {
        return None;
    }
    let fault = if path == b"/readyz" { worker.fault().await } else { None };
    Some(match fault {
        Some(fault) => line_response(StatusCode::SERVICE_UNAVAILABLE, &fault),
        None => line_response(StatusCode::OK, "ok"),
    })
}

/// The refusal of a path that nginx and webws could read differently.
const AMBIGUOUS: &str =
    "the path has a segment '.' or '..', an empty one, a backslash, an encoded slash, or an endpoint's name encoded";

/// The refusal of a request from another endpoint's location: the shipped nginx locations set `X-Webws-Endpoint`.
const OTHER_LOCATION: &str = "the path belongs to a different endpoint than X-Webws-Endpoint names";

/// The refusal of an event stream, or of a poll, at an endpoint whose clients receive nothing.
const NO_EVENTS: &str = "this endpoint sends nothing to its clients, so it has no event streams and no long-polls";

/// The refusal of a poll at an endpoint without a history: what is published between two polls would be lost.
const NO_POLLS: &str = "this endpoint keeps no messages (history), so it has no long-polls";

/// nchan's subprotocol with positions (<https://nchan.io/#websocket>), spoken at endpoints with a history.
const META: &str = "ws+meta.nchan";

/// The refusal of a WebSocket at an endpoint with `wire = "sse"`.
const ONLY_EVENTS: &str = "this endpoint has server-sent events only, and no WebSockets";

fn bad(why: impl Into<String>) -> RefusedHandshake {
    RefusedHandshake::new(StatusCode::BAD_REQUEST, why)
}

fn no_channel(why: NoChannel) -> RefusedHandshake {
    let status = if why == NoChannel::NotAllowed { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    RefusedHandshake::new(status, why.to_string())
}

/// Finds the endpoint of a request, and checks the page that made it.
fn handshake(worker: &Handle, raw: &RawRequest<'_>) -> Result<Success, RefusedHandshake> {
    let RawRequest { target: Some(target), request, .. } = raw else {
        return Err(bad("the request's target is not a path"));
    };
    let endpoint = Endpoint::serving(&worker.endpoints, target.path())
        .ok_or_else(|| RefusedHandshake::new(StatusCode::NOT_FOUND, "nothing is served at this path"))?;
    if endpoint.is_ambiguous(&worker.endpoints, target.path()) {
        return Err(bad(AMBIGUOUS));
    }
    // nginx applied the access rules of its location, so the endpoint must be the one of that location.
    let mut locations = request.headers().get_all("x-webws-endpoint").iter();
    if locations.any(|path| path.as_bytes() != endpoint.config.path.as_bytes()) {
        return Err(bad(OTHER_LOCATION));
    }
    let page = cors::page(&endpoint.config, request.headers())
        .map_err(|foreign| RefusedHandshake::new(StatusCode::FORBIDDEN, foreign.to_string()))?;
    match page {
        Some(page) if cors::is_preflight(request) => Ok(Success::Preflight(page)),
        // A page cannot read the answer to a WebSocket's handshake.
        page => {
            let page = page.filter(|_| !handshake::is_asked_for(request.headers()));
            let accepted = handshake_at(worker, endpoint, target, raw, page.as_ref());
            accepted.map(Success::Session).map_err(|refused| RefusedHandshake { page, ..refused })
        }
    }
}

/// Checks a request in the order of the wire contract: request line, channel, headers,
/// subscription.
fn handshake_at(
    worker: &Handle,
    endpoint: &Rc<Endpoint>,
    target: &Target,
    raw: &RawRequest<'_>,
    page: Option<&HeaderValue>,
) -> Result<Accepted, RefusedHandshake> {
    let request = raw.request;
    if request.method() != Method::GET {
        let why = "a WebSocket is opened with GET";
        return Err(
            RefusedHandshake::new(StatusCode::METHOD_NOT_ALLOWED, why).with(ALLOW, HeaderValue::from_static("GET"))
        );
    }
    let transport = Transport::of(endpoint, request.headers());
    if transport == Transport::WebSocket && request.version() != Version::HTTP_11 {
        return Err(bad("a WebSocket is opened over HTTP/1.1 (behind nginx: proxy_http_version 1.1)"));
    }
    if !request.body().is_end_stream() {
        return Err(bad("a handshake has no body"));
    }
    let named = endpoint.named(target.path(), target.query()).map_err(|why| bad(why.to_string()))?;
    let name = raw.access.name(&endpoint.config, named).map_err(denied)?;
    let (channel, mut encoding) = endpoint.channel_called(&name).map_err(no_channel)?;
    let permit = permit(worker, endpoint, &channel, raw)?;
    if transport != Transport::WebSocket {
        check_plain_request(endpoint, request).map_err(bad)?;
        if permit.as_ref().is_some_and(|(_, allowed)| !allowed.may_receive) {
            return Err(denied(Denied::Channel));
        }
    }
    match transport {
        Transport::Events => {
            let shown = event_stream::since(request.headers(), target.query());
            let head = event_stream::head(worker.config.limits.retry_after, &cors::lines(page));
            let grant = grant(endpoint, channel, endpoint.event_encoding(), permit);
            let accepted = Accepted::coming_back(grant, shown, head);
            return Ok(Accepted { page: page.cloned(), ..accepted });
        }
        Transport::Poll if endpoint.config.history.is_none() => return Err(bad(NO_POLLS)),
        Transport::Poll => {
            let grant = grant(endpoint, channel, endpoint.poll_encoding(), permit);
            return Ok(Accepted::polling(grant, request.headers(), target, page));
        }
        Transport::WebSocket => {}
    }
    let has_positions = endpoint.config.history.is_some() && handshake::offers(request.headers(), META);
    let spoken = match endpoint.config.wire {
        _ if has_positions => Subprotocols::Only(META),
        WireName::Lua | WireName::Sse if endpoint.config.claims == ClaimsSource::Token => {
            Subprotocols::FirstBut(token::SUBPROTOCOL)
        }
        WireName::Lua | WireName::Sse => Subprotocols::First,
        WireName::Plain => Subprotocols::Listed(&endpoint.config.subprotocols),
    };
    let head = handshake::accept(request.headers(), spoken).map_err(|why| match why {
        HandshakeError::Version => RefusedHandshake::new(StatusCode::UPGRADE_REQUIRED, why.to_string())
            .with(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        _ => bad(why.to_string()),
    })?;
    let mut shown = None;
    if has_positions {
        encoding = Encoding::Meta;
        shown = event_stream::since(request.headers(), target.query());
    }
    Ok(Accepted::coming_back(grant(endpoint, channel, encoding, permit), shown, head.to_vec()))
}

fn denied(why: Denied) -> RefusedHandshake {
    RefusedHandshake::new(why.status(), why.to_string())
}

/// What claims allow on the channel that would be subscribed; `None` for all that the endpoint allows.
fn permit(
    worker: &Handle,
    endpoint: &Endpoint,
    channel: &Channel,
    raw: &RawRequest<'_>,
) -> Result<Option<(Claims, Rights)>, RefusedHandshake> {
    let is_trusted = || {
        let is_trusted = raw.access.trusted().trusts_sender(raw.handed_off_by, raw.socket);
        if !is_trusted {
            worker.shard.add(Counter::ClaimsDropped, 1);
        }
        is_trusted
    };
    let query = raw.target.map_or(&b""[..], Target::query);
    raw.access.permit(&endpoint.config, channel, (raw.request.headers(), query), is_trusted).map_err(denied)
}

fn grant(endpoint: &Rc<Endpoint>, channel: Channel, encoding: Encoding, permit: Option<(Claims, Rights)>) -> Grant {
    let grant = Grant::of(endpoint.clone(), channel, encoding);
    match permit {
        Some((claims, allowed)) => grant.claimed(claims, allowed),
        None => grant,
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Events,
    Poll,
}

impl Transport {
    /// Server-sent events come before long-poll where a client accepts both.
    fn of(endpoint: &Endpoint, headers: &HeaderMap) -> Self {
        match endpoint.config.wire {
            WireName::Sse => Self::Events,
            _ if handshake::is_asked_for(headers) => Self::WebSocket,
            _ if event_stream::is_accepted(headers) => Self::Events,
            _ if long_poll::is_accepted(headers) => Self::Poll,
            _ => Self::WebSocket,
        }
    }
}

/// The checks of the headers, as [`handshake::accept`] does them for a WebSocket.
fn check_plain_request(endpoint: &Endpoint, request: &Request<Incoming>) -> Result<(), String> {
    if handshake::is_asked_for(request.headers()) {
        return Err(ONLY_EVENTS.to_owned());
    }
    if request.version() == Version::HTTP_11 && !handshake::has_host(request.headers()) {
        return Err(HandshakeError::Host.to_string());
    }
    if endpoint.config.subscribe { Ok(()) } else { Err(NO_EVENTS.to_owned()) }
}
