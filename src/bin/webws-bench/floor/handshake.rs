//! The part of HTTP that the floor's handshake needs. May not enter: sockets.

use percent_encoding::percent_decode;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// A client's request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Without the quotes that make it a JSON string.
    pub(super) channel: Vec<u8>,
    /// The answer.
    pub(super) switching: Vec<u8>,
    /// Bytes of the request.
    pub(super) len: usize,
}

/// Reads a request; `None` while it is incomplete, an error when the floor does not serve it.
pub(super) fn request(bytes: &[u8]) -> Result<Option<Request>, ()> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = bytes.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or(())?;
    let mut lines = head.split("\r\n");
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or(())?;
    let query = target.split_once('?').ok_or(())?.1;
    let value = query.split('&').find_map(|argument| argument.strip_prefix("channel=")).ok_or(())?;
    let value: Vec<u8> = percent_decode(value.as_bytes()).collect();
    let channel = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).ok_or(())?;
    let key = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim()))
        .ok_or(())?;
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    Ok(Some(Request { channel: channel.to_vec(), switching: switching.into_bytes(), len: end + 4 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_is_a_json_string_in_the_query() {
        let bytes = b"GET /webws?x=1&channel=%22c%207%22 HTTP/1.1\r\nhost: x\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nrest";
        let found = request(bytes).unwrap().unwrap();
        assert_eq!((found.channel.as_slice(), found.len), (b"c 7".as_slice(), bytes.len() - 4));
        assert!(found.switching.windows(28).any(|window| window == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(request(&bytes[..50]), Ok(None));
        assert_eq!(request(b"GET / HTTP/1.1\r\n\r\n"), Err(()));
    }
}
