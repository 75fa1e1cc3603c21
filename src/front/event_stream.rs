//! Requests for server-sent events (WHATWG HTML, §9.2): whether a request is one, and the head of the answer. Also what
//! requests of several kinds share: the media types that a client accepts, and the position that it shows.
//!
//! May not enter: channels, sockets, the events themselves (`protocol/encoding/sse.rs`).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue};

use super::head;
use crate::clock::millis;
use crate::position::{NotAPosition, Since};
use crate::protocol::cors;

const MEDIA_TYPE: &[u8] = b"text/event-stream";

/// Query arguments for a client that cannot set the header, in any case: Mercure's, nchan's and a polyfill's.
const ARGUMENTS: [&[u8]; 2] = [b"lastEventID", b"last_event_id"];

/// Whether the client accepts an event stream by name, with any weight but 0 (RFC 9110 §12.5.1). A wildcard does not
/// count: browsers and curl accept `*/*` whatever they want.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    accepts(headers, MEDIA_TYPE)
}

/// Whether the client accepts this media type by name.
pub(super) fn accepts(headers: &HeaderMap, media_type: &[u8]) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| lists(value.as_bytes(), media_type))
}

/// Whether the value of an Accept field has this media type by name.
fn lists(accept: &[u8], media_type: &[u8]) -> bool {
    accept.split(|byte| *byte == b',').any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type)) && !parts.any(is_zero_weight)
    })
}

fn is_zero_weight(parameter: &[u8]) -> bool {
    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    weight.is_some_and(|weight| weight.iter().all(|byte| b"0.".contains(byte)))
}

/// From where on the client wants publications: in the header, which a browser sets when it comes back by itself, else in the
/// query, where a page puts the position that it has kept.
pub(super) fn since(headers: &HeaderMap, query: &[u8]) -> Option<Result<Since, NotAPosition>> {
    let shown = shown(headers, query, None)?;
    Some(std::str::from_utf8(&shown).map_err(|_| NotAPosition).and_then(str::parse))
}

/// What the client shows as its position: in the header, in the query argument `further`, or in one of ours.
pub(super) fn shown<'a>(headers: &'a HeaderMap, query: &'a [u8], further: Option<&[u8]>) -> Option<Cow<'a, [u8]>> {
    let header = headers.get("last-event-id").map(HeaderValue::as_bytes).map(Cow::Borrowed);
    let further = further.and_then(|name| argument(query, &[name]));
    let mut all = header.into_iter().chain(further).chain(argument(query, &ARGUMENTS));
    all.find(|text| !text.is_empty())
}

fn argument<'a>(query: &'a [u8], names: &[&[u8]]) -> Option<Cow<'a, [u8]>> {
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let (name, value) = pair.split_at_checked(pair.iter().position(|byte| *byte == b'=')?)?;
        let is_ours = names.iter().any(|ours| name.eq_ignore_ascii_case(ours));
        is_ours.then(|| percent_encoding::percent_decode(value.get(1..).unwrap_or_default()).into())
    })
}

/// The pause after which a client whose stream has ended comes back, in milliseconds: `retry_after`, and up to as much
/// again, so that the clients of a process that was killed do not all come back at once.
fn pause(retry_after: Duration) -> u64 {
    let pause = millis(retry_after.max(Duration::from_secs(1)));
    pause + fastrand::u64(..=pause)
}

/// The answer in the place of a 503 to a client that came straight from nginx: a stream that ends at once. Behind nginx,
/// the shipped location makes such a stream of the 503, because an EventSource gives up for good after any status but
/// 200. `None` unless the request, whose head this is, is for server-sent events.
pub(super) fn ended(request: &[u8], retry_after: Duration) -> Option<Bytes> {
    let value = |name| head::value(request, name).unwrap_or_default();
    let is_websocket = value("upgrade").to_ascii_lowercase().windows(9).any(|part| part == b"websocket");
    if is_websocket || !lists(value("accept"), MEDIA_TYPE) {
        return None;
    }
    // For a page of any origin: the stream says no more than that the server is away.
    let further = cors::lines(head::field(request, "origin"));
    let pause = pause(retry_after);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n{further}\
         Connection: close\r\n\r\n: 503 the server is away or full: come back\nretry: {pause}\n\n"
    );
    Some(answer.into())
}

