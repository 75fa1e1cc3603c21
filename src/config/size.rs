//! Sizes as people write them: `65535`, `"64kB"` (64,000 bytes), `"64KiB"` (65,536 bytes). May not enter: the limits of
//! a setting.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// Units and their bytes. `k` alone means 1,000 to some and 1,024 to others, so `k` is no unit.
const UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("kib", 1 << 10),
    ("mb", 1_000_000),
    ("mib", 1 << 20),
    ("gb", 1_000_000_000),
    ("gib", 1 << 30),
];

/// The bytes that `text` names, or `None` if it is not a size.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*bytes)?.try_into().ok()
}

/// A size as a number or a text, for a setting inside of another: `check` reads all others.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    struct Size;

    impl Visitor<'_> for Size {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size in bytes, such as 64000 or \"64kB\"")
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<usize, E> {
            bytes.try_into().map_err(|_| E::custom(format!("{bytes} is negative: write 0 or more")))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
            let bytes = parse(text).and_then(|bytes| bytes.try_into().ok());
            bytes.ok_or_else(|| E::custom(format!("'{text}' is not a size: write 64000, \"64kB\" or \"64KiB\"")))
        }
    }

    deserializer.deserialize_any(Size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("65535", 65_535),
            ("512B", 512),
            ("64kB", 64_000),
            ("64KB", 64_000),
            ("64 KiB", 65_536),
            (" 1MiB ", 1 << 20),
            ("2MB", 2_000_000),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "kB", "64k", "64K", "1.5MB", "-1", "1 M", "64 kilobytes", "99999999999GiB", "1e3"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
