//! Replication ids: the names of histories of writes, and points in them as positions have them. A point is signed by its
//! history's id, which no client knows: a client that could choose a point could have the log read from the middle of a
//! payload, which would be taken for commands. May not enter: what is read from a log.

use std::fmt;
use std::hash::Hasher;

use crate::position::LogPoint;

/// A replication id: the name of one history of writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replid([u8; 20]);

impl Replid {
    pub(crate) fn parse(digits: &str) -> Option<Self> {
        let mut id = [0; 20];
        if digits.len() != 2 * id.len() || !digits.is_ascii() {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(id))
    }

    /// Whether this is an id and not the zeros that stand for none.
    pub(crate) fn is_set(self) -> bool {
        self.0 != [0; 20]
    }

    /// A point in this history: the offset under SipHash 2-4 (<https://www.aumasson.jp/siphash/siphash.pdf>), keyed with
    /// the id.
    #[expect(deprecated, reason = "std's other hashers may change; two versions of us must agree")]
    pub(crate) fn at(self, offset: u64) -> LogPoint {
        let [a, b, c] = [0, 8, 12].map(|start| {
            let part =
                self.0.get(start..).and_then(|rest| rest.first_chunk()).expect("20 bytes have 8 behind the 12th");
            u64::from_be_bytes(*part)
        });
        let mut hasher = std::hash::SipHasher::new_with_keys(a, b);
        hasher.write(&c.to_be_bytes());
        hasher.write(&offset.to_be_bytes());
        LogPoint { history: hasher.finish().to_be_bytes(), offset }
    }

    /// Whether a point is in this history.
    pub(crate) fn has(self, point: LogPoint) -> bool {
        self.at(point.offset) == point
    }
}

/// As PSYNC takes an id: 40 hexadecimal digits.
impl fmt::Display for Replid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Replid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_of_one_offset_in_one_history() {
        let digits = "02b538e5c34cd82e52b386fb9baafcd9fcb6091e";
        let replid = Replid::parse(digits).unwrap();
        assert_eq!(replid.to_string(), digits);
        let point = replid.at(4_711);
        assert!(replid.has(point) && !replid.has(LogPoint { offset: 4_712, ..point }));
        for place in 0..20 {
            let mut other = replid;
            other.0[place] ^= 1;
            assert!(!other.has(point), "byte {place} matters");
        }
        for digits in ["", "ä", &digits[1..], &format!("{digits}0")] {
            assert_eq!(Replid::parse(digits), None, "{digits}");
        }
        assert!(replid.is_set() && !Replid([0; 20]).is_set());
    }
}
