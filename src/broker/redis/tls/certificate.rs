//! Reads the fields of an X.509 certificate that rustls does not give (RFC 5280 §4.1, X.690 DER).
//!
//! rustls refuses a certificate of version 1 as a whole and never reads a common name; OpenSSL, and so
//! redis-cli, takes both. `verifier.rs` decides what these fields are worth. The bytes may come from a peer:
//! no read here may panic. May not enter: trust, and I/O.

/// DER tags (X.690 §8.1.2).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// The tags `[0]` (the version) and `[3]` (the extensions) of a TBSCertificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// A certificate's fields, as slices of its DER bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Certificate<'a> {
    /// 1 to 3.
    pub(super) version: u8,
    /// The bytes that the issuer signed.
    pub(super) signed: &'a [u8],
    /// The AlgorithmIdentifier of the signature, without its own tag and length.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// Seconds since 1970.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// The SubjectPublicKeyInfo with its tag and length.
    pub(super) key_info: &'a [u8],
    pub(super) key: Key<'a>,
    extensions: &'a [u8],
}

/// A SubjectPublicKeyInfo's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    /// The AlgorithmIdentifier, without its own tag and length.
    pub(super) algorithm: &'a [u8],
    pub(super) bits: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads `der`; `None` if `der` is no certificate.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(der).of(SEQUENCE)?.content);
        let signed = outer.of(SEQUENCE)?;
        let signature_algorithm = outer.of(SEQUENCE)?.content;
        let signature = bits(outer.of(BIT_STRING)?.content)?;
        let mut fields = Der(signed.content);
        let version = match fields.of(VERSION) {
            None => 1,
            Some(version) => Der(version.content).of(INTEGER)?.content.first()?.checked_add(1)?,
        };
        fields.of(INTEGER)?;
        // The signed and the outer algorithm must be the same (RFC 5280 §4.1.1.2).
        if fields.of(SEQUENCE)?.content != signature_algorithm {
            return None;
        }
        let issuer = fields.of(SEQUENCE)?.whole;
        let mut validity = Der(fields.of(SEQUENCE)?.content);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = fields.of(SEQUENCE)?.whole;
        let key_info = fields.of(SEQUENCE)?;
        let mut key = Der(key_info.content);
        let key = Key { algorithm: key.of(SEQUENCE)?.content, bits: bits(key.of(BIT_STRING)?.content)? };
        let extensions = loop {
            match fields.next() {
                None => break &[][..],
                Some(Element { tag: EXTENSIONS, content, .. }) => break Der(content).of(SEQUENCE)?.content,
                Some(_) => {}
            }
        };
        Some(Self {
            version,
            signed: signed.whole,
            signature_algorithm,
            signature,
            issuer,
            subject,
            not_before,
            not_after,
            key_info: key_info.whole,
            key,
            extensions,
        })
    }

    /// The last common name of the subject.
    pub(super) fn common_name(&self) -> Option<&'a str> {
        let mut found = None;
        let mut sets = Der(Der(self.subject).of(SEQUENCE)?.content);
        while let Some(set) = sets.of(SET) {
            let mut attributes = Der(set.content);
            while let Some(attribute) = attributes.of(SEQUENCE) {
                let mut attribute = Der(attribute.content);
                if attribute.of(OID)?.content == COMMON_NAME {
                    found = std::str::from_utf8(attribute.next()?.content).ok();
                }
            }
        }
        found
    }

    /// Whether the certificate has a subjectAltName.
    pub(super) fn has_alternative_names(&self) -> bool {
        let mut extensions = Der(self.extensions);
        std::iter::from_fn(|| extensions.of(SEQUENCE))
            .any(|extension| Der(extension.content).of(OID).is_some_and(|id| id.content == SUBJECT_ALT_NAME))
    }
}

/// One DER element.
#[derive(Debug, Clone, Copy)]
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// DER elements that follow each other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element; `None` at the end, and if the bytes are no DER.
    fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (len, rest) = match usize::from(short) {
            len @ 0..=0x7f => (len, rest),
            // Chosen: three bytes of length, far above any certificate.
            long @ 0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(long - 0x80)?;
                (digits.iter().fold(0, |len, digit| (len << 8) | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, behind) = rest.split_at_checked(len)?;
        let whole = self.0.get(..self.0.len() - behind.len())?;
        self.0 = behind;
        Some(Element { tag, content, whole })
    }

    /// Takes the next element if its tag is `tag`.
    fn of(&mut self, tag: u8) -> Option<Element<'a>> {
        let mut ahead = Der(self.0);
        let element = ahead.next().filter(|element| element.tag == tag)?;
        self.0 = ahead.0;
        Some(element)
    }

    /// Seconds since 1970 (RFC 5280 §4.1.2.5: always in UTC, with seconds).
    fn time(&mut self) -> Option<u64> {
        let Element { tag, content, .. } = self.next()?;
        let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = text.split_at_checked(2)?;
                let year: u64 = year.parse().ok()?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = text.split_at_checked(4)?;
                (year.parse().ok()?, rest)
            }
            _ => return None,
        };
        let pair = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
        let (month, day) = (pair(0)?, pair(2)?);
        if rest.len() != 10 || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day)
        {
            return None;
        }
        Some(days(year, month, day) * 86_400 + pair(4)? * 3_600 + pair(6)? * 60 + pair(8)?)
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, whose year is counted from March.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The bytes of a bit string, if all its bytes are whole.
fn bits(content: &[u8]) -> Option<&[u8]> {
    match content.split_first()? {
        (0, bytes) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn days_are_counted_over_leap_years() {
        for (date, expected) in [((1970, 1, 1), 0), ((1970, 3, 1), 59), ((2000, 2, 29), 11_016), ((2100, 3, 1), 47_541)]
        {
            let (year, month, day) = date;
            assert_eq!(days(year, month, day), expected, "{date:?}");
        }
        let time = |tag, text: &str| {
            let der = [&[tag, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
            Der(&der).time()
        };
        assert_eq!(time(UTC_TIME, "700101000001Z"), Some(1));
        assert_eq!(time(GENERALIZED_TIME, "21000301000000Z"), Some(47_541 * 86_400));
        for wrong in ["700101000000", "7001010000Z", "701301000000Z", "70010100000xZ"] {
            assert_eq!(time(UTC_TIME, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lengths_of_several_bytes_are_read_and_cut_ones_refused() {
        let long = [&[SEQUENCE, 0x82, 0x01, 0x00][..], &[7; 256]].concat();
        assert_eq!(Der(&long).of(SEQUENCE).map(|element| element.content.len()), Some(256));
        assert!(Der(&long[..200]).of(SEQUENCE).is_none() && Der(&long).of(SET).is_none());
        assert!(Der(&[SEQUENCE, 0x84, 0, 0, 0, 0]).next().is_none() && Der(&[SEQUENCE]).next().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let wrapped = [&[SEQUENCE, 0x82, 0x01, 0x40][..], &bytes, &[0; 320]].concat();
            for der in [&bytes[..], &wrapped] {
                if let Some(certificate) = Certificate::parse(der) {
                    certificate.common_name();
                    certificate.has_alternative_names();
                }
            }
        }
    }
}
