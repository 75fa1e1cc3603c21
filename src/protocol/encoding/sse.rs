//! Server-sent events (WHATWG HTML, §9.2): an event for each publication, and comments as pings and closes.
//!
//! A unit is some lines and an empty line. A client joins an event's `data:` lines by LF, so a payload's CR LF and CR
//! arrive as LF, and all other characters unchanged, NUL included. May not enter: HTTP (`front/event_stream.rs`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};

use super::utf8::{Encoded, replace_bad_bytes};
use crate::config::NotUtf8Policy;
use crate::position::{MAX_TOKEN_LEN, Position, Token};

/// A comment without text. Clients ignore it.
pub(super) const PING: &[u8] = b":\n\n";

const END_OF_UNIT: &[u8] = b"\n\n";

/// Room for an event's lines besides its payload, if the payload is one line.
const MAX_LINES_BYTES: usize = "id: \nevent: binary\ndata: \n\n".len() + MAX_TOKEN_LEN;

/// Appends the event of a publication. `not_utf8` decides for a payload that is not UTF-8: U+FFFD for each invalid
/// byte, or the type `binary` and the payload in base64 (RFC 4648 §4).
pub(super) fn put_event(
    payload: &[u8],
    not_utf8: NotUtf8Policy,
    position: Option<Position>,
    out: &mut BytesMut,
) -> Encoded {
    out.reserve(MAX_LINES_BYTES + payload.len());
    if let Some(position) = position {
        put_id(position, out);
    }
    let encoded = if std::str::from_utf8(payload).is_ok() {
        put_data(payload, out);
        Encoded::Utf8
    } else {
        match not_utf8 {
            NotUtf8Policy::Replace => put_data(&replace_bad_bytes(payload), out),
            NotUtf8Policy::Binary => {
                out.put_slice(b"event: binary\n");
                put_data(STANDARD.encode(payload).as_bytes(), out);
            }
        }
        Encoded::NotUtf8
    };
    out.put_u8(b'\n');
    encoded
}

/// A position without an event: the client shows it when it comes back.
pub(super) fn position(position: Position) -> Bytes {
    let mut out = BytesMut::with_capacity(MAX_LINES_BYTES);
    put_id(position, &mut out);
    out.put_u8(b'\n');
    out.freeze()
}

/// An event of the type `gap`.
pub(super) fn gap(reason: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(MAX_LINES_BYTES + reason.len());
    out.put_slice(b"event: gap\n");
    put_data(reason.as_bytes(), &mut out);
    out.put_u8(b'\n');
    out.freeze()
}

/// A comment with the code and the reason of a close.
pub(super) fn close(code: u16, reason: &str) -> Bytes {
    debug_assert!(!reason.contains(['\r', '\n']), "a comment is one line");
    Bytes::from(format!(": {code} {reason}\n\n"))
}

/// The length of the unit that `bytes` starts with, its empty line included.
pub(super) fn unit_len(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(END_OF_UNIT.len()).position(|pair| pair == END_OF_UNIT)?;
    Some(end + END_OF_UNIT.len())
}

fn put_id(position: Position, out: &mut BytesMut) {
    out.put_slice(b"id: ");
    out.put_slice(Token::from(position).as_bytes());
    out.put_u8(b'\n');
}

