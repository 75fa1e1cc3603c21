//! Builds server frames: FIN set, no RSV bit, never masked, the shortest form of the length (RFC 6455 §5.2).
//!
//! A server frame has the same bytes for every subscriber, so it is built once and shared. May not enter: sockets.

use bytes::{BufMut, Bytes, BytesMut};

const FIN_TEXT: u8 = 0x81;
const FIN_BINARY: u8 = 0x82;
const FIN_CLOSE: u8 = 0x88;
const FIN_PING: u8 = 0x89;
const FIN_PONG: u8 = 0x8a;

/// The longest header of a server frame: 2 bytes and a 64-bit length.
pub(crate) const MAX_HEADER_BYTES: usize = 10;

/// An empty ping.
pub(crate) const PING: &[u8] = &[FIN_PING, 0];

/// Appends the header of a text frame whose payload has `len` bytes.
pub(crate) fn put_text_header(out: &mut BytesMut, len: usize) {
    put_header(FIN_TEXT, out, len);
}

/// Appends the header of a binary frame whose payload has `len` bytes.
pub(crate) fn put_binary_header(out: &mut BytesMut, len: usize) {
    put_header(FIN_BINARY, out, len);
}

fn put_header(first: u8, out: &mut BytesMut, len: usize) {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.put_slice(&[first, short]),
        (_, Ok(medium)) => {
            let [high, low] = medium.to_be_bytes();
            out.put_slice(&[first, 126, high, low]);
        }
        _ => {
            out.put_slice(&[first, 127]);
            out.put_u64(len as u64);
        }
    }
}

/// A pong that carries `payload`, which came in a ping: at most 125 bytes.
pub(crate) fn pong(payload: &[u8]) -> Bytes {
    control(FIN_PONG, payload)
}

/// A close frame with a code and a reason, or an empty one.
pub(crate) fn close(code: Option<u16>, reason: &str) -> Bytes {
    let mut payload = BytesMut::with_capacity(2 + reason.len());
    if let Some(code) = code {
        payload.put_u16(code);
        payload.put_slice(reason.as_bytes());
    }
    control(FIN_CLOSE, &payload)
}

fn control(first: u8, payload: &[u8]) -> Bytes {
    // Callers hold to RFC 6455 §5.5; a longer payload is cut rather than sent malformed.
    let len = u8::try_from(payload.len()).unwrap_or(125).min(125);
    let mut out = BytesMut::with_capacity(2 + usize::from(len));
    out.put_u8(first);
    out.put_u8(len);
    out.put_slice(payload.get(..usize::from(len)).unwrap_or_default());
    out.freeze()
}

/// The length of the server frame that `bytes` starts with; `None` when its header is incomplete. Only for bytes that
/// this module built.
pub(crate) fn len_of_first(bytes: &[u8]) -> Option<usize> {
    let short = usize::from(*bytes.get(1)?);
    match short {
        126 => {
            let len = bytes.get(2..4)?.try_into().ok().map(u16::from_be_bytes)?;
            Some(4 + usize::from(len))
        }
        127 => {
            let len = bytes.get(2..10)?.try_into().ok().map(u64::from_be_bytes)?;
            usize::try_from(len).ok()?.checked_add(10)
        }
        _ => Some(2 + short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> BytesMut {
        let mut out = BytesMut::new();
        put_text_header(&mut out, len);
        out.put_bytes(b'x', len);
        out
    }

    #[test]
    fn lengths_take_their_shortest_form() {
        assert_eq!(&text(125)[..2], &[0x81, 125]);
        assert_eq!(&text(126)[..4], &[0x81, 126, 0, 126]);
        assert_eq!(&text(65_535)[..4], &[0x81, 126, 0xff, 0xff]);
        assert_eq!(&text(65_536)[..10], &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_length_of_a_frame_is_read_back() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let frame = text(len);
            assert_eq!(len_of_first(&frame), Some(frame.len()));
        }
        assert_eq!(len_of_first(&[0x81]), None);
        assert_eq!(len_of_first(&[0x81, 126, 0]), None);
    }

    #[test]
    fn close_frames_carry_code_and_reason() {
        assert_eq!(&close(None, "ignored")[..], &[0x88, 0]);
        assert_eq!(&close(Some(1001), "bye")[..], &[0x88, 5, 0x03, 0xe9, b'b', b'y', b'e']);
    }
}