/// The head of the answer, and the pause after which a client whose stream has ended comes back. `further` are lines of
/// the head.
pub(super) fn head(retry_after: Duration, further: &str) -> Vec<u8> {
    let pause = pause(retry_after);
    // The answer has no length: it ends with the connection (RFC 9112 §6.3). X-Accel-Buffering is for an nginx that
    // buffers.
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n\
         {further}Connection: close\r\n\r\nretry: {pause}\n\n"
    );
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Milestone, MilestoneId, Position, Token};

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn an_event_stream_is_accepted_by_its_name_only() {
        for yes in [
            "text/event-stream",
            "TEXT/Event-Stream",
            "application/json, text/event-stream ;q=0.1",
            "text/event-stream;charset=utf-8",
            "text/event-stream;q=1",
        ] {
            assert!(is_accepted(&headers(&[("accept", "text/html"), ("accept", yes)])), "{yes}");
        }
        for no in ["", "*/*", "text/*", "text/event-stream;q=0", "text/event-stream; Q=0.000", "text/event-streams"] {
            assert!(!is_accepted(&headers(&[("accept", no)])), "{no}");
        }
        assert!(!is_accepted(&headers(&[])));
    }

    #[test]
    fn a_client_continues_from_its_header_or_from_an_argument() {
        let place = |n| Position { milestone: Milestone { id: MilestoneId(n), log: None }, count: 0 };
        let (one, two) = (Token::from(place(1)).to_string(), Token::from(place(2)).to_string());
        let place = |n| Since::Position(place(n));
        let token: &'static str = one.clone().leak();
        for name in ["lastEventID", "lastEventId", "last_event_id"] {
            let query = format!("channel=a&{name}={two}");
            assert_eq!(since(&headers(&[]), query.as_bytes()), Some(Ok(place(2))), "{name}");
            assert_eq!(since(&headers(&[("last-event-id", "")]), query.as_bytes()), Some(Ok(place(2))), "{name}");
            assert_eq!(since(&headers(&[("last-event-id", token)]), query.as_bytes()), Some(Ok(place(1))), "{name}");
        }
        let encoded: String = one.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(since(&headers(&[]), format!("last_event_id={encoded}").as_bytes()), Some(Ok(place(1))));
        for query in ["", "last_event_id", "last_event_id=", "xlast_event_id=a&channel=b"] {
            assert_eq!(since(&headers(&[]), query.as_bytes()), None, "{query}");
        }
        assert_eq!(since(&headers(&[]), b"channel=a&last_event_id=-1"), Some(Ok(Since::Oldest)));
        assert_eq!(since(&headers(&[("last-event-id", token)]), b"lastEventID=-1"), Some(Ok(place(1))));
        assert_eq!(since(&headers(&[("last-event-id", "17")]), b""), Some(Err(NotAPosition)));
        assert_eq!(since(&headers(&[]), b"lastEventID=%ff"), Some(Err(NotAPosition)));
    }

    #[test]
    fn a_refused_event_source_gets_a_stream_that_ends_and_others_their_503() {
        let ended = |fields: &str| ended(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes(), Duration::from_secs(7));
        let events = "Host: x\r\nConnection: keep-alive\r\naccept: text/html, Text/Event-Stream;q=0.9\r\n";
        let stream =
            String::from_utf8(ended(&format!("{events}Origin: https://a.example\r\n")).unwrap().to_vec()).unwrap();
        let (head, body) = stream.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"), "{head}");
        assert!(head.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"), "{head}");
        let pause = body.strip_prefix(": 503 the server is away or full: come back\nretry: ").unwrap();
        assert!((7_000..=14_000).contains(&pause.trim_end().parse().unwrap()), "{pause}");
        let own = ended(events).unwrap();
        assert!(!String::from_utf8_lossy(&own).contains("Access-Control"), "{own:?}");
        for other in ["", "Accept: */*\r\n", &format!("{events}Upgrade: h2c, WebSocket\r\n")] {
            assert_eq!(ended(other), None, "{other}");
        }
    }

    #[test]
    fn the_pause_is_spread_and_never_short() {
        for (retry_after, shortest) in [(0, 1_000), (4, 4_000)] {
            for _ in 0..50 {
                let head = head(Duration::from_secs(retry_after), "");
                let (_, retry) = std::str::from_utf8(&head).unwrap().split_once("\r\n\r\nretry: ").unwrap();
                let pause: u64 = retry.strip_suffix("\n\n").unwrap().parse().unwrap();
                assert!((shortest..=2 * shortest).contains(&pause), "{pause}");
            }
        }
    }
}
