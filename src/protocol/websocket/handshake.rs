//! The opening handshake's header checks (RFC 6455 §4.2.1) and the 101's bytes (§4.2.2).
//!
//! Pure functions on headers. May not enter: channels, subscriptions, sockets.

use bytes::Bytes;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(
        "the request has neither 'Upgrade: websocket' nor, for server-sent events, 'Accept: text/event-stream', nor, for \
         long-poll, 'Accept: application/json'"
    )]
    NoUpgrade,
    #[error("the request has no 'Connection: Upgrade' (behind nginx: proxy_set_header Connection $http_connection)")]
    NoConnectionUpgrade,
    #[error("the request has no Host, or more than one (behind nginx: proxy_set_header Host $http_host)")]
    Host,
    #[error("the request has no Sec-WebSocket-Key, or more than one")]
    NoKey,
    #[error("the Sec-WebSocket-Key is not 16 bytes in base64")]
    BadKey,
    #[error("only Sec-WebSocket-Version 13 is spoken here")]
    Version,
}

/// Which of the subprotocols that a client offers is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subprotocols<'a> {
    /// The first one in the first header, whatever its name: the contract of the `lua` wire.
    First,
    /// The first one that does not begin so: such a one is a secret of the client, and no subprotocol.
    FirstBut(&'a str),
    /// The first one that is in this list.
    Listed(&'a [String]),
    /// This one.
    Only(&'a str),
}

/// Whether the request is for a WebSocket, whatever else it accepts.
pub(crate) fn is_asked_for(request: &HeaderMap) -> bool {
    has_token(request, &UPGRADE, "websocket")
}

/// RFC 9112 §3.2: exactly one Host field; and a URL always has a host.
pub(crate) fn has_host(request: &HeaderMap) -> bool {
    only(request, &HOST).is_some_and(|host| !host.is_empty())
}

/// Whether a client offers this subprotocol.
pub(crate) fn offers(request: &HeaderMap, name: &str) -> bool {
    subprotocol(request, Subprotocols::Only(name)).is_some()
}

/// Checks the headers of a handshake and returns its 101: `Connection`, `Upgrade`,
/// `Sec-WebSocket-Accept`, one of the subprotocols that the client offered, if any is `spoken`,
/// and nothing else.
///
/// # Errors
/// The first check that fails.
pub(crate) fn accept(request: &HeaderMap, spoken: Subprotocols<'_>) -> Result<Bytes, HandshakeError> {
    if !is_asked_for(request) {
        return Err(HandshakeError::NoUpgrade);
    }
    if !has_token(request, &CONNECTION, "upgrade") {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    if !has_host(request) {
        return Err(HandshakeError::Host);
    }
    let key = only(request, &SEC_WEBSOCKET_KEY).ok_or(HandshakeError::NoKey)?;
    if !is_key(key) {
        return Err(HandshakeError::BadKey);
    }
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes().trim_ascii() != b"13") {
        return Err(HandshakeError::Version);
    }
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n");
    put_header(&mut head, "Sec-WebSocket-Accept", derive_accept_key(key).as_bytes());
    if let Some(protocol) = subprotocol(request, spoken) {
        put_header(&mut head, "Sec-WebSocket-Protocol", protocol);
    }
    head.extend_from_slice(b"\r\n");
    Ok(head.into())
}

fn put_header(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// Whether any of the headers called `name` lists `token`, in any case (RFC 9110 §5.6.1).
fn has_token(request: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    request
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The header's value without surrounding blanks, when exactly one header has that name.
fn only<'a>(request: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = request.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

/// Whether `key` is 16 bytes in base64 (RFC 6455 §4.1): 22 characters and the padding.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.strip_suffix(b"==").is_some_and(|digits| digits.len() == 22 && digits.iter().all(is_digit))
}

fn subprotocol<'a>(request: &'a HeaderMap, spoken: Subprotocols<'_>) -> Option<&'a [u8]> {
    let offers = request.get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut tokens = offers.iter().map(|offer| offer.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    match spoken {
        Subprotocols::First => tokens.next()?.next().filter(|token| !token.is_empty()),
        Subprotocols::FirstBut(beginning) => {
            tokens.flatten().find(|token| !token.is_empty() && !token.starts_with(beginning.as_bytes()))
        }
        Subprotocols::Listed(listed) => {
            tokens.flatten().find(|token| listed.iter().any(|listed| listed.as_bytes() == *token))
        }
        Subprotocols::Only(only) => tokens.flatten().find(|token| *token == only.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    /// The example of RFC 6455 §1.3 with some headers replaced or, by an empty value, left out.
    fn answer(changes: &[(&'static str, &'static str)]) -> Result<String, HandshakeError> {
        accept(&request(changes), Subprotocols::First).map(|head| String::from_utf8(head.to_vec()).unwrap())
    }

    fn request(changes: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let usual = [
            ("host", "localhost"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ];
        for (name, value) in usual.iter().chain(changes) {
            headers.insert(*name, HeaderValue::from_static(value));
            if value.is_empty() {
                headers.remove(*name);
            }
        }
        headers
    }

    #[test]
    fn the_101_has_these_bytes() {
        assert_eq!(
            answer(&[("sec-websocket-protocol", " chat , superchat")]).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
        );
    }

    #[test]
    fn tokens_are_found_in_lists_and_in_any_case() {
        assert!(answer(&[("connection", "keep-alive, uPgRaDe"), ("upgrade", "WebSocket")]).is_ok());
    }

    #[test]
    fn a_missing_header_is_named() {
        assert_eq!(answer(&[("upgrade", "")]), Err(HandshakeError::NoUpgrade));
        assert_eq!(answer(&[("connection", "keep-alive")]), Err(HandshakeError::NoConnectionUpgrade));
        assert_eq!(answer(&[("sec-websocket-key", "")]), Err(HandshakeError::NoKey));
        assert_eq!(answer(&[("sec-websocket-version", "8")]), Err(HandshakeError::Version));
        assert_eq!(answer(&[("host", "")]), Err(HandshakeError::Host));
        assert_eq!(answer(&[("host", " ")]), Err(HandshakeError::Host));
        let mut twice = request(&[]);
        twice.append("host", HeaderValue::from_static("other"));
        assert_eq!(accept(&twice, Subprotocols::First), Err(HandshakeError::Host));
        let mut twice = request(&[]);
        twice.append("sec-websocket-key", HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="));
        assert_eq!(accept(&twice, Subprotocols::First), Err(HandshakeError::NoKey));
    }

    #[test]
    fn a_key_is_16_bytes_in_base64() {
        for good in ["AAAAAAAAAAAAAAAAAAAAAA==", " x3JJHMbDL1EzLkh9GBhXDw== ", "++//++//++//++//++//+w=="] {
            assert!(answer(&[("sec-websocket-key", good)]).is_ok(), "{good}");
        }
        for bad in [
            "abc",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAA-==",
            "AAAAAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAA==",
            "=====================A==",
        ] {
            assert_eq!(answer(&[("sec-websocket-key", bad)]), Err(HandshakeError::BadKey), "{bad}");
        }
    }

    #[test]
    fn only_a_subprotocol_that_is_listed_is_answered() {
        let listed = ["b".to_owned(), "a".to_owned()];
        let answered = |offers: &[&'static str], listed: &[String]| {
            let mut headers = request(&[]);
            for offer in offers {
                headers.append("sec-websocket-protocol", HeaderValue::from_static(offer));
            }
            let head = accept(&headers, Subprotocols::Listed(listed)).unwrap();
            let head = String::from_utf8(head.to_vec()).unwrap();
            head.split("Sec-WebSocket-Protocol: ").nth(1).map(|rest| rest.trim_end().to_owned())
        };
        assert_eq!(answered(&["x, a , b"], &listed).as_deref(), Some("a"));
        assert_eq!(answered(&["x", "b"], &listed).as_deref(), Some("b"));
        assert_eq!(answered(&["x, A"], &listed), None);
        assert_eq!(answered(&["a"], &[]), None);
        assert_eq!(answered(&[], &listed), None);
    }
}
