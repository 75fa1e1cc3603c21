//! WebSocket frames by hand (RFC 6455 §5.2): heads read, frames written, payloads unmasked.
//!
//! Both sides are here: the load generator reads what servers send and writes masked frames, the
//! floor does the opposite. May not enter: sockets, and what payloads mean.

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// Clients' frames are masked with a constant: unpredictable masks protect proxies from browsers'
/// scripts (§10.3), and there is no script here. Not zero, so that the server has to unmask.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The head of a frame, and where its payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) fin: bool,
    pub(crate) opcode: u8,
    pub(crate) mask: Option<[u8; 4]>,
    /// Bytes of the head: the payload starts here.
    pub(crate) start: usize,
    /// Bytes of the payload.
    pub(crate) len: usize,
}

impl Head {
    /// Bytes of the whole frame.
    pub(crate) fn total(&self) -> usize {
        self.start.saturating_add(self.len)
    }
}

/// A frame that no conforming peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    ReservedBit,
    Opcode,
    Control,
    Length,
}

impl Malformed {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ReservedBit => "a frame with a reserved bit set",
            Self::Opcode => "a frame with an unknown opcode",
            Self::Control => "a control frame that is fragmented or too long",
            Self::Length => "a frame with an impossible length",
        }
    }
}

/// Reads the head at the start of `bytes`; `None` while it is incomplete.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x70 != 0 {
        return Err(Malformed::ReservedBit);
    }
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(Malformed::Opcode);
    }
    let (len, extended) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (usize::from(u16::from_be_bytes(*bytes)), 2),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)) {
            Some(len) if len >> 63 == 0 => (usize::try_from(len).map_err(|_| Malformed::Length)?, 8),
            Some(_) => return Err(Malformed::Length),
            None => return Ok(None),
        },
        len => (usize::from(len), 0),
    };
    if opcode >= CLOSE && (!fin || len > 125) {
        return Err(Malformed::Control);
    }
    let mask = if second & 0x80 == 0 {
        None
    } else {
        match rest.get(extended..).and_then(|rest| rest.first_chunk::<4>()) {
            Some(mask) => Some(*mask),
            None => return Ok(None),
        }
    };
    let start = 2 + extended + if mask.is_some() { 4 } else { 0 };
    Ok(Some(Head { fin, opcode, mask, start, len }))
}

/// Appends a frame as clients send it.
pub(crate) fn put_masked(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    put_head(opcode, 0x80, payload.len(), out);
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(payload) = out.get_mut(start..) {
        unmask(payload, MASK);
    }
}

/// Appends a frame as servers send it, its payload in two parts.
pub(crate) fn put_plain(opcode: u8, payload: &[u8], suffix: &[u8], out: &mut Vec<u8>) {
    put_head(opcode, 0, payload.len() + suffix.len(), out);
    out.extend_from_slice(payload);
    out.extend_from_slice(suffix);
}

/// Masks or unmasks, which is the same (§5.3).
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    for chunk in payload.chunks_mut(4) {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

fn put_head(opcode: u8, masked: u8, len: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ 0..=125), _) => out.push(masked | len),
        (_, Ok(len)) => {
            out.push(masked | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_form_is_written_minimal_and_read_back() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; len];
            let (mut masked, mut plain) = (Vec::new(), Vec::new());
            put_masked(TEXT, &payload, &mut masked);
            put_plain(TEXT, &payload[..len / 2], &payload[len / 2..], &mut plain);
            for (bytes, mask, extra) in [(&mut masked, Some(MASK), 4), (&mut plain, None, 0)] {
                let extended = if len > 65_535 {
                    8
                } else if len > 125 {
                    2
                } else {
                    0
                };
                let expected = Head { fin: true, opcode: TEXT, mask, start: 2 + extended + extra, len };
                assert_eq!(head(bytes), Ok(Some(expected)));
                assert_eq!(bytes.len(), expected.total());
                if let Some(mask) = mask {
                    unmask(&mut bytes[expected.start..], mask);
                }
                assert_eq!(&bytes[expected.start..], payload);
            }
        }
    }

    #[test]
    fn a_head_is_awaited_byte_by_byte() {
        let mut bytes = Vec::new();
        put_masked(BINARY, &[0; 70_000], &mut bytes);
        for cut in 0..14 {
            assert_eq!(head(&bytes[..cut]), Ok(None), "{cut} bytes");
        }
        assert!(head(&bytes[..14]).unwrap().is_some());
    }

    #[test]
    fn what_no_server_may_send_is_named() {
        assert_eq!(head(&[0xc1, 0]), Err(Malformed::ReservedBit));
        assert_eq!(head(&[0x83, 0]), Err(Malformed::Opcode));
        assert_eq!(head(&[0x09, 0]), Err(Malformed::Control));
        assert_eq!(head(&[0x89, 126, 0, 126]), Err(Malformed::Control));
        assert_eq!(head(&[0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Length));
    }
}
