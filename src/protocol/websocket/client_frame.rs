//! Builds a client's frames, for tests. May not enter: what a server sends (`frame.rs`).

/// The mask of the examples in RFC 6455 §5.7.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A masked frame in the shortest form, with less than 64 KiB; `first` is FIN, RSV and opcode (RFC 6455 §5.2).
pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()).unwrap() {
        short @ ..126 => frame.push(0x80 | short.to_be_bytes()[1]),
        long => {
            frame.push(0x80 | 126);
            frame.extend(long.to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
