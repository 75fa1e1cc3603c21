//! Secrets in a file: one a line, as text or in base64. May not enter: what a secret is for.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// What begins a secret that is written in base64.
const BASE64: &str = "base64:";

/// The secrets of a file; empty lines are ignored.
///
/// # Errors
/// What is wrong, without the secrets.
pub(super) fn secrets(text: &str, min_bytes: usize) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let number = index + 1;
        let secret = match line.strip_prefix(BASE64) {
            Some(digits) => base64(digits).ok_or_else(|| format!("line {number} is not base64"))?,
            None => line.as_bytes().to_vec(),
        };
        if secret.len() < min_bytes {
            return Err(format!(
                "the key in line {number} is shorter than {min_bytes} bytes: make one with openssl rand -hex 32"
            ));
        }
        found.push(secret);
    }
    if found.is_empty() { Err("it has no key: write one a line".to_owned()) } else { Ok(found) }
}

/// Decodes either alphabet, with or without padding.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}
