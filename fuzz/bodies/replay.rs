//! A replication log: never a panic, and the same publications wherever the log is cut.

use webws::internals::replay::decode;

pub(crate) fn run(input: &[u8]) {
    let whole = decode(input, usize::MAX);
    assert!(whole.1 <= input.len() as u64);
    for piece in [1, 2, 3, 5, 16] {
        assert_eq!(decode(input, piece), whole, "pieces of {piece} bytes");
    }
}
