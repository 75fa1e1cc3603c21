//! The opening handshake's header checks (RFC 6455 §4.2.1) and the 101's headers (§4.2.2).
//!
//! Pure functions on header maps. May not enter: channels, subscriptions, sockets.

use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
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

/// Checks the headers of a handshake and returns those of its 101: nothing beyond
/// `Connection`, `Upgrade`, `Sec-WebSocket-Accept` and, when the client offered
/// subprotocols, `Sec-WebSocket-Protocol` with the first of them.
///
/// # Errors
/// The first check that fails.
pub(crate) fn accept(request: &HeaderMap) -> Result<HeaderMap, HandshakeError> {
    if !has_token(request, &UPGRADE, "websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    if !has_token(request, &CONNECTION, "upgrade") {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or(HandshakeError::NoKey)?;
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes().trim_ascii() != b"13") {
        return Err(HandshakeError::Version);
    }
    let mut answer = HeaderMap::with_capacity(4);
    answer.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let key = derive_accept_key(key.as_bytes().trim_ascii());
    answer.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(key).map_err(|_| HandshakeError::NoKey)?);
    if let Some(protocol) = request.get(SEC_WEBSOCKET_PROTOCOL).and_then(first_token) {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(answer)
}

/// Whether any of the headers of that name lists `token`, in any case (RFC 9110 §5.6.1).
fn has_token(request: &HeaderMap, name: &hyper::header::HeaderName, token: &str) -> bool {
    request
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn first_token(value: &HeaderValue) -> Option<HeaderValue> {
    let first = value.as_bytes().split(|byte| *byte == b',').next()?.trim_ascii();
    (!first.is_empty()).then(|| HeaderValue::from_bytes(first).ok()).flatten()
}
