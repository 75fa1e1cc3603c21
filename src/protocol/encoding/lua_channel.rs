//! The Lua handler's channel rule: a JSON string or number names the channel, as lua-cjson 2.1 and LuaJIT read and
//! write it.
//!
//! Strict JSON with one exception from the original: a string may contain the control bytes 0x01 to 0x1f unescaped. May
//! not enter: queries and percent signs (`endpoint.rs`).

/// Why a value names no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAName {
    #[error("it is not JSON: a string needs its double quotes, as channel=\"zhang\" or channel=%22zhang%22")]
    NotJson,
    #[error("it is JSON but neither a string nor a number")]
    OtherKind,
}

/// A channel's name, and whether digits were lost in the conversion, so that distinct numbers share a channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) lost_precision: bool,
}

/// Decodes `value` as the Lua handler did.
///
/// # Errors
/// When `value` is neither a JSON string nor a JSON number.
pub(crate) fn parse_name(value: &str) -> Result<Name, NotAName> {
    let value = value.trim_matches([' ', '\t', '\n', '\r']);
    match value.as_bytes().first() {
        Some(b'"') => {
            let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let text = inner.and_then(unescape).ok_or(NotAName::NotJson)?;
            Ok(Name { text, lost_precision: false })
        }
        Some(b'-' | b'0'..=b'9') => parse_number(value).ok_or(NotAName::NotJson),
        Some(b'[' | b'{') => Err(NotAName::OtherKind),
        _ if matches!(value, "true" | "false" | "null") => Err(NotAName::OtherKind),
        _ => Err(NotAName::NotJson),
    }
}

/// Decodes the part of a JSON string between its quotes; `None` when malformed.
fn unescape(inner: &str) -> Option<String> {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(next) = chars.next() {
        match next {
            '"' | '\0' => return None,
            '\\' => out.push(match chars.next()? {
                'u' => unescape_unicode(&mut chars)?,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                same @ ('"' | '\\' | '/') => same,
                _ => return None,
            }),
            plain => out.push(plain),
        }
    }
    Some(out)
}

/// What follows `\u`: four digits, or two surrogates as `XXXX\uXXXX`.
fn unescape_unicode(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let mut unit = || (0..4).try_fold(0_u32, |unit, _| Some(unit * 16 + chars.next()?.to_digit(16)?));
    let high = unit()?;
    if !(0xd800..0xdc00).contains(&high) {
        // A low surrogate alone is no char either: from_u32 refuses it.
        return char::from_u32(high);
    }
    if !(chars.next()? == '\\' && chars.next()? == 'u') {
        return None;
    }
    let mut unit = || (0..4).try_fold(0_u32, |unit, _| Some(unit * 16 + chars.next()?.to_digit(16)?));
    let low = unit()?;
    (0xdc00..0xe000)
        .contains(&low)
        .then(|| char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)))
        .flatten()
}

/// A JSON number as LuaJIT's `%.14g` writes it.
fn parse_number(text: &str) -> Option<Name> {
    let digits = is_json_number(text)?;
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite())?;
    Some(Name { text: format_14g(number), lost_precision: digits > 14 })
}

/// The number of significant digits when `text` is a number by RFC 8259 §6.
fn is_json_number(text: &str) -> Option<usize> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let valid = is_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(is_digits)
        && exponent.is_none_or(|exponent| is_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
    let significant = format!("{whole}{}", fraction.unwrap_or_default());
    let significant = significant.trim_start_matches('0').trim_end_matches('0');
    valid.then_some(significant.len())
}

