//! How a connection looks to its client: the frames of publications, pings and close frames, and where a unit ends.
//!
//! An [`Encoding`] is a value, and the key of an audience: subscribers of one channel with equal encodings share their
//! bytes. `sse` has the format of server-sent events, `poll` that of long-poll. A new encoding (a multiplexed protocol)
//! is a new value. The Lua handler's suffix, JSON channel rule and close reply are in this room. May not enter:
//! sockets, the state of a session, the choice of an encoding (`endpoint.rs`, `front/answer.rs`).

pub(crate) mod lua_channel;
pub(crate) mod poll;
mod sse;
mod utf8;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub(crate) use self::utf8::Encoded;
use self::utf8::replace_bad_bytes;
use crate::config::NotUtf8Policy;
use crate::position::{MAX_TOKEN_LEN, Position, Token};
use crate::protocol::websocket::frame;

/// What precedes a payload in its message; the longest is `id: TOKEN`, and an empty line.
type Header = SmallVec<[u8; 4 + MAX_TOKEN_LEN + 2]>;

/// How publications on one channel look to a client, and the other bytes of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Encoding {
    /// The payload followed by the channel's name without the prefix.
    Lua {
        /// The index in the channel at which the name starts: the prefix' length.
        name_at: u32,
    },
    /// The unchanged payload: as a text message, or as a binary message when the payload is not UTF-8.
    Plain,
    /// The payload, always as a text message.
    ///
    /// A snapshot has [`Encoding::Plain`] instead, which an older version knows, too. The endpoint of the new process
    /// decides between the two, so that a reload changes the encoding.
    #[serde(skip)]
    PlainText,
    /// The payload behind a header with its position, as nchan's subprotocol `ws+meta.nchan` has it
    /// (<https://nchan.io/#websocket>): a text message, or a binary message when the payload is not UTF-8.
    Meta,
    /// Server-sent events: the unchanged payload, whatever the endpoint's WebSockets get.
    Sse {
        /// How a payload that is not UTF-8 looks. As with [`Encoding::Plain`], the endpoint of the new process decides.
        not_utf8: NotUtf8Policy,
    },
    /// Long-poll: the payload as an element of a JSON array. One answer has the connection's only array.
    Poll {
        /// How a payload that is not UTF-8 looks, as with [`Encoding::Sse`].
        not_utf8: NotUtf8Policy,
    },
}

impl Encoding {
    /// Appends the unit for `payload` on `channel`. `position` is the place behind the publication, if it is known. In
    /// a text message, each byte that is not UTF-8 becomes U+FFFD: a text frame must be valid (RFC 6455 §5.6), and a
    /// browser would end the connection otherwise.
    pub(crate) fn encode(
        self,
        channel: &[u8],
        payload: &[u8],
        position: Option<Position>,
        out: &mut BytesMut,
    ) -> Encoded {
        let mut header = Header::new();
        let mut suffix: &[u8] = &[];
        match self {
            Self::Lua { .. } => {
                let name = self.name(channel);
                debug_assert!(name.is_some(), "a channel begins with its endpoint's prefix");
                suffix = name.unwrap_or_default();
            }
            Self::Plain | Self::PlainText => {}
            Self::Meta => put_meta(position, &mut header),
            Self::Sse { not_utf8 } => return sse::put_event(payload, not_utf8, position, out),
            Self::Poll { not_utf8 } => return poll::put_element(payload, not_utf8, out),
        }
        if std::str::from_utf8(payload).is_ok() {
            put_frame(&header, payload, suffix, out);
            return Encoded::Utf8;
        }
        if matches!(self, Self::Plain | Self::Meta) {
            let len = header.len() + payload.len();
            out.reserve(frame::MAX_HEADER_BYTES + len);
            frame::put_binary_header(out, len);
            out.put_slice(&header);
            out.put_slice(payload);
        } else {
            put_frame(&header, &replace_bad_bytes(payload), suffix, out);
        }
        Encoded::NotUtf8
    }

    /// Whether the client only receives. What it sends after its request has no meaning.
    pub(crate) fn is_one_way(self) -> bool {
        matches!(self, Self::Sse { .. } | Self::Poll { .. })
    }

    /// Whether a client gets one answer, in place of frames.
    pub(crate) fn is_poll(self) -> bool {
        matches!(self, Self::Poll { .. })
    }

