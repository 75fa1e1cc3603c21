//! Signed names of channels, as Rails' `MessageVerifier` makes them for Turbo and AnyCable: the name as JSON in base64,
//! `--`, and its HMAC-SHA256 in hexadecimal digits.
//!
//! A name without a valid signature tells nothing of its own: the signature is compared first, in constant time.
//! May not enter: where the keys come from (`key_file.rs`), what the name means.

use ring::hmac;

use super::secrets::{base64, secrets};

/// Shortest key. Chosen: 128 bits, if the key is random.
const MIN_KEY_BYTES: usize = 16;

/// The keys of an endpoint: a name is valid if one of them has signed the name.
#[derive(Debug)]
pub(super) struct ChannelKeys(Vec<hmac::Key>);

impl ChannelKeys {
    /// One key a line.
    ///
    /// # Errors
    /// What is wrong, without the keys.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let key = |secret: Vec<u8>| hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(Self(secrets(text, MIN_KEY_BYTES)?.into_iter().map(key).collect()))
    }

    /// The name that was signed; `None` for every other text.
    pub(super) fn name(&self, signed: &str) -> Option<String> {
        let (payload, digits) = signed.rsplit_once("--")?;
        let signature = from_hex(digits)?;
        if !self.0.iter().any(|key| hmac::verify(key, payload.as_bytes(), &signature).is_ok()) {
            return None;
        }
        serde_json::from_slice(&base64(payload)?).ok()
    }
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |index: usize| char::from(*pair.get(index)?).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::base64::Engine;
    use ::base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    /// printf 'ImFsaWNlIg==' | openssl dgst -sha256 -hmac "$KEY"
    const ALICE: &str = "ImFsaWNlIg==--23556a217701b73cc6596a4efd88b88cca19af59cfc10399319be64918b3fc46";

    fn keys(text: &str) -> ChannelKeys {
        ChannelKeys::parse(text).unwrap()
    }

    fn sign(key: &str, payload: &str) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), payload.as_bytes());
        let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{payload}--{digits}")
    }

    fn signed(key: &str, name: &str) -> String {
        sign(key, &STANDARD.encode(serde_json::to_string(name).unwrap()))
    }

    #[test]
    fn a_name_is_what_was_signed_and_each_key_counts() {
        let other = "fedcba9876543210fedcba9876543210";
        assert_eq!(signed(KEY, "alice"), ALICE);
        for name in ["alice", "", "a--b", "m\u{fc}ller/\u{1f600}", "\"", "Z2lkOi8vYXBwL1Jvb20vMQ:messages"] {
            for text in
                [KEY.to_owned(), format!("{KEY}\n"), format!("{other}\r\n\n{KEY}\r\n"), format!("{KEY}\n{other}")]
            {
                assert_eq!(keys(&text).name(&signed(KEY, name)).as_deref(), Some(name), "{text}");
            }
            assert_eq!(keys(other).name(&signed(KEY, name)), None);
        }
        // Without padding and in the other alphabet, as with url_safe.
        let raw = serde_json::to_string("\u{1f600}\u{1f600}>>>???").unwrap();
        let payload = URL_SAFE_NO_PAD.encode(raw);
        assert!(payload.contains(['-', '_']));
        assert_eq!(keys(KEY).name(&sign(KEY, &payload)).as_deref(), Some("\u{1f600}\u{1f600}>>>???"));
    }

    #[test]
    fn a_key_in_base64_is_its_bytes() {
        let bytes = [0x00, 0xff, b'\n', 0x80].repeat(16);
        let payload = "ImFsaWNlIg==";
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), payload.as_bytes());
        let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let text = format!("base64:{}\n", STANDARD.encode(&bytes));
        assert_eq!(keys(&text).name(&format!("{payload}--{digits}")).as_deref(), Some("alice"));
    }

    #[test]
    fn what_is_not_signed_so_is_no_name() {
        let keys = keys(KEY);
        let whole = signed(KEY, "alice");
        let (payload, digits) = whole.rsplit_once("--").unwrap();
        for wrong in [
            "",
            "--",
            "alice",
            "\"alice\"",
            payload,
            &format!("{payload}--"),
            &format!("{payload}-{digits}"),
            &format!("{payload}--{}", &digits[1..]),
            &format!("{payload}--0{digits}"),
            &format!("{payload}--{}", "0".repeat(64)),
            &format!("{payload}--{}", "\u{e9}".repeat(32)),
            &format!("{payload}--+{}", &digits[1..]),
            &format!(" {whole}"),
            &format!("{whole} "),
            &format!("{whole}--{digits}"),
            &format!("ImJvYiI=--{digits}"),
            // Signed, and no JSON string: a signature for something else of the site.
            &sign(KEY, "YWxpY2U="),
            &sign(KEY, &STANDARD.encode("{\"_rails\":{\"message\":\"ImFsaWNlIg==\"}}")),
            &sign(KEY, &STANDARD.encode("[\"alice\"]")),
            &sign(KEY, &STANDARD.encode("\"alice\" \"bob\"")),
            &sign(KEY, "alice"),
            &sign(KEY, "%%"),
        ] {
            assert_eq!(keys.name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_without_good_keys_is_a_fault_that_does_not_repeat_them() {
        for (text, why) in [
            ("", "no key"),
            ("\n\n", "no key"),
            ("hunter2", "line 1 is shorter"),
            (&format!("{KEY}\nhunter2\n"), "line 2 is shorter"),
            ("base64:hunter2!", "line 1 is not base64"),
            ("base64:AAAA", "line 1 is shorter"),
        ] {
            let fault = ChannelKeys::parse(text).unwrap_err();
            assert!(fault.contains(why) && !fault.contains("hunter2"), "{text}: {fault}");
        }
        assert!(!format!("{:?}", keys(KEY)).contains(KEY));
    }

    proptest! {
        #[test]
        fn no_change_of_a_signed_name_is_accepted(name: String, at: prop::sample::Index, to: char) {
            let whole = signed(KEY, &name);
            let mut changed: Vec<char> = whole.chars().collect();
            let at = at.index(changed.len());
            prop_assume!(!changed[at].eq_ignore_ascii_case(&to));
            changed[at] = to;
            prop_assert_eq!(keys(KEY).name(&changed.into_iter().collect::<String>()), None);
            prop_assert_eq!(keys(KEY).name(&whole), Some(name));
        }
    }
}
