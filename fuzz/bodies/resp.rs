//! What Redis sends to a subscriber: never a panic, and the same messages wherever the stream is cut.

use webws::internals::split;

pub(crate) fn run(input: &[u8]) {
    let (payloads, replies) = split(input);
    assert!(replies.iter().all(|reply| !reply.is_empty()));
    let taken: usize = payloads.iter().chain(&replies).map(|part| part.len()).sum();
    assert!(taken <= input.len());
    for cut in 0..input.len() {
        let (before, _) = split(&input[..cut]);
        assert!(payloads.starts_with(&before), "what was whole before the cut is whole without it");
    }
}