/// Appends a `data:` line for each line of `text`. A text that ends with a line end has an empty last line.
fn put_data(text: &[u8], out: &mut BytesMut) {
    let mut rest = Some(text);
    while let Some(text) = rest {
        let end = text.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let (line, behind) = end.and_then(|end| text.split_at_checked(end)).unwrap_or((text, &[]));
        out.put_slice(b"data: ");
        out.put_slice(line);
        out.put_u8(b'\n');
        rest = behind.strip_prefix(b"\r\n").or_else(|| behind.get(1..));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::*;
    use crate::position::{Milestone, MilestoneId};
    use proptest::prelude::*;

    const BINARY: Encoding = Encoding::Sse { not_utf8: NotUtf8Policy::Binary };
    const REPLACE: Encoding = Encoding::Sse { not_utf8: NotUtf8Policy::Replace };
    const PLACE: Position =
        Position { milestone: Milestone { id: MilestoneId(0x0123_4567_89ab_cdef), log: None }, count: 3 };

    fn encoded(encoding: Encoding, payload: &[u8], position: Option<Position>) -> Vec<u8> {
        let mut out = BytesMut::new();
        let is_utf8 = std::str::from_utf8(payload).is_ok();
        assert_eq!(encoding.encode(b"chat:a", payload, position, &mut out) == Encoded::Utf8, is_utf8);
        out.to_vec()
    }

    /// The events' types and data, and the last id, as a client reads them (WHATWG HTML, §9.2.6).
    fn read(stream: &[u8]) -> (Vec<(String, String)>, String) {
        let (mut events, mut kind, mut data, mut id) = (Vec::new(), String::new(), String::new(), String::new());
        // The encoding writes no CR, so LF alone ends a line.
        for line in std::str::from_utf8(stream).unwrap().strip_suffix('\n').unwrap().split('\n') {
            assert!(!line.contains('\r'), "{line:?}");
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match (line, field) {
                ("", _) => {
                    let (kind, data) = (std::mem::take(&mut kind), std::mem::take(&mut data));
                    if let Some(data) = data.strip_suffix('\n') {
                        events.push((kind, data.to_owned()));
                    }
                }
                (_, "data") => data.extend([value, "\n"]),
                (_, "event") => kind = value.to_owned(),
                (_, "id") => id = value.to_owned(),
                (_, "") => {}
                _ => panic!("an unknown field: {line:?}"),
            }
        }
        (events, id)
    }

    #[test]
    fn an_event_has_these_bytes() {
        assert_eq!(encoded(BINARY, b"P", None), b"data: P\n\n");
        assert_eq!(encoded(BINARY, b"P", Some(PLACE)), b"id: AQEjRWeJq83vAw\ndata: P\n\n");
        assert_eq!(encoded(BINARY, b"", None), b"data: \n\n");
        assert_eq!(encoded(BINARY, b"a\nb\r\nc\rd\n", None), b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
        assert_eq!(encoded(BINARY, b" a:\0", None), b"data:  a:\0\n\n");
        assert_eq!(encoded(BINARY, b"\xff\n", Some(PLACE)), b"id: AQEjRWeJq83vAw\nevent: binary\ndata: /wo=\n\n");
        assert_eq!(encoded(REPLACE, b"\xe4\xb8\nz", None), "data: \u{fffd}\u{fffd}\ndata: z\n\n".as_bytes());
    }

    #[test]
    fn a_lua_endpoints_events_have_no_suffix_and_everything_else_is_no_event() {
        assert_eq!(&BINARY.position(PLACE).unwrap()[..], b"id: AQEjRWeJq83vAw\n\n");
        assert_eq!(&BINARY.gap("may be\r\nmissing").unwrap()[..], b"event: gap\ndata: may be\ndata: missing\n\n");
        assert_eq!(BINARY.close(1001, "bye"), ": 1001 bye\n\n");
        let silent = [BINARY.ping(), &BINARY.close(1001, "bye")[..], &BINARY.position(PLACE).unwrap()[..]].concat();
        assert_eq!(read(&silent), (Vec::new(), "AQEjRWeJq83vAw".to_owned()));
        assert_eq!((Encoding::Plain.position(PLACE), Encoding::Plain.gap("x")), (None, None));
    }

    #[test]
    fn a_unit_ends_with_its_empty_line() {
        for unit in [&b":\n\n"[..], b": 1001 bye\n\n", b"data: \n\n", b"id: a\ndata: \ndata: \n\n"] {
            assert_eq!(BINARY.unit_len(&[unit, b"\n\n"].concat()), Some(unit.len()));
            assert_eq!(BINARY.unit_len(&unit[..unit.len() - 1]), None);
        }
    }

    proptest! {
        #[test]
        fn a_client_reads_what_was_published(payloads in proptest::collection::vec("[a\0:é \r\n]{0,12}", 1..5), id: bool) {
            let position = id.then_some(PLACE);
            let stream: Vec<u8> = payloads.iter().flat_map(|payload| encoded(BINARY, payload.as_bytes(), position)).collect();
            let expected = payloads.iter().map(|text| (String::new(), text.replace("\r\n", "\n").replace('\r', "\n")));
            prop_assert_eq!(read(&stream).0, expected.collect::<Vec<_>>());
            let mut rest = &stream[..];
            for _ in &payloads {
                rest = &rest[BINARY.unit_len(rest).unwrap()..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_arrive(payload: Vec<u8>) {
            let (events, _) = read(&encoded(BINARY, &payload, None));
            let [(kind, data)] = &events[..] else { panic!("{events:?}") };
            if kind == "binary" {
                prop_assert_eq!(STANDARD.decode(data).unwrap(), payload);
            } else {
                let text = String::from_utf8(payload).unwrap();
                prop_assert_eq!(data, &text.replace("\r\n", "\n").replace('\r', "\n"));
            }
        }
    }
}