/// C's `%.14g`, but with ties away from zero as LuaJIT rounds them.
fn format_14g(number: f64) -> String {
    const DIGITS: usize = 14;
    if number == 0.0 {
        return if number.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    // A double has at most 767 significant decimal digits, so this expansion is exact.
    let exact = format!("{:.766e}", number.abs());
    let (mantissa, exponent) = exact.split_once('e').unwrap_or((&exact, "0"));
    let mut exponent: i32 = exponent.parse().unwrap_or(0);
    let all: Vec<u8> = mantissa.bytes().filter(u8::is_ascii_digit).collect();
    let (kept, rest) = all.split_at_checked(DIGITS).unwrap_or((&all, &[]));
    let mut kept: u64 = kept.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    if rest.first().is_some_and(|digit| *digit >= b'5') {
        kept += 1;
        if kept == 10_u64.pow(14) {
            kept /= 10;
            exponent += 1;
        }
    }
    let digits = kept.to_string();
    let digits = digits.trim_end_matches('0');
    let sign = if number < 0.0 { "-" } else { "" };
    let (first, rest) = digits.split_at_checked(1).unwrap_or((digits, ""));
    let dot = if rest.is_empty() { "" } else { "." };
    match usize::try_from(exponent) {
        Ok(before) if before < DIGITS => match digits.split_at_checked(before + 1) {
            Some((whole, "")) => format!("{sign}{whole}"),
            Some((whole, fraction)) => format!("{sign}{whole}.{fraction}"),
            None => format!("{sign}{digits}{}", "0".repeat(before + 1 - digits.len())),
        },
        Err(_) if exponent >= -4 => {
            let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
            format!("{sign}0.{zeros}{digits}")
        }
        _ => {
            let exponent_sign = if exponent < 0 { '-' } else { '+' };
            format!("{sign}{first}{dot}{rest}e{exponent_sign}{:02}", exponent.unsigned_abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(value: &str) -> Option<String> {
        parse_name(value).ok().map(|name| name.text)
    }

    #[test]
    fn strings_are_decoded() {
        for (value, expected) in [
            (r#""zhang""#, "zhang"),
            (r#"" ""#, " "),
            (r#""""#, ""),
            ("\t \"a\"\r\n", "a"),
            (r#""\u4e2d\ud83d\ude00\/\"\\\r\n\u0000""#, "中😀/\"\\\r\n\0"),
            ("\"a\u{1}\tb\"", "a\u{1}\tb"),
        ] {
            assert_eq!(name(value).as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn a_value_that_is_no_json_string_or_number_is_refused() {
        for value in [
            "",
            "zhang",
            "''",
            r#""a"#,
            r#"""a""#,
            r#""a"b"#,
            r#""\x""#,
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800\u0041""#,
            r#""\u12""#,
            "\"a\0\"",
            ".5",
            "-",
            "1.",
            "1e",
            "007",
            "+5",
            "0x10",
            "nan",
            "Infinity",
            "1e400",
            r#""\""#,
            "\"",
        ] {
            assert_eq!(parse_name(value), Err(NotAName::NotJson), "{value}");
        }
        for value in ["true", "null", "[]", "{\"a\":1}", "[\"a\"]"] {
            assert_eq!(parse_name(value), Err(NotAName::OtherKind), "{value}");
        }
    }

    #[test]
    fn numbers_are_written_as_luajit_does() {
        for (value, expected) in [
            ("123", "123"),
            ("-5", "-5"),
            ("0", "0"),
            ("-0", "-0"),
            ("1.5", "1.5"),
            ("1.0", "1"),
            ("0.1", "0.1"),
            ("1e20", "1e+20"),
            ("1e-7", "1e-07"),
            ("12345678901234", "12345678901234"),
            ("12345678901234567", "1.2345678901235e+16"),
            ("3.14159265358979323846", "3.1415926535898"),
            ("123456789012345", "1.2345678901235e+14"),
            ("10000000000000.5", "10000000000001"),
            ("100000000000005", "1.0000000000001e+14"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("99999999999999.9", "1e+14"),
            ("1200", "1200"),
            ("-1.25e-300", "-1.25e-300"),
        ] {
            assert_eq!(name(value).as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn lost_digits_are_told() {
        assert!(!parse_name("12345678901234").unwrap().lost_precision);
        assert!(parse_name("123456789012345").unwrap().lost_precision);
        assert!(!parse_name("1e300").unwrap().lost_precision);
    }
}
