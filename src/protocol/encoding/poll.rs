//! Long-poll: publications as elements of a JSON array (RFC 8259), and the answers that have such an array.
//!
//! The fields `Stream-Next-Offset` and `Stream-Up-To-Date` are those of Durable Streams; `Stream-Gap` is ours. An
//! element begins with a comma, so that a batch behind its first byte is the inside of an array. May not enter: when a
//! client is answered (`session/poll.rs`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};

use super::utf8::{Encoded, replace_bad_bytes};
use crate::config::NotUtf8Policy;
use crate::position::{Position, Token};
use crate::protocol::cors;

/// What a client is told that may have missed publications.
const GAP: &str = "messages behind the offset may be missing";

/// The beginning and the end of a body: an array, and a line end for terminals.
pub(crate) const OPEN: &[u8] = b"[";
pub(crate) const CLOSE: &[u8] = b"]\n";

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerHead<'a> {
    /// Where the client continues; `None` for a client that is not told.
    pub(crate) next: Option<Position>,
    /// Whether there was nothing behind that position.
    pub(crate) is_up_to_date: bool,
    /// Whether publications before that position may be missing.
    pub(crate) has_gap: bool,
    /// The origin of the page that may read the answer.
    pub(crate) page: Option<&'a str>,
}

impl AnswerHead<'_> {
    /// The head of an answer with an array whose inside has `inside_bytes`, and the array's first byte.
    pub(crate) fn ok(self, inside_bytes: usize) -> Vec<u8> {
        let length = OPEN.len() + inside_bytes + CLOSE.len();
        let mut head = self.lines("200 OK");
        head.extend_from_slice(
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
        );
        head.extend_from_slice(OPEN);
        head
    }

    /// An answer without a body. It has no length (RFC 9110 §8.6).
    pub(crate) fn no_content(self) -> Vec<u8> {
        let mut head = self.lines("204 No Content");
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The status line, and the fields that all answers have. The connection ends with its answer.
    fn lines(self, status: &str) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {status}\r\nCache-Control: no-store\r\nConnection: close\r\n");
        if let Some(next) = self.next {
            head += &format!("Stream-Next-Offset: {}\r\n", Token::from(next));
        }
        if self.is_up_to_date {
            head += "Stream-Up-To-Date: true\r\n";
        }
        if self.has_gap {
            head += &format!("Stream-Gap: {GAP}\r\n");
        }
        head += &cors::lines(self.page);
        head.into_bytes()
    }
}

/// Appends the element of a publication: a string, or for a payload that is not UTF-8, as `not_utf8` decides, a string
/// with U+FFFD for each invalid byte, or an object with the payload in base64 (RFC 4648 §4).
pub(super) fn put_element(payload: &[u8], not_utf8: NotUtf8Policy, out: &mut BytesMut) -> Encoded {
    out.reserve(payload.len() + 16);
    match (std::str::from_utf8(payload), not_utf8) {
        (Ok(_), _) => {
            put_string(payload, out);
            return Encoded::Utf8;
        }
        (Err(_), NotUtf8Policy::Replace) => put_string(&replace_bad_bytes(payload), out),
        (Err(_), NotUtf8Policy::Binary) => {
            out.put_slice(b",{\"binary\":\"");
            out.put_slice(STANDARD.encode(payload).as_bytes());
            out.put_slice(b"\"}");
        }
    }
    Encoded::NotUtf8
}

/// Appends a comma and a string (RFC 8259 §7). `text` is UTF-8.
fn put_string(text: &[u8], out: &mut BytesMut) {
    out.put_slice(b",\"");
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        let (plain, behind) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        out.put_slice(plain);
        let Some((special, behind)) = behind.split_first() else { break };
        match special {
            b'"' | b'\\' => out.put_slice(&[b'\\', *special]),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            control => out.put_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = behind;
    }
    out.put_slice(rest);
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::super::Encoding;
    use super::*;
    use crate::position::{Milestone, MilestoneId};
    use proptest::prelude::*;

    const BINARY: Encoding = Encoding::Poll { not_utf8: NotUtf8Policy::Binary };
    const REPLACE: Encoding = Encoding::Poll { not_utf8: NotUtf8Policy::Replace };
    const PLACE: Position =
        Position { milestone: Milestone { id: MilestoneId(0x0123_4567_89ab_cdef), log: None }, count: 3 };

    fn encoded(encoding: Encoding, payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for payload in payloads {
            let is_utf8 = std::str::from_utf8(payload).is_ok();
            assert_eq!(encoding.encode(b"chat:a", payload, Some(PLACE), &mut out) == Encoded::Utf8, is_utf8);
        }
        out.to_vec()
    }

    #[test]
    fn an_element_has_these_bytes() {
        assert_eq!(
            encoded(BINARY, &[b"P", b"", b"\"\\\n\r\t\0\x1f\x7f/"]),
            b",\"P\",\"\",\"\\\"\\\\\\n\\r\\t\\u0000\\u001f\x7f/\""
        );
        assert_eq!(encoded(BINARY, &["\u{e4}\u{2028}".as_bytes()]), ",\"\u{e4}\u{2028}\"".as_bytes());
        assert_eq!(encoded(BINARY, &[b"\xff\n"]), b",{\"binary\":\"/wo=\"}");
        assert_eq!(encoded(REPLACE, &[b"\xe4\xb8\nz"]), ",\"\u{fffd}\u{fffd}\\nz\"".as_bytes());
    }

    #[test]
    fn an_answer_says_where_to_continue_and_what_may_be_missing() {
        let head = AnswerHead { next: Some(PLACE), is_up_to_date: true, has_gap: false, page: None };
        assert_eq!(
            String::from_utf8(head.ok(3)).unwrap(),
            "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nConnection: close\r\nStream-Next-Offset: AQEjRWeJq83vAw\r\n\
             Stream-Up-To-Date: true\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\n["
        );
        assert_eq!(
            String::from_utf8(head.no_content()).unwrap(),
            "HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\nConnection: close\r\n\
             Stream-Next-Offset: AQEjRWeJq83vAw\r\nStream-Up-To-Date: true\r\n\r\n"
        );
        let head = AnswerHead { is_up_to_date: false, has_gap: true, page: Some("https://a.example"), ..head };
        let lines = String::from_utf8(head.ok(0)).unwrap();
        assert!(lines.contains("\r\nStream-Gap: messages") && !lines.contains("Up-To-Date: "), "{lines}");
        assert!(lines.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"), "{lines}");
    }

    proptest! {
        #[test]
        fn a_client_reads_what_was_published(payloads in proptest::collection::vec(any::<Vec<u8>>(), 1..5)) {
            let all: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
            let body = [OPEN, &encoded(BINARY, &all)[1..], CLOSE].concat();
            let read: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(read.len(), payloads.len());
            for (read, payload) in read.iter().zip(payloads) {
                let bytes = match read.as_str() {
                    Some(text) => text.as_bytes().to_vec(),
                    None => STANDARD.decode(read["binary"].as_str().unwrap()).unwrap(),
                };
                prop_assert_eq!(bytes, payload);
            }
        }
    }
}
