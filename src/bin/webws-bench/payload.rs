//! A publication's payload: its sender, its sequence, its intended time of sending.
//!
//! Text of a fixed width, `~bRUN_:SENDER__:SEQUENCE:SENT______:NUMBER__:padding` in hexadecimal: cheap to read, and
//! valid on any wire that carries text. A wire may add text after it (the channel's name) or before it. May not enter:
//! frames, the meaning of the figures.

use crate::clock::Micros;

/// Bytes of the fixed part: the smallest payload.
pub(crate) const MIN_BYTES: usize = 45;

/// The start of every payload, which other programs' payloads are unlikely to have.
const MAGIC: [u8; 2] = *b"~b";

/// The padding after the fixed part, repeated as needed.
const PADDING: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-._";

/// The fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Tells this run's payloads from those of another that shares the broker.
    pub(crate) run: u16,
    pub(crate) sender: u32,
    /// Counts the sender's payloads, from 0.
    pub(crate) sequence: u32,
    /// The intended time of sending; 40 bits, 12 days.
    pub(crate) sent: Micros,
    /// Which publication in flight this is (`flight`).
    pub(crate) number: u32,
}

/// Writes payloads of one size.
#[derive(Debug)]
pub(crate) struct Composer {
    bytes: Vec<u8>,
}

impl Composer {
    /// For payloads of `size` bytes, at least [`MIN_BYTES`].
    pub(crate) fn new(size: usize) -> Self {
        let mut bytes = vec![b':'; MIN_BYTES];
        bytes.extend(PADDING.iter().cycle().take(size.saturating_sub(MIN_BYTES)));
        Self { bytes }
    }

    /// The payload with this header.
    pub(crate) fn compose(&mut self, header: &Header) -> &[u8] {
        if let Some(fixed) = self.bytes.first_chunk_mut::<MIN_BYTES>() {
            *fixed = header.to_bytes();
        }
        &self.bytes
    }
}

impl Header {
    fn to_bytes(self) -> [u8; MIN_BYTES] {
        let mut out = [b':'; MIN_BYTES];
        out[..2].copy_from_slice(&MAGIC);
        put_hex(u64::from(self.run), &mut out[2..6]);
        put_hex(u64::from(self.sender), &mut out[7..15]);
        put_hex(u64::from(self.sequence), &mut out[16..24]);
        put_hex(self.sent, &mut out[25..35]);
        put_hex(u64::from(self.number), &mut out[36..44]);
        out
    }

    /// Reads the header in a payload: at the start, or after text that a wire put before it.
    pub(crate) fn find(payload: &[u8]) -> Option<Self> {
        if let Some(header) = payload.first_chunk().and_then(Self::parse) {
            return Some(header);
        }
        // Not the hot path: no known wire puts text first.
        payload.windows(MIN_BYTES).find_map(|window| window.first_chunk().and_then(Self::parse))
    }

    fn parse(bytes: &[u8; MIN_BYTES]) -> Option<Self> {
        let colons = [bytes[6], bytes[15], bytes[24], bytes[35], bytes[44]];
        if bytes[..2] != MAGIC || colons != [b':'; 5] {
            return None;
        }
        let eight = |at: usize| bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map(hex8);
        Some(Self {
            // The four digits lie at the end of eight: "~b" before them would spoil the front.
            run: u16::try_from(hex8(&[b'0', b'0', b'0', b'0', bytes[2], bytes[3], bytes[4], bytes[5]])).ok()?,
            sender: eight(7)?,
            sequence: eight(16)?,
            sent: (Micros::from(eight(25)? >> 24) << 32) | Micros::from(eight(27)?),
            number: eight(36)?,
        })
    }
}

fn put_hex(mut value: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        let nibble = value.to_le_bytes()[0] & 0xf;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble };
        value >>= 4;
    }
}

/// Eight lower-case hexadecimal digits at once. Other bytes give nonsense, which the ledger notices.
#[expect(clippy::cast_possible_truncation, reason = "the upper half is zero after the last step")]
fn hex8(digits: &[u8; 8]) -> u32 {
    let digits = u64::from_be_bytes(*digits);
    // A letter has bit 6 and its low nibble counts from 1.
    let mut value = (digits & 0x0f0f_0f0f_0f0f_0f0f) + ((digits >> 6) & 0x0101_0101_0101_0101) * 9;
    value = (value | value >> 4) & 0x00ff_00ff_00ff_00ff;
    value = (value | value >> 8) & 0x0000_ffff_0000_ffff;
    (value | value >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { run: 0xf00d, sender: 0x0012_cdef, sequence: 0xffff_fffe, sent: 0xab_cdef_0123, number: 0x0a1b_2c3d };

    #[test]
    fn a_header_survives_the_journey() {
        for header in [HEADER, Header { run: 0, sender: 0, sequence: 0, sent: 0, number: 0 }] {
            for size in [MIN_BYTES, 128, 4096] {
                let mut composer = Composer::new(size);
                let payload = composer.compose(&header);
                assert_eq!(payload.len(), size);
                assert!(payload.is_ascii());
                assert_eq!(Header::find(payload), Some(header));
            }
        }
    }

    #[test]
    fn what_a_wire_adds_is_tolerated() {
        let mut composer = Composer::new(MIN_BYTES);
        let payload = composer.compose(&HEADER).to_vec();
        assert_eq!(Header::find(&[&payload, b"c17".as_slice()].concat()), Some(HEADER));
        assert_eq!(Header::find(&[b"{\"text\":\"", payload.as_slice(), b"\"}"].concat()), Some(HEADER));
    }

    #[test]
    fn anything_else_has_no_header() {
        let mut composer = Composer::new(MIN_BYTES);
        let payload = composer.compose(&HEADER).to_vec();
        assert_eq!(Header::find(b""), None);
        assert_eq!(Header::find(&payload[..MIN_BYTES - 1]), None);
        assert_eq!(Header::find(&[b'x'; 200]), None);
        for at in [0, 1, 6, 15, 24, 35, 44] {
            let mut bad = payload.clone();
            bad[at] = b'?';
            assert_eq!(Header::find(&bad), None, "byte {at}");
        }
    }
}