    /// Whether clients are told positions, and may come back with one.
    pub(crate) fn has_positions(self) -> bool {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText => false,
            Self::Meta | Self::Sse { .. } | Self::Poll { .. } => true,
        }
    }

    /// What tells a client its position without a publication, if the encoding can.
    pub(crate) fn position(self, position: Position) -> Option<Bytes> {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Meta | Self::Poll { .. } => None,
            Self::Sse { .. } => Some(sse::position(position)),
        }
    }

    /// What tells a client its position behind a gap that it was told of, if the encoding can.
    pub(crate) fn position_behind_gap(self, position: Position) -> Option<Bytes> {
        if self != Self::Meta {
            return self.position(position);
        }
        let mut header = Header::new();
        put_meta_id(position, &mut header);
        let mut out = BytesMut::new();
        put_frame(&header, b"event: position\n\n", &[], &mut out);
        Some(out.freeze())
    }

    /// What tells a client that publications may be missing, and why, if the encoding can.
    pub(crate) fn gap(self, reason: &str) -> Option<Bytes> {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Poll { .. } => None,
            Self::Meta => {
                let mut out = BytesMut::new();
                put_frame(b"event: gap\n\n", reason.as_bytes(), &[], &mut out);
                Some(out.freeze())
            }
            Self::Sse { .. } => Some(sse::gap(reason)),
        }
    }

    /// The part of a channel's name that the client knows; `None` when the channel is shorter than the prefix.
    pub(crate) fn name(self, channel: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Lua { name_at } => channel.get(name_at as usize..),
            Self::Plain | Self::PlainText | Self::Meta | Self::Sse { .. } | Self::Poll { .. } => Some(channel),
        }
    }

    /// The bytes that keep an idle connection open. A live client answers, unless it only receives.
    pub(crate) fn ping(self) -> &'static [u8] {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Meta => frame::PING,
            Self::Sse { .. } => sse::PING,
            Self::Poll { .. } => self.has_no_frames(),
        }
    }

    /// The answer to a client's ping.
    pub(crate) fn pong(self, payload: &[u8]) -> Bytes {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Meta => frame::pong(payload),
            Self::Sse { .. } | Self::Poll { .. } => self.nothing_to_answer(),
        }
    }

    /// The last unit of a connection that the server closes.
    pub(crate) fn close(self, code: u16, reason: &str) -> Bytes {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Meta => frame::close(Some(code), reason),
            Self::Sse { .. } => sse::close(code, reason),
            Self::Poll { .. } => Bytes::from_static(self.has_no_frames()),
        }
    }

    /// The length of the unit that `bytes` starts with; `None` when `bytes` are too few. A unit cannot be taken back
    /// once its first byte is sent. Only for bytes that an encoding made.
    pub(crate) fn unit_len(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Lua { .. } | Self::Plain | Self::PlainText | Self::Meta => frame::len_of_first(bytes),
            Self::Sse { .. } => sse::unit_len(bytes),
            // The parts of an answer.
            Self::Poll { .. } => Some(bytes.len()).filter(|len| *len > 0),
        }
    }

    /// The units of which `bytes` consist, a whole number of them.
    pub(crate) fn units(self, mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        std::iter::from_fn(move || {
            let (unit, rest) = bytes.split_at_checked(self.unit_len(bytes)?)?;
            bytes = rest;
            Some(unit)
        })
    }

    /// Whether a client's binary message is read and ignored, as the Lua handler did.
    pub(crate) fn ignores_binary(self) -> bool {
        matches!(self, Self::Lua { .. })
    }

    /// The encoding as a session's snapshot has it.
    pub(crate) fn snapshot(self) -> Self {
        match self {
            Self::PlainText => Self::Plain,
            Self::Sse { .. } => Self::Sse { not_utf8: NotUtf8Policy::Binary },
            Self::Poll { .. } => Self::Poll { not_utf8: NotUtf8Policy::Binary },
            other => other,
        }
    }

    /// The encoding of a session from a snapshot, at an endpoint with the policy `not_utf8`.
    pub(crate) fn adopted(self, not_utf8: NotUtf8Policy) -> Self {
        match (self, not_utf8) {
            (Self::Plain, NotUtf8Policy::Replace) => Self::PlainText,
            (Self::Sse { .. }, not_utf8) => Self::Sse { not_utf8 },
            (Self::Poll { .. }, not_utf8) => Self::Poll { not_utf8 },
            (other, _) => other,
        }
    }

    /// The answer to a client's close frame that carried `code`.
    pub(crate) fn close_reply(self, code: Option<u16>) -> Bytes {
        match self {
            Self::Lua { .. } => frame::close(None, ""),
            // RFC 6455 §5.5.1: typically echoes the status code it received.
            Self::Plain | Self::PlainText | Self::Meta => frame::close(code, ""),
            Self::Sse { .. } | Self::Poll { .. } => self.nothing_to_answer(),
        }
    }

    /// The answer to a frame of a client that sends no frames.
    #[cold]
    fn nothing_to_answer(self) -> Bytes {
        debug_assert!(!self.is_one_way(), "the bytes of a client that only receives are not decoded");
        Bytes::new()
    }

    /// A frame of a session that sends one answer, by itself.
    #[cold]
    fn has_no_frames(self) -> &'static [u8] {
        debug_assert!(!self.is_poll(), "an answer takes the place of pings and closes");
        b""
    }
}

