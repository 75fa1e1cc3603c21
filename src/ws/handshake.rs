//! The opening handshake's header checks (RFC 6455 §4.2.1) and the 101's bytes (§4.2.2).
//!
//! Pure functions on headers. May not enter: channels, subscriptions, sockets.

use bytes::Bytes;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("this is a WebSocket endpoint: the request has no 'Upgrade: websocket'")]
    NoUpgrade,
    #[error("the request has no 'Connection: Upgrade' (behind nginx: proxy_set_header Connection $http_connection)")]
    NoConnectionUpgrade,
    #[error("the request has no Sec-WebSocket-Key")]
    NoKey,
    #[error("only Sec-WebSocket-Version 13 is spoken here")]
    Version,
}

/// Checks the headers of a handshake and returns its 101: `Connection`, `Upgrade`,
/// `Sec-WebSocket-Accept`, the first of the subprotocols that the client offered, if any,
/// and nothing else.
///
/// # Errors
/// The first check that fails.
pub(crate) fn accept(request: &HeaderMap) -> Result<Bytes, HandshakeError> {
    if !has_token(request, &UPGRADE, "websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    if !has_token(request, &CONNECTION, "upgrade") {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or(HandshakeError::NoKey)?.as_bytes().trim_ascii();
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes().trim_ascii() != b"13") {
        return Err(HandshakeError::Version);
    }
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n");
    put_header(&mut head, "Sec-WebSocket-Accept", derive_accept_key(key).as_bytes());
    if let Some(protocol) = request.get(SEC_WEBSOCKET_PROTOCOL).and_then(|offered| first_token(offered.as_bytes())) {
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

/// Whether any of the headers of that name lists `token`, in any case (RFC 9110 §5.6.1).
fn has_token(request: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    request
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn first_token(list: &[u8]) -> Option<&[u8]> {
    list.split(|byte| *byte == b',').next().map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    /// The example of RFC 6455 §1.3 with some headers replaced or, by an empty value, left out.
    fn answer(changes: &[(&'static str, &'static str)]) -> Result<String, HandshakeError> {
        let mut headers = HeaderMap::new();
        let usual = [
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
        accept(&headers).map(|head| String::from_utf8(head.to_vec()).unwrap())
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
    fn what_is_missing_is_named() {
        assert_eq!(answer(&[("upgrade", "")]), Err(HandshakeError::NoUpgrade));
        assert_eq!(answer(&[("connection", "keep-alive")]), Err(HandshakeError::NoConnectionUpgrade));
        assert_eq!(answer(&[("sec-websocket-key", "")]), Err(HandshakeError::NoKey));
        assert_eq!(answer(&[("sec-websocket-version", "8")]), Err(HandshakeError::Version));
    }
}
