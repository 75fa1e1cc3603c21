//! Frames and response heads as raw bytes (RFC 6455 §5.2, RFC 9112 §4), written here so that no
//! WebSocket library judges itself.

use bytes::{Buf, Bytes, BytesMut};

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// A frame from the server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Bytes,
    /// All of it, header included.
    pub(crate) raw: Bytes,
}

impl Frame {
    /// The code of a close frame, if it has one.
    pub(crate) fn close_code(&self) -> Option<u16> {
        let code = self.payload.first_chunk::<2>().filter(|_| self.opcode == CLOSE);
        code.map(|code| u16::from_be_bytes(*code))
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.raw))
    }
}

/// Takes the first frame off `bytes`, if it is there as a whole.
///
/// # Errors
/// What no server may send: a fragment, RSV bits, a mask, other opcodes, an overlong length.
pub(crate) fn take_frame(bytes: &mut BytesMut) -> Result<Option<Frame>, String> {
    let [first, second, rest @ ..] = &bytes[..] else {
        return Ok(None);
    };
    let (first, second) = (*first, *second);
    let fault = |what: &str| Err(format!("the server sent {what}: {}", hex(bytes)));
    if first & 0xf0 != 0x80 {
        return fault("a frame without FIN, or with RSV bits");
    }
    if ![TEXT, BINARY, CLOSE, PING, PONG].contains(&(first & 0x0f)) {
        return fault("a frame of an opcode that it never sends");
    }
    if second & 0x80 != 0 {
        return fault("a masked frame");
    }
    let (head, length) = match (second, rest.first_chunk::<2>(), rest.first_chunk::<8>()) {
        (126, Some(length), _) => (4, u64::from(u16::from_be_bytes(*length))),
        (127, _, Some(length)) => (10, u64::from_be_bytes(*length)),
        (126 | 127, ..) => return Ok(None),
        (length, ..) => (2, u64::from(length)),
    };
    if (head == 4 && length < 126) || (head == 10 && length < 65_536) {
        return fault("a frame with an overlong length");
    }
    let length = usize::try_from(length).map_err(|e| e.to_string())?;
    if bytes.len() - head < length {
        return Ok(None);
    }
    let raw = bytes.split_to(head + length).freeze();
    Ok(Some(Frame { opcode: first & 0x0f, payload: raw.slice(head..), raw }))
}

/// A masked client frame in the shortest form. `first` is the first byte: FIN, RSV and opcode.
pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d]; // RFC 6455 §5.7
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => frame.push(0x80 | length),
        (_, Ok(length)) => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of an HTTP response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) status_line: String,
    /// Names as sent, values without the blanks around them.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// The value of the first header of that name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Takes the response head off `bytes`, if it is there as a whole.
pub(crate) fn take_head(bytes: &mut BytesMut) -> Option<Head> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    bytes.advance(end + 4);
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default().to_owned();
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let headers = lines
        .map(|line| line.split_once(':').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Head { status, status_line, headers })
}

/// Hex for people: long strings are shortened to their beginning and length.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let start: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    match bytes.len() {
        ..=SHOWN => start,
        length => format!("{start}..({length} bytes)"),
    }
}

mod tests {
    use super::*;

    /// What `client_frame` made, without its mask: the server's form of it.
    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = client_frame(first, payload);
        let header = frame.len() - payload.len() - 4;
        frame.truncate(header);
        frame[1] &= 0x7f;
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_are_whole_however_the_bytes_are_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let sent = server_frame(0x81, &payload);
            for cut in (0..sent.len()).step_by(1 + length / 50) {
                let mut bytes = BytesMut::from(&sent[..cut]);
                assert_eq!(take_frame(&mut bytes), Ok(None), "{cut} of {length}");
                bytes.extend_from_slice(&sent[cut..]);
                bytes.extend_from_slice(b"next");
                let frame = take_frame(&mut bytes).unwrap().unwrap();
                assert_eq!((frame.payload.len(), &frame.raw[..]), (length, &sent[..]));
                assert_eq!(&bytes[..], b"next");
            }
        }
    }

    #[test]
    fn frames_that_no_server_may_send_are_faults() {
        let masked = client_frame(0x81, b"x");
        let overlong: &[u8] = &[0x81, 126, 0, 1, b'x'];
        let faults = [&masked[..], overlong, &[0x01, 0], &[0xc1, 0], &[0x80, 0], &[0x83, 0]];
        for fault in faults {
            assert!(take_frame(&mut BytesMut::from(fault)).is_err(), "{}", hex(fault));
        }
    }
}
