//! Wire profiles: how payloads and closes look to clients. A [`Wire`] is a value, so
//! subscribers of one channel with equal wires share their frames.
//!
//! What is peculiar to the Lua handler (the suffix, its JSON channel rule, its close reply)
//! lives in here and leaks nowhere else. May not enter: sockets, sessions.

pub(crate) mod json;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::config::NotUtf8Policy;
use crate::protocol::websocket::frame;

/// How payloads look to a client of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wire {
    /// The payload and, right behind it, the channel's name: what follows the first
    /// `name_at` bytes (the prefix) of the channel.
    Lua {
        /// Where the name starts in the channel.
        name_at: usize,
    },
    /// The payload unchanged: as a text, or as a binary message where it is not UTF-8.
    Plain,
    /// The payload as a text always.
    ///
    /// In the snapshot of a session it is [`Wire::Plain`], and the endpoint of the process that goes on
    /// says which of the two it becomes: a reload changes it, and an older version knows it.
    #[serde(skip)]
    PlainText,
}

/// What a payload turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoded {
    Utf8,
    NotUtf8,
}

impl Wire {
    /// Appends the frame for `payload` on `channel`. In a text each byte that is not UTF-8 becomes
    /// U+FFFD: a text frame must be valid (RFC 6455 §5.6), and a browser would end the connection over it.
    pub(crate) fn encode(self, channel: &[u8], payload: &[u8], out: &mut BytesMut) -> Encoded {
        let suffix = match self {
            Self::Lua { name_at } => channel.get(name_at..).unwrap_or_default(),
            Self::Plain | Self::PlainText => &[],
        };
        if std::str::from_utf8(payload).is_ok() {
            put_frame(payload, suffix, out);
            return Encoded::Utf8;
        }
        if self == Self::Plain {
            out.reserve(frame::MAX_HEADER_BYTES + payload.len());
            frame::put_binary_header(out, payload.len());
            out.put_slice(payload);
        } else {
            put_frame(&replace_bad_bytes(payload), suffix, out);
        }
        Encoded::NotUtf8
    }

    /// Whether a client's binary message is read and ignored, as the Lua handler did.
    pub(crate) fn ignores_binary(self) -> bool {
        matches!(self, Self::Lua { .. })
    }

    /// How it is written in the snapshot of a session.
    pub(crate) fn portable(self) -> Self {
        if self == Self::PlainText { Self::Plain } else { self }
    }

    /// What a wire out of a snapshot becomes at an endpoint that treats payloads so.
    pub(crate) fn adopted(self, not_utf8: NotUtf8Policy) -> Self {
        match (self, not_utf8) {
            (Self::Plain, NotUtf8Policy::Replace) => Self::PlainText,
            (other, _) => other,
        }
    }

    /// The answer to a client's close frame that carried `code`.
    pub(crate) fn close_reply(self, code: Option<u16>) -> Bytes {
        match self {
            Self::Lua { .. } => frame::close(None, ""),
            // RFC 6455 §5.5.1: typically echoes the status code it received.
            Self::Plain | Self::PlainText => frame::close(code, ""),
        }
    }
}

fn put_frame(payload: &[u8], suffix: &[u8], out: &mut BytesMut) {
    let len = payload.len() + suffix.len();
    out.reserve(frame::MAX_HEADER_BYTES + len);
    frame::put_text_header(out, len);
    out.put_slice(payload);
    out.put_slice(suffix);
}

fn replace_bad_bytes(payload: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(payload.len() + 16);
    for chunk in payload.utf8_chunks() {
        clean.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            clean.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(wire: Wire, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        wire.encode(b"chat:zhang", payload, &mut out);
        out.to_vec()
    }

    #[test]
    fn the_lua_wire_appends_the_channel_and_the_plain_wire_nothing() {
        assert_eq!(encoded(Wire::Lua { name_at: 5 }, b"P"), b"\x81\x06Pzhang");
        assert_eq!(encoded(Wire::Plain, b"P"), b"\x81\x01P");
        assert_eq!(encoded(Wire::Lua { name_at: 5 }, b""), b"\x81\x05zhang");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_one_by_one() {
        assert_eq!(
            encoded(Wire::PlainText, b"a\xe4\xb8z"),
            "\u{81}".bytes().skip(1).chain([8]).chain("a\u{fffd}\u{fffd}z".bytes()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_plain_wire_delivers_what_is_not_utf8_as_a_binary_message_unchanged() {
        assert_eq!(encoded(Wire::Plain, b"a\xe4\xb8z"), b"\x82\x04a\xe4\xb8z");
        let long = encoded(Wire::Plain, &[0xff; 70_000]);
        assert_eq!(long[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert!(long.len() == 70_010 && frame::len_of_first(&long) == Some(70_010));
        assert_eq!(encoded(Wire::Lua { name_at: 5 }, b"\xff"), b"\x81\x08\xef\xbf\xbdzhang");
    }

    #[test]
    fn the_lua_wire_never_echoes_a_close_code() {
        assert_eq!(&Wire::Lua { name_at: 0 }.close_reply(Some(1000))[..], b"\x88\x00");
        assert_eq!(&Wire::Plain.close_reply(Some(1000))[..], b"\x88\x02\x03\xe8");
    }
}
