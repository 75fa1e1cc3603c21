//! Requests of clients that poll: whether a request is one, and the position that its client shows.
//!
//! May not enter: channels, sockets, the answer (`protocol/encoding/poll.rs`).

use hyper::header::HeaderMap;

use super::event_stream;
use crate::position::Since;
use crate::protocol::session::Begin;

const MEDIA_TYPE: &[u8] = b"application/json";

/// The query argument of Durable Streams, before those of server-sent events.
const ARGUMENT: &[u8] = b"offset";

/// The position at which a client begins that has none, and waits at once (Durable Streams).
const NOW: &[u8] = b"now";

/// Whether the client accepts JSON by name. A wildcard does not count.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    event_stream::accepts(headers, MEDIA_TYPE)
}

/// The position that the client shows, and what it gets if there is nothing behind that position.
pub(super) fn since(headers: &HeaderMap, query: &[u8]) -> (Option<Since>, Begin) {
    let Some(shown) = event_stream::shown(headers, query, Some(ARGUMENT)) else { return (None, Begin::Position) };
    if &*shown == NOW {
        return (None, Begin::Wait);
    }
    match std::str::from_utf8(&shown).ok().and_then(|text| text.parse().ok()) {
        Some(position) => (Some(position), Begin::Wait),
        None => (None, Begin::Gap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Milestone, MilestoneId, Position, Token};
    use hyper::header::HeaderValue;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)));
        fields.collect()
    }

    #[test]
    fn json_is_accepted_by_its_name_only() {
        for yes in
            ["application/json", "Application/JSON;q=0.5", "text/plain, application/json", "application/json, */*"]
        {
            assert!(is_accepted(&headers(&[("accept", yes)])), "{yes}");
        }
        for no in ["*/*", "application/*", "application/json;q=0", "application/jsonp", "application/ld+json", ""] {
            assert!(!is_accepted(&headers(&[("accept", no)])), "{no}");
        }
    }

    #[test]
    fn a_client_shows_a_position_or_none_or_something_else() {
        let place = |n| Position { milestone: Milestone { id: MilestoneId(n), log: None }, count: 0 };
        let (one, two) = (Token::from(place(1)).to_string(), Token::from(place(2)).to_string());
        let place = |n| Since::Position(place(n));
        for name in ["offset", "Offset", "lastEventID", "last_event_id"] {
            let query = format!("channel=a&{name}={two}");
            assert_eq!(since(&headers(&[]), query.as_bytes()), (Some(place(2)), Begin::Wait), "{name}");
        }
        let header = headers(&[("last-event-id", one.clone().leak())]);
        assert_eq!(since(&header, b"channel=a"), (Some(place(1)), Begin::Wait));
        assert_eq!(since(&header, format!("offset={two}").as_bytes()), (Some(place(1)), Begin::Wait));
        assert_eq!(since(&headers(&[]), b"offset=now"), (None, Begin::Wait));
        assert_eq!(since(&headers(&[]), b"offset=-1"), (Some(Since::Oldest), Begin::Wait));
        for query in ["", "channel=a", "offset=", "offset", "xoffset=now"] {
            assert_eq!(since(&headers(&[]), query.as_bytes()), (None, Begin::Position), "{query}");
        }
        for query in ["offset=0", "offset=NOW", "offset=%ff", "last_event_id=17"] {
            assert_eq!(since(&headers(&[]), query.as_bytes()), (None, Begin::Gap), "{query}");
        }
    }
}
