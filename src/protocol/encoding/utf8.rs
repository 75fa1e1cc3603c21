//! Payloads that are not UTF-8. May not enter: the choice of a policy (`config/endpoint.rs`).

/// Whether a payload is UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoded {
    Utf8,
    NotUtf8,
}

/// The payload with U+FFFD for each byte that is not UTF-8.
pub(super) fn replace_bad_bytes(payload: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(payload.len() + 16);
    for chunk in payload.utf8_chunks() {
        clean.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            clean.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    clean
}