/// Appends what precedes a payload in a message of [`Encoding::Meta`].
fn put_meta(position: Option<Position>, header: &mut Header) {
    if let Some(position) = position {
        put_meta_id(position, header);
    }
    header.push(b'\n');
}

fn put_meta_id(position: Position, header: &mut Header) {
    header.extend_from_slice(b"id: ");
    header.extend_from_slice(Token::from(position).as_bytes());
    header.push(b'\n');
}

fn put_frame(header: &[u8], payload: &[u8], suffix: &[u8], out: &mut BytesMut) {
    let len = header.len() + payload.len() + suffix.len();
    out.reserve(frame::MAX_HEADER_BYTES + len);
    frame::put_text_header(out, len);
    out.put_slice(header);
    out.put_slice(payload);
    out.put_slice(suffix);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Milestone, MilestoneId};

    fn encoded(encoding: Encoding, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        encoding.encode(b"chat:zhang", payload, None, &mut out);
        out.to_vec()
    }

    #[test]
    fn the_lua_encoding_appends_the_channel_and_the_plain_one_nothing() {
        assert_eq!(encoded(Encoding::Lua { name_at: 5 }, b"P"), b"\x81\x06Pzhang");
        assert_eq!(encoded(Encoding::Plain, b"P"), b"\x81\x01P");
        assert_eq!(encoded(Encoding::Lua { name_at: 5 }, b""), b"\x81\x05zhang");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_one_by_one() {
        assert_eq!(
            encoded(Encoding::PlainText, b"a\xe4\xb8z"),
            "\u{81}".bytes().skip(1).chain([8]).chain("a\u{fffd}\u{fffd}z".bytes()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_plain_encoding_delivers_a_payload_that_is_not_utf8_as_a_binary_message() {
        assert_eq!(encoded(Encoding::Plain, b"a\xe4\xb8z"), b"\x82\x04a\xe4\xb8z");
        let long = encoded(Encoding::Plain, &[0xff; 70_000]);
        assert_eq!(long[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert!(long.len() == 70_010 && frame::len_of_first(&long) == Some(70_010));
        assert_eq!(encoded(Encoding::Lua { name_at: 5 }, b"\xff"), b"\x81\x08\xef\xbf\xbdzhang");
    }

    #[test]
    fn the_meta_encoding_has_positions_in_a_header_as_nchan_has() {
        let id = MilestoneId(0x0123_4567_89ab_cdef);
        let position = Position { milestone: Milestone { id, log: None }, count: 3 };
        let encode = |payload: &[u8], position| {
            let mut out = BytesMut::new();
            Encoding::Meta.encode(b"chat:zhang", payload, position, &mut out);
            out.to_vec()
        };
        assert_eq!(encode(b"P", Some(position)), b"\x81\x15id: AQEjRWeJq83vAw\n\nP");
        assert_eq!(encode(b"P", None), b"\x81\x02\nP", "a payload begins behind the first empty line");
        assert_eq!(encode(b"\xff", Some(position)), b"\x82\x15id: AQEjRWeJq83vAw\n\n\xff");
        assert_eq!(&Encoding::Meta.gap("why").unwrap()[..], b"\x81\x0fevent: gap\n\nwhy");
        let behind = Encoding::Meta.position_behind_gap(position).unwrap();
        assert_eq!(&behind[..], b"\x81\x24id: AQEjRWeJq83vAw\nevent: position\n\n");
        assert_eq!(Encoding::Meta.position(position), None, "without a gap, no client needs it");
        assert_eq!(Encoding::Plain.gap("why"), None);
    }

    #[test]
    fn the_lua_encoding_never_echoes_a_close_code() {
        assert_eq!(&Encoding::Lua { name_at: 0 }.close_reply(Some(1000))[..], b"\x88\x00");
        assert_eq!(&Encoding::Plain.close_reply(Some(1000))[..], b"\x88\x02\x03\xe8");
    }
}
